"""Drawing from many small distributions at once, one uniform number a draw (numpy).

A sampler holds the rows of a table of distributions ``p[row, k]``. Two exact methods, chosen by what the table does:

- ``AliasSampler``: constant time a draw; building is a sweep over the columns. For tables that stay.
- ``InverseCdfSampler``: log2(K) steps a draw; building is a cumulative sum. For tables that follow the leader's x:
  the draw at a given uniform number is monotone in the table, so runs under nearby x with the same random numbers
  stay together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Sampler(ABC):
    """Draws k ~ p[row] for many rows."""

    @abstractmethod
    def draw(self, rows: Integers, u: Floats) -> Integers:
        """One k a row, ``[n]``, from uniform numbers in [0, 1), ``[n]``."""

    @abstractmethod
    def draw_one(self, row: int, u: float) -> int:
        """One k from one uniform number in [0, 1); the same k as ``draw`` gives."""


class AliasSampler(Sampler):
    """Alias tables of ``p``, ``[R, K]``: cell k gives k with a certain probability, its alias otherwise."""

    def __init__(self, p: Floats) -> None:
        keep, alias = alias_tables(p)
        self._size = p.shape[1]
        # The draw compares u * K, not its fractional part: cell k holds k + keep.
        self._threshold = (keep + np.arange(self._size)).ravel()
        self._alias = alias.ravel()

    def draw(self, rows: Integers, u: Floats) -> Integers:
        t = u * self._size
        k = t.astype(np.int64)
        cell = rows * self._size
        cell += k
        kept = t < self._threshold.take(cell)
        chosen: Integers = np.where(kept, k, self._alias.take(cell))
        return chosen

    def draw_one(self, row: int, u: float) -> int:
        t = u * self._size
        k = int(t)
        cell = row * self._size + k
        alias: int = self._alias.item(cell)
        return k if t < self._threshold.item(cell) else alias


class InverseCdfSampler(Sampler):
    """Cumulative tables of ``p``, ``[R, K]``, padded to a power of two and searched by halving."""

    def __init__(self, p: Floats) -> None:
        size = p.shape[1]
        self._size = size
        self._width = 1 << max(0, size - 1).bit_length()
        cdf = np.full((p.shape[0], self._width), 2.0)
        if size > 8:
            np.cumsum(p, axis=1, out=cdf[:, :size])
        else:  # column by column: the same sums, several times faster over short rows
            cdf[:, 0] = p[:, 0]
            for k in range(1, size):
                np.add(cdf[:, k - 1], p[:, k], out=cdf[:, k])
        cdf[:, :size] /= cdf[:, size - 1 : size]  # ends at exactly 1, above every u
        self._cdf = cdf.ravel()
        self._memory = memoryview(self._cdf.data)  # indexing it gives Python floats, far quicker than the array's

    def draw(self, rows: Integers, u: Floats) -> Integers:
        position = rows * self._width
        step = self._width >> 1
        while step:
            beyond = self._cdf.take(position + (step - 1)) <= u
            position += np.multiply(beyond, step, dtype=np.int64)
            step >>= 1
        k: Integers = position & (self._width - 1)
        return k

    def draw_one(self, row: int, u: float) -> int:
        first = row * self._width
        k: int = bisect_right(self._memory, u, first, first + self._size) - first
        return k


def alias_tables(p: Floats) -> tuple[Floats, Integers]:
    """Alias tables of every row of ``p`` at once.

    One sweep over the columns serves all rows: with q = K p, a light cell (q <= 1) is filled up by the current heavy
    one; a heavy cell whose rest falls to 1 or less is filled up by the next heavy one.

    Args:
        p: distributions, ``[R, K]``.

    Returns:
        keep: probability that a cell keeps its own index, ``[R, K]``.
        alias: the index it gives otherwise, ``[R, K]``.
    """
    R, K = p.shape
    q = p * K
    keep, alias = np.ones((R, K)), np.tile(np.arange(K), (R, 1))
    heavy = q > 1.0
    order = np.argsort(heavy, axis=1, kind="stable")  # the light cells in order, then the heavy ones
    row = np.arange(R)
    light = np.zeros(R, dtype=np.int64)
    n_light = K - heavy.sum(1)
    giver = n_light.copy()
    active = giver < K
    rest = q[row, order[row, np.minimum(giver, K - 1)]]
    for _ in range(K):
        gives = active & (rest > 1.0) & (light < n_light)
        changes = active & ~gives & (giver < K - 1)
        here = order[row, np.minimum(giver, K - 1)]
        r = row[gives]
        cell = order[r, light[r]]
        keep[r, cell], alias[r, cell] = q[r, cell], here[r]
        rest[r] -= 1.0 - q[r, cell]
        light[r] += 1
        r = row[changes]
        following = order[r, giver[r] + 1]
        keep[r, here[r]], alias[r, here[r]] = np.minimum(rest[r], 1.0), following
        rest[r] = q[r, following] - (1.0 - rest[r])
        giver[r] += 1
    return keep, alias
