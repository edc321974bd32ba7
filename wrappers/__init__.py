"""Views of an environment: the native simulator for SB3, the leader's commitment in the observation, mixed rewards."""

from .commitment import CommitmentLeaderModel, ObserveCommitment, ObserveCommitmentVec, commitment_features
from .reward_mixing import RewardMixing
from .vec_env import VectorEnvAdapter, set_leader

__all__ = [
    "CommitmentLeaderModel",
    "ObserveCommitment",
    "ObserveCommitmentVec",
    "RewardMixing",
    "VectorEnvAdapter",
    "commitment_features",
    "set_leader",
]
