"""The follower is paid a mixture of its own reward and the leader's, or the leader's alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from ..envs.mdp.checks import check_number


class RewardMixing(VecEnvWrapper):
    """Pays own_weight * r_f + weight * r_l; ``info["follower_reward"]`` keeps r_f, ``info["leader_reward"]`` r_l.

    With weight 1/lam, the follower that maximises this return is the lower variable of the penalised problem divided
    by lam.

    Args:
        venv: copies of a leader environment.
        weight: weight of the leader's reward, finite; it may be set anew at any time, and counts from the next step.
        own_weight: weight of the follower's own reward, finite.

    Raises:
        ValueError: a weight that is not finite.
    """

    def __init__(self, venv: VecEnv, weight: float, own_weight: float = 1.0) -> None:
        self.weight = weight
        self.own_weight = check_number(
            own_weight, "own_weight", low=-math.inf, high=math.inf, open_low=True, open_high=True
        )
        super().__init__(venv)

    @property
    def weight(self) -> float:
        """Weight of the leader's reward."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = check_number(value, "weight", low=-math.inf, high=math.inf, open_low=True, open_high=True)

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        leader_rewards: list[Any] = [info["leader_reward"] for info in infos]
        for info, reward in zip(infos, rewards.tolist(), strict=True):
            info["follower_reward"] = reward
        mixed = self.own_weight * rewards + self._weight * np.asarray(leader_rewards)
        return obs, mixed.astype(np.float32), dones, infos
