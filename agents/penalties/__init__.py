"""Penalties: what an answer of the follower, or of two players, costs by not being a best response."""

from .base import Penalty, Role, Term
from .bellman import BellmanPenalty
from .nikaido_isoda import NikaidoIsodaPenalty
from .value import ValuePenalty

__all__ = ["BellmanPenalty", "NikaidoIsodaPenalty", "Penalty", "Role", "Term", "ValuePenalty"]
