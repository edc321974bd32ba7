"""Check your own leader environment before you spend time on training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pettingzoo
import torch
from pettingzoo.env_registry.exceptions import PettingZooRegistryError

from .check_contract import (
    PAIRS,
    SEED,
    SHORT,
    check_arrival,
    check_context,
    check_names,
    check_set_leader,
    check_steps,
    check_timing,
    drawn_points,
)
from .check_copies import check_copies, check_simulator
from .check_draws import check_log_p
from .check_model import Model, check_dependence, check_gradients, check_own_parameter, check_rewards
from .check_play import Floats, World, trace
from .check_problem import check_problem
from .mdp.checks import check_count, require

EXEMPT = {
    "bilevel_gym/HappyText-v0": "its leader is a reward model, which is not part of the environment",
    "bilevel_gym/UnderLeader-v0": "its leader is fixed",
}
"""Environments of this library that have no parameter to set, with the reason."""


def check_leader_env(env: Any, steps: int = 2000, env_kwargs: dict[str, Any] | None = None) -> None:
    """Check that an environment fulfils the contract of ``LeaderEnv``.

    The check tests that x has an effect, and that the leader model and the problem agree with ``step``. It resets and steps the
    environment with random actions and sets several x; afterwards the environment has its old x again. Statistical tests with a
    fixed seed compare random draws with ``log_p`` and with the problem's tables; each rejects a correct environment with
    probability 1e-6. Gymnasium and Stable-Baselines3 have checks of their own: call those too.

    Args:
        env: a Gymnasium environment, wrapped or not, or a PettingZoo game; an id; a game's module; or a callable without
            arguments that makes an environment. With an id, a module or a callable, the check also tests that x does not leak
            into other environments of the process.
        steps: number of steps of each statistical test, and the largest number of steps within which x must have an effect,
            at least 40. With fewer steps the tests find fewer faults, but reject no more correct environments. Default: 2000.
        env_kwargs: keyword arguments of the environment, if ``env`` is an id. Default: none.

    Raises:
        ValueError: something is missing or wrong; the message says what to do.

    Warns:
        UserWarning: something could not be checked; the message says why.

    Example:
        >>> from bilevel_gym.envs import check_leader_env
        >>> check_leader_env("bilevel_gym/TwoState-v0")
    """
    check_count(steps, "steps", 2 * SHORT)
    name = env if isinstance(env, str) else getattr(getattr(env, "spec", None), "id", None)
    if name in EXEMPT:
        warnings.warn(f"check_leader_env: {name} has no parameter to set: {EXEMPT[name]}", stacklevel=2)
        return
    made, make = _opened(env, env_kwargs)
    world = World(made)
    check_names(world)
    start, generators = world.x, torch.get_rng_state()
    try:
        _check(world, make, start, steps)
    finally:
        torch.set_rng_state(generators)
        world.get("set_leader")(start)
    if world.unchecked:
        warnings.warn(f"check_leader_env could not check {'; '.join(dict.fromkeys(world.unchecked))}", stacklevel=2)


def _check(world: World, make: Callable[[], Any] | None, start: Floats, steps: int) -> None:
    """Run all checks, the simplest first, so that an error names the cause and not a consequence."""
    rng = np.random.default_rng(SEED)
    points = drawn_points(world, rng, PAIRS)
    check_set_leader(world, points)
    check_steps(world, points[0])
    check_context(world, points)
    # The leader model, at the start and at two points inside X.
    models = []
    for x in (start, *points[:2]):
        played = trace(world, x, SEED, SHORT).steps
        models.append(Model(world, played))
        check_rewards(models[-1], start, "rewards that depend on the x that was set (use x in step)")
    silent = check_dependence(models)
    check_arrival(world, points, silent, steps)
    check_own_parameter(models[1], world, points[1])
    box = world.box
    width = np.ones_like(start) if box is None else np.asarray(box.high - box.low, dtype=np.float64)
    check_gradients(models[1], rng, width)
    # When x takes effect, and where.
    moved = check_timing(world, points[0], points[1])
    world.set_leader(points[1])
    check_rewards(
        Model(world, moved.steps), points[0], "x to hold from the next step on, in the middle of an episode too"
    )
    check_copies(world, make, points[0], points[1])
    # What is drawn.
    if not silent:
        check_log_p(world, points[1], (points[0], start), steps)
    check_problem(world, points[1], points[0], steps)
    check_simulator(world, points[:3])


def _opened(env: Any, env_kwargs: dict[str, Any] | None) -> tuple[Any, Callable[[], Any] | None]:
    """Return the environment and a callable that makes another one like it, or None if there is no such callable."""
    require(not env_kwargs or isinstance(env, str), "env_kwargs", "none where env is no id", env_kwargs)
    if isinstance(env, gym.Env):
        again: Any = getattr(env.spec, "make", None)
        try:
            return env, None if again is None else again().close() or again
        except Exception:  # a spec may not reproduce a user's wrappers
            return env, None
    if isinstance(env, (pettingzoo.ParallelEnv, pettingzoo.AECEnv)):
        return env, None
    make = _maker(env, env_kwargs or {}) if isinstance(env, str) else getattr(env, "parallel_env", env)
    return (make(), make) if callable(make) else (make, None)


def _maker(name: str, kwargs: dict[str, Any]) -> Callable[[], Any]:
    """Return a callable that makes an environment from its id in Gymnasium or PettingZoo."""
    for kind in ("parallel", "aec"):
        try:
            pettingzoo.spec(kind, name)
        except PettingZooRegistryError:
            continue
        return lambda: pettingzoo.make(kind, name, **kwargs)
    try:
        gym.spec(name)
    except gym.error.Error as error:
        raise ValueError(f"env: expected a registered id, got {name!r} ({error})") from error
    return lambda: gym.make(name, **kwargs)
