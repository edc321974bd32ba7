"""Parallel runs: sixteen runs in two processes and on a local Ray cluster, and the two followers of one leader.

Sixteen runs of PBRL with A2C followers on random Stackelberg games (four games, four learning rates), 600,000 steps each, by
``bilevel_gym.cli.sweep`` with every backend. Wall time includes the start of the processes and their imports; the numbers must
be the same for all backends.

Then one leader with and without a second process for its penalised follower (``PBRLConfig.side_by_side``): wall time of
``learn``, with the start of the process. The problems are chosen so that most of the work is the followers' training; the
leader's own episodes use one process in both cases.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from bilevel_gym.agents import PBRL, PBRLConfig, Rollouts
from bilevel_gym.cli.settings import Settings
from bilevel_gym.cli.sweep import Backend, Outcome, Pool, changed, over_seeds

from .runs import Data

JOBS = 2
RATES, GAMES, STEPS = (0.02, 0.05, 0.1, 0.2), 4, 600_000
TARGET = 1.6
"""Target speed relative to one run after another, on two cores."""
NAMES: dict[Backend, str] = {
    "serial": "one after another",
    "processes": f"{JOBS} processes",
    "ray": f"Ray, local, {JOBS} workers",
}


def runs(quick: bool) -> list[Settings]:
    """The sixteen runs, or four short ones."""
    steps, rates, games = (3_000, RATES[:2], 2) if quick else (STEPS, RATES, GAMES)
    base = Settings(
        "bilevel_gym/StackelbergGame-v0", "PBRL", "A2C", steps, env_kwargs={"n_states": 20, "reward_unit": 1.0}
    )
    tried = [changed(base, {("leader_kwargs", "learning_rate"): rate}) for rate in rates]
    return [run for settings in tried for run in over_seeds(settings, range(games), env_seeds=True)]


def numbers(outcomes: list[Outcome]) -> list[Any]:
    """The numbers that must not depend on the backend."""
    return [o.result and {k: v for k, v in o.result.items() if k not in ("seconds", "run")} for o in outcomes]


def timed(backend: Backend, todo: list[Settings]) -> tuple[float, list[Outcome]]:
    """Wall seconds and the outcomes of all runs, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        outcomes = Pool(Path(folder), backend, JOBS).run(todo)
        return time.perf_counter() - start, outcomes


LONG = PBRLConfig(follower_steps=16_384, warmup_steps=16_384, estimator=Rollouts(n_envs=16))
SHORT = PBRLConfig(
    n_envs=16, follower_steps=2048, warmup_steps=2048, estimator=Rollouts(n_envs=16), evaluation_steps=512
)
LEADERS: dict[str, tuple[str, type[BaseAlgorithm], dict[str, Any], PBRLConfig, int]] = {
    "StackelbergGame-v0, PPO": (
        "bilevel_gym/StackelbergGame-v0",
        PPO,
        {"n_states": 20, "reward_unit": 1.0},
        LONG,
        2_400_000,
    ),
    "LQStackelberg-v0, SAC": ("bilevel_gym/LQStackelberg-v0", SAC, {}, SHORT, 40_000),
}
"""Environment, follower, arguments of the environment, settings, and steps."""


def leader_alone_and_beside(name: str, quick: bool) -> Data:
    """Wall seconds of one leader's ``learn`` with one process and with two; and whether x is the same."""
    world, follower, kwargs, config, steps = LEADERS[name]
    found: Data = {}
    xs = []
    for beside in (False, True):
        leader = PBRL(world, follower, config=replace(config, side_by_side=beside), env_kwargs=kwargs)
        start = time.perf_counter()
        leader.learn(steps // 8 if quick else steps)
        found["beside" if beside else "alone"] = round(time.perf_counter() - start, 2)
        xs.append(leader.last_x)
        found["steps"] = leader.num_timesteps
        leader.close()
    return found | {"same": bool(np.array_equal(xs[0], xs[1])), "load": round(os.getloadavg()[0], 2)}


def run(quick: bool, jobs: int) -> Data:
    """Run every installed backend; ``jobs`` is ignored."""
    assert set(NAMES) <= set(get_args(Backend))
    todo, found = runs(quick), {}
    reference: list[Any] | None = None
    for backend in NAMES:
        if backend == "ray" and importlib.util.find_spec("ray") is None:
            continue
        load = os.getloadavg()[0]
        seconds, outcomes = timed(backend, todo)
        reference = numbers(outcomes) if reference is None else reference
        found[backend] = {
            "seconds": round(seconds, 1),
            "same": numbers(outcomes) == reference,
            "finished": sum(o.result is not None for o in outcomes),
            "load": round(load, 2),
        }
    beside = {name: leader_alone_and_beside(name, quick) for name in LEADERS}
    return {"runs": len(todo), "steps": todo[0].budget, "backends": found, "leaders": beside}
