"""The follower is paid a learned reward, worked out for all environments at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from ..envs.mdp.checks import require
from .vec_env import add_info_column

RewardFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""From observations and actions, ``[n, ...]`` each, rewards ``[n]``."""


class LearnedReward(VecEnvWrapper):
    """Pays ``reward(obs, actions)`` for each step; ``info["true_reward"]`` keeps what the environment paid.

    Args:
        venv: parallel environments of any kind.
        reward: called once a step for all of them, with the observations before it and the actions taken.

    Raises:
        ValueError: a reward that is no function; in ``step``, rewards of another shape than ``[n]`` or that are not finite.
    """

    def __init__(self, venv: VecEnv, reward: RewardFunction) -> None:
        require(callable(reward), "reward", "a function of observations and actions", repr(reward))
        super().__init__(venv)
        self.reward = reward
        self._now: Any = None
        self._taken: Any = None

    def reset(self) -> VecEnvObs:
        obs = self.venv.reset()
        self._now = np.array(obs)
        return obs

    def observed(self, obs: NDArray[Any]) -> None:
        """Go on from these observations, as after a step."""
        self._now = np.array(obs)

    def step_async(self, actions: NDArray[Any]) -> None:
        self._taken = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        paid = np.asarray(self.reward(self._now, self._taken), dtype=np.float32)
        require(paid.shape == rewards.shape, "reward", f"shape {rewards.shape}", f"shape {paid.shape}")
        require(bool(np.isfinite(paid).all()), "reward", "finite numbers", paid)
        add_info_column(self.venv, infos, "true_reward", rewards)
        self._now = np.array(obs)
        return obs, paid, dones, infos
