"""What a user gives as follower, the Stable-Baselines3 model that is built from it, how it answers, and its name in files."""

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
"""Temperature of a Q-network's answers, in the reward's unit."""
FALLING_ENTROPY = Geometric(0.2, 0.05)
"""Entropy bonus of a linear policy in training: soft at first, so that no action is given up before x has settled."""


@dataclass(frozen=True, eq=False)
class AlgorithmSpec:
    """An SB3 class with some settings of its own, beside those that suit a moving x (see ``tuned.yml``).

    Attributes:
        algorithm: the class.
        settings: arguments of its constructor; ``policy`` too.

    Raises:
        ValueError: no SB3 class, an argument that it does not have.
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
"""What a user gives as follower: an SB3 class, :class:`AlgorithmSpec`, or a callable that builds a model on a VecEnv."""


@dataclass(frozen=True)
class Answering:
    """How a follower answers when it is asked for its policy, and how soft it is trained to be.

    Attributes:
        q_temperature: a model with a Q-network and discrete actions answers with ``softmax(Q / q_temperature)``; by the
            follower's own progress.
        averaging: the answer is that of an average of the weights after each call of ``train``, of which the past keeps
            this share, in [0, 1), and at first no more than an equal one: what the optimiser's noise moves back and forth
            does not reach the leader.
        entropy: coefficient of the entropy bonus of a model that has a fixed one (PPO's and A2C's ``ent_coef``), by the
            follower's own progress; None leaves the model's.
    """

    q_temperature: Schedule = FALLING_Q_TEMPERATURE
    averaging: float = 0.0
    entropy: Schedule | None = None

    def __post_init__(self) -> None:
        plain_fields(self)


def build_model(spec: FollowerSpec, venv: VecEnv, gamma: float, seed: int, linear: bool) -> BaseAlgorithm:
    """The user's algorithm on ``venv``.

    Args:
        spec: what the user gave.
        venv: the follower's parallel environments.
        gamma: their discount.
        seed: of a model that is built from a class.
        linear: whether a linear policy is exact (see :func:`.tuned.tuned_settings`).

    Raises:
        ValueError: an algorithm that cannot act in the action space; something that is neither a class nor a callable; a
            callable that returns no SB3 model, or one with another discount, on other environments or other observations,
            or with rewards scaled as they once were.
    """
    own: dict[str, Any] = spec.settings if isinstance(spec, AlgorithmSpec) else {}
    spec = spec.algorithm if isinstance(spec, AlgorithmSpec) else spec
    name = getattr(spec, "__name__", repr(spec))
    build: Callable[[VecEnv], Any] = spec
    if isinstance(spec, type):
        # A class is built with tuned settings and its plain policy: of ARS the linear one, for its search starts at 0,
        # which a network hardly leaves.
        require(issubclass(spec, BaseAlgorithm), "follower", "an SB3 algorithm class or a callable", name)
        algorithm: Any = spec
        n_inputs = int(np.prod(venv.action_space.shape)) if isinstance(venv.action_space, gym.spaces.Box) else 0
        plain_policies = [alias for alias in ("LinearPolicy", "MlpPolicy") if alias in algorithm.policy_aliases]
        settings: dict[str, Any] = {"policy": [*plain_policies, "MlpLstmPolicy"][0], "device": "cpu"}
        if "gamma" in inspect.signature(spec).parameters:  # ARS has none
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

    # Only a callable can return something else than what was asked for.
    got = f"{type(model).__name__} from {name}"
    require(isinstance(model, BaseAlgorithm), "follower", "a callable that returns an SB3 model", got)
    assert isinstance(model, BaseAlgorithm)
    theirs, expected = check_gamma(getattr(model, "gamma", gamma)), f"a model with the environment's gamma={gamma}"
    require(abs(theirs - gamma) < 1e-12, "follower", expected, f"gamma={theirs} from {name}")
    inner: Any = model.get_env()
    while isinstance(inner, VecEnvWrapper) and inner is not venv:
        inner = inner.venv
    require(inner is venv, "follower", "a model on the VecEnv it is given, for x reaches no other", f"one from {name}")
    seen, shape = model.observation_space.shape, venv.observation_space.shape
    require(seen == shape, "follower", f"a model that observes what the world shows, of shape {shape}", f"shape {seen}")
    scaling = model.get_vec_normalize_env()
    frozen = scaling is not None and scaling.norm_reward and not scaling.training
    expected = "a VecNormalize whose scale of rewards follows x (training=True), or norm_reward=False"
    require(not frozen, "follower", expected, f"training=False and norm_reward=True from {name}")

    # ARS's own count of steps runs once for each environment in each step, and counts all of them every time.
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


def takes(call: Callable[..., Any], n: int) -> bool:
    """Whether a callable can be called with so many arguments, as far as can be told."""
    try:
        inspect.signature(call).bind(*[None] * n)
    except TypeError:
        return False
    except ValueError:  # without a signature
        return True
    return True


def follower_name(spec: FollowerSpec) -> str | None:
    """The name under which a leader file holds a class; None for a callable, which it does not hold."""
    return f"{spec.__module__}:{spec.__qualname__}" if isinstance(spec, type) else None


def follower_of_file(name: str | None, given: FollowerSpec | None, path: object) -> FollowerSpec:
    """The follower of a leader file: the one given again, or the class of SB3 or sb3-contrib that the file names.

    Of a file's names only these two packages are imported.

    Raises:
        ValueError: another class than the file's, a class of neither package or a callable that is not given again.
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
    expected = f"the class {name} to be given again (it is none of SB3's own)"
    require(package in ("stable_baselines3", "sb3_contrib"), "follower", expected, None)
    found = getattr(importlib.import_module(package), qualname, None)
    require(isinstance(found, type) and issubclass(found, BaseAlgorithm), "follower", expected, None)
    assert isinstance(found, type)
    return found
