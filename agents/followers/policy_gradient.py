r"""Policy gradient as the follower (arXiv 2402.06886, eq. C.37), exact, in the logits theta of a softmax policy:

    theta += step * grad_theta V(rho),     dV(rho)/dtheta(s,a) = d(s) pi(a|s) [ A(s,a) - tau (log pi(a|s) - E_pi log pi) ]

with A the advantage of Q. Sublinear without entropy: the weakest oracle, kept because it is what a deep follower approximates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.mdp import TabularMDP, policy_return_gradient
from ...envs.mdp.checks import check_number, check_size, plain_fields
from ...envs.mdp.tabular import LOG_FLOOR
from ..records import storable
from .base import OracleAnswer, evaluated, softmax_policy, uniform_policy


def softmax_policy_gradient(mdp: TabularMDP, pi: Tensor, tau: float) -> Tensor:
    """grad_theta V(rho) at the softmax policy pi, ``[..., S, A]``."""
    slope = policy_return_gradient(mdp, pi, tau)
    return pi * (slope - (pi * slope).sum(-1, keepdim=True))


@storable
@dataclass(frozen=True)
class PolicyGradient:
    """``iterations`` steps of exact policy gradient from the last answer.

    Attributes:
        step: step size in the logits, positive.
        iterations: steps per answer.
    """

    step: float = 10.0
    iterations: int = 10

    def __post_init__(self) -> None:
        plain_fields(self)
        check_number(self.step, "step", low=0.0, open_low=True)
        check_size(self.iterations, "iterations")

    @torch.no_grad()
    def solve(self, mdp: TabularMDP, tau: float, warm: OracleAnswer | None = None) -> OracleAnswer:
        pi = uniform_policy(mdp) if warm is None else warm.pi
        theta = pi.clamp_min(LOG_FLOOR).log()
        for _ in range(self.iterations):
            theta = theta + self.step * softmax_policy_gradient(mdp, pi, tau)
            pi = softmax_policy(mdp, theta)
        V, _, residual = evaluated(mdp, pi, tau)
        return OracleAnswer(pi, V, residual, 2 * self.iterations + 1)
