"""Plots of learning curves, and recordings of the follower under a trained leader."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pettingzoo
import torch
from numpy.typing import NDArray

from ..envs.mdp import GameProblem, LinearQuadraticProblem, solve_nash, solve_soft
from ..envs.mdp.checks import require
from . import catalogue
from .logs import PROGRESS, STEPS, read_progress
from .run import SETTINGS, load, settings_in
from .settings import Settings, world_of
from .statistics import band

PLOTS = 'matplotlib and Pillow, pip install "bilevel-gym[plots]"'
Frame = NDArray[np.uint8]
Act = Callable[[Any], Any]

# --- curves ---------------------------------------------------------------------------------------------------------------


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Find the folders of runs among these folders and below them.

    Raises:
        ValueError: no run with records was found.
    """
    found = sorted(
        {file.parent for path in paths for file in path.rglob(SETTINGS) if (file.parent / PROGRESS).is_file()}
    )
    shown = ", ".join(str(path) for path in paths)
    require(bool(found), "RUN", f"folders of runs, with {SETTINGS} and {PROGRESS}, or folders of such", shown)
    return found


def curves(folders: Sequence[Path], x: str, y: str) -> dict[str, dict[str, list[tuple[list[float], list[float]]]]]:
    """The recorded curves ``(x, y)`` of all runs, by environment and by leader with follower.

    Raises:
        ValueError: a record that no run has.
    """
    found: dict[str, dict[str, list[tuple[list[float], list[float]]]]] = {}
    known: set[str] = set()
    for folder in folders:
        settings, rows = settings_in(folder, "RUN"), read_progress(folder / PROGRESS)
        numbers = [(key, value) for row in rows for key, value in row.items() if isinstance(value, (int, float))]
        known |= {key.removeprefix("leader/") for key, _ in numbers}
        drawn = [key if key == STEPS else f"leader/{key}" for key in (x, y)]
        points = [
            [row[key] for key in drawn] for row in rows if all(isinstance(row.get(k), (int, float)) for k in drawn)
        ]
        if points:
            xs, ys = zip(*points, strict=True)
            found.setdefault(settings.env_name, {}).setdefault(settings.name, []).append((list(xs), list(ys)))
    require(bool(found), "--y", f"a record of these runs: {', '.join(sorted(known))}", y)
    return found


def plot(folders: Sequence[Path], path: Path, x: str = STEPS, y: str = "leader_return") -> Path:
    """Plot learning curves: one panel per environment, one line per leader, the mean over its runs with a 95% band.

    Raises:
        ValueError: folders without runs, a record that no run has, a file name without a picture's suffix, no matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"plot: expected {PLOTS}, got none ({error})") from error

    found = curves(folders, x, y)
    figure = Figure(figsize=(5.5 * len(found), 4.0), layout="constrained")
    kinds = sorted(FigureCanvasAgg(figure).get_supported_filetypes())
    require(path.suffix[1:] in kinds, "--output", f"a file name that ends in one of {', '.join(kinds)}", str(path))
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (env, lines) in zip(panels, found.items(), strict=True):
        for label, runs in lines.items():
            grid, values = _on_one_grid(runs)
            mean, low, high = band(values)
            (line,) = panel.plot(grid, mean, label=f"{label} ({len(runs)})", linewidth=1.6)
            if len(runs) > 1:
                panel.fill_between(grid, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.set_title(env)
        panel.set_xlabel(x.replace("_", " "))
        panel.set_ylabel(y.replace("_", " "))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return path


def _on_one_grid(runs: Sequence[tuple[list[float], list[float]]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Put runs on a common grid: all points up to the shortest run's end, and each run's values there, ``[runs, points]``."""
    low, high = max(xs[0] for xs, _ in runs), min(xs[-1] for xs, _ in runs)
    grid = np.unique([at for xs, _ in runs for at in xs if low <= at <= high] or [low])
    return grid, np.stack([np.interp(grid, xs, ys) for xs, ys in runs])


# --- moving pictures ------------------------------------------------------------------------------------------------------


