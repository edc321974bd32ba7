r"""A grid world with a hidden true reward: the leader chooses the reward that the follower sees, and is scored by the true one.

States are the cells of a size x size grid, actions the four moves; u_s in [0, 1] is what a cell is worth in truth, x_s in [-1,
1] what the follower is paid there:

    r_x(s,a) = x_s,      r_l(s,a) = u_s,      P: the move meant with probability ``intended``, each other one a third of the
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
    """The problem above.

    Args:
        size: rows and columns of the grid.
        gamma: discount in [0, 1).
        tau: default temperature of the follower.
        intended: probability of the move meant.
        width: of the field, in cells.
        seed: of the field; None draws one anew.

    Attributes:
        grid: the map.
        true_reward: u, ``[S]``.

    Raises:
        ValueError: a size under two, gamma outside [0, 1), tau negative, a probability outside [0, 1], a width that is not
            positive, a negative seed.
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
        """The true reward u of every cell, ``[..., S, 4]`` for x ``[..., S]``."""
        return (self.true_reward + 0.0 * x).unsqueeze(-1).expand(*x.shape, 4)

    def optimum(self, tau: float | None = None) -> Optimum:
        """The optimum at tau = 0: x = u.

        Raises:
            ValueError: a positive tau, at which the answer is not known.
        """
        tau = self.tau if tau is None else check_tau(tau)
        require(tau == 0.0, "tau", "0, where the answer is known", tau)
        best = solve_soft(self.follower_mdp(self.true_reward), 0.0)
        return Optimum(self.true_reward.clone(), best.pi, float(self._rho @ best.V))


class RewardGridEnv(FromArguments, TabularEnv, problem=RewardGridProblem):
    """A grid world with a hidden true reward, in which the leader pays what it believes each cell is worth.

    ## Description
    The follower walks a grid, slips now and then, and collects what the leader pays in the cell it stands in. What cells
    are worth in truth is a smooth random field that the leader is judged by: its return is the true return of the follower.
    A reward learned from preferences takes the place of x; its regret is exact, for the model is known.

    ## Action Space
    ``Discrete(4)``: up, right, down, left. The move meant happens with probability ``intended``, each other one with a
    third of the rest; off the grid is staying.

    ## Observation Space
    ``Discrete(size ** 2)``: the cell, row by row.

    ## Leader Space
    ``Box(-1, 1, (size ** 2,), float64)``: what is paid in each cell. ``commitment(s)`` is x, ``info["leader_draw"]`` 0.

    ## Rewards
    The follower's: what is paid in its cell, 0 at the start. The leader's: what the cell is worth, in [0, 1].

    ## Starting State
    Uniform over the cells.

    ## Episode End
    It does not terminate; the registered environment truncates after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``size``: rows and columns (6).
    - ``gamma``: discount of both players, in [0, 1) (0.9).
    - ``tau``: default temperature of the follower (0).
    - ``intended``: probability of the move meant (0.9).
    - ``width``: of the field, in cells (1.0).
    - ``seed``: of the field, not of the play (0); None draws a random one.
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``: what is paid, the true reward (white lines), and where the
      follower stands.

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
