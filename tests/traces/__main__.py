"""Numbers of seeded short runs, to tell whether a change of structure changed any.

    python -m tests.traces record FILE [--only PATTERN]     run the cases and write what they gave
    python -m tests.traces compare FILE [--only PATTERN]    run them again; exit 1 where anything differs, to the bit

From the repository's root, with the package importable. Traces hold checksums, which depend on the processor and on the versions
of libraries: compare on the machine that recorded. PATTERN is part of a case's name, or a pattern such as ``PBRL,*DQN*``.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from tests.traces.cases import CASES
from tests.traces.recording import Trace, differences


def run(name: str) -> tuple[Trace, float]:
    """A case's trace, or its error, and how long it took."""
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = json.loads(json.dumps(CASES[name]()))
        except Exception:  # of one case, which must not stop the others
            found = {"error": traceback.format_exc()}
    return found, time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.traces")
    parser.add_argument("action", choices=["record", "compare", "list"])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--only", default="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in CASES if fnmatchcase(name, f"*{arguments.only}*")]
    if arguments.action == "list":
        print("\n".join(names))
        return 0
    path: Path = arguments.file
    held: dict[str, Trace] = json.loads(path.read_text()) if path.exists() else {}
    counts: dict[str, int] = {}
    for name in names:
        found, seconds = run(name)
        if arguments.action == "record":
            verdict = "failed" if "error" in found else "recorded"
            detail = found["error"].strip().splitlines()[-1] if verdict == "failed" else ""
            if verdict == "recorded":
                held[name] = found
            else:
                held.pop(name, None)
        elif name not in held:
            verdict, detail = "missing", "not in the file"
        elif "error" in found:
            verdict, detail = "failed", "\n" + found["error"]
        else:
            detail = next(differences(held[name], found), "")
            verdict = "different" if detail else "equal"
        counts[verdict] = counts.get(verdict, 0) + 1
        print(f"{verdict:10}{seconds:6.1f} s  {name}  {detail}", flush=True)
    if arguments.action == "record":
        path.write_text(json.dumps(held))
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 0 if counts.keys() <= {"equal", "recorded"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
