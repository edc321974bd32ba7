"""Four Rooms: the published table, one setting for all nine cells.

A cell is a pair of tau and beta. Every figure is the leader's exact return at the follower's best response at the cell's tau,
averaged over both goals. Published: Thoma et al. 2024, Table 1, means of ten seeds. Ours: ``Hypergradient`` with its defaults,
600 iterations, the last x; ten starts x0 ~ N(0, 1). No run is chosen from several.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
    TabularPBRLConfig,
    ValuePenalty,
)
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.agents.leaders.hypergradient import HypergradientMethod
from bilevel_gym.agents.schedules import Quench
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.four_rooms import FourRoomsProblem
from bilevel_gym.envs.mdp import solve_soft, visitation
from bilevel_gym.envs.render import draw_grid

from .figures import new_figure, save_figure
from .runs import Data, Runs, cpu_seconds, grid, outcome, run_all
from .statistics import stratified_interval

PUBLISHED = {
    "0.001,1": (0.91, 0.58, 0.59),
    "0.001,3": (0.51, 0.51, 0.50),
    "0.001,5": (0.46, 0.46, 0.46),
    "0.003,1": (0.95, 1.00, 0.91),
    "0.003,3": (0.73, 0.39, 0.40),
    "0.003,5": (0.29, 0.32, 0.32),
    "0.005,1": (1.17, 1.28, 1.15),
    "0.005,3": (1.01, 1.13, 1.02),
    "0.005,5": (0.87, 0.97, 0.79),
}
"""HPGD, AMD (exact) and zero-order, by ``tau,beta``."""
PROTOTYPE = {
    "0.001,1": (0.583, 0.925),
    "0.001,3": (0.516, 0.723),
    "0.001,5": (0.479, 0.489),
    "0.003,1": (0.515, 0.810),
    "0.003,3": (0.397, 0.592),
    "0.003,5": (0.343, 0.373),
    "0.005,1": (1.347, 1.347),
    "0.005,3": (1.217, 1.216),
    "0.005,5": (1.088, 1.088),
}
"""Exact gradient, Adam 0.05 from x = 0, 1500 iterations: with fixed tau, and with tau annealed from ten times its value."""
CELLS = tuple(PUBLISHED)
SEEDS = tuple(range(10))
ITERATIONS = 600
LONG_ITERATIONS = 1500
TARGET_CELLS, TARGET_MS = 8, 1.5
COST_ITERATIONS = 300


class KeepsItsOptimiser(HypergradientMethod):
    """The hypergradient that keeps its optimiser when tau jumps, where the default makes a new one."""

    def jumped(self, state: Any) -> None:
        pass


class OptimiserKept(Hypergradient):
    """The leader for :class:`KeepsItsOptimiser`."""

    method_class = KeepsItsOptimiser


@dataclass(frozen=True)
class Method:
    """A method: a column of the table.

    Attributes:
        label: name in tables.
        make: builds the leader from the problem and its start.
        iterations: outer iterations.
        random_start: whether x0 is random; otherwise it is 0, and there is only one run.
    """

    label: str
    make: Callable[[FourRoomsProblem, Tensor], ExactLeader]
    iterations: int = ITERATIONS
    random_start: bool = True


def fixed(problem: FourRoomsProblem, x0: Tensor) -> ExactLeader:
    """The hypergradient with fixed tau and Adam 0.05."""
    return Hypergradient(
        problem, config=HypergradientConfig(tau=problem.tau, learning_rate=0.05, eval_every=100), x0=x0
    )


def annealed(problem: FourRoomsProblem, x0: Tensor) -> ExactLeader:
    """The hypergradient with tau annealed geometrically from ten times the cell's value, and Adam 0.05."""
    tau = Geometric(10.0 * problem.tau, problem.tau)
    return Hypergradient(problem, config=HypergradientConfig(tau=tau, learning_rate=0.05, eval_every=100), x0=x0)


def quenched(problem: FourRoomsProblem, x0: Tensor) -> ExactLeader:
    """Hot for a sixth of training, then at the cell's temperature; Adam 0.1."""
    return Hypergradient(problem, config=HypergradientConfig(tau=Quench(0.07, problem.tau), learning_rate=0.1), x0=x0)


def penalised(problem: FourRoomsProblem, x0: Tensor) -> ExactLeader:
    """PBRL with the value penalty, lam = 100, and the hypergradient's temperatures and steps."""
    config = TabularPBRLConfig(tau=Quench(0.07, problem.tau), learning_rate=0.1)
    return TabularPBRL(problem, penalty=ValuePenalty(lam=100.0), config=config, x0=x0)


