"""Tolls in ten cities.

The external cost without tolls, under the best toll that is the same on all links, and under a toll for each link. Ten random
cities (seeds 0 to 9; 25 nodes, a ring road, residential streets inside) with all trips between their nodes. Drivers choose
routes by a recursive logit model of temperature tau0, in minutes; there is no congestion. The leader sets tolls in [0, 5]
minutes. Its reward is a weight times the tolls, minus the external cost of every link used, discounted by 0.999 per link.
Everything is exact, at the drivers' regularised best response; the costs per trip are undiscounted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.agents import (
    Geometric,
    Hypergradient,
    HypergradientConfig,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.mdp import TollDesignProblem, random_city, solve_soft
from bilevel_gym.envs.toll_design import draw_before_and_after

from .figures import panels
from .runs import Data, Runs, grid, run_all
from .statistics import paired_ratio

SEEDS = tuple(range(10))
SETTINGS = ((0.5, 0.0), (0.5, 0.1), (0.1, 0.0))
"""tau0 (minutes) and weight of the revenue."""

ITERATIONS = 300
UNIFORM_STEP = 0.01
"""Step of the search for the best uniform toll, minutes."""

HOT_TAU = 1.0
RANDOM_STARTS = 4
SHOWN = 0
"""The city in the picture."""


Tolls = Callable[[TollDesignProblem, bool], Tensor]
"""A method: it finds tolls for a city, in fewer iterations for a quick run."""


def uniform(problem: TollDesignProblem, quick: bool) -> Tensor:
    """The best of the tolls 0, 0.01, ..., 5, with the same toll on every link."""
    best, V = (-np.inf, 0.0), None
    for toll in np.linspace(0.0, problem.max_toll, 1 + round(problem.max_toll / (10 if quick else 1) / UNIFORM_STEP)):
        x = torch.full((problem.leader_dim,), float(toll), dtype=torch.float64)
        answer = solve_soft(problem.follower_mdp(x), problem.tau0, V)
        best, V = max(best, (float(problem.leader_return(x, answer.pi)), float(toll))), answer.V
    return torch.full((problem.leader_dim,), best[1], dtype=torch.float64)


def learned(make: Callable[[TollDesignProblem], ExactLeader]) -> Tolls:
    """The tolls that a leader learns."""
    return lambda problem, quick: torch.from_numpy(make(problem).learn(30 if quick else ITERATIONS).x)


def at_tau0(problem: TollDesignProblem, x0: Any = None) -> Hypergradient:
    """The hypergradient at the drivers' own temperature."""
    return Hypergradient(problem, config=HypergradientConfig(tau=problem.tau0), x0=x0)


def rising(problem: TollDesignProblem) -> TabularPBRL:
    """PBRL at the drivers' own temperature, with lam from 2 to 20."""
    config = TabularPBRLConfig(tau=problem.tau0, learning_rate=0.05)
    return TabularPBRL(problem, penalty=ValuePenalty(lam=Geometric(2.0, 20.0)), config=config)


def annealed(problem: TollDesignProblem) -> Hypergradient:
    """The hypergradient with a temperature that falls from 1 minute to the drivers' own."""
    return Hypergradient(problem, config=HypergradientConfig(tau=Geometric(HOT_TAU, problem.tau0)))


def many_starts(problem: TollDesignProblem, quick: bool) -> Tensor:
    """The best of four hypergradient runs from random tolls, which shows how much the start matters."""
    starts = np.random.default_rng(0).uniform(0.0, problem.max_toll, (RANDOM_STARTS, problem.leader_dim))
    runs = [at_tau0(problem, x0).learn(30 if quick else ITERATIONS) for x0 in starts]
    return torch.from_numpy(max(runs, key=lambda run: run.evaluate().leader_return).x)


@dataclass(frozen=True)
class Method:
    """A method: a row of the table.

    Attributes:
        label: name in tables.
        tolls: the tolls that the method sets.
    """

    label: str
    tolls: Tolls


METHODS = {
    "none": Method("no tolls", lambda problem, _: problem.start_x()),
    "uniform": Method("best uniform toll", uniform),
    "pigou": Method("toll = external cost", lambda problem, _: problem.project(problem.network.external_cost)),
    "pbrl": Method("PBRL (0.1's default)", learned(rising)),
    "hypergradient": Method("hypergradient (0.1's default)", learned(at_tau0)),
    "annealed": Method("hypergradient, tau from 1 minute", learned(annealed)),
    "many_starts": Method(f"hypergradient, best of {RANDOM_STARTS} random starts", many_starts),
}
LEARNERS = ("pbrl", "hypergradient")


# --- running ----------------------------------------------------------------------------------------------------------


def run_city(tau: float, weight: float, seed: int, method: str, quick: bool) -> Data:
    """Run every method in one city."""
    problem = TollDesignProblem(random_city(seed=seed), tau=tau, revenue_weight=weight).in_units(1.0)
    start = time.process_time()
    x = METHODS[method].tolls(problem, quick)
    seconds = time.process_time() - start
    pi = solve_soft(problem.follower_mdp(x), problem.tau0).pi
    trip = problem.trip(x, pi)
    unpriced = TollDesignProblem(problem.network, tau=tau).in_units(1.0)
    return {
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
    """Run every method in every city and setting."""
    seeds, settings = (SEEDS[:2], SETTINGS[:2]) if quick else (SEEDS, SETTINGS)
    cells = [c for tau, weight in settings for c in grid(tau=[tau], weight=[weight], seed=seeds, method=METHODS)]
    runs = run_all(run_city, cells, jobs, "cities", quick=quick)
    about = {"seeds": list(seeds), "settings": [list(s) for s in settings], "iterations": 30 if quick else ITERATIONS}
    return about | {"runs": runs}


# --- reading ----------------------------------------------------------------------------------------------------------


def change(runs: Runs, name: str, base: str, key: str = "external") -> Interval:
    """The change of the mean in per cent, paired by city."""
    ratio = paired_ratio(runs(method=name)[key], runs(method=base)[key])
    low, high = (None if end is None else 100.0 * (end - 1.0) for end in (ratio.low, ratio.high))
    return Interval(100.0 * (ratio.estimate - 1.0), low, high)


@panels(1, 3, 15.0, 4.6)
def picture(data: Data, before: Any, after: Any, cities: Any) -> None:
    """Draw the map of one city before and after, and the external cost in every city."""
    tau, weight = map(float, data["settings"][0])
    runs = Runs(data["runs"])(tau=tau, weight=weight)
    shown = runs(method="pbrl", seed=SHOWN).one
    problem = TollDesignProblem(random_city(seed=SHOWN), tau=tau, revenue_weight=weight).in_units(1.0)
    draw_before_and_after(before, after, problem, torch.tensor(shown["x"], dtype=torch.float64))
    colours = {
        "none": "#7f7f7f",
        "uniform": "#9467bd",
        "pigou": "#ff7f0e",
        "pbrl": "#1f77b4",
        "hypergradient": "#2ca02c",
    }
    for (name, colour), marker in zip(colours.items(), "os^Dx", strict=True):
        external = runs(method=name)["external"]
        cities.plot(data["seeds"], external, marker, color=colour, label=METHODS[name].label)
    cities.set_xticks(data["seeds"])
    cities.set_xlabel("city")
    cities.set_ylim(bottom=0.0)
    cities.set_title(f"external cost a trip, tau0 = {tau:g} min, weight {weight:g}", fontsize=9)
    cities.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
