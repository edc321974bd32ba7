"""A run for tests of processes: each imports this module, and nothing heavy with it."""

from __future__ import annotations

import os
from pathlib import Path


def square(number: int) -> dict[str, float]:
    """Log the number, and return its square; numbers above 2 fail while a file ``broken`` exists."""
    if Path("broken").exists() and number > 2:
        raise ValueError("not today")
    with Path("log").open("a") as log:
        log.write(f"{number} ")
    return {"square": number**2, "pid": os.getpid()}
