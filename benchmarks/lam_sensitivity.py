"""How much the penalty's coefficient matters: the leader's return and the gap over four decades of lam.

``TabularPBRL`` at a fixed lam and a fixed temperature, exact gradients, Adam with a step that falls from 0.3 to 0.003 in 500
iterations, the last x. Value penalty (the follower solved for every x, the library's default, or a softmax moved jointly with
x) and Bellman penalty (softmax) on random Stackelberg games, Four Rooms and tolls in a small city; the Nikaido-Isoda penalty on
incentive design of three sizes. Five instances each: of Four Rooms, which is one map, five random starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import KVWriter, Logger

from bilevel_gym.agents import (
    BellmanPenalty,
    Geometric,
    NikaidoIsodaPenalty,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.held_policies import Softmax, Solved
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.four_rooms import FourRoomsProblem
from bilevel_gym.envs.mdp import GameProblem, TabularProblem, random_incentive_design, random_stackelberg
from bilevel_gym.envs.mdp.toll import TollDesignProblem

from .figures import draw_band, panels
from .pages import all_of, verdict
from .runs import Data, grid, run_all, shortfall
from .statistics import mean_interval

SEEDS = tuple(range(5))
LAMS = tuple(float(lam) for lam in 10.0 ** np.linspace(-0.5, 3.5, 9))
ITERATIONS = 500
RATE = Geometric(0.3, 0.003)
FITTED = 5
"""The slope of the gap is fitted over this many of the largest lams: two decades."""
FLAT = 0.05
"""A lam is in the flat range if F falls short of the best by at most this share of the best's gain on the start."""
SLOPE_TOLERANCE = 0.1
CONVERGED = 0.01
"""A run counts as converged if the norm of the projected gradient of F_lam in (x, y) is below this; J_L is of order 1 to 10."""


@dataclass(frozen=True)
class Case:
    """A problem with the temperature at which it is reported, and its panel in the picture."""

    label: str
    make: Callable[[int], TabularProblem | GameProblem]
    tau: float
    panel: str
    random_start: bool = False


def game(n_states: int, n_actions: int) -> Case:
    """Incentive design of a given size."""
    label = f"{n_states} state{'s' * (n_states > 1)}, {n_actions} x {n_actions}"
    make = lambda seed: random_incentive_design(n_states, n_actions, n_actions, 0.9, 0.1, seed).in_units(1.0)  # noqa: E731
    return Case(label, make, 0.1, "incentive design")


CASES = {
    "stackelberg": Case(
        "Stackelberg, 20 states", lambda seed: random_stackelberg(20, seed=seed, reward_unit=1.0), 0.1, "Stackelberg"
    ),
    "four_rooms": Case(
        "Four Rooms, beta 3", lambda _: FourRoomsProblem(0.05, 3.0).in_units(1.0), 0.05, "Four Rooms", True
    ),
    "tolls": Case("tolls, 12 nodes", lambda seed: TollDesignProblem(n_nodes=12, seed=seed).in_units(1.0), 0.5, "tolls"),
    "game_1": game(1, 3),
    "game_5": game(5, 3),
    "game_10": game(10, 5),
}
PANELS = list(dict.fromkeys(case.panel for case in CASES.values()))
METHODS: dict[str, tuple[str, type[Any], Softmax | Solved]] = {
    "value_solved": ("value, solved", ValuePenalty, Solved()),
    "value": ("value, softmax", ValuePenalty, Softmax()),
    "bellman": ("Bellman, softmax", BellmanPenalty, Softmax()),
    "nikaido_isoda": ("Nikaido-Isoda, softmax", NikaidoIsodaPenalty, Softmax()),
}
"""Label, penalty, and the representation of the follower's policy."""
SERIES = [
    (case, method) for case in CASES for method in METHODS if case.startswith("game") == (method == "nikaido_isoda")
]
COLOURS = {"value_solved": "tab:blue", "value": "tab:cyan", "bellman": "tab:red"}
GAME_COLOURS = {"game_1": "tab:olive", "game_5": "tab:green", "game_10": "tab:purple"}


class LastRecord(KVWriter):
    """A log output that keeps the last record."""

    def write(self, key_values: dict[str, Any], key_excluded: Mapping[str, Any], step: int = 0) -> None:
        """Keep the record."""
        self.record = dict(key_values)

    def close(self) -> None:
        """Do nothing."""


