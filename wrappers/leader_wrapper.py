"""Base class of wrappers that make a leader environment of any Gymnasium environment.

**All inputs of the leader model are in** ``info["leader_draw"]``. The base environment's rewards are known as numbers only, not
as functions of (s,a,s'), and next_obs does not show whether the step was terminal. ``info["leader_draw"]`` is therefore a
float64 vector

    ( r, r_l, c_1, ..., c_m )

with the base environment's reward, the leader's reward before any payment, and the values that the wrapper measured or drew in
the step. The leader model reads nothing else, so that other wrappers may change the observations.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..envs.core import LeaderEnv
from ..envs.mdp import LeaderSet
from ..envs.mdp.checks import check_gamma, one_number, require

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the base environment.

    Attributes:
        obs: the observation before the step.
        action: the follower's action.
        reward: the base environment's reward.
        next_obs: the observation after the step.
        terminated: whether the environment ended the episode in this step; False if a time limit did.
        info: the base environment's info.
        drawn: the values that the leader drew for the episode, after clipping, ``[K]``; empty (default) if it draws nothing.
    """

    obs: Any
    action: Any
    reward: float
    next_obs: Any
    terminated: bool
    info: dict[str, Any]
    drawn: Floats = field(default_factory=lambda: np.empty(0))


LeaderReward = Callable[[Step], float]
"""A function from a step to the leader's reward before any payment; it must not depend on x."""


