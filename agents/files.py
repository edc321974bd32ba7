"""Write files atomically, read them with errors that name the file, and restore an optimiser's state from one."""

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
    """Turn an error while reading a file into a ``ValueError`` that names it; a missing package is not the file's fault."""
    try:
        yield
    except (ImportError, FileNotFoundError):
        raise
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{error} (reading {path})") from error
    except Exception as error:
        reason = f"which is truncated or not one ({type(error).__name__}: {error})"
        raise ValueError(f"path: expected a whole {what}, got {path}, {reason}") from error


def write_whole(path: str | Path, write: Callable[[IO[bytes]], None]) -> Path:
    """Write a file atomically: to a temporary file beside it, flushed to the disk, then renamed.

    If the process is killed meanwhile, the old file stays, and a ``NAME.*.part`` remains beside it; see :func:`clear_parts`.

    Args:
        path: the file; its folder is created if needed.
        write: function that writes to an open file.

    Raises:
        OSError: the file cannot be written, e.g. the disk is full or the folder read-only; an old file is kept.
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
            found = "the old file is untouched" if target.exists() else "no file was left there"
            raise OSError(error.errno, f"{os.strerror(error.errno)}; {found}", str(path)) from error
        raise
    with suppress(OSError):  # flush the renaming too; not every system can
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return path


def clear_parts(path: str | Path) -> None:
    """Remove the temporary files that killed processes left while writing ``path``."""
    target = Path(os.path.realpath(path))
    for part in target.parent.glob(f"{glob.escape(target.name)}.????????.part"):
        part.unlink(missing_ok=True)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load an optimiser's ``state_dict``, if it has the form of this optimiser's state after a step, with finite numbers.

    The settings stay this optimiser's own, except the learning rate, which schedules change. Parameter indices may be text, as
    in a JSON file.

    Raises:
        TypeError, ValueError, KeyError: the state belongs to another optimiser, or to other parameters.
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
            raise TypeError("optimizer: expected a step count and means of squares >= 0, got negative numbers")
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _require_alike(got: Any, expected: Any) -> None:
    """Raise ``TypeError`` unless both have the same structure and types, with finite numbers."""
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
