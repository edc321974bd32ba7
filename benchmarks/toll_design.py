"""Tolls in ten cities.

External cost without tolls, under the best toll that is the same on all links, and under a toll for each link. Ten random
cities (seeds 0 to 9; 25 nodes, a ring road, residential streets inside) and all trips between their nodes. Drivers choose
routes by a recursive logit of temperature tau0, in minutes; there is no congestion. The leader sets tolls in [0, 5] minutes
and is paid minus the external cost of every link used plus a weight times the tolls, discounted by 0.999 a link. Everything is
exact, at the drivers' regularised best response; costs of a trip are undiscounted.
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
    Geometric,
    Hypergradient,
    HypergradientConfig,
    TabularPBRL,
    leader_return_at_best_response,
)
from bilevel_gym.envs.mdp import TollDesignProblem, random_city, solve_soft
from bilevel_gym.envs.toll_design import draw_before_and_after

from .common import (
    Data,
    Interval,
    map_tasks,
    markdown_table,
    mean_interval,
    new_figure,
    paired_ratio,
    save_figure,
    verdict,
)

SEEDS = tuple(range(10))
SETTINGS = ((0.5, 0.0), (0.5, 0.1), (0.1, 0.0))
"""tau0 (minutes) and weight of revenue."""

ITERATIONS = 300
UNIFORM_STEP = 0.01
"""Step of the search for the best uniform toll, minutes."""

HOT_TAU = 1.0
RANDOM_STARTS = 4
SHOWN = 0
"""The city in the picture."""


def no_tolls(problem: TollDesignProblem, quick: bool) -> Tensor:
    """x = 0."""
    return problem.start_x()


def uniform(problem: TollDesignProblem, quick: bool) -> Tensor:
    """The best of the tolls 0, 0.01, ..., 5, the same on every link."""
    best, V = (-np.inf, 0.0), None
    for toll in np.linspace(0.0, problem.max_toll, 1 + round(problem.max_toll / (10 if quick else 1) / UNIFORM_STEP)):
        x = torch.full((problem.leader_dim,), float(toll), dtype=torch.float64)
        answer = solve_soft(problem.follower_mdp(x), problem.tau0, V)
        best, V = max(best, (float(problem.leader_return(x, answer.pi)), float(toll))), answer.V
    return torch.full((problem.leader_dim,), best[1], dtype=torch.float64)


def pigou(problem: TollDesignProblem, quick: bool) -> Tensor:
    """Each link's toll is its external cost, as far as the bound lets it."""
    return problem.project(problem.network.external_cost)


def pbrl(problem: TollDesignProblem, quick: bool) -> Tensor:
    """The defaults of ``TabularPBRL``."""
    return torch.from_numpy(TabularPBRL(problem).learn(30 if quick else ITERATIONS).x)


def hypergradient(problem: TollDesignProblem, quick: bool) -> Tensor:
    """The defaults of ``Hypergradient``."""
    return torch.from_numpy(Hypergradient(problem).learn(30 if quick else ITERATIONS).x)


def annealed(problem: TollDesignProblem, quick: bool) -> Tensor:
    """The hypergradient with a temperature that falls from 1 minute to the drivers' own."""
    config = HypergradientConfig(tau=Geometric(HOT_TAU, problem.tau0))
    return torch.from_numpy(Hypergradient(problem, config).learn(30 if quick else ITERATIONS).x)


