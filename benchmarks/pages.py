"""Makes the benchmarks' pages: Markdown templates in ``pages/``, filled from the data stored beside each page.

A template sees the names of its module, ``data``, and ``runs``, the table of ``data["runs"]``. Its block ``body`` is the page;
the rows of its block ``standing`` stand on the page that sets our figures beside those from elsewhere.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, Undefined

from bilevel_gym.cli.statistics import BOOTSTRAP_FROM, Interval

from . import statistics
from .runs import Data, Runs

FOLDER = Path(__file__).parent / "pages"
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    made.filters |= {
        "f": _formatted,
        "interval": lambda values, digits=2: statistics.mean_interval(values).text(digits),
        "mean": lambda values: float(np.mean(values)),
        "median": lambda values: float(np.median(values)),
        "verdict": verdict,
    }
    made.globals |= {
        "paired_difference": statistics.paired_difference,
        "paired_ratio": statistics.paired_ratio,
        "mean_interval": statistics.mean_interval,
        "wins": statistics.wins,
        "stored": stored,
        "all_of": all_of,
        "zip": zip,
        "enumerate": enumerate,
    }
    return made


def _formatted(value: Any, form: str) -> str:
    """Format a number with Python's format; a missing value raises an error that names it."""
    return str(value) if isinstance(value, Undefined) else format(value, form)


WORDS = ("met", "**missed**", "unknown")
"""All verdicts on a target."""


def verdict(found: Any, target: float = 0.0, below: bool = False) -> str:
    """The verdict on a target, by one rule for all tables.

    *Met* where all of the 95% interval is at the target or beyond it, *missed* where none of it is, *unknown* where the
    interval holds the target and where a single run has none. A figure without an interval (a worst case, a count, a time) is
    compared as it is.

    Args:
        found: an interval; a number; or whether a condition holds.
        target: at least this is asked.
        below: at most the target is asked.
    """
    if isinstance(found, (bool, np.bool_)):
        return "met" if found else "**missed**"
    if not isinstance(found, Interval):
        found = Interval(float(found), None, None, 2)
    if found.low is None and found.n < 2:
        return "unknown"
    met = [(end <= target if below else end >= target) for end in found.ends]
    return "met" if all(met) else "unknown" if any(met) else "**missed**"


def all_of(*words: str) -> str:
    """The verdict on several targets together, from the verdict on each."""
    return next((word for word in ("**missed**", "unknown") if word in words), "met")


def stored(name: str) -> Data | None:
    """The data of another benchmark's page in :data:`RESULTS`; None if it has not been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["data"] if path.is_file() else None


def module_of(name: str) -> ModuleType:
    """The module of a benchmark."""
    return importlib.import_module(f"{__package__}.{name}")


def title(name: str) -> str:
    """The first line of a benchmark's docstring, which is the title of its page."""
    return (module_of(name).__doc__ or name).strip().splitlines()[0].rstrip(".")


def _template(name: str) -> Template:
    return ENVIRONMENT.get_template(f"{name}.md")


def _context(name: str, record: Data) -> Data:
    module, data = module_of(name), record["data"]
    runs = Runs(data["runs"]) if isinstance(data.get("runs"), list) else None
    about = {"title": title(name), "picture": hasattr(module, "picture"), "record": record}
    return {**vars(module), **about, "data": data, "runs": runs}


def page(record: Data) -> str:
    """The page of one benchmark."""
    name = record["benchmark"]
    text = _template(name).render(_context(name, record)).rstrip("\n") + "\n"
    return re.sub(r"^(\|.*\|)\n\|-\|$", _ruled, text, flags=re.MULTILINE)


def _ruled(found: re.Match[str]) -> str:
    """Expand ``|-|`` to the line that Markdown needs below table headers; the first column is left-aligned."""
    return f"{found[1]}\n| --- |{' ---: |' * found[1].count(' | ')}"


def standing(record: Data) -> list[list[str]]:
    """The rows that a benchmark compares with figures from elsewhere, targets and our own methods; none if it has none.

    Returns:
        Of each row: the quantity, what it is held against, what was measured, and the verdict.

    Raises:
        ValueError: a row whose last cell is no verdict.
    """
    name = record["benchmark"]
    template = _template(name)
    block = template.blocks.get("standing")
    text = "" if block is None else "".join(block(template.new_context(_context(name, record))))
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in text.splitlines() if line.strip()
    ]
    for row in rows:
        if len(row) != 4 or row[3] not in WORDS:
            raise ValueError(f"standing rows of {name}: expected four cells, the last one of {WORDS}, got {row}")
    return rows


def write_lists(out: Path, names: tuple[str, ...]) -> None:
    """Write the list of the benchmarks with results in a folder, and the page that compares their figures."""
    paths = {name: out / f"{name}.json" for name in names}
    records = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}
    rows = {name: standing(record) for name, record in records.items()}
    words = [row[3] for lines in rows.values() for row in lines]
    about = {"records": records, "rows": rows, "words": words, "title": title, "BOOTSTRAP_FROM": BOOTSTRAP_FROM}
    for file, template in (("README.md", "_list.md"), ("standing.md", "_standing.md")):
        text = ENVIRONMENT.get_template(template).render(about)
        (out / file).write_text(text.rstrip("\n") + "\n", encoding="utf-8")


ENVIRONMENT = _environment()
