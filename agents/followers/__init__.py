"""Followers: algorithms that are trained, and exact oracles of the best response."""

from .oracles import MirrorDescent, Oracle, OracleAnswer, PolicyGradient, SoftPolicyIteration

__all__ = ["MirrorDescent", "Oracle", "OracleAnswer", "PolicyGradient", "SoftPolicyIteration"]
