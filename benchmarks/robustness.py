"""Robustness: the leader's return at one x when followers use other algorithms than in training.

x is learned on random Stackelberg games of 20 states, by PBRL with PPO followers from rollouts alone and by the exact
hypergradient. At each x, new followers of three algorithms are then trained, with the library's settings and with SB3's own. The
leader's return under the trained followers is exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import PBRL, Geometric, Hypergradient, HypergradientConfig, robustness
from bilevel_gym.agents.schedules import Quench

from .figures import panels
from .runs import Data, Runs, grid, run_all

SEEDS = (5, 6, 7)
ENV, SIZE, GAMMA = "bilevel_gym/StackelbergGame-v0", 20, 0.9
LEADERS = {"pbrl": "PBRL, PPO followers, 1 M steps", "hypergradient": "hypergradient, exact"}
ALGORITHMS = ("PPO", "A2C", "DQN")
STEPS, BUDGET = 100_000, 1_000_000


def untuned(algorithm: str) -> Callable[[VecEnv], BaseAlgorithm]:
    """SB3's own settings, except for the discount."""
    return lambda venv: getattr(stable_baselines3, algorithm)("MlpPolicy", venv, gamma=GAMMA, device="cpu")


def followers() -> dict[str, Any]:
    """All followers by name."""
    tuned = {name: getattr(stable_baselines3, name) for name in ALGORITHMS}
    return tuned | {f"{name}, SB3's settings": untuned(name) for name in ALGORITHMS}


def run_one(leader: str, game: int, quick: bool) -> Data:
    """Train all followers at one leader's x on one game."""
    kwargs = {"n_states": SIZE, "seed": game, "reward_unit": 1.0}
    if leader == "pbrl":
        x = PBRL(ENV, stable_baselines3.PPO, env_kwargs=kwargs).learn(30_000 if quick else BUDGET).x
    else:
        config = HypergradientConfig(tau=Quench(0.07, 0.003), learning_rate=Geometric(0.3, 0.003))
        x = Hypergradient(ENV, config=config, env_kwargs=kwargs).learn(30 if quick else 300).x
    rows = []
    for follower, spec in followers().items():
        start = time.process_time()
        (found,) = robustness(ENV, x, {follower: spec}, 2_000 if quick else STEPS, (0,), kwargs, n_envs=8)
        row = asdict(found) | {"leader": leader, "game": game, "F_0": found.leader_return}
        rows.append(row | {"seconds": round(time.process_time() - start, 1)})
    return {"rows": rows}


def run(quick: bool, jobs: int) -> Data:
    """Run every leader and every follower."""
    cells = grid(leader=LEADERS, game=SEEDS[:1] if quick else SEEDS)
    return {"runs": [row for found in run_all(run_one, cells, jobs, "x", quick=quick) for row in found["rows"]]}


# --- reading ----------------------------------------------------------------------------------------------------------


def column(data: Data, leader: str, follower: str, key: str) -> Any:
    """One number of all runs, ``[games, seeds]``."""
    runs = Runs(data["runs"])(leader=leader, follower=follower)
    return np.array([runs(game=game)[key] for game in sorted(set(runs["game"]))])


@panels(1, len(LEADERS), 11.0, 4.4)
def picture(data: Data, *axes: Any) -> None:
    """Draw the leader's share of F_0 against the follower's regret, with one dot per training."""
    colours = dict(zip(ALGORITHMS, ("#1f77b4", "#ff7f0e", "#2ca02c"), strict=True))
    for panel, (leader, label) in zip(axes, LEADERS.items(), strict=True):
        for follower in followers():
            names = ("leader_return_at_follower", "F_0", "follower_regret")
            value, F_0, regret = (column(data, leader, follower, name) for name in names)
            colour, filled = colours[follower.split(",")[0]], follower in ALGORITHMS
            style = {"s": 28, "edgecolors": colour, "facecolors": colour if filled else "none", "label": follower}
            panel.scatter(regret.ravel(), (value / F_0).ravel(), **style)
        panel.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        panel.set_title(f"x by {label}", fontsize=10)
        panel.set_xlabel("the follower's regret")
    axes[0].set_ylabel("leader's return, share of that at the best response")
    axes[1].legend(fontsize=8, frameon=False)
