"""Goal placement: the single loop with attenuating entropy, fixed tau and three more methods, a million transitions each.

GoalPlacement-v0 with its defaults, ten grids (seeds 0 to 9 of the ground and of the blobs' places), each played six times and the
plays averaged. A method's x is scored by the leader's objective at the follower's best response at tau0, minus the least that any
follower can reach at any x and any temperature, which is known exactly (``GoalPlacementProblem.optimum``). Every transition of
every follower counts. In one play of a grid all methods use the same random numbers as far as possible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.agents import SingleLoopConfig, leader_return_at_best_response
from bilevel_gym.agents.leaders.single_loop import (
    Block,
    FiniteDifferencesConfig,
    Followers,
    NestedLoopConfig,
    Rates,
    Step,
    World,
    finite_differences,
    partial_sgd,
    single_loop,
)
from bilevel_gym.agents.schedules import Power, as_schedule
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.goal_placement import GoalPlacementProblem
from bilevel_gym.envs.mdp import solve_soft, suboptimality

from .figures import draw_band, panels
from .runs import Data, run_all
from .statistics import paired_difference, wins

SEEDS, PLAYS = tuple(range(10)), 6
TRANSITIONS, CHECKPOINTS = 1_000_000, 20
TAU0S = (0.002, 0.01)
RATES = ("alpha", "beta", "occupancy_rate", "w", "tau", "learning_rate")


@dataclass(frozen=True)
class Method:
    """A method: a row of the table.

    Attributes:
        label: name in tables and pictures.
        config: settings of the method.
        colour: colour in the picture.
        kind: "single" (also the nested loop, which has a long block), "differences" or "partial".
        share: share of the transitions that it may use.
    """

    label: str
    config: SingleLoopConfig
    colour: str
    kind: str = "single"
    share: float = 1.0


TUNED = SingleLoopConfig(
    learning_rate=Power(9.65e-5, 6.54e-6, 0.9),
    alpha=Power(0.877, 0.192, 0.5),
    tau=Power(0.289, 0.0242, 0.8),
    w=Power(5.28, 2.69, 0.15),
)
"""The defaults, which are the best settings of the search for attenuating tau."""
assert isinstance(TUNED.tau, Power)
START, END = TUNED.tau.start, TUNED.tau.end
HELD = {"start": START, "middle": (START * END) ** 0.5, "end": END}
FIXED = SingleLoopConfig(
    learning_rate=Power(5.5e-5, 5.81e-6, 0.9),
    alpha=Power(0.628, 0.279, 0.5),
    beta=Power(0.333, 0.0682, 0.5),
    w=Power(4.16, 3.51, 0.15),
    occupancy_rate=Power(0.00783, 0.00081, 0.5),
    tau=0.0265,
)
"""The best settings of the search for fixed tau."""
NESTED = NestedLoopConfig(
    learning_rate=Power(1.34e-4, 4.92e-6, 0.9),
    alpha=Power(0.41, 0.192, 0.5),
    beta=Power(0.279, 0.0561, 0.5),
    w=Power(5.53, 4.43, 0.15),
    occupancy_rate=Power(0.0211, 0.00113, 0.5),
    tau=Power(0.517, 0.0197, 0.5),
)
DIFFERENCES = FiniteDifferencesConfig(
    learning_rate=Power(9.2e-6, 1.18e-7, 0.9),
    alpha=Power(0.391, 0.146, 0.5),
    beta=Power(0.312, 0.0332, 0.5),
    occupancy_rate=Power(0.0129, 0.00171, 0.5),
    tau=Power(0.294, 0.0261, 0.8),
    h=0.02,
)

METHODS: Mapping[str, Method] = {
    "attenuating": Method(f"attenuating tau, {START:.2g} to {END:.2g}", TUNED, "#1f77b4"),
    "fixed": Method(f"fixed tau {FIXED.tau}, tuned", FIXED, "#d62728"),
    **{
        f"held_{name}": Method(f"tau held at its {name}, {tau:.2g}", replace(TUNED, tau=tau), colour)
        for (name, tau), colour in zip(HELD.items(), ("#fdae6b", "#e6550d", "#8c2d04"), strict=True)
    },
    "nested_loop": Method("nested loop, attenuating tau", NESTED, "#2ca02c"),
    "finite_differences": Method("finite differences, attenuating tau", DIFFERENCES, "#9467bd", "differences"),
    "partial_sgd": Method("partial SGD", TUNED, "#7f7f7f", "partial", share=0.02),
}
REFERENCE = "attenuating"


# --- running ----------------------------------------------------------------------------------------------------------


class Grids(GoalPlacementProblem):
    """Many grids in one batch, which differ in their ground and in the leader's target and share their dynamics."""

    def __init__(self, grids: Sequence[GoalPlacementProblem]) -> None:
        super().__init__()
        self.ground = torch.stack([grid.ground for grid in grids])
        self.target = torch.stack([grid.target for grid in grids])
        self._scale = torch.stack([grid._kernel[0, 0] for grid in grids]) / self._kernel[0, 0]

    def discrepancy(self, m: Tensor) -> Tensor:
        """The objective f, ``[n]``, of visitations ``[n, S]``."""
        return super().discrepancy(m) * self._scale


