"""Tuned settings run again, beside the evidence for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..envs.mdp.checks import require
from . import catalogue
from .listing import entries
from .run import score
from .settings import EXACT, Settings, settings_of
from .statistics import interval, shown
from .sweep import Outcome, over_seeds

SCORE = "leader_return"
"""The measure that a run's own result has; others are a benchmark's."""


@dataclass(frozen=True)
class Entry:
    """A tuned entry and its evidence, as ``tuned.yml`` has them."""

    env: str
    leader: str
    follower: str | None
    evidence: dict[str, Any]


def chosen(env: str | None, leader: str | None, follower: str | None) -> list[Entry]:
    """The entries with these names, where they are given.

    Raises:
        ValueError: there is none.
    """
    env = None if env is None else catalogue.full_id(env)
    matching = [
        Entry(*found[:2], None if found[2] == EXACT else found[2], found[3]["evidence"])
        for found in entries()
        if all(asked in (None, name) for asked, name in zip((env, leader, follower), found, strict=False))
    ]
    names = ", ".join(name for name in (env, leader, follower) if name is not None)
    require(bool(matching), "--env", "tuned settings (`bilevel-gym list tuned`)", f"none for {names}")
    return matching


def runs_of(entry: Entry, n_seeds: int, n_timesteps: int | None) -> list[Settings]:
    """The runs that the evidence rests on: its first seeds, its environments."""
    given: dict[str, Any] = {"env": entry.env, "leader": entry.leader, "follower": entry.follower}
    settings = settings_of({**given, "env_kwargs": entry.evidence["env_kwargs"], "n_timesteps": n_timesteps})
    return over_seeds(settings, entry.evidence["seeds"][:n_seeds], entry.evidence["env_seeds"])


def rows(
    tuned: Sequence[Entry], runs: Sequence[Sequence[Settings]], outcomes: Sequence[Outcome], short: bool
) -> list[dict[str, Any]]:
    """A row an entry: its evidence, and the mean of the runs here where the measure is the same and nothing was cut short."""
    results = {o.settings.hash: o.result for o in outcomes if o.result is not None}
    found = []
    for entry, mine in zip(tuned, runs, strict=True):
        scores = [score(results[run.hash]["evaluation"]) for run in mine if run.hash in results]
        comparable = entry.evidence["measure"] == SCORE
        found.append(
            {
                "env": entry.env,
                "leader": entry.leader,
                "follower": entry.follower or EXACT,
                "steps": mine[0].n_timesteps,
                "measure": entry.evidence["measure"] + (" (cut short here)" if short else ""),
                "evidence": f"{entry.evidence['value']:.4g}",
                "here": shown(*interval(scores)) if comparable else f"leader_return {shown(*interval(scores))}",
                "runs": len(scores),
                "page": entry.evidence["page"],
            }
        )
    return found
