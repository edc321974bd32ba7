r"""Value penalty (arXiv 2402.06886, eq. 3.2):

    p(x,y) = max_pi V^pi(rho) - V^{pi_y}(rho) >= 0

By Danskin's theorem (Lemma 6) its gradient holds the maximiser fixed:

    grad_y p = -grad_y V^{pi_y}(rho)
    grad_x p = -grad_x V^{pi_y}(rho) + grad_x V^{pi}(rho) |_{pi = pi*(x)}

Sampled: episodes of pi_y and of the current best response, from rho. The estimate is unbiased for truncated returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...envs.mdp import Trajectories
from ..monte_carlo import Sampler
from ..records import storable
from .base import Penalty, Policies


@storable
@dataclass(frozen=True, eq=False)
class ValuePenalty(Penalty):
    """The value penalty (3.2). For a follower regret of delta, ``lam`` must be of order 1/delta."""

    solvable: ClassVar[bool] = True

    def sampled(
        self, model: Any, pi: Policies, best: Policies, tau: float, sampler: Sampler, played: Trajectories | None = None
    ) -> Tensor:
        pi_star = best[0].detach()
        own = sampler.play(model, pi[0]) if played is None else played
        at_star = sampler.play(model, pi_star, partner=own)
        return sampler.policy_return(model, pi_star, at_star, tau) - sampler.policy_return(model, pi[0], own, tau)
