"""Repeats tuned settings and compares the results with the recorded ones."""

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
"""The measure in a run's own result; other measures come from benchmarks."""


Entry = tuple[str, str, str, dict[str, Any]]
"""Environment, leader, follower (or ``EXACT``), and the settings of a tuned entry with its recorded result."""


def chosen(env: str | None, leader: str | None, follower: str | None) -> list[Entry]:
    """The tuned entries that match the names which are given.

    Raises:
        ValueError: no entry matches.
    """
    asked = (None if env is None else catalogue.full_id(env), leader, follower)
    matching = [e for e in entries() if all(a in (None, name) for a, name in zip(asked, e, strict=False))]
    names = ", ".join(name for name in asked if name is not None)
    require(bool(matching), "--env", "tuned settings (`bilevel-gym list tuned`)", f"none for {names}")
    return matching


def runs_of(entry: Entry, n_seeds: int, budget: dict[str, int | None]) -> list[Settings]:
    """Return the settings that repeat a recorded result, for its first seeds, with another ``budget`` if one is given."""
    env, leader, follower, tuned = entry
    evidence = tuned["evidence"]
    given = {"env": env, "leader": leader, "follower": None if follower == EXACT else follower}
    settings = settings_of({**given, "env_kwargs": evidence["env_kwargs"], **budget})
    return over_seeds(settings, evidence["seeds"][:n_seeds], evidence["env_seeds"])


def rows(
    tuned: Sequence[Entry], runs: Sequence[Sequence[Settings]], outcomes: Sequence[Outcome], short: bool
) -> list[dict[str, Any]]:
    """One row per entry: the recorded result, and the mean of the new runs if they are complete and have the same measure."""
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
