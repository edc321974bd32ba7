"""Tuned settings run again, beside the evidence for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..envs.mdp.checks import require
from . import catalogue
from .run import score
from .settings import EXACT, Settings, entries, settings_of
from .statistics import interval
from .sweep import Outcome, over_seeds

SCORE = "leader_return"
"""The measure that a run's own result has; others are a benchmark's."""


Entry = tuple[str, str, str, dict[str, Any]]
"""Environment, leader, follower or ``EXACT``, and settings of a tuned entry, its evidence among them."""


def chosen(env: str | None, leader: str | None, follower: str | None) -> list[Entry]:
    """The entries with these names, where they are given.

    Raises:
        ValueError: there is none.
    """
    asked = (None if env is None else catalogue.full_id(env), leader, follower)
    matching = [e for e in entries() if all(a in (None, name) for a, name in zip(asked, e, strict=False))]
    names = ", ".join(name for name in asked if name is not None)
    require(bool(matching), "--env", "tuned settings (`bilevel-gym list tuned`)", f"none for {names}")
    return matching


def runs_of(entry: Entry, n_seeds: int, budget: dict[str, int | None]) -> list[Settings]:
    """The runs that the evidence rests on: its first seeds, its environments; of another ``budget`` where one is given."""
    env, leader, follower, tuned = entry
    evidence = tuned["evidence"]
    given = {"env": env, "leader": leader, "follower": None if follower == EXACT else follower}
    settings = settings_of({**given, "env_kwargs": evidence["env_kwargs"], **budget})
    return over_seeds(settings, evidence["seeds"][:n_seeds], evidence["env_seeds"])


def rows(
    tuned: Sequence[Entry], runs: Sequence[Sequence[Settings]], outcomes: Sequence[Outcome], short: bool
) -> list[dict[str, Any]]:
    """A row an entry: its evidence, and the mean of the runs here where the measure is the same and nothing was cut short."""
    results = {o.settings.hash: o.result for o in outcomes if o.result is not None}
    found = []
    for (env, leader, follower, entry), mine in zip(tuned, runs, strict=True):
        evidence = entry["evidence"]
        scores = [score(results[run.hash]["evaluation"]) for run in mine if run.hash in results]
        here = interval(scores).text(4, "g") if scores else "none"
        found.append(
            {
                "env": env,
                "leader": leader,
                "follower": follower,
                "steps": mine[0].budget,
                "measure": evidence["measure"] + (" (cut short here)" if short else ""),
                "evidence": f"{evidence['value']:.4g}",
                "here": here if evidence["measure"] == SCORE else f"leader_return {here}",
                "runs": len(scores),
                "page": evidence["page"],
            }
        )
    return found
