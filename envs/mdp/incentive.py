r"""Incentive design (arXiv 2402.06886, section 6.3): a designer shapes a zero-sum game between two players.

The designer has its own transitions and rewards.

x holds one incentive per state and pair of actions, ``[S, A1, A2]`` flattened. The players play the game

    r_x(s,a1,a2) = r(s,a1,a2) + sigmoid(x(s,a1,a2)),     transitions P

at its Nash equilibrium. The designer's objective is the return of the same policies under its own transitions and reward:

    J_D(x,pi1,pi2) = E[ sum_t gamma^t r_id(s_t,a1_t,a2_t) ],     transitions P_id

x enters J_D through the policies only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import as_float64, check_seed, check_size, check_tau, require
from .problem import LOGIT_SCALE, GameProblem, LeaderSet
from .zero_sum import ZeroSumGame, joint_return

INCENTIVE_BOUND = 10.0
"""X is the box [-10, 10]: the incentive sigmoid(x) comes within 5e-5 of 0 and of 1."""


@dataclass(frozen=True, eq=False)
class IncentiveDesignProblem(GameProblem):
    """An incentive design problem given by arrays; with a leading axis N, a stack of N problems (:mod:`.stack`).

    Attributes:
        P: the players' transitions ``P(s'|s,a1,a2)``, ``[(N,) S, A1, A2, S]``.
        r: player 1's reward, paid by player 2, before incentives, ``[(N,) S, A1, A2]``.
        P_id: the designer's transitions, ``[(N,) S, A1, A2, S]``.
        r_id: the designer's reward, ``[(N,) S, A1, A2]``.
        rho: start distribution, for players and designer, ``[(N,) S]``.
        gamma: discount factor of players and designer, in [0, 1).
        tau: default temperature of the players, part of their game.

    Raises:
        ValueError: shapes do not fit together, rows are not distributions, gamma lies outside [0, 1), or tau is negative.
    """

    P: Tensor
    r: Tensor
    P_id: Tensor
    r_id: Tensor
    rho: Tensor
    gamma: float
    tau: float = 0.1

    def __post_init__(self) -> None:
        players = ZeroSumGame(self.P, self.r, self.rho, self.gamma)
        stack = players.batch_shape
        even = players.P.ndim - 4 == players.r.ndim - 3 == players.rho.ndim - 1 == len(stack) <= 1
        require(even, "P", "one game, or one axis of games on every table", f"batch axes {tuple(stack)}")
        for name in ("P_id", "r_id"):
            value, like = as_float64(getattr(self, name), name), getattr(players, name[0])
            require(value.shape == like.shape, name, f"shape {tuple(like.shape)}", f"shape {tuple(value.shape)}")
            object.__setattr__(self, name, value)
        try:
            designer = ZeroSumGame(self.P_id, self.r_id, players.rho, players.gamma)
        except ValueError as error:  # its errors name the field P or r
            field, _, rest = str(error).partition(":")
            raise ValueError(f"{field}_id:{rest}") from error
        check_tau(self.tau)
        for name in ("P", "r", "rho", "gamma"):
            object.__setattr__(self, name, getattr(players, name))
        object.__setattr__(self, "_designer", designer)
        object.__setattr__(
            self, "leader_set", LeaderSet.box(self.r.numel(), -INCENTIVE_BOUND, INCENTIVE_BOUND, LOGIT_SCALE)
        )
        if stack:
            object.__setattr__(self, "context_probs", torch.full(stack, 1.0 / stack[0], dtype=torch.float64))

    @staticmethod
    def over(game: ZeroSumGame, P_id: Any, r_id: Any, tau: float = 0.1) -> IncentiveDesignProblem:
        """Make an incentive design problem from the players' game, e.g. one by :meth:`ZeroSumGame.from_payoffs`."""
        return IncentiveDesignProblem(game.P, game.r, P_id, r_id, game.rho, game.gamma, tau)

    @property
    def designer(self) -> ZeroSumGame:
        """The designer's transitions and reward, in the form of a game whose r is the designer's reward."""
        return self._designer  # type: ignore[attr-defined, no-any-return]

    def incentive(self, x: Tensor) -> Tensor:
        """Return the incentives sigmoid(x), ``[(N,) S, A1, A2]``."""
        return torch.sigmoid(torch.as_tensor(x, dtype=torch.float64).view(self.r.shape))

    def game(self, x: Tensor) -> ZeroSumGame:
        return ZeroSumGame(self.P, self.r + self.incentive(x), self.rho, self.gamma, validate=False)

    def commitment(self, x: Tensor) -> Tensor:
        """Return the leader context of each state: its incentives, ``[(N,) S, A1 * A2]``."""
        return self.incentive(x).flatten(-2)

    def leader_game(self, x: Tensor) -> ZeroSumGame:
        return self.designer

    def leader_return(self, x: Tensor, pi: tuple[Tensor, Tensor]) -> Tensor:
        """Return the designer's return J_D(pi1, pi2), a scalar that depends on x through the policies only."""
        return self.over_contexts(joint_return(self.designer, pi[0], pi[1]))


def random_incentive_design(
    n_states: int = 10,
    n_actions_1: int = 5,
    n_actions_2: int = 5,
    gamma: float = 0.9,
    tau: float = 0.1,
    seed: int | None = 0,
) -> IncentiveDesignProblem:
    """Make a random problem as in the paper: rewards U[0,1], transitions U[0,1] and normalised, rho uniform.

    The sizes, gamma, tau and rho are our defaults; the published experiment may use others.

    Raises:
        ValueError: a size is below 1, gamma lies outside [0, 1), or tau is negative.
    """
    S = check_size(n_states, "n_states")
    shape = (S, check_size(n_actions_1, "n_actions_1"), check_size(n_actions_2, "n_actions_2"))
    check_seed(seed)
    rng = np.random.default_rng(seed)
    r, r_id = torch.from_numpy(rng.uniform(size=(2, *shape)))
    transitions = rng.uniform(size=(2, *shape, S))
    P, P_id = torch.from_numpy(transitions / transitions.sum(-1, keepdims=True))
    rho = torch.full((S,), 1.0 / S, dtype=torch.float64)
    return IncentiveDesignProblem(P, r, P_id, r_id, rho, gamma, tau)
