r"""Goal placement: the leader places rewards on a grid, and is scored by which cells the follower then visits.

States are the cells of a size x size grid, actions the four moves; x_s in [0, 1] is the reward placed in cell s, and u_s in
[0, 1] how rough the ground is there:

    r_x(s,a) = x_s - roughness u_s,      P: the chosen move with probability ``intended``, each other a third of the rest

The leader has a target distribution over cells, three blobs of unequal weight, and dislikes what separates it from the
follower's visitation m(s) = (1-gamma) d(s), by a Gaussian kernel k (a squared maximum mean discrepancy):

    f(x,pi) = |m - target|^2_k / |uniform - target|^2_k,      |e|^2_k = sum_{s,t} e(s) k(s,t) e(t),      J_L = -f

A near miss costs little, a blob without visitors much; 1 is the score of a follower that moves at random, whose visitation is
uniform because rho is. J_L is a smooth function of the occupancy and no discounted return; x enters it through pi alone, so
placing reward is free. rho is uniform so that every policy visits every cell: gradient dominance of the follower's problem
needs that (arXiv 2402.06886, Lemma 2).

**The unregularised problem** is solved exactly. f is convex in the occupancy, and occupancies form a polytope whose corners
belong to deterministic policies. Let m* minimise f over it, and c = df/dm there. Then m* also maximises the linear <-c, m>, so
a policy pi* that makes m* is optimal for the reward -c/w + constant, and that is r_x for

    x = constant - c/w + roughness u,      w = (max c - min c) / (1 - roughness),      the constant such that min x = 0

a point of X. So x and pi* solve the bilevel problem at tau = 0, ties broken for the leader, and no follower scores better at any
x and any temperature. m* is found by the Frank-Wolfe method, fully corrective: the corner v that -c likes best (one policy
iteration) joins those in use, whose weights are then optimised together by least squares; <c, m - v> bounds f(m) - f(m*).

A goal on a 10 x 10 grid is an experiment of Zeng, Bhatt, Ganesh and Koppel, arXiv 2601.16399. Its objective and constants were
not available: those here are this library's own. At gamma = 0.9 a follower looks ten moves ahead, the grid's side; the kernel is
as wide as a blob, so that a miss by one cell counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from .core import FromArguments
from .mdp import GridMap, Optimum, TabularMDP, solve_soft, visitation
from .mdp.checks import check_number, check_seed, check_tau, require
from .mdp.grid import GridProblem
from .render import FOLLOWER, draw_grid
from .tabular import TabularEnv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES = (0.5, 0.3, 0.2)
"""Weights of the three blobs of the target."""

BLOB_WIDTH = 1.0
"""Standard deviation of a blob, in cells."""

OPTIMUM_GAP = 1e-12
"""Bound on f(m) - f(m*) at which the Frank-Wolfe method stops."""


class GoalPlacementProblem(GridProblem):
    """The goal placement problem (see the module).

    Args:
        size: number of rows and of columns of the grid, at least 2.
        gamma: discount factor, in [0, 1).
        tau: default temperature of the follower, at least 0.
        intended: probability that the chosen move happens.
        roughness: upper bound on a step's cost from rough ground, in [0, 1), i.e. below the largest reward that can be placed.
        width: width of the leader's kernel in cells, positive and at most ``size``.
        seed: seed of the ground and of the target's blobs; None draws a new seed.

    Attributes:
        grid: the map.
        goals: the cell at the middle of each blob.
        target: the leader's target distribution, ``[S]``.
        ground: -roughness u, ``[S]``.

    Raises:
        ValueError: an argument lies outside its range.
    """

    def __init__(
        self,
        size: int = 10,
        gamma: float = 0.9,
        tau: float = 0.0,
        intended: float = 0.8,
        roughness: float = 0.1,
        width: float = 1.0,
        seed: int | None = 0,
    ) -> None:
        super().__init__(size, gamma, tau, intended, low=0.0)
        self._roughness = check_number(roughness, "roughness", low=0.0, high=1.0, open_high=True)
        width = check_number(width, "width", low=0.0, high=float(size), open_low=True)
        check_seed(seed)
        rng = np.random.default_rng(seed)
        self.ground = torch.from_numpy(-self._roughness * rng.uniform(size=self.leader_dim))
        self.goals = _goals(self.grid, rng)
        blobs = self.grid.nearness(BLOB_WIDTH)[list(self.goals)]
        self.target = torch.tensor(SHARES, dtype=torch.float64) @ (blobs / blobs.sum(-1, keepdim=True))
        kernel, apart = self.grid.nearness(width), self._rho - self.target
        self._kernel = kernel / (apart @ kernel @ apart)
        self._solution: tuple[Tensor, Tensor] | None = None

    def leader_reward(self, x: Tensor) -> None:
        """Return None, because J_L is not a discounted return."""

    def discrepancy(self, m: Tensor) -> Tensor:
        """Return the discrepancy f, ``[...]``, of a visitation distribution ``[..., S]``."""
        apart = m - self.target
        return ((apart @ self._kernel) * apart).sum(-1)

    def occupancy_return(self, x: Tensor, occupancy: Tensor) -> Tensor:
        """Return the leader's return -f, given occupancies ``[..., S, A]``."""
        return -self.discrepancy(occupancy.sum(-1))

    def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
        """Return the leader's return -f(x, pi)."""
        return -self.discrepancy((1.0 - self.gamma) * visitation(self.follower_mdp(x), torch.as_tensor(pi)))

    def optimum(self, tau: float | None = None) -> Optimum:
        """Return the optimum at tau = 0, with ties broken in the leader's favour; its f is within 1e-12 of the minimum.

        Raises:
            ValueError: tau is positive; the optimum is then not known.
        """
        tau = self.tau if tau is None else check_tau(tau)
        require(tau == 0.0, "tau", "0, where the answer is known", tau)
        if self._solution is None:
            self._solution = self._best_occupancy()
        m, c = self._solution
        # any larger w does too; c = 0 in a perfect match
        w = ((c.max() - c.min()) / (1.0 - self._roughness)).clamp_min(1e-6)
        x = -c / w - self.ground
        pi = m / m.sum(-1, keepdim=True)
        return Optimum(self.project(x - x.min()), pi, -float(self.discrepancy(m.sum(-1))))

    @torch.no_grad()
    def _best_occupancy(self) -> tuple[Tensor, Tensor]:
        """The best occupancy m*, ``[S, A]``, and the gradient c = df/dm there, ``[S]``."""
        values, vectors = torch.linalg.eigh(self._kernel)
        root = values.clamp_min(0.0).sqrt() * vectors  # |e|^2_k = |e root|^2
        mdp = self.follower_mdp(torch.zeros_like(self.target))
        corners = [self._occupancy(mdp, torch.full((self.grid.n_cells, 4), 0.25, dtype=torch.float64))]
        weights, least = np.ones(1), float("inf")
        while True:
            m = torch.tensordot(torch.from_numpy(weights), torch.stack(corners), 1)
            c = 2.0 * (m.sum(-1) - self.target) @ self._kernel
            best = solve_soft(mdp.with_reward((-c).unsqueeze(-1).expand_as(mdp.r)), 0.0)
            corner = self._occupancy(mdp, best.pi)
            f = float(self.discrepancy(m.sum(-1)))
            if float(c @ (m - corner).sum(-1)) <= OPTIMUM_GAP or f >= least:  # f falls until rounding stops it
                return m, c
            least = f
            corners = [v for v, weight in zip(corners, weights, strict=True) if weight > 0.0] + [corner]
            # The nearest point to 0 of the simplex spanned by columns A: least squares on (A, a row of ones) = (0, 1),
            # weights >= 0, scaled to sum to one.
            A = ((torch.stack(corners).sum(-1) - self.target) @ root).T.numpy()
            weights, _ = nnls(np.vstack([A, np.ones(len(corners))]), np.append(np.zeros(len(A)), 1.0))
            weights = weights / weights.sum()

    def _occupancy(self, mdp: TabularMDP, pi: Tensor) -> Tensor:
        return (1.0 - self.gamma) * visitation(mdp, pi).unsqueeze(-1) * pi


