"""Converts an environment's observations, actions and rewards to the forms that Stable-Baselines3 accepts, and back.

    Discrete(n, start=k), MultiDiscrete(n, start=k)     numbers from 0, as in SB3's actions and one-hot observations
    images with channels last                           images with channels first, as in SB3's networks
    rewards of shape (1,)                               numbers

Actions are converted back before they reach the environment or its leader model, so that a leader whose reward depends on the
action is paid for the true action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import nn

from ..envs.mdp.checks import one_number
from .vec_env import CommitmentLeaderModel


class _Change(ABC):
    """Converts values of a space to the form that SB3 accepts, and back.

    Attributes:
        space: the space of the converted values.
    """

    space: gym.Space[Any]

    @abstractmethod
    def told(self, value: Any) -> Any:
        """Convert a value of the environment for SB3."""

    @abstractmethod
    def own(self, value: Any) -> Any:
        """Convert back: one value, or a batch ``[..., shape]`` as an array or a tensor."""


class _FromZero(_Change):
    """Converts whole numbers so that they count from 0."""

    def __init__(self, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete) -> None:
        if isinstance(space, gym.spaces.Discrete):
            self.space = gym.spaces.Discrete(int(space.n))
        else:
            self.space = gym.spaces.MultiDiscrete(space.nvec)
        self._start = space.start

    def told(self, value: Any) -> Any:
        return value - self._start

    def own(self, value: Any) -> Any:
        return value + (torch.as_tensor(self._start) if isinstance(value, torch.Tensor) else self._start)


class _ChannelsFirst(_Change):
    """Converts images to channels first."""

    def __init__(self, space: gym.spaces.Box) -> None:
        low, high = (self.told(end) for end in (space.low, space.high))
        self.space = gym.spaces.Box(low, high, dtype=np.uint8)

    def told(self, value: Any) -> Any:
        return np.moveaxis(value, -1, -3)

    def own(self, value: Any) -> Any:
        return value.movedim(-3, -1) if isinstance(value, torch.Tensor) else np.moveaxis(value, -3, -1)


def _change(space: gym.Space[Any]) -> _Change | None:
    """Return the conversion that SB3 needs for a space; None if it needs none."""
    if isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
        return _FromZero(space) if np.any(space.start) else None
    if not isinstance(space, gym.spaces.Box) or not is_image_space(space):
        return None
    return None if is_image_space_channels_first(space) else _ChannelsFirst(space)


class ForSB3(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Wrapper that converts observations, actions and rewards to the forms that SB3 accepts (see the module).

    Everything else stays unchanged.

    Args:
        env: any environment, with or without a leader.

    Raises:
        ValueError: in ``step``, a reward is not a single number.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._obs, self._action = _change(env.observation_space), _change(env.action_space)
        if self._obs is not None:
            self.observation_space = self._obs.space
        if self._action is not None:
            self.action_space = self._action.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return (obs if self._obs is None else self._obs.told(obs)), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._action is not None:
            action = self._action.own(action)
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._obs is not None:
            obs = self._obs.told(obs)
        to_leader = info.get("leader_reward", 0.0)
        if type(to_leader) is not float:
            info = {**info, "leader_reward": one_number(to_leader, "leader_reward")}
        return obs, one_number(reward, "reward"), terminated, truncated, info

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """Return the leader context at an observation ``obs`` in SB3's form."""
        shown: NDArray[np.float32] = self.env.get_wrapper_attr("commitment")(
            obs if self._obs is None else self._obs.own(obs)
        )
        return shown

    def leader_model(self) -> nn.Module:
        """Return the environment's leader model, for observations and actions in SB3's form."""
        model: nn.Module = self.env.get_wrapper_attr("leader_model")()
        if self._obs is None and self._action is None:
            return model
        obs, action = (None if change is None else change.own for change in (self._obs, self._action))
        return CommitmentLeaderModel(model, obs, action)
