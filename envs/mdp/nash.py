r"""Nash equilibria of zero-sum games, regularised or not.

**One state.** The saddle point of ``p^T A q - tau h(p) + tau h(q)``. With p answering q,

    phi(q) = max_p  =  tau logsumexp(A q/tau) + tau h(q),      p = softmax(A q/tau),      tau > 0

is strictly convex, and its minimiser is the fixed point ``q = softmax(-A^T p/tau)``. With logits w of q,
``G = w + A^T p/tau`` (up to a constant), ``D_p = diag p - p p^T``, the Newton step is

    d = -(I + A^T D_p A D_q / tau^2)^{-1} G.

The matrix is a product of the kind I + (positive)(positive), always regular, and d is a direction of descent of phi, so a
line search makes the method converge from anywhere; near the end it is quadratic. At tau = 0 the saddle point is a linear
program's, one per state.

**Many states.** ``(T V)(s)`` is the value of the matrix game ``A_s = r_s + gamma P_s V``. T contracts at gamma; its derivative
at V is gamma P of the saddle point's policies (Danskin), so that Newton's step on ``V - T V`` evaluates that pair of
policies. Newton need not converge from far away: where it fails to bring the residual down by gamma, the step is ``T V``,
which does (compare Filar and Tolwinski's safeguard of policy iteration in such games, 1991).

**Derivative.** With tau > 0 the equilibrium is unique and smooth in the game. By Danskin dV is that of the pair of policies held,
``(I - gamma P_pi)^{-1} (d r + gamma d P V)_pi``; it moves A_s, and the saddle point moves with A_s as its fixed point
``p = softmax(A q/tau)``, ``q = softmax(-A^T p/tau)`` says:

    ( I + D_p A D_q A^T / tau^2 ) dp = D_p ( dA q - A D_q dA^T p / tau ) / tau,      dq = -D_q ( dA^T p + A^T dp ) / tau

**Residual.** ``max_s max(up(s) - V(s), V(s) - low(s))``, where up and low are the values at A_s of p and q answered best. Each
player can gain at most ``residual / (1 - gamma)`` in any state. For tau > 0 this is of second order in the policies' error, so
``max_s |T V - V|``, of first order, must come down as far.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from .checks import check_number, check_size, check_tau
from .tabular import negative_entropy
from .zero_sum import ZeroSumGame, joint_value

TOLERANCE = 1e-11
"""Default residual at which a solver stops, per unit of the game's largest value."""
ARMIJO = 1e-4
"""Share of the foretold descent that a step of the line search must bring."""


@dataclass(frozen=True, eq=False)
class NashEquilibrium:
    """The Nash equilibrium of a zero-sum game at a temperature.

    Attributes:
        V: player 1's values under both policies, ``[..., S]``.
        pi1: player 1's policy, ``[..., S, A1]``.
        pi2: player 2's policy, ``[..., S, A2]``.
        residual: the largest residual (see the module) over states and batch.
        iterations: number of matrix games solved per state.
    """

    V: Tensor
    pi1: Tensor
    pi2: Tensor
    residual: float
    iterations: int


def _centred(w: Tensor) -> Tensor:
    return w - w.mean(-1, keepdim=True)


def _times(A: Tensor, q: Tensor) -> Tensor:
    return (A @ q.unsqueeze(-1)).squeeze(-1)


def _covariance(p: Tensor) -> Tensor:
    """D_p = diag p - p p^T."""
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def _potential(A: Tensor, w: Tensor, tau: float) -> Tensor:
    """phi at softmax(w)."""
    q = torch.softmax(w, -1)
    return tau * torch.logsumexp(_times(A, q) / tau, -1) + tau * (q * torch.log_softmax(w, -1)).sum(-1)


