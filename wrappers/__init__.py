"""Wrappers: a leader over any environment, x shown to the follower, mixed and learned rewards, parallel environments, and
recorded segments of behaviour."""

if __name__ != "bilevel_gym.wrappers":
    raise ImportError(f"import bilevel_gym.wrappers, not {__name__}: it would load a second copy of each class")

from .drawn_attribute import Attribute, DrawnAttribute
from .for_sb3 import ForSB3
from .hidden_model import HiddenModel, hide_model
from .leader_wrapper import CarriedLeaderModel, LeaderReward, LeaderWrapper, Step
from .segments import LearnedReward, Segment, SegmentRecorder
from .shaping import EventPayments, LinearPotential, LinearReward, PotentialModule, RewardModule, ShapedReward, Shaping
from .vec_env import (
    CommitmentLeaderModel,
    FiniteSteps,
    ObserveCommitment,
    RewardMixing,
    VectorEnvAdapter,
    set_leader,
)
from .workers import WorkerVecEnv, make_copy

__all__ = [
    "Attribute",
    "CarriedLeaderModel",
    "CommitmentLeaderModel",
    "DrawnAttribute",
    "EventPayments",
    "FiniteSteps",
    "ForSB3",
    "HiddenModel",
    "LeaderReward",
    "LeaderWrapper",
    "LearnedReward",
    "LinearPotential",
    "LinearReward",
    "ObserveCommitment",
    "PotentialModule",
    "RewardMixing",
    "RewardModule",
    "Segment",
    "SegmentRecorder",
    "ShapedReward",
    "Shaping",
    "Step",
    "VectorEnvAdapter",
    "WorkerVecEnv",
    "hide_model",
    "make_copy",
    "set_leader",
]
