"""Large tables: random Stackelberg games of up to 1,000 states from rollouts alone.

Leaders get the environment with its model hidden and fit no table: x's gradient comes from episodes, and the last x is judged
exactly. In the plain kind a state can be followed by any other, with rows of P that are nearly uniform; with ``branching=5`` by
five random ones. A share is ``(F(x) - F(start)) / (F(x*) - F(start))``, where F is the leader's return at the follower's best
response and x* is the answer of exact ``TabularPBRL``.

Beside them, exact ``TabularPBRL`` on two models that a user could have: a table counted from as many transitions with random
actions at the initial x, and the rewards alone, as if every state were as likely to follow.
"""

from __future__ import annotations

import time
import warnings
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN, PPO

from bilevel_gym.agents import PBRL, Linear, TabularPBRL, leader_return_at_best_response
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.mdp import random_stackelberg
from bilevel_gym.envs.mdp.stackelberg import StackelbergProblem
from bilevel_gym.envs.tabular import TabularVectorEnv
from bilevel_gym.wrappers import VectorEnvAdapter, hide_model

from .runs import Data, Runs, grid, run_all
from .statistics import mean_interval

SIZES = (20, 100, 400, 1000)
KINDS = {"plain": None, "branching": 5}
"""The games' ``branching`` by kind."""
LABELS = {"plain": "plain", "branching": "five successors a row"}
SEEDS = (5,)
"""Seeds of the games; one, since a game takes twenty CPU minutes. Defaults were tuned on games 0 to 2."""
STEPS = 500_000
"""Environment steps that each leader is asked for, and transitions of a counted table; DQN takes half of it."""
METHODS = {"PPO": PPO, "PPO, falling steps": PPO, "DQN": DQN}
"""Followers by method; the second's steps of x fall from four times the default to two fifths of it."""
ITERATIONS = {20: 300, 100: 300, 400: 100, 1000: 60}
"""Iterations of exact leaders by size; at 400 states 100 reach 0.994 of what 300 gain."""
TARGETS = {
    ("PPO", "plain", 20): 0.92,
    ("PPO", "plain", 100): 0.84,
    ("DQN", "plain", 20): 0.84,
    ("DQN", "plain", 100): 0.80,
    **{("PPO", kind, size): target for kind in KINDS for size, target in ((400, 0.75), (1000, 0.6))},
}
"""Target share by method, kind and size."""
TABLES = {"counted": "a table counted from as many transitions", "rewards": "the rewards alone"}
"""What exact leaders solve besides the game itself."""


@cache
def game(kind: str, size: int, seed: int) -> StackelbergProblem:
    """A game."""
    return random_stackelberg(size, seed=seed, branching=KINDS[kind])


def judged(kind: str, size: int, seed: int, x: Any) -> float:
    """The leader's return at the follower's best response."""
    return leader_return_at_best_response(game(kind, size, seed), torch.as_tensor(x, dtype=torch.float64))


