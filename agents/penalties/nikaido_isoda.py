r"""Nikaido-Isoda penalty of a zero-sum lower level (arXiv 2402.06886, eq. 5.6):

    psi(x,pi) = max_{pi1'} V^{pi1',pi2}(rho) - min_{pi2'} V^{pi1,pi2'}(rho) >= 0,      0 iff pi is a Nash equilibrium

By Danskin's theorem (Lemma 12) its gradient uses the best responses, pi1* to pi2 and pi2* to pi1:

    grad_pi psi = ( -grad_{pi1} V^{pi1,pi2*}(rho),  +grad_{pi2} V^{pi1*,pi2}(rho) )
    grad_x psi  = grad_x V^{pi1*,pi2}(rho) - grad_x V^{pi1,pi2*}(rho)

Sampled: episodes of the pairs (pi1*, pi2) and (pi1, pi2*), from rho. The estimate is unbiased for truncated returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...envs.mdp import Trajectories, game_world
from ..monte_carlo import Sampler
from ..records import storable
from ..schedules import Schedule
from .base import Penalty, Policies, Role, Term


@storable
@dataclass(frozen=True, eq=False)
class NikaidoIsodaPenalty(Penalty):
    """The Nikaido-Isoda penalty (5.6), for two or more players. For a gap of delta, ``lam`` must be of order 1/delta.

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
        self, model: Any, pi: Policies, best: Policies, tau: float, sampler: Sampler, played: Trajectories | None = None
    ) -> Tensor:
        (pi1, pi2), (pi1_star, pi2_star) = pi, (answer.detach() for answer in best)
        first, second = game_world(model, pi2, tau), game_world(model, pi2_star, tau)
        against_2 = sampler.play(first, pi1_star)
        against_1 = sampler.play(second, pi1, partner=against_2)
        at_2 = sampler.policy_return(first, pi1_star, against_2, tau)
        return at_2 - sampler.policy_return(second, pi1, against_1, tau)
