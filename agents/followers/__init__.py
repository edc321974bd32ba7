"""Followers: algorithms that are trained, and exact oracles of the best response."""

from .base import Follower, Oracle, OracleAnswer
from .mirror_descent import MirrorDescent
from .policy_gradient import PolicyGradient
from .soft_policy_iteration import SoftPolicyIteration

__all__ = ["Follower", "MirrorDescent", "Oracle", "OracleAnswer", "PolicyGradient", "SoftPolicyIteration"]
