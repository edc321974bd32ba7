"""What a run writes while it goes: lines of JSON, TensorBoard, Weights & Biases, through SB3's logger."""

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
"""Bytes of a run's records."""


@dataclass(frozen=True)
class Extras:
    """What a run does beside learning; none of it changes a number.

    Attributes:
        save_freq: iterations between checkpoints; None saves in the end alone, and on a signal.
        tensorboard_log: folder of TensorBoard events.
        track: whether to send the records to Weights & Biases.
        project: there.
        entity: there.
        progress: show a progress bar.
    """

    save_freq: int | None = None
    tensorboard_log: Path | None = None
    track: bool = False
    project: str = "bilevel-gym"
    entity: str | None = None
    progress: bool = False


class ProgressFile(JSONOutputFormat):
    """A line of JSON a record, each flushed, so that whatever ends a run the lines before stay."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One record."""
        super().write({STEPS: step, **_shown(key_values)}, key_excluded, step)


def _shown(key_values: dict[str, Any]) -> dict[str, Any]:
    """The numbers and texts of a record."""
    return {key: item for key, item in key_values.items() if isinstance(item, (bool, int, float, str, np.number))}


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


def require_writers(extras: Extras) -> None:
    """Raise ``ValueError`` where what is to write the records is not installed."""
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
    """Records sent to Weights & Biases, or with ``WANDB_MODE=offline`` kept in the run's folder for ``wandb sync``.

    Raises:
        ValueError: wandb is not installed, or begins no run: nobody is logged in.
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
    """SB3's logger that writes all of these; see :func:`require_writers`."""
    formats: list[KVWriter] = [Tracking(folder, settings, extras)] if extras.track else []
    formats.append(ProgressFile(str(folder / PROGRESS)))
    if extras.tensorboard_log is not None:
        formats.append(TensorBoardOutputFormat(str(extras.tensorboard_log)))
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
