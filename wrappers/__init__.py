"""Views of an environment: the native simulator for SB3, processes that tell of their end, the leader's
commitment in the observation, mixed rewards."""

from .commitment import CommitmentLeaderModel, ObserveCommitment, ObserveCommitmentVec, commitment_features
from .reward_mixing import RewardMixing
from .vec_env import VectorEnvAdapter, set_leader
from .workers import WorkerVecEnv, make_copy

__all__ = [
    "CommitmentLeaderModel",
    "ObserveCommitment",
    "ObserveCommitmentVec",
    "RewardMixing",
    "VectorEnvAdapter",
    "WorkerVecEnv",
    "commitment_features",
    "make_copy",
    "set_leader",
]
