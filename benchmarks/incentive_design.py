"""Incentive design over zero-sum games: PBRL, the meta-gradient, the hypergradient through the Nash equilibrium.

Ten random instances (seeds 0 to 9; 10 states, 5 x 5 actions, gamma 0.9, tau 0.1, rho uniform, all entries uniform on [0, 1]), the
same for every method, exact gradients, 600 iterations, the last x. The designer's return is that at the Nash equilibrium of x;
beside it the return at the method's own policies, and their Nikaido-Isoda gap, which is their exploitability. The published
experiment's sizes and coefficients are recollections (arXiv 2402.06886, section 6.3; unverified).

The meta-gradient's inner steps and inner rate were searched over a grid of nine, PBRL's lam and rate and the hypergradient's rate
and first temperature likewise, on instances 10 and 11; rows marked *searched* have the best of the nine.
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
SEARCHED = (10, 11)
"""Instances on which settings are chosen."""
ITERATIONS = 600
EVERY = 20
GAP = 0.01


def pbrl(lam: Any, rate: float = 0.05) -> Callable[[GameProblem], ExactLeader]:
    """PBRL with joint steps and the Nikaido-Isoda penalty, at the problem's own temperature."""
    config = TabularPBRLConfig(tau=0.1, learning_rate=rate, eval_every=EVERY, keep_best=False)
    return lambda problem: TabularPBRL(problem, penalty=NikaidoIsodaPenalty(lam=lam), config=config)


def meta(inner_steps: int, inner_rate: float) -> Callable[[GameProblem], ExactLeader]:
    """The meta-gradient with Adam steps of x that fall from 0.1 to 0.01."""
    chosen: dict[str, Any] = {
        "inner_steps": inner_steps,
        "inner_rate": inner_rate,
        "learning_rate": Geometric(0.1, 0.01),
    }
    return lambda problem: MetaGradient(problem, config=MetaGradientConfig(**chosen, tau=0.1, eval_every=EVERY))


def hypergradient(rate: float, hot: float) -> Callable[[GameProblem], ExactLeader]:
    """The hypergradient with a temperature that falls to the problem's own."""
    config = HypergradientConfig(tau=Geometric(hot, 0.1), learning_rate=rate, eval_every=EVERY, keep_best=False)
    return lambda problem: Hypergradient(problem, config=config)


METHODS: dict[str, tuple[str, str, Callable[[GameProblem], ExactLeader]]] = {
    "meta": ("meta-gradient, one step of 3 (as published)", "tab:green", meta(1, 3.0)),
    "pbrl_1": ("PBRL, lam 1", "0.6", pbrl(1.0)),
    "pbrl_4": ("PBRL, lam 4 (as published)", "tab:blue", pbrl(4.0)),
    "pbrl_10": ("PBRL, lam 10", "tab:cyan", pbrl(10.0)),
    "pbrl_30": ("PBRL, lam 30", "tab:purple", pbrl(30.0)),
    "pbrl_rising": ("PBRL, lam 2 to 20 (0.1's default)", "tab:olive", pbrl(Geometric(2.0, 20.0))),
    "hypergradient": ("hypergradient through the equilibrium", "tab:red", hypergradient(0.1, 0.2)),
}
"""Label, colour, and a function that makes the leader."""
SEARCH: dict[
    str, tuple[str, str, Callable[..., Callable[[GameProblem], ExactLeader]], tuple[Any, ...], tuple[Any, ...]]
] = {
    "meta_searched": ("meta-gradient, searched", "darkgreen", meta, (1, 3, 10), (1.0, 3.0, 10.0)),
    "pbrl_searched": ("PBRL, searched", "navy", pbrl, (4.0, 10.0, 20.0), (0.025, 0.05, 0.1)),
    "hypergradient_searched": (
        "hypergradient, searched",
        "darkred",
        hypergradient,
        (0.05, 0.1, 0.2),
        (0.2, 0.5, 1.0),
    ),
}
"""Label, colour, a function that makes the leader of a setting, and the values of its two numbers."""


