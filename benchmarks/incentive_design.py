"""Incentive design over zero-sum games: PBRL, the meta-gradient, the hypergradient through the Nash equilibrium.

Ten random instances (seeds 0 to 9; 10 states, 5 x 5 actions, gamma 0.9, tau 0.1, rho uniform, all entries uniform on [0, 1]), the
same for every method, exact gradients, 600 iterations, the last x. The designer's return is that at the Nash equilibrium of x;
beside it the return at the method's own policies, and their Nikaido-Isoda gap, which is their exploitability. The published
experiment's sizes and coefficients are recollections (arXiv 2402.06886, section 6.3; unverified).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bilevel_gym.agents import (
    Geometric,
    Hypergradient,
    HypergradientConfig,
    MetaGradient,
    NikaidoIsodaPenalty,
    TabularPBRL,
    TabularPBRLConfig,
)
from bilevel_gym.agents.baselines.meta_gradient import MetaGradientConfig
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.envs.mdp import GameProblem, random_incentive_design

from .figures import draw_band, panels
from .runs import Data, Runs, cpu_seconds, grid, history, outcome, run_all

SEEDS = tuple(range(10))
ITERATIONS = 600
EVERY = 20
GAP = 0.01


def pbrl(lam: Any) -> Callable[[GameProblem], ExactLeader]:
    """Joint steps with the Nikaido-Isoda penalty at the problem's own temperature."""
    config = TabularPBRLConfig(tau=0.1, eval_every=EVERY, keep_best=False)
    return lambda problem: TabularPBRL(problem, penalty=NikaidoIsodaPenalty(lam=lam), config=config)


METHODS: dict[str, tuple[str, str, Callable[[GameProblem], ExactLeader]]] = {
    "meta": ("meta-gradient", "tab:green", lambda p: MetaGradient(p, config=MetaGradientConfig(eval_every=EVERY))),
    "pbrl_1": ("PBRL, lam 1", "0.6", pbrl(1.0)),
    "pbrl_4": ("PBRL, lam 4 (as published)", "tab:blue", pbrl(4.0)),
    "pbrl_10": ("PBRL, lam 10", "tab:cyan", pbrl(10.0)),
    "pbrl_30": ("PBRL, lam 30", "tab:purple", pbrl(30.0)),
    "pbrl_rising": ("PBRL, lam 2 to 20 (default)", "tab:olive", pbrl(Geometric(2.0, 20.0))),
    "hypergradient": (
        "hypergradient through the equilibrium",
        "tab:red",
        lambda p: Hypergradient(p, config=HypergradientConfig(eval_every=EVERY, keep_best=False)),
    ),
}
"""Label, colour, and how to make the leader."""


CLAIMS = (
    ("pbrl_4", "meta"),
    ("pbrl_10", "meta"),
    ("meta", "start"),
    ("hypergradient", "pbrl_4"),
    ("hypergradient", "pbrl_10"),
    ("pbrl_rising", "pbrl_10"),
)
"""Which designer's return is to be above which."""


def run_method(seed: int, method: str, iterations: int) -> Data:
    """One method on one instance."""
    leader = METHODS[method][2](random_incentive_design(10, 5, 5, 0.9, 0.1, seed))
    ms = 1e3 * cpu_seconds(leader.learn, iterations) / iterations
    found, curves = outcome(leader), history(leader, "iteration", "leader_return", "gap")
    return found | {"leader_return": found["last"], "ms": ms, "history": curves}


def run(quick: bool, jobs: int) -> Data:
    """All methods on all instances."""
    seeds, iterations = (SEEDS[:2], 60) if quick else (SEEDS, ITERATIONS)
    runs = run_all(run_method, grid(seed=seeds, method=METHODS), jobs, "instances", iterations=iterations)
    return {"seeds": list(seeds), "iterations": iterations, "runs": runs}


def column(runs: Runs, method: str, key: str = "leader_return") -> list[float]:
    """One number of every instance; of the method "start", the untrained designer's return."""
    return runs(method="meta")["start"] if method == "start" else runs(method=method)[key]


@panels(1, 2, 11.0, 4.4)
def picture(data: Data, at_nash: Any, gap: Any) -> None:
    """Designer's return at Nash, and the gap, over iterations."""
    for name, (text, colour, _) in METHODS.items():
        histories = Runs(data["runs"])(method=name)["history"]
        steps = histories[0]["iteration"]
        draw_band(at_nash, steps, [h["leader_return"] for h in histories], colour, text)
        if name != "hypergradient":
            draw_band(gap, steps, np.maximum([h["gap"] for h in histories], 1e-6), colour, None)
    at_nash.set_title("designer's return at the Nash equilibrium of x", fontsize=10)
    at_nash.legend(fontsize=8, frameon=False)
    gap.set_title("Nikaido-Isoda gap of the method's own policies (dotted: 0.01)", fontsize=10)
    gap.axhline(GAP, color="black", linewidth=0.8, linestyle=":")
    at_nash.set(xlabel="iterations")
    gap.set(xlabel="iterations", yscale="log")
