"""Find a leader's problem or environment, given as a problem, an environment, an id or a callable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import pettingzoo
import torch
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.env_registry.exceptions import PettingZooRegistryError
from torch import Tensor

from ..envs.continuous import ContinuousEnv
from ..envs.linear_quadratic import LinearQuadraticEnv
from ..envs.mdp import BilevelProblem, ContinuousProblem, GameProblem, LinearQuadraticProblem, TabularProblem
from ..envs.mdp.checks import require, require_imported
from ..envs.tabular import TabularEnv
from .records import decode

ProblemSource = BilevelProblem | gym.Env[Any, Any] | ParallelEnv[Any, Any, Any] | str | Callable[[], Any]
"""A problem, an environment that has one, an environment's id, or a callable that makes either."""


@dataclass(frozen=True)
class Source:
    """How a leader's environment was given, so that a leader file can make it again.

    Attributes:
        env_id: a registered id, or None for an object, which the caller has to give again.
        env_kwargs: arguments of the environment with that id.
    """

    env_id: str | None
    env_kwargs: dict[str, Any]

    @staticmethod
    def of(given: Any, env_kwargs: dict[str, Any] | None) -> Source:
        """Return the source of what the user gave: an id or an object.

        Raises:
            ValueError: ``env_kwargs`` is not a dict with names as keys.
        """
        named = isinstance(env_kwargs, dict) and all(isinstance(name, str) for name in env_kwargs)
        require(env_kwargs is None or named, "env_kwargs", "a dict of arguments by name", repr(env_kwargs))
        return Source(given, dict(env_kwargs or {})) if isinstance(given, str) else Source(None, {})


def make_env(env_id: str, env_kwargs: dict[str, Any] | None, name: str = "env") -> gym.Env[Any, Any]:
    """Call ``gym.make``, with an error that names the argument.

    Raises:
        ValueError: the id is not registered.
    """
    try:
        return gym.make(env_id, **(env_kwargs or {}))
    except (gym.error.Error, ModuleNotFoundError) as error:
        known = sorted(name for name in gym.registry if name.startswith("bilevel_gym/"))
        expected = f"a registered environment id such as {known}, got {env_id!r} ({error})"
        raise ValueError(f"{name}: expected {expected}") from error


def is_game(env: Any) -> bool:
    """Whether an environment or an id belongs to PettingZoo, or a problem is a game."""
    if not isinstance(env, str):
        return isinstance(env, (ParallelEnv, AECEnv, GameProblem))
    try:
        pettingzoo.spec("parallel", env)
    except PettingZooRegistryError:
        return False
    return True


def problem_of(source: Any) -> Any:
    """Return an environment's problem, or None; a problem is returned as it is.

    A wrapper that puts a leader over an environment has no problem, even if the environment has one.
    """
    if isinstance(source, gym.Env):
        while (
            isinstance(source, gym.Wrapper) and "problem" not in vars(source) and not hasattr(type(source), "problem")
        ):
            source = source.env
    return source if isinstance(source, BilevelProblem) else getattr(source, "problem", None)


def makes_one(given: Any) -> bool:
    """Whether the user gave a callable that makes an environment or a problem."""
    return callable(given) and not isinstance(given, (gym.Env, ParallelEnv, AECEnv, BilevelProblem))


def as_env(given: Any) -> Any:
    """Return the follower's environment of a problem; anything else is returned unchanged.

    So is the problem of a game: the players' environments are made from it.
    """
    if isinstance(given, TabularProblem):
        return TabularEnv(given)
    if isinstance(given, ContinuousProblem):
        return ContinuousEnv(given)
    return LinearQuadraticEnv(given) if isinstance(given, LinearQuadraticProblem) else given


def resolve_problem(problem: Any, env_kwargs: dict[str, Any] | None) -> tuple[Any, Source]:
    """Return the problem of a problem, an environment, an id, or a callable that makes either.

    Raises:
        ValueError: the id is unknown, or the environment has no problem.
    """
    source = Source.of(problem, env_kwargs)
    if makes_one(problem):
        require(not env_kwargs, "env_kwargs", "none for a callable, which takes its own arguments", env_kwargs)
        problem = problem()
    if isinstance(problem, str):
        made = pettingzoo.make("parallel", problem, **(env_kwargs or {})) if is_game(problem) else None
        problem = make_env(problem, env_kwargs, "problem") if made is None else made
    else:
        expected = "none for a problem or an environment that is already made"
        require(not env_kwargs, "env_kwargs", expected, env_kwargs)
    return problem_of(problem), source


def source_of_file(source: dict[str, Any], given: Any, name: str) -> tuple[Any, dict[str, Any] | None]:
    """Return what a leader file was trained on: the object given again, or the file's id with its arguments.

    Raises:
        ValueError: nothing was given and the file has no id, or an id would import a module.
    """
    if given is not None:
        return given, None
    env_id, what = source["env_id"], "problem" if name == "problem" else "environment"
    require(env_id is not None, name, f"the {what} that this leader was trained on (it was given as an object)", None)
    require_imported(source, name, f"the {what} again")
    return env_id, decode(source["env_kwargs"])


def waves(parts: list[Tensor]) -> list[float]:
    """Return a checksum per tensor that changes with nearly any entry."""
    flat = [part.detach().double().reshape(-1) for part in parts]
    return [float(torch.cos(torch.arange(len(t), dtype=torch.float64)) @ t) for t in flat]
