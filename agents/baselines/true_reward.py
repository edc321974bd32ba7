"""The upper bound for learning from preferences: the same SB3 follower, trained on the true reward."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ...envs.mdp import TabularMDP
from ...wrappers import RewardMixing, SegmentRecorder
from ..leader import Progress
from ..preferences.method import PreferenceMethod
from ..preferences.recorded import RecordedFollower
from ..preferences.reward_model import RewardModel
from ..preferences.training import Fit
from .drlhf import DRLHF


class TrueRewardMethod(PreferenceMethod):
    """Train on the true reward: nobody is asked and nothing is fitted."""

    def paying(self, model: RewardModel, recorder: SegmentRecorder) -> VecEnv:
        return RewardMixing(recorder, weight=1.0, own_weight=0.0) if self.worlds.has_leader else recorder

    def begin(self, state: Any, progress: Progress, afresh: bool) -> None:
        state.begun = True

    def first_steps(self, state: Any) -> int:
        return 0

    def ask(self, state: Any, n: int, since: int) -> None: ...

    def fit(self, state: Any, epochs: int, since: dict[str, int] | None, progress: Progress) -> Fit:
        return Fit(float("nan"), float("nan"))

    def relabel(self, state: Any, f: RecordedFollower) -> None: ...

    def table(self, state: Any, mdp: TabularMDP) -> Tensor:
        return mdp.r


class TrueReward(DRLHF):
    """A follower that is paid the true reward, or what ``Copies`` pay for it, and asks nobody.

    Arguments are those of ``DRLHF``; a labeller is not used.
    """

    method_class = TrueRewardMethod
