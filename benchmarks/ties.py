"""Ties: what a leader loses if a nearly indifferent follower chooses against it.

The leaders of ``stackelberg_exact`` on its games (seeds 0 to 9, 20 and 100 states, this library's settings), each judged at its
last x. Many of the follower's policies are within epsilon of its optimum. The worst of them for the leader solves a linear
programme over occupancies d(s,a):

    min  sum d r_l     s.t.   sum_a d(s',a) - gamma sum_{s,a} P(s'|s,a) d(s,a) = rho(s'),   d >= 0,
                              sum d r_f >= V*(rho) - epsilon

The page also shows ties broken by a multiplier, where the follower maximises its reward minus 0.01 times the leader's. This
fixes the price of the leader's loss but not the follower's shortfall, and it shows smaller losses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_matrix
from torch import Tensor

from bilevel_gym.agents import (
    Geometric,
    Hypergradient,
    HypergradientConfig,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.schedules import Quench
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.mdp import policy_return, random_stackelberg, solve_soft
from bilevel_gym.envs.mdp.stackelberg import StackelbergProblem

from .figures import draw_band, panels
from .runs import Data, Runs, grid, run_all
from .statistics import paired_ratio

SEEDS = tuple(range(10))
SIZES = (20, 100)
ITERATIONS = 300
EPSILONS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SHOWN = 1e-2
"""By how much the follower may fall short of its optimum in the tables."""
AGAINST = -0.01
METHODS = {
    "pbrl": ("PBRL", "#1f77b4"),
    "hypergradient": ("hypergradient, annealed", "#2ca02c"),
    "hypergradient_quenched": ("hypergradient, hot, then cold", "#9467bd"),
    "start": ("untrained leader", "#7f7f7f"),
}
"""Label and colour; the keys are those of ``stackelberg_exact``."""


@torch.no_grad()
def worst_over_ties(problem: StackelbergProblem, x: Tensor, epsilon: float) -> float:
    """The leader's least return over all policies within epsilon of the follower's optimum, exact.

    Args:
        problem: a tabular problem without contexts.
        x: a point of X, ``[dim]``.
        epsilon: the follower's largest shortfall, in the unit of its return, at least 0.

    Raises:
        RuntimeError: the linear programme was not solved.
    """
    mdp, reward = problem.follower_mdp(x), problem.leader_reward(x).numpy()
    (n, m), P = mdp.r.shape, mdp.P.numpy()
    inflow = np.repeat(np.eye(n), m, axis=1) - mdp.gamma * P.reshape(n * m, n).T
    optimum = float(policy_return(mdp, solve_soft(mdp, 0.0).pi))
    found = linprog(
        reward.reshape(-1),
        A_ub=-mdp.r.numpy().reshape(1, -1),
        b_ub=[-(optimum - epsilon)],
        A_eq=csr_matrix(inflow),
        b_eq=mdp.rho.numpy(),
        method="highs",
    )
    if not found.success:
        raise RuntimeError(f"the linear programme of ties at epsilon {epsilon:g}: {found.message}")
    return float(found.fun)


def learned(method: str, problem: StackelbergProblem, iterations: int) -> Tensor:
    """The last x of a leader."""
    rate: dict[str, Any] = {"eval_every": iterations}
    if method == "start":
        return problem.start_x()
    if method == "pbrl":
        config = TabularPBRLConfig(tau=Geometric(0.2, 0.003), learning_rate=0.05, **rate)
        leader: Any = TabularPBRL(problem, penalty=ValuePenalty(lam=Geometric(2.0, 20.0)), config=config)
    else:
        tau = Geometric(0.3, 0.003) if method == "hypergradient" else Quench(0.07, 0.003)
        leader = Hypergradient(problem, config=HypergradientConfig(tau=tau, learning_rate=0.1, **rate))
    return torch.from_numpy(leader.learn(iterations).last_x)


def run_one(size: int, method: str, seed: int, iterations: int) -> Data:
    """Run one leader on one game."""
    problem = random_stackelberg(size, seed=seed, reward_unit=1.0)
    x = learned(method, problem, iterations)
    tie = problem.follower_mdp(x).with_reward(problem.follower_mdp(x).r + AGAINST * problem.leader_reward(x))
    against = solve_soft(tie, problem.tau0).pi
    best = policy_return(problem.follower_mdp(x), solve_soft(problem.follower_mdp(x), 0.0).pi)
    return {
        "leader_return": leader_return_at_best_response(problem, x),
        "worst": [worst_over_ties(problem, x, epsilon) for epsilon in EPSILONS],
        "against": float(problem.leader_return(x, against)),
        "against_gives_up": float(best - policy_return(problem.follower_mdp(x), against)),
    }


def run(quick: bool, jobs: int) -> Data:
    """Run every leader on every game."""
    seeds, sizes, iterations = (SEEDS[:2], SIZES[:1], 30) if quick else (SEEDS, SIZES, ITERATIONS)
    cells = grid(size=sizes, method=METHODS, seed=seeds)
    return {"sizes": list(sizes), "runs": run_all(run_one, cells, jobs, "games", iterations=iterations)}


# --- reading ----------------------------------------------------------------------------------------------------------


def loss(runs: Runs, size: int, method: str, epsilon: float = SHOWN) -> Interval:
    """The leader's loss to the worst tie, in per cent of its return at the best response, paired by game."""
    own = runs(size=size, method=method)
    worst = np.array(own["worst"])[:, EPSILONS.index(epsilon)]
    return paired_ratio(100.0 * (np.array(own["leader_return"]) - worst), own["leader_return"])


def loss_against(runs: Runs, size: int, method: str) -> Interval:
    """The leader's loss to a tie that is broken against it by a multiplier, in per cent, paired by game."""
    own = runs(size=size, method=method)
    return paired_ratio(100.0 * (np.array(own["leader_return"]) - own["against"]), own["leader_return"])


@panels(1, 2, 10.5, 4.0)
def picture(data: Data, *axes: Any) -> None:
    """Draw the worst-case loss against the follower's shortfall, with one panel per size."""
    for panel, size in zip(axes, data["sizes"], strict=False):
        for method, (label, colour) in METHODS.items():
            own = Runs(data["runs"])(size=size, method=method)
            F_0 = np.array(own["leader_return"])[:, None]
            draw_band(panel, EPSILONS, 100.0 * (F_0 - np.array(own["worst"])) / F_0, colour, label)
        panel.set(xscale="log", xlabel="what the follower may give up, epsilon", title=f"{size} states")
    axes[0].set_ylabel("what the leader loses in the worst case, %")
    axes[0].legend(fontsize=8, frameon=False)
