r"""Policy evaluation by linear solves (Shen, Yang and Chen, arXiv 2402.06886, section 2).

    V(s)   = E[ sum_t gamma^t ( r(s_t,a_t) - tau h(pi(s_t)) ) | s_0 = s ]                      (2.1)
    Q(s,a) = r(s,a) + gamma E V(s')                                                            (2.2)
    d(s)   = sum_t gamma^t Pr(s_t = s)                   sums to 1/(1-gamma) without terminal states

h is the negative entropy. Terminal states pay once: their rows of P_pi are zero. Everything is batched over leading
axes and differentiable in the model and in the policy. Sparse models are solved as :mod:`sparse` says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import broadcast_batch, check_size, require
from .models import TabularMDP
from .sparse import SparseMDP, check_policy, expected_value, require_dense, solve_linear

LOG_FLOOR = 1e-300
"""Probabilities are floored here inside logarithms: 0 log 0 = 0, with a finite slope."""


def negative_entropy(pi: Tensor) -> Tensor:
    """h(p) = sum_a p_a log p_a over the last axis."""
    return (pi * pi.clamp_min(LOG_FLOOR).log()).sum(-1)


def negative_entropy_gradient(pi: Tensor) -> Tensor:
    """grad h(p) = 1 + log p, same shape as pi."""
    return 1.0 + pi.clamp_min(LOG_FLOOR).log()


def entropy_weight(mdp: TabularMDP, tau: float) -> float | Tensor:
    """tau, or per state ``[..., S]`` where the last step of an episode earns no entropy."""
    if mdp.terminal is None or mdp.terminal_entropy or tau == 0.0:
        return tau
    return tau * (~mdp.terminal).to(mdp.r.dtype)


def going_on(mdp: TabularMDP, weights: Tensor) -> Tensor:
    """Weights of states and actions, ``[..., S, A]``, with rows of 0 in terminal states."""
    return weights if mdp.terminal is None else weights * (~mdp.terminal).unsqueeze(-1)


def _mix(mdp: TabularMDP, weights: Tensor) -> Tensor:
    """sum_a weights(s,a) P(s'|s,a), ``[..., S, S]``; one P for a whole batch is not copied."""
    if mdp.P.ndim > 3:
        return (weights.unsqueeze(-2) @ mdp.P).squeeze(-2)
    by_state = weights.reshape(-1, *weights.shape[-2:]).transpose(0, 1)
    return (by_state @ mdp.P).transpose(0, 1).view(*weights.shape[:-1], mdp.n_states)


def _check_policy(mdp: TabularMDP, pi: Tensor) -> None:
    """Raise ``ValueError`` for a policy of other sizes than the model's, or batch axes that do not broadcast."""
    expected = tuple(mdp.r.shape[-2:])
    require(pi.shape[-2:] == expected, "pi", f"shape [..., {expected}]", f"shape {tuple(pi.shape)}")
    broadcast_batch(("P", mdp.P.shape[:-3]), ("r", mdp.r.shape[:-2]), ("pi", pi.shape[:-2]))


def induced_transition(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """P_pi(s,s') = sum_a pi(a|s) P(s'|s,a), ``[..., S, S]``, dense; rows of terminal states are zero.

    Raises:
        ValueError: a policy of other sizes than the model's, batch axes that do not broadcast.
    """
    require_dense(mdp)
    _check_policy(mdp, pi)
    return _mix(mdp, going_on(mdp, pi))


def induced_reward(mdp: TabularMDP, pi: Tensor, tau: float) -> Tensor:
    """r_pi(s) - tau h(pi(s)), ``[..., S]``."""
    reward = (pi * mdp.r).sum(-1)
    return reward if tau == 0.0 else reward - entropy_weight(mdp, tau) * negative_entropy(pi)


def _resolvent(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """I - gamma P_pi, ``[..., S, S]``."""
    return torch.eye(mdp.n_states, dtype=mdp.r.dtype) + _mix(mdp, -mdp.gamma * going_on(mdp, pi))


def _solve(matrix: Tensor, b: Tensor) -> Tensor:
    """Solve matrix V = b for V, ``[..., S]``; batch axes broadcast."""
    if b.ndim < matrix.ndim - 1:  # which linalg.solve could take for a batch of vectors
        b = b.expand(matrix.shape[:-1])
    V: Tensor = torch.linalg.solve(matrix, b.unsqueeze(-1))
    return V.squeeze(-1)


def solve_resolvent(mdp: TabularMDP, pi: Tensor, b: Tensor) -> Tensor:
    """Solve (I - gamma P_pi) V = b for V, ``[..., S]``; P dense."""
    return _solve(_resolvent(mdp, pi), b)


class FactoredResolvent:
    """I - gamma P_pi of a dense model, factored once for several right-hand sides; carries no graph."""

    @torch.no_grad()
    def __init__(self, mdp: TabularMDP, pi: Tensor) -> None:
        self._factors = torch.linalg.lu_factor(_resolvent(mdp, pi))

    def solve(self, b: Tensor) -> Tensor:
        """Solve (I - gamma P_pi) V = b for V, ``[..., S]``."""
        V: Tensor = torch.linalg.lu_solve(*self._factors, b.unsqueeze(-1))
        return V.squeeze(-1)

    def solve_adjoint(self, b: Tensor) -> Tensor:
        """Solve (I - gamma P_pi)^T d = b for d, ``[..., S]``."""
        d: Tensor = torch.linalg.lu_solve(*self._factors, b.unsqueeze(-1), adjoint=True)
        return d.squeeze(-1)


def policy_value(mdp: TabularMDP, pi: Tensor, tau: float = 0.0, guess: Tensor | None = None) -> Tensor:
    """Solve (I - gamma P_pi) V = r_pi - tau h(pi) for V, ``[..., S]`` (2.1).

    ``guess``, ``[S]``, is where the iterative solve of a sparse model starts; others do not need it.

    Raises:
        ValueError: as :func:`induced_transition`.
    """
    if isinstance(mdp, SparseMDP):
        check_policy(mdp, pi)
        return solve_linear(mdp, pi, induced_reward(mdp, pi, tau), guess=guess)
    _check_policy(mdp, pi)
    return solve_resolvent(mdp, pi, induced_reward(mdp, pi, tau))


def visitation(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """Solve (I - gamma P_pi)^T d = rho for the unnormalised discounted visitation d, ``[..., S]``.

    Raises:
        ValueError: as :func:`induced_transition`.
    """
    if isinstance(mdp, SparseMDP):
        check_policy(mdp, pi)
        return solve_linear(mdp, pi, mdp.rho, transposed=True)
    _check_policy(mdp, pi)
    return _solve(_resolvent(mdp, pi).mT, mdp.rho)


def action_value(mdp: TabularMDP, V: Tensor) -> Tensor:
    """Q(s,a) = r(s,a) + gamma E V(s'), ``[..., S, A]``, no regulariser at the current step (2.2)."""
    if isinstance(mdp, SparseMDP):
        following = expected_value(mdp, V)
    elif mdp.P.ndim > 3:
        following = (mdp.P @ V[..., None, :, None]).squeeze(-1)
    else:
        following = (V @ mdp.P.flatten(0, 1).mT).unflatten(-1, mdp.P.shape[:2])
    if mdp.terminal is not None:
        following = following * (~mdp.terminal).unsqueeze(-1)
    return mdp.r + mdp.gamma * following


def start_value(mdp: TabularMDP, V: Tensor) -> Tensor:
    """V(rho) = sum_s rho(s) V(s), ``[...]``."""
    return (mdp.rho * V).sum(-1)


def policy_return(mdp: TabularMDP, pi: Tensor, tau: float = 0.0) -> Tensor:
    """V^pi(rho), ``[...]``."""
    return start_value(mdp, policy_value(mdp, pi, tau))


def truncated_value(mdp: TabularMDP, pi: Tensor, length: int, tau: float = 0.0) -> Tensor:
    """V_length, ``[..., S]``, of V_0 = 0, V_{k+1} = r_pi - tau h(pi) + gamma P_pi V_k: the return of ``length`` steps."""
    P_pi, r_pi = induced_transition(mdp, pi), induced_reward(mdp, pi, tau)
    V = torch.zeros_like(r_pi)
    for _ in range(length):
        V = r_pi + mdp.gamma * (P_pi @ V.unsqueeze(-1)).squeeze(-1)
    return V


def truncated_return(mdp: TabularMDP, pi: Tensor, length: int, tau: float = 0.0) -> Tensor:
    """E sum_{t<length} gamma^t ( r(s_t,a_t) - tau h(pi(s_t)) ), s_0 ~ rho, ``[...]``; differentiable in model and policy.

    Raises:
        ValueError: a length under one.
    """
    return start_value(mdp, truncated_value(mdp, pi, check_size(length, "length"), tau))


def policy_return_gradient(mdp: TabularMDP, pi: Tensor, tau: float = 0.0) -> Tensor:
    """dV(rho)/dpi(a|s) = d(s) [ Q(s,a) - tau (grad h(pi(s)))_a ], ``[..., S, A]``, in closed form."""
    Q = action_value(mdp, policy_value(mdp, pi, tau))
    weight = entropy_weight(mdp, tau)
    slope = negative_entropy_gradient(pi) * (weight.unsqueeze(-1) if isinstance(weight, Tensor) else weight)
    return visitation(mdp, pi).unsqueeze(-1) * (Q - slope)
