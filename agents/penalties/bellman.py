r"""Bellman penalty (arXiv 2402.06886, eq. 3.5-3.7). With q = -Q*_x,

    g(x,y) = E_{s~mu}[ <y_s, q_s> + tau h(y_s) ],      p = g - min_y g  =  tau E_{s~mu} KL(y_s || pi*_x(s))

The last equality holds exactly for the negative entropy h, so tau > 0. The paper weighs states by rho and sees only states
with rho(s) > 0; here mu defaults to the uniform distribution over non-terminal states, of full support.

    dp/dy_{s,a} = mu(s) [ -Q*(s,a) + tau (grad h(y_s))_a ]
    grad_x p    = -E_{mu, a~pi_y}[ grad_x Q*(s,a) ] + E_{mu, a~pi*}[ grad_x Q*(s,a) ]          Lemma 8

and grad_x Q* differentiates Q^pi at the fixed pi = pi* (Danskin).

**Sampled.** Nobody shows Q*: an oracle's policy pihat stands for pi*, and its Q for Q*. Two kinds of episodes start in
s_0 ~ mu and differ in the first action alone, a_0 ~ pihat(.|s_0) or a_0 ~ pi_y(.|s_0); pihat plays on. With tau h(first policy)
counted in each, the difference of their returns estimates, without bias,

    E_mu[ <pihat, Q_T> - tau h(pihat) ] - E_mu[ <pi_y, Q_T> - tau h(pi_y) ],

Q_T the return of T steps from (s,a) under pihat. At pihat = pi* and T to infinity this is p, and its gradient Lemma 8's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...envs.mdp import (
    TabularMDP,
    TabularWorld,
    Trajectories,
    action_value,
    negative_entropy,
    negative_entropy_gradient,
    policy_value,
    soft_maximum,
)
from ...envs.mdp.checks import as_float64, check_distribution, check_tau, require
from ...envs.mdp.tabular import entropy_weight
from ..monte_carlo import Sampler
from ..records import storable
from .base import ONE_FOLLOWER, Penalty, Role, Term, one_follower


def state_weights(mdp: TabularMDP | TabularWorld, mu: Tensor | None) -> Tensor:
    """mu, ``[..., S]``; by default uniform over non-terminal states."""
    if mu is not None:
        require(mu.shape[-1] == mdp.n_states, "mu", f"shape [..., {mdp.n_states}]", f"shape {tuple(mu.shape)}")
        return mu
    live = torch.ones_like(mdp.rho) if mdp.terminal is None else (~mdp.terminal).to(mdp.rho.dtype)
    total = live.sum(-1, keepdim=True)
    require(bool((total > 0.0).all()), "mu", "weights of the states, where every state is terminal", None)
    return live / total


def bellman_penalty(mdp: TabularMDP, pi: Tensor, pi_star: Tensor, tau: float, mu: Tensor | None = None) -> Tensor:
    """g(x,y) - min_y g, ``[...]``, with Q* evaluated at the held pi_star; autograd gives Lemma 8."""
    check_tau(tau, positive=True)
    Q = action_value(mdp, policy_value(mdp, pi_star.detach(), tau))
    g = -(pi * Q).sum(-1) + entropy_weight(mdp, tau) * negative_entropy(pi)
    return (state_weights(mdp, mu) * (g + soft_maximum(mdp, Q, tau))).sum(-1)


def bellman_penalty_gradient(
    mdp: TabularMDP, pi: Tensor, pi_star: Tensor, tau: float, mu: Tensor | None = None
) -> Tensor:
    """dp/dpi(a|s) = mu(s) [ -Q*(s,a) + tau (grad h(pi(s)))_a ], ``[..., S, A]``."""
    weight = entropy_weight(mdp, check_tau(tau, positive=True))
    Q = action_value(mdp, policy_value(mdp, pi_star, tau))
    slope = negative_entropy_gradient(pi) * (weight.unsqueeze(-1) if isinstance(weight, Tensor) else weight)
    return state_weights(mdp, mu).unsqueeze(-1) * (slope - Q)


def sampled_bellman_penalty(
    world: TabularWorld,
    pi: Tensor,
    pi_star: Tensor,
    tau: float,
    sampler: Sampler,
    mu: Tensor | None = None,
) -> Tensor:
    """The estimate of :func:`bellman_penalty` described above and, by autograd, of its gradient, ``[...]``."""
    check_tau(tau, positive=True)
    world, pi_star = world.with_start(state_weights(world, mu)), pi_star.detach()
    best = sampler.play(world, pi_star)
    own = sampler.play(world, pi_star, first=pi, partner=best)
    return sampler.policy_return(world, pi_star, best, tau) - sampler.policy_return(world, pi_star, own, tau, first=pi)


@storable
@dataclass(frozen=True, eq=False)
class BellmanPenalty(Penalty):
    """The Bellman penalty (3.7). Needs ``lam`` of order delta^(-1/2) for a follower's gap of delta, and tau > 0.

    Attributes:
        mu: weights of the states, a distribution ``[S]``; None is uniform over non-terminal states, and over learned followers
            (``PBRL``), which take no other, the occupancy of pi_y.
    """

    mu: Sequence[float] | None = None

    needs_positive_tau: ClassVar[bool] = True
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu is not None:
            weights = as_float64(self.mu, "mu")
            require(weights.ndim == 1, "mu", "one weight a state", f"shape {tuple(weights.shape)}")
            check_distribution(weights, "mu")

    def check(self, n_players: int, n_states: int | None = None) -> None:
        super().check(n_players)
        given = None if self.mu is None else len(self.mu)
        require(n_states is None or given in (None, n_states), "mu", f"{n_states} weights, one a state", given)

    def roles(self, n_players: int) -> tuple[Role, ...]:
        return one_follower(prior=True)

    def terms(self, n_players: int, zero_sum: bool = True) -> tuple[Term, ...]:
        return ONE_FOLLOWER

    def value(self, level: Any, model: Any, pi: tuple[Tensor, ...], best: tuple[Tensor, ...], tau: float) -> Tensor:
        return bellman_penalty(model, pi[0], best[0], tau, self._weights())

    def sampled(
        self,
        model: TabularWorld,
        pi: tuple[Tensor, ...],
        best: tuple[Tensor, ...],
        tau: float,
        sampler: Sampler,
        played: Trajectories | None = None,
    ) -> Tensor:
        return sampled_bellman_penalty(model, pi[0], best[0], tau, sampler, self._weights())

    def _weights(self) -> Tensor | None:
        return None if self.mu is None else as_float64(self.mu, "mu")
