"""Logs of a run, written through SB3's logger: lines of JSON, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import JSONOutputFormat, KVWriter, Logger, TensorBoardOutputFormat

from ..agents.files import write_whole
from ..envs.mdp.checks import require
from .settings import Settings

PROGRESS = "progress.json"
STEPS = "num_timesteps"
LARGEST = 2**26
"""Maximal size of a run's records that is read, in bytes."""


@dataclass(frozen=True)
class Extras:
    """Options of a run that do not change its numbers.

    Attributes:
        save_freq: iterations between checkpoints; None saves only at the end and on a signal.
        tensorboard_log: folder of TensorBoard events.
        track: whether to send the records to Weights & Biases.
        project: project of Weights & Biases.
        entity: entity of Weights & Biases.
        progress: show a progress bar.
    """

    save_freq: int | None = None
    tensorboard_log: Path | None = None
    track: bool = False
    project: str = "bilevel-gym"
    entity: str | None = None
    progress: bool = False


class ProgressFile(JSONOutputFormat):
    """Writes each record as a line of JSON and flushes it, so that it survives a kill."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One record."""
        super().write({STEPS: step, **_shown(key_values)}, key_excluded, step)


def _shown(key_values: dict[str, Any]) -> dict[str, Any]:
    """The numbers and strings of a record."""
    return {key: item for key, item in key_values.items() if isinstance(item, (bool, int, float, str, np.number))}


def read_progress(path: Path) -> list[dict[str, Any]]:
    """Read the records of a run, without a truncated last line; none if the file is missing or too large."""
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


def require_writers(extras: Extras) -> None:
    """Raise ``ValueError`` if a library that should write the records is not installed."""
    if extras.track:
        _wandb()
    if extras.tensorboard_log is not None:
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
    """Sends records to Weights & Biases, or with ``WANDB_MODE=offline`` keeps them in the run's folder for ``wandb sync``.

    Raises:
        ValueError: wandb is not installed, or cannot start a run because nobody is logged in.
    """

    def __init__(self, folder: Path, settings: Settings, extras: Extras) -> None:
        wandb, name = _wandb(), f"{settings.env_name}__{settings.name}__{settings.seed}"
        whose = {"project": extras.project, "entity": extras.entity}
        try:
            self.run = wandb.init(name=name, config=asdict(settings), dir=str(folder), **whose)
        except wandb.Error as error:
            expected = "an account (`wandb login`), or WANDB_MODE=offline, which keeps the records here"
            raise ValueError(f"--track: expected {expected}, got {error}") from error

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One record."""
        self.run.log(_shown(key_values), step=step)

    def close(self) -> None:
        """End the run there."""
        self.run.finish()


def new_logger(folder: Path, settings: Settings, extras: Extras) -> Logger:
    """An SB3 logger with all requested outputs; see :func:`require_writers`."""
    formats: list[KVWriter] = [Tracking(folder, settings, extras)] if extras.track else []
    formats.append(ProgressFile(str(folder / PROGRESS)))
    if extras.tensorboard_log is not None:
        formats.append(TensorBoardOutputFormat(str(extras.tensorboard_log)))
    return Logger(folder=str(folder), output_formats=formats)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_whole(path, lambda file: file.write(text.encode()))  # type: ignore[arg-type]


def require_folder(path: Path, name: str) -> Path:
    """Make a folder if it is missing; raise ``ValueError`` if it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{name}: expected a folder that can be made, got {path} ({error.strerror})") from error
    require(os.access(path, os.W_OK), name, "a folder that can be written to", str(path))
    return path
