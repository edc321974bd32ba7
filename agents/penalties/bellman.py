r"""Bellman penalty (arXiv 2402.06886, eq. 3.5-3.7). With q = -Q*_x,

    g(x,y) = E_{s~mu}[ <y_s, q_s> + tau h(y_s) ],      p = g - min_y g  =  tau E_{s~mu} KL(y_s || pi*_x(s))

The last equality holds exactly for the negative entropy h, so tau > 0. The paper weighs states by rho, so only states with
rho(s) > 0 count; here mu defaults to the uniform distribution over non-terminal states, which has full support.

    dp/dy_{s,a} = mu(s) [ -Q*(s,a) + tau (grad h(y_s))_a ]
    grad_x p    = -E_{mu, a~pi_y}[ grad_x Q*(s,a) ] + E_{mu, a~pi*}[ grad_x Q*(s,a) ]          Lemma 8

and grad_x Q* differentiates Q^pi at the fixed pi = pi* (Danskin).

**Sampled.** Q* is not observed: an oracle's policy pihat stands for pi*, and its Q for Q*. Two kinds of episodes start at
s_0 ~ mu and differ in the first action only, a_0 ~ pihat(.|s_0) or a_0 ~ pi_y(.|s_0); pihat plays the rest. With tau h(first
policy) counted in each, the difference of their returns is an unbiased estimate of

    E_mu[ <pihat, Q_T> - tau h(pihat) ] - E_mu[ <pi_y, Q_T> - tau h(pi_y) ],

where Q_T is the return of T steps from (s,a) under pihat. At pihat = pi* and T to infinity it is p, with the gradient of Lemma 8.
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
    policy_value,
    soft_maximum,
)
from ...envs.mdp.checks import as_float64, check_distribution, check_tau, require
from ...envs.mdp.tabular import entropy_weight
from ..monte_carlo import Sampler
from ..records import storable
from .base import Penalty, Policies


@storable
@dataclass(frozen=True, eq=False)
class BellmanPenalty(Penalty):
    """The Bellman penalty (3.7). Needs ``lam`` of order delta^(-1/2) for a follower's gap of delta, and tau > 0.

    Attributes:
        mu: weights of the states, a distribution ``[S]``. None, the default, is uniform over non-terminal states. Learned
            followers (``PBRL``) allow None only, which there means the occupancy of pi_y.
    """

    mu: Sequence[float] | None = None

    needs_positive_tau: ClassVar[bool] = True
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu is not None:
            weights = as_float64(self.mu, "mu")
            require(weights.ndim == 1, "mu", "one weight per state", f"shape {tuple(weights.shape)}")
            check_distribution(weights, "mu")

    def check(self, n_players: int, n_states: int | None = None) -> None:
        super().check(n_players)
        given = None if self.mu is None else len(self.mu)
        require(n_states is None or given in (None, n_states), "mu", f"{n_states} weights, one per state", given)

    def value(self, level: Any, model: Any, pi: Policies, best: Policies, tau: float) -> Tensor:
        check_tau(tau, positive=True)
        Q = action_value(model, policy_value(model, best[0].detach(), tau))  # Q*, at the best response, held fixed
        g = -(pi[0] * Q).sum(-1) + entropy_weight(model, tau) * negative_entropy(pi[0])
        return (self.weights(model) * (g + soft_maximum(model, Q, tau))).sum(-1)

    def sampled(
        self, model: Any, pi: Policies, best: Policies, tau: float, sampler: Sampler, played: Trajectories | None = None
    ) -> Tensor:
        check_tau(tau, positive=True)
        world, pi_star = model.with_start(self.weights(model)), best[0].detach()
        play_on = sampler.play(world, pi_star)
        own = sampler.play(world, pi_star, first=pi[0], partner=play_on)
        at_star = sampler.policy_return(world, pi_star, play_on, tau)
        return at_star - sampler.policy_return(world, pi_star, own, tau, first=pi[0])

    def weights(self, model: TabularMDP | TabularWorld) -> Tensor:
        """Return mu, ``[..., S]``; by default uniform over non-terminal states."""
        if self.mu is not None:
            mu = as_float64(self.mu, "mu")
            require(len(mu) == model.n_states, "mu", f"shape [{model.n_states}]", f"shape {tuple(mu.shape)}")
            return mu
        live = torch.ones_like(model.rho) if model.terminal is None else (~model.terminal).to(model.rho.dtype)
        total = live.sum(-1, keepdim=True)
        require(bool((total > 0.0).all()), "mu", "weights of the states, where every state is terminal", None)
        return live / total
