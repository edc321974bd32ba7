"""Penalties: what an answer of the follower costs by not being its best response."""

from .base import Penalty
from .bellman import BellmanPenalty, bellman_penalty, bellman_penalty_gradient
from .value import ValuePenalty, value_penalty, value_penalty_gradient

__all__ = [
    "BellmanPenalty",
    "Penalty",
    "ValuePenalty",
    "bellman_penalty",
    "bellman_penalty_gradient",
    "value_penalty",
    "value_penalty_gradient",
]
