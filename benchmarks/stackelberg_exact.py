"""Random Stackelberg games, exact gradients: PBRL, the independent gradient and the hypergradient.

Ten random games (seeds 0 to 9; 5 actions each, gamma 0.9, rho uniform) of 20 and of 100 states; every method on the same
games. Two groups of methods: this library's settings (Adam, 300 iterations), and the published experiment's as far as they
are remembered (arXiv 2402.06886, section 6.1; none of them checked against it: SGD, tau 0.001, lam 2 with one inner
step or lam 7 with ten), with exact gradients in place of its Monte Carlo ones, mirror descent as the inner solver, and
10,000 iterations.

The leader's return is reported at the follower's best response, ``F_0(x) = J_L(x, pi*_tau0(x))``, tau0 = 0.002, and at
the method's own follower, ``J_L(x, pi_y)``, which is what the paper plots.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
from bilevel_gym.envs.mdp import random_stackelberg
from bilevel_gym.envs.mdp.stackelberg import StackelbergProblem

from .figures import draw_band, new_figure, save_figure, share_limits
from .runs import Data, Runs, run_all

SEEDS = tuple(range(10))
SIZES = (20, 100)
ITERATIONS = 300
PUBLISHED_ITERATIONS = 10_000
PUBLISHED_STEP = 0.1
PUBLISHED_TAU = 0.001
TAU0 = 0.002
AGAINST = -0.01
"""Weight of the leader's reward in the follower's that breaks ties against the leader."""
CURVE_POINTS = 100


def independent(problem: StackelbergProblem, eval_every: int = 10) -> ExactLeader:
    """The independent gradient's defaults; keeping the best x seen leaves its path as it is."""
    return IndependentPolicyGradient(problem, IndependentPolicyGradientConfig(keep_best=True, eval_every=eval_every))


def pbrl(problem: StackelbergProblem, eval_every: int = 10) -> ExactLeader:
    """PBRL's defaults: lam 2 to 20, tau 0.2 to 0.003, the follower's answer solved for every x."""
    return TabularPBRL(problem, config=TabularPBRLConfig(eval_every=eval_every))


def pbrl_joint(problem: StackelbergProblem, eval_every: int = 10) -> ExactLeader:
    """The same with one joint step in x and y."""
    return TabularPBRL(problem, config=TabularPBRLConfig(follower=Softmax(), eval_every=eval_every))


def hypergradient(problem: StackelbergProblem, eval_every: int = 10) -> ExactLeader:
    """The hypergradient, tau 0.3 to 0.003."""
    return Hypergradient(problem, HypergradientConfig(tau=Geometric(0.3, 0.003), eval_every=eval_every))


def hypergradient_quenched(problem: StackelbergProblem, eval_every: int = 10) -> ExactLeader:
    """The hypergradient's defaults: tau 0.07 for a sixth of the iterations, then 0.003."""
    return Hypergradient(problem, HypergradientConfig(eval_every=eval_every))


def published_value(problem: StackelbergProblem, eval_every: int = 10) -> ExactLeader:
    """Value penalty, lam = 2, T = 1."""
    return TabularPBRL(problem, ValuePenalty(lam=2.0), MirrorDescent(iterations=1), _published_config(eval_every))


def published_bellman(problem: StackelbergProblem, eval_every: int = 10) -> ExactLeader:
    """Bellman penalty, lam = 7, T = 10."""
    return TabularPBRL(problem, BellmanPenalty(lam=7.0), MirrorDescent(iterations=10), _published_config(eval_every))


def _published_config(eval_every: int) -> TabularPBRLConfig:
    return TabularPBRLConfig(
        follower=Softmax(),
        learning_rate=PUBLISHED_STEP,
        optimizer_class=torch.optim.SGD,
        tau=PUBLISHED_TAU,
        eval_every=eval_every,
    )


def published_independent(problem: StackelbergProblem, eval_every: int = 10) -> ExactLeader:
    """The independent gradient by the same steps."""
    config = IndependentPolicyGradientConfig(
        learning_rate=PUBLISHED_STEP,
        optimizer_class=torch.optim.SGD,
        tau=PUBLISHED_TAU,
        keep_best=True,
        eval_every=eval_every,
    )
    return IndependentPolicyGradient(problem, config)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        label: its name in tables and pictures.
        build: the leader, from a problem and the iterations between evaluations.
        published: whether it is one of the published settings.
        colour: in the picture; None leaves it out.
    """

    label: str
    build: Callable[..., ExactLeader]
    published: bool = False
    colour: str | None = None


METHODS = {
    "independent": Method("independent gradient", independent, colour="#7f7f7f"),
    "pbrl": Method("PBRL, value, annealed (default)", pbrl, colour="#1f77b4"),
    "pbrl_joint": Method("PBRL, value, annealed, joint steps", pbrl_joint, colour="#17becf"),
    "hypergradient": Method("hypergradient, annealed", hypergradient, colour="#2ca02c"),
    "hypergradient_quenched": Method(
        "hypergradient, hot, then cold (default)", hypergradient_quenched, colour="#9467bd"
    ),
    "published_independent": Method("independent gradient", published_independent, published=True, colour="#7f7f7f"),
    "published_value": Method("PBRL, value, lam 2, T 1", published_value, published=True, colour="#1f77b4"),
    "published_bellman": Method("PBRL, Bellman, lam 7, T 10", published_bellman, published=True, colour="#d62728"),
}


# --- running ----------------------------------------------------------------------------------------------------------


def point(problem: StackelbergProblem, x: Any, evaluation: Evaluation) -> Data:
    """What is reported of one x: exact returns, and the method's own record."""
    tensor = torch.from_numpy(x)
    return {
        "leader_return": leader_return_at_best_response(problem, tensor, TAU0),
        "leader_return_against": leader_return_at_best_response(problem, tensor, TAU0, tie=AGAINST),
        "at_pi_y": evaluation.leader_return_at_pi_y,
        "gap": evaluation.gap,
    }


