"""What ``list`` shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from . import catalogue
from .settings import tuned

Rows = list[tuple[str, str]]


def listing(what: str) -> dict[str, Rows]:
    """Rows of a name and a line each, by title.

    Args:
        what: one of the titles, or ``"all"`` for the first three.
    """
    makers: dict[str, Callable[[], Rows]] = {
        "environments": lambda: [(name, catalogue.environment_line(name)) for name in catalogue.environment_ids()],
        "leaders": lambda: [
            (
                name,
                f"{catalogue.kind(cls)}: {catalogue.first_line(cls)}",
            )  # with what it knows: the model, steps, answers
            for name, cls in sorted(catalogue.leaders().items())
        ],
        "followers": lambda: [
            (name, catalogue.first_line(cls, name)) for name, cls in sorted(catalogue.followers().items())
        ],
        "tuned": lambda: [(" ".join(names), _evidence(entry["evidence"])) for *names, entry in entries()],
    }
    chosen = list(makers)[:3] if what == "all" else [what]
    return {title: makers[title]() for title in chosen}


def entries() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Environment, leader, follower and settings of every tuned entry."""
    for env, leaders in tuned().items():
        for leader, followers in leaders.items():
            for follower, entry in followers.items():
                yield env, leader, follower, entry


def _evidence(evidence: dict[str, Any]) -> str:
    """What a tuned entry rests on, in a line."""
    return f"{evidence['measure']} {evidence['value']:g}, {evidence['runs']}: {evidence['page']}"
