"""The upper bound of learning from preferences: the same SB3 follower on the true reward, which it never has to guess."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor

from ...wrappers import SegmentRecorder
from ...wrappers.vec_env import info_column
from ..preferences.recorded import RecordedFollower
from ..preferences.training import Fit
from .drlhf import DRLHF


class PaidFromInfo(VecEnvWrapper):
    """Pays what stands in ``info`` under a key.

    Args:
        venv: copies of an environment.
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


class TrueReward(DRLHF):
    """A follower that is paid the true reward, or what ``Copies`` pay for it; it asks nobody.

    Arguments as ``DRLHF``; a labeller is not used.
    """

    def _paying(self, recorder: SegmentRecorder) -> VecEnv:
        key = self.worlds.wage
        return recorder if key is None else PaidFromInfo(recorder, key)

    def _begin(self) -> None:
        self._begun = True

    def _ask(self, n: int, since: int) -> None: ...

    def _fit(self, epochs: int, since: dict[int, int] | None) -> Fit:
        return Fit(float("nan"), float("nan"))

    def _relabel(self, f: RecordedFollower) -> None: ...

    def _table(self) -> Tensor:
        mdp = self.worlds.true_mdp()
        assert mdp is not None
        return mdp.r
