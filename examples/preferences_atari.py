"""Learn a reward for Atari games from comparisons, with and without the penalty; --resume continues a killed run.

python examples/preferences_atari.py [--quick] [--resume] [--games GAME ...] [--methods pbrl drlhf true]

Needs the extra `atari`. Settings are read from preferences_atari.yaml. Each run saves every label at once in ``labels.prefs`` of
its folder, and the leader every few iterations in ``leader.zip``; --resume reads both.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import (
    DRLHF,
    Geometric,
    PreferenceConfig,
    PreferencePBRL,
    TrueReturnLabeller,
    TrueReward,
    ValuePenalty,
)
from bilevel_gym.agents.preferences.atari import AtariCNN, atari_copies
from bilevel_gym.agents.preferences.files import LoggedLabeller
from bilevel_gym.agents.preferences.training import FitConfig
from bilevel_gym.agents.preferences.worlds import PreferenceWorlds

METHODS: dict[str, Any] = {"pbrl": PreferencePBRL, "drlhf": DRLHF, "true": TrueReward}


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Learn a reward for Atari games from comparisons.")
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--quick", action="store_true", help="the settings under `quick`: a few minutes")
    parser.add_argument("--resume", action="store_true", help="continue the runs in the folder")
    parser.add_argument("--games", nargs="+", help="games; default: those in the settings")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="methods; default: those in the settings")
    parser.add_argument("--out", type=Path, default=Path("runs/atari"), help="folder in which each run makes its own")
    return parser.parse_args()


def read_settings(path: Path, quick: bool) -> dict[str, Any]:
    """Read the settings; quick ones replace others, and those under ``preferences`` one by one."""
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = settings.pop("quick")
    if not quick:
        return settings
    return {**settings, **changed, "preferences": settings["preferences"] | changed["preferences"]}


def build_follower(venv: VecEnv, **settings: Any) -> A2C:
    """A2C with the paper's network."""
    kwargs: dict[str, Any] = {"features_extractor_class": AtariCNN, "net_arch": []}
    return A2C("CnnPolicy", venv, policy_kwargs=kwargs, seed=0, **settings)


def learn(game: str, method: str, settings: dict[str, Any], folder: Path, resume: bool) -> None:
    """Run one method on one game."""
    preferences = dict(settings["preferences"])
    preferences["follower_steps"] *= 1 if method == "pbrl" else 2
    config = PreferenceConfig(**preferences, fit=FitConfig(**settings["fit"]))
    rate = float(settings["games"].get(game, 3e-4))
    follower = partial(build_follower, learning_rate=rate, **settings["follower"])
    world, labels, saved = atari_copies(game), folder / "labels.prefs", folder / "leader.zip"
    if labels.exists() and not resume:
        raise SystemExit(f"{folder} holds an earlier run: go on with it by --resume, or name another folder by --out")
    signature = PreferenceWorlds(world).signature(config.length)
    labeller = LoggedLabeller(TrueReturnLabeller(), labels, signature)
    if saved.exists() and resume:
        learner = METHODS[method].load(saved, follower, world, labeller)
    elif method == "pbrl":
        penalty = ValuePenalty(Geometric(*settings["lam"]))
        learner = PreferencePBRL(world, follower, penalty=penalty, config=config, labeller=labeller)
    else:
        learner = METHODS[method](world, follower, config, labeller)
    print(f"{game}, {method}: begins at step {learner.num_timesteps:,} with {len(learner.buffer)} labels", flush=True)

    def note(found: Any) -> None:
        games = [info["r"] for info in list(found.observed.follower.model.ep_info_buffer)[-20:]]
        score = f"score {sum(games) / len(games):.0f}" if games else "no game has ended"
        print(f"  step {found.num_timesteps:,}, {found.buffer.seen} labels, {score}", flush=True)
        if found.iteration % settings["save_every"] == 0:
            found.save(saved)

    if learner.num_timesteps < settings["steps"]:
        learner.learn(settings["steps"] - learner.num_timesteps, note, reset_num_timesteps=False)
        learner.save(saved)
    record = learner.evaluate()
    print(f"  {record.labels} labels; score of whole games {record.true_return:.0f} +- {record.true_return_stderr:.0f}")
    learner.close()


def main() -> None:
    """Run all methods on all games."""
    options = parse()
    torch.set_num_threads(1)  # on a CPU the nets are too small for more; a GPU does not mind
    settings = read_settings(options.settings, options.quick)
    for game in options.games or settings["games"]:
        for method in options.methods or settings["methods"]:
            learn(game, method, settings, options.out / f"{game}-{method}", options.resume)


if __name__ == "__main__":
    main()
