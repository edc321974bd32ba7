"""Oracles: how the follower's best response is found."""

from .base import Oracle, OracleAnswer
from .mirror_descent import MirrorDescent
from .policy_gradient import PolicyGradient
from .soft_policy_iteration import SoftPolicyIteration

__all__ = ["MirrorDescent", "Oracle", "OracleAnswer", "PolicyGradient", "SoftPolicyIteration"]
