"""Read leader files as a stranger's would be read: ``python -m tests.fuzz.reading BYTES``, files on the standard input.

Of each line ``LEADER PATH`` one comes back: what reading took at most, in bytes, a tab, and how it ended. Each file is read in a
process of its own, which may take no more than so many bytes beyond what it has, used or not.
"""

from __future__ import annotations

import os
import resource
import sys
import warnings
from typing import Any

from bilevel_gym import agents
from tests.fuzz.hostile import little_memory, tiny_dqn


def read(leader: str, path: str, further: int) -> str:
    """How reading ended."""
    given: dict[str, Any] = {"follower": tiny_dqn} if leader == "PBRL" else {}
    try:
        with little_memory(further):
            getattr(agents, leader).load(path, **given)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return "read"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    files = [line.split(maxsplit=1) for line in sys.stdin.read().splitlines()]
    for kind in ("TabularPBRL", "PBRL"):  # what is imported and made once
        read(kind, next(path for leader, path in files if leader == kind), 2**40)
    for leader, path in files:
        if not os.fork():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found = read(leader, path, int(sys.argv[1]))
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, found, sep="\t", flush=True)
            os._exit(0)
        os.wait()
