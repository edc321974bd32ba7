"""Run benchmarks: ``python -m benchmarks [NAME ...] [--quick] [--cell CELL ...] [--out DIR] [--jobs N] [--pages]``.

``python -m benchmarks suite --leader my_module:MyLeader`` runs your own leader and ours on the fixed suite.

Each benchmark writes ``NAME.json`` (data, command, versions, seconds), ``NAME.md`` and perhaps ``NAME.png``. The folder's
``README.md`` lists them, and ``standing.md`` compares them with targets and with figures from elsewhere. ``--quick`` is a
smoke test of minutes; its results, and those of single cells, go to another folder. A benchmark that was stopped continues
where it was: its finished runs are kept in ``runs/benchmarks`` until its page is written. ``--jobs 0`` writes the page from those
that have ended so far, and says how many are missing. ``--pages`` writes pages and pictures again from the stored data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import bilevel_gym

from . import pages, runs, suite

BENCHMARKS = (
    "references",
    "stackelberg_exact",
    "ties",
    "stackelberg_sampled",
    "four_rooms",
    "monte_carlo",
    "paper_order",
    "monte_carlo_gradients",
    "incentive_design",
    "sampled_penalties",
    "sampled_bellman",
    "toll_design",
    "toll_sampled",
    "random_mdp",
    "lq_stackelberg",
    "single_loop",
    "lam_sensitivity",
    "black_box",
    "nested_search",
    "robustness",
    "records",
    "belief",
    "deep",
    "pbrl_ablation",
    "large",
    "shaped_mountain_car",
    "preferences_grid",
    "preferences_pendulum",
    "preferences_atari",
    "sparse_grid",
    "preferences_text",
    "survival",
    "sweep",
    "suite",
    "speed",
)
"""Modules of this folder with ``run(quick, jobs)``, perhaps ``picture(data, path)``, and a page in ``pages/``.

One whose table has cells names them in ``CELLS`` and has ``run(quick, jobs, cells)``.
"""

FULL, QUICK, ENTERED = Path("docs/results"), Path("runs/quick"), Path("runs/suite")
PACKAGES = ("torch", "gymnasium", "stable-baselines3", "numpy", "scipy")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; an unknown name is an error that lists the known ones."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Reproduce figures and tables, measure speed."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few games, few iterations")
    parser.add_argument(
        "--cell", action="append", default=[], dest="cells", help="run only this cell of a table; may be repeated"
    )
    parser.add_argument(
        "--out", type=Path, help=f"folder of the results (default: {FULL}; for --quick and --cell {QUICK})"
    )
    jobs = "number of processes (default: 2); 0 writes the page from the runs that have ended so far"
    parser.add_argument("--jobs", type=int, default=2, help=jobs)
    parser.add_argument(
        "--pages", action="store_true", help="run nothing; write pages and pictures again from their stored data"
    )
    parser.add_argument(
        "--leader", action="append", default=[], dest="leaders", help="module:name of a leader for the suite"
    )
    parser.add_argument("--freeze", action="store_true", help="write the suite's file again from the stored references")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}: expected {', '.join(BENCHMARKS)}")
    if options.jobs < 0:
        parser.error(f"--jobs: expected at least 1, or 0 to run nothing, got {options.jobs}")
    options.names = options.names or list(BENCHMARKS)
    for name in options.names if options.cells else ():
        known = getattr(pages.module_of(name), "CELLS", ())
        missing = [cell for cell in options.cells if cell not in known]
        if missing:
            parser.error(
                f"unknown cell {' '.join(missing)} of {name}: expected {' '.join(known) or 'none: it has no cells'}"
            )
    if (options.leaders or options.freeze) and options.names != ["suite"]:
        parser.error("--leader and --freeze: expected with the benchmark suite alone")
    for leader in options.leaders:
        try:
            suite.load(leader)
        except ValueError as error:
            parser.error(str(error))
    options.out = options.out or (ENTERED if options.leaders else QUICK if options.quick or options.cells else FULL)
    return options


def about(name: str, options: argparse.Namespace, seconds: float, kept: int, left_out: int) -> dict[str, Any]:
    """How the results were made (command, versions, time), without anything that identifies the machine."""
    versions = {package: version(package) for package in PACKAGES}
    part = (" --quick" if options.quick else "") + "".join(f" --cell {cell}" for cell in options.cells)
    part += "".join(f" --leader {leader}" for leader in options.leaders)
    return {
        "benchmark": name,
        "command": f"python -m benchmarks {name}{part} --jobs {options.jobs}",
        "quick": options.quick,
        "wall_seconds": round(seconds, 1),
        **({"kept": kept} if kept else {}),
        **({"left_out": left_out} if left_out else {}),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), "bilevel_gym": bilevel_gym.__version__, **versions},
    }


def to_json(record: dict[str, Any]) -> str:
    """Indented JSON, with every list of numbers on one line."""
    text = json.dumps(record, indent=1)
    return re.sub(r"\[[^][{}\"]*\]", lambda found: re.sub(r"\s+", " ", found.group()), text) + "\n"


def rewrite(name: str, options: argparse.Namespace) -> None:
    """Write the page and picture of a benchmark again, from its stored data."""
    path = options.out / f"{name}.json"
    if not path.is_file():
        tqdm.write(f"{name}: no {path}, so no page")
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    module = pages.module_of(name)
    if hasattr(module, "picture"):
        module.picture(record["data"], options.out / f"{name}.png")
    (options.out / f"{name}.md").write_text(pages.page(record), encoding="utf-8")


def run_one(name: str, options: argparse.Namespace) -> None:
    """Run one benchmark and write its files."""
    module = pages.module_of(name)
    start = time.perf_counter()
    chosen = options.cells or ([*suite.ENTRIES, *options.leaders] if options.leaders else [])
    data = module.run(options.quick, options.jobs, *([chosen] if chosen else []))
    record = about(name, options, time.perf_counter() - start, runs.kept(), runs.left_out()) | {"data": data}
    if hasattr(module, "picture"):
        module.picture(data, options.out / f"{name}.png")
    text = pages.page(record)
    if module is suite:
        (options.out / f"{name}.csv").write_text(suite.table(data), encoding="utf-8")
    (options.out / f"{name}.json").write_text(to_json(record), encoding="utf-8")
    (options.out / f"{name}.md").write_text(text, encoding="utf-8")
    runs.forget()
    tqdm.write(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line names."""
    options = parse(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.freeze:
        suite.FILE.write_text(to_json(suite.frozen()), encoding="utf-8")
        return
    for name in tqdm(options.names, desc="benchmarks", disable=len(options.names) == 1):
        (rewrite if options.pages else run_one)(name, options)
        pages.write_lists(options.out, BENCHMARKS)


if __name__ == "__main__":
    main()
