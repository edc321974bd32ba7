"""What makes `PBRL` believable without a model: an ablation.

On two worlds whose truth is known to the judge and hidden from the leader, `PBRL` with PPO runs in variants that differ in one
thing each, with the same seeds and the same total of environment steps: followers, the leader's episodes, challenges and records.

Variants that did not pay are not part of the library; they are written here, as subclasses of its method.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from bilevel_gym.agents import Rollouts
from bilevel_gym.agents.estimators.rollouts import collect, episode_returns
from bilevel_gym.agents.leader import Leader, Progress
from bilevel_gym.agents.leaders.pbrl import PBRLConfig, PBRLMethod, PBRLState
from bilevel_gym.agents.learned.answers import fresh_follower
from bilevel_gym.wrappers import set_leader

from .runs import Data, Runs, grid, run_all
from .worlds import World, deep_worlds

WORLDS = {
    "pendulum_0": "subsidised pendulum, from x = 0",
    "lq_2": "two linear-quadratic games side by side, 8 parameters",
}
SEEDS = (0, 1)
BUDGET = 120_000
"""Environment steps, too few for a record, so that all of them are spent on x; the last iteration is completed."""
EVERY, KEPT = 4, 3
"""Iterations between challenges by earlier policies, and how many of these are kept besides the untrained one."""
SMALL = 0.5
"""lam grows while lam times (regret found + 2 standard errors) is at most this share of the leader's gain from pi_y."""


class Challenged(PBRLMethod):
    """Earlier policies and an untrained one challenge the best response: chosen on half of the episodes, measured on the rest."""

    def _train(self, state: PBRLState, progress: Progress) -> None:
        hat, held = state.followers["best_response"], vars(self).setdefault("held", [])
        if not held:
            held.append(hat.policy_state())
        super()._train(state, progress)
        self.iteration = vars(self).get("iteration", 0) + 1
        if self.iteration % EVERY:
            return
        # All play the same episodes at x: the best response first.
        estimator, known, returns = state.estimator, [hat.policy_state(), *held], []
        set_leader(estimator.venv, state.x.detach().numpy())
        worlds: Any = self.worlds
        actor, seed = fresh_follower(worlds, self.follower_spec, estimator.venv, 0), int(state.rng.integers(2**31))
        generators = actor.generators.state
        for weights in known:
            actor.take_policy(weights)
            actor.generators.state = generators
            with actor.generators.active():
                rollout = collect(estimator.venv, actor.player(estimator.venv), estimator.horizon, seed)
            state.num_timesteps += rollout.steps
            returns.append(episode_returns(rollout, self.worlds.base_space, self.worlds.gamma)[0])
        half = len(returns[0]) // 2
        best = int(np.argmax([episodes[:half].mean() for episodes in returns]))
        gain = returns[best][half:] - returns[0][half:]
        if gain.mean() > 2.0 * gain.std(ddof=1) / math.sqrt(len(gain)):
            hat.take_policy(known[best])
            self.won = self.won + 1
        self.held = [held[0], *[*held[1:], hat.policy_state()][-KEPT:]]

    won = 0


class WaitingLam(PBRLMethod):
    """lam moves along its schedule only while lam (regret found + 2 s.e.) is small against the leader's gain from pi_y."""

    ripe, done = 0.0, 0

    def step(self, state: PBRLState, progress: Progress) -> tuple[PBRLState, dict[str, float]]:
        p = state.penalty_estimate
        # G / lam is the margin less p^.
        if p is None or max(-p.mean, 0.0) + 2.0 * p.stderr <= SMALL * (p.margin - p.mean):
            self.ripe += (progress.done - self.done) / progress.total
        self.done, schedule = progress.done, vars(self).setdefault("schedule", self._lam)
        self._lam = lambda _: schedule(1.0 - self.ripe)  # type: ignore[assignment]
        return super().step(state, progress)


class ShrinkingSteps(PBRLMethod):
    """Steps of x are multiplied by the share of the squared gradient on which two halves of the episodes agree."""

    def step(self, state: PBRLState, progress: Progress) -> tuple[PBRLState, dict[str, float]]:
        before = state.x.detach().clone()
        state, found = super().step(state, progress)
        with torch.no_grad():  # X is convex, so that a shorter step ends in X
            state.x.copy_(before + found["gradient_agreement"] * (state.x - before))
        return state, found


LONG = Rollouts(n_envs=64, tail=0.05, batches=1)
VARIANTS: dict[str, tuple[type[PBRLMethod], Data]] = {
    "before": (PBRLMethod, {"estimator": LONG}),
    "now": (PBRLMethod, {}),
    "now, with the swap": (PBRLMethod, {"swap": True}),
    "now, challenged by earlier policies": (Challenged, {}),
    "now, steps shrink": (ShrinkingSteps, {}),
    "now, lam waits": (WaitingLam, {}),
}
"""Each variant's method, and what its settings change."""
CELLS = tuple(f"{variant}, seed {seed}" for seed in SEEDS for variant in VARIANTS)
"""A variant and a seed each; without ``--cell`` all of them."""


@cache
def worlds() -> dict[str, World]:
    """All worlds by name."""
    return deep_worlds()


def run_one(variant: str, world: str, seed: int, quick: bool) -> Data:
    """Run one variant on one world; the truth at its last x."""
    chosen, start = worlds()[world], time.process_time()
    method, settings = VARIANTS[variant]
    leader = Leader(method(chosen.make, PPO, None, PBRLConfig(**settings), None), seed, chosen.start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the budget, and of swaps: the page reports them
        leader.learn(total_timesteps=BUDGET // 4 if quick else BUDGET)
    trained = sum(follower.num_timesteps for follower in leader.state.followers.values())
    row = {
        "x": leader.last_x.tolist(),
        "truth": chosen.truth(leader.last_x),
        "best": chosen.best,
        "iterations": leader.iteration,
        "waited": leader.state.oracle_failures,
        "won": getattr(leader.method, "won", 0),
        "steps": leader.num_timesteps,
        "trained": trained,
        "lam": leader.state.lam,
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    leader.close()
    return row


def start_of(world: str) -> Data:
    """The truth at the start of a world."""
    return {"truth": worlds()[world].truth(worlds()[world].start)}


def run(quick: bool, jobs: int, cells: Sequence[str] = CELLS) -> Data:
    """Run cells on both worlds."""
    chosen = [cell.rsplit(", seed ", 1) for cell in (cells[:2] if quick else cells)]
    rows = [{"variant": v, "seed": int(seed), "world": world} for v, seed in chosen for world in WORLDS]
    runs = run_all(run_one, rows, jobs, "runs", quick=quick)
    return {"runs": runs, "starts": run_all(start_of, grid(world=WORLDS), jobs, "starts")}


# --- reading ----------------------------------------------------------------------------------------------------------


def shares(rows: Runs, data: Data) -> list[float]:
    """What each run gained, as a share of what can be gained."""
    start = {row["world"]: row["truth"] for row in data["starts"]}
    return [(r["truth"] - start[r["world"]]) / (r["best"] - start[r["world"]]) for r in rows]


def not_run(runs: Runs) -> list[str]:
    """The cells without a run."""
    return [cell for cell in CELLS if not len(runs(variant=cell.rsplit(", seed ")[0], seed=int(cell[-1])))]
