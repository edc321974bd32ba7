"""Penalties: what an answer of the follower, or of two players, costs by not being a best response."""

from .base import Penalty, Role, Term
from .bellman import BellmanPenalty, bellman_penalty, bellman_penalty_gradient, sampled_bellman_penalty
from .nikaido_isoda import (
    NikaidoIsodaPenalty,
    nikaido_isoda_penalty,
    nikaido_isoda_penalty_gradient,
    sampled_nikaido_isoda_penalty,
)
from .value import ValuePenalty, sampled_value_penalty, value_penalty, value_penalty_gradient

__all__ = [
    "BellmanPenalty",
    "NikaidoIsodaPenalty",
    "Penalty",
    "Role",
    "Term",
    "ValuePenalty",
    "bellman_penalty",
    "bellman_penalty_gradient",
    "nikaido_isoda_penalty",
    "nikaido_isoda_penalty_gradient",
    "sampled_bellman_penalty",
    "sampled_nikaido_isoda_penalty",
    "sampled_value_penalty",
    "value_penalty",
    "value_penalty_gradient",
]