METHODS = {
    "quenched": Method("hypergradient (0.1's default)", quenched),
    "pbrl": Method("PBRL, value, lam 100", penalised),
    "kept": Method(
        "optimiser not made afresh", lambda problem, x0: OptimiserKept(problem, tau=Quench(0.07, problem.tau), x0=x0)
    ),
    "annealed": Method("annealed from 10 tau", annealed, LONG_ITERATIONS, random_start=False),
    "fixed": Method("tau fixed", fixed, LONG_ITERATIONS, random_start=False),
}


# --- runs -------------------------------------------------------------------------------------------------------------


def problem_of(cell: str) -> FourRoomsProblem:
    """The problem of a cell."""
    tau, beta = (float(part) for part in cell.split(","))
    return FourRoomsProblem(tau, beta).in_units(1.0)


def run_one(cell: str, method: str, seed: int, shorten: int) -> Data:
    """Run a method once in a cell."""
    problem, chosen = problem_of(cell), METHODS[method]
    x0 = torch.zeros(problem.leader_dim, dtype=torch.float64)
    if chosen.random_start:
        x0 = torch.randn(problem.leader_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leader = chosen.make(problem, x0)
    seconds = cpu_seconds(leader.learn, chosen.iterations // shorten)
    x = [round(value, 4) for value in leader.last_x.tolist()] if method == "quenched" and seed == 0 else None
    return outcome(leader) | {"cpu_seconds": round(seconds, 2), "x": x}


def cost(cell: str, iterations: int) -> Data:
    """Median CPU milliseconds per outer iteration, without evaluation."""
    stamps: list[float] = []
    problem = problem_of(cell)
    leader = Hypergradient(problem, config=HypergradientConfig(tau=Quench(0.07, problem.tau), eval_every=10**9))
    leader.learn(iterations, callback=lambda _: stamps.append(time.process_time()))
    return {"milliseconds": 1e3 * float(np.median(np.diff(stamps)))}


def run(quick: bool, jobs: int, cells: Sequence[str] = CELLS) -> Data:
    """Run every method in every cell, or in those of ``cells``."""
    seeds, shorten = (SEEDS[:2], 20) if quick else (SEEDS, 1)
    if quick and tuple(cells) == CELLS:
        cells = CELLS[::4]
    table = grid(cell=cells, method=METHODS, seed=seeds)
    table = [run for run in table if METHODS[run["method"]].random_start or run["seed"] == 0]
    runs = run_all(run_one, table, jobs, "four_rooms", shorten=shorten)
    costs = run_all(cost, grid(cell=cells), 1, "cost of an iteration", iterations=COST_ITERATIONS // shorten)
    return {"cells": list(cells), "seeds": list(seeds), "runs": runs, "costs": costs}


def over_cells(runs: Runs, cells: Sequence[str]) -> Interval:
    """The default's return at the last x, averaged over cells."""
    return stratified_interval([runs(cell=cell, method="quenched")["last"] for cell in cells])


# --- picture ----------------------------------------------------------------------------------------------------------


def picture(data: Data, path: Path) -> None:
    """Draw one map per cell: where the follower goes under the learned x, and penalties as red squares."""
    columns = min(3, len(data["cells"]))
    rows = -(-len(data["cells"]) // columns)
    figure, axes = new_figure(rows, columns, 4.1 * columns, 3.9 * rows)
    for panel in axes.flat[len(data["cells"]) :]:
        panel.set_visible(False)
    for panel, cell in zip(axes.flat, data["cells"], strict=False):
        runs = Runs(data["runs"])(cell=cell, method="quenched")
        draw_cell(panel, problem_of(cell), torch.tensor(runs(seed=0).one["x"], dtype=torch.float64))
        tau, beta = cell.split(",")
        ours = float(np.mean(runs["last"]))
        panel.set_title(f"tau {tau}, beta {beta}: {ours:.2f} (published {max(PUBLISHED[cell]):.2f})", fontsize=9)
    title = "Where the follower goes (discounted visits, both goals), and the learned penalties in red"
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def draw_cell(panel: Any, problem: FourRoomsProblem, x: Tensor) -> None:
    """Draw one map."""
    mdp = problem.follower_mdp(x)
    visits = problem.over_contexts(visitation(mdp, solve_soft(mdp, problem.tau).pi).mT)
    marks = {problem.leader_cell: "L"} | {goal: "G" for goal in problem.goals}
    panel.grid(False)
    draw_grid(panel, problem.grid, visits.clamp_max(2.0), "visits", None, marks, cmap="Blues_r", vmin=0.0, vmax=2.0)
    share = problem.penalty(x).abs().numpy() / 0.2
    rows, columns_ = problem.grid.cells.numpy().T
    shown = share > 0.002
    panel.scatter(columns_[shown], rows[shown], s=220.0 * share[shown] ** 0.5, marker="s", color="red", alpha=0.8)
