"""What a gradient is worth: black-box search and other gradient methods against ours, on the same games.

Ten random Stackelberg games of 20 states (seeds 5 to 14; x has 100 coordinates); every method knows the model. CMA-ES and the
zero-order leader use only the leader's return, for which the follower is solved exactly; the meta-gradient looks a few
steps of the follower ahead; HPGD solves the follower and estimates the gradient from its trajectories; SoBiRL tracks the
follower and the adjoint. Ours are the exact hypergradient and PBRL.

The settings of every method, ours included, are searched in the same way: a grid of nine, with three values each of the two
most important settings, on games 0 and 1. The setting whose best x has the best mean return is run. Every method has 300
iterations, but CMA-ES and the zero-order leader, whose iterations use only values, have 600. For learned followers see
``nested_search``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
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
    ValuePenalty,
    ZeroOrder,
)
from bilevel_gym.agents.baselines.cma_es import TabularCMAESConfig
from bilevel_gym.agents.baselines.meta_gradient import MetaGradientConfig
from bilevel_gym.agents.baselines.zero_order import ZeroOrderConfig
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.agents.schedules import Quench
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.mdp import random_stackelberg

from .figures import draw_band, panels
from .runs import Data, Runs, grid, history, outcome, run_all
from .statistics import paired_difference

SEEDS = tuple(range(5, 15))
SEARCHED = (0, 1)
"""Games on which settings are chosen."""
SIZE = 20
ITERATIONS = 300
MARKS = (0.1, 0.3, 1.0, 3.0)
"""CPU seconds at which returns are compared."""
SHARE = 0.95


@dataclass(frozen=True)
class Method:
    """A method: a row of the table.

    Attributes:
        label: name in tables.
        colour: colour in the picture.
        make: builds the leader, from the problem, a setting of the grid, and the number of iterations between evaluations.
        axes: names of the two settings that are searched, with three values each.
        solves: number of followers solved per iteration, given the setting; None if the method solves none.
        iterations: number of iterations.
        every: iterations between evaluations.
    """

    label: str
    colour: str
    make: Callable[..., ExactLeader]
    axes: dict[str, tuple[Any, Any, Any]]
    solves: Callable[[Data], int] | None
    iterations: int = ITERATIONS
    every: int = 5

    def grid(self) -> list[Data]:
        """All nine settings."""
        return grid(**self.axes)


def annealed(start: float) -> dict[str, Any]:
    """The options of a temperature that falls to 0.003, and of keeping the best x."""
    return {"tau": Geometric(start, 0.003), "keep_best": True}


def hypergradient(problem: Any, every: int, rate: float, hot: float) -> ExactLeader:
    """The hypergradient with a high temperature for a sixth of the iterations, then a low one (the library's default)."""
    config = HypergradientConfig(tau=Quench(hot, 0.003), learning_rate=rate, eval_every=every)
    return Hypergradient(problem, config=config)


def pbrl(problem: Any, every: int, rate: float, lam: float) -> ExactLeader:
    """PBRL with a lam that rises tenfold, as in the library's default."""
    config = TabularPBRLConfig(tau=Geometric(0.2, 0.003), learning_rate=rate, eval_every=every)
    return TabularPBRL(problem, penalty=ValuePenalty(lam=Geometric(lam / 10.0, lam)), config=config)


def sobirl(problem: Any, every: int, rate: float, hot: float) -> ExactLeader:
    """SoBiRL with ten sweeps per iteration."""
    return SoBiRL(problem, config=SoBiRLConfig(**annealed(hot), learning_rate=rate, eval_every=every))


def hpgd(problem: Any, every: int, rate: float, episodes: int) -> ExactLeader:
    """HPGD with SGD steps clipped at norm 1, as published."""
    config = HPGDConfig(**annealed(0.3), learning_rate=rate, episodes=episodes, eval_every=every)
    return HPGD(problem, config=config)


def meta(problem: Any, every: int, inner_steps: int, inner_rate: float) -> ExactLeader:
    """The meta-gradient with Adam steps of x that fall from 0.1 to 0.01."""
    chosen: dict[str, Any] = {
        "inner_steps": inner_steps,
        "inner_rate": inner_rate,
        "learning_rate": Geometric(0.1, 0.01),
    }
    return MetaGradient(problem, config=MetaGradientConfig(**annealed(0.3), **chosen, eval_every=every))


def cma_es(problem: Any, every: int, sigma: float, population: int) -> ExactLeader:
    """CMA-ES from x = 0, with followers at temperature 0.002."""
    config = TabularCMAESConfig(tau=0.002, sigma=sigma, population=population, eval_every=every)
    return TabularCMAES(problem, config=config)


def zero_order(problem: Any, every: int, rate: float, smoothing: float) -> ExactLeader:
    """The zero-order leader with eight directions per iteration."""
    chosen: dict[str, Any] = {"learning_rate": rate, "smoothing": smoothing, "directions": 8}
    return ZeroOrder(problem, config=ZeroOrderConfig(**annealed(0.3), **chosen, eval_every=every))


RATES = (0.03, 0.1, 0.3)
METHODS = {
    "hypergradient": Method(
        "hypergradient (ours)", "tab:green", hypergradient, {"rate": RATES, "hot": (0.03, 0.07, 0.2)}, lambda _: 1
    ),
    "pbrl": Method("PBRL (ours)", "tab:blue", pbrl, {"rate": RATES, "lam": (10.0, 20.0, 40.0)}, lambda _: 2),
    "sobirl": Method("SoBiRL", "tab:cyan", sobirl, {"rate": RATES, "hot": (0.1, 0.3, 1.0)}, None),
    "hpgd": Method("HPGD", "tab:purple", hpgd, {"rate": (0.5, 1.5, 5.0), "episodes": (4, 16, 64)}, lambda _: 1),
    "meta": Method(
        "meta-gradient", "tab:olive", meta, {"inner_steps": (1, 3, 10), "inner_rate": (3.0, 10.0, 30.0)}, None
    ),
    "cma_es": Method(
        "CMA-ES",
        "tab:red",
        cma_es,
        {"sigma": (0.03, 0.1, 0.3), "population": (17, 34, 68)},
        lambda setting: int(setting.get("population", 17)),
        2 * ITERATIONS,
    ),
    "zero_order": Method(
        "zero-order",
        "tab:orange",
        zero_order,
        {"rate": RATES, "smoothing": (0.03, 0.1, 0.3)},
        lambda _: 16,
        2 * ITERATIONS,
    ),
}
OURS = ("hypergradient", "pbrl")
RIVALS = tuple(name for name in METHODS if name not in OURS)


def run_one(method: str, setting: int, seed: int, quick: bool) -> Data:
    """Run one method with one of its settings on one game."""
    row = METHODS[method]
    chosen = row.grid()[setting]
    leader = row.make(random_stackelberg(SIZE, seed=seed, reward_unit=1.0), row.every, **chosen)
    seconds, start = [0.0], time.process_time()

    def note(_: Any) -> None:
        if leader.iteration % row.every == 0:
            seconds.append(time.process_time() - start)

    leader.learn(2 * row.every if quick else row.iterations, note)
    curves = {"cpu_seconds": [round(at, 4) for at in seconds], "iteration": [e.iteration for e in leader.history]}
    return outcome(leader) | {"chosen": chosen} | curves | history(leader, "leader_return", digits=5)


def best_setting(searched: Runs, method: str) -> int:
    """The setting with the best mean return of its best x over the games of the search."""
    tried: list[int] = sorted(set(searched(method=method)["setting"]))
    return max(tried, key=lambda number: float(np.mean(searched(method=method, setting=number)["best"])))


def run(quick: bool, jobs: int) -> Data:
    """Run the search, then every method with its best setting on every game."""
    seeds, settings = (SEEDS[:2], range(0, 9, 4)) if quick else (SEEDS, range(9))
    cells = grid(method=METHODS, setting=settings, seed=SEARCHED)
    searched = run_all(run_one, cells, jobs, "search", quick=quick)
    table = Runs(searched)
    cells = [cell for name in METHODS for cell in grid(method=[name], setting=[best_setting(table, name)], seed=seeds)]
    runs = run_all(run_one, cells, jobs, "runs", quick=quick)
    kept = [{key: r[key] for key in ("method", "setting", "seed", "chosen", "best")} for r in searched]
    return {"seeds": list(seeds), "searched": kept, "runs": runs}


# --- reading ----------------------------------------------------------------------------------------------------------


def solved(run: Data) -> list[int]:
    """Cumulative number of followers that a run had solved at each evaluation, which itself is not counted."""
    solves = METHODS[run["method"]].solves
    return [(0 if solves is None else solves(run.get("chosen", {}))) * k for k in run["iteration"]]


def best_by(run: Data, spent: list[Any], mark: float) -> float:
    """The best return at the best response for at most this cost."""
    return float(max(value for value, at in zip(run["leader_return"], spent, strict=True) if at <= mark))


def advantage(runs: Runs, ours: str, rival: str) -> Interval:
    """The difference between the best x of our method and of another, paired by game."""
    return paired_difference(*(runs(method=name)["best"] for name in (ours, rival)))


def seconds(runs: Runs) -> float:
    """Median CPU seconds of a run, with evaluations."""
    return float(np.median([at[-1] for at in runs["cpu_seconds"]]))


def within(runs: Runs, mark: float) -> list[float]:
    """The best return of each run within this many CPU seconds."""
    return [best_by(r, r["cpu_seconds"], mark) for r in runs]


def reaching(runs: Runs, name: str) -> tuple[list[float], int]:
    """CPU seconds until a method comes close to the hypergradient's final return, and on how many games it does."""
    games = list(zip(runs(method=name), runs(method="hypergradient")["best"], strict=True))
    found = []
    for r, best in games:
        points = zip(r["leader_return"], r["cpu_seconds"], strict=True)
        found += [at for value, at in points if value >= SHARE * best][:1]
    return found, len(games)


def setting(runs: Runs, name: str) -> str:
    """The chosen setting as text."""
    if "chosen" not in runs.frame:
        return "not searched"
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in runs(method=name).one["chosen"].items())


@panels(1, 2, 12.0, 4.8)
def picture(data: Data, by_seconds: Any, by_solved: Any) -> None:
    """Draw the best F_0 so far against CPU seconds and against followers solved."""
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
