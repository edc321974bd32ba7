"""Sampled records compared with the truth, on ten problems whose model is hidden from the leader.

Five tables, the linear-quadratic game, a pendulum and a car whose best response is known by design, CliffWalking with a fee, and
a fishery. Each is evaluated at five points of X: the start, the best point known, and three random points. The leader has not
learned anything before, so that a record depends only on the followers that it trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, DQN, PPO, SAC

from bilevel_gym.agents import PBRL, Hypergradient, PBRLConfig
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.wrappers import EventPayments, RewardModule, ShapedReward, hide_model

from . import worlds
from .runs import Data, Runs, grid, run_all
from .worlds import plant_truth, table_truth

Floats = NDArray[np.float64]
POINTS = 5
"""Points of X at which each problem is evaluated."""
FOLLOWERS = (1, 3, 6)
"""Numbers of fresh followers per record."""
SHRINKS = ("table_20", "steering")
"""Problems on which these numbers are compared."""


class Wish(torch.nn.Module):
    """What pays a follower of the pendulum for its action alone, by ``z = x_0 cos(angle) + x_1``; at best 0 in every state.

    A torque a in [-1, 1] is paid ``-(a - z)^2``; one to the left or to the right, a = -1 or 1, ``a z - |z|``.

    Args:
        notches: whether there are but two torques.
    """

    def __init__(self, notches: bool) -> None:
        super().__init__()
        self.notches, self.x = notches, torch.nn.Parameter(torch.tensor([0.2, 0.4]))

    def forward(self, obs: Any, action: Any, after: Any) -> Any:
        z = self.x[0] * obs[:, 0] + self.x[1]
        if self.notches:
            return (2.0 * action - 1.0) * z - z.abs()
        return -((action.reshape(len(action), -1)[:, 0] / 2.0 - z) ** 2)


def wanted(a: Any, cosine: Any) -> Any:
    """The leader's reward for a torque in [-1, 1]."""
    return 1.0 - (a - 0.5 * cosine + 0.2) ** 2


def designed(notches: bool) -> gym.Env[Any, Any]:
    """The pendulum, of which the leader wants another torque than the follower is paid for: best is what x asks for."""
    env: gym.Env[Any, Any] = gym.make("Pendulum-v1")
    if notches:
        env = gym.wrappers.TransformAction(env, lambda a: np.array([4.0 * a - 2.0]), gym.spaces.Discrete(2))
    unpaid = gym.wrappers.TransformReward(env, lambda r: 0.0)

    def earned(step: Any) -> float:
        a = 2.0 * float(step.action) - 1.0 if notches else float(step.action[0]) / 2.0
        return float(wanted(a, step.obs[0]))

    return ShapedReward(unpaid, RewardModule(Wish(notches)), gamma=0.95, low=-1.0, high=1.0, leader_reward=earned)


def designed_truth(notches: bool, x: Floats, n: int = 512) -> float:
    """The leader's return at the best response, from episodes."""
    worlds = gym.vector.SyncVectorEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=10_000)] * n)
    obs, _ = worlds.reset(seed=12345)
    value, weight = 0.0, 1.0
    while weight > 1e-4:
        z = x[0] * obs[:, 0] + x[1]
        a = np.where(z > 0.0, 1.0, -1.0) if notches else z
        value += weight * float(np.mean(wanted(a, obs[:, 0])))
        obs, *_ = worlds.step(2.0 * a[:, None].astype(np.float32))
        weight *= 0.95
    worlds.close()
    return value


BESIDE = range(24, 36)
"""The states beside the cliff."""


def cliff() -> gym.Env[Any, Any]:
    """CliffWalking with a fee on the row beside the cliff, where the leader wants nobody to walk."""
    fee = EventPayments([lambda obs, action, after: int(after) in BESIDE])
    return ShapedReward(
        gym.make("CliffWalking-v1", max_episode_steps=200),
        fee,
        gamma=0.9,
        leader_reward=lambda step: -float(int(step.next_obs) in BESIDE),
    )


def cliff_problem() -> ArrayProblem:
    """CliffWalking with the fee as a tabular problem."""
    table: Any = gym.make("CliffWalking-v1").unwrapped
    n_states, n_actions = 48, 4
    P = torch.zeros(n_states, n_actions, n_states, dtype=torch.float64)
    r, beside = (torch.zeros(n_states, n_actions, dtype=torch.float64) for _ in range(2))
    for s in range(n_states):
        for a in range(n_actions):
            for chance, after, paid, _ in table.P[s][a]:
                P[s, a, after] += chance
                r[s, a] += chance * paid
                beside[s, a] += chance * (after in BESIDE)
    terminal = torch.arange(n_states) == n_states - 1
    r[terminal] = beside[terminal] = 0.0
    rho = (torch.arange(n_states) == 36).double()
    base = TabularMDP(P, r, rho, gamma=0.9, terminal=terminal)
    return ArrayProblem(base, LeaderSet.box(1, -1.0, 1.0), lambda x: r + x * beside, lambda x: -beside + 0.0 * x)


