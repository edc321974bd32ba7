r"""A grid world with a hidden true reward: the leader chooses the reward that the follower sees, and is scored by the true one.

States are the cells of a size x size grid, actions the four moves; u_s in [0, 1] is the true reward of a cell, x_s in [-1, 1]
the reward that the follower is paid there:

    r_x(s,a) = x_s,      r_l(s,a) = u_s,      P: the chosen move with probability ``intended``, each other a third of the
    rest

so that J_L(x, pi) is the true return of the follower. The true reward is a smooth random field: white noise convolved with a
Gaussian of ``width`` cells, shifted and scaled to [0, 1].

**Optimum.** No policy returns more than V*_u(rho), the optimum of the true MDP, and x = u makes the follower reach it at tau =
0. A learned reward r, even one that no x makes, has the regret ``V*_u(rho) - V_u^{pi*(r)}(rho) >= 0``, which is exact for the
model is known. The problem is this library's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .core import FromArguments
from .mdp import Optimum, solve_soft
from .mdp.checks import check_number, check_seed, check_tau, require
from .mdp.grid import GridProblem
from .render import draw_grid
from .tabular import TabularEnv

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class RewardGridProblem(GridProblem):
    """The reward grid problem (see the module).

    Args:
        size: number of rows and of columns of the grid, at least 2.
        gamma: discount factor of both players, in [0, 1).
        tau: default temperature of the follower, at least 0.
        intended: probability that the chosen move happens.
        width: width of the Gaussian that smooths the true reward, in cells, positive.
        seed: seed of the true reward; None draws a new seed.

    Attributes:
        grid: the map.
        true_reward: u, ``[S]``.

    Raises:
        ValueError: an argument lies outside its range.
    """

    def __init__(
        self,
        size: int = 6,
        gamma: float = 0.9,
        tau: float = 0.0,
        intended: float = 0.9,
        width: float = 1.0,
        seed: int | None = 0,
    ) -> None:
        super().__init__(size, gamma, tau, intended, low=-1.0)
        width = check_number(width, "width", low=0.0, open_low=True)
        check_seed(seed)
        field = self.grid.nearness(width) @ torch.from_numpy(
            np.random.default_rng(seed).standard_normal(self.leader_dim)
        )
        require(bool(field.max() > field.min()), "width", "a width by which cells differ", repr(width))
        self.true_reward = (field - field.min()) / (field.max() - field.min())

    def leader_reward(self, x: Tensor) -> Tensor:
        """Return the true reward u of every cell, ``[..., S, 4]`` for x ``[..., S]``."""
        return (self.true_reward + 0.0 * x).unsqueeze(-1).expand(*x.shape, 4)

    def optimum(self, tau: float | None = None) -> Optimum:
        """Return the optimum at tau = 0, x = u.

        Raises:
            ValueError: tau is positive; the optimum is then not known.
        """
        tau = self.tau if tau is None else check_tau(tau)
        require(tau == 0.0, "tau", "0, where the answer is known", tau)
        best = solve_soft(self.follower_mdp(self.true_reward), 0.0)
        return Optimum(self.true_reward.clone(), best.pi, float(self._rho @ best.V))


class RewardGridEnv(FromArguments, TabularEnv, problem=RewardGridProblem):
    """A grid world with a hidden true reward, in which the leader pays its estimate of that reward.

    ## Description
    The follower walks a grid, slips now and then, and collects what the leader pays in its cell. The true reward of the
    cells is a smooth random field; the leader's return is the follower's return under this true reward. A reward learned from
    preferences replaces x; its regret is exact, since the model is known.

    ## Action Space
    ``Discrete(4)``: up, right, down, left. The chosen move happens with probability ``intended``, each other move with
    a third of the rest; a move off the grid stays in the cell.

    ## Observation Space
    ``Discrete(size ** 2)``: the cell, row by row.

    ## Leader Space
    ``Box(-1, 1, (size ** 2,), float64)``: the payment in each cell. ``commitment(s)`` is x, ``info["leader_draw"]`` 0.

    ## Rewards
    The follower's: the payment in its cell, initially 0. The leader's: the true reward of the cell, in [0, 1].

    ## Starting State
    Uniform over the cells.

    ## Episode End
    It does not terminate; the registered environment truncates after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``size``: rows and columns (6).
    - ``gamma``: discount of both players, in [0, 1) (0.9).
    - ``tau``: default temperature of the follower (0).
    - ``intended``: probability that the chosen move happens (0.9).
    - ``width``: width of the Gaussian that smooths the true reward, in cells (1.0).
    - ``seed``: seed of the true reward, not of the episodes (0); None draws a random one.
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``: the payments, the true reward (white lines), and the
      follower's cell.

    ## Version History
    - v0: first version.
    """

    problem: RewardGridProblem

    def _draw(self, panel: Axes) -> None:
        problem = self.problem
        draw_grid(panel, problem.grid, self._x, "paid (true reward: lines)", self._state, vmin=-1.0, vmax=1.0)
        true = problem.true_reward.reshape(problem.grid.shape).numpy()
        panel.contour(true, levels=4, colors="white", linewidths=0.8)


vector_env = RewardGridEnv.vector