@torch.no_grad()
def regularised_matrix_game(
    A: Tensor, tau: float, w: Tensor | None = None, tol: float = 1e-12, max_iterations: int = 200
) -> tuple[Tensor, Tensor]:
    """Return the saddle point (p, q) of ``p^T A q - tau h(p) + tau h(q)``, batched, by Newton's method with a line search.

    Args:
        A: payoffs, ``[..., A1, A2]``.
        tau: temperature, positive.
        w: initial logits of q, ``[..., A2]``. Default: those of the uniform strategy.
        tol: largest entry of G at which to stop, relative to the larger of 1 and the logits' size.
        max_iterations: maximum number of Newton steps.
    """
    check_tau(tau, positive=True)
    w = torch.zeros_like(A[..., 0, :]) if w is None else _centred(w)
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    lengths = 0.5 ** torch.arange(30, dtype=A.dtype)
    here, largest = _potential(A, w, tau), A.abs().amax((-2, -1)).clamp_min(tau)
    for _ in range(max_iterations):
        q = torch.softmax(w, -1)
        p = torch.softmax(_times(A, q) / tau, -1)
        G = _centred(w + _times(A.mT, p) / tau)
        if bool((G.abs().amax(-1) <= tol * w.abs().amax(-1).clamp_min(1.0)).all()):
            break
        D_q = _covariance(q)
        d = -torch.linalg.solve(eye + A.mT @ _covariance(p) @ A @ D_q / tau**2, G.unsqueeze(-1)).squeeze(-1)
        slope = tau * (d * _times(D_q, G)).sum(-1)
        bound = here + 1e-14 * torch.maximum(here.abs(), largest)  # as much as rounding may hide
        stepped = _centred(w + d)
        there = _potential(A, stepped, tau)
        if not bool((there <= bound + ARMIJO * slope).all()):
            tried = _potential(A.unsqueeze(-3), w.unsqueeze(-2) + lengths.unsqueeze(-1) * d.unsqueeze(-2), tau)
            good = tried <= bound.unsqueeze(-1) + ARMIJO * lengths * slope.unsqueeze(-1)
            first = torch.where(good.any(-1), good.to(torch.int8).argmax(-1), len(lengths) - 1)
            stepped = _centred(w + lengths[first].unsqueeze(-1) * d)
            there = tried.gather(-1, first.unsqueeze(-1)).squeeze(-1)
        w, here = stepped, there
    q = torch.softmax(w, -1)
    return torch.softmax(_times(A, q) / tau, -1), q


