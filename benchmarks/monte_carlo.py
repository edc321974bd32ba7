"""The paper's section 6 with its Monte Carlo gradients: episodes of five steps, batches of 16 and 24.

Ten random Stackelberg games (seeds 0 to 9; 100 states, 5 actions each, gamma 0.9, rho uniform) are one stacked problem: every
iteration draws and differentiates the episodes of all ten in one call. The settings stand for those of arXiv 2402.06886, section
6.1; we could not check them against it: episodes of 5 steps, 16 per policy, SGD with step 0.1 on x and y, tau 0.001, the value
penalty with lam 2 and one inner step, the Bellman penalty with lam 7 and ten. The inner solver, mirror descent, knows the
model. Section 6.3 likewise: ten random instances of incentive design, episodes of 5 steps, 24 per policy, lam 4, one inner
step, step 0.1, tau 0.1.

Returns are exact: ``F_0(x) = J_L(x, pi*_tau0(x))`` at the follower's best response, tau0 = 0.002 (in incentive design at the Nash
equilibrium, tau 0.1), and ``J_L(x, pi_y)``, which the paper plots.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
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
from bilevel_gym.agents.penalties import Penalty
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

from .figures import draw_band, panels
from .runs import Data, grid, run_all

SEEDS = tuple(range(10))
STATES = 100
GAMMA, TAU, TAU0, STEP, LENGTH = 0.9, 0.001, 0.002, 0.1, 5
ITERATIONS, DESIGN_ITERATIONS = 7500, 3000
SHARE = 1.0 - GAMMA**LENGTH
"""Share of a constant reward's discounted sum that five steps hold: 0.41."""
CURVE_POINTS = 50

PLAIN = MonteCarlo(LENGTH, 16, baseline=False, paired=False)
SIXTEEN, TWENTY_FOUR = MonteCarlo(LENGTH, 16), MonteCarlo(LENGTH, 24)


# --- leaders ----------------------------------------------------------------------------------------------------------


def settings(problem: Any, estimator: MonteCarlo | None) -> dict[str, Any]:
    """The published step size, times the number of stacked problems, because the objective of a stack is their mean."""
    tau = problem.tau if isinstance(problem, IncentiveDesignProblem) else TAU
    schedule = {"learning_rate": STEP * len(problem.P), "optimizer_class": torch.optim.SGD, "tau": tau}
    return schedule | {"follower": Softmax(), "estimator": estimator, "keep_best": False, "eval_every": 10**9}


@dataclass(frozen=True)
class Method:
    """A method: a row of a table.

    Attributes:
        label: name in tables and pictures.
        penalty: penalty of PBRL, with the mirror descent that solves the follower; None for the independent gradient.
        estimator: Monte Carlo, or None for exact gradients.
        share: share of the iterations, with the same step size.
        colour: colour in the picture.
        style: line style in the picture.
    """

    label: str
    penalty: tuple[Penalty, MirrorDescent] | None
    estimator: MonteCarlo | None
    share: float = 1.0
    colour: str = "black"
    style: str = "-"

    def build(self, problem: Any) -> ExactLeader:
        """Build the leader of the stacked problem."""
        chosen = settings(problem, self.estimator)
        if self.penalty is None:
            return IndependentPolicyGradient(problem, config=IndependentPolicyGradientConfig(**chosen))
        penalty, oracle = self.penalty
        return TabularPBRL(problem, penalty=penalty, oracle=oracle, config=TabularPBRLConfig(**chosen))


VALUE = (ValuePenalty(2.0), MirrorDescent(iterations=1))
BELLMAN = (BellmanPenalty(7.0), MirrorDescent(iterations=10))
NIKAIDO_ISODA = (NikaidoIsodaPenalty(4.0), MirrorDescent(iterations=1))

GAMES = {
    "independent": Method("independent gradient", None, SIXTEEN, colour="#7f7f7f"),
    "value": Method("PBRL, value, lam 2, T 1", VALUE, SIXTEEN, colour="#1f77b4"),
    "bellman": Method("PBRL, Bellman, lam 7, T 10", BELLMAN, SIXTEEN, colour="#d62728"),
    "value_plain": Method("PBRL, value, no baseline, unpaired", VALUE, PLAIN, colour="#17becf", style="--"),
    "value_exact": Method("PBRL, value, exact, 0.41 of the iterations", VALUE, None, SHARE, "#1f77b4", ":"),
    "independent_exact": Method("independent, exact, 0.41 of the iterations", None, None, SHARE, "#7f7f7f", ":"),
}
DESIGNS = {
    "design": Method("PBRL, Nikaido-Isoda, lam 4, T 1", NIKAIDO_ISODA, TWENTY_FOUR, colour="#1f77b4"),
    "design_exact": Method("the same, exact, 0.41 of the iterations", NIKAIDO_ISODA, None, SHARE, "#1f77b4", ":"),
}


