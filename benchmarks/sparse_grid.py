"""Sparse grids: the soft-optimal policy of a million states, and a hypergradient through it.

Square grids with four moves, of which the chosen one is made with probability 0.7; gamma 0.99, tau 0.01, rho uniform. The reward
is 1 in the middle cell (*goal*), or uniformly random in every cell (*rewards*), in every step. Solved from V = 0 until
``max |T V - V|`` is under 1e-8. Each cell of the table runs in its own process with one thread.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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

from .figures import panels
from .runs import Data, Runs, grid, run_all

SIDES, KINDS = (100, 316, 1000, 2000), ("goal", "rewards")
GAMMA, TAU, RESIDUAL, INTENDED = 0.99, 0.01, 1e-8, 0.7
TARGET_SIDE, TARGET_SECONDS, TARGET_GIB = 1000, 60.0, 8.0
CHECKED_SIDE = 316
"""Up to this size value iteration runs to the end, and the hypergradient is compared with central differences."""


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
    """A toll x in each cell; the leader gets the tolls, minus a harm in each cell (uniform on [0, 1])."""
    harm = torch.rand(base.n_states, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return ArrayProblem(
        base,
        LeaderSet.box(base.n_states, 0.0, 1.0),
        follower_reward=lambda x: base.r - x.unsqueeze(-1),
        leader_reward=lambda x: (x.unsqueeze(-1) - harm).expand_as(base.r),
        tau=TAU,
    )


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of a call, with its CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    answer = function()
    return answer, time.process_time() - cpu, time.perf_counter() - wall


def peak_gib() -> float:
    """Largest resident memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def sweeps_to_the_end(mdp: SparseMDP, most: int | None) -> tuple[int, bool]:
    """Applications of T until ``max |T V - V|`` is under 1e-8, at most ``most``; and whether that was reached."""
    V, sweeps = torch.zeros(mdp.n_states, dtype=torch.float64), 0
    while True:
        TV = value_iteration(mdp, TAU, V, 1)
        if float((TV - V).abs().max()) <= RESIDUAL:
            return sweeps, True
        V, sweeps = TV, sweeps + 1
        if sweeps == most:
            return sweeps, False


def gradient_error(problem: ArrayProblem, x: Tensor, gradient: Tensor, follower: SoftOptimum) -> float:
    """Relative error along one random direction, compared with central differences of fourth order."""
    way, h = torch.randn(len(x), generator=torch.Generator().manual_seed(2), dtype=torch.float64), 1e-3 * TAU
    numerical = 0.0
    with torch.no_grad():
        for shift, weight in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
            z = x + shift * h * way
            pi = solve_soft(problem.follower_mdp(z), TAU, follower.V, tol=1e-13).pi
            numerical += weight * float(problem.leader_return(z, pi)) / (12.0 * h)
    return abs(float(gradient @ way) / numerical - 1.0)


def measure(side: int, kind: str) -> Data:
    """Measure one cell of the table."""
    mdp, build_cpu, _ = timed(lambda: grid_mdp(side, kind))
    tol = RESIDUAL * (1.0 - GAMMA) / (1.0 + TAU * math.log(4.0))  # times max |V|: at most 1e-8
    optimum, cpu, wall = timed(lambda: solve_soft(mdp, TAU, tol=tol))
    record: Data = {"states": mdp.n_states, "nonzeros": int(mdp.P.nnz)}
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
        leader = Hypergradient(problem, config=config)
        before = leader.evaluate().leader_return
        _, learn_cpu, _ = timed(lambda: leader.learn(20))
        record |= {"leader": [before, leader.history[-1].leader_return], "leader_cpu": learn_cpu / 20}
    return record


# --- the benchmark ------------------------------------------------------------------------------------------------


def run(quick: bool, jobs: int) -> Data:
    """Measure every cell, one after another for any ``jobs``, because they are timed."""
    return {"runs": run_all(measure, grid(side=SIDES[:1] if quick else SIDES, kind=KINDS), 1, "sparse_grid")}


def met(run: Data) -> bool:
    """Whether a cell meets the target."""
    return bool(run["wall"] <= TARGET_SECONDS and run["peak_gib"] <= TARGET_GIB and run["residual"] <= RESIDUAL)


def sweep_seconds(data: Data, run: Data) -> tuple[int, float]:
    """Sweeps of value iteration and their CPU seconds; on larger grids, as many sweeps as on the last completed one."""
    known = [other["sweeps"] for other in data["runs"] if other["kind"] == run["kind"] and other["sweeps"]]
    sweeps = int(run["sweeps"] or known[-1])
    return sweeps, sweeps * run["sweep_cpu"]


@panels(1, 2, 10.0, 4.0)
def picture(data: Data, seconds: Any, memory: Any) -> None:
    """Draw time and memory over the number of states."""
    for kind, colour in zip(KINDS, ("tab:blue", "tab:orange"), strict=True):
        runs = Runs(data["runs"])(kind=kind)
        states = runs["states"]  # where a grid has no hypergradient, its place is empty
        seconds.plot(states, runs["cpu"], "o-", color=colour, label=f"soft optimum, {kind}")
        sweeps = [sweep_seconds(data, run)[1] for run in runs]
        seconds.plot(states, sweeps, "x:", color=colour, label=f"value iteration, {kind}")
        seconds.plot(states, runs["gradient_cpu"], "^--", color=colour, label=f"hypergradient, {kind}")
        memory.plot(states, runs["peak_gib"], "o-", color=colour)
        memory.plot(states, runs["gradient_peak_gib"], "^--", color=colour)
    for panel, limit in ((seconds, TARGET_SECONDS), (memory, TARGET_GIB)):
        panel.axhline(limit, color="0.6", linestyle=":", linewidth=1.0)
        panel.set(xscale="log", yscale="log", xlabel="states")
    seconds.set_ylabel("CPU seconds, one thread")
    memory.set_ylabel("peak memory, GiB")
    seconds.legend(fontsize=7, frameon=False)
