"""Regret found: what challengers find of a follower's true regret, and false alarms.

On each world there are twenty followers: ten exact ones, i.e. the reference's own policy, and ten with a true regret of up to
half of what is to be gained. `find_regret` gets the environment without its model and the follower, and judges alone. References
say afterwards what the true regret is: dynamic programming on a grid for the pendulum and on the table for the fishery, and
Riccati's equation for the linear-quadratic game.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from bilevel_gym.agents import find_regret
from bilevel_gym.agents.estimators.rollouts import collect, discounts
from bilevel_gym.agents.followers.sb3 import SB3Follower
from bilevel_gym.agents.followers.spec import Answering, at_fixed_x
from bilevel_gym.agents.learned.regret import RegretFound
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs.continuous import ContinuousEnv
from bilevel_gym.envs.linear_quadratic import LinearQuadraticEnv
from bilevel_gym.envs.mdp import solve_soft
from bilevel_gym.envs.subsidised_pendulum import SubsidisedPendulumProblem
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.wrappers import set_leader

from .runs import Data, Runs, grid, run_all
from .worlds import fishery, games, hidden

Floats = NDArray[np.float64]
Act = Callable[[Any], Any]

SIZES: dict[str, int] = {"fresh_steps": 20_480, "warm_steps": 16_384, "episodes": 128}
"""What a challenger is given, in environment steps, and the episodes of each policy."""
PLANTED = ("noise",) * 4 + ("another x",) * 3 + ("short training",) * 3
"""How ten followers come to their regret."""
TARGETS = (0.08, 0.2, 0.32, 0.44, 0.15, 0.3, 0.45, 0.12, 0.25, 0.4)
"""The share that each is chosen for, among policies of its kind: the nearest one below a half."""
CHECKED, TRUE = 256, 2_048
"""Episodes in which a follower is chosen, and in which its true regret is measured."""
MOST, NOTABLE, FOUND, ALARMS = 0.5, 0.1, 0.8, 0.05
"""Largest true regret; that from which on it should be found; how often; and how many false alarms there may be."""


@dataclass(frozen=True)
class Place:
    """A world with its reference.

    Attributes:
        label: name on the page.
        problem: makes the problem.
        env_class: makes the environment of a problem.
        exact: makes the reference's policy of a problem at x.
    """

    label: str
    problem: Callable[[], Any]
    env_class: Callable[[Any], gym.Env[Any, Any]]
    exact: Callable[[Any, Floats], Act]


def grid_policy(problem: Any, x: Floats) -> Act:
    """The best response on the grid."""
    act: Act = problem.best_response(x).act
    return act


def table_policy(problem: Any, x: Floats) -> Act:
    """The best response of the table."""
    best = solve_soft(problem.follower_mdp(torch.from_numpy(x)), 0.0).pi.argmax(-1).numpy()
    return lambda obs: best[np.asarray(obs).astype(np.int64).reshape(-1)]


def riccati_policy(problem: Any, x: Floats) -> Act:
    """The best linear response."""
    F, bound = problem.best_response(torch.from_numpy(x)).F.numpy(), problem.action_bound.numpy()
    return lambda obs: np.clip(-(obs @ F.T) / bound, -1.0, 1.0).astype(np.float32)


PLACES = {
    "pendulum": Place("subsidised pendulum", SubsidisedPendulumProblem, ContinuousEnv, grid_policy),
    "fishery_1": Place("fishery, three taxes", fishery, TabularEnv, table_policy),
    "lq_1": Place("linear-quadratic game, 2 parameters", partial(games, 1), LinearQuadraticEnv, riccati_policy),
}


# --- followers --------------------------------------------------------------------------------------------------------


def mixed(act: Act, space: gym.spaces.Space[Any], noise: float, seed: int) -> Act:
    """A policy that plays a uniformly random action with probability ``noise`` a step."""
    rng = np.random.default_rng(seed)

    def play(obs: Any) -> Any:
        own = np.asarray(act(obs))
        if isinstance(space, gym.spaces.Discrete):
            return np.where(rng.random(len(own)) < noise, rng.integers(int(space.n), size=len(own)), own)
        other = rng.uniform(-1.0, 1.0, own.shape)
        return np.where(rng.random((len(own), 1)) < noise, other, own).astype(np.float32)

    return play


def value(worlds: Worlds, x: Floats, acts: Sequence[Act], n: int, seed: int) -> Floats:
    """The follower's returns of the better one of several ways to play, in n episodes, ``[n]``."""
    venv = worlds.make(n)
    set_leader(venv, x)
    found = []
    for act in acts:
        rollout = collect(venv, act, worlds.horizon(0.01), seed)
        found.append((discounts(rollout, worlds.gamma) * rollout.r_follower).sum(0))
    venv.close()
    best: Floats = max(found, key=lambda returns: float(returns.mean()))
    return best


def ways(model: Any) -> list[Act]:
    """How a model plays: greedily, and with its exploration."""
    return [lambda obs: model.predict(obs, deterministic=True)[0], lambda obs: model.predict(obs)[0]]