def run_one(case: str, method: str, seed: int, lam: float, iterations: int) -> Data:
    """Run one point of one curve."""
    chosen, (_, penalty, follower) = CASES[case], METHODS[method]
    problem, tau = chosen.make(seed), chosen.tau
    x0 = np.random.default_rng(seed).standard_normal(problem.leader_dim) if chosen.random_start else None
    config = TabularPBRLConfig(follower=follower, tau=tau, learning_rate=RATE, eval_every=iterations, keep_best=False)
    leader, log = TabularPBRL(problem, penalty=penalty(lam=lam), config=config, x0=x0), LastRecord()
    leader.set_logger(Logger(None, [log]))
    start = leader.last_x
    evaluation = leader.learn(iterations).evaluate()
    first, last = (leader_return_at_best_response(problem, torch.from_numpy(x), tau) for x in (start, leader.x))
    return {
        "start": first,
        "leader_return": last,
        "at_pi_y": evaluation.leader_return_at_pi_y,
        "gap": shortfall(evaluation),
        "stationarity": log.record["leader/stationarity"],
    }


def run(quick: bool, jobs: int) -> Data:
    """Run every penalty with every lam on every instance."""
    seeds, lams, iterations = (SEEDS[:2], LAMS[::4], 40) if quick else (SEEDS, LAMS, ITERATIONS)
    cells = [cell for c, m in SERIES for cell in grid(case=[c], method=[m], seed=seeds, lam=lams)]
    points = run_all(run_one, cells, jobs, "points", iterations=iterations)
    return {"seeds": list(seeds), "lams": list(lams), "points": points}


# --- reading ----------------------------------------------------------------------------------------------------------


def curves(data: Data, series: tuple[str, str], key: str) -> NDArray[np.float64]:
    """One number for every lam, ``[seeds, lams]``."""
    found = {(p["seed"], p["lam"]): p[key] for p in data["points"] if (p["case"], p["method"]) == series}
    return np.array([[found[seed, lam] for lam in data["lams"]] for seed in data["seeds"]])


def slope(data: Data, series: tuple[str, str]) -> Interval:
    """Slope of log gap against log lam over the last two decades, averaged over instances."""
    gaps = np.maximum(curves(data, series, "gap")[:, -FITTED:], 1e-15)
    return mean_interval([float(np.polyfit(np.log(data["lams"][-FITTED:]), np.log(one), 1)[0]) for one in gaps])


def near_theory(data: Data, series: tuple[str, str]) -> str:
    """The verdict on whether a slope is -2 within the tolerance."""
    found = slope(data, series)
    return all_of(verdict(found, -2.0 - SLOPE_TOLERANCE), verdict(found, -2.0 + SLOPE_TOLERANCE, below=True))


def flat_range(data: Data, series: tuple[str, str]) -> tuple[str, int]:
    """The range of lams around the best in which mean F is near the best, as text, and the best lam."""
    mean, start = (curves(data, series, key).mean(0) for key in ("leader_return", "start"))
    best, lams = int(mean.argmax()), data["lams"]
    short = np.flatnonzero(mean < mean[best] - FLAT * (mean[best] - start[0]))
    first, last = max([-1, *short[short < best]]) + 1, min([len(lams), *short[short > best]]) - 1
    return f"{lams[first]:.3g} to {lams[last]:.3g}" if last > first else f"{lams[best]:.3g} alone", best


@panels(2, len(PANELS), 17.0, 7.2)
def picture(data: Data, *axes: Any) -> None:
    """Draw returns above gaps, with one column per problem; the games share a column."""
    lams = np.asarray(data["lams"])
    for name, upper, lower in zip(PANELS, axes[: len(PANELS)], axes[len(PANELS) :], strict=True):
        series = [s for s in SERIES if CASES[s[0]].panel == name]
        colours = [GAME_COLOURS.get(case) or COLOURS[method] for case, method in series]
        for (case, method), colour in zip(series, colours, strict=True):
            is_game, F = case in GAME_COLOURS, curves(data, (case, method), "leader_return")
            draw_band(upper, lams, F, colour, CASES[case].label if is_game else METHODS[method][0])
            gap = curves(data, (case, method), "gap")
            lower.plot(lams, gap.mean(0), color=colour, linewidth=1.6)
            lower.fill_between(lams, gap.min(0), gap.max(0), color=colour, alpha=0.15, linewidth=0)
            upper.set_title(f"{name}, Nikaido-Isoda" if is_game else CASES[case].label, fontsize=10)
        low, high = upper.get_ylim()
        for one, colour in zip(series, colours, strict=True):
            upper.plot(lams, curves(data, one, "at_pi_y").mean(0), color=colour, linestyle=":", linewidth=1.2)
        room = 0.12 * (high - low)
        upper.legend(fontsize=8, frameon=False, loc="lower left")
        top = lower.get_ylim()[1]
        for power, style in ((1.0, "-."), (2.0, "--")):
            lower.plot(lams, top * (lams / lams[0]) ** -power, color="0.4", linewidth=0.8, linestyle=style)
        upper.set(xscale="log", ylim=(low - room, high + room))
        lower.set(xscale="log", yscale="log", xlabel="lam")
    axes[0].set_ylabel("leader's return at the best response\n(dotted: at the method's own follower)")
    axes[len(PANELS)].set_ylabel("gap of the method's own follower\n(band: all instances; grey: lam^-1, lam^-2)")
