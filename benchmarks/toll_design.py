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
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.mdp import TollDesignProblem, random_city, solve_soft
from bilevel_gym.envs.toll_design import draw_before_and_after

from .figures import new_figure, save_figure
from .runs import Data, Runs, run_all
from .statistics import paired_ratio

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
    runs = run_all(run_city, tasks, jobs, "cities")
    return {
        "seeds": list(seeds),
        "settings": [list(s) for s in settings],
        "iterations": 30 if quick else ITERATIONS,
        "runs": runs,
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def change(runs: Runs, name: str, base: str, key: str = "external") -> Interval:
    """Ratio of means, paired by city, in per cent less 100."""
    ratio = paired_ratio(runs(method=name)[key], runs(method=base)[key])
    low, high = (None if end is None else 100.0 * (end - 1.0) for end in (ratio.low, ratio.high))
    return Interval(100.0 * (ratio.estimate - 1.0), low, high)


def picture(data: Data, path: Path) -> None:
    """One city's map before and after, and the external cost in every city."""
    setting = (float(data["settings"][0][0]), float(data["settings"][0][1]))
    figure, axes = new_figure(1, 3, 15.0, 4.6)
    before, after, cities = axes[0]
    runs = Runs(data["runs"])(tau=setting[0], weight=setting[1])
    shown = runs(method="pbrl", seed=SHOWN).one
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
        external = runs(method=name)["external"]
        cities.plot(data["seeds"], external, linestyle="", label=METHODS[name].label, **style)
    cities.set_xticks(data["seeds"])
    cities.set_xlabel("city")
    cities.set_ylim(bottom=0.0)
    cities.set_title(f"external cost a trip, tau0 = {setting[0]:g} min, weight {setting[1]:g}", fontsize=9)
    cities.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    save_figure(figure, path)
