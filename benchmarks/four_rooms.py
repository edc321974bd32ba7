"""Four Rooms: the published table, one setting for all nine cells.

A cell is a pair tau, beta. Every figure is the leader's return at the follower's best response at that cell's tau, mean over
both goals, exact. Published: Thoma et al. 2024, Table 1, means of ten seeds. Ours: ``Hypergradient`` as it comes, 600
iterations, the last x; ten starts x0 ~ N(0, 1). No run is chosen from several.
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
    Quench,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
)
from bilevel_gym.agents.common.tabular import TabularLeader
from bilevel_gym.envs.four_rooms import FourRoomsProblem
from bilevel_gym.envs.mdp import solve_soft, visitation
from bilevel_gym.envs.render import draw_grid

from .common import (
    Data,
    Standing,
    map_tasks,
    markdown_table,
    mean_interval,
    new_figure,
    save_figure,
    stratified_interval,
    verdict,
)

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
"""Exact gradient, Adam 0.05 from x = 0, 1500 iterations: at fixed tau, and annealed from ten times tau."""
CELLS = tuple(PUBLISHED)
SEEDS = tuple(range(10))
ITERATIONS = 600
LONG_ITERATIONS = 1500
TARGET_CELLS, TARGET_MS = 8, 1.5
COST_ITERATIONS = 300


class OptimiserKept(Hypergradient):
    """The hypergradient whose optimiser is not made afresh where tau jumps."""

    def _restart_optimizer(self) -> None:
        if not hasattr(self, "optimizer"):
            super()._restart_optimizer()


@dataclass(frozen=True)
class Method:
    """One column.

    Attributes:
        label: as it is printed.
        make: a leader from the problem and its start.
        iterations: outer iterations.
        random_start: whether x0 is drawn; else it is 0 and one run is all there is.
    """

    label: str
    make: Callable[[FourRoomsProblem, Tensor], TabularLeader]
    iterations: int = ITERATIONS
    random_start: bool = True


def fixed(problem: FourRoomsProblem, x0: Tensor) -> TabularLeader:
    """The prototype's setting: tau fixed, Adam 0.05."""
    return Hypergradient(problem, HypergradientConfig(tau=problem.tau, learning_rate=0.05, eval_every=100), x0=x0)


def annealed(problem: FourRoomsProblem, x0: Tensor) -> TabularLeader:
    """tau from ten times the cell's, in equal ratios, Adam 0.05."""
    tau = Geometric(10.0 * problem.tau, problem.tau)
    return Hypergradient(problem, HypergradientConfig(tau=tau, learning_rate=0.05, eval_every=100), x0=x0)


def penalised(problem: FourRoomsProblem, x0: Tensor) -> TabularLeader:
    """PBRL, value penalty, lam = 100, the temperatures and steps of the hypergradient."""
    config = TabularPBRLConfig(tau=Quench(0.07, problem.tau), learning_rate=0.1)
    return TabularPBRL(problem, ValuePenalty(lam=100.0), config=config, x0=x0)


METHODS = {
    "quenched": Method("hypergradient (default)", lambda problem, x0: Hypergradient(problem, x0=x0)),
    "pbrl": Method("PBRL, value, lam 100", penalised),
    "kept": Method("optimiser not made afresh", lambda problem, x0: OptimiserKept(problem, x0=x0)),
    "annealed": Method("annealed from 10 tau", annealed, LONG_ITERATIONS, random_start=False),
    "fixed": Method("tau fixed", fixed, LONG_ITERATIONS, random_start=False),
}


# --- runs -------------------------------------------------------------------------------------------------------------


def problem_of(cell: str) -> FourRoomsProblem:
    """The problem of a cell."""
    tau, beta = (float(part) for part in cell.split(","))
    return FourRoomsProblem(tau, beta)


