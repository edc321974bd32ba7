"""Goal placement: the single-loop method with attenuating entropy, fixed tau, and three more methods, a million transitions each.

Ten grids (seeds 0 to 9 of the ground, the goals and the play), 10 x 10, gamma 0.9. A method's x is scored by the leader's
objective at the follower's *unregularised* best response, ``F_0(x) = f(x, pi*_tau0(x))`` with tau0 = 0.002, less the least
that any follower can score, which is known exactly (``GoalPlacementProblem.optimum``): the distance to the optimum of the
unregularised problem. Every transition of every follower counts. On one grid all methods draw the same random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bilevel_gym.agents import (
    FiniteDifferences,
    FiniteDifferencesConfig,
    NestedLoopConfig,
    PartialSGD,
    SingleLoop,
    SingleLoopConfig,
    leader_return_at_best_response,
)
from bilevel_gym.agents.leaders.single_loop import Block, Followers, Rates, World, single_loop
from bilevel_gym.agents.schedules import as_schedule
from bilevel_gym.envs.goal_placement import GoalPlacementProblem
from bilevel_gym.envs.mdp import solve_soft, suboptimality

from .common import (
    Data,
    Standing,
    draw_band,
    map_tasks,
    markdown_table,
    mean_interval,
    new_figure,
    paired_difference,
    save_figure,
    verdict,
)

SEEDS = tuple(range(10))
TUNING_SEEDS = (100, 101, 102)
TRANSITIONS = 1_000_000
TAU0S = (0.002, 0.01)
BLOCK = 50
CHECKPOINTS = 25


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        label: its name in tables and pictures.
        leader: its class.
        config: its settings.
        colour: in the picture.
        style: of its line.
    """

    label: str
    leader: type[SingleLoop]
    config: SingleLoopConfig
    colour: str
    style: str = "-"


TUNED = SingleLoopConfig(block=BLOCK)
"""The defaults of ``SingleLoopConfig``: the best of the search for the attenuating method."""


def fixed(tau: float, colour: str) -> Method:
    """The tuned settings with tau held."""
    return Method(f"fixed tau {tau:g}, the same constants", SingleLoop, replace(TUNED, tau=tau), colour, "--")


METHODS: Mapping[str, Method] = {
    "attenuating": Method("attenuating tau", SingleLoop, TUNED, "#1f77b4"),
    "fixed_tuned": Method("fixed tau, tuned", SingleLoop, replace(TUNED, tau=0.05), "#d62728"),
    "fixed_0.3": fixed(0.3, "#f7b6a6"),
    "fixed_0.1": fixed(0.1, "#ef8a62"),
    "fixed_0.03": fixed(0.03, "#b2544a"),
    "nested_loop": Method("nested loop", SingleLoop, NestedLoopConfig(), "#2ca02c"),
    "finite_differences": Method("finite differences", FiniteDifferences, FiniteDifferencesConfig(), "#9467bd"),
    "partial_sgd": Method("partial SGD", PartialSGD, replace(TUNED, block=1000), "#7f7f7f"),
}
REFERENCE = "attenuating"


# --- running ----------------------------------------------------------------------------------------------------------


def side_by_side(problem: GoalPlacementProblem, configs: list[SingleLoopConfig], seed: int, transitions: int) -> Any:
    """Runs of the single loop that differ in their settings, in one batch and on the same random numbers.

    Returns:
        x at the checkpoints, ``[points, n, dim]``, and the last followers.
    """
    n, K = len(configs), configs[0].block
    schedules = [
        [as_schedule(getattr(c, name), name, positive=False) for c in configs]  # type: ignore[arg-type]
        for name in ("alpha", "beta", "occupancy_rate", "w", "tau", "learning_rate")
    ]
    world, generator = World.of(problem), torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Any:
        drawn = torch.rand(*shape, 1, dtype=torch.float64, generator=generator).numpy()
        return np.broadcast_to(drawn, (*shape, n))

    followers, x, xs = Followers.new(world, 2, uniform()), problem.start_x().expand(n, -1).clone(), []
    blocks = transitions // (2 * K)
    for k in range(blocks):
        *rates, zeta = (np.array([schedule(1.0 - k / blocks) for schedule in row]) for row in schedules)
        block = Block(problem, world, followers, x, Rates(*rates), uniform(K, 3), configs[0].burn_in)
        followers, gradient = single_loop(block)
        x = problem.project(x - torch.from_numpy(zeta * K).unsqueeze(-1) * gradient)
        if (k + 1) * CHECKPOINTS // blocks > k * CHECKPOINTS // blocks:
            xs.append(x)
    return torch.stack(xs), followers


def distance(problem: GoalPlacementProblem, x: torch.Tensor, tau0: float) -> float:
    """F_0(x) less the least that any follower can score; at least 0."""
    return problem.optimum(0.0).leader_return - leader_return_at_best_response(problem, x, tau0)


def record(problem: GoalPlacementProblem, xs: torch.Tensor, policy: Any, tau: float) -> Data:
    """What is reported of one run, from x at the checkpoints ``[points, dim]`` and its first follower's policy at the end."""
    mdp = problem.follower_mdp(xs[-1])
    gap = float(suboptimality(mdp, torch.from_numpy(policy), tau, solve_soft(mdp, tau)))
    curve = [round(distance(problem, x, TAU0S[0]), 5) for x in xs]
    return {"curve": curve, "last": {str(tau0): distance(problem, xs[-1], tau0) for tau0 in TAU0S}, "gap": gap}


