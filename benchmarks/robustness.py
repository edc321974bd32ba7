"""Robustness: what the leader gets at one x from followers of other algorithms than it was learned with.

x is learned on random Stackelberg games of 20 states, by PBRL with PPO followers from rollouts alone and by the exact
hypergradient. At each x, followers of three algorithms are then trained from nothing, with the library's settings and with
SB3's own, and the leader's return under what they have learned is exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import PBRL, Geometric, Hypergradient, HypergradientConfig, robustness

from .figures import new_figure, save_figure
from .runs import Data, run_all

SEEDS = (5, 6, 7)
FOLLOWER_SEEDS = (0,)
ENV, SIZE, GAMMA = "bilevel_gym/StackelbergGame-v0", 20, 0.9
LEADERS = {"pbrl": "PBRL, PPO followers, 1 M steps", "hypergradient": "hypergradient, exact"}
ALGORITHMS = ("PPO", "A2C", "DQN")
STEPS, BUDGET = 100_000, 1_000_000


def untuned(algorithm: str) -> Callable[[VecEnv], BaseAlgorithm]:
    """SB3's own settings, but for the discount."""
    return lambda venv: getattr(stable_baselines3, algorithm)("MlpPolicy", venv, gamma=GAMMA, device="cpu")


def followers() -> dict[str, Any]:
    """Every follower by name."""
    tuned = {name: getattr(stable_baselines3, name) for name in ALGORITHMS}
    return tuned | {f"{name}, SB3's settings": untuned(name) for name in ALGORITHMS}


def run_one(name: str, seed: int, quick: bool) -> list[Data]:
    """One leader's x on one game, and every follower there."""
    kwargs = {"n_states": SIZE, "seed": seed}
    if name == "pbrl":
        x = PBRL(ENV, stable_baselines3.PPO, env_kwargs=kwargs).learn(30_000 if quick else BUDGET).x
    else:
        config = HypergradientConfig(Geometric(0.3, 0.003))
        x = Hypergradient(ENV, config, env_kwargs=kwargs).learn(30 if quick else 300).x
    rows = []
    for follower, spec in followers().items():
        start = time.process_time()
        steps, seeds = (2_000, FOLLOWER_SEEDS[:1]) if quick else (STEPS, FOLLOWER_SEEDS)
        for found in robustness(ENV, x, {follower: spec}, steps, seeds, kwargs, n_envs=8):
            rows.append(
                {
                    "leader": name,
                    "game": seed,
                    "follower": follower,
                    "seed": found.seed,
                    "leader_return": found.leader_return,
                    "F_0": found.leader_return_at_best_response,
                    "follower_return": found.follower_return,
                    "slack": found.slack,
                    "steps": found.steps,
                    "seconds": round((time.process_time() - start) / len(seeds), 1),
                }
            )
    return rows


def run(quick: bool, jobs: int) -> Data:
    """Every x and every follower."""
    tasks = [(name, seed, quick) for name in LEADERS for seed in (SEEDS[:1] if quick else SEEDS)]
    return {"runs": [row for rows in run_all(run_one, tasks, jobs, "x") for row in rows]}


# --- reading ----------------------------------------------------------------------------------------------------------


def column(data: Data, leader: str, follower: str, key: str) -> Any:
    """``[games, seeds]`` of one number."""
    runs = [r for r in data["runs"] if r["leader"] == leader and r["follower"] == follower]
    games = sorted({r["game"] for r in runs})
    return np.array([[r[key] for r in runs if r["game"] == game] for game in games])


def picture(data: Data, path: Path) -> None:
    """The leader's share of F_0 against the follower's slack, a dot a training."""
    figure, axes = new_figure(1, len(LEADERS), 11.0, 4.4)
    colours = dict(zip(ALGORITHMS, ("#1f77b4", "#ff7f0e", "#2ca02c"), strict=True))
    for panel, (leader, label) in zip(axes[0], LEADERS.items(), strict=True):
        for follower in followers():
            value, F_0, slack = (column(data, leader, follower, key) for key in ("leader_return", "F_0", "slack"))
            algorithm = follower.split(",")[0]
            filled = {"facecolors": colours[algorithm] if follower == algorithm else "none"}
            panel.scatter(
                slack.ravel(), (value / F_0).ravel(), s=28, edgecolors=colours[algorithm], label=follower, **filled
            )
        panel.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        panel.set_title(f"x by {label}", fontsize=10)
        panel.set_xlabel("the follower's slack")
    axes[0, 0].set_ylabel("leader's return, share of that at the best response")
    axes[0, 1].legend(fontsize=8, frameon=False)
    save_figure(figure, path)
