"""Random Stackelberg games, exact gradients: PBRL, the independent gradient and the hypergradient.

Ten random games (seeds 0 to 9; 5 actions each, gamma 0.9, rho uniform) of 20 and of 100 states; every method on the same
games. There are two groups of methods: this library's settings (Adam, 300 iterations), and settings that stand for those of the
published experiment (arXiv 2402.06886, section 6.1; not checked against it: SGD, tau 0.001, lam 2 with one inner step or lam 7
with ten), with exact gradients instead of Monte Carlo ones, mirror descent as the inner solver, and 10,000 iterations.

The leader's return is reported at the follower's best response, ``F_0(x) = J_L(x, pi*_tau0(x))``, tau0 = 0.002, and at
the method's own follower, ``J_L(x, pi_y)``, which is what the paper plots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bilevel_gym.agents import (
    BellmanPenalty,
    Evaluation,
    Geometric,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    MirrorDescent,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.baselines.independent_policy_gradient import IndependentPolicyGradientConfig
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.agents.schedules import Quench
from bilevel_gym.envs.mdp import random_stackelberg
from bilevel_gym.envs.mdp.stackelberg import StackelbergProblem

from . import ties as ties  # of the page
from .figures import draw_band, panels, share_limits
from .runs import Data, Runs, cpu_seconds, grid, history, run_all, shortfall

SEEDS = tuple(range(10))
SIZES = (20, 100)
ITERATIONS = 300
PUBLISHED_ITERATIONS = 10_000
TAU0 = 0.002
CURVE_POINTS = 100


PUBLISHED: dict[str, Any] = {"learning_rate": 0.1, "optimizer_class": torch.optim.SGD, "tau": 0.001}


@dataclass(frozen=True)
class Method:
    """A method: a row of the table.

    Attributes:
        label: name in tables and pictures.
        leader: class of the leader.
        config: settings of the leader.
        arguments: further arguments: the penalty and the inner solver.
        published: whether it is one of the published settings.
        colour: colour in the picture.
    """

    label: str
    leader: Callable[..., ExactLeader]
    config: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    published: bool = False
    colour: str = "black"

    def build(self, problem: StackelbergProblem, eval_every: int) -> ExactLeader:
        """Build the leader."""
        return self.leader(problem, **self.arguments, config=replace(self.config, eval_every=eval_every))


JOINT = TabularPBRLConfig(follower=Softmax(), **PUBLISHED)
VALUE = {"penalty": ValuePenalty(lam=2.0), "oracle": MirrorDescent(iterations=1)}
BELLMAN = {"penalty": BellmanPenalty(lam=7.0), "oracle": MirrorDescent(iterations=10)}
# Keeping the best x seen leaves the independent gradient's path as it is.
NAIVE = IndependentPolicyGradientConfig(keep_best=True)
NAIVE_PUBLISHED = IndependentPolicyGradientConfig(keep_best=True, **PUBLISHED)
ANNEALED = HypergradientConfig(tau=Geometric(0.3, 0.003))
COOLED, RISING = (
    TabularPBRLConfig(tau=Geometric(0.2, 0.003), learning_rate=0.05),
    {"penalty": ValuePenalty(lam=Geometric(2.0, 20.0))},
)

METHODS = {
    "independent": Method("independent gradient", IndependentPolicyGradient, NAIVE, colour="#7f7f7f"),
    "pbrl": Method("PBRL, value, annealed (0.1's default)", TabularPBRL, COOLED, RISING, colour="#1f77b4"),
    "pbrl_joint": Method(
        "PBRL, value, annealed, joint steps", TabularPBRL, replace(COOLED, follower=Softmax()), RISING, colour="#17becf"
    ),
    "hypergradient": Method("hypergradient, annealed", Hypergradient, ANNEALED, colour="#2ca02c"),
    "hypergradient_quenched": Method(
        "hypergradient, hot, then cold (0.1's default)",
        Hypergradient,
        HypergradientConfig(tau=Quench(0.07, 0.003)),
        colour="#9467bd",
    ),
    "published_independent": Method(
        "independent gradient", IndependentPolicyGradient, NAIVE_PUBLISHED, published=True, colour="#7f7f7f"
    ),
    "published_value": Method("PBRL, value, lam 2, T 1", TabularPBRL, JOINT, VALUE, True, "#1f77b4"),
    "published_bellman": Method("PBRL, Bellman, lam 7, T 10", TabularPBRL, JOINT, BELLMAN, True, "#d62728"),
}


# --- running ----------------------------------------------------------------------------------------------------------


def point(problem: StackelbergProblem, x: Any, evaluation: Evaluation) -> Data:
    """The report of one x: exact returns, and the method's own record."""
    tensor = torch.from_numpy(x)
    return {
        "leader_return": leader_return_at_best_response(problem, tensor, TAU0),
        "at_pi_y": evaluation.leader_return_at_pi_y,
        "gap": shortfall(evaluation),
    }


