r"""The follower's best response: the soft-optimal policy by soft policy iteration.

    (T V)(s) = tau logsumexp_a( Q(s,a)/tau ),   Q = r + gamma P V,   V* = T V*,   pi* = softmax(Q*/tau)

Soft policy iteration evaluates the soft-greedy policy of V exactly, one linear solve a step; it is Newton's method on
``V - T V = 0`` and converges quadratically. At tau = 0 the maximum replaces logsumexp: policy iteration.

Sparse models (Newton-Krylov). Since ``r_pi - tau h(pi) + gamma P_pi V = T V`` for the soft-greedy pi, the step d solves

    (I - gamma P_pi) d = b,   b = T V - V,   V <- V + d

here only until ``max |b - (I - gamma P_pi) d| <= eta max |b|``. eta starts at 0.1 and falls to a tenth after every step that
does not lower the residual by 1%, at the least to 0.1 (1-gamma)^3. There it converges from anywhere, by the argument for policy
iteration: to first order in eta, ``max |V* - V^{pi_k}|`` is at most ``gamma + 4 eta/(1-gamma)^2 < 1`` times the larger of the two
before it.

The residual is ``max_s |T V - V|``; since T contracts at gamma, ``max_s |V* - V| <= residual / (1 - gamma)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_tau
from .evaluation import action_value, entropy_weight, policy_value, solve_resolvent, start_value
from .models import TabularMDP
from .sparse import Resolvent, SparseMDP

TOLERANCE = 1e-11
"""Default residual at which soft policy iteration stops, per unit of ``max(1, max |V|)``."""

LOOSEST = 0.1
"""Where eta of the sparse iteration starts."""


@dataclass(frozen=True, eq=False)
class SoftOptimum:
    """A solved MDP.

    Attributes:
        V: values, ``[..., S]``.
        Q: action values at V, ``[..., S, A]``.
        pi: soft-greedy policy of Q, ``[..., S, A]``.
        residual: ``max |T V - V|`` over states and batch.
        iterations: linear solves spent.
        products: products with P_pi that the iterative solves of a sparse model took.
    """

    V: Tensor
    Q: Tensor
    pi: Tensor
    residual: float
    iterations: int
    products: int = 0


def _masked(mdp: TabularMDP, Q: Tensor) -> Tensor:
    return Q if mdp.mask is None else Q.masked_fill(~mdp.mask, -math.inf)


def greedy_policy(mdp: TabularMDP, Q: Tensor) -> Tensor:
    """The greedy policy, uniform over exact ties, ``[..., S, A]``."""
    q = _masked(mdp, Q)
    best = (q == q.max(-1, keepdim=True).values).to(Q.dtype)
    return best / best.sum(-1, keepdim=True)


def soft_policy(mdp: TabularMDP, Q: Tensor, tau: float) -> Tensor:
    """softmax(Q/tau) over the actions that exist, ``[..., S, A]``; greedy where no entropy is earned."""
    weight = entropy_weight(mdp, tau)
    if tau == 0.0:
        return greedy_policy(mdp, Q)
    soft = torch.softmax(_masked(mdp, Q) / tau, -1)
    return (
        soft if not isinstance(weight, Tensor) else torch.where((weight > 0).unsqueeze(-1), soft, greedy_policy(mdp, Q))
    )


def soft_maximum(mdp: TabularMDP, Q: Tensor, tau: float) -> Tensor:
    """(T V)(s) = tau logsumexp(Q(s,.)/tau), ``[..., S]``; the maximum where no entropy is earned."""
    q = _masked(mdp, Q)
    if tau == 0.0:
        return q.max(-1).values
    soft = tau * torch.logsumexp(q / tau, -1)
    weight = entropy_weight(mdp, tau)
    return soft if not isinstance(weight, Tensor) else torch.where(weight > 0, soft, q.max(-1).values)


def soft_backup(mdp: TabularMDP, Q: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """T V, ``[..., S]``, and the soft-greedy policy, ``[..., S, A]``, at once: what the two functions above give."""
    q = _masked(mdp, Q)
    top = q.amax(-1, keepdim=True)
    if tau == 0.0:
        return top.squeeze(-1), greedy_policy(mdp, Q)
    share = ((q - top) / tau).exp()
    total = share.sum(-1, keepdim=True)
    backup, pi = (top + tau * total.log()).squeeze(-1), share / total
    weight = entropy_weight(mdp, tau)
    if not isinstance(weight, Tensor):
        return backup, pi
    soft = weight > 0
    return torch.where(soft, backup, top.squeeze(-1)), torch.where(soft.unsqueeze(-1), pi, greedy_policy(mdp, Q))


@torch.no_grad()
def solve_soft(
    mdp: TabularMDP, tau: float, V: Tensor | None = None, tol: float = TOLERANCE, max_iterations: int = 200
) -> SoftOptimum:
    """Soft policy iteration from V (by default 0); quadratic, so one to six solves from a near start.

    Evaluating the soft-greedy policy pi of V is the Newton step ``V + (I - gamma P_pi)^{-1} (T V - V)``.

    Args:
        mdp: the model, batched or not.
        tau: temperature, ``>= 0``.
        V: starting values, ``[..., S]``, e.g. the optimum at a nearby x.
        tol: residual at which to stop, relative to ``max(1, max |V|)`` in each instance of a batch.
        max_iterations: most linear solves.
    """
    check_tau(tau)
    V = torch.zeros_like(mdp.r[..., 0]) if V is None else V
    if isinstance(mdp, SparseMDP):
        return _solve_soft_sparse(mdp, tau, V, tol, max_iterations)
    for iterations in range(max_iterations + 1):
        Q = action_value(mdp, V)
        backup, pi = soft_backup(mdp, Q, tau)
        step = backup - V
        residuals = step.abs().amax(-1)
        if iterations == max_iterations or bool((residuals <= tol * V.abs().amax(-1).clamp_min(1.0)).all()):
            break
        V = V + solve_resolvent(mdp, pi, step)
    return SoftOptimum(V, Q, pi, float(residuals.max()), iterations)


def _solve_soft_sparse(mdp: SparseMDP, tau: float, V: Tensor, tol: float, max_iterations: int) -> SoftOptimum:
    eta, least, before, products = LOOSEST, LOOSEST * (1.0 - mdp.gamma) ** 3, math.inf, 0
    for iterations in range(max_iterations + 1):
        Q = action_value(mdp, V)
        backup, pi = soft_backup(mdp, Q, tau)
        b = backup - V
        residual, enough = float(b.abs().max()), tol * max(1.0, float(V.abs().max()))
        if residual <= enough or iterations == max_iterations:
            break
        if residual > 0.99 * before:
            eta = max(0.1 * eta, least)
        resolvent, before = Resolvent(mdp, pi), residual
        V = V + torch.from_numpy(resolvent.solve(b.numpy(), max(eta * residual, 0.5 * enough)))
        products += resolvent.products
    return SoftOptimum(V, Q, pi, residual, iterations, products)


def value_iteration(mdp: TabularMDP, tau: float, V: Tensor, sweeps: int) -> Tensor:
    """Apply T ``sweeps`` times: linear at rate gamma, kept as the second implementation that Newton is held to."""
    for _ in range(sweeps):
        V = soft_maximum(mdp, action_value(mdp, V), tau)
    return V


def attach(mdp: TabularMDP, tau: float, optimum: SoftOptimum) -> SoftOptimum:
    r"""The same optimum with its first derivative in the model's parameters (implicit function theorem).

    ``V*`` is re-evaluated at the held policy pi* in the differentiable model: by Danskin
    ``dV*/dx = (I - gamma P_{pi*})^{-1} d_x T(x, V*)``, which is what autograd's adjoint solve returns; then
    ``Q* = r_x + gamma P_x V*`` and ``pi* = softmax(Q*/tau)`` carry it on. First derivatives only. Needs tau > 0 for pi.
    """
    V = policy_value(mdp, optimum.pi.detach(), tau, guess=optimum.V)
    Q = action_value(mdp, V)
    return SoftOptimum(V, Q, soft_policy(mdp, Q, tau), optimum.residual, optimum.iterations, optimum.products)


def suboptimality(mdp: TabularMDP, pi: Tensor, tau: float, optimum: SoftOptimum) -> Tensor:
    """The follower's gap V*(rho) - V^pi(rho) >= 0, ``[...]``."""
    return start_value(mdp, optimum.V) - start_value(mdp, policy_value(mdp, pi, tau))
