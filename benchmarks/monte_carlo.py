"""The paper's section 6 with its Monte Carlo gradients: episodes of five steps, batches of 16 and 24.

Ten random Stackelberg games (seeds 0 to 9; 100 states, 5 actions each, gamma 0.9, rho uniform) are one stacked problem: every
iteration draws and differentiates the episodes of all ten in one call. Settings of arXiv 2402.06886, section 6.1, as far as they
are remembered, none of them checked against it: episodes of 5 steps, 16 a policy, SGD with step 0.1 on x and y, tau 0.001, the
value penalty with lam 2 and one inner step, the Bellman penalty with lam 7 and ten. The inner solver, mirror descent, knows
the model. Section 6.3 likewise: ten random instances of incentive design, episodes of 5 steps, 24 a policy, lam 4, one inner
step, step 0.1, tau 0.1.

Returns are exact: ``F_0(x) = J_L(x, pi*_tau0(x))`` at the follower's best response, tau0 = 0.002 (in incentive design at the Nash
equilibrium, tau 0.1), and ``J_L(x, pi_y)``, which the paper plots.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.agents import (
    BellmanPenalty,
    IndependentPolicyGradient,
    MirrorDescent,
    MonteCarlo,
    NikaidoIsodaPenalty,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
)
from bilevel_gym.agents.baselines.independent_policy_gradient import IndependentPolicyGradientConfig
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.envs.mdp import (
    IncentiveDesignProblem,
    StackelbergProblem,
    joint_return,
    nikaido_isoda_gap,
    policy_return,
    random_incentive_design,
    random_stackelberg,
    solve_nash,
    solve_soft,
    stack_problems,
    suboptimality,
)

from .figures import draw_band, new_figure, save_figure
from .runs import Data, run_all

SEEDS = tuple(range(10))
STATES = 100
GAMMA, TAU, TAU0, STEP, LENGTH = 0.9, 0.001, 0.002, 0.1, 5
ITERATIONS, DESIGN_ITERATIONS = 7500, 3000
SHARE = 1.0 - GAMMA**LENGTH
"""What five steps hold of a constant reward's discounted sum: 0.41."""
CURVE_POINTS = 50

PLAIN = MonteCarlo(LENGTH, 16, baseline=False, paired=False)
SIXTEEN, TWENTY_FOUR = MonteCarlo(LENGTH, 16), MonteCarlo(LENGTH, 24)


# --- leaders ----------------------------------------------------------------------------------------------------------


def settings(n: int, tau: float, estimator: MonteCarlo | None) -> dict[str, Any]:
    """The published step; a stack's objective is the mean over its n parts, whose own step is n times as long."""
    return {
        "follower": Softmax(), "learning_rate": STEP * n, "optimizer_class": torch.optim.SGD, "tau": tau,
        "estimator": estimator, "keep_best": False, "eval_every": 10**9,
    }  # fmt: skip


def independent(problem: Any, estimator: MonteCarlo | None) -> ExactLeader:
    """No penalty."""
    config = IndependentPolicyGradientConfig(**settings(len(problem.P), TAU, estimator))
    return IndependentPolicyGradient(problem, config)


def value(problem: Any, estimator: MonteCarlo | None) -> ExactLeader:
    """Value penalty, lam = 2, T = 1."""
    config = TabularPBRLConfig(**settings(len(problem.P), TAU, estimator))
    return TabularPBRL(problem, ValuePenalty(2.0), MirrorDescent(iterations=1), config)


def bellman(problem: Any, estimator: MonteCarlo | None) -> ExactLeader:
    """Bellman penalty, lam = 7, T = 10."""
    config = TabularPBRLConfig(**settings(len(problem.P), TAU, estimator))
    return TabularPBRL(problem, BellmanPenalty(7.0), MirrorDescent(iterations=10), config)


def design(problem: Any, estimator: MonteCarlo | None) -> ExactLeader:
    """Nikaido-Isoda penalty, lam = 4, T = 1."""
    config = TabularPBRLConfig(**settings(len(problem.P), problem.tau, estimator))
    return TabularPBRL(problem, NikaidoIsodaPenalty(4.0), MirrorDescent(iterations=1), config)


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        label: its name in tables and pictures.
        build: the leader, from the stacked problem and the estimator.
        estimator: Monte Carlo, or None for exact gradients.
        share: of the iterations, at the same step.
        colour: in the picture.
        style: in the picture.
    """

    label: str
    build: Callable[[Any, MonteCarlo | None], ExactLeader]
    estimator: MonteCarlo | None
    share: float = 1.0
    colour: str = "black"
    style: str = "-"


GAMES = {
    "independent": Method("independent gradient", independent, SIXTEEN, colour="#7f7f7f"),
    "value": Method("PBRL, value, lam 2, T 1", value, SIXTEEN, colour="#1f77b4"),
    "bellman": Method("PBRL, Bellman, lam 7, T 10", bellman, SIXTEEN, colour="#d62728"),
    "value_plain": Method("PBRL, value, no baseline, unpaired", value, PLAIN, colour="#17becf", style="--"),
    "value_exact": Method("PBRL, value, exact, 0.41 of the iterations", value, None, SHARE, "#1f77b4", ":"),
    "independent_exact": Method("independent, exact, 0.41 of the iterations", independent, None, SHARE, "#7f7f7f", ":"),
}
DESIGNS = {
    "design": Method("PBRL, Nikaido-Isoda, lam 4, T 1", design, TWENTY_FOUR, colour="#1f77b4"),
    "design_exact": Method("the same, exact, 0.41 of the iterations", design, None, SHARE, "#1f77b4", ":"),
}


def stacked(name: str, n: int) -> Any:
    """The first n instances of a method's problem, as one."""
    if name in DESIGNS:
        return stack_problems([random_incentive_design(seed=seed) for seed in SEEDS[:n]])
    return stack_problems([random_stackelberg(STATES, gamma=GAMMA, tau=TAU, seed=seed) for seed in SEEDS[:n]])


