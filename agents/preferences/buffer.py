"""Labelled pairs, the oldest forgotten first, and batches of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...envs.mdp.checks import check_size, require
from ...wrappers import Segment
from .labels import PREFERENCE, Label, Pair, check_label

Stacked = tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]
"""Observations ``[B, H, ...]``, actions ``[B, H, ...]`` and mask ``[B, H]`` of B segments."""


def stack_segments(segments: Sequence[Segment]) -> Stacked:
    """Segments of one length as arrays."""
    return (
        np.stack([segment.observations for segment in segments]),
        np.stack([segment.actions for segment in segments]),
        np.stack([segment.mask for segment in segments]),
    )


@dataclass(frozen=True, eq=False)
class Preference:
    """A labelled pair; skipped pairs are none."""

    pair: Pair
    label: Label

    @property
    def mu(self) -> float:
        """Share of the preference that goes to the left segment."""
        return PREFERENCE[self.label]


@dataclass(frozen=True, eq=False)
class Batch:
    """B labelled pairs as arrays; ``mu`` ``[B]`` is the share of the preference that goes to the left."""

    left: Stacked
    right: Stacked
    mu: NDArray[np.float64]


def batch_of(preferences: Sequence[Preference]) -> Batch:
    """Labelled pairs as arrays."""
    left, right = (stack_segments([getattr(p.pair, side) for p in preferences]) for side in ("left", "right"))
    return Batch(left, right, np.array([p.mu for p in preferences]))


class PreferenceBuffer:
    """First in, first out.

    Args:
        capacity: labelled pairs that it keeps.

    Attributes:
        seen: labelled pairs that it was ever given.
        skipped: answers that said skip.

    Raises:
        ValueError: a capacity under one; in ``add``, segments of another shape or type than those held, no label.
    """

    def __init__(self, capacity: int = 3000) -> None:
        self.capacity = check_size(capacity, "capacity")
        self._held: deque[Preference] = deque(maxlen=self.capacity)
        self.seen = self.skipped = 0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Preference]:
        return iter(self._held)

    def __getitem__(self, index: int) -> Preference:
        return self._held[index]

    def add(self, pair: Pair, label: Label) -> None:
        """Keep a labelled pair; a skipped one is counted only."""
        if check_label(label) == "skip":
            self.skipped += 1
            return
        if self._held:
            Pair(self._held[0].pair.left, pair.left)  # raises where they do not fit together
        self._held.append(Preference(pair, label))
        self.seen += 1

    def batch(self, indices: Sequence[int] | NDArray[np.intp]) -> Batch:
        """These pairs as arrays.

        Raises:
            ValueError: an empty buffer, or no index.
        """
        require(len(self) > 0, "buffer", "at least one labelled pair", "none")
        require(len(indices) > 0, "indices", "one or more", "none")
        return batch_of([self._held[int(i)] for i in indices])

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """All pairs once, in random order.

        Raises:
            ValueError: an empty buffer.
        """
        require(len(self) > 0, "buffer", "at least one labelled pair", "none")
        order = rng.permutation(len(self))
        for i in range(0, len(order), size):
            yield self.batch(order[i : i + size])