def many_starts(problem: TollDesignProblem, quick: bool) -> Tensor:
    """The best of four hypergradient runs from random tolls: how much the start matters."""
    rng, runs = np.random.default_rng(0), []
    for _ in range(RANDOM_STARTS):
        x0 = rng.uniform(0.0, problem.max_toll, problem.leader_dim)
        runs.append(Hypergradient(problem, x0=x0).learn(30 if quick else ITERATIONS))
    return torch.from_numpy(max(runs, key=lambda run: run.evaluate().leader_return).x)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        label: its name.
        tolls: the tolls that it sets.
    """

    label: str
    tolls: Callable[[TollDesignProblem, bool], Tensor]


METHODS = {
    "none": Method("no tolls", no_tolls),
    "uniform": Method("best uniform toll", uniform),
    "pigou": Method("toll = external cost", pigou),
    "pbrl": Method("PBRL (default)", pbrl),
    "hypergradient": Method("hypergradient (default)", hypergradient),
    "annealed": Method("hypergradient, tau from 1 minute", annealed),
    "many_starts": Method(f"hypergradient, best of {RANDOM_STARTS} random starts", many_starts),
}
LEARNERS = ("pbrl", "hypergradient")


# --- running ----------------------------------------------------------------------------------------------------------


def run_city(seed: int, tau: float, weight: float, name: str, quick: bool) -> Data:
    """One method in one city."""
    problem = TollDesignProblem(random_city(seed=seed), tau=tau, revenue_weight=weight)
    start = time.process_time()
    x = METHODS[name].tolls(problem, quick)
    seconds = time.process_time() - start
    pi = solve_soft(problem.follower_mdp(x), problem.tau0).pi
    trip = problem.trip(x, pi)
    unpriced = TollDesignProblem(problem.network, tau=tau)
    return {
        "seed": seed,
        "tau": tau,
        "weight": weight,
        "method": name,
        "nodes": problem.network.n_nodes,
        "links": problem.network.n_links,
        "leader_return": leader_return_at_best_response(problem, x),
        "external": trip.external_cost,
        "external_discounted": -float(unpriced.leader_return(x, pi)),
        "time": trip.time,
        "toll": trip.toll,
        "highest": float(x.max()),
        "cpu_seconds": round(seconds, 3),
        "x": [round(v, 6) for v in x.tolist()] if seed == SHOWN else None,
    }


def run(quick: bool, jobs: int) -> Data:
    """Every method in every city and setting."""
    seeds, settings = (SEEDS[:2], SETTINGS[:2]) if quick else (SEEDS, SETTINGS)
    tasks = [(seed, tau, weight, name, quick) for tau, weight in settings for seed in seeds for name in METHODS]
    runs = map_tasks(run_city, tasks, jobs, "cities")
    return {
        "seeds": list(seeds),
        "settings": [list(s) for s in settings],
        "iterations": 30 if quick else ITERATIONS,
        "runs": runs,
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def select(data: Data, setting: tuple[float, float], name: str) -> list[Data]:
    """Runs of one method in one setting, by seed."""
    found = [r for r in data["runs"] if (r["tau"], r["weight"], r["method"]) == (*setting, name)]
    return sorted(found, key=lambda r: int(r["seed"]))


def column(data: Data, setting: tuple[float, float], name: str, key: str) -> list[float]:
    """One figure of one method, by seed."""
    return [float(r[key]) for r in select(data, setting, name)]


def change(data: Data, setting: tuple[float, float], name: str, base: str, key: str = "external") -> Interval:
    """Ratio of means, paired by city, in per cent less 100."""
    ratio = paired_ratio(column(data, setting, name, key), column(data, setting, base, key))
    low, high = (None if end is None else 100.0 * (end - 1.0) for end in (ratio.low, ratio.high))
    return Interval(100.0 * (ratio.estimate - 1.0), low, high)


def setting_table(data: Data, setting: tuple[float, float]) -> str:
    """All methods in one setting."""
    headers = [
        "tolls", "external cost a trip", "change from no tolls, %", "change from best uniform, %", "the same discounted",
        "minutes a trip", "toll a trip, minutes", "leader's return F_0",
    ]  # fmt: skip
    rows = []
    for name, method in METHODS.items():
        against = ["-" if name == base else change(data, setting, name, base).text(1) for base in ("none", "uniform")]
        figures = [
            mean_interval(column(data, setting, name, key)).text()
            for key in ("external_discounted", "time", "toll", "leader_return")
        ]
        rows.append([method.label, mean_interval(column(data, setting, name, "external")).text(), *against, *figures])
    return markdown_table(headers, rows)


def claims(data: Data) -> str:
    """What the benchmark was to show, in its first setting."""
    setting, cities = tuple(data["settings"][0]), len(data["seeds"])
    rows = []
    for key, least in (("nodes", 20), ("links", 60)):
        smallest = min(int(r[key]) for r in data["runs"])
        rows.append([f"{key} of every city", f"{least} or more", f"{smallest} or more", verdict(smallest >= least)])
    for name in LEARNERS:
        own = column(data, setting, name, "external")
        for base in ("none", "uniform"):
            wins = sum(a < b for a, b in zip(own, column(data, setting, base, "external"), strict=True))
            label = f"external cost, {METHODS[name].label}, from {METHODS[base].label}"
            measured = f"{change(data, setting, name, base).text(1)} %, lower in {wins} of {cities}"
            rows.append([label, "lower in every city", measured, verdict(wins == cities)])
    for tau, weight in map(tuple, data["settings"][1:]):
        for name in LEARNERS:
            own, others = (column(data, (tau, weight), which, "leader_return") for which in (name, "uniform"))
            wins = sum(a > b for a, b in zip(own, others, strict=True))
            label = f"F_0, {METHODS[name].label}, from best uniform toll, tau0 {tau:g}, weight {weight:g}"
            gain = f"{np.mean(own) - np.mean(others):+.2f}, higher in {wins} of {cities}"
            rows.append([label, "higher in every city", gain, verdict(wins == cities)])
    return markdown_table(["claim", "target", "measured", ""], rows)


def costs(data: Data) -> str:
    """CPU milliseconds an iteration, evaluations included."""
    means = {}
    for name in LEARNERS:
        seconds = np.median([r["cpu_seconds"] for r in data["runs"] if r["method"] == name])
        means[METHODS[name].label] = f"{1e3 * seconds / data['iterations']:.1f} ms"
    return (
        "*Cost.* CPU time of an iteration, an evaluation every 10 included, the median over runs on one thread of a shared "
        "machine: " + ", ".join(f"{label} {cost}" for label, cost in means.items()) + "."
    )


def uniform_note(data: Data, setting: tuple[float, float]) -> str:
    """What the best uniform toll is, city by city, and what it does."""
    tolls = column(data, setting, "uniform", "highest")
    moved = change(data, setting, "uniform", "none")
    span = f"{min(tolls):.2f}" if min(tolls) == max(tolls) else f"{min(tolls):.2f} to {max(tolls):.2f}"
    return (
        f"The best uniform toll is {span} minutes a link in these cities (the bound is 5); it changes the external cost by "
        f"{moved.text(1)} %. It cannot tell streets from the ring: it prices the number of links of a route, no more."
    )


NOTES = """\
*External cost a trip*: expected, undiscounted, in the cities' unit (0.3 a km on the ring, 1 on avenues, 1 to 4 on residential
streets). *The same discounted* by 0.999 a link is what the leader minimises at weight 0. F_0: the leader's discounted return at
the drivers' best response. Means over the cities; 95% intervals by bootstrap over cities, ratios paired by city.

