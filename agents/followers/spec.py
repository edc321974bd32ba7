"""The follower that a user asks for, the Stable-Baselines3 model built from it, its policy's options, and its name in files."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from ...envs.mdp.checks import check_gamma, plain, plain_fields, require
from ..schedules import Geometric, Schedule
from .tuned import tuned_settings

FALLING_Q_TEMPERATURE = Geometric(0.3, 0.05)
"""Temperature of the softmax policy of a Q-network, in units of reward."""
FALLING_ENTROPY = Geometric(0.2, 0.05)
"""Entropy bonus of a linear policy in training, by progress: high at first, so that actions stay in use until x has settled."""


@dataclass(frozen=True, eq=False)
class AlgorithmSpec:
    """An SB3 algorithm class with your own settings; the others are tuned for a moving x (see ``tuned.yml``).

    Attributes:
        algorithm: the class.
        settings: arguments of its constructor, including ``policy``.

    Raises:
        ValueError: not an SB3 class, or an unknown argument.
    """

    algorithm: type[BaseAlgorithm]
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        is_class = isinstance(self.algorithm, type) and issubclass(self.algorithm, BaseAlgorithm)
        require(is_class, "follower", "an SB3 algorithm class", repr(self.algorithm))
        known = [name for name in inspect.signature(self.algorithm).parameters if name not in ("env", "seed")]
        unknown = sorted(set(self.settings) - set(known))
        require(not unknown, "follower", f"settings of {self.algorithm.__name__}: {known}", unknown)
        object.__setattr__(self, "settings", {name: plain(value) for name, value in self.settings.items()})


FollowerSpec = type[BaseAlgorithm] | AlgorithmSpec | Callable[[VecEnv], BaseAlgorithm]
"""What a user gives as the follower: an SB3 class, an :class:`AlgorithmSpec`, or a callable that builds a model on a VecEnv."""


@dataclass(frozen=True)
class Answering:
    """How a follower's policy is read off its model, and how soft it is trained to be.

    Attributes:
        q_temperature: temperature, in units of reward, of the policy ``softmax(Q / q_temperature)`` of a model with a
            Q-network and discrete actions; a schedule over the follower's own progress.
        averaging: weight of the past, in [0, 1), in the running average of the network's weights after each call of
            ``train``, starting from a uniform average. The policy uses the average, so that the optimiser's noise does not
            reach the leader.
        entropy: coefficient of the entropy bonus of a model with a constant one (``ent_coef`` of PPO and A2C), a schedule
            over the follower's own progress; None leaves the model's.
    """

    q_temperature: Schedule = FALLING_Q_TEMPERATURE
    averaging: float = 0.0
    entropy: Schedule | None = None

    def __post_init__(self) -> None:
        plain_fields(self)


def build_model(spec: FollowerSpec, venv: VecEnv, gamma: float, seed: int, linear: bool) -> BaseAlgorithm:
    """Build the user's algorithm on ``venv``.

    Args:
        spec: the follower that the user gave.
        venv: the follower's parallel environments.
        gamma: their discount.
        seed: seed of a model that is built from a class.
        linear: whether a linear policy can be exact (see :func:`.tuned.tuned_settings`).

    Raises:
        ValueError: the algorithm cannot act in the action space; ``spec`` is neither a class nor a callable; the callable
            returns no SB3 model, or one with another discount, other environments, other observations, or a fixed scale
            of rewards.
    """
    own: dict[str, Any] = spec.settings if isinstance(spec, AlgorithmSpec) else {}
    spec = spec.algorithm if isinstance(spec, AlgorithmSpec) else spec
    name = getattr(spec, "__name__", repr(spec))
    build: Callable[[VecEnv], Any] = spec
    if isinstance(spec, type):
        # A class is built with tuned settings and its plain policy. ARS gets the linear one: its search starts at 0, which
        # a network hardly leaves.
        require(issubclass(spec, BaseAlgorithm), "follower", "an SB3 algorithm class or a callable", name)
        algorithm: Any = spec
        n_inputs = int(np.prod(venv.action_space.shape)) if isinstance(venv.action_space, gym.spaces.Box) else 0
        plain_policies = [alias for alias in ("LinearPolicy", "MlpPolicy") if alias in algorithm.policy_aliases]
        settings: dict[str, Any] = {"policy": [*plain_policies, "MlpLstmPolicy"][0], "device": "cpu"}
        if "gamma" in inspect.signature(spec).parameters:  # ARS has no gamma
            settings["gamma"] = gamma
        settings |= tuned_settings(name, venv.num_envs, linear, gamma, n_inputs) | own
        build = lambda venv: algorithm(env=venv, seed=seed, **settings)  # noqa: E731
    else:
        expected = "an SB3 algorithm class or a callable from a VecEnv to a model"
        require(callable(spec) and takes(spec, 1), "follower", expected, repr(spec))
    try:
        model = build(venv)
    except (AssertionError, NotImplementedError) as error:
        spaces = f"actions in {venv.action_space} from observations in {venv.observation_space}"
        raise ValueError(f"follower: expected an algorithm for {spaces}, got {name} ({error})") from error

    # Only a callable can return something other than what was asked for.
    got = f"{type(model).__name__} from {name}"
    require(isinstance(model, BaseAlgorithm), "follower", "a callable that returns an SB3 model", got)
    assert isinstance(model, BaseAlgorithm)
    theirs, expected = check_gamma(getattr(model, "gamma", gamma)), f"a model with the environment's gamma={gamma}"
    require(abs(theirs - gamma) < 1e-12, "follower", expected, f"gamma={theirs} from {name}")
    inner: Any = model.get_env()
    while isinstance(inner, VecEnvWrapper) and inner is not venv:
        inner = inner.venv
    require(inner is venv, "follower", "a model on the VecEnv it is given (x is set there only)", f"one from {name}")
    seen, shape = model.observation_space.shape, venv.observation_space.shape
    require(seen == shape, "follower", f"a model on the environment's observations, of shape {shape}", f"shape {seen}")
    scaling = model.get_vec_normalize_env()
    frozen = scaling is not None and scaling.norm_reward and not scaling.training
    expected = "a VecNormalize whose scale of rewards follows x (training=True), or norm_reward=False"
    require(not frozen, "follower", expected, f"training=False and norm_reward=True from {name}")

    # ARS counts the steps of all environments once per environment: count them only once.
    if hasattr(model, "_trigger_callback"):
        last: Any = None

        def count(_locals: dict[str, Any], _globals: dict[str, Any], callback: Any, n_envs: int) -> None:
            nonlocal last
            if _locals["new_observations"] is not last:
                last = _locals["new_observations"]
                model.num_timesteps += n_envs
                callback.on_step()

        model._trigger_callback = count
    return model


def at_fixed_x(spec: FollowerSpec, venv: VecEnv) -> FollowerSpec:
    """Return a follower with the settings that are tuned for a fixed x; a callable is returned unchanged."""
    own: dict[str, Any] = spec.settings if isinstance(spec, AlgorithmSpec) else {}
    algorithm = spec.algorithm if isinstance(spec, AlgorithmSpec) else spec
    if not isinstance(algorithm, type):
        return spec
    n_inputs = int(np.prod(venv.action_space.shape)) if isinstance(venv.action_space, gym.spaces.Box) else 0
    return AlgorithmSpec(
        algorithm, tuned_settings(algorithm.__name__, venv.num_envs, False, 1.0, n_inputs, fixed=True) | own
    )


def takes(call: Callable[..., Any], n: int) -> bool:
    """Whether a callable accepts ``n`` arguments, as far as its signature shows."""
    try:
        inspect.signature(call).bind(*[None] * n)
    except TypeError:
        return False
    except ValueError:  # no signature
        return True
    return True


def follower_name(spec: FollowerSpec) -> str | None:
    """Return the name of a follower's class in leader files; None for a callable, which files do not store."""
    return f"{spec.__module__}:{spec.__qualname__}" if isinstance(spec, type) else None


def follower_of_file(name: str | None, given: FollowerSpec | None, path: object) -> FollowerSpec:
    """Return the follower for a leader file: the one given, or the SB3 or sb3-contrib class that the file names.

    A name in a file is imported from these two packages only.

    Raises:
        ValueError: the given class differs from the file's, or a class of another package or a callable was not given.
    """
    if given is not None:
        same = name is None or not isinstance(given, type) or follower_name(given) == name
        require(same, "follower", f"{name}, which {path} was trained with", follower_name(given))
        return given
    expected = "the callable that this leader was trained with (a callable is never stored)"
    require(name is not None, "follower", expected, None)
    assert name is not None
    module, _, qualname = name.partition(":")
    package = module.split(".")[0]
    expected = f"the class {name} to be given again (it is not one of SB3's)"
    require(package in ("stable_baselines3", "sb3_contrib"), "follower", expected, None)
    found = getattr(importlib.import_module(package), qualname, None)
    require(isinstance(found, type) and issubclass(found, BaseAlgorithm), "follower", expected, None)
    assert isinstance(found, type)
    return found