def _goals(grid: GridMap, rng: np.random.Generator) -> tuple[int, ...]:
    """Three cells, any two of which are at least half the grid's side apart, counted in moves."""
    while True:
        goals = rng.choice(grid.n_cells, len(SHARES), replace=False)
        places = grid.cells[torch.from_numpy(goals)]
        steps = (places.unsqueeze(1) - places).abs().sum(-1)
        if int(steps[~torch.eye(len(SHARES), dtype=torch.bool)].min()) >= grid.shape[0] // 2:
            return tuple(int(goal) for goal in goals)


class GoalPlacementEnv(FromArguments, TabularEnv, problem=GoalPlacementProblem):
    """The leader places rewards on a grid so that the follower spends its time in the cells that the leader wants.

    ## Description
    The follower walks a grid of rough ground, slips now and then, and collects the reward that the leader has placed in
    its cell. The leader has a target distribution over cells, three blobs that are to receive a half, three tenths and
    a fifth of the follower's discounted visits, and is judged by a smoothed squared distance between the two:
    1 for a follower that wanders at random, 0 for a perfect match. ``problem.optimum(0.0)`` is the best that any
    follower can score; ``problem.leader_return`` is minus the distance.

    ## Action Space
    ``Discrete(4)``: up, right, down, left. The chosen move happens with probability ``intended``, each other move with
    a third of the rest; a move off the grid stays in the cell.

    ## Observation Space
    ``Discrete(size ** 2)``: the cell, row by row.

    ## Leader Space
    ``Box(0, 1, (size ** 2,), float64)``: the reward placed in each cell. ``commitment(s)`` is x, ``info["leader_draw"]`` 0.

    ## Rewards
    The follower's: the reward placed in its cell, less what its ground costs. The leader's objective is no sum of
    rewards: ``info["leader_reward"]`` is 0.

    ## Starting State
    Uniform over the cells.

    ## Episode End
    It does not terminate; the registered environment truncates after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``size``: rows and columns (10).
    - ``gamma``: discount, in [0, 1) (0.9).
    - ``tau``: default temperature of the follower (0).
    - ``intended``: probability that the chosen move happens (0.8).
    - ``roughness``: the ground costs a uniform share of it, drawn for each cell (0.1).
    - ``width``: width of the leader's kernel, in cells (1.0).
    - ``seed``: seed of the ground and of the blobs, not of the episodes (0); None draws a random grid.
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``: the reward placed, the target (white lines), the follower's
      visits at its best response (circles, by area), and its cell.

    The grid's size is that of a published experiment; everything else is this library's own.

    ## Version History
    - v0: first version.

    ## References
    Zeng, Bhatt, Ganesh and Koppel, A Regularized Actor-Critic Algorithm for Bi-Level Reinforcement Learning, arXiv 2601.16399.
    """

    problem: GoalPlacementProblem

    def _draw(self, panel: Axes) -> None:
        problem = self.problem
        grid, mdp = problem.grid, problem.follower_mdp(self._x)
        marks = {cell: f"{share:.0%}" for cell, share in zip(problem.goals, SHARES, strict=True)}
        draw_grid(panel, grid, self._x, "reward placed", self._state, marks, vmin=0.0, vmax=1.0)
        panel.contour(problem.target.reshape(grid.shape).numpy(), levels=4, colors="white", linewidths=0.8)
        m = (1.0 - problem.gamma) * visitation(mdp, solve_soft(mdp, problem.tau0).pi).numpy()
        rows, columns = grid.cells.numpy().T
        panel.scatter(columns, rows, s=3000.0 * m, facecolors="none", edgecolors=FOLLOWER, linewidths=1.0)


vector_env = GoalPlacementEnv.vector