def candidates(
    place: Place, problem: Any, worlds: Worlds, x: Floats, planted: str, seed: int
) -> list[tuple[Any, list[Act]]]:
    """Followers of a kind, each with the ways in which it plays."""
    rng = np.random.default_rng(seed)
    exact = place.exact(problem, x)
    if planted == "noise":
        mixtures = [mixed(exact, worlds.env.action_space, share, seed) for share in np.geomspace(0.001, 0.8, 12)]
        return [(act, [act]) for act in mixtures]
    if planted == "another x":
        X = worlds.leader_set
        low, high = X.low.numpy(), X.high.numpy()
        points = [X.project(torch.from_numpy(rng.uniform(low, high))).numpy() for _ in range(8)]
        return [(act, [act]) for act in (place.exact(problem, point) for point in points)]
    # short training: the same run, stopped ever later
    venv = worlds.make(32)
    set_leader(venv, x)
    follower = SB3Follower(at_fixed_x(PPO, venv), venv, worlds.gamma, seed, False, Answering())
    stopped = []
    for part in range(12):
        follower.train(4_096, 12 * 4_096, fresh_episodes=part == 0)
        twin = SB3Follower(at_fixed_x(PPO, venv), venv, worlds.gamma, seed, False, Answering())
        twin.take_policy(follower.policy_state())
        stopped.append((twin.model, ways(twin.model)))
    return stopped


def point(worlds: Worlds, name: str, number: int) -> Floats:
    """The x at which a follower is judged: on a line, ten points that divide it evenly; else one at random."""
    X = worlds.leader_set
    low, high = X.low.numpy(), X.high.numpy()
    share = np.full(X.dim, (number + 0.5) / 10.0)
    if X.dim > 1:
        share = np.random.default_rng([number, len(name)]).random(X.dim)
    x: Floats = X.project(torch.from_numpy(low + share * (high - low))).numpy()
    return x


def run_one(world: str, follower: str, number: int, quick: bool) -> Data:
    """Judge one follower, and say what is true."""
    start = time.process_time()
    place = PLACES[world]
    problem = place.problem()
    make = partial(hidden, place.env_class, problem)
    worlds, seed = Worlds(make, None, False), 1000 * (follower == "planted") + 7 * number
    x, kind = point(worlds, world, number), "exact"
    exact = place.exact(problem, x)
    judged: Any = exact
    acts = [exact]
    if follower == "planted":
        # The follower of its kind whose regret is nearest to what it is chosen for.
        kind = PLANTED[number]
        best = float(value(worlds, x, [exact], CHECKED, seed).mean())
        venv = worlds.make(1)
        idle = SB3Follower(at_fixed_x(PPO, venv), venv, worlds.gamma, seed, False, Answering())
        span = best - float(value(worlds, x, ways(idle.model), CHECKED, seed).mean())
        several = candidates(place, problem, worlds, x, kind, seed)
        shares = [(best - float(value(worlds, x, acts, CHECKED, seed).mean())) / span for _, acts in several]
        below = [k for k, share in enumerate(shares) if share <= MOST] or [int(np.argmin(shares))]
        judged, acts = several[min(below, key=lambda k: abs(shares[k] - TARGETS[number]))]
    prepared = time.process_time()
    sizes = {"fresh_steps": 4_000, "warm_steps": 4_000, "episodes": 64} if quick else SIZES
    report = find_regret(make, judged, x, seed=seed, **sizes)  # type: ignore[arg-type]
    assert isinstance(report, RegretFound)
    cpu = time.process_time() - prepared
    optimal, own = (value(worlds, x, played, TRUE, seed + 1) for played in ([exact], acts))
    gap = float((optimal - own).mean())
    return {
        "x": x.tolist(),
        "kind": kind,
        "true_regret": gap,
        "true_stderr": float((optimal - own).std(ddof=1) / np.sqrt(TRUE)),
        "true_share": gap / (float(optimal.mean()) - report.untrained_return),
        "regret": report.regret,
        "stderr": report.stderr,
        "share": report.share,
        "share_stderr": report.share_stderr,
        "refuted": report.refuted,
        "by": report.kind,
        "steps": report.steps,
        "cpu_seconds": cpu,
        "prepared_seconds": prepared - start,
    }


def run(quick: bool, jobs: int) -> Data:
    """Judge twenty followers on each world."""
    cells = grid(world=PLACES, follower=("exact", "planted"), number=(2, 8) if quick else range(10))
    return {"runs": run_all(run_one, cells, jobs, "belief", quick=quick)}


# --- reading ----------------------------------------------------------------------------------------------------------


def alarms(rows: Runs) -> list[bool]:
    """Whether what was found, less two standard errors, exceeds the true regret, both as shares."""
    return [r["share"] - 2.0 * r["share_stderr"] > max(r["true_share"], 0.0) for r in rows]


def notable(rows: Runs) -> Runs:
    """The followers whose true regret should be found."""
    return Runs(rows.frame[rows.frame["true_share"] > NOTABLE])


def misses(rows: Runs) -> list[Data]:
    """Those that were not found."""
    return [r for r in notable(rows) if not r["refuted"]]


def rate(flags: Sequence[bool]) -> float:
    """The share of flags that are set."""
    return float(np.mean(flags)) if len(flags) else 0.0


def kinds() -> list[str]:
    """How followers came to their regret."""
    return list(dict.fromkeys(PLANTED))


def finders(rows: Runs) -> str:
    """How many each kind of challenger found."""
    by = [r["by"] for r in rows if r["refuted"]]
    return ", ".join(f"{kind} {by.count(kind)}" for kind in dict.fromkeys(by)) or "none"