def stacked(name: str, n: int) -> Any:
    """The first n instances of a method's problem, stacked into one problem."""
    if name in DESIGNS:
        return stack_problems([random_incentive_design(seed=seed) for seed in SEEDS[:n]]).in_units(1.0)
    return stack_problems([random_stackelberg(STATES, gamma=GAMMA, tau=TAU, seed=seed) for seed in SEEDS[:n]]).in_units(
        1.0
    )


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
    """Exact records of each instance, with the return at the Nash equilibrium."""
    game, (pi1, pi2) = problem.game(x), pi
    nash = solve_nash(game, problem.tau)
    return {
        "leader_return": joint_return(problem.designer, nash.pi1, nash.pi2).tolist(),
        "at_pi_y": joint_return(problem.designer, pi1, pi2).tolist(),
        "gap": nikaido_isoda_gap(game, pi1, pi2, problem.tau).tolist(),
    }


def run_method(method: str, n: int, quick: bool) -> Data:
    """Run one method on all instances at once, with records along the way."""
    chosen, problem = (GAMES | DESIGNS)[method], stacked(method, n)
    records, iterations = (design_records, DESIGN_ITERATIONS) if method in DESIGNS else (game_records, ITERATIONS)
    total = max(2, round(chosen.share * (40 if quick else iterations)))
    every = max(1, total // CURVE_POINTS)
    leader = chosen.build(problem)
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
    steps = leader.history[-1].steps // n
    return {"iterations": total, "steps": steps, "ms": seconds / total * 1e3, "curves": curves}


def run(quick: bool, jobs: int) -> Data:
    """Run every method on all of its instances."""
    n = 2 if quick else len(SEEDS)
    methods = [*GAMES, *DESIGNS]
    cells = grid(method=sorted(methods, key=lambda name: name != "bellman"))  # the longest first
    runs = run_all(run_method, cells, jobs, "methods", n=n, quick=quick)
    return {"seeds": list(SEEDS[:n]), "runs": sorted(runs, key=lambda run: methods.index(run["method"]))}


# --- reading ----------------------------------------------------------------------------------------------------------


def last(data: Data, name: str, key: str) -> list[float]:
    """The last record of a method for each instance."""
    return [float(v) for v in select(data, name)["curves"][key][-1]]


def first(data: Data, name: str, key: str) -> list[float]:
    """The first record of a method for each instance."""
    return [float(v) for v in select(data, name)["curves"][key][0]]


def select(data: Data, name: str) -> Data:
    """The run of a method."""
    return next(r for r in data["runs"] if r["method"] == name)


PANELS = (
    ("at_pi_y", r"$J_L(x, \pi_y)$, as the paper plots it"),
    ("gap", "follower's gap"),
    ("leader_return", r"$F_0(x)$, leader return at best response"),
)


def draw(panel: Any, data: Data, methods: dict[str, Method], key: str, heading: str) -> None:
    """Draw one quantity for every method, with the iterations of exact runs stretched to those of the truncated ones."""
    panel.set_title(heading, fontsize=10)
    for name, method in methods.items():
        curves = select(data, name)["curves"]
        xs = np.asarray(curves["iteration"]) / method.share
        draw_band(panel, xs, np.asarray(curves[key]).T, method.colour, method.label, method.style)
    panel.set_xlabel("iterations")


@panels(1, 4, 16.0, 3.9)
def picture(data: Data, *axes: Any) -> None:
    """Draw three panels for the Stackelberg games and one for incentive design."""
    for panel, (key, heading) in zip(axes, PANELS, strict=False):
        draw(panel, data, GAMES, key, heading)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7, frameon=False, loc="upper left")
    draw(axes[3], data, DESIGNS, "leader_return", "incentive design: designer's return at Nash")
    axes[3].legend(fontsize=7, frameon=False)
    title = f"{len(data['seeds'])} random instances at once, 16 (24) episodes of five steps: mean and its 95% band"
    axes[0].figure.suptitle(title, fontsize=11)
