"""The upper bound of learning from preferences: the same SB3 follower on the true reward, which it never has to guess."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor

from ...envs.mdp import TabularMDP
from ...wrappers import SegmentRecorder
from ...wrappers.vec_env import info_column
from ..leader import Progress
from ..preferences.method import PreferenceMethod
from ..preferences.recorded import RecordedFollower
from ..preferences.reward_model import RewardModel
from ..preferences.training import Fit
from .drlhf import DRLHF


class PaidFromInfo(VecEnvWrapper):
    """Pays what stands in ``info`` under a key.

    Args:
        venv: parallel environments.
        key: the key.
    """

    def __init__(self, venv: VecEnv, key: str) -> None:
        super().__init__(venv)
        self._key = key

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        obs, _, dones, infos = self.venv.step_wait()
        paid = info_column(self.venv, infos, self._key)
        return obs, paid.astype(np.float32), dones, infos


class TrueRewardMethod(PreferenceMethod):
    """Nobody is asked, nothing is fitted."""

    def paying(self, model: RewardModel, recorder: SegmentRecorder) -> VecEnv:
        key = self.worlds.wage
        return recorder if key is None else PaidFromInfo(recorder, key)

    def begin(self, state: Any, progress: Progress, afresh: bool) -> None:
        state.begun = True

    def ask(self, state: Any, n: int, since: int) -> None: ...

    def fit(self, state: Any, epochs: int, since: dict[str, int] | None, progress: Progress) -> Fit:
        return Fit(float("nan"), float("nan"))

    def relabel(self, state: Any, f: RecordedFollower) -> None: ...

    def table(self, state: Any, mdp: TabularMDP) -> Tensor:
        return mdp.r


class TrueReward(DRLHF):
    """A follower that is paid the true reward, or what ``Copies`` pay for it; it asks nobody.

    Arguments as ``DRLHF``; a labeller is not used.
    """

    method_class = TrueRewardMethod