class CarriedLeaderModel(nn.Module):
    """A leader model whose only input is ``info["leader_draw"]``.

    Args:
        x: the initial value of the parameter, ``[dim]``.
        answer: a function ``(x, r, r_l, c) -> (r_follower, r_leader, log_p)`` for r and r_l ``[...]``, c ``[..., m]``.
    """

    def __init__(
        self, x: Tensor, answer: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.x = nn.Parameter(x.detach().clone())
        self._answer = answer

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(r_follower, r_leader, log_p)``, each ``[...]``, for draws ``[..., 2 + m]``; the rest is not used."""
        d = torch.as_tensor(draw, dtype=torch.float64)
        r_follower, r_leader, log_p = self._answer(self.x, d[..., 0], d[..., 1], d[..., 2:])
        attached = 0.0 * self.x.sum()  # a gradient of zero where x does not enter
        return r_follower + attached, r_leader + attached, log_p + attached


class LeaderWrapper(LeaderEnv[Any, Any]):
    """Base class of environments that put a leader over another environment.

    It is an environment and not a Gymnasium wrapper: ``env.unwrapped`` stops at it, so that ``env.unwrapped.set_leader`` works
    through other wrappers. The base environment is ``env.unwrapped.env``; ``get_wrapper_attr`` also looks attributes up there.
    The leader's draws come from a random generator of their own, not from the base environment's.

    Args:
        env: the base environment, with Box, Discrete, MultiDiscrete or MultiBinary observations and actions.
        leader_set: the leader's set X.
        start: the initial x, a point of X, ``[dim]``.
        gamma: discount factor of both players, in [0, 1).
        leader_reward: the leader's reward, a function of a :class:`Step`. Default: the base environment's reward.

    Attributes:
        draws: the wrapper's random generator; None before the first reset.

    Raises:
        ValueError: ``env`` is not a Gymnasium environment or has other spaces, ``start`` lies outside X, or ``gamma`` outside
            [0, 1); in ``step``, the leader's reward is not a finite number.
    """

    def __init__(
        self, env: gym.Env[Any, Any], leader_set: LeaderSet, start: Tensor, gamma: float, leader_reward: Any = None
    ) -> None:
        check_base(env)
        callable_ = leader_reward is None or callable(leader_reward)
        require(callable_, "leader_reward", "a callable from a Step to a number", repr(leader_reward))
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata, self.render_mode = env.metadata, env.render_mode
        self.gamma, self._leader_reward = check_gamma(gamma), leader_reward
        self.leader_set = self._leader_set = leader_set
        self.leader_space = gym.spaces.Box(leader_set.low.numpy(), leader_set.high.numpy(), dtype=np.float64)
        self.set_leader(start)
        self.commitment_size = leader_set.dim
        self.draws: Any = None
        self._obs: Any = None

    # --- the leader's side ---------------------------------------------------------------------------------------

    @property
    def leader_x(self) -> Floats:
        return self._x.copy()

    def set_leader(self, x: Any) -> None:
        self._x: Floats = self._leader_set.check(x).detach().numpy().copy()

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """Return the leader context: x itself, ``[dim]``, at every observation."""
        return self._x.astype(np.float32)

    def leader_model(self) -> CarriedLeaderModel:
        return CarriedLeaderModel(torch.from_numpy(self._x), self._answer)

    @abstractmethod
    def _carried(self, step: Step) -> Floats:
        """Return the measurements c of a step that the leader model needs, ``[m]``."""

    @abstractmethod
    def _answer(self, x: Tensor, r: Tensor, r_l: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the leader model on a batch of steps."""

    def _rewards(self, r: float, r_l: float, c: Floats) -> tuple[float, float]:
        """Return the follower's and the leader's reward in one step, as ``_answer`` does, but without torch."""
        return r, r_l

    def _begin(self) -> None:
        """Prepare an episode, before the base environment is reset."""

    def _drawn(self) -> Floats:
        """Return the values that the leader drew for the episode, ``[K]``."""
        return np.empty(0)

    # --- the environment -----------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self.draws is None:
            (self.draws,) = self.np_random.spawn(1)
        self._begin()
        obs, info = self.env.reset(seed=seed, options=options)
        self._obs = _held(obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        paid = one_number(reward, "reward")
        step = Step(self._obs, action, paid, obs, bool(terminated), info, self._drawn())
        self._obs = _held(obs)
        if not (math.isfinite(paid) and _finite(obs)):
            # Nothing can be measured here; ``FiniteSteps``, which leaders train in, raises the error and names its source.
            told = {"leader_reward": paid, "leader_draw": np.full(2, np.nan)}
            return obs, paid, step.terminated, bool(truncated), {**info, **told}
        r_l = step.reward if self._leader_reward is None else _number(self._leader_reward(step), "leader_reward")
        c = self._carried(step)
        follower, leader = self._rewards(step.reward, r_l, c)
        draw = np.concatenate([(step.reward, r_l), c])
        return obs, follower, step.terminated, bool(truncated), {**info, "leader_reward": leader, "leader_draw": draw}

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    def has_wrapper_attr(self, name: str) -> bool:
        return super().has_wrapper_attr(name) or self.env.has_wrapper_attr(name)

    def get_wrapper_attr(self, name: str) -> Any:
        return getattr(self, name) if hasattr(self, name) else self.env.get_wrapper_attr(name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        if not hasattr(self, name) and self.env.has_wrapper_attr(name):
            return self.env.set_wrapper_attr(name, value, force=force)
        return super().set_wrapper_attr(name, value, force=force)

    def __str__(self) -> str:
        return f"<{type(self).__name__}{self.env}>"


def check_base(env: Any) -> None:
    """Raise ``ValueError`` unless ``env`` is a Gymnasium environment whose observations and actions are arrays."""
    require(isinstance(env, gym.Env), "env", "a Gymnasium environment", repr(env))
    spaces = gym.spaces
    for name in ("observation_space", "action_space"):
        space = getattr(env, name)
        known = isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))
        way_out = " (gymnasium.wrappers.FlattenObservation makes one)" if name == "observation_space" else ""
        require(known, "env", f"a Box, Discrete, MultiDiscrete or MultiBinary {name}{way_out}", space)


def _held(obs: Any) -> Any:
    """Return a copy of an observation, which the environment cannot change later."""
    return obs.copy() if isinstance(obs, np.ndarray) else obs


def _finite(obs: Any) -> bool:
    return not isinstance(obs, np.ndarray) or obs.dtype.kind != "f" or bool(np.isfinite(obs).all())


def _number(value: Any, name: str) -> float:
    """Return the value as a finite float."""
    number = one_number(value, name)
    require(math.isfinite(number), name, "a finite number in every step", number)
    return number


def finite_vector(value: Any, size: int, name: str) -> Floats:
    """Return the value as ``[size]`` finite numbers.

    Raises:
        ValueError: the value has another shape, or an entry that is not finite.
    """
    vector = np.asarray(value, dtype=np.float64)
    require(vector.shape == (size,), name, f"shape ({size},)", f"shape {vector.shape}")
    require(bool(np.isfinite(vector).all()), name, "finite numbers", vector)
    return vector