def run_game(size: int, seed: int, name: str, iterations: int) -> Data:
    """One method on one game."""
    problem = random_stackelberg(size, seed=seed)
    leader = METHODS[name].build(problem, max(10, iterations // CURVE_POINTS))
    leader.learn(iterations)
    assert leader.kept is not None
    columns = {
        "iteration": [e.iteration for e in leader.history],
        "leader_return": [round(e.leader_return, 5) for e in leader.history],
        "at_pi_y": [round(float(e.leader_return_at_pi_y or 0.0), 5) for e in leader.history],
        "gap": [round(float(e.gap or 0.0), 7) for e in leader.history],
    }
    return {
        "size": size,
        "seed": seed,
        "method": name,
        "iterations": iterations,
        "last": point(problem, leader.last_x, leader.history[-1]),
        "best": point(problem, leader.x, leader.kept.evaluation),
        "history": columns,
    }


def cost_ms(size: int, name: str, iterations: int) -> float:
    """CPU milliseconds an iteration on game 0, evaluations every 10 iterations included."""
    leader = METHODS[name].build(random_stackelberg(size, seed=0), 10)
    leader.learn(5)
    start = time.process_time()
    leader.learn(iterations)
    return (time.process_time() - start) / iterations * 1e3


def costs(quick: bool) -> Data:
    """Cost of every method by size, measured one after the other."""
    iterations = 10 if quick else 100
    return {str(size): {name: cost_ms(size, name, iterations) for name in METHODS} for size in SIZES}


def run(quick: bool, jobs: int) -> Data:
    """Every method on every game."""
    seeds = SEEDS[:2] if quick else SEEDS
    count = {False: 40 if quick else ITERATIONS, True: 100 if quick else PUBLISHED_ITERATIONS}
    tasks = [
        (size, seed, name, count[method.published])
        for size in sorted(SIZES, reverse=True)
        for name, method in sorted(METHODS.items(), key=lambda item: -count[item[1].published])
        for seed in seeds
    ]
    cost = costs(quick)
    runs = run_all(run_game, tasks, jobs, "exact games")
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
    "last x, ties against the leader": "last.leader_return_against",
}


PANELS = (
    ("at_pi_y", r"$J_L(x, \pi_y)$, as the paper plots it"),
    ("gap", "follower's gap (dotted: 0.02)"),
    ("leader_return", r"$F_0(x)$, leader return at best response"),
)


def picture(data: Data, path: Path) -> None:
    """Three panels over iterations, the published settings above and the annealed ones below."""
    size = max(data["sizes"])
    figure, axes = new_figure(2, 3, 12.5, 6.8)
    for row, published in enumerate((True, False)):
        for panel, (key, heading) in zip(axes[row], PANELS, strict=True):
            draw_panel(panel, data, size, key, published)
            panel.set_title(heading if row == 0 else "", fontsize=10)
        axes[row][0].set_ylabel("as published, exact gradients" if published else "annealed defaults")
        axes[row][2].legend(fontsize=8, loc="lower right", frameon=False)
    share_limits(axes[:, [0, 2]].ravel())
    figure.suptitle(
        f"{len(data['seeds'])} random Stackelberg games of {size} states: mean and its 95% band", fontsize=11
    )
    save_figure(figure, path)


def draw_panel(panel: Any, data: Data, size: int, key: str, published: bool) -> None:
    """One quantity of one group of methods."""
    for name, method in METHODS.items():
        if method.published != published or method.colour is None or (key == "gap" and name == "hypergradient"):
            continue
        histories = Runs(data["runs"])(size=size, method=name)["history"]
        draw_band(panel, histories[0]["iteration"], [h[key] for h in histories], method.colour, method.label)
    panel.set_xlabel("iterations")
    if key == "gap":
        panel.set_yscale("log")
        panel.axhline(0.02, color="black", linewidth=0.8, linestyle=":")
        panel.set_ylim(3e-3, 3.0)
