r"""Zero-sum Markov games: two players, one reward (Shen, Yang and Chen, arXiv 2402.06886, section 5).

    V(s)   = E[ sum_t gamma^t ( r(s_t,a1_t,a2_t) - tau h(pi1(s_t)) + tau h(pi2(s_t)) ) | s_0 = s ]

Player 1 chooses pi1 to maximise V(rho), player 2 chooses pi2 to minimise it; h is the negative entropy. While one
player's policy is fixed, the other player faces an MDP, in which the fixed policy's entropy is a reward of the state:

    player 1    r_1(s,a1) =  sum_a2 pi2(a2|s) r(s,a1,a2) + tau h(pi2(s)),     its value is  V
    player 2    r_2(s,a2) = -sum_a1 pi1(a1|s) r(s,a1,a2) + tau h(pi1(s)),     its value is -V

The Nikaido-Isoda function (5.6), which here is also the exploitability of the pair,

    psi(pi1,pi2) = max_{pi1'} V^{pi1',pi2}(rho) - min_{pi2'} V^{pi1,pi2'}(rho)  >= 0,

requires the solution of two such MDPs but no equilibrium. If rho has full support, it is 0 exactly at a Nash equilibrium.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .checks import as_float64, broadcast_batch, check_finite, check_tau, require
from .tabular import MarkovModel, SoftOptimum, TabularMDP, negative_entropy, policy_value, solve_soft, start_value

ZERO_SUM_ATOL = 1e-10
"""How far from 0 the two players' payoffs may add up to (rounding)."""


@dataclass(frozen=True, eq=False)
class ZeroSumGame(MarkovModel):
    """A finite discounted zero-sum Markov game, or a batch of them.

    Attributes:
        P: transition probabilities ``P(s'|s,a1,a2)``, ``[..., S, A1, A2, S]``.
        r: player 1's reward, paid by player 2, ``[..., S, A1, A2]``.
        rho: start distribution, ``[..., S]``.
        gamma: discount factor of both players, in [0, 1).
        validate: whether the entries are checked; False is for games derived from a checked one. Default: True.

    Raises:
        ValueError: shapes do not fit together, rows of P or rho are not distributions, gamma lies outside [0, 1), or a reward is
            not finite.

    Example:
        >>> from bilevel_gym.envs.mdp import ZeroSumGame, solve_nash
        >>> pennies = ZeroSumGame.from_payoffs([[1.0, -1.0], [-1.0, 1.0]], [[-1.0, 1.0], [1.0, -1.0]])
        >>> solve_nash(pennies, tau=0.0).pi1.tolist()
        [[0.5, 0.5]]
    """

    P: Tensor
    r: Tensor
    rho: Tensor
    gamma: float
    validate: InitVar[bool] = True
    rank: ClassVar[int] = 3
    action_axes: ClassVar[str] = "A1, A2"

    @staticmethod
    def from_payoffs(r1: Any, r2: Any, P: Any = None, rho: Any = None, gamma: float = 0.0) -> ZeroSumGame:
        """Make a game from both players' payoffs, after checking that they add up to 0.

        Args:
            r1: player 1's payoffs, ``[..., S, A1, A2]``; a matrix ``[A1, A2]`` is a game of one state.
            r2: player 2's payoffs, of the same shape.
            P: transitions, ``[..., S, A1, A2, S]``. Default: the state never changes.
            rho: start distribution, ``[..., S]``. Default: uniform.
            gamma: discount factor, in [0, 1). Default: 0, a game played once.

        Raises:
            ValueError: the payoffs do not add up to 0, or the constructor refuses an argument.
        """
        first, second = as_float64(r1, "r1"), as_float64(r2, "r2")
        require(first.ndim >= 2, "r1", "shape [..., S, A1, A2] or [A1, A2]", f"shape {tuple(first.shape)}")
        require(second.shape == first.shape, "r2", f"shape {tuple(first.shape)}, as r1 has", f"{tuple(second.shape)}")
        check_finite(first, "r1")
        check_finite(second, "r2")
        total = (first + second).detach().abs()
        if bool((total > ZERO_SUM_ATOL).any()):
            where = tuple(int(i) for i in (total > ZERO_SUM_ATOL).nonzero()[0])
            pair = f"{first.detach()[where].item():g} and {second.detach()[where].item():g}"
            raise ValueError(f"r2: expected -r1, for the game is zero-sum, got {pair} at index {where}")
        r = first.unsqueeze(0) if first.ndim == 2 else first
        S, A1, A2 = r.shape[-3:]
        stay = torch.eye(S, dtype=r.dtype)[:, None, None, :].expand(S, A1, A2, S)
        uniform = torch.full((S,), 1.0 / max(S, 1), dtype=r.dtype)
        return ZeroSumGame(stay if P is None else P, r, uniform if rho is None else rho, gamma)

    @property
    def n_actions(self) -> tuple[int, int]:
        """The numbers of actions A1 and A2."""
        return int(self.r.shape[-2]), int(self.r.shape[-1])

    def detach(self) -> ZeroSumGame:
        """Return the same game, detached from the autograd graph."""
        return ZeroSumGame(self.P.detach(), self.r.detach(), self.rho.detach(), self.gamma, validate=False)


