"""Sparse grids: the soft-optimal answer to a million states, and a hypergradient through it.

Square grids, four moves of which the one meant is made with probability 0.7, gamma 0.99, tau 0.01, rho uniform; a reward of 1
in the middle cell (*goal*) or a uniform reward in every cell (*rewards*), paid every step. Solved from V = 0 until
``max |T V - V|`` is under 1e-8. Every cell of the table is a fresh process of one thread:
``python -m benchmarks.sparse_grid SIDE KIND``.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bilevel_gym.agents import Hypergradient, HypergradientConfig
from bilevel_gym.agents.leaders.hypergradient import soft_leader_return
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    GridMap,
    LeaderSet,
    SoftOptimum,
    SparseMDP,
    action_value,
    soft_maximum,
    solve_soft,
    value_iteration,
)

from .common import Data, Standing, markdown_table, new_figure, save_figure, verdict

SIDES, KINDS = (100, 316, 1000, 2000), ("goal", "rewards")
GAMMA, TAU, RESIDUAL, INTENDED = 0.99, 0.01, 1e-8, 0.7
TARGET_SIDE, TARGET_SECONDS, TARGET_GIB = 1000, 60.0, 8.0
CHECKED_SIDE = 316
"""Up to here value iteration is run to the end and the hypergradient is held to central differences."""


# --- one cell, in its own process -------------------------------------------------------------------------------------


def grid_mdp(side: int, kind: str) -> SparseMDP:
    """The follower's model."""
    n = side * side
    if kind == "goal":
        r = torch.zeros(n, 4, dtype=torch.float64)
        r[n // 2 + side // 2] = 1.0
    else:
        r = torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat(1, 4)
    P = GridMap.open(side, side).sparse_transition(INTENDED)
    return SparseMDP(P, r, torch.full((n,), 1.0 / n, dtype=torch.float64), GAMMA)


def toll_problem(base: SparseMDP) -> ArrayProblem:
    """x is a toll in each cell; it is the leader's income, less a harm done there (uniform on [0, 1])."""
    harm = torch.rand(base.n_states, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return ArrayProblem(
        base,
        LeaderSet.box(base.n_states, 0.0, 1.0),
        follower_reward=lambda x: base.r - x.unsqueeze(-1),
        leader_reward=lambda x: (x.unsqueeze(-1) - harm).expand_as(base.r),
        tau=TAU,
    )


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, its CPU and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    answer = function()
    return answer, time.process_time() - cpu, time.perf_counter() - wall


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def sweeps_to_the_end(mdp: SparseMDP, most: int | None) -> tuple[int, bool]:
    """Applications of T until ``max |T V - V|`` is under 1e-8, and whether it is (``most`` sweeps at most)."""
    V, sweeps = torch.zeros(mdp.n_states, dtype=torch.float64), 0
    while True:
        TV = value_iteration(mdp, TAU, V, 1)
        if float((TV - V).abs().max()) <= RESIDUAL:
            return sweeps, True
        V, sweeps = TV, sweeps + 1
        if sweeps == most:
            return sweeps, False


def gradient_error(problem: ArrayProblem, x: Tensor, gradient: Tensor, follower: SoftOptimum) -> float:
    """Relative error along one random direction, against central differences of fourth order."""
    way, h = torch.randn(len(x), generator=torch.Generator().manual_seed(2), dtype=torch.float64), 1e-3 * TAU
    numerical = 0.0
    with torch.no_grad():
        for shift, weight in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
            z = x + shift * h * way
            pi = solve_soft(problem.follower_mdp(z), TAU, follower.V, tol=1e-13).pi
            numerical += weight * float(problem.leader_return(z, pi)) / (12.0 * h)
    return abs(float(gradient @ way) / numerical - 1.0)


def measure(side: int, kind: str) -> Data:
    """One cell of the table."""
    torch.set_num_threads(1)
    mdp, build_cpu, _ = timed(lambda: grid_mdp(side, kind))
    tol = RESIDUAL * (1.0 - GAMMA) / (1.0 + TAU * math.log(4.0))  # times max |V|: at most 1e-8
    optimum, cpu, wall = timed(lambda: solve_soft(mdp, TAU, tol=tol))
    record: Data = {"side": side, "states": mdp.n_states, "kind": kind, "nonzeros": int(mdp.P.nnz)}
    record |= {"build_cpu": build_cpu, "cpu": cpu, "wall": wall, "peak_gib": peak_gib()}
    again = soft_maximum(mdp, action_value(mdp, optimum.V), TAU) - optimum.V
    record |= {"residual": float(again.abs().max()), "steps": optimum.iterations, "products": optimum.products}
    checked = side <= CHECKED_SIDE
    (sweeps, finished), sweep_cpu, _ = timed(lambda: sweeps_to_the_end(mdp, None if checked else 20))
    record |= {"sweeps": sweeps if finished else None, "sweep_cpu": sweep_cpu / sweeps}

    if side > TARGET_SIDE:
        return record
    problem = toll_problem(mdp)
    x = 0.1 * torch.rand(mdp.n_states, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = x.clone().requires_grad_()
    start = solve_soft(problem.follower_mdp(0.9 * x), TAU, optimum.V)

    def hypergradient() -> tuple[Tensor, SoftOptimum]:
        value, follower = soft_leader_return(problem, z, TAU, start)
        return torch.autograd.grad(value, z)[0], follower

    (gradient, follower), gradient_cpu, _ = timed(hypergradient)
    record |= {"gradient_cpu": gradient_cpu, "gradient_peak_gib": peak_gib()}
    record["gradient_error"] = gradient_error(problem, x, gradient, follower) if checked else None
    if side == CHECKED_SIDE:
        config = HypergradientConfig(learning_rate=0.02, tau=TAU, eval_every=1000, keep_best=False)
        leader = Hypergradient(problem, config)
        before = leader.evaluate().leader_return
        _, learn_cpu, _ = timed(lambda: leader.learn(20))
        record |= {"leader": [before, leader.history[-1].leader_return], "leader_cpu": learn_cpu / 20}
    return record


# --- the benchmark ------------------------------------------------------------------------------------------------


def run(quick: bool, jobs: int) -> Data:
    """Every cell in its own process, one after the other whatever ``jobs`` is: they are timed."""
    cells = [(side, kind) for side in (SIDES[:1] if quick else SIDES) for kind in KINDS]
    runs = []
    for side, kind in tqdm(cells, desc="sparse_grid"):
        command = [sys.executable, "-m", "benchmarks.sparse_grid", str(side), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr[-2000:]}")
        runs.append(json.loads(done.stdout))
    return {"runs": runs}


def met(run: Data) -> bool:
    """Whether a cell is within the target."""
    return bool(run["wall"] <= TARGET_SECONDS and run["peak_gib"] <= TARGET_GIB and run["residual"] <= RESIDUAL)


def table(data: Data) -> str:
    """The soft optimum, value iteration beside it, and hypergradients."""
    headers = [
        "grid", "states", "rewards", "wall s", "CPU s", "peak GiB", "residual", "Newton steps", "products with P_pi",
        f"target {TARGET_SECONDS:.0f} s, {TARGET_GIB:.0f} GiB",
    ]  # fmt: skip
    rows, iteration, gradients = [], [], []
    for run in data["runs"]:
        name = [f"{run['side']} x {run['side']}", f"{run['states']:,}", run["kind"]]
        numbers = [f"{run['wall']:.1f}", f"{run['cpu']:.1f}", f"{run['peak_gib']:.2f}", f"{run['residual']:.1e}"]
        word = verdict(met(run)) if run["side"] == TARGET_SIDE else ""
        rows.append([*name, *numbers, str(run["steps"]), str(run["products"]), word])
        sweeps = run["sweeps"] or known_sweeps(data, run["kind"])
        cpu = sweeps * run["sweep_cpu"]
        mark = "" if run["sweeps"] else "about "
        iteration.append([*name, f"{mark}{sweeps}", f"{mark}{cpu:.1f}", f"{mark}{cpu / run['cpu']:.0f}"])
        if "gradient_cpu" in run:
            error = "" if run["gradient_error"] is None else f"{run['gradient_error']:.1e}"
            gradients.append([*name, f"{run['gradient_cpu']:.1f}", f"{run['gradient_peak_gib']:.2f}", error])
    parts = [
        markdown_table(headers, rows),
        "## Value iteration",
        markdown_table(["grid", "states", "rewards", "sweeps to 1e-8", "CPU s", "times ours"], iteration),
        "## Hypergradient, a toll in every cell",
        markdown_table(
            ["grid", "states", "rewards", "CPU s", "peak GiB", "relative error, along a random direction"], gradients
        ),
    ]
    return "\n\n".join([*parts, notes(data)])


def known_sweeps(data: Data, kind: str) -> int:
    """Sweeps of value iteration on the largest grid on which it was run to the end."""
    return int([run["sweeps"] for run in data["runs"] if run["kind"] == kind and run["sweeps"]][-1])


def notes(data: Data) -> str:
    """What the columns are."""
    lines = [
        "Wall seconds hold whatever else ran on the machine; the solver uses one thread. Peak memory is the process's, Python"
        " and torch included; the residual is computed anew. Newton steps assemble P_pi,"
        " products are those of the Krylov solves (see `envs/mdp/sparse.py`). Value iteration is run to the end on grids of up"
        f" to {CHECKED_SIDE} x {CHECKED_SIDE}; beyond them *about* stands for the sweeps of that grid times the CPU time of a"
        " sweep here. The hypergradient's time is that of F and dF/dx together, the follower warm-started from tolls a tenth"
        " lower; its error is against central differences of fourth order.",
    ]
    for run in data["runs"]:
        if "leader" in run:
            before, after = run["leader"]
            lines.append(
                f"`Hypergradient` on {run['states']:,} states, {run['kind']}, 20 iterations of Adam 0.02 from no tolls:"
                f" leader return {before:.3f} to {after:.3f}, {run['leader_cpu']:.1f} CPU s an iteration."
            )
    return "\n\n".join(lines)


def standing(data: Data) -> list[Standing]:
    """Beside the target."""
    return [
        Standing(
            f"soft optimum of {run['states']:,} states ({run['kind']}), gamma 0.99, tau 0.01, residual 1e-8",
            f"target {TARGET_SECONDS:.0f} s and {TARGET_GIB:.0f} GiB on 2 cores",
            f"{run['wall']:.1f} s, {run['peak_gib']:.2f} GiB, one thread",
            verdict(met(run)),
        )
        for run in data["runs"]
        if run["side"] == TARGET_SIDE
    ]


def picture(data: Data, path: Path) -> None:
    """Time and memory over the number of states."""
    figure, axes = new_figure(1, 2, 10.0, 4.0)
    seconds, memory = axes[0]
    for kind, colour in zip(KINDS, ("tab:blue", "tab:orange"), strict=True):
        runs = [run for run in data["runs"] if run["kind"] == kind]
        states = [run["states"] for run in runs]
        seconds.plot(states, [run["cpu"] for run in runs], "o-", color=colour, label=f"soft optimum, {kind}")
        sweeps = [(run["sweeps"] or known_sweeps(data, kind)) * run["sweep_cpu"] for run in runs]
        seconds.plot(states, sweeps, "x:", color=colour, label=f"value iteration, {kind}")
        memory.plot(states, [run["peak_gib"] for run in runs], "o-", color=colour, label=f"soft optimum, {kind}")
        through = [run for run in runs if "gradient_cpu" in run]
        states = [run["states"] for run in through]
        label = f"hypergradient, {kind}"
        seconds.plot(states, [run["gradient_cpu"] for run in through], "^--", color=colour, label=label)
        memory.plot(states, [run["gradient_peak_gib"] for run in through], "^--", color=colour)
    for panel, limit in ((seconds, TARGET_SECONDS), (memory, TARGET_GIB)):
        panel.axhline(limit, color="0.6", linestyle=":", linewidth=1.0)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("states")
    seconds.set_ylabel("CPU seconds, one thread")
    memory.set_ylabel("peak memory, GiB")
    seconds.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2])))
