r"""Policy mirror descent with the negative entropy (arXiv 2402.06886, eq. C.35-36):

    pi'(a|s)  ~  pi(a|s)^{1/(1 + eta tau)} exp( eta Q^pi(s,a) / (1 + eta tau) )

Linear; near the optimum the log-policy contracts at 1/(1 + eta tau), for Q^pi is stationary there. eta to infinity is soft
policy iteration.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.mdp import TabularMDP
from ...envs.mdp.checks import check_number, check_size, plain_fields
from ...envs.mdp.tabular import LOG_FLOOR, entropy_weight
from ..records import storable
from .base import OracleAnswer, evaluated, softmax_policy, uniform_policy


def mirror_descent_step(mdp: TabularMDP, pi: Tensor, Q: Tensor, tau: float, eta: float) -> Tensor:
    """One step (C.36), ``[..., S, A]``; an action whose probability was lost to rounding goes on from 1e-300."""
    weight = entropy_weight(mdp, tau)
    weight = weight.unsqueeze(-1) if isinstance(weight, Tensor) else weight
    return softmax_policy(mdp, (pi.clamp_min(LOG_FLOOR).log() + eta * Q) / (1.0 + eta * weight))


@storable
@dataclass(frozen=True)
class MirrorDescent:
    """``iterations`` steps of policy mirror descent from the last answer.

    Attributes:
        eta: step size, positive.
        iterations: most steps per answer (the paper's T).
        tol: residual at which to stop early.
    """

    eta: float = 10.0
    iterations: int = 10
    tol: float = 1e-11

    def __post_init__(self) -> None:
        plain_fields(self)
        check_number(self.eta, "eta", low=0.0, open_low=True)
        check_size(self.iterations, "iterations")
        check_number(self.tol, "tol", low=0.0)

    @torch.no_grad()
    def solve(self, mdp: TabularMDP, tau: float, warm: OracleAnswer | None = None) -> OracleAnswer:
        pi = uniform_policy(mdp) if warm is None else warm.pi
        V, Q, residual = evaluated(mdp, pi, tau)
        for iteration in range(self.iterations):
            if residual <= self.tol:
                return OracleAnswer(pi, V, residual, iteration + 1)
            pi = mirror_descent_step(mdp, pi, Q, tau, self.eta)
            V, Q, residual = evaluated(mdp, pi, tau)
        return OracleAnswer(pi, V, residual, self.iterations + 1)
