"""Labelled pairs, the oldest forgotten first, and batches of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...envs.mdp.checks import check_size, require
from .labels import PREFERENCE, Label, Pair, check_label


@dataclass(frozen=True, eq=False)
class Preference:
    """A labelled pair; skipped pairs are none."""

    pair: Pair
    label: Label

    @property
    def mu(self) -> float:
        """Share of the preference that goes to the left segment."""
        return PREFERENCE[self.label]


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

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[list[Preference]]:
        """All pairs once, in random order, at most ``size`` at a time.

        Raises:
            ValueError: an empty buffer.
        """
        require(len(self) > 0, "buffer", "at least one labelled pair", "none")
        order = rng.permutation(len(self)).tolist()
        for i in range(0, len(order), size):
            yield [self._held[j] for j in order[i : i + size]]
