"""Checks that setting x in one environment does not change other environments, parallel or new."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from .actions import draw_action
from .check_contract import SEED, SHORT
from .check_model import Model
from .check_play import RTOL, Floats, Played, Trace, World, apart, held, trace
from .mdp.checks import require

ALONE = "the x of other environments to stay unchanged (store x, and all that is computed from it, in self)"


def check_copies(world: World, make: Callable[[], Any] | None, a: Floats, b: Floats) -> None:
    """Check that x does not leak into other environments.

    Args:
        world: the environment.
        make: a callable that makes another environment like it; None if there is none.
        a: a point of X.
        b: another point of X.
    """
    world.set_leader(a)
    world.reset(SEED)
    others = {}
    try:
        others["a copy (copy.deepcopy)"] = World(copy.deepcopy(world.env))
    except Exception as error:  # simulators in C cannot be copied
        world.unchecked.append(
            f"copies of the environment, since copy.deepcopy(env) raises {type(error).__name__}: {error}"
        )
    if make is not None:
        others["another environment of the same id or callable"] = World(make())
    elif not others:
        world.unchecked.append(
            "whether x leaks between parallel environments (give an id, or a callable that makes one)"
        )
    for what, other in others.items():
        world.set_leader(a)
        x = other.x
        before = trace(other, None, SEED, SHORT, one_episode=True)
        beside = _beside(world, other, b, before)
        require(np.array_equal(other.x, x), "set_leader", ALONE, f"x = {other.x} in {what}, which had {x}")
        differs = before.differs(beside, other.base, "obs", "reward", "leader_reward", "draw")
        require(differs is None, "set_leader", ALONE, f"another {differs} in {what}")
        other.set_leader(a)
        require(np.array_equal(world.x, b), "set_leader", ALONE, f"x = {world.x} after it was set in {what}")
    if make is not None:
        world.set_leader(a)
        first, again = World(make()).x, World(make()).x
        world.set_leader(b)
        expected = f"a new environment to start at {first}, even after x was set in others"
        same = np.array_equal(first, World(make()).x) or not np.array_equal(first, again)
        require(same, "leader_x", expected, World(make()).x)


def _beside(world: World, other: World, x: Floats, before: Trace) -> Trace:
    """Replay the other environment's episode while the first one is set to x, reset, and stepped in turns with it."""
    played = Trace(held(other.reset(SEED)))
    world.set_leader(x)
    world.reset(SEED + 1)
    for step in before.steps:
        if world.step().ended:
            world.reset()
        played.steps.append(other.step(step.action))
    return played


def check_simulator(world: World, points: list[Floats]) -> None:
    """Check that the environment's own parallel simulator pays each environment according to that environment's x."""
    vectorised = None if world.game else getattr(world.env.unwrapped, "vectorised", None)
    simulator = None if vectorised is None else vectorised(len(points), None)
    if simulator is None or world.has("base_observation"):
        return
    rows, name = np.stack(points), "vectorised"
    simulator.set_leader(rows)
    kept = np.asarray(simulator.leader_x)
    fits = kept.shape == rows.shape and np.allclose(kept, rows, rtol=0.0, atol=1e-9)
    require(fits, name, "parallel environments that store one x for each, [num_envs, dim]", kept)
    obs, _ = simulator.reset(seed=SEED)
    simulator.action_space.seed(SEED)
    masks = getattr(simulator, "action_masks", None)
    steps: list[list[Played]] = [[] for _ in points]
    for _ in range(SHORT):
        exists = [None] * len(points) if masks is None else masks()
        sampled = [draw_action(simulator.single_action_space, mask) for mask in exists]
        before, actions = np.array(obs), np.stack([np.asarray(action) for action in sampled])
        obs, rewards, terminated, _, infos = simulator.step(actions)
        after = np.array(obs)
        for ended in np.flatnonzero(terminated):
            after[ended] = infos["final_obs"][ended]
        for i, played in enumerate(steps):
            drawn, paid = infos["leader_draw"][i], float(infos["leader_reward"][i])
            played.append(
                Played(before[i], actions[i], drawn, after[i], np.asarray(rewards[i]), paid, False, False, False)
            )
    for x, played in zip(points, steps, strict=True):
        world.set_leader(x)
        r_follower, r_leader, _ = (part.detach().numpy() for part in Model(world, played)())
        for modelled, field in ((r_follower, "reward"), (r_leader, "leader_reward")):
            near = bool(apart(modelled, [getattr(step, field) for step in played]).max() <= RTOL)
            require(near, name, f"rewards of each parallel environment at its own x, {x} here", "different rewards")
