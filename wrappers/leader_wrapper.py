"""Base class of wrappers that make a leader environment of any Gymnasium environment.

**What the leader model needs travels with the step.** The base environment's own rewards are known as numbers only, not as
functions of (s,a,s'), and a terminal step does not show in next_obs. So ``info["leader_draw"]`` is a float64 vector

    ( r, r_l, c_1, ..., c_m )

of the base environment's reward, the leader's before it pays anything, and what the wrapper measured or drew in the step. The
leader model reads nothing else: wrappers around the leader environment may change the observations as they like.
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
        obs: the observation before it.
        action: the follower's action.
        reward: the base environment's reward.
        next_obs: the observation after it.
        terminated: whether it ended the episode; False where a time limit did.
        info: the base environment's info.
        drawn: what the leader drew for the episode, as the environment was given it, ``[K]``; empty where it draws nothing.
    """

    obs: Any
    action: Any
    reward: float
    next_obs: Any
    terminated: bool
    info: dict[str, Any]
    drawn: Floats = field(default_factory=lambda: np.empty(0))


LeaderReward = Callable[[Step], float]
"""What a step is worth to the leader, before it pays anything; it does not know x."""


class CarriedLeaderModel(nn.Module):
    """A leader model whose only input is ``info["leader_draw"]``.

    Args:
        x: where the parameter starts, ``[dim]``.
        answer: ``(x, r, r_l, c) -> (r_follower, r_leader, log_p)`` for r and r_l ``[...]``, c ``[..., m]``.
    """

    def __init__(
        self, x: Tensor, answer: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.x = nn.Parameter(x.detach().clone())
        self._answer = answer

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """``(r_follower, r_leader, log_p)``, each ``[...]``, for draws ``[..., 2 + m]``."""
        d = torch.as_tensor(draw, dtype=torch.float64)
        r_follower, r_leader, log_p = self._answer(self.x, d[..., 0], d[..., 1], d[..., 2:])
        attached = 0.0 * self.x.sum()  # a gradient of zero where x does not enter
        return r_follower + attached, r_leader + attached, log_p + attached


class LeaderWrapper(LeaderEnv[Any, Any]):
    """Base class of environments that put a leader over another environment.

    It is an environment of its own, ``env.unwrapped`` included, so that ``env.unwrapped.set_leader`` works through other
    wrappers; the base environment is ``env.unwrapped.env``, and attributes that are asked for by ``get_wrapper_attr`` are
    looked up there too. It draws with a generator of its own, apart from the base environment's.

    Args:
        env: the base environment: observations and actions Box, Discrete, MultiDiscrete or MultiBinary.
        leader_set: X.
        start: x at first, a point of X, ``[dim]``.
        gamma: discount of both players, in [0, 1).
        leader_reward: the leader's reward; by default the base environment's own.

    Attributes:
        draws: the wrapper's own generator, from the first reset on.

    Raises:
        ValueError: an env that is none, other spaces, a start outside X, a gamma outside [0, 1); in ``step``, a leader's reward
            that is no finite number.
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
        """The leader context: x itself, ``[dim]``."""
        return self._x.astype(np.float32)

    def leader_model(self) -> CarriedLeaderModel:
        return CarriedLeaderModel(torch.from_numpy(self._x), self._answer)

    @abstractmethod
    def _carried(self, step: Step) -> Floats:
        """The measurements c of a step that the leader model needs, ``[m]``."""

    @abstractmethod
    def _answer(self, x: Tensor, r: Tensor, r_l: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The leader model on batches of steps."""

    def _rewards(self, r: float, r_l: float, c: Floats) -> tuple[float, float]:
        """The rewards of follower and leader in one step, as ``_answer`` computes them, but without torch."""
        return r, r_l

    def _begin(self) -> None:
        """Prepare an episode, before the base environment is reset."""

    def _drawn(self) -> Floats:
        """The values that the leader drew for the episode."""
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
            # There is nothing to measure; ``FiniteSteps``, in which leaders train, says where it came from.
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
    """Raise ``ValueError`` for what is no environment, or has Dict or Tuple spaces or others that are no arrays."""
    require(isinstance(env, gym.Env), "env", "a Gymnasium environment", repr(env))
    spaces = gym.spaces
    for name in ("observation_space", "action_space"):
        space = getattr(env, name)
        known = isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))
        way_out = " (gymnasium.wrappers.FlattenObservation makes one)" if name == "observation_space" else ""
        require(known, "env", f"a Box, Discrete, MultiDiscrete or MultiBinary {name}{way_out}", space)


def _held(obs: Any) -> Any:
    """A copy of an observation, which the environment cannot change later."""
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
        ValueError: another shape, an entry that is not finite.
    """
    vector = np.asarray(value, dtype=np.float64)
    require(vector.shape == (size,), name, f"shape ({size},)", f"shape {vector.shape}")
    require(bool(np.isfinite(vector).all()), name, "finite numbers", vector)
    return vector
