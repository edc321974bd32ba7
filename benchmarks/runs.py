"""Runs of a benchmark: side by side, kept on disk until the page is written, and read as a table."""

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
"""Files of the benchmark in hand, and whether each was there before."""


@cache
def _version(file: str) -> str:
    """Changes with the code of the package and of a benchmark, whose runs are then made anew."""
    root = Path(bilevel_gym.__path__[0])
    files = [
        Path(file),
        *sorted(path for name in ("agents", "envs", "wrappers") for path in (root / name).rglob("*.py")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def grid(**axes: Iterable[Any]) -> list[Data]:
    """The cells of a grid, one for every choice of a value on each axis; the first axis changes slowest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run_all(function: Callable[..., Data], cells: Sequence[Data], jobs: int, label: str, **same: Any) -> list[Data]:
    """``function(**cell, **same)`` of every cell of a grid, each in a process of its own with one thread, ``jobs`` at a time.

    What has ended is kept in :data:`STORE`: a benchmark that was stopped goes on from there, as long as the code is the same.

    Returns:
        A row a cell, in their order, as JSON gives it back: what the function found, and the cell.
    """
    module = function.__module__
    names = [f"{module}.{function.__qualname__}{cell}{same}{_version(inspect.getfile(function))}" for cell in cells]
    digests = [hashlib.sha256(name.encode()).hexdigest()[:20] for name in names]
    paths = [STORE / f"{module.rpartition('.')[2]}-{digest}.json" for digest in digests]
    todo = [(path, (cell, same)) for path, cell in zip(paths, cells, strict=True) if not path.is_file()]
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
    """Runs of the benchmark in hand that were taken from the disk."""
    return sum(_of_now.values())


def forget() -> None:
    """Remove what :func:`run_all` kept since the last time: it now stands in the benchmark's own data."""
    for path in _of_now:
        path.unlink(missing_ok=True)
    _of_now.clear()


def cpu_seconds(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    function(*args, **kwargs)
    return time.process_time() - start


def shortfall(record: Any) -> float:
    """What a method's own follower falls short of its best response by: pages call it the gap."""
    return float(record.follower_regret if record.penalty is None else record.penalty)


def history(leader: Any, *keys: str, digits: int | None = None, **names: str) -> dict[str, list[float]]:
    """What a leader recorded on its way, by key (``names``: of another name there; ``gap``: :func:`shortfall`); 0 for None."""

    def read(record: Any, name: str) -> float:
        return shortfall(record) if name == "gap" else float(getattr(record, name) or 0.0)

    found = dict(zip(keys, keys, strict=True)) | names
    columns = {key: [read(record, name) for record in leader.history] for key, name in found.items()}
    return columns if digits is None else {k: [round(v, digits) for v in column] for k, column in columns.items()}


def outcome(leader: Any) -> Data:
    """Returns at the best response: where a leader started, of its last x and of the best; its last record's shortfall."""
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
    """What a sampled leader took, and how often its best response was certified to be in error."""
    return {"steps": leader.num_timesteps, "oracle_failures": leader.oracle_failures}


class Runs:
    """Runs as a table, a row each: ``runs(method="pbrl", size=20)["last.leader_return"]`` selects, then reads a column.

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