def player_mdp(game: ZeroSumGame, player: int, held: Tensor, tau: float) -> TabularMDP:
    """Return the MDP that one player faces while the other player's policy is fixed.

    Its value at temperature tau is V for player 1 and -V for player 2. It is differentiable in the game and in ``held``.

    Args:
        game: the game.
        player: the player, 1 or 2.
        held: the *other* player's policy, ``[..., S, A2]`` for player 1, ``[..., S, A1]`` for player 2.
        tau: temperature.

    Raises:
        ValueError: ``player`` is not 1 or 2, the policy has another shape, or batch axes do not broadcast.
    """
    require(player in (1, 2), "player", "1 or 2", repr(player))
    expected = (game.n_states, game.n_actions[2 - player])
    require(held.shape[-2:] == expected, "held", f"shape [..., {expected}]", f"shape {tuple(held.shape)}")
    broadcast_batch(("P", game.P.shape[:-4]), ("r", game.r.shape[:-3]), ("held", held.shape[:-2]))
    if player == 1:
        P, r = torch.einsum("...sb,...sabt->...sat", held, game.P), (game.r @ held.unsqueeze(-1)).squeeze(-1)
    else:
        P, r = torch.einsum("...sa,...sabt->...sbt", held, game.P), -(held.unsqueeze(-2) @ game.r).squeeze(-2)
    if tau != 0.0:
        r = r + tau * negative_entropy(held).unsqueeze(-1)
    return TabularMDP(P, r, game.rho, game.gamma, validate=False)


def joint_value(game: ZeroSumGame, pi1: Tensor, pi2: Tensor, tau: float = 0.0) -> Tensor:
    """Return player 1's value V of a pair of policies, ``[..., S]``, by a linear solve."""
    return policy_value(player_mdp(game, 1, pi2, tau), pi1, tau)


def joint_return(game: ZeroSumGame, pi1: Tensor, pi2: Tensor, tau: float = 0.0) -> Tensor:
    """Return player 1's return V(rho) of a pair of policies, ``[...]``."""
    return start_value(game, joint_value(game, pi1, pi2, tau))


@torch.no_grad()
def best_responses(
    game: ZeroSumGame, pi1: Tensor, pi2: Tensor, tau: float, warm: tuple[SoftOptimum, SoftOptimum] | None = None
) -> tuple[SoftOptimum, SoftOptimum]:
    """Return each player's best response to the other's policy, as the optimum of its own MDP (player 2's value is -V)."""
    starts = (None, None) if warm is None else (warm[0].V, warm[1].V)
    first = solve_soft(player_mdp(game, 1, pi2, tau), tau, starts[0])
    return first, solve_soft(player_mdp(game, 2, pi1, tau), tau, starts[1])


@torch.no_grad()
def nikaido_isoda_gap(game: ZeroSumGame, pi1: Tensor, pi2: Tensor, tau: float) -> Tensor:
    """Return psi(pi1,pi2) >= 0, ``[...]``: the sum of both players' gains from a best response to the other's policy."""
    check_tau(tau)
    first, second = best_responses(game, pi1, pi2, tau)
    return start_value(player_mdp(game, 1, pi2, tau), first.V) + start_value(player_mdp(game, 2, pi1, tau), second.V)
