"""Worlds whose truth is known to the judge and hidden from the leader.

**The fishery.** Stock s in 0..39, effort e in 0..5, catch h = .06 e s. What is left and what grows,
m = clip(s + .35 s (1 - s/39) - h, 0, 39), is shared linearly between its whole neighbours, then moved by -1, 0, +1 with .25, .5,
.25. Episodes begin at 20..39. The leader taxes effort, by zone of the stock or by each stock level:

    follower   h - .15 e - x_zone e          leader   a s + c h - d x_zone e

**Linear-quadratic games side by side.** k steering games (``LQStackelberg-v0``) as one game with block-diagonal matrices, where
x is all of the feedback, from every state to every input of the leader's: 2 k^2 numbers.
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
from torch import Tensor

from bilevel_gym.agents import leader_return_at_best_response
from bilevel_gym.envs.continuous import ContinuousEnv
from bilevel_gym.envs.linear_quadratic import LinearQuadraticEnv
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    LeaderSet,
    LinearDynamics,
    LinearQuadraticProblem,
    QuadraticCost,
    TabularMDP,
    solve_soft,
    steering_game,
)
from bilevel_gym.envs.subsidised_pendulum import SubsidisedPendulumProblem
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.wrappers import hide_model

Floats = NDArray[np.float64]
STEPS = 100
"""Steps of an episode."""
F64 = torch.float64

FISHERIES = {"fishery_1": (0.1, 0.2, 0.3), "fishery_2": (0.12, 0.3, 0.3), "fishery_3": (0.1, 0.0, 0.4)}
"""(a, c, d) of three forms; in the third a gradient at the start is 0."""
LEVELS = 40


def fishery(
    a: float = 0.1, c: float = 0.2, d: float = 0.3, unit: float = 1.0, tau: float = 0.0, by_level: bool = False
) -> ArrayProblem:
    """The fishery as a table.

    Args:
        a: what a unit of stock is worth to the leader, a step.
        c: what a unit of catch is worth to the leader.
        d: what a unit of tax costs the leader.
        unit: both players' rewards are multiplied by it.
        tau: the follower's temperature.
        by_level: whether each stock level has its own tax, 40 with a sum of at most 20, in place of each of three zones, with
            a sum of at most 2. Taxes lie in [0, 1].
    """
    s, e = torch.arange(LEVELS, dtype=F64).unsqueeze(-1), torch.arange(6, dtype=F64)
    h = 0.06 * e * s
    m = (s + 0.35 * s * (1.0 - s / 39.0) - h).clamp(0.0, 39.0)
    k = m.floor().clamp_max(38.0)
    P = torch.zeros(LEVELS, 6, LEVELS, dtype=F64)
    for place, share in ((k, 1.0 - (m - k)), (k + 1.0, m - k)):
        for move, probability in ((-1.0, 0.25), (0.0, 0.5), (1.0, 0.25)):
            to = (place + move).clamp(0.0, 39.0).long().unsqueeze(-1)
            P.scatter_add_(-1, to, (probability * share).unsqueeze(-1))
    zone = torch.arange(LEVELS) if by_level else (torch.arange(LEVELS) // 14).clamp_max(2)
    base = TabularMDP(P, h, (s[:, 0] >= 20).to(F64) / 20.0, 0.95)
    n, budget = (LEVELS, 20.0) if by_level else (3, 2.0)
    X = LeaderSet(torch.zeros(n), torch.ones(n), budget)

    def tax(x: Tensor) -> Tensor:
        return x[zone].unsqueeze(-1) * e

    return ArrayProblem(
        base, X, lambda x: unit * (h - 0.15 * e - tax(x)), lambda x: unit * (a * s + c * h - d * tax(x)), tau=tau
    )


def side_by_side(k: int) -> LinearQuadraticProblem:
    """k steering games as one, in which x is the feedback from every state to every input.

    Feedback between games lies in [-0.15, 0.15], inside a game as in the steering game; without any between them the return is k
    times that of one game.
    """
    one = steering_game()
    d, n = one.dynamics, len(one.dynamics.A)

    def blocks(matrix: Tensor) -> Tensor:
        return torch.kron(torch.eye(k, dtype=F64), matrix)

    dynamics = LinearDynamics(*(blocks(part) for part in (d.A, d.B_leader, d.B_follower, d.noise, d.start)))
    leader, follower = (
        QuadraticCost(blocks(cost.Q), blocks(cost.R_leader), blocks(cost.R_follower))
        for cost in (one.leader_cost, one.follower_cost)
    )
    low, high = torch.full((k, k * n), -0.15, dtype=F64), torch.full((k, k * n), 0.15, dtype=F64)
    for i in range(k):
        low[i, i * n : (i + 1) * n], high[i, i * n : (i + 1) * n] = one.leader_set.low, one.leader_set.high
    X = LeaderSet(low.flatten(), high.flatten())
    return LinearQuadraticProblem(dynamics, leader, follower, one.gamma, one.sigma, X)


# --- worlds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """An environment with its model hidden, and what its judge knows.

    Attributes:
        make: makes the environment.
        truth: ``F(x)``, the leader's return at the follower's best response, by the reference.
        start: x at the start, ``[dim]``.
        best: the best ``F`` known.
        budget: environment steps that a leader may spend.
        gamma: the discount.
        box_actions: whether actions are continuous.
    """

    make: Callable[[], gym.Env[Any, Any]]
    truth: Callable[[Floats], float]
    start: Floats
    best: float
    budget: int = 500_000
    gamma: float = 0.95
    box_actions: bool = False


def hidden(env_class: Callable[[Any], gym.Env[Any, Any]], problem: Any) -> gym.Env[Any, Any]:
    """An environment of a problem with the problem hidden."""
    return hide_model(env_class(problem), STEPS)


def table_truth(problem: Any, x: Floats) -> float:
    """The leader's return by dynamic programming, with exact ties broken evenly."""
    return leader_return_at_best_response(problem, torch.from_numpy(x), tau0=1e-5)


