"""Sweeps: sixteen runs one after another, in two processes, on a local Ray cluster.

Sixteen runs of PBRL with A2C followers on random Stackelberg games (four games, four learning rates), 60,000 steps each, by
``bilevel_gym.cli.sweep`` in every way it has. Wall time is what a user waits for, the start of the processes and the imports in
them included; the results have to be the same numbers, whichever way.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from bilevel_gym.cli.settings import Settings
from bilevel_gym.cli.sweep import Backend, Outcome, Pool, changed, over_seeds

from .common import Data, markdown_table, verdict

JOBS = 2
RATES, GAMES, STEPS = (0.02, 0.05, 0.1, 0.2), 4, 60_000
TARGET = 1.6
"""Times as fast as one after another, on two cores."""
NAMES: dict[Backend, str] = {
    "serial": "one after another",
    "processes": f"{JOBS} processes",
    "ray": f"Ray, local, {JOBS} workers",
}


def runs(quick: bool) -> list[Settings]:
    """The sixteen, or four short ones."""
    steps, rates, games = (3_000, RATES[:2], 2) if quick else (STEPS, RATES, GAMES)
    base = Settings("bilevel_gym/StackelbergGame-v0", "PBRL", "A2C", steps, env_kwargs={"n_states": 20})
    tried = [changed(base, {("leader_kwargs", "learning_rate"): rate}) for rate in rates]
    return [run for settings in tried for run in over_seeds(settings, range(games), env_seeds=True)]


def numbers(outcomes: list[Outcome]) -> list[Any]:
    """What may not depend on what ran them."""
    return [o.result and {k: v for k, v in o.result.items() if k not in ("seconds", "run")} for o in outcomes]


def timed(backend: Backend, todo: list[Settings]) -> tuple[float, list[Outcome]]:
    """Seconds, and what came of it, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        outcomes = Pool(Path(folder), backend, JOBS).run(todo)
        return time.perf_counter() - start, outcomes


def run(quick: bool, jobs: int) -> Data:
    """Every backend that is installed; ``jobs`` is not heeded."""
    assert set(NAMES) <= set(get_args(Backend))
    todo, found = runs(quick), {}
    reference: list[Any] | None = None
    for backend in NAMES:
        if backend == "ray" and importlib.util.find_spec("ray") is None:
            continue
        load = os.getloadavg()[0]
        seconds, outcomes = timed(backend, todo)
        reference = numbers(outcomes) if reference is None else reference
        found[backend] = {
            "seconds": round(seconds, 1),
            "same": numbers(outcomes) == reference,
            "finished": sum(o.result is not None for o in outcomes),
            "load": round(load, 2),
        }
    return {"runs": len(todo), "steps": todo[0].n_timesteps, "backends": found}


def table(data: Data) -> str:
    """Seconds, speed-up, whether the numbers are the same."""
    found = data["backends"]
    serial = found["serial"]["seconds"]
    rows = [
        [
            NAMES[name],
            f"{found[name]['seconds']:.0f}",
            f"{serial / found[name]['seconds']:.2f}",
            "" if name == "serial" else verdict(serial / found[name]["seconds"] >= TARGET),
            f"{found[name]['finished']} of {data['runs']}",
            "yes" if found[name]["same"] else "**no**",
            f"{found[name]['load']:.1f}",
        ]
        for name in NAMES
        if name in found
    ]
    heads = ["how", "wall s", "times as fast", f"{TARGET} or more", "finished", "same numbers", "load before"]
    note = f"""{data["runs"]} runs of {data["steps"]:,} steps. *Same numbers*: record, x and counts of every run equal those of
the runs one after another, to the bit. *Load before*: processes that were already running on the machine's cores, on average
over the minute before; with more than a few tenths of one, wall times measure them too."""
    return markdown_table(heads, rows) + "\n\n" + note
