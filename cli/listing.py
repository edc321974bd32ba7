"""What ``list`` shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import catalogue
from .settings import tuned

Rows = list[tuple[str, str]]


def listing(what: str) -> dict[str, Rows]:
    """Rows of a name and a line each, by title.

    Args:
        what: one of the titles, or ``"all"`` for the first three.
    """
    makers = {"environments": _environments, "leaders": _leaders, "followers": _followers, "tuned": _tuned}
    chosen = list(makers)[:3] if what == "all" else [what]
    return {title: makers[title]() for title in chosen}


def _environments() -> Rows:
    return [(entry.name, entry.line) for entry in catalogue.environments()]


def _leaders() -> Rows:
    """Each with what it knows: the model, steps, or steps and answers."""
    return [
        (name, f"{catalogue.kind(cls)}: {catalogue.first_line(cls)}")
        for name, cls in sorted(catalogue.leaders().items())
    ]


def _followers() -> Rows:
    return [(name, catalogue.first_line(cls, name)) for name, cls in sorted(catalogue.followers().items())]


def entries() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Environment, leader, follower and settings of every tuned entry."""
    for env, leaders in tuned().items():
        for leader, followers in leaders.items():
            for follower, entry in followers.items():
                yield env, leader, follower, entry


def _tuned() -> Rows:
    return [(f"{env} {leader} {follower}", _evidence(entry["evidence"])) for env, leader, follower, entry in entries()]


def _evidence(evidence: dict[str, Any]) -> str:
    """What a tuned entry rests on, in a line."""
    return f"{evidence['measure']} {evidence['value']:g}, {evidence['runs']}: {evidence['page']}"