def episode_truth(problem: Any, x: Floats) -> float:
    """The leader's return over an episode of ``STEPS`` steps at the follower's best response of the infinite horizon."""
    point = torch.from_numpy(x)
    mdp = problem.follower_mdp(point).detach()
    pi = solve_soft(mdp, 1e-5).pi
    P, r = torch.einsum("sa,sat->st", pi, mdp.P), (pi * problem.leader_reward(point)).sum(-1)
    V = torch.zeros_like(r)
    for _ in range(STEPS):
        V = r + mdp.gamma * P @ V
    return float(mdp.rho @ V)


def plant_truth(problem: LinearQuadraticProblem, x: Floats) -> float:
    """The leader's return by the Riccati equation."""
    point = torch.from_numpy(x)
    return float(problem.leader_return(point, problem.best_response(point).F))


PENDULUM_BEST, TAXES_BEST = 18.79, 62.48
"""The best return on the pendulum, near x = 0.145, on a grid of 161 x 161; with 40 taxes, what exact PBRL at best reaches."""
FISHERY_BEST = {"fishery_1": 64.40, "fishery_2": 80.99, "fishery_3": 52.06}
"""The best of a grid of taxes in steps of 0.05 and of the exact leaders, over an episode."""


@cache
def games(k: int) -> LinearQuadraticProblem:
    """``side_by_side(k)``, which is checked at many points of X and takes seconds."""
    return side_by_side(k)


def deep_worlds() -> dict[str, World]:
    """All worlds by name: the pendulum from three starts, the fishery in four forms, and one, two and four games side by side."""
    pendulum, found = SubsidisedPendulumProblem(), {}
    for percent in (0, 50, 100):
        found[f"pendulum_{percent}"] = World(
            partial(hidden, ContinuousEnv, pendulum),
            pendulum.at_best_response,
            np.array([percent / 100.0]),
            PENDULUM_BEST,
            gamma=pendulum.gamma,
            box_actions=True,
        )
    forms = {name: (fishery(*prices), FISHERY_BEST[name]) for name, prices in FISHERIES.items()}
    forms["fishery_40"] = fishery(by_level=True), TAXES_BEST
    for name, (problem, best) in forms.items():
        start = problem.start_x().numpy()
        budget = 1_000_000 if name == "fishery_40" else 500_000
        found[name] = World(partial(hidden, TabularEnv, problem), partial(episode_truth, problem), start, best, budget)
    one = steering_game().optimum().leader_return
    for k in (1, 2, 4):
        game = games(k)
        found[f"lq_{k}"] = World(
            partial(hidden, LinearQuadraticEnv, game),
            partial(plant_truth, game),
            np.zeros(game.leader_dim),
            k * one,
            1_000_000 if k == 4 else 500_000,
            game.gamma,
            True,
        )
    return found
