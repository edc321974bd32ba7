"""Files that are written whole or not at all, and read with errors that name them; an optimiser's state from one."""

from __future__ import annotations

import copy
import glob
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from reprlib import repr as short
from typing import IO, Any

import torch


@contextmanager
def reading(path: object, what: str = "leader file") -> Iterator[None]:
    """Whatever goes wrong inside is the file's fault: a ``ValueError`` that names it. A missing package is none of its faults."""
    try:
        yield
    except (ImportError, FileNotFoundError):
        raise
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{error} (reading {path})") from error
    except Exception as error:
        reason = f"which is truncated or none ({type(error).__name__}: {error})"
        raise ValueError(f"path: expected a whole {what}, got {path}, {reason}") from error


def write_whole(path: str | Path, write: Callable[[IO[bytes]], None]) -> Path:
    """Write a file whole or not at all: beside its place, flushed to the disk, then moved there.

    A process that is killed meanwhile leaves ``NAME.*.part`` beside it, and what was there before; see :func:`clear_parts`.

    Args:
        path: the file; its folder is made.
        write: what writes into an open file.

    Raises:
        OSError: what kept it from being written, e.g. a full disk or a folder that is read-only; what was there before still is.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            found = "what was there before is untouched" if target.exists() else "nothing was left there"
            raise OSError(error.errno, f"{os.strerror(error.errno)}; {found}", str(path)) from error
        raise
    with suppress(OSError):  # the move itself; not every system can flush a folder
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return path


def clear_parts(path: str | Path) -> None:
    """Remove what processes that were killed while they wrote ``path`` left beside it."""
    target = Path(os.path.realpath(path))
    for part in target.parent.glob(f"{glob.escape(target.name)}.????????.part"):
        part.unlink(missing_ok=True)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Take back an optimiser's ``state_dict``: alike in form to what this optimiser has after a step, all numbers finite.

    Its settings are this optimiser's own, all but the rate, which schedules move. The parameters' numbers may be text, as in a
    file.

    Raises:
        TypeError, ValueError, KeyError: the state of another optimiser, or of other parameters.
    """
    probe = copy.deepcopy(optimizer)
    parameters = [p for group in probe.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    probe.step()
    expected = probe.state_dict()
    groups = [dict(group) for group in state["param_groups"]]
    for group, own in zip(groups, expected["param_groups"], strict=True):
        _require_alike(group, own)
        group |= {name: setting for name, setting in own.items() if name != "lr"}
    moments = {int(index): entries for index, entries in state["state"].items()}
    for index, entries in moments.items():
        _require_alike(entries, expected["state"][index])
        if any((name == "step" or "sq" in name) and bool((part < 0.0).any()) for name, part in entries.items()):
            raise TypeError("optimizer: expected a count of steps and means of squares, got negative numbers")
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _require_alike(got: Any, expected: Any) -> None:
    """Raise ``TypeError`` unless both are built alike, finite numbers standing for numbers of their type."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(expected, dict):
        alike = isinstance(got, dict) and got.keys() == expected.keys()
        pairs = [(got[key], expected[key]) for key in expected] if alike else []
    elif isinstance(expected, (list, tuple)):
        alike = isinstance(got, (list, tuple)) and len(got) == len(expected)
        pairs = list(zip(got, expected, strict=True)) if alike else []
    elif isinstance(expected, torch.Tensor):
        alike = isinstance(got, torch.Tensor) and got.shape == expected.shape and got.dtype == expected.dtype
        alike = alike and bool(torch.isfinite(got).all())
    elif isinstance(expected, (int, float)) and not isinstance(expected, bool):
        alike = type(got) is type(expected) and math.isfinite(got)
    else:
        alike = type(got) is type(expected) and got == expected
    if not alike:
        raise TypeError(f"optimizer: expected a state like {short(expected)}, got {short(got)}")
    for pair in pairs:
        _require_alike(*pair)
