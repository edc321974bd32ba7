"""What a run writes while it goes: lines of JSON, TensorBoard, Weights & Biases, through SB3's logger."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from ..agents.files import write_whole
from ..envs.mdp.checks import require

PROGRESS = "progress.json"
STEPS = "num_timesteps"
LARGEST = 2**26
"""Bytes of a run's records."""


class ProgressFile(KVWriter):
    """A line of JSON a record, each flushed, so that whatever ends a run the lines before stay.

    Args:
        path: the file, which is begun anew: a leader tells a new logger what was logged before.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One record."""
        numbers = {key: _number(item) for key, item in key_values.items()}
        self._write({STEPS: step, **{key: item for key, item in numbers.items() if item is not None}})

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _number(item: Any) -> float | int | str | None:
    if isinstance(item, (np.floating, np.integer)):
        item = item.item()
    return item if isinstance(item, (bool, int, float, str)) else None


def read_progress(path: Path) -> list[dict[str, Any]]:
    """The records of a run, without a line that was cut off; none where there is no file, or one too large for records."""
    rows: list[dict[str, Any]] = []
    readable = path.is_file() and path.stat().st_size <= LARGEST
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if readable else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and STEPS in row:
            rows.append(row)
    return rows


def require_writers(tensorboard: bool, track: bool) -> None:
    """Raise ``ValueError`` where what is to write the records is not installed."""
    if track:
        _wandb()
    if tensorboard:
        needed = 'TensorBoard, pip install "bilevel-gym[tensorboard]"'
        require(importlib.util.find_spec("tensorboard") is not None, "--tensorboard-log", needed, "none")


def _wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ValueError(
            f'--track: expected Weights & Biases, pip install "bilevel-gym[track]", got none ({error})'
        ) from error


class Tracking(KVWriter):
    """Records sent to Weights & Biases, or with ``WANDB_MODE=offline`` kept in the run's folder for ``wandb sync``.

    Raises:
        ValueError: wandb is not installed, or begins no run: nobody is logged in.
    """

    def __init__(
        self, project: str, name: str, config: dict[str, Any], folder: Path, entity: str | None = None
    ) -> None:
        wandb = _wandb()
        try:
            self.run = wandb.init(project=project, name=name, entity=entity, config=config, dir=str(folder))
        except wandb.Error as error:
            expected = "an account (`wandb login`), or WANDB_MODE=offline, which keeps the records here"
            raise ValueError(f"--track: expected {expected}, got {error}") from error

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One record."""
        self.run.log({key: item for key, item in key_values.items() if _number(item) is not None}, step=step)

    def close(self) -> None:
        """End the run there."""
        self.run.finish()


def new_logger(folder: Path, tensorboard: Path | None, tracking: Tracking | None) -> Logger:
    """SB3's logger that writes all of these; see :func:`require_writers`."""
    formats: list[KVWriter] = [ProgressFile(folder / PROGRESS)]
    if tensorboard is not None:
        formats.append(TensorBoardOutputFormat(str(tensorboard)))
    if tracking is not None:
        formats.append(tracking)
    return Logger(folder=str(folder), output_formats=formats)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))  # type: ignore[arg-type]


def require_folder(path: Path, name: str) -> Path:
    """A folder that is made if need be and can be written to; raises ``ValueError``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{name}: expected a folder that can be made, got {path} ({error.strerror})") from error
    require(os.access(path, os.W_OK), name, "a folder that can be written to", str(path))
    return path
