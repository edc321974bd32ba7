"""How a pair of segments is shown to a person: as pictures if there are any, else the observations as pictures, lines or numbers.

pictures   the segments' pictures, or observations that are images, channels first or last; of stacked frames the newest
numbers    observations of a few integers, such as a state's index
lines      any other observation: its first components over time, on the same scale for both segments

Only steps that were really taken are shown.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...wrappers import Segment
from .labels import Pair

Kind = Literal["pictures", "numbers", "lines"]
LINES = 8
"""Maximum number of components of an observation to draw."""
NUMBERS = 16
"""Maximum number of integers in an observation shown as numbers."""
SMALLEST = 8
"""Smallest number of rows and columns of an array without channels that counts as an image."""


def lived(segment: Segment) -> int:
    """Return the number of steps really taken, at least 1."""
    return max(int(segment.mask.sum()), 1)


def pictures(pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Return pictures of both segments, ``[steps, height, width, 1 or 3]``; None where there are none."""
    left, right = (segment.pictures for segment in (pair.left, pair.right))
    if left is None or right is None:
        left, right = _images(pair.left), _images(pair.right)
    if left is None or right is None:
        return None
    left, right = left[: lived(pair.left)], right[: lived(pair.right)]
    return _bytes(left, left, right), _bytes(right, left, right)


def view(pair: Pair) -> dict[str, Any]:
    """Return what a page needs to show a pair, as JSON; pictures are described by shape and sent separately.

    Returns:
        ``kind``; ``length``, the number of steps of a segment; ``left`` and ``right``, each with ``steps``, the number taken,
        ``actions``, one per step, and ``shape`` or ``values``, a list for each step. For lines also ``low`` and ``high``, the
        scale of each component, and ``hidden``, the number of components not drawn.
    """
    sides = {"left": pair.left, "right": pair.right}
    answer: dict[str, Any] = {"length": len(pair.left)}
    for side, segment in sides.items():
        actions = segment.actions[: lived(segment)]
        answer[side] = {"steps": int(segment.mask.sum()), "actions": _json(actions.reshape(len(actions), -1))}
    images = pictures(pair)
    if images is not None:
        for side, image in zip(sides, images, strict=True):
            answer[side]["shape"] = list(image.shape)
        return answer | {"kind": "pictures"}
    values = [_newest(segment)[: lived(segment)] for segment in sides.values()]
    values = [part.reshape(len(part), -1) for part in values]
    size = values[0].shape[1]
    if values[0].dtype.kind in "iub" and size <= NUMBERS:
        kind: Kind = "numbers"
    else:
        kind, values = "lines", [part[:, :LINES].astype(float) for part in values]
        every = np.concatenate(values)
        every[~np.isfinite(every)] = np.nan
        scale = [(float(np.nanmin(c)), float(np.nanmax(c))) if np.isfinite(c).any() else (0.0, 0.0) for c in every.T]
        answer |= {"low": [low for low, _ in scale], "high": [high for _, high in scale]}
        answer["hidden"] = max(size - LINES, 0)
    for side, part in zip(sides, values, strict=True):
        answer[side]["values"] = _json(part)
    return answer | {"kind": kind}


def _newest(segment: Segment) -> NDArray[Any]:
    """Return the observations; of stacked frames only the newest."""
    return segment.obs[segment.frame_stack - 1 :]


def _images(segment: Segment) -> NDArray[Any] | None:
    obs = _newest(segment)
    if obs.ndim == 3 and min(obs.shape[1:]) >= SMALLEST:
        return obs[..., None]
    if obs.ndim != 4:
        return None
    if obs.shape[1] < obs.shape[3]:
        obs = np.moveaxis(obs, 1, -1)
    return obs[..., -3:] if obs.shape[-1] % 3 == 0 else obs[..., -1:]


def _bytes(images: NDArray[Any], *both: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert images to bytes; other types are scaled to the range of both segments."""
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    low, high = min(part.min() for part in both), max(part.max() for part in both)
    if not (math.isfinite(low) and low < high):
        return np.zeros(images.shape, np.uint8)
    scaled: NDArray[np.float64] = (images.astype(float) - float(low)) / (float(high) - float(low))
    return (scaled * 255.0).astype(np.uint8)


def _json(rows: NDArray[Any]) -> list[list[float | int | None]]:
    """Convert numbers to JSON; those that are not finite become null."""

    def one(value: Any) -> float | int | None:
        if not isinstance(value, float):
            return int(value)
        return float(f"{value:.6g}") if math.isfinite(value) else None

    return [[one(value) for value in row] for row in rows.tolist()]
