"""Runs of a benchmark: executes them in parallel, stores them until the page is written, and reads them as a table."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial, update_wrapper
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import bilevel_gym
from bilevel_gym.agents.files import write_whole
from bilevel_gym.cli import processes

Data = dict[str, Any]
"""Plain JSON data."""

STORE = Path("runs/benchmarks")
_of_now: dict[Path, bool] = {}
"""Files of the current benchmark, and whether each existed before."""
_left_out: set[Path] = set()
"""Files of its runs that are not stored and were not run."""


@cache
def _version(file: str) -> str:
    """A hash of the code of the package and of a benchmark; stored runs of other code are not used."""
    root = Path(bilevel_gym.__path__[0])
    files = [
        Path(file),
        *sorted(path for name in ("agents", "envs", "wrappers") for path in (root / name).rglob("*.py")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def grid(**axes: Iterable[Any]) -> list[Data]:
    """All cells of a grid, one for every combination of values; the first axis changes slowest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run_all(function: Callable[..., Data], cells: Sequence[Data], jobs: int, label: str, **same: Any) -> list[Data]:
    """Call ``function(**cell, **same)`` for every cell, each in its own process with one thread, ``jobs`` at a time.

    What has ended is kept in :data:`STORE`: a benchmark that was stopped goes on from there, as long as the code is the same.
    With 0 jobs nothing is called, and the cells that have not ended are left out.

    Returns:
        A row a cell, in their order, as JSON gives it back: what the function found, and the cell.
    """
    module = function.__module__
    names = [f"{module}.{function.__qualname__}{cell}{same}{_version(inspect.getfile(function))}" for cell in cells]
    digests = [hashlib.sha256(name.encode()).hexdigest()[:20] for name in names]
    paths = [STORE / f"{module.rpartition('.')[2]}-{digest}.json" for digest in digests]
    todo = [(path, (cell, same)) for path, cell in zip(paths, cells, strict=True) if not path.is_file()]
    if jobs == 0:
        _left_out.update(path for path, _ in todo)
        paths, todo = [path for path in paths if path not in _left_out], []
    with tqdm(total=len(cells), initial=len(cells) - len(todo), desc=label) as bar:

        def keep(number: int, answer: Any) -> None:
            if isinstance(answer, processes.WorkerError):
                raise answer
            text = json.dumps(answer)
            write_whole(todo[number][0], lambda file: file.write(text.encode()))  # type: ignore[arg-type]
            bar.update()

        row = update_wrapper(partial(_row, function), function)  # of the benchmark's module, which processes load once
        processes.run_all(row, [task for _, task in todo], jobs, keep)
    asked = {path for path, _ in todo}
    _of_now.update({path: path not in asked for path in paths})
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _row(function: Callable[..., Data], cell: Data, same: Data) -> Data:
    return function(**cell, **same) | cell


def kept() -> int:
    """Number of runs of the current benchmark that were read from the store."""
    return sum(_of_now.values())


def left_out() -> int:
    """Number of runs of the current benchmark that its data lacks."""
    return len(_left_out)


def forget() -> None:
    """Remove the runs that :func:`run_all` stored, once all are in the benchmark's own data."""
    for path in () if _left_out else _of_now:
        path.unlink(missing_ok=True)
    _of_now.clear()
    _left_out.clear()


def cpu_seconds(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    function(*args, **kwargs)
    return time.process_time() - start


def shortfall(record: Any) -> float:
    """By how much a method's own follower falls short of its best response; pages call it the gap."""
    return float(record.follower_regret if record.penalty is None else record.penalty)


def history(leader: Any, *keys: str, digits: int | None = None, **names: str) -> dict[str, list[float]]:
    """The leader's records as lists by key, 0 for None; ``names`` renames keys, ``gap`` is :func:`shortfall`."""

    def read(record: Any, name: str) -> float:
        return shortfall(record) if name == "gap" else float(getattr(record, name) or 0.0)

    found = dict(zip(keys, keys, strict=True)) | names
    columns = {key: [read(record, name) for record in leader.history] for key, name in found.items()}
    return columns if digits is None else {k: [round(v, digits) for v in column] for k, column in columns.items()}


def outcome(leader: Any) -> Data:
    """Returns at the best response of the start, the last x and the best x; and the last record's shortfall."""
    last = leader.history[-1]
    return {
        "start": leader.history[0].leader_return,
        "last": last.leader_return,
        "best": leader.evaluate().leader_return,
        "at_pi_y": last.leader_return_at_pi_y,
        "gap": shortfall(last),
        "iterations": leader.iteration,
    }


def spent(leader: Any) -> Data:
    """Steps that a sampled leader took, and its number of oracle failures."""
    return {"steps": leader.num_timesteps, "oracle_failures": leader.oracle_failures}


class Runs:
    """A table with one row per run: ``runs(method="pbrl", size=20)["last.leader_return"]`` selects rows and reads a column.

    Args:
        rows: of plain data; what stands one level deeper has a column ``key.inner`` of its own.
    """

    def __init__(self, rows: Sequence[Data] | pd.DataFrame) -> None:
        if not isinstance(rows, pd.DataFrame):
            rows = pd.DataFrame([row | _inner(row) for row in rows], dtype=object)
        self.frame = rows

    def __call__(self, **wanted: Any) -> Runs:
        found = self.frame
        for key, value in wanted.items():
            found = found[found[key] == value]
        return Runs(found)

    def __getitem__(self, key: str) -> list[Any]:
        return list(self.frame[key])

    def __iter__(self) -> Iterator[Data]:
        return iter(self.frame.to_dict("records"))

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def one(self) -> Data:
        """The only row, or the first of several."""
        return next(iter(self))


def _inner(row: Data) -> Data:
    return {
        f"{key}.{name}": value for key, item in row.items() if isinstance(item, dict) for name, value in item.items()
    }