*Starts.* The defaults start at no tolls. The last row tells how much that matters: it is the best of four runs from tolls drawn
uniformly on [0, 5], by the leader's return.

*Units.* Times, tolls and temperatures are minutes. With tolls in [0, 5] the methods' default steps fit as they are (0.05 or 0.1
minutes an iteration). Their default temperatures are made for rewards in [0, 1]: here they are tau0 or little above it from the
start. The row *tau from 1 minute* lets it fall in equal ratios to tau0: it changes little at tau0 = 0.5 and helps at 0.1, where
routes that nobody takes give no gradient.

*What the leader does not see.* At weight 0 nothing holds tolls down but the bound, and drivers' time counts for nothing; trips
cannot be given up. A positive weight makes tolls on what cannot be avoided worth raising."""


def table(data: Data) -> str:
    """The page's tables."""
    parts = [claims(data)]
    for tau, weight in data["settings"]:
        parts += [f"## tau0 = {tau:g} minutes, weight of revenue {weight:g}", setting_table(data, (tau, weight))]
        parts.append(uniform_note(data, (tau, weight)))
    return "\n\n".join([*parts, "## Notes", NOTES, costs(data)])


def picture(data: Data, path: Path) -> None:
    """One city's map before and after, and the external cost in every city."""
    setting = (float(data["settings"][0][0]), float(data["settings"][0][1]))
    figure, axes = new_figure(1, 3, 15.0, 4.6)
    before, after, cities = axes[0]
    shown = next(r for r in select(data, setting, "pbrl") if r["seed"] == SHOWN)
    problem = TollDesignProblem(random_city(seed=SHOWN), tau=setting[0], revenue_weight=setting[1])
    draw_before_and_after(before, after, problem, torch.tensor(shown["x"], dtype=torch.float64))
    styles: dict[str, Any] = {
        "none": {"marker": "o", "color": "#7f7f7f"},
        "uniform": {"marker": "s", "color": "#9467bd"},
        "pigou": {"marker": "^", "color": "#ff7f0e"},
        "pbrl": {"marker": "D", "color": "#1f77b4"},
        "hypergradient": {"marker": "x", "color": "#2ca02c"},
    }
    for name, style in styles.items():
        cities.plot(
            data["seeds"], column(data, setting, name, "external"), linestyle="", label=METHODS[name].label, **style
        )
    cities.set_xticks(data["seeds"])
    cities.set_xlabel("city")
    cities.set_ylim(bottom=0.0)
    cities.set_title(f"external cost a trip, tau0 = {setting[0]:g} min, weight {setting[1]:g}", fontsize=9)
    cities.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    save_figure(figure, path)