def matrix_game(A: Tensor) -> tuple[Tensor, Tensor]:
    """Return a saddle point (p, q) of ``p^T A q``, ``[..., A1]`` and ``[..., A2]``, by a linear program per matrix.

    ``max v  s.t.  A^T p >= v, p in the simplex``; q is the constraints' multipliers.

    Raises:
        RuntimeError: the solver fails on a linear program.
    """
    A1, A2 = A.shape[-2:]
    strategies = []
    for payoffs in A.detach().reshape(-1, A1, A2).numpy():
        scale = max(float(np.ptp(payoffs)), 1e-300)
        scaled = (payoffs - payoffs.min()) / scale
        answer = linprog(
            np.append(np.zeros(A1), -1.0),
            A_ub=np.hstack([-scaled.T, np.ones((A2, 1))]),
            b_ub=np.zeros(A2),
            A_eq=np.append(np.ones(A1), 0.0)[None],
            b_eq=[1.0],
            bounds=[(0.0, None)] * A1 + [(None, None)],
            method="highs-ds",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if answer.status != 0:
            raise RuntimeError(f"linprog found no saddle point: {answer.message}")
        pair = (np.maximum(answer.x[:-1], 0.0), np.maximum(-answer.ineqlin.marginals, 0.0))
        strategies.append([v / v.sum() for v in pair])
    p, q = (torch.from_numpy(np.stack(side)) for side in zip(*strategies, strict=True))
    return p.reshape(*A.shape[:-2], A1), q.reshape(*A.shape[:-2], A2)


def _payoffs(game: ZeroSumGame, V: Tensor) -> Tensor:
    """A_s = r_s + gamma P_s V, ``[..., S, A1, A2]``."""
    return game.r + game.gamma * (game.P @ V[..., None, None, :, None]).squeeze(-1)


def _bounds(A: Tensor, p: Tensor, q: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return the values low and up of A_s, against best answers to p and to q, ``[..., S]``."""
    against_q, against_p = _times(A, q), _times(A.mT, p)
    if tau == 0.0:
        return against_p.min(-1).values, against_q.max(-1).values
    up = tau * torch.logsumexp(against_q / tau, -1) + tau * negative_entropy(q)
    low = -tau * torch.logsumexp(-against_p / tau, -1) - tau * negative_entropy(p)
    return low, up


@torch.no_grad()
def solve_nash(
    game: ZeroSumGame, tau: float, V: Tensor | None = None, tol: float = TOLERANCE, max_iterations: int = 500
) -> NashEquilibrium:
    """Return the Nash equilibrium at temperature tau > 0, or one of the Nash equilibria at tau = 0, by linear programs.

    Args:
        game: the game, batched or not.
        tau: temperature, at least 0.
        V: initial values, ``[..., S]``, e.g. those of the equilibrium at a nearby x. Default: 0.
        tol: residual (and for tau > 0 change of V) at which to stop, relative to the larger of ``max |V|`` and ``max |r|``.
        max_iterations: maximum number of rounds of matrix games.

    Warns:
        RuntimeWarning: the residual is still above ``tol`` after the last round; the result is the best pair found, and its
            ``residual`` bounds how far it is from an equilibrium.
    """
    check_tau(tau)
    check_number(tol, "tol", low=0.0)
    check_size(max_iterations, "max_iterations")
    game = game.detach()
    V = torch.zeros((*game.batch_shape, game.n_states), dtype=game.r.dtype) if V is None else V
    best, least, p, largest = None, math.inf, None, float(game.r.abs().max())
    for iteration in range(1, max_iterations + 1):
        A = _payoffs(game, V).expand(*game.batch_shape, *game.r.shape[-3:])
        if tau == 0.0:
            p, q = matrix_game(A)
        else:  # from what answers the last p
            p, q = regularised_matrix_game(A, tau, None if p is None else -_times(A.mT, p) / tau)
        low, up = _bounds(A, p, q, tau)
        T_V = 0.5 * (low + up)
        change = float((T_V - V).abs().max())
        evaluated = joint_value(game, p, q, tau)
        low, up = _bounds(_payoffs(game, evaluated), p, q, tau)
        residual = float(torch.maximum(up - evaluated, evaluated - low).max())
        # The residual is second order in the policies' error; with tau > 0 that error is of the order of the change of V.
        error = residual if tau == 0.0 else max(residual, change)
        if best is None or error < least:
            best, least = NashEquilibrium(evaluated, p, q, residual, iteration), error
        if error <= tol * max(largest, float(evaluated.abs().max())) or change == 0.0:
            break
        # T contracts at gamma: a step that does not beat it by then is not taken.
        V = evaluated if residual <= game.gamma * change else T_V
    else:
        assert best is not None
        warnings.warn(
            f"solve_nash stopped at its limit of {max_iterations} rounds with residual {best.residual:.3g}, above tol={tol:.3g} "
            f"relative to values of {float(best.V.abs().max()):.3g}; a larger tau than {tau:g} is easier to solve",
            RuntimeWarning,
            stacklevel=3,
        )
    assert best is not None
    return NashEquilibrium(best.V, best.pi1, best.pi2, best.residual, iteration)


def attach_nash(game: ZeroSumGame, tau: float, nash: NashEquilibrium) -> NashEquilibrium:
    """Return the same equilibrium with its first derivative in the game's parameters (implicit function theorem).

    Args:
        game: the game, with the autograd graph of x.
        tau: the equilibrium's temperature, positive.
        nash: its equilibrium, solved.

    Returns:
        V, pi1 and pi2 with the autograd graph; the backward pass solves one linear system per state and one over all states.
    """
    check_tau(tau, positive=True)
    p, q = nash.pi1.detach(), nash.pi2.detach()
    V = joint_value(game, p, q, tau)
    A = _payoffs(game, V)
    held, D_p, D_q = A.detach(), _covariance(p), _covariance(q)
    dA = A - held  # 0, with A's derivative
    forced = -_times(D_q, _times(dA.mT, p)) / tau
    system = torch.eye(p.shape[-1], dtype=p.dtype) + D_p @ held @ D_q @ held.mT / tau**2
    forcing = _times(D_p, _times(dA, q) + _times(held, forced)) / tau
    dp: Tensor = torch.linalg.solve(system, forcing.unsqueeze(-1)).squeeze(-1)
    dq = forced - _times(D_q, _times(held.mT, dp)) / tau
    return NashEquilibrium(V, p + dp, q + dq, nash.residual, nash.iterations)
