"""Penalties: how far the policies of a follower, or of several players, are from best responses."""

from .base import Penalty, Role, Term
from .bellman import BellmanPenalty
from .nikaido_isoda import NikaidoIsodaPenalty
from .value import ValuePenalty

__all__ = ["BellmanPenalty", "NikaidoIsodaPenalty", "Penalty", "Role", "Term", "ValuePenalty"]