def run_seed(seed: int, transitions: int) -> Data:
    """Every method on one grid."""
    problem = GoalPlacementProblem(seed=seed)
    together = [
        name for name, method in METHODS.items() if method.leader is SingleLoop and method.config.block == BLOCK
    ]
    start = time.process_time()
    xs, followers = side_by_side(problem, [METHODS[name].config for name in together], seed, transitions)
    seconds = {name: (time.process_time() - start) / len(together) for name in together}
    runs = {}
    for i, name in enumerate(together):
        tau = as_schedule(METHODS[name].config.tau, "tau", positive=False)(0.0)  # type: ignore[arg-type]
        runs[name] = record(problem, xs[:, i], followers.policies[0, i], tau)
    for name, method in METHODS.items():
        if name in together:
            continue
        start, seen = time.process_time(), []
        blocks = transitions // (method.leader._n_followers * method.config.block)
        every = max(1, blocks // CHECKPOINTS)
        leader = method.leader(problem, replace(method.config, eval_every=blocks), seed=seed)
        leader.learn(transitions, lambda own: seen.append(own.last_x) if own.iteration % every == 0 else None)
        seconds[name] = time.process_time() - start
        xs = torch.from_numpy(np.stack(seen[:CHECKPOINTS]))
        runs[name] = record(problem, xs, leader.followers.policies[0, 0], leader.tau)
    return {
        "seed": seed,
        "start": distance(problem, problem.start_x(), TAU0S[0]),
        "optimum": -problem.optimum(0.0).leader_return,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "runs": runs,
    }


def run(quick: bool, jobs: int) -> Data:
    """Every method on every grid."""
    seeds, transitions = (SEEDS[:2], 100_000) if quick else (SEEDS, TRANSITIONS)
    grids = map_tasks(run_seed, [(seed, transitions) for seed in seeds], jobs, "grids")
    return {"seeds": list(seeds), "transitions": transitions, "grids": grids}


# --- reading ----------------------------------------------------------------------------------------------------------


def last(data: Data, name: str, tau0: float = TAU0S[0]) -> list[float]:
    """The last distances of a method, by grid."""
    return [float(grid["runs"][name]["last"][str(tau0)]) for grid in data["grids"]]


def claims(data: Data) -> str:
    """The attenuating method against each fixed tau."""
    own, rows = last(data, REFERENCE), []
    for name, method in METHODS.items():
        if name.startswith("fixed"):
            other = last(data, name)
            difference = paired_difference(other, own)
            wins = sum(a < b for a, b in zip(own, other, strict=True))
            met = difference.estimate > 0.0 and (difference.low is None or difference.low > 0.0)
            text = f"{difference.text(3)}, on {wins} of {len(own)} grids"
            rows.append([f"{method.label}: how much farther from the optimum it ends", "above 0", text, verdict(met)])
    return markdown_table(["claim, paired by grid", "target", "measured", ""], rows)


def methods_table(data: Data) -> str:
    """Where every method ends."""
    headers = ["method", "distance to the optimum", "the same, tau0 = 0.01", "less that of attenuating tau", "follower's gap",
               "CPU s a grid"]  # fmt: skip
    start = mean_interval([grid["start"] for grid in data["grids"]])
    rows = [["no reward placed", start.text(3), "", "", "", ""]]
    for name, method in METHODS.items():
        gap = float(np.mean([grid["runs"][name]["gap"] for grid in data["grids"]]))
        seconds = float(np.mean([grid["seconds"][name] for grid in data["grids"]]))
        more = "" if name == REFERENCE else paired_difference(last(data, name), last(data, REFERENCE)).text(3)
        ends = [mean_interval(last(data, name, tau0)).text(3) for tau0 in TAU0S]
        rows.append([method.label, *ends, more, f"{gap:.3f}", f"{seconds:.1f}"])
    return markdown_table(headers, rows)


def table(data: Data) -> str:
    """The page's tables."""
    least = mean_interval([grid["optimum"] for grid in data["grids"]])
    optimum = (
        f"f at the optimum, which the distances are from: {least.text(3)}; 1 is a follower that wanders at random."
    )
    return "\n\n".join([claims(data), "## Where every method ends", methods_table(data), optimum, NOTES])


def standing(data: Data) -> list[Standing]:
    """The claim, and what the publication says in words."""
    own, tuned = last(data, REFERENCE), last(data, "fixed_tuned")
    difference = paired_difference(tuned, own)
    quantity = "distance to the unregularised optimum after 10^6 transitions: fixed tau, tuned, less attenuating tau"
    met = difference.low is not None and difference.low > 0.0
    return [Standing(quantity, "target: above 0, paired over 10 seeds", difference.text(3), verdict(met))]


def picture(data: Data, path: Path) -> None:
    """Distance to the optimum over transitions."""
    figure, axes = new_figure(1, 2, 11.0, 4.2)
    points = np.linspace(0.0, data["transitions"], CHECKPOINTS + 1)
    rivals = [name for name in METHODS if not name.startswith("fixed")]
    for panel, names in zip(axes[0], ([n for n in METHODS if n == REFERENCE or n not in rivals], rivals), strict=True):
        for name in names:
            method = METHODS[name]
            curves = [[grid["start"], *grid["runs"][name]["curve"]] for grid in data["grids"]]
            draw_band(panel, points, curves, method.colour, method.label, method.style)
        panel.set_yscale("log")
        panel.set_xlabel("transitions")
        panel.legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylabel(r"$F_0(x)$ less the least attainable")
    save_figure(figure, path)