def run_game(size: int, method: str, seed: int, iterations: int) -> Data:
    """Run one method on one game."""
    problem = random_stackelberg(size, seed=seed, reward_unit=1.0)
    leader = METHODS[method].build(problem, max(10, iterations // CURVE_POINTS)).learn(iterations)
    return {
        "last": point(problem, leader.last_x, leader.history[-1]),
        "best": point(problem, leader.x, leader.evaluate()),
        "history": history(leader, "iteration", "leader_return", "gap", digits=7, at_pi_y="leader_return_at_pi_y"),
    }


def cost_ms(size: int, name: str, iterations: int) -> float:
    """CPU milliseconds per iteration on game 0, with an evaluation every 10 iterations."""
    leader = METHODS[name].build(random_stackelberg(size, seed=0, reward_unit=1.0), 10)
    leader.learn(5)
    return cpu_seconds(leader.learn, iterations) / iterations * 1e3


def run(quick: bool, jobs: int) -> Data:
    """Run every method on every game."""
    seeds, own, published = (SEEDS[:2], 40, 100) if quick else (SEEDS, ITERATIONS, PUBLISHED_ITERATIONS)
    longest_first = sorted(METHODS, key=lambda name: not METHODS[name].published)
    cells = [
        cell | {"iterations": published if METHODS[cell["method"]].published else own}
        for cell in grid(size=sorted(SIZES, reverse=True), method=longest_first, seed=seeds)
    ]
    # Costs are measured before the runs, one after the other.
    cost = {str(size): {name: cost_ms(size, name, 10 if quick else 100) for name in METHODS} for size in SIZES}
    runs = run_all(run_game, cells, jobs, "exact games")
    return {"seeds": list(seeds), "sizes": list(SIZES), "cost_ms": cost, "runs": runs}


PAIRS = (
    ("pbrl", "independent"),
    ("pbrl", "hypergradient"),
    ("pbrl_joint", "independent"),
    ("pbrl_joint", "hypergradient"),
    ("hypergradient_quenched", "hypergradient"),
    ("hypergradient_quenched", "pbrl"),
    ("published_value", "published_independent"),
    ("published_bellman", "published_independent"),
    ("published_value", "published_bellman"),
)
"""Methods whose returns are divided, paired by game."""
KINDS = {
    "last x": "last.leader_return",
    "best x": "best.leader_return",
}


PANELS = (
    ("at_pi_y", r"$J_L(x, \pi_y)$, as the paper plots it"),
    ("gap", "follower's gap (dotted: 0.02)"),
    ("leader_return", r"$F_0(x)$, leader return at best response"),
)


@panels(2, 3, 12.5, 6.8)
def picture(data: Data, *axes: Any) -> None:
    """Draw three panels over iterations, the published settings above and the annealed ones below."""
    size = max(data["sizes"])
    for row, published in ((axes[:3], True), (axes[3:], False)):
        for panel, (key, heading) in zip(row, PANELS, strict=True):
            for name, method in METHODS.items():
                if method.published == published and (key, name) != ("gap", "hypergradient"):
                    histories = Runs(data["runs"])(size=size, method=name)["history"]
                    curves = [curve[key] for curve in histories]
                    draw_band(panel, histories[0]["iteration"], curves, method.colour, method.label)
            panel.set_xlabel("iterations")
            panel.set_title(heading if published else "", fontsize=10)
        row[0].set_ylabel("as published, exact gradients" if published else "annealed defaults")
        row[1].axhline(0.02, color="black", linewidth=0.8, linestyle=":")
        row[1].set(yscale="log", ylim=(3e-3, 3.0))
        row[2].legend(fontsize=8, loc="lower right", frameon=False)
    share_limits(axes[i] for i in (0, 2, 3, 5))
    title = f"{len(data['seeds'])} random Stackelberg games of {size} states: mean and its 95% band"
    axes[0].figure.suptitle(title, fontsize=11)