class Draws:
    """Random numbers of plays, ``[..., plays * methods]``; all methods of a play use the same ones."""

    def __init__(self, seeds: Sequence[int], n_methods: int) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._n = n_methods

    def __call__(self, draw: Callable[..., Tensor], *shape: int) -> Tensor:
        """Draw with ``torch.rand`` or ``torch.randn``."""
        rows = [draw(shape, dtype=torch.float64, generator=generator) for generator in self._generators]
        return torch.stack(rows, -1).repeat_interleave(self._n, -1)


def side_by_side(
    grids: Sequence[GoalPlacementProblem], seeds: Sequence[int], plays: int, methods: Sequence[Method], transitions: int
) -> tuple[Tensor, Tensor]:
    """Run methods of one kind and block length, with different settings, on all plays of all grids in one batch.

    Returns:
        x at the checkpoints, ``[points, grids, plays, methods, dim]``, and the first follower's last policy,
        ``[grids, plays, methods, S, A]``.
    """
    config, kind, n = methods[0].config, methods[0].kind, len(methods)
    K, runs, shape = config.block, len(grids) * plays, (len(grids), plays, n)
    schedules = [[as_schedule(getattr(m.config, name), name, positive=False) for m in methods] for name in RATES]
    problem = Grids([grid for grid in grids for _ in range(plays * n)])
    world, draws = World.of(grids[0]), Draws([seed * plays + play for seed in seeds for play in range(plays)], n)
    n_followers = 1 if kind == "partial" else 2
    followers = Followers.new(world, n_followers, draws(torch.rand).numpy())
    x, xs = problem.start_x().expand(runs * n, -1).clone(), []
    blocks = int(methods[0].share * transitions) // (n_followers * K)
    for k in range(blocks):
        *rates, zeta = (np.tile([value(1.0 - k / blocks) for value in row], runs) for row in schedules)
        block = Block(problem, world, followers, x, Rates(*rates), draws(torch.rand, K, 3).numpy(), config.burn_in)
        step: Callable[[Block], Step] = partial_sgd if kind == "partial" else single_loop
        if isinstance(config, FiniteDifferencesConfig):
            step = partial(finite_differences, direction=draws(torch.randn, x.shape[-1]).T, h=config.h)
        followers, gradient = step(block)
        x = problem.project(x - torch.from_numpy(zeta * K).unsqueeze(-1) * gradient)
        if (k + 1) * CHECKPOINTS // blocks > k * CHECKPOINTS // blocks:
            xs.append(x)
    policies = torch.from_numpy(followers.policies[0])
    return torch.stack(xs).unflatten(1, shape), policies.unflatten(0, shape)


def distance(problem: GoalPlacementProblem, x: Tensor, tau0: float) -> float:
    """F_0(x) minus the least value that any follower can reach; at least 0."""
    return problem.optimum(0.0).leader_return - leader_return_at_best_response(problem, x, tau0)


