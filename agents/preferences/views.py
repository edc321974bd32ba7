"""What a person is shown of a pair of segments: pictures where there are any, else observations as pictures, lines or numbers.

pictures   the segments' own; or observations that are images: channels first or last, of a stack of frames the newest
numbers    observations that are a few whole numbers, such as a state's
lines      any other observation: its first components over the steps, both segments on one scale

Only steps that were taken are shown.
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
"""Components of an observation that are drawn."""
NUMBERS = 16
"""Whole numbers up to which an observation is shown as numbers."""
SMALLEST = 8
"""Rows and columns from which on an array without channels is taken for an image."""


def lived(segment: Segment) -> int:
    """Steps that were taken; at least one is shown."""
    return max(int(segment.mask.sum()), 1)


def pictures(pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Pictures of both segments, ``[steps, height, width, 1 or 3]``; None where there are none."""
    left, right = (segment.pictures for segment in (pair.left, pair.right))
    if left is None or right is None:
        left, right = _images(pair.left), _images(pair.right)
    if left is None or right is None:
        return None
    left, right = left[: lived(pair.left)], right[: lived(pair.right)]
    return _bytes(left, left, right), _bytes(right, left, right)


def view(pair: Pair) -> dict[str, Any]:
    """What a page needs to show a pair, as JSON; pictures are told by their shapes and come apart.

    Returns:
        ``kind``; ``length``, the steps of a segment; ``left`` and ``right``, each with ``steps``, those that were taken,
        ``actions``, one a step, and ``shape`` or ``values``, a list for each step; of lines also ``low`` and ``high``, the
        scale of each, and ``hidden``, how many components are not drawn.
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
    """Observations, of stacks of frames the newest of each."""
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
    """Images as bytes; those that are none are scaled to the range that both segments span."""
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    low, high = min(part.min() for part in both), max(part.max() for part in both)
    if not (math.isfinite(low) and low < high):
        return np.zeros(images.shape, np.uint8)
    scaled: NDArray[np.float64] = (images.astype(float) - float(low)) / (float(high) - float(low))
    return (scaled * 255.0).astype(np.uint8)


def _json(rows: NDArray[Any]) -> list[list[float | int | None]]:
    """Numbers as JSON has them: those that are not finite are null."""

    def one(value: Any) -> float | int | None:
        if not isinstance(value, float):
            return int(value)
        return float(f"{value:.6g}") if math.isfinite(value) else None

    return [[one(value) for value in row] for row in rows.tolist()]