def counted(problem: StackelbergProblem, steps: int, seed: int, n_envs: int = 1000) -> StackelbergProblem:
    """The game as a table counted from transitions with random actions of both; an unseen row pays 0 and leads anywhere."""
    S, A_l, A_f = problem.r_leader.shape
    venv = VectorEnvAdapter(TabularVectorEnv(problem, n_envs, 100))
    rng = np.random.default_rng(seed)
    venv.seed(seed)
    obs: Any = venv.reset()
    steps_of = []
    for _ in range(steps // n_envs):
        action = rng.integers(A_f, size=n_envs)
        following: Any
        following, reward, dones, infos = venv.step(action)
        after = following.copy()
        for i in np.flatnonzero(dones):
            after[i] = infos[i]["terminal_observation"]
        row = (obs * A_l + venv.arrays["leader_draw"]) * A_f + action
        steps_of.append((row, after, venv.arrays["leader_reward"], reward))
        obs = following
    row, after, *paid = (np.concatenate(column) for column in zip(*steps_of, strict=True))
    rows = S * A_l * A_f
    n = np.bincount(row, minlength=rows)
    r_l, r_f = (
        torch.from_numpy((np.bincount(row, part, rows) / np.maximum(n, 1)).reshape(S, A_l, A_f)) for part in paid
    )
    moves = np.bincount(row * S + after, minlength=rows * S).reshape(rows, S).astype(np.float64)
    moves[n == 0] = 1.0
    moves /= moves.sum(-1, keepdims=True)
    P = torch.from_numpy(moves.reshape(S, A_l, A_f, S))
    return StackelbergProblem(P, r_l, r_f, problem.rho, problem.gamma, problem.tau)


def rewards_alone(problem: StackelbergProblem) -> StackelbergProblem:
    """The game as if each state were as likely to follow: then only the step's own rewards count, a game of one state each."""
    S, A_l, A_f = problem.r_leader.shape
    r_l, r_f = (reward.reshape(S, 1, A_l, A_f) for reward in (problem.r_leader, problem.r_follower))
    stays, rho = torch.ones(S, 1, A_l, A_f, 1, dtype=torch.float64), torch.ones(S, 1, dtype=torch.float64)
    return StackelbergProblem(stays, r_l, r_f, rho, 0.0, problem.tau)


def run_exact(kind: str, size: int, seed: int, table: str, steps: int, quick: bool) -> Data:
    """Exact PBRL on the game itself, on a counted table or on the rewards alone, judged in the game."""
    start, problem = time.process_time(), game(kind, size, seed)
    known = counted(problem, steps, seed) if table == "counted" else problem
    leader = TabularPBRL(rewards_alone(problem) if table == "rewards" else known, seed=seed)
    leader.learn(30 if quick else ITERATIONS[size])
    at_start, found = (judged(kind, size, seed, x) for x in (problem.start_x(), leader.x))
    return {"start": at_start, "found": found, "cpu_seconds": round(time.process_time() - start, 1)}


def run_sampled(method: str, kind: str, size: int, seed: int, steps: int) -> Data:
    """PBRL from rollouts alone; no record chooses x, so records are as small as can be."""
    env = gym.make("bilevel_gym/StackelbergGame-v0", n_states=size, seed=seed, branching=KINDS[kind])
    start = time.process_time()
    small: dict[str, Any] = {"eval_every": 10**6, "evaluation_followers": 1, "evaluation_steps": 64}
    if method.endswith("falling steps"):
        small["learning_rate"] = Linear(0.2, 0.02)
    leader = PBRL(hide_model(env), METHODS[method], seed=seed, **small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the budget: the page says it
        leader.learn(steps // 2 if method == "DQN" else steps)
    seconds = time.process_time() - start
    leader.close()
    found = judged(kind, size, seed, leader.last_x)
    return {
        "found": found,
        "steps": leader.num_timesteps,
        "cpu_seconds": round(seconds, 1),
        "seconds_an_iteration": round(seconds / leader.iteration, 2),
    }


def run(quick: bool, jobs: int) -> Data:
    """Run exact leaders on three tables, and PBRL with both followers."""
    sizes, steps = (SIZES[:1], 60_000) if quick else (SIZES, STEPS)
    games = grid(size=sizes, kind=KINDS, seed=SEEDS)
    tables = ("itself", *TABLES)
    exact = [g | {"table": table} for g in games for table in tables]
    sampled = [g | {"method": name} for g in games for name in METHODS if name != "DQN" or g["size"] <= 400]
    return {
        "steps": steps,
        "exact": run_all(run_exact, exact, jobs, "exact", steps=steps, quick=quick),
        "runs": run_all(run_sampled, sampled, jobs, "sampled", steps=steps),
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def shares(data: Data, rows: Runs) -> list[float]:
    """The share of exact PBRL's improvement of each run."""
    found = []
    for row in rows:
        exact = Runs(data["exact"])(table="itself", kind=row["kind"], size=row["size"], seed=row["seed"]).one
        found.append((row["found"] - exact["start"]) / (exact["found"] - exact["start"]))
    return found


def not_run(data: Data) -> list[str]:
    """Runs of the grid that are missing."""
    cells = grid(method=METHODS, kind=KINDS, size=SIZES)
    return [
        f"{c['method']} at {c['size']} states ({LABELS[c['kind']]})"
        for c in cells
        if (c["method"] != "DQN" or c["size"] <= 400) and not len(Runs(data["runs"])(**c))
    ]


def share(data: Data, what: str, kind: str, size: int) -> Interval | None:
    """The share of a method, or of a table that is solved; None where it was not run."""
    rows = Runs(data["exact"])(table=what) if what in TABLES else Runs(data["runs"])(method=what)
    rows = rows(kind=kind, size=size)
    known = len(Runs(data["exact"])(table="itself", kind=kind, size=size))
    return mean_interval(shares(data, rows)) if len(rows) and known else None


def shown(data: Data, kind: str, size: int) -> dict[str, str]:
    """The shares of one row of the page by method and table; "" for what was not run."""
    found = {what: share(data, what, kind, size) for what in (*METHODS, *TABLES)}
    return {what: "" if value is None else value.text(2) for what, value in found.items()}
