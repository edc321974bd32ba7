r"""Value penalty (arXiv 2402.06886, eq. 3.2):

    p(x,y) = max_pi V^pi(rho) - V^{pi_y}(rho) >= 0

By Danskin (Lemma 6) its gradient holds the maximiser fixed:

    grad_y p = -grad_y V^{pi_y}(rho)
    grad_x p = -grad_x V^{pi_y}(rho) + grad_x V^{pi}(rho) |_{pi = pi*(x)}

Sampled: episodes of pi_y and of the best response in hand, from rho; unbiased for the same with truncated returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...envs.mdp import TabularMDP, TabularWorld, Trajectories, policy_return, policy_return_gradient
from ..monte_carlo import Sampler
from ..records import storable
from .base import ONE_FOLLOWER, Penalty, Role, Term, one_follower


def value_penalty(mdp: TabularMDP, pi: Tensor, pi_star: Tensor, tau: float) -> Tensor:
    """V^{pi_star}(rho) - V^{pi}(rho), ``[...]``, with pi_star held; autograd gives Lemma 6. Any tau >= 0."""
    return policy_return(mdp, pi_star.detach(), tau) - policy_return(mdp, pi, tau)


def value_penalty_gradient(mdp: TabularMDP, pi: Tensor, tau: float) -> Tensor:
    """dp/dpi(a|s) = -d(s) [ Q(s,a) - tau (grad h(pi(s)))_a ], ``[..., S, A]``."""
    return -policy_return_gradient(mdp, pi, tau)


def sampled_value_penalty(
    world: TabularWorld,
    pi: Tensor,
    pi_star: Tensor,
    tau: float,
    sampler: Sampler,
    played: Trajectories | None = None,
) -> Tensor:
    """The estimate of :func:`value_penalty` and, by autograd, of its gradient, ``[...]``.

    Args:
        world: the follower's world at x, carrying x's graph.
        pi: the follower's policy, carrying y's graph.
        pi_star: the best response in hand; held.
        tau: temperature.
        sampler: plays.
        played: pi's episodes in this world, where they were drawn before.
    """
    pi_star = pi_star.detach()
    own = sampler.play(world, pi) if played is None else played
    best = sampler.play(world, pi_star, partner=own)
    return sampler.policy_return(world, pi_star, best, tau) - sampler.policy_return(world, pi, own, tau)


@storable
@dataclass(frozen=True, eq=False)
class ValuePenalty(Penalty):
    """The value penalty (3.2). Needs ``lam`` of order 1/delta for a follower's gap of delta."""

    solvable: ClassVar[bool] = True

    def roles(self, n_players: int) -> tuple[Role, ...]:
        return one_follower()

    def terms(self, n_players: int, zero_sum: bool = True) -> tuple[Term, ...]:
        return ONE_FOLLOWER

    def sampled(
        self,
        model: TabularWorld,
        pi: tuple[Tensor, ...],
        best: tuple[Tensor, ...],
        tau: float,
        sampler: Sampler,
        played: Trajectories | None = None,
    ) -> Tensor:
        return sampled_value_penalty(model, pi[0], best[0], tau, sampler, played)
