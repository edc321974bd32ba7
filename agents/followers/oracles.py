r"""Exact oracles of the best response.

**Soft policy iteration**: Newton's method, with one linear solve a step. It converges quadratically.

**Policy mirror descent** with the negative entropy (arXiv 2402.06886, eq. C.35-36):

    pi'(a|s)  ~  pi(a|s)^{1/(1 + eta tau)} exp( eta Q^pi(s,a) / (1 + eta tau) )

It converges linearly: near the optimum Q^pi is stationary, so the log-policy contracts by 1/(1 + eta tau) a step. As eta goes to
infinity it becomes soft policy iteration.

**Policy gradient** (eq. C.37), exact, in the logits theta of a softmax policy:

    theta += step * grad_theta V(rho),     dV(rho)/dtheta(s,a) = d(s) pi(a|s) [ A(s,a) - tau (log pi(a|s) - E_pi log pi) ]

with A the advantage of Q. Without entropy it converges sublinearly: the weakest oracle, but deep followers approximate it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...envs.mdp import TabularMDP, action_value, policy_return_gradient, policy_value, soft_maximum, solve_soft
from ...envs.mdp.checks import check_number, check_size, plain_fields
from ...envs.mdp.tabular import LOG_FLOOR, entropy_weight, largest_reward
from ..records import storable

DEFAULT_STEP = 10.0
"""Default step size of the iterative oracles, per ``reward_unit``."""


@dataclass(frozen=True, eq=False)
class OracleAnswer:
    """An oracle's last iterate.

    Attributes:
        pi: the approximate best response, ``[..., S, A]``.
        V: its values, ``[..., S]``; pi and V are the next warm start.
        residual: ``max |T V - V|``; the best response is worth at most ``residual / (1 - gamma)`` more in any state.
        iterations: number of linear solves.
    """

    pi: Tensor
    V: Tensor
    residual: float
    iterations: int


class Oracle(Protocol):
    """A solver that returns a policy near the soft optimum of an MDP."""

    def solve(self, mdp: TabularMDP, tau: float, warm: OracleAnswer | None = None) -> OracleAnswer:
        """Solve ``mdp`` at temperature ``tau``, starting from an earlier answer if one is given."""
        ...


@storable
@dataclass(frozen=True)
class SoftPolicyIteration:
    """The exact oracle: soft policy iteration.

    Attributes:
        tol: residual at which to stop, relative to the larger of ``max |V|`` and ``max |r|``.
        max_iterations: maximum number of linear solves per answer.
    """

    tol: float = 1e-11
    max_iterations: int = 200

    def __post_init__(self) -> None:
        plain_fields(self)
        check_number(self.tol, "tol", low=0.0)
        check_size(self.max_iterations, "max_iterations")

    def solve(self, mdp: TabularMDP, tau: float, warm: OracleAnswer | None = None) -> OracleAnswer:
        optimum = solve_soft(mdp, tau, None if warm is None else warm.V, self.tol, self.max_iterations)
        return OracleAnswer(optimum.pi, optimum.V, optimum.residual, optimum.iterations)


def softmax_policy(mdp: TabularMDP, logits: Tensor) -> Tensor:
    """Softmax of the logits over the available actions, ``[..., S, A]``."""
    return torch.softmax(logits if mdp.mask is None else logits.masked_fill(~mdp.mask, -torch.inf), -1)


def _start(mdp: TabularMDP, warm: OracleAnswer | None) -> Tensor:
    """Return the last answer's policy, or the uniform policy over the available actions, ``[..., S, A]``."""
    if warm is not None:
        return warm.pi
    allowed = torch.ones((*mdp.batch_shape, *mdp.r.shape[-2:]), dtype=mdp.r.dtype)
    allowed = allowed if mdp.mask is None else allowed * mdp.mask
    return allowed / allowed.sum(-1, keepdim=True)


