"""Maps of free cells and walls, and the four moves on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from .checks import check_gamma, check_number, check_size, check_tau, require
from .problem import LeaderSet, TabularProblem
from .tabular import TabularMDP

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Row and column of up, right, down, left."""


class GridMap:
    """A map whose free cells are numbered row by row.

    Attributes:
        shape: rows and columns of the map, walls included.
        cells: row and column of each free cell, ``[n, 2]``.
        moves: the cell after each move (up, right, down, left), ``[n, 4]``; a move into a wall or off the map stays in the cell.

    Args:
        rows: one string for each row, all of the same length; ``x`` is a wall, any other character a free cell.

    Raises:
        ValueError: the rows have different lengths, or there is no free cell.

    Example:
        >>> from bilevel_gym.envs.mdp.grid import GridMap
        >>> grid = GridMap(["  ", "x "])
        >>> grid.moves.tolist()
        [[0, 1, 0, 0], [1, 1, 2, 0], [1, 2, 2, 2]]
    """

    def __init__(self, rows: Sequence[str]) -> None:
        lengths = {len(row) for row in rows}
        require(len(lengths) == 1 and 0 not in lengths, "rows", "strings of one length, one or more", list(rows))
        free = torch.tensor([[mark != "x" for mark in row] for row in rows])
        require(bool(free.any()), "rows", "at least one free cell", list(rows))
        self.shape = (int(free.shape[0]), int(free.shape[1]))
        self.cells = free.nonzero()
        number = torch.full((self.shape[0] + 2, self.shape[1] + 2), -1)
        row, column = (self.cells + 1).unbind(-1)
        number[row, column] = torch.arange(len(self.cells))
        self._number = number
        ends = torch.stack([number[row + down, column + right] for down, right in MOVES], -1)
        self.moves = torch.where(ends < 0, torch.arange(len(self.cells)).unsqueeze(-1), ends)

    @classmethod
    def open(cls, n_rows: int, n_columns: int) -> GridMap:
        """Return a map without inner walls."""
        return cls([" " * n_columns] * n_rows)

    @property
    def n_cells(self) -> int:
        """Number of free cells."""
        return len(self.cells)

    def nearness(self, width: float) -> Tensor:
        """Return exp(-distance^2 / (2 width^2)) for each pair of cells, ``[n, n]``."""
        places = self.cells.to(torch.float64)
        return torch.exp(-(places.unsqueeze(1) - places).square().sum(-1) / (2.0 * width * width))

    def index(self, row: int, column: int) -> int:
        """Return the number of a free cell.

        Raises:
            ValueError: the cell is a wall or off the map.
        """
        inside = 0 <= row < self.shape[0] and 0 <= column < self.shape[1]
        found = int(self._number[row + 1, column + 1]) if inside else -1
        require(found >= 0, "cell", f"a free cell of the {self.shape[0]} x {self.shape[1]} map", (row, column))
        return found

    def transition(self, intended: float = 1.0) -> Tensor:
        """Return P(s'|s,a), ``[n, 4, n]``: move a happens with probability ``intended``, each other with a third of the rest."""
        n = self.n_cells
        return _slip(intended) @ torch.nn.functional.one_hot(self.moves, n).to(torch.float64)

    def sparse_transition(self, intended: float = 1.0) -> csr_array:
        """Return the transitions as a scipy CSR matrix ``[n * 4, n]`` with rows ``cell * 4 + move``, without a dense table."""
        n = self.n_cells
        cells = self.moves.to(torch.int32).unsqueeze(1).expand(n, 4, 4).reshape(-1).numpy()
        weights = _slip(intended).expand(n, 4, 4).reshape(-1).numpy()
        P = csr_array((weights, cells, np.arange(0, 16 * n + 1, 4, dtype=np.int32)), shape=(4 * n, n))
        P.sum_duplicates()  # moves that end in one cell
        P.eliminate_zeros()
        return P


def _slip(intended: float) -> Tensor:
    """Return the probability of each move (column) when a move (row) is intended, ``[4, 4]``."""
    check_number(intended, "intended", low=0.0, high=1.0)
    return torch.full((4, 4), (1.0 - intended) / 3.0, dtype=torch.float64).fill_diagonal_(intended)


class GridProblem(TabularProblem):
    """Base class of problems on a square grid; the reward in a cell is x of that cell plus a constant, and starts are uniform.

    Args:
        size: number of rows and of columns, at least 2.
        gamma: discount factor, in [0, 1).
        tau: default temperature, at least 0.
        intended: probability that the chosen move happens; each other move has a third of the rest.
        low: lower bound of x; the upper bound is 1.

    Attributes:
        grid: the map.
        ground: the constant part of each cell's reward, ``[S]``; the constructor sets it to 0.
    """

    batched_kernel: ClassVar[bool] = True

    def __init__(self, size: int, gamma: float, tau: float, intended: float, low: float) -> None:
        require(check_size(size, "size") >= 2, "size", "a whole number >= 2", size)
        self.gamma, self.tau = check_gamma(gamma, endless=True), check_tau(tau)
        self.grid = GridMap.open(size, size)
        n = self.grid.n_cells
        self.leader_set = LeaderSet.box(n, low, 1.0)
        self.ground = torch.zeros(n, dtype=torch.float64)
        self._P = self.grid.transition(intended)
        self._rho = torch.full((n,), 1.0 / n, dtype=torch.float64)

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        """Return M(x) for x ``[..., S]``."""
        r = (self.ground + x).unsqueeze(-1).expand(*x.shape, 4)
        return TabularMDP(self._P, r, self._rho, self.gamma, validate=False)