CLAIMS = (
    ("pbrl_4", "meta"),
    ("pbrl_10", "meta"),
    ("meta", "start"),
    ("hypergradient", "pbrl_4"),
    ("hypergradient", "pbrl_10"),
    ("pbrl_rising", "pbrl_10"),
    ("pbrl_searched", "meta_searched"),
    ("hypergradient_searched", "meta_searched"),
    ("hypergradient_searched", "pbrl_searched"),
)
"""Pairs of methods: the designer's return of the first should be above that of the second."""


def run_method(seed: int, method: str, setting: list[float] | None, iterations: int) -> Data:
    """Run one method on one instance."""
    make = METHODS[method][2] if setting is None else SEARCH[method][2](*setting)
    leader = make(random_incentive_design(10, 5, 5, 0.9, 0.1, seed).in_units(1.0))
    ms = 1e3 * cpu_seconds(leader.learn, iterations) / iterations
    found, curves = outcome(leader), history(leader, "iteration", "leader_return", "gap")
    return found | {"leader_return": found["last"], "ms": ms, "history": curves}


def best_setting(searched: Runs, method: str) -> list[float]:
    """The setting with the best mean return at the last x over the instances of the search."""
    rows: set[tuple[float, ...]] = {tuple(r["setting"]) for r in searched(method=method)}
    mean = {row: np.mean([r["last"] for r in searched(method=method) if tuple(r["setting"]) == row]) for row in rows}
    best = max(mean, key=lambda row: float(mean[row]))
    return [*best]


def run(quick: bool, jobs: int) -> Data:
    """Run the search, then all methods on all instances."""
    seeds, iterations = (SEEDS[:2], 60) if quick else (SEEDS, ITERATIONS)
    chosen = {name: settings(name)[:: 4 if quick else 1] for name in SEARCH}
    cells = [cell for name in SEARCH for cell in grid(seed=SEARCHED, method=[name], setting=chosen[name])]
    searched = Runs(run_all(run_method, cells, jobs, "search", iterations=iterations))
    cells = grid(seed=seeds, method=METHODS, setting=[None])
    cells += [
        cell for name in SEARCH for cell in grid(seed=seeds, method=[name], setting=[best_setting(searched, name)])
    ]
    runs = run_all(run_method, cells, jobs, "instances", iterations=iterations)
    kept = [{key: r[key] for key in ("method", "setting", "seed", "last")} for r in searched]
    return {"seeds": list(seeds), "iterations": iterations, "searched": kept, "runs": runs}


def everyone() -> dict[str, Any]:
    """Labels and colours of all methods."""
    return {**METHODS, **SEARCH}


def about_of(method: str) -> Any:
    """Label and colour of a method."""
    return everyone()[method]


def settings(method: str) -> list[list[float]]:
    """All nine settings of a method that is searched."""
    *_, first, second = SEARCH[method]
    return [[a, b] for a in first for b in second]


def searched_returns(data: Data, method: str, setting: list[float]) -> list[float]:
    """Returns of a setting on the instances of the search."""
    return [r["last"] for r in data["searched"] if r["method"] == method and r["setting"] == setting]


def column(runs: Runs, method: str, key: str = "leader_return") -> list[float]:
    """One number for every instance; for the method "start" it is the untrained designer's return."""
    return runs(method="meta")["start"] if method == "start" else runs(method=method)[key]


@panels(1, 2, 11.0, 4.4)
def picture(data: Data, at_nash: Any, gap: Any) -> None:
    """Draw the designer's return at Nash, and the gap, over iterations."""
    for name, (text, colour, *_) in everyone().items():
        if not len(Runs(data["runs"])(method=name)):
            continue
        histories = Runs(data["runs"])(method=name)["history"]
        steps = histories[0]["iteration"]
        draw_band(at_nash, steps, [h["leader_return"] for h in histories], colour, text)
        if not name.startswith("hypergradient"):
            draw_band(gap, steps, np.maximum([h["gap"] for h in histories], 1e-6), colour, None)
    at_nash.set_title("designer's return at the Nash equilibrium of x", fontsize=10)
    at_nash.legend(fontsize=8, frameon=False)
    gap.set_title("Nikaido-Isoda gap of the method's own policies (dotted: 0.01)", fontsize=10)
    gap.axhline(GAP, color="black", linewidth=0.8, linestyle=":")
    at_nash.set(xlabel="iterations")
    gap.set(xlabel="iterations", yscale="log")
