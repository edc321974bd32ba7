"""Lists of environments, leaders and followers, read from the registries and packages."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import gymnasium as gym
import pettingzoo
from gymnasium.envs.registration import load_env_creator

from .. import envs  # registers the environments
from ..envs.mdp.checks import require

PREFIX = "bilevel_gym/"
Kind = Literal["exact", "sampled", "preferences"]
"""What a leader learns from: an exact solution of the model; environment steps; steps and answers to questions."""

assert envs


def first_line(thing: Any, otherwise: str = "") -> str:
    """The first line of an object's docstring, without the full stop."""
    text = inspect.cleandoc(thing.__doc__ or "").splitlines()
    return re.sub(r":\w+:|`", "", text[0]).rstrip(".") if text else otherwise


# --- environments ---------------------------------------------------------------------------------------------------------


def environment_ids() -> list[str]:
    """All environment ids of this package, of Gymnasium and of PettingZoo."""
    return sorted(name for name in (*gym.registry, *pettingzoo.parallel_registry) if name.startswith(PREFIX))


def environment_line(env_id: str) -> str:
    """The first docstring line of an environment's class."""
    spec: Any = gym.registry.get(env_id) or pettingzoo.spec("parallel", env_id)
    try:
        found = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except ImportError as error:
        return f"(cannot be loaded here: {error})"
    return first_line(found if inspect.isclass(found) else inspect.getmodule(found))


def full_id(text: str) -> str:
    """An environment's id, with or without this package's prefix.

    Raises:
        ValueError: an id that is not registered.
    """
    from ..agents.sources import is_game

    known = environment_ids()
    for name in (PREFIX + text, text):
        if name in known or name in gym.registry:
            return name
        if is_game(name):
            return str(pettingzoo.spec("parallel", name).id)  # one of its spellings
    short = [name.removeprefix(PREFIX) for name in known]
    raise ValueError(
        f"--env: expected one of {', '.join(short)}, an id of Gymnasium's or module:callable, got {text!r}"
    )


def environment(text: str) -> str | Callable[..., Any]:
    """The environment to give to a leader: an id, or the object that ``module:callable`` names."""
    if ":" in text:
        found = named(text, "--env", missing_is_none=True)
        if found is not None:
            return found  # type: ignore[no-any-return]
        importlib.import_module(text.partition(":")[0])  # Gymnasium's own module:id
        return text.partition(":")[2]
    return full_id(text)


# --- leaders --------------------------------------------------------------------------------------------------------------


def leaders() -> dict[str, type]:
    """All leaders and baselines of ``agents``, by name."""
    from .. import agents

    found, base = {name: getattr(agents, name) for name in agents.__all__}, agents.Leader
    return {
        name: cls for name, cls in found.items() if inspect.isclass(cls) and issubclass(cls, base) and cls is not base
    }


def leader(text: str) -> type[Any]:
    """The class of a leader, given its name or ``module:class``.

    Raises:
        ValueError: no leader has this name.
    """
    if ":" in text:
        found = named(text, "--leader")
        require(inspect.isclass(found), "--leader", "a class", text)
        return found  # type: ignore[no-any-return]
    known = leaders()
    require(text in known, "--leader", f"one of {', '.join(sorted(known))} or module:class", repr(text))
    return known[text]


def takes_follower(cls: type) -> bool:
    """Whether a leader takes an algorithm as its follower."""
    return "follower" in inspect.signature(cls).parameters


def kind(cls: type) -> Kind:
    """What a leader learns from."""
    from ..agents.preferences.method import PreferenceLeader

    if issubclass(cls, PreferenceLeader):
        return "preferences"
    return "sampled" if counts(cls) == "n_timesteps" else "exact"


def counts(cls: type[Any]) -> str:
    """What a leader's ``learn`` counts, as a field of the settings: ``n_timesteps`` or ``n_iterations``."""
    method = getattr(cls, "method_class", None)
    word = getattr(method, "counts", "total_timesteps" if takes_follower(cls) else "num_iterations")
    return "n_timesteps" if word == "total_timesteps" else "n_iterations"


# --- followers ------------------------------------------------------------------------------------------------------------


def followers() -> dict[str, type[Any]]:
    """All algorithms of Stable-Baselines3, and of sb3-contrib if it is installed, by name."""
    import stable_baselines3
    from stable_baselines3.common.base_class import BaseAlgorithm

    packages: list[ModuleType] = [stable_baselines3]
    with contextlib.suppress(ImportError):
        packages.append(importlib.import_module("sb3_contrib"))
    return {
        name: cls
        for package in packages
        for name, cls in vars(package).items()
        if inspect.isclass(cls) and issubclass(cls, BaseAlgorithm)
    }


def follower(text: str) -> Any:
    """The class of an algorithm, given its name, or the object that ``module:callable`` names.

    Raises:
        ValueError: no algorithm has this name.
    """
    if ":" in text:
        found = named(text, "--follower")
        require(callable(found), "--follower", "a callable", text)
        return found
    known = followers()
    extra = (
        "" if importlib.util.find_spec("sb3_contrib") else ' (sb3-contrib\'s need: pip install "bilevel-gym[contrib]")'
    )
    require(text in known, "--follower", f"one of {', '.join(sorted(known))} or module:callable{extra}", repr(text))
    return known[text]


def named(text: str, name: str, missing_is_none: bool = False) -> Any:
    """Import the object that ``module:attribute`` names; the module may be in the current folder.

    Raises:
        ValueError: there is no such module or attribute.
    """
    module, _, attribute = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: expected module:callable, got {text!r} ({error})") from error
    found: Any = loaded
    for part in attribute.split("."):
        found = getattr(found, part, None)
    require(found is not None or missing_is_none, name, f"the name of something in {module}", repr(attribute))
    return found