def record(
    folder: Path,
    path: Path,
    steps: int,
    seed: int,
    fps: int | None = None,
    untrained: bool = False,
    trust_code: bool = False,
) -> Path:
    """Record the follower under a run's leader as a ``.gif``, or as an ``.mp4`` with imageio's ffmpeg.

    Args:
        folder: folder of the run.
        path: file to write.
        steps: number of steps to record; a new episode starts when one ends.
        seed: seed of the recorded episodes.
        fps: frames per second; None takes the environment's own.
        untrained: whether to use the x before training; the follower is the trained one.
        trust_code: see :func:`.run.load`.

    Raises:
        ValueError: the environment cannot be rendered, the suffix is unknown, or a library is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(f"record: expected {PLOTS}, got none ({error})") from error
    require(path.suffix in (".gif", ".mp4"), "--output", "a file name that ends in .gif or .mp4", str(path))
    played, env = _frames(folder, seed, untrained, trust_code)
    rate = float(fps or env.metadata.get("render_fps") or 10)
    frames: list[Any] = list(itertools.islice(played, steps))
    if path.suffix == ".gif":
        first, *others = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=others, duration=round(1000 / rate), loop=0)
        return path
    try:
        import imageio.v2
        import imageio_ffmpeg

        assert imageio_ffmpeg
    except ImportError as error:
        raise ValueError(
            f'--output: expected a .gif, or pip install "bilevel-gym[video]" for .mp4, got none ({error})'
        ) from error
    imageio.v2.mimwrite(path, frames, fps=rate, macro_block_size=2)
    return path


def _frames(folder: Path, seed: int, untrained: bool, trust_code: bool) -> tuple[Iterator[Frame], Any]:
    """An endless iterator of frames, and the environment that renders them."""
    settings, leader = settings_in(folder, "RUN"), load(folder, trust_code=trust_code)
    problem = getattr(leader, "problem", getattr(getattr(leader, "worlds", None), "problem", None))
    if isinstance(problem, GameProblem):
        env = _drawn(settings, functools.partial(pettingzoo.make, "parallel"))
        if not untrained:
            env.set_leader(leader.x)
        return _play(env, _at_nash(env, seed), seed), env
    env = _drawn(settings, gym.make)
    has_x = env.has_wrapper_attr("set_leader") and catalogue.kind(type(leader)) != "preferences"
    if has_x and not untrained:  # an environment begins with the untrained leader
        env.get_wrapper_attr("set_leader")(leader.x)
    env, act = _follower(leader, env, seed)
    return _play(env, act, seed), env


def _drawn(settings: Settings, make: Callable[..., Any]) -> Any:
    """The environment of a run, with rendering."""
    world, kwargs = world_of(settings)
    if isinstance(world, str):
        env = make(world, **{**(kwargs or {}), "render_mode": "rgb_array"})
    else:
        env = world() if callable(world) else world
    expected = "one that is drawn: a module:callable gets it by --env-kwargs render_mode:rgb_array, where it takes that"
    require(env.render_mode == "rgb_array", "--env", expected, settings.env)
    return env


def _follower(leader: Any, env: gym.Env[Any, Any], seed: int) -> tuple[gym.Env[Any, Any], Act]:
    """The follower's environment, and its action as a function of the observation."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    from ..wrappers import ObserveCommitment, set_leader

    kind = catalogue.kind(type(leader))
    if kind == "exact":
        return env, _exact(leader, env, seed)
    if kind == "preferences":
        follower = leader.follower
    elif hasattr(leader, "follower"):
        follower = leader.follower
        env = ObserveCommitment(env) if leader.worlds.observe_commitment else env
    else:  # a search keeps no follower: one is trained at x
        set_leader(leader.training, env.get_wrapper_attr("leader_x"))
        follower = leader.new_follower(seed)
        follower.train_alone(leader.config.evaluation_steps)
    player = follower.player(DummyVecEnv([lambda: env]), greedily=isinstance(env.action_space, gym.spaces.Box))
    return env, lambda obs: player(np.asarray(obs)[None])[0]


def _exact(leader: Any, env: gym.Env[Any, Any], seed: int) -> Act:
    """The exact best response at the environment's x."""
    problem, x = leader.problem, torch.as_tensor(env.get_wrapper_attr("leader_x"))
    if isinstance(problem, LinearQuadraticProblem):
        F, bound = problem.best_response(x).F, problem.action_bound
        return lambda obs: (-(torch.as_tensor(obs).double() @ F.T) / bound).clamp(-1.0, 1.0).numpy()
    with torch.no_grad():
        mdp = problem.follower_mdp(x)
        pi = solve_soft(mdp, problem.tau0).pi.reshape(-1, mdp.n_actions)
    return _by_table(pi, np.random.default_rng(seed))


def _at_nash(env: Any, seed: int) -> Act:
    """Both players of a game at the Nash equilibrium of its x."""
    nash = solve_nash(env.problem.game(torch.as_tensor(env.leader_x)), env.problem.tau0)
    rng = np.random.default_rng(seed)
    players = dict(zip(env.possible_agents, (_by_table(nash.pi1, rng), _by_table(nash.pi2, rng)), strict=True))
    return lambda obs: {player: act(obs[player]) for player, act in players.items()}


def _by_table(pi: torch.Tensor, rng: np.random.Generator) -> Act:
    """The policy of a table ``[S, A]``."""
    table = pi.numpy()
    return lambda s: rng.choice(table.shape[1], p=table[s] / table[s].sum())


def _play(env: Any, act: Act, seed: int) -> Iterator[Frame]:
    """An endless iterator of frames with captions; in a game the reward is the first player's."""
    obs, _ = env.reset(seed=seed)
    paid = np.zeros(2)
    for step in itertools.count():
        yield _captioned(env.render(), step, *paid)
        obs, *came = env.step(act(obs))
        if isinstance(came[0], dict):
            came = [part[env.possible_agents[0]] for part in came]
        reward, terminated, truncated, info = came
        paid += float(reward), float(info.get("leader_reward", 0.0))
        if terminated or truncated:
            obs, _ = env.reset()


def _captioned(frame: Any, step: int, follower: float, leader: float) -> Frame:
    """Add a caption with the returns so far below a frame."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(np.asarray(frame, dtype=np.uint8))
    whole = Image.new("RGB", (picture.width + picture.width % 2, picture.height + 24 + picture.height % 2), "white")
    whole.paste(picture, (0, 0))
    text = f"step {step}    follower {follower:.2f}    leader {leader:.2f}"
    ImageDraw.Draw(whole).text((8, picture.height + 6), text, fill="black")
    return np.asarray(whole)
