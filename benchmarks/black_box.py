"""What a gradient is worth: black-box search and rival gradients against ours, on the same games.

Ten random Stackelberg games of 20 states (seeds 5 to 14; x has 100 coordinates), the model known to every method. CMA-ES and the
zero-order leader see the leader's return alone, and a follower solved exactly for every value; the meta-gradient looks one
step of the follower ahead; HPGD solves the follower and estimates the gradient from its trajectories; SoBiRL tracks the
follower and the adjoint. Ours are the exact hypergradient and PBRL, as they come. Black-box search, HPGD and the meta-gradient
are given several times our CPU time. Where followers are learned, see ``nested_search``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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

from .figures import draw_band, panels
from .runs import Data, Runs, grid, history, outcome, run_all
from .statistics import paired_difference

SEEDS = tuple(range(5, 15))  # settings of the rivals were chosen on games 0 and 1
SIZE = 20
ANNEALED: dict[str, Any] = {"tau": Geometric(0.3, 0.003), "keep_best": True}
"""Settings of the rivals that can anneal their temperature."""
MARKS = (0.1, 0.3, 1.0, 3.0)
"""CPU seconds at which returns are compared."""
SHARE = 0.95


@dataclass(frozen=True)
class Method:
    """A row of the table: the leader, its iterations, the followers it solves in each (None: none), how often it is judged."""

    label: str
    colour: str
    leader: type[ExactLeader]
    config: Any
    iterations: int
    solves: int | None
    every: int = 5


METHODS = {
    "hypergradient": Method("hypergradient (ours)", "tab:green", Hypergradient, HypergradientConfig(), 300, 1),
    "pbrl": Method("PBRL (ours)", "tab:blue", TabularPBRL, TabularPBRLConfig(), 300, 2),
    "sobirl": Method("SoBiRL", "tab:cyan", SoBiRL, SoBiRLConfig(), 300, None),
    "hpgd": Method("HPGD", "tab:purple", HPGD, HPGDConfig(**ANNEALED), 400, 1),
    "meta": Method("meta-gradient", "tab:olive", MetaGradient, MetaGradientConfig(**ANNEALED), 3000, None, 20),
    "cma_es": Method("CMA-ES", "tab:red", TabularCMAES, TabularCMAESConfig(), 600, 17),
    "zero_order": Method("zero-order", "tab:orange", ZeroOrder, ZeroOrderConfig(**ANNEALED), 600, 16),
}
OURS = ("hypergradient", "pbrl")
RIVALS = tuple(name for name in METHODS if name not in OURS)


def run_one(method: str, seed: int, quick: bool) -> Data:
    """One method on one game."""
    row = METHODS[method]
    leader = row.leader(random_stackelberg(SIZE, seed=seed), config=replace(row.config, eval_every=row.every))
    seconds, start = [0.0], time.process_time()

    def note(_: Any) -> None:
        if leader.iteration % row.every == 0:
            seconds.append(time.process_time() - start)

    leader.learn(2 * row.every if quick else row.iterations, note)
    if isinstance(leader, TabularCMAES):
        assert len(leader.search.ask()) == row.solves
    curves = {"cpu_seconds": [round(at, 4) for at in seconds], "iteration": [e.iteration for e in leader.history]}
    return outcome(leader) | curves | history(leader, "leader_return", digits=5)


def run(quick: bool, jobs: int) -> Data:
    """Every method on every game."""
    seeds = SEEDS[:2] if quick else SEEDS
    return {"seeds": list(seeds), "runs": run_all(run_one, grid(method=METHODS, seed=seeds), jobs, "runs", quick=quick)}


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
    games = list(zip(runs(method=name), runs(method="hypergradient")["best"], strict=True))
    found = []
    for r, best in games:
        points = zip(r["leader_return"], r["cpu_seconds"], strict=True)
        found += [at for value, at in points if value >= SHARE * best][:1]
    return found, len(games)


@panels(1, 2, 12.0, 4.8)
def picture(data: Data, by_seconds: Any, by_solved: Any) -> None:
    """Best F_0 so far against CPU seconds and against followers solved."""
    for name, method in METHODS.items():
        runs = list(Runs(data["runs"])(method=name))
        both = ((by_seconds, [r["cpu_seconds"] for r in runs]), (by_solved, [solved(r) for r in runs]))
        for panel, spent in both:
            last = min(at[-1] for at in spent)
            if last > 0:
                marks = np.geomspace(max(at[1] for at in spent), last, 80) * (1.0 + 1e-9)
                curves = [[best_by(r, at, mark) for mark in marks] for r, at in zip(runs, spent, strict=True)]
                draw_band(panel, marks, curves, method.colour, method.label)
    by_seconds.set(xscale="log", xlabel="CPU seconds, one thread")
    by_seconds.set_ylabel("leader's return at the best response, best so far")
    by_solved.set(xscale="log", xlabel="followers solved")
    by_solved.legend(*by_seconds.get_legend_handles_labels(), fontsize=8, frameon=False, loc="lower right")
