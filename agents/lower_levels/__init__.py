"""Lower levels: what solves, differentiates and judges the players' answer, one file a kind."""

from __future__ import annotations

from typing import Any

from .base import LowerLevel, Policies, TabularLevel
from .regulator import Regulator
from .single import OneFollower
from .zero_sum import TwoPlayers

KINDS: dict[str, type[LowerLevel]] = {"single": OneFollower, "zero_sum": TwoPlayers, "regulator": Regulator}
"""By what a problem says of itself, ``problem.lower_level``."""


def lower_level(problem: Any) -> LowerLevel:
    """The lower level of a problem: one of the above by name, or the class that the problem brings."""
    kind = problem.lower_level
    return (KINDS[kind] if isinstance(kind, str) else kind)(problem)


__all__ = ["KINDS", "LowerLevel", "OneFollower", "Policies", "Regulator", "TabularLevel", "TwoPlayers", "lower_level"]
