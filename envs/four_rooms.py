r"""Four Rooms with hidden penalties (Thoma et al. 2024): the leader's penalties change the path of a follower through a map.

Free cells s of a 13 x 13 map, moves a = up, right, down, left; start (4,1); one goal a context, (1,9) or (11,11), a fair
coin an episode. The leader's x holds 105 logits, 104 of them a cell's and the last one nobody's:

    penalty(s) = -0.2 softmax(x)_s                                           sum_s |penalty(s)| <= 0.2
    follower   r_x(s,a) = penalty(s) outside the goal,  1 in the goal
    leader     r_l(s,a) = 1[s = (8,4)] - beta sum_s |penalty(s)| 1[s is the goal]

The goal pays once, on the step taken in it, which earns its entropy like any other, and ends the episode: its value is
1 + tau log 4. The follower answers with the soft optimum at temperature tau. Map, constants and conventions are those of
the published experiment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .core import FromArguments
from .mdp import GridMap, LeaderSet, TabularMDP, TabularProblem
from .mdp.checks import check_number, check_tau
from .mdp.problem import LOGIT_SCALE
from .render import draw_grid
from .tabular import TabularEnv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAP = (
    "xxxxxxxxxxxxx",
    "x     x     x",
    "x     x     x",
    "x           x",
    "x     x     x",
    "x     x     x",
    "xx xxxx     x",
    "x     xxx xxx",
    "x     x     x",
    "x     x     x",
    "x           x",
    "x     x     x",
    "xxxxxxxxxxxxx",
)
START, GOALS, LEADER_CELL = (4, 1), ((1, 9), (11, 11)), (8, 4)
"""Row and column, from 0."""
INTENDED, GAMMA, PENALTY = 0.56, 0.99, 0.2
LOGIT_BOUND = 20.0
"""X is the box [-20, 20]^105: the least likely cell keeps a probability of e^-40, as good as none."""


class FourRoomsProblem(TabularProblem):
    """The Four Rooms problem (see the module), with one context for each of the two goals.

    Args:
        tau: temperature of the follower, positive. Default: 0.005.
        beta: the leader's cost per unit of penalty, each time the follower reaches the goal, at least 0. Default: 1.

    Attributes:
        grid: the map; cells are numbered row by row.
        goals: the goal's cell in each context.
        leader_cell: the cell in which the leader earns a reward.

    Raises:
        ValueError: tau is not positive, or beta is negative or not finite.
    """

    batched_kernel: ClassVar[bool] = True
    commitment_is_distribution: ClassVar[bool] = True

    def __init__(self, tau: float = 0.005, beta: float = 1.0) -> None:
        self.tau = check_tau(tau, positive=True)
        self.beta = check_number(beta, "beta", low=0.0, high=float("inf"), open_high=True)
        self.grid = GridMap(MAP)
        self.goals = tuple(self.grid.index(*goal) for goal in GOALS)
        self.leader_cell = self.grid.index(*LEADER_CELL)
        n = self.grid.n_cells
        self.leader_set = LeaderSet.box(n + 1, -LOGIT_BOUND, LOGIT_BOUND, LOGIT_SCALE)
        self.context_probs = torch.full((len(GOALS),), 0.5, dtype=torch.float64)
        self._P = self.grid.transition(INTENDED)
        self._rho = torch.nn.functional.one_hot(torch.tensor(self.grid.index(*START)), n).to(torch.float64)
        self._at_goal = torch.nn.functional.one_hot(torch.tensor(self.goals), n).to(torch.float64)
        self._ends, self._elsewhere = self._at_goal.bool(), 1.0 - self._at_goal
        self._at_leader_cell = torch.nn.functional.one_hot(torch.tensor(self.leader_cell), n).to(torch.float64)

    def penalty(self, x: Tensor) -> Tensor:
        """Return each cell's penalty, ``[..., S]``: -0.2 softmax(x) without the last entry, for x ``[..., 105]``."""
        return -PENALTY * torch.softmax(x, -1)[..., :-1]

    def _per_action(self, reward: Tensor) -> Tensor:
        return reward.unsqueeze(-1).expand(*reward.shape, self._P.shape[1])

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        """Return M(x) for x ``[..., 105]``, with one context for each goal."""
        r = self._at_goal + self.penalty(x).unsqueeze(-2) * self._elsewhere
        return TabularMDP(
            self._P, self._per_action(r), self._rho, GAMMA, self._ends, terminal_entropy=True, validate=False
        )

    def leader_reward(self, x: Tensor) -> Tensor:
        """Return the leader's reward, ``[..., 2, S, A]``: 1 in the leader's cell, -beta sum |penalty| in the goal."""
        cost = self.beta * -self.penalty(x).sum(-1)[..., None, None]
        return self._per_action(self._at_leader_cell - cost * self._at_goal)

    def commitment(self, x: Tensor) -> Tensor:
        """Return the leader context softmax(x), ``[..., 1, 105]``; the follower's reward is linear in it."""
        return torch.softmax(x, -1).unsqueeze(-2)


class FourRoomsEnv(FromArguments, TabularEnv, problem=FourRoomsProblem):
    """Four rooms, a goal, and a leader who hides penalties on the way.

    ## Description
    The follower starts in (4,1), row and column from 0, and wants to reach the episode's goal, (1,9) or (11,11), each
    with probability 1/2. The chosen move happens with probability 0.56 and each other move with 0.44/3; a move into a
    wall stays in the cell. The leader spreads penalties over the cells, at a cost, so that the follower's way leads through
    its own cell (8,4).

    ## Action Space
    ``Discrete(4)``: up, right, down, left.

    ## Observation Space
    ``Discrete(208)``: ``104 c + s``, c the goal and s the free cell, counted row by row.

    ## Leader Space
    ``Box(-20, 20, (105,), float64)``: logits, one for each cell and one that belongs to no cell; the penalty of a cell is
    -0.2 times its probability under their softmax. ``commitment(s)`` is that softmax, ``info["leader_draw"]`` 0.

    ## Rewards
    The follower's: 1 in the goal, the cell's penalty elsewhere. The leader's: 1 in (8,4); in the goal ``-beta`` times the
    sum of all penalties' sizes.

    ## Starting State
    (4,1); the goal is drawn at each reset and shown.

    ## Episode End
    With the step taken in the goal; the registered environment truncates after 500 steps (``max_episode_steps``).

    ## Arguments
    - ``tau``: temperature of the follower, positive (0.005).
    - ``beta``: what penalties cost the leader (1.0).
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``.

    The discount is 0.99.

    ## Version History
    - v0: first version.

    ## References
    Thoma et al., Contextual Bilevel Reinforcement Learning for Incentive Alignment, NeurIPS 2024.
    """

    problem: FourRoomsProblem

    def _draw(self, panel: Axes) -> None:
        problem = self.problem
        goal, cell = (None, None) if self._state is None else divmod(self._state, problem.grid.n_cells)
        goals = problem.goals if goal is None else problem.goals[goal : goal + 1]
        marks = {problem.leader_cell: "L"} | {s: "G" for s in goals}
        heat = problem.penalty(self._x).abs()
        draw_grid(panel, problem.grid, heat, "penalty of the cell", cell, marks, vmin=0.0)
        panel.set_title("L: the leader's cell, G: the goal", fontsize=9)


vector_env = FourRoomsEnv.vector