# --- the problems -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One of the ten problems.

    Attributes:
        label: name on the page.
        make: makes the environment with its model hidden.
        truth: the true ``F_0(x)``.
        follower: the follower's algorithm.
        best: the best point known, ``[dim]``, given the start.
        steps: steps for which each new follower trains.
    """

    label: str
    make: Callable[[], gym.Env[Any, Any]]
    truth: Callable[[Floats], float]
    follower: Any
    best: Callable[[Floats], Floats]
    steps: int = 50_000


def hidden(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """An environment of the library with its model hidden."""
    return hide_model(gym.make(env_id, **kwargs))


def ascended(problem: Any, x: Floats) -> Floats:
    """The best x of the exact hypergradient."""
    return np.asarray(Hypergradient(problem).learn(150).x)


def table(env_id: str, follower: Any, label: str, **kwargs: Any) -> Problem:
    """A tabular problem."""
    problem: Any = gym.make(env_id, **kwargs).get_wrapper_attr("problem")
    make = partial(hidden, env_id, **kwargs)
    return Problem(label, make, partial(table_truth, problem), follower, partial(ascended, problem))


def lq() -> Problem:
    """The linear-quadratic game."""
    problem: Any = gym.make("bilevel_gym/LQStackelberg-v0").get_wrapper_attr("problem")
    make = partial(hidden, "bilevel_gym/LQStackelberg-v0")
    return Problem(
        "linear-quadratic", make, partial(plant_truth, problem), SAC, partial(ascended, problem), steps=10_000
    )


def pendulum(notches: bool, follower: Any, label: str) -> Problem:
    """One of the two designed pendulums; x = (0.5, -0.2) makes the follower do what the leader wants."""
    truth = partial(designed_truth, notches)
    return Problem(label, partial(designed, notches), truth, follower, lambda x: np.array([0.5, -0.2]), steps=30_000)


def fishery() -> Problem:
    """The fishery."""
    problem = worlds.fishery()
    make = partial(worlds.hidden, TabularEnv, problem)
    return Problem("fishery", make, partial(table_truth, problem), PPO, partial(ascended, problem))


@cache
def problems() -> dict[str, Problem]:
    """All ten problems."""
    game = "bilevel_gym/StackelbergGame-v0"
    return {
        "lq": lq(),
        "steering": pendulum(False, PPO, "pendulum, torque"),
        "notches": pendulum(True, DQN, "pendulum, left or right"),
        "cliff": Problem(
            "CliffWalking with a fee", cliff, partial(table_truth, cliff_problem()), A2C, lambda x: np.array([-0.6])
        ),
        "fishery": fishery(),
        "two_state": table("bilevel_gym/TwoState-v0", PPO, "two states"),
        "table_12": table(game, PPO, "Stackelberg game, 12 states", n_states=12, seed=1),
        "table_20": table(game, DQN, "Stackelberg game, 20 states", n_states=20, seed=2),
        "table_30": table(game, PPO, "Stackelberg game, 30 states", n_states=30, seed=3),
        "table_15": table(game, A2C, "Stackelberg game, 15 states", n_states=15, seed=4),
    }


def point(name: str, number: int) -> Floats:
    """The start, the best point known, or one drawn at random between them."""
    problem = problems()[name]
    env = problem.make()
    space, start = env.get_wrapper_attr("leader_space"), np.asarray(env.get_wrapper_attr("leader_x"), dtype=np.float64)
    env.close()
    if number == 0:
        return start
    best = problem.best(start)
    if number == 1:
        return best
    rng = np.random.default_rng([number, len(name)])
    x = (
        start
        + (best - start) * rng.uniform(0.0, 1.2)
        + 0.2 * np.abs(best - start).max() * rng.standard_normal(len(start))
    )
    x = np.clip(x, space.low, space.high)
    if name in ("steering", "notches"):  # |z| <= 1, so that no torque that is asked for is out of reach
        x = x / max(1.0, np.abs(x).sum())
    if name == "fishery":
        x = x * min(1.0, 2.0 / x.sum())
    return np.asarray(x)


def run_one(name: str, number: int, followers: int, quick: bool) -> Data:
    """Make one record."""
    problem, x = problems()[name], point(name, number)
    steps = 2_000 if quick else problem.steps
    config = PBRLConfig(n_envs=16, evaluation_followers=followers, evaluation_steps=steps)
    leader = PBRL(problem.make(), problem.follower, config=config, x0=x, seed=100 * number + followers)
    record = leader.method.final(leader.state, leader.state.x.detach(), None, 0)
    leader.close()
    truth = problem.truth(x)
    start, best = (problem.truth(point(name, k)) for k in (0, 1))
    return {
        "truth": truth,
        "found": record.leader_return,
        "stderr": record.leader_return_stderr,
        "gain": best - start,
        "regret": record.follower_regret,
        "answer": record.best_answer,
        "steps": record.evaluation_steps,
    }


def run(quick: bool, jobs: int) -> Data:
    """Make fifty records with three followers, and some with one and with six."""
    three = grid(name=problems(), number=range(2 if quick else POINTS), followers=[FOLLOWERS[1]])
    others = grid(name=SHRINKS[:1] if quick else SHRINKS, number=range(1, 3), followers=[FOLLOWERS[0], FOLLOWERS[2]])
    return {"runs": run_all(run_one, three + others, jobs, "records", quick=quick)}


# --- reading ----------------------------------------------------------------------------------------------------------


def within(rows: Runs) -> list[bool]:
    """Whether the truth lies within two standard errors of each record."""
    return [abs(r["found"] - r["truth"]) <= 2.0 * r["stderr"] for r in rows]


def shares(rows: Runs, of: str) -> list[float]:
    """The standard error or the error of each record, as a share of the possible gain on the problem."""
    values = [r["stderr"] if of == "stderr" else abs(r["found"] - r["truth"]) for r in rows]
    return [value / abs(r["gain"]) for value, r in zip(values, rows, strict=True)]