def record(grid: GoalPlacementProblem, method: Method, xs: Tensor, policies: Tensor) -> Data:
    """The record of a method on one grid, from x ``[points, plays, dim]`` and its followers' final policies."""
    curve = [np.mean([distance(grid, x, TAU0S[0]) for x in plays]) for plays in xs]
    tau = as_schedule(method.config.tau, "tau", positive=False)(0.0)  # type: ignore[arg-type]
    mdps = [grid.follower_mdp(x) for x in xs[-1]]
    gaps = [float(suboptimality(mdp, pi, tau, solve_soft(mdp, tau))) for mdp, pi in zip(mdps, policies, strict=True)]
    last = {str(tau0): [distance(grid, x, tau0) for x in xs[-1]] for tau0 in TAU0S}
    return {"curve": [round(float(value), 5) for value in curve], "last": last, "gap": float(np.mean(gaps))}


def run_together(names: Sequence[str], seeds: Sequence[int], plays: int, transitions: int) -> Data:
    """Run methods of one kind and block length on every grid: ``methods``, and by name ``seconds`` per run and ``grids``."""
    grids, methods = (
        [GoalPlacementProblem(seed=seed).in_units(1.0) for seed in seeds],
        [METHODS[name] for name in names],
    )
    start = time.process_time()
    xs, policies = side_by_side(grids, seeds, plays, methods, transitions)
    seconds = (time.process_time() - start) / (len(seeds) * plays * len(names))
    found = {}
    for i, name in enumerate(names):
        rows = [record(grid, methods[i], xs[:, g, :, i], policies[g, :, i]) for g, grid in enumerate(grids)]
        found[name] = {"seconds": seconds, "grids": rows}
    return {"methods": found}


def run(quick: bool, jobs: int) -> Data:
    """Run every method on every grid."""
    seeds, plays, transitions = (SEEDS[:2], 2, 100_000) if quick else (SEEDS, PLAYS, TRANSITIONS)
    together: dict[tuple[str, int], list[str]] = {}
    for name, method in METHODS.items():
        together.setdefault((method.kind, method.config.block), []).append(name)
    groups = [{"names": names} for names in together.values()]
    parts = run_all(run_together, groups, jobs, "groups", seeds=seeds, plays=plays, transitions=transitions)
    grids = [GoalPlacementProblem(seed=seed).in_units(1.0) for seed in seeds]
    return {
        "seeds": list(seeds),
        "plays": plays,
        "transitions": transitions,
        "optimum": [-grid.optimum(0.0).leader_return for grid in grids],
        "start": [distance(grid, grid.start_x(), TAU0S[0]) for grid in grids],
        "methods": {name: found for part in parts for name, found in part["methods"].items()},
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def last(data: Data, name: str, tau0: float = TAU0S[0]) -> list[float]:
    """The last distances of a method, by grid."""
    return [float(np.mean(grid["last"][str(tau0)])) for grid in data["methods"][name]["grids"]]


def nearer(data: Data, name: str, tau0: float = TAU0S[0]) -> tuple[str, Interval]:
    """By how much the attenuating method ends nearer than another, as text and as an interval."""
    other, own = last(data, name, tau0), last(data, REFERENCE, tau0)
    difference = paired_difference(other, own)
    text = f"{difference.text(3)}, on {wins(other, own)} of {len(own)} grids"
    return text, difference


@panels(1, 2, 11.0, 4.2)
def picture(data: Data, *axes: Any) -> None:
    """Draw the distance to the optimum over transitions."""
    points = np.linspace(0.0, data["transitions"], CHECKPOINTS + 1)
    taus = [name for name in METHODS if name in (REFERENCE, "fixed") or name.startswith("held")]
    others = [name for name in METHODS if name not in taus or name == REFERENCE]
    for panel, names in zip(axes, (taus, others), strict=True):
        for name in names:
            grids = zip(data["start"], data["methods"][name]["grids"], strict=True)
            curves = [[start, *grid["curve"]] for start, grid in grids]
            style = "--" if name.startswith("held") else "-"
            draw_band(panel, points, curves, METHODS[name].colour, METHODS[name].label, style)
        panel.set(yscale="log", xlabel="transitions")
        panel.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel(r"$F_0(x)$ less the least attainable")