def run_one(cell: str, name: str, seed: int, iterations: int) -> Data:
    """One run of a method in a cell."""
    problem, method = problem_of(cell), METHODS[name]
    x0 = torch.zeros(problem.leader_dim, dtype=torch.float64)
    if method.random_start:
        x0 = torch.randn(problem.leader_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leader = method.make(problem, x0)
    start = time.process_time()
    leader.learn(iterations)
    seconds = time.process_time() - start
    return {
        "cell": cell,
        "method": name,
        "seed": seed,
        "iterations": iterations,
        "cpu_seconds": round(seconds, 2),
        "last": leader.history[-1].leader_return,
        "best": leader.evaluate().leader_return,
        "x": [round(value, 4) for value in leader.last_x.tolist()] if name == "quenched" and seed == 0 else None,
    }


def cost(cell: str, iterations: int) -> Data:
    """Median CPU milliseconds of an outer iteration from one callback to the next, nothing evaluated between."""
    stamps: list[float] = []
    leader = Hypergradient(problem_of(cell), HypergradientConfig(eval_every=10**9))
    leader.learn(iterations, callback=lambda _: stamps.append(time.process_time()))
    return {"cell": cell, "milliseconds": 1e3 * float(np.median(np.diff(stamps)))}


def run(quick: bool, jobs: int, cells: Sequence[str] = CELLS) -> Data:
    """Every method in every cell; ``cells`` picks some."""
    seeds, shorten = (SEEDS[:2], 20) if quick else (SEEDS, 1)
    if quick and tuple(cells) == CELLS:
        cells = CELLS[::4]
    tasks = [
        (cell, name, seed, method.iterations // shorten)
        for cell in cells
        for name, method in METHODS.items()
        for seed in (seeds if method.random_start else (0,))
    ]
    runs = map_tasks(run_one, tasks, jobs, "four_rooms")
    costs = map_tasks(cost, [(cell, COST_ITERATIONS // shorten) for cell in cells], 1, "cost of an iteration")
    return {"cells": list(cells), "seeds": list(seeds), "runs": runs, "costs": costs}


def column(data: Data, cell: str, name: str, key: str = "last") -> list[float]:
    """A number of every run of a method in a cell."""
    return [r[key] for r in data["runs"] if (r["cell"], r["method"]) == (cell, name)]


# --- tables -----------------------------------------------------------------------------------------------------------

NOTES = """\
The largest figure of a line in bold. *Target*: a mean at least as high as the best of the three published figures.
Intervals: 95%, bootstrap over the ten starts. All ours are of the last x; nothing is chosen from several runs.

**What the default does.** A sixth of the iterations at tau = 0.07, then the cell's own tau at once, Adam 0.1, made afresh at
the jump. Each part counts: a slow descent in tau (*annealed*), an optimiser that keeps the hot stage's moments (*optimiser
not made afresh*) and no hot stage at all (*tau fixed*; at the two lower temperatures its penalty on the door to the right is
a fifth of the default's) all end lower. The 0.07 was chosen on these cells, from other starts, and on random Stackelberg
games.

**What was tried** for (.003, 3), with the exact gradient, from x0 ~ N(0, 1), before this was found: tau fixed .40; annealed
from 3, 10, 30 and 100 times tau .49 to .59; clipped gradient steps with one goal drawn an iteration .38, .80 the best of 48;
the same from twice tau, followed by Adam, .67. Then a hot stage at any temperature from 0.01 to 0.1: .79 to .80. Among some
3,500 such runs none passed 1.176, .945, .744, 1.017, .798, .581, 1.473, 1.353, 1.235, in the order of the table.

Cost of an outer iteration: both goals, Newton's method for the follower, one factored matrix for the leader's value and the
adjoint, the optimiser's step; evaluation excluded; the median over a run."""


def claims(data: Data) -> str:
    """The targets, and how they were met."""
    means = {cell: float(np.mean(column(data, cell, "quenched"))) for cell in data["cells"]}
    reached = sum(mean >= max(PUBLISHED[cell]) for cell, mean in means.items())
    milliseconds = max(c["milliseconds"] for c in data["costs"])
    enough = verdict(reached >= min(TARGET_CELLS, len(means)))
    rows = [
        ["cells at or above the best published", f"{TARGET_CELLS} of 9", f"{reached} of {len(means)}", enough],
        ["CPU ms, slowest cell", f"{TARGET_MS}", f"{milliseconds:.2f}", verdict(milliseconds <= TARGET_MS)],
    ]
    if "0.003,3" in means:
        mean = means["0.003,3"]
        rows.insert(1, ["the cell (.003, 3)", "as near .73 as can be", f"{mean:.3f}", verdict(mean >= 0.73)])
    return markdown_table(["what", "target", "measured", ""], rows)


def table(data: Data) -> str:
    """The page's tables."""
    rows = []
    for cell in data["cells"]:
        own = mean_interval(column(data, cell, "quenched"))
        best = max(*PUBLISHED[cell], own.estimate)
        figures = [f"**{value:.2f}**" if value == best else f"{value:.2f}" for value in PUBLISHED[cell]]
        text = own.text(3)
        met = verdict(own.estimate >= max(PUBLISHED[cell]))
        rows.append([cell, f"**{text}**" if own.estimate == best else text, *figures, met])
    headers = ["tau, beta", "hypergradient (default)", "HPGD", "AMD (exact)", "zero-order", "target"]
    others = []
    for cell in data["cells"]:
        shown = [mean_interval(column(data, cell, name)).text(3) for name in METHODS if name != "quenched"]
        others.append([cell, *shown, *(f"{value:.3f}" for value in PROTOTYPE[cell])])
    labels = [method.label for name, method in METHODS.items() if name != "quenched"]
    costs = [
        [method.label, f"{method.iterations}", f"{np.mean([r['cpu_seconds'] for r in data['runs'] if r['method'] == name]):.1f}"]
        for name, method in METHODS.items()
    ]  # fmt: skip
    overall = stratified_interval([column(data, cell, "quenched") for cell in data["cells"]])
    return "\n\n".join(
        [
            claims(data),
            "## Beside the published figures",
            markdown_table(headers, rows),
            f"Mean over cells: {overall.text(3)}.",
            "## Other settings, the last x",
            markdown_table(["tau, beta", *labels, "prototype, fixed", "prototype, annealed"], others),
            "## Cost of a run",
            markdown_table(["method", "iterations", "CPU seconds, evaluations included"], costs),
            NOTES,
        ]
    )


def standing(data: Data) -> list[Standing]:
    """Every cell beside the best published figure, and the cost beside the target."""
    lines = []
    for cell in data["cells"]:
        best = max(PUBLISHED[cell])
        own = mean_interval(column(data, cell, "quenched"))
        word = verdict(own.estimate >= best)
        lines.append(
            Standing(f"leader return, tau {cell.replace(',', ', beta ')}", f"published {best:.2f}", own.text(3), word)
        )
    milliseconds = max(c["milliseconds"] for c in data["costs"])
    quantity = "CPU ms of an outer iteration (HPGD's code 111, AMD's over 2000)"
    lines.append(Standing(quantity, f"target {TARGET_MS}", f"{milliseconds:.2f}", verdict(milliseconds <= TARGET_MS)))
    return lines


# --- picture ----------------------------------------------------------------------------------------------------------


def picture(data: Data, path: Path) -> None:
    """One map a cell: where the follower goes under the learned x, and the penalties as red squares."""
    columns = min(3, len(data["cells"]))
    rows = -(-len(data["cells"]) // columns)
    figure, axes = new_figure(rows, columns, 4.1 * columns, 3.9 * rows)
    for panel in axes.flat[len(data["cells"]) :]:
        panel.set_visible(False)
    for panel, cell in zip(axes.flat, data["cells"], strict=False):
        (x,) = [r["x"] for r in data["runs"] if r["cell"] == cell and r["x"] is not None]
        draw_cell(panel, problem_of(cell), torch.tensor(x, dtype=torch.float64))
        tau, beta = cell.split(",")
        ours = float(np.mean(column(data, cell, "quenched")))
        panel.set_title(f"tau {tau}, beta {beta}: {ours:.2f} (published {max(PUBLISHED[cell]):.2f})", fontsize=9)
    figure.suptitle(
        "Where the follower goes (discounted visits, both goals), and the learned penalties in red", fontsize=11
    )
    save_figure(figure, path)


def draw_cell(panel: Any, problem: FourRoomsProblem, x: Tensor) -> None:
    """One map."""
    mdp = problem.follower_mdp(x)
    visits = problem.over_contexts(visitation(mdp, solve_soft(mdp, problem.tau).pi).mT)
    marks = {problem.leader_cell: "L"} | {goal: "G" for goal in problem.goals}
    panel.grid(False)
    draw_grid(panel, problem.grid, visits.clamp_max(2.0), "visits", None, marks, cmap="Blues_r", vmin=0.0, vmax=2.0)
    share = problem.penalty(x).abs().numpy() / 0.2
    rows, columns_ = problem.grid.cells.numpy().T
    shown = share > 0.002
    panel.scatter(columns_[shown], rows[shown], s=220.0 * share[shown] ** 0.5, marker="s", color="red", alpha=0.8)
