"""Lower levels, one per file: the followers' problem at a given x, its solution and derivative."""

from __future__ import annotations

from typing import Any

from ...envs.mdp.checks import require
from .base import LowerLevel, Policies, TabularLevel
from .regulator import Regulator
from .single import OneFollower
from .zero_sum import TwoPlayers

KINDS: dict[str, type[LowerLevel]] = {"single": OneFollower, "zero_sum": TwoPlayers, "regulator": Regulator}
"""Lower levels by name, as in ``problem.lower_level``."""


def lower_level(problem: Any) -> LowerLevel:
    """Return the lower level of a problem: one of the above by name, or the problem's own class."""
    kind = problem.lower_level
    known = not isinstance(kind, str) or kind in KINDS
    require(
        known, "problem", f"one whose lower_level is one of {sorted(KINDS)} or a class", f"a {type(problem).__name__}"
    )
    return (KINDS[kind] if isinstance(kind, str) else kind)(problem)


__all__ = ["KINDS", "LowerLevel", "OneFollower", "Policies", "Regulator", "TabularLevel", "TwoPlayers", "lower_level"]
