"""Penalties: what an answer of the follower, or of two players, costs by not being a best response."""

from .base import Penalty, WeightedPenalty
from .bellman import BellmanPenalty, bellman_penalty, bellman_penalty_gradient
from .nikaido_isoda import NikaidoIsodaPenalty, nikaido_isoda_penalty, nikaido_isoda_penalty_gradient
from .value import ValuePenalty, value_penalty, value_penalty_gradient

__all__ = [
    "BellmanPenalty",
    "NikaidoIsodaPenalty",
    "Penalty",
    "ValuePenalty",
    "WeightedPenalty",
    "bellman_penalty",
    "bellman_penalty_gradient",
    "nikaido_isoda_penalty",
    "nikaido_isoda_penalty_gradient",
    "value_penalty",
    "value_penalty_gradient",
]
