"""References: the best exact answer known for every instance in the pages and the suite.

A share is (return - start) / (reference - start), with returns at the follower's best response and start the untrained
leader's. The reference of an instance is the best return that any of the leaders below finds. All of them know the model: our
hypergradient with its default and with slowly falling temperatures, PBRL, and quasi-Newton ascent (L-BFGS-B) in seven stages
from a high temperature to the problem's own, from the untrained leader and from random points. None of these problems is
concave, so a reference is the best answer *known*, and a better one may exist. If a method on a page finds a better one, the
page uses that one as its reference, so that no share is above 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from bilevel_gym.agents import (
    Geometric,
    Hypergradient,
    HypergradientConfig,
    NikaidoIsodaPenalty,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.leaders.hypergradient import hypergradient
from bilevel_gym.agents.schedules import Quench
from bilevel_gym.envs.mdp import (
    TollDesignProblem,
    random_city,
    random_incentive_design,
    random_stackelberg,
    steering_game,
)
from bilevel_gym.envs.mdp.stackelberg import StackelbergProblem

from .pages import stored
from .runs import Data, Runs, grid, run_all

STAGES = 7
ITERATIONS = 300
RATE = 0.1
"""Initial step size of our leaders, which falls to a tenth."""


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
        label: name in tables.
        make: makes the problem of a seed.
        seeds: seeds of the instances.
        hot: temperature of the first stage; None if the follower has no temperature.
        cold: temperature of the last stage; evaluation uses the problem's own.
        leaders: the leaders that search for references, with the number of starts of each: the untrained leader, then random
            points of X. Each kind has its strongest leaders, as found on other instances.
    """

    label: str
    make: Callable[[int], Any]
    seeds: tuple[int, ...]
    hot: float | None
    cold: float
    leaders: dict[str, int]


def _game(states: int) -> Callable[[int], StackelbergProblem]:
    return lambda seed: random_stackelberg(states, seed=seed, reward_unit=1.0)


def _city(nodes: int, tau: float) -> Callable[[int], TollDesignProblem]:
    return lambda seed: TollDesignProblem(random_city(nodes, seed), 0.999, tau).in_units(1.0)


CITY = {"staged": 2, "cooled": 1}
GAME = {"pbrl": 2, "cooled": 1, "staged": 1}
KINDS = {
    "city_12": Kind(
        "tolls, cities of 12 nodes, tau0 0.1 minutes", _city(12, 0.1), (10, 11, 12, 13, 14), 1.0, 0.1, CITY
    ),
    "game_20": Kind("Stackelberg games, 20 states", _game(20), (5, 6, 7, 8, 9), 0.3, 0.002, GAME),
    "city_9": Kind("tolls, cities of 9 nodes, tau0 0.5 minutes", _city(9, 0.5), (1, 2, 3), 1.0, 0.5, CITY),
    "game_100": Kind("Stackelberg games, 100 states", _game(100), (5, 6, 7, 8, 9), 0.3, 0.002, GAME),
    "design": Kind(
        "incentive design, 10 states, 5 x 5 actions",
        lambda seed: random_incentive_design(10, 5, 5, 0.9, 0.1, seed).in_units(1.0),
        (1, 2, 3),
        1.0,
        0.1,
        {"cooled": 1, "pbrl": 1, "staged": 1},
    ),
    "lq": Kind(
        "LQStackelberg-v0", lambda _: steering_game().in_units(1.0), (0,), None, 0.0, {"quenched": 1, "staged": 9}
    ),
}

Floats = NDArray[np.float64]


# --- the leaders ------------------------------------------------------------------------------------------------------


def temperatures(kind: Kind) -> list[float]:
    """The temperatures of the stages, a geometric sequence."""
    return [0.0] if kind.hot is None else [float(tau) for tau in np.geomspace(kind.hot, kind.cold, STAGES)]