@torch.no_grad()
def game_records(problem: StackelbergProblem, x: Tensor, pi: tuple[Tensor, ...]) -> dict[str, list[float]]:
    """Exact records of each game."""
    mdp = problem.follower_mdp(x)
    leaders, best = mdp.with_reward(problem.leader_reward(x)), solve_soft(mdp, TAU0)
    at_tau = solve_soft(mdp, TAU, best.V)
    return {
        "leader_return": policy_return(leaders, best.pi).tolist(),
        "at_pi_y": policy_return(leaders, pi[0]).tolist(),
        "gap": suboptimality(mdp, pi[0], TAU, at_tau).tolist(),
    }


@torch.no_grad()
def design_records(problem: IncentiveDesignProblem, x: Tensor, pi: tuple[Tensor, ...]) -> dict[str, list[float]]:
    """Exact records of each instance; the return is that at the Nash equilibrium."""
    game, (pi1, pi2) = problem.game(x), pi
    nash = solve_nash(game, problem.tau)
    return {
        "leader_return": joint_return(problem.designer, nash.pi1, nash.pi2).tolist(),
        "at_pi_y": joint_return(problem.designer, pi1, pi2).tolist(),
        "gap": nikaido_isoda_gap(game, pi1, pi2, problem.tau).tolist(),
    }


def run_method(name: str, n: int, iterations: int) -> Data:
    """One method on all instances at once, with its records along the way."""
    method, problem = (GAMES | DESIGNS)[name], stacked(name, n)
    records = design_records if name in DESIGNS else game_records
    total = max(2, round(method.share * iterations))
    every = max(1, total // CURVE_POINTS)
    leader = method.build(problem, method.estimator)
    points: list[Data] = []
    looking = 0.0

    def look(at: Any) -> None:
        nonlocal looking
        if at.iteration % every == 0 or at.iteration == total:
            before = time.process_time()
            points.append({"iteration": at.iteration, **records(problem, torch.from_numpy(at.last_x), at.policies())})
            looking += time.process_time() - before

    look(leader)
    start, looking = time.process_time(), 0.0
    leader.learn(total, callback=look)
    seconds = time.process_time() - start - looking
    curves = {key: [point[key] for point in points] for key in points[0]}
    return {
        "method": name, "iterations": total, "steps": leader.history[-1].steps // n, "ms": seconds / total * 1e3,
        "curves": curves,
    }  # fmt: skip


def run(quick: bool, jobs: int) -> Data:
    """Every method on all of its instances."""
    n = 2 if quick else len(SEEDS)
    count = dict.fromkeys(GAMES, ITERATIONS) | dict.fromkeys(DESIGNS, DESIGN_ITERATIONS)
    tasks = [(name, n, 40 if quick else count[name]) for name in sorted(count, key=lambda name: name != "bellman")]
    runs = {r["method"]: r for r in run_all(run_method, tasks, jobs, "methods")}
    return {"seeds": list(SEEDS[:n]), "runs": [runs[name] for name in (*GAMES, *DESIGNS)]}


# --- reading ----------------------------------------------------------------------------------------------------------


def last(data: Data, name: str, key: str) -> list[float]:
    """A method's last record of each instance."""
    return [float(v) for v in select(data, name)["curves"][key][-1]]


def first(data: Data, name: str, key: str) -> list[float]:
    """A method's first record of each instance."""
    return [float(v) for v in select(data, name)["curves"][key][0]]


def select(data: Data, name: str) -> Data:
    """A method's run."""
    return next(r for r in data["runs"] if r["method"] == name)


PANELS = (
    ("at_pi_y", r"$J_L(x, \pi_y)$, as the paper plots it"),
    ("gap", "follower's gap"),
    ("leader_return", r"$F_0(x)$, leader return at best response"),
)


def draw(panel: Any, data: Data, methods: dict[str, Method], key: str) -> None:
    """One quantity of every method; an exact run's iterations are stretched to the truncated ones."""
    for name, method in methods.items():
        curves = select(data, name)["curves"]
        xs = np.asarray(curves["iteration"]) / method.share
        draw_band(panel, xs, np.asarray(curves[key]).T, method.colour, method.label, method.style)
    panel.set_xlabel("iterations")


def picture(data: Data, path: Path) -> None:
    """Three panels of the Stackelberg games, one of incentive design."""
    figure, axes = new_figure(1, 4, 16.0, 3.9)
    for panel, (key, heading) in zip(axes[0], PANELS, strict=False):
        draw(panel, data, GAMES, key)
        panel.set_title(heading, fontsize=10)
    axes[0][1].set_yscale("log")
    axes[0][0].legend(fontsize=7, frameon=False, loc="upper left")
    draw(axes[0][3], data, DESIGNS, "leader_return")
    axes[0][3].set_title("incentive design: designer's return at Nash", fontsize=10)
    axes[0][3].legend(fontsize=7, frameon=False)
    n = len(data["seeds"])
    figure.suptitle(f"{n} random instances at once, 16 (24) episodes of five steps: mean and its 95% band", fontsize=11)
    save_figure(figure, path)