def _evaluated(mdp: TabularMDP, pi: Tensor, tau: float) -> tuple[Tensor, Tensor, float]:
    """Return V and Q of pi, and the soft-optimality residual ``max |T V - V|``."""
    V = policy_value(mdp, pi, tau)
    Q = action_value(mdp, V)
    return V, Q, float((soft_maximum(mdp, Q, tau) - V).abs().max())


def mirror_descent_step(mdp: TabularMDP, pi: Tensor, Q: Tensor, tau: float, eta: float) -> Tensor:
    """One mirror descent step (C.36), ``[..., S, A]``; a probability that was rounded to 0 continues from 1e-300."""
    weight = entropy_weight(mdp, tau)
    weight = weight.unsqueeze(-1) if isinstance(weight, Tensor) else weight
    return softmax_policy(mdp, (pi.clamp_min(LOG_FLOOR).log() + eta * Q) / (1.0 + eta * weight))


@storable
@dataclass(frozen=True)
class MirrorDescent:
    """Policy mirror descent: ``iterations`` steps from the last answer.

    Attributes:
        eta: step size, positive, per unit of reward; None takes 10 per ``reward_unit`` of the leader's problem.
        iterations: maximum number of steps per answer (the paper's T).
        tol: residual at which to stop early, relative to the larger of ``max |V|`` and ``max |r|``.
    """

    eta: float | None = None
    iterations: int = 10
    tol: float = 1e-11

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.eta is not None:
            check_number(self.eta, "eta", low=0.0, open_low=True)
        check_size(self.iterations, "iterations")
        check_number(self.tol, "tol", low=0.0)

    @torch.no_grad()
    def solve(self, mdp: TabularMDP, tau: float, warm: OracleAnswer | None = None) -> OracleAnswer:
        pi, done = _start(mdp, warm), 0
        eta = DEFAULT_STEP if self.eta is None else self.eta
        V, Q, residual = _evaluated(mdp, pi, tau)
        largest = float(largest_reward(mdp).max())
        while done < self.iterations and residual > self.tol * max(largest, float(V.abs().max())):
            pi = mirror_descent_step(mdp, pi, Q, tau, eta)
            V, Q, residual = _evaluated(mdp, pi, tau)
            done += 1
        return OracleAnswer(pi, V, residual, done + 1)


def softmax_policy_gradient(mdp: TabularMDP, pi: Tensor, tau: float) -> Tensor:
    """Gradient of V(rho) in the logits of the softmax policy pi, ``[..., S, A]``."""
    slope = policy_return_gradient(mdp, pi, tau)
    return pi * (slope - (pi * slope).sum(-1, keepdim=True))


@storable
@dataclass(frozen=True)
class PolicyGradient:
    """Exact policy gradient: ``iterations`` steps from the last answer.

    Attributes:
        step: step size in the logits, positive, per unit of reward; None takes 10 per ``reward_unit`` of the leader's problem.
        iterations: steps per answer.
    """

    step: float | None = None
    iterations: int = 10

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.step is not None:
            check_number(self.step, "step", low=0.0, open_low=True)
        check_size(self.iterations, "iterations")

    @torch.no_grad()
    def solve(self, mdp: TabularMDP, tau: float, warm: OracleAnswer | None = None) -> OracleAnswer:
        pi = _start(mdp, warm)
        theta = pi.clamp_min(LOG_FLOOR).log()
        step = DEFAULT_STEP if self.step is None else self.step
        for _ in range(self.iterations):
            theta = theta + step * softmax_policy_gradient(mdp, pi, tau)
            pi = softmax_policy(mdp, theta)
        V, _, residual = _evaluated(mdp, pi, tau)
        return OracleAnswer(pi, V, residual, 2 * self.iterations + 1)


def in_unit(oracle: Oracle, unit: float) -> Oracle:
    """Return an oracle; if it has no step size, set the default one for rewards of this unit."""
    if isinstance(oracle, MirrorDescent) and oracle.eta is None:
        return replace(oracle, eta=DEFAULT_STEP / unit)
    if isinstance(oracle, PolicyGradient) and oracle.step is None:
        return replace(oracle, step=DEFAULT_STEP / unit)
    return oracle