def staged(problem: Any, taus: Iterable[float], x: Floats, most: int) -> Floats:
    """Quasi-Newton ascent on F_tau in stages of falling temperature, each from the end of the last."""
    bounds = list(zip(problem.leader_set.low.tolist(), problem.leader_set.high.tolist(), strict=True))
    for tau in taus:
        last: Any = None

        def objective(z: Floats, tau: float = tau) -> tuple[float, Floats]:
            nonlocal last
            value, gradient, last = hypergradient(problem, torch.from_numpy(z.copy()), tau, last)
            return -float(value), -gradient.numpy()

        found = minimize(objective, x, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": most})
        x = np.asarray(problem.project(torch.from_numpy(found.x)))
    return x


def penalised(kind: Kind, problem: Any, iterations: int, x0: Floats) -> Floats:
    """PBRL with a temperature that falls like the hypergradient's."""
    tau: Any = 0.1 if problem.lower_level == "zero_sum" else Geometric(kind.hot or 1.0, kind.cold)
    penalty = (
        NikaidoIsodaPenalty(lam=Geometric(2.0, 20.0)) if problem.lower_level == "zero_sum" else ValuePenalty(lam=20.0)
    )
    config = TabularPBRLConfig(tau=tau, learning_rate=Geometric(RATE, RATE / 10.0))
    return TabularPBRL(problem, penalty=penalty, config=config, x0=x0).learn(iterations).x


def quenched(kind: Kind, problem: Any, iterations: int, x0: Floats) -> Floats:
    """The hypergradient with its default temperatures: high for a sixth of the iterations, then the last one."""
    hot = 0.2 if problem.lower_level == "zero_sum" else 0.07
    tau: Any = 0.0 if kind.hot is None else Quench(max(hot, kind.cold), max(0.003, kind.cold))
    return Hypergradient(problem, config=HypergradientConfig(tau=tau, learning_rate=0.1), x0=x0).learn(iterations).x


def cooled(kind: Kind, problem: Any, iterations: int, x0: Floats) -> Floats:
    """The hypergradient with a geometrically falling temperature."""
    tau: Any = 0.0 if kind.hot is None else Geometric(kind.hot, kind.cold)
    config = HypergradientConfig(tau=tau, learning_rate=Geometric(RATE, RATE / 10.0))
    return Hypergradient(problem, config=config, x0=x0).learn(iterations).x


def run_one(kind: str, seed: int, quick: bool) -> Data:
    """Run every leader on one instance; returns their returns at the follower's best response."""
    chosen, problem = KINDS[kind], KINDS[kind].make(seed)
    most, iterations = (10, 20) if quick else (200, ITERATIONS)
    before = time.process_time()
    low, high = problem.leader_set.low.numpy(), problem.leader_set.high.numpy()
    low, high = np.maximum(low, -5.0), np.minimum(high, 5.0)  # logits beyond decide nothing more, and give no gradient
    drawn = np.random.default_rng(seed).uniform(low, high, (max(chosen.leaders.values()) - 1, len(low)))
    points, taus = [problem.start_x().numpy(), *drawn], temperatures(chosen)
    ways: dict[str, Callable[[Floats], Floats]] = {
        "quenched": lambda x0: quenched(chosen, problem, iterations, x0),
        "cooled": lambda x0: cooled(chosen, problem, iterations, x0),
        "pbrl": lambda x0: penalised(chosen, problem, iterations, x0),
        "staged": lambda x0: staged(problem, taus, x0, most),
    }
    answers = {name: [ways[name](x0) for x0 in points[:n]] for name, n in chosen.leaders.items()}
    returns = {
        name: [leader_return_at_best_response(problem, torch.from_numpy(x)) for x in xs] for name, xs in answers.items()
    }
    best = max(returns, key=lambda name: max(returns[name]))
    return {
        "start": leader_return_at_best_response(problem, problem.start_x()),
        "best": max(returns[best]),
        "by": best,
        "returns": {name: max(values) for name, values in returns.items()},
        "from_start": returns["staged"][0],
        "seconds": round(time.process_time() - before, 1),
    }


def run(quick: bool, jobs: int) -> Data:
    """Run every instance of every kind."""
    cells = [
        cell for kind, chosen in KINDS.items() for cell in grid(kind=[kind], seed=chosen.seeds[: 1 if quick else None])
    ]
    return {"runs": run_all(run_one, cells, jobs, "references", quick=quick)}


# --- reading ----------------------------------------------------------------------------------------------------------

LEADERS = {
    "quenched": "hypergradient, hot, then cold",
    "cooled": "hypergradient, cooled slowly",
    "pbrl": "PBRL, cooled slowly",
    "staged": "L-BFGS in seven stages",
}


@cache
def _known() -> dict[tuple[str, int], Data]:
    data = stored("references")
    return {} if data is None else {(r["kind"], r["seed"]): r for r in data["runs"]}


def reference(kind: str, seed: int, *found: float) -> float:
    """The best return known for an instance.

    Args:
        kind: of :data:`KINDS`.
        seed: the instance.
        found: returns that a page's own methods have on it, at the follower's best response.

    Returns:
        The stored reference, or what was found where that is more or none is stored.

    Raises:
        ValueError: neither a stored reference nor anything found.
    """
    own = [float(_known()[kind, seed]["best"])] if known(kind, seed) else []
    if not (own or found):
        raise ValueError(f"no reference of {kind}, seed {seed}: run `python -m benchmarks references`")
    return max(*own, *found, -math.inf)


def known(kind: str, seed: int) -> bool:
    """Whether a reference is stored for an instance."""
    return (kind, seed) in _known()


def coverage(kind: str, seeds: Iterable[int]) -> str:
    """A sentence for a page: for how many of its instances references are stored."""
    asked = list(seeds)
    stored_of = sum(known(kind, seed) for seed in asked)
    return (
        f"[References](references.md) are stored of {stored_of} of {len(asked)} instances; where a method of this page is "
        "better, or none is stored, the best return on this page is the reference, so that no share is above 1."
    )


def won(runs: Runs, kind: str, leader: str) -> int:
    """Number of instances whose reference a leader found; all leaders within 1e-6 of the improvement count."""
    own = list(runs(kind=kind))
    return sum(r["returns"].get(leader, -math.inf) >= r["best"] - 1e-6 * (r["best"] - r["start"]) for r in own)


def share(runs: Runs, kind: str, leader: str) -> list[float]:
    """A leader's share of the reference's improvement, by instance."""
    own = [r for r in runs(kind=kind) if leader in r["returns"]]
    return [(r["returns"][leader] - r["start"]) / (r["best"] - r["start"]) for r in own]
