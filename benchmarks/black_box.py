"""What a gradient is worth: black-box search and rival gradients against ours, on the same games.

Ten random Stackelberg games of 20 states (seeds 5 to 14; x has 100 coordinates), the model known to every method. CMA-ES and the
zero-order leader see the leader's return alone, and a follower solved exactly for every value; the meta-gradient looks one
step of the follower ahead; HPGD solves the follower and estimates the gradient from its trajectories; SoBiRL tracks the
follower and the adjoint. Ours are the exact hypergradient and PBRL, as they come. Black-box search, HPGD and the meta-gradient
are given several times our CPU time. Where followers are learned, see ``nested_search``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bilevel_gym.agents import (
    HPGD,
    Geometric,
    HPGDConfig,
    Hypergradient,
    HypergradientConfig,
    MetaGradient,
    SoBiRL,
    SoBiRLConfig,
    TabularCMAES,
    TabularPBRL,
    TabularPBRLConfig,
    ZeroOrder,
)
from bilevel_gym.agents.baselines.cma_es import TabularCMAESConfig
from bilevel_gym.agents.baselines.meta_gradient import MetaGradientConfig
from bilevel_gym.agents.baselines.zero_order import ZeroOrderConfig
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.mdp import random_stackelberg
from bilevel_gym.envs.mdp.stackelberg import StackelbergProblem

from .figures import draw_band, new_figure, save_figure
from .runs import Data, Runs, run_all
from .statistics import paired_difference

SEEDS = tuple(range(5, 15))  # settings of the rivals were chosen on games 0 and 1
SIZE = 20
ANNEALED = Geometric(0.3, 0.003)
"""Temperature of the rivals that can anneal it."""
MARKS = (0.1, 0.3, 1.0, 3.0)
"""CPU seconds at which returns are compared."""
SHARE = 0.95


@dataclass(frozen=True)
class Method:
    """A row of the table: how to make the leader, its iterations, the followers it solves in each (None: none is solved)."""

    label: str
    colour: str
    make: Callable[[StackelbergProblem], ExactLeader]
    iterations: int
    solves: int | None
    every: int = 5


METHODS = {
    "hypergradient": Method(
        "hypergradient (ours)", "tab:green", lambda p: Hypergradient(p, HypergradientConfig(eval_every=5)), 300, 1
    ),
    "pbrl": Method("PBRL (ours)", "tab:blue", lambda p: TabularPBRL(p, config=TabularPBRLConfig(eval_every=5)), 300, 2),
    "sobirl": Method("SoBiRL", "tab:cyan", lambda p: SoBiRL(p, SoBiRLConfig(eval_every=5)), 300, None),
    "hpgd": Method(
        "HPGD", "tab:purple", lambda p: HPGD(p, HPGDConfig(tau=ANNEALED, eval_every=5, keep_best=True)), 400, 1
    ),
    "meta": Method(
        "meta-gradient",
        "tab:olive",
        lambda p: MetaGradient(p, MetaGradientConfig(tau=ANNEALED, eval_every=20, keep_best=True)),
        3000,
        None,
        20,
    ),
    "cma_es": Method("CMA-ES", "tab:red", lambda p: TabularCMAES(p, TabularCMAESConfig(eval_every=5)), 600, 17),
    "zero_order": Method(
        "zero-order", "tab:orange", lambda p: ZeroOrder(p, ZeroOrderConfig(tau=ANNEALED, eval_every=5, keep_best=True)), 600, 16
    ),
}  # fmt: skip
OURS = ("hypergradient", "pbrl")
RIVALS = tuple(name for name in METHODS if name not in OURS)


def run_one(name: str, seed: int, quick: bool) -> Data:
    """One method on one game."""
    method, problem = METHODS[name], random_stackelberg(SIZE, seed=seed)
    leader, seconds = method.make(problem), [0.0]
    start = time.process_time()

    def note(_: Any) -> None:
        if leader.iteration % method.every == 0:
            seconds.append(time.process_time() - start)

    leader.learn(2 * method.every if quick else method.iterations, note)
    assert leader.kept is not None
    each = len(leader.search.ask()) if isinstance(leader, TabularCMAES) else method.solves
    assert each == method.solves
    return {
        "method": name,
        "seed": seed,
        "cpu_seconds": [round(at, 4) for at in seconds],
        "iteration": [e.iteration for e in leader.history],
        "leader_return": [round(e.leader_return, 5) for e in leader.history],
        "best": leader.kept.evaluation.leader_return,
        "last": leader.history[-1].leader_return,
    }


def run(quick: bool, jobs: int) -> Data:
    """Every method on every game."""
    seeds = SEEDS[:2] if quick else SEEDS
    runs = run_all(run_one, [(name, seed, quick) for name in METHODS for seed in seeds], jobs, "runs")
    return {"seeds": list(seeds), "runs": runs}


# --- reading ----------------------------------------------------------------------------------------------------------


def solved(run: Data) -> list[int]:
    """Followers solved by each evaluation, which is not counted."""
    return [(METHODS[run["method"]].solves or 0) * k for k in run["iteration"]]


def best_by(run: Data, spent: list[Any], mark: float) -> float:
    """The best return at the best response within what was spent."""
    return float(max(value for value, at in zip(run["leader_return"], spent, strict=True) if at <= mark))


def advantage(runs: Runs, ours: str, rival: str) -> Interval:
    """Best x of ours less best x of the rival, paired by game."""
    return paired_difference(*(runs(method=name)["best"] for name in (ours, rival)))


def seconds(runs: Runs) -> float:
    """CPU seconds of a run, the median."""
    return float(np.median([at[-1] for at in runs["cpu_seconds"]]))


def within(runs: Runs, mark: float) -> list[float]:
    """The best return of each run within so many CPU seconds."""
    return [best_by(r, r["cpu_seconds"], mark) for r in runs]


def reaching(runs: Runs, name: str) -> tuple[list[float], int]:
    """CPU seconds until a method comes near the hypergradient's end, of the games on which it does, and how many there are."""
    pairs = zip(runs(method=name), runs(method="hypergradient")["best"], strict=True)
    met = [first_above(r, r["cpu_seconds"], SHARE * best) for r, best in pairs]
    return [at for at in met if at is not None], len(met)


def first_above(run: Data, spent: list[Any], goal: float) -> float | None:
    """What was spent when the goal was first met."""
    met = (at for value, at in zip(run["leader_return"], spent, strict=True) if value >= goal)
    return next(met, None)


def curves(runs: list[Data], spent: list[list[Any]], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Best so far at common marks, ``[runs, points]``."""
    return np.array([[best_by(r, at, mark) for mark in grid] for r, at in zip(runs, spent, strict=True)])


def picture(data: Data, path: Path) -> None:
    """Best F_0 so far against CPU seconds and against followers solved."""
    figure, axes = new_figure(1, 2, 12.0, 4.8)
    for name, method in METHODS.items():
        runs = list(Runs(data["runs"])(method=name))
        both = ([r["cpu_seconds"] for r in runs], [solved(r) for r in runs])
        for panel, spent in zip(axes[0], both, strict=True):
            last = min(at[-1] for at in spent)
            if last > 0:
                grid = np.geomspace(max(at[1] for at in spent), last, 80) * (1.0 + 1e-9)
                draw_band(panel, grid, curves(runs, spent, grid), method.colour, method.label)
    for panel, label in zip(axes[0], ("CPU seconds, one thread", "followers solved"), strict=True):
        panel.set_xscale("log")
        panel.set_xlabel(label)
    axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="lower right")
    axes[0, 0].set_ylabel("leader's return at the best response, best so far")
    save_figure(figure, path)
