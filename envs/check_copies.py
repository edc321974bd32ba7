"""Checks that an x stays in its environment: neither parallel environments nor new ones know of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from .check_contract import SEED, SHORT
from .check_play import Floats, World, trace
from .mdp.checks import require


def check_copies(world: World, make: Callable[[], Any] | None, a: Floats, b: Floats) -> None:
    """x does not leak.

    Args:
        world: the environment.
        make: makes another one like it; None where that is not known.
        a: a point of X.
        b: another.
    """
    world.set_leader(a)
    world.reset(SEED)
    others = {}
    try:
        others["a copy (copy.deepcopy)"] = World(copy.deepcopy(world.env))
    except Exception as error:  # simulators in C cannot be copied
        world.unchecked.append(
            f"copies of the environment, for copy.deepcopy(env) raises {type(error).__name__}: {error}"
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
        before = trace(other, None, SEED, SHORT)
        world.set_leader(b)
        trace(world, None, SEED, SHORT)
        expected = "the x of other parallel environments left alone (keep x in self, in no class and no module)"
        require(np.array_equal(other.x, x), "set_leader", expected, f"x = {other.x} in {what}, which had {x}")
        differs = before.differs(trace(other, None, SEED, SHORT), other.base, "obs", "reward", "leader_reward", "draw")
        require(differs is None, "set_leader", expected, f"another {differs} in {what}")
        other.set_leader(a)
        require(np.array_equal(world.x, b), "set_leader", expected, f"x = {world.x} after it was set in {what}")
    if make is not None:
        world.set_leader(a)
        first, again = World(make()).x, World(make()).x
        world.set_leader(b)
        expected = f"a new environment to begin at {first}, whatever x others were given"
        same = np.array_equal(first, World(make()).x) or not np.array_equal(first, again)
        require(same, "leader_x", expected, World(make()).x)
