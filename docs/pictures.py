"""Draw the environments' pictures: ``python docs/pictures.py [NAME ...]``, some minutes for all of them.

Where a leader is trained in seconds, a picture is what ``bilevel-gym train`` and ``bilevel-gym record`` leave; elsewhere a simple
follower, written here by hand, plays under the leader's first x. All are made small enough to be kept beside the pages.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image, ImageSequence

import bilevel_gym

FOLDER = Path(__file__).parent / "images" / "environments"
WIDTH, COLOURS = 640, 48
EXACT = ["--leader", "Hypergradient", "--n-iterations", "300"]

# name: steps shown, the trained leader
RUNS: dict[str, tuple[int, list[str]]] = {
    "TwoState-v0": (12, EXACT),
    "StackelbergGame-v0": (16, [*EXACT, "--env-kwargs", "n_states:12"]),
    "FourRooms-v0": (40, EXACT),
    "RandomMDP-v0": (12, EXACT),  # before training: afterwards all rewards are 0
    "GoalPlacement-v0": (30, EXACT),
    "TollDesign-v0": (20, EXACT),
    "LQStackelberg-v0": (20, EXACT),
    "RewardGrid-v0": (30, EXACT),
    "incentive_design_v0": (16, EXACT),
}


def push_along(obs: Any) -> int:
    """Mountain Car: push where it is going."""
    return 2 if obs[1] >= 0.0 else 0


def balance(obs: Any) -> int:
    """Cart Pole: lean against the fall, and a little towards a place on the right."""
    return int(obs[2] + 0.4 * obs[3] + 0.06 * (obs[0] - 1.0) + 0.14 * obs[1] > 0.0)


def swing_up(obs: Any) -> Any:
    """Pendulum: pump energy until it is near the top, then hold it there."""
    cosine, sine, speed = obs
    if cosine > 0.9:
        return np.array([-20.0 * sine - 4.0 * speed], np.float32).clip(-2.0, 2.0)
    energy = speed**2 / 6.0 + 5.0 * (cosine - 1.0)
    return np.array([-2.0 * np.sign(energy * speed) if speed else 2.0], np.float32)


def swing_up_gently(obs: Any) -> Any:
    """Subsidised pendulum: pump energy and hold, with a torque in [-1, 1]."""
    return swing_up(obs) / 2.0


def heat(obs: Any) -> Any:
    """Building: against the deviations of its own two zones."""
    return -np.array([0.2 * obs[0] + 0.12 * obs[1], 0.13 * obs[2] + 0.1 * obs[3]], np.float32).clip(-1.0, 1.0)


def lean(obs: Any) -> Any:
    """Hopper: hold still until it falls."""
    return np.array([-0.2, -0.1, 0.1], np.float32)


def to_and_fro(obs: Any) -> int:
    """TwoState, under a leader that has decided: to the other state."""
    return 1 - int(obs[0] if np.ndim(obs) else obs)


class Write:
    """HappyText: the language model that comes with the package goes on writing."""

    def __init__(self) -> None:
        from bilevel_gym.agents.text.language_model import load_word_model

        self.model, self.rng = load_word_model(), torch.Generator().manual_seed(3)

    @torch.no_grad()
    def __call__(self, obs: Any) -> int:
        tokens = torch.as_tensor(obs)
        written = tokens[tokens < self.model.size][None]
        return int(torch.multinomial(self.model(written)[0, -1].exp(), 1, generator=self.rng))


# name: steps shown, its arguments, what makes the follower
PLAYED: dict[str, tuple[int, dict[str, Any], Callable[[], Callable[[Any], Any]]]] = {
    "ShapedMountainCar-v0": (120, {}, lambda: push_along),
    "ShapedCartPole-v0": (120, {}, lambda: balance),
    "DesignedPendulum-v0": (120, {}, lambda: swing_up),
    "BuildingControl-v0": (16, {}, lambda: heat),
    "SubsidisedPendulum-v0": (100, {}, lambda: swing_up_gently),
    "DesignedHopper-v0": (90, {}, lambda: lean),
    "HappyText-v0": (60, {}, Write),
    "UnderLeader-v0": (
        12,
        {"env_id": "bilevel_gym/TwoState-v0", "x": [0.9], "observe_commitment": False},
        lambda: to_and_fro,
    ),
}


def play(name: str) -> None:
    """Play, film, shrink."""
    assert bilevel_gym.envs  # registered
    steps, kwargs, made = PLAYED[name]
    env = gym.make(f"bilevel_gym/{name}", render_mode="rgb_array", **kwargs)
    follower = made()
    obs, _ = env.reset(seed=0)
    frames: list[Image.Image] = []
    for _ in range(steps):
        frames.append(Image.fromarray(np.asarray(env.render(), dtype=np.uint8)))
        obs, _, terminated, truncated, _ = env.step(follower(obs))
        if terminated or truncated:
            frames.append(Image.fromarray(np.asarray(env.render(), dtype=np.uint8)))
            obs, _ = env.reset()
    every = 3 if name.startswith(("Shaped", "Designed", "Subsidised")) else 1
    keep(frames[::every], 1000 * every / float(env.metadata.get("render_fps") or 4), FOLDER / f"{name}.gif")


def draw(name: str) -> None:
    """Train, record, shrink."""
    steps, options = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bilevel_gym"]
        subprocess.run([*command, "train", "--env", name, *options, "-f", folder], check=True)
        (run,) = (path.parent for path in Path(folder).rglob("settings.yml"))
        film = Path(folder) / "film.gif"
        untrained = ["--untrained"] if name == "RandomMDP-v0" else []
        subprocess.run([*command, "record", str(run), "-n", str(steps), "-o", str(film), *untrained], check=True)
        shrink(film, FOLDER / f"{name}.gif", every=3 if steps > 40 else 1)


def shrink(film: Path, to: Path, every: int) -> None:
    """A film with fewer pictures, pixels and colours."""
    with Image.open(film) as whole:
        duration = int(whole.info["duration"]) * every
        frames = [frame.convert("RGB") for i, frame in enumerate(ImageSequence.Iterator(whole)) if i % every == 0]
    keep(frames, duration, to)


def keep(frames: list[Image.Image], duration: float, to: Path) -> None:
    """Write small pictures, with the colours of the middle one for all."""
    width, height = frames[0].size
    size = (min(WIDTH, width), round(height * min(WIDTH, width) / width))
    frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    palette = frames[len(frames) // 2].quantize(COLOURS)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(to, save_all=True, append_images=others, duration=max(20, round(duration)), loop=0, optimize=True)


if __name__ == "__main__":
    names = [*RUNS, *PLAYED]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all of them where none is named"
    )
    for one in parser.parse_args().names or names:
        print(f"==> {one}", flush=True)
        draw(one) if one in RUNS else play(one)
