"""Followers: algorithms that are trained, and exact oracles of the best response."""

from .base import Follower
from .oracles import MirrorDescent, Oracle, OracleAnswer, PolicyGradient, SoftPolicyIteration

__all__ = ["Follower", "MirrorDescent", "Oracle", "OracleAnswer", "PolicyGradient", "SoftPolicyIteration"]
