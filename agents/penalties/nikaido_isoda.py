r"""Nikaido-Isoda penalty of a zero-sum lower level (arXiv 2402.06886, eq. 5.6):

    psi(x,pi) = max_{pi1'} V^{pi1',pi2}(rho) - min_{pi2'} V^{pi1,pi2'}(rho) >= 0,      0 iff pi is a Nash equilibrium

By Danskin (Lemma 12) its gradient holds both best responses, pi1* to pi2 and pi2* to pi1:

    grad_pi psi = ( -grad_{pi1} V^{pi1,pi2*}(rho),  +grad_{pi2} V^{pi1*,pi2}(rho) )
    grad_x psi  = grad_x V^{pi1*,pi2}(rho) - grad_x V^{pi1,pi2*}(rho)

Sampled: episodes of the pairs (pi1*, pi2) and (pi1, pi2*), from rho; unbiased for the same with truncated returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...envs.mdp import Trajectories, ZeroSumGame, game_world, player_mdp, policy_return, policy_return_gradient
from ..monte_carlo import Sampler
from ..records import storable
from ..schedules import Schedule
from .base import Penalty, Role, Term


def nikaido_isoda_penalty(
    game: ZeroSumGame, pi1: Tensor, pi2: Tensor, pi1_star: Tensor, pi2_star: Tensor, tau: float
) -> Tensor:
    """V^{pi1_star,pi2}(rho) - V^{pi1,pi2_star}(rho), ``[...]``, both best responses held; autograd gives Lemma 12."""
    first, second = player_mdp(game, 1, pi2, tau), player_mdp(game, 2, pi1, tau)
    return policy_return(first, pi1_star.detach(), tau) + policy_return(second, pi2_star.detach(), tau)


def nikaido_isoda_penalty_gradient(
    game: ZeroSumGame, pi1: Tensor, pi2: Tensor, pi1_star: Tensor, pi2_star: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """dpsi/dpi1(a|s), ``[..., S, A1]``, and dpsi/dpi2(a|s), ``[..., S, A2]``: each a policy gradient in that player's MDP.

    Autograd's differ from them by a constant in each row, which no direction of the simplex sees.
    """
    first, second = player_mdp(game, 1, pi2_star, tau), player_mdp(game, 2, pi1_star, tau)
    return -policy_return_gradient(first, pi1, tau), -policy_return_gradient(second, pi2, tau)


def sampled_nikaido_isoda_penalty(
    game: ZeroSumGame,
    pi: tuple[Tensor, Tensor],
    best: tuple[Tensor, Tensor],
    tau: float,
    sampler: Sampler,
) -> Tensor:
    """The estimate of :func:`nikaido_isoda_penalty` and, by autograd, of its gradient, ``[...]``."""
    (pi1, pi2), (pi1_star, pi2_star) = pi, (answer.detach() for answer in best)
    first, second = game_world(game, pi2, tau), game_world(game, pi2_star, tau)
    against_2 = sampler.play(first, pi1_star)
    against_1 = sampler.play(second, pi1, partner=against_2)
    return sampler.policy_return(first, pi1_star, against_2, tau) - sampler.policy_return(second, pi1, against_1, tau)


@storable
@dataclass(frozen=True, eq=False)
class NikaidoIsodaPenalty(Penalty):
    """The Nikaido-Isoda penalty (5.6), of two players or more. Needs ``lam`` of order 1/delta for a gap of delta.

    Attributes:
        lam: coefficient of the penalty, positive; a number or a schedule.
    """

    lam: float | Schedule = 4.0

    several: ClassVar[bool] = True

    def roles(self, n_players: int) -> tuple[Role, ...]:
        best, own = ([f"{kind}_{i + 1}" for i in range(n_players)] for kind in ("best_response", "player"))
        return (
            *(Role(name, i, against=tuple(own[:i] + own[i + 1 :])) for i, name in enumerate(best)),
            *(Role(name, i, share=1.0, against=tuple(best[:i] + best[i + 1 :])) for i, name in enumerate(own)),
        )

    def terms(self, n_players: int, zero_sum: bool = True) -> tuple[Term, ...]:
        best, own = ([f"{kind}_{i + 1}" for i in range(n_players)] for kind in ("best_response", "player"))
        deviations = (Term(-1.0, i, (*own[:i], best[i], *own[i + 1 :])) for i in range(n_players))
        kept = () if zero_sum else tuple(Term(1.0, i, tuple(own)) for i in range(n_players))
        return (*deviations, *kept, Term(1.0, None, tuple(own)))

    def sampled(
        self,
        model: ZeroSumGame,
        pi: tuple[Tensor, ...],
        best: tuple[Tensor, ...],
        tau: float,
        sampler: Sampler,
        played: Trajectories | None = None,
    ) -> Tensor:
        (pi1, pi2), (pi1_star, pi2_star) = pi, best
        return sampled_nikaido_isoda_penalty(model, (pi1, pi2), (pi1_star, pi2_star), tau, sampler)
