"""Worlds without a model: ours with its defaults, and what a user would do today, judged by references.

Every leader gets the environment alone: the model is hidden, and asking for it is an error. ``leader_for`` chooses the leader and
gets no options. References judge afterwards: dynamic programming on a grid for the pendulum, on the table for the fishery, and
Riccati's equation for the linear-quadratic game.

The share of a run is ``(F(x) - F(start)) / (F* - F(start))``, where F is the leader's return at the follower's best response by
the reference, and F* is the best one known. All environment steps count: of followers, of episodes and of trials.
"""

from __future__ import annotations

import time
import warnings
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import DQN, PPO, SAC

from bilevel_gym.agents import OptunaSearch, Sweep, leader_for
from bilevel_gym.agents.followers.spec import AlgorithmSpec
from bilevel_gym.agents.followers.tuned import tuned_settings
from bilevel_gym.agents.leader import Leader

from .runs import Data, Runs, grid, run_all
from .worlds import World, deep_worlds

Floats = NDArray[np.float64]
FOLLOWERS = {"PPO": PPO, "DQN": DQN, "SAC": SAC}
SEEDS = (0, 1, 2)
"""Seeds of every run. Three, and not five: a run takes about a minute, and all of them share twelve hours."""
CURVES = ("pendulum_0", "fishery_1", "fishery_40", "lq_2")
"""Worlds on which other methods run too."""


@cache
def worlds() -> dict[str, World]:
    """All worlds by name."""
    return deep_worlds()


def _trials(sampler: str | None, steps: int, warm: bool, world: World, seed: int) -> Leader:
    """A search whose every trial trains a follower with the settings that ours has at a fixed x."""
    n_inputs = 1 if world.box_actions else 0
    settings = tuned_settings("PPO", 32, False, world.gamma, n_inputs, fixed=True)
    options = {"follower_steps": steps, "warm_start": warm, "n_envs": 32, "seed": seed, "x0": world.start}
    follower = AlgorithmSpec(PPO, settings)
    if sampler is None:
        return Sweep(world.make, follower, **options)
    return OptunaSearch(world.make, follower, sampler=sampler, **options)


TRIALS = {
    f"{name} {steps // 1000}k{' warm' if warm else ''}": partial(_trials, sampler, steps, warm)
    for name, sampler in (("sweep", None), ("Gaussian process", "gp"), ("CMA-ES", "cmaes"))
    for steps, warm in ((60_000, False), (30_000, True))
}
"""Searches by label: a follower trained afresh for 60,000 steps, or 30,000 from the best trial's."""


def run_one(method: str, world: str, follower: str, seed: int, times: float, quick: bool) -> Data:
    """Run one method on one world: x by steps, what was believed at it, and the truth."""
    chosen, start = worlds()[world], time.process_time()
    budget = int((0.05 if quick else times) * chosen.budget)
    if method == "ours":
        leader = leader_for(chosen.make, FOLLOWERS[follower], seed=seed, x0=chosen.start)
    else:
        leader = TRIALS[method](chosen, seed)
    path: list[tuple[int, list[float]]] = []

    def follow(leader: Leader) -> None:
        path.append((leader.num_timesteps, leader.x.tolist()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the budget: the page reports it
        leader.learn(budget, callback=follow)
    seconds, steps = time.process_time() - start, leader.num_timesteps
    believed = believed_return(leader)
    leader.close()
    points = [chosen.start.tolist(), *[x for _, x in path]]
    returns: dict[str, float] = {}
    for x in points:
        if str(x) not in returns:
            returns[str(x)] = chosen.truth(np.array(x))
    return {
        "leader": type(leader).__name__,
        "x": leader.x.tolist(),
        "truth": returns[str(points[-1])],
        "believed": believed[0],
        "believed_stderr": believed[1],
        "start": returns[str(points[0])],
        "best": chosen.best,
        "steps": steps,
        "finished": bool(getattr(leader.state, "finished", False)),
        "curve_steps": [0, *[n for n, _ in path]],
        "curve": [round(returns[str(x)], 4) for x in points],
        "cpu_seconds": round(seconds, 1),
    }


def believed_return(leader: Any) -> tuple[float, float]:
    """What a leader believed its return to be at its answer, with its standard error; no steps are spent."""
    if isinstance(leader, (Sweep, OptunaSearch)):
        trial = leader.best_trial
        return float(trial.leader_return), float(trial.stderr)
    last = leader.history[-1]
    return float(last.leader_return), float(last.leader_return_stderr)


def run(quick: bool, jobs: int) -> Data:
    """Run ours on every world, and the searches on some."""
    seeds = SEEDS[:1] if quick else SEEDS
    ours = grid(method=["ours"], world=worlds(), follower=["PPO"], seed=seeds, times=[1.0])
    others = [
        *grid(method=["ours"], world=["fishery_1"], follower=["DQN"], seed=seeds, times=[1.0]),
        *grid(method=["ours"], world=["pendulum_0"], follower=["SAC"], seed=seeds[:1], times=[0.4]),
        *grid(method=TRIALS, world=CURVES, follower=["PPO"], seed=seeds, times=[1.0]),
    ]
    return {"runs": run_all(run_one, [*ours, *others], jobs, "runs", quick=quick), "seeds": list(seeds)}


# --- reading ----------------------------------------------------------------------------------------------------------


def shares(rows: Runs, of: str = "truth") -> list[float]:
    """The share of each run: what it gained of what can be gained."""
    return [(r[of] - r["start"]) / (r["best"] - r["start"]) for r in rows]


def until(row: Data, share: float = 0.8) -> float:
    """Steps after which a run stays above a share; its whole budget if it never does."""
    values = (np.array(row["curve"]) - row["start"]) / (row["best"] - row["start"])
    below = np.flatnonzero(values < share)
    last = int(below[-1]) if len(below) else -1
    steps = row["curve_steps"]
    return float(steps[last + 1]) if last + 1 < len(steps) else float("inf")


def best_trials(runs: Runs, kind: str, world: str) -> str:
    """The label of a search's better setting on a world."""
    labels = [label for label in TRIALS if label.startswith(kind)]
    return max(labels, key=lambda label: float(np.mean(shares(runs(method=label, world=world)))))
