r"""Discrete-time linear-quadratic Stackelberg game, in which a Riccati equation gives the follower's best response.

    s' = A s + B_l u_l + B_f u_f + w,     w ~ N(0, W),     s_0 ~ N(0, S_0)
    u_l ~ N(-K s, sigma^2 I)              the leader commits to K; x is K, row after row
    c_i = s^T Q_i s + u_l^T R_il u_l + u_f^T R_if u_f,     J_i = -E sum_t gamma^t c_i,     i = leader, follower

The leader's policy is Gaussian so that log p_x exists; its noise enters costs and states. tau = 0: the follower is not
regularised.

**Returns.** For u_f = -F s, with M = A - B_l K - B_f F and N = W + sigma^2 B_l B_l^T, a discrete Lyapunov equation gives

    P_i = Q_i + K^T R_il K + F^T R_if F + gamma M^T P_i M
    J_i(K,F) = -[ tr(P_i S_0) + gamma/(1-gamma) tr(P_i N) + sigma^2/(1-gamma) tr(R_il) ]

which is finite where every eigenvalue of sqrt(gamma) M lies inside the unit circle.

**Best response.** Given K the follower faces a discounted linear-quadratic regulator with A_K = A - B_l K:

    V = Q_f + K^T R_fl K + gamma A_K^T V A_K - F^T (R_ff + gamma B_f^T V B_f) F        Riccati
    F = (R_ff + gamma B_f^T V B_f)^{-1} gamma B_f^T V A_K

It exists, and stabilises, where (sqrt(gamma) A_K, B_f) is stabilisable and (sqrt(gamma) A_K, Q_f + K^T R_fl K) is detectable
(Popov-Belevitch-Hautus: at each eigenvalue of modulus >= 1 the rank is full).

**Hypergradient.** V is the cost of the policy F held fixed, to first order in K (F minimises it: the envelope theorem). So the
Lyapunov solution of the fixed F, put into the formula of F, has the right derivative, and autograd through the two linear
solves is the implicit function theorem: two adjoint Lyapunov equations.

Source: textbook; e.g. Bertsekas, Dynamic Programming and Optimal Control; Anderson and Moore, Optimal Control: Linear
Quadratic Methods.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_are
from scipy.optimize import minimize
from scipy.stats import norm
from torch import Tensor

from .checks import as_float64, check_finite, check_gamma, check_number, check_seed, check_size, require
from .problem import BilevelProblem, LeaderSet

Floats = NDArray[np.float64]

SATURATION = 1e-6
"""Largest probability, at any one step, that the best response leaves the action bounds."""

_CORNERS = 256


@dataclass(frozen=True, eq=False)
class LinearDynamics:
    """s' = A s + B_leader u_l + B_follower u_f + w.

    Attributes:
        A: matrix of the state, ``[n, n]``.
        B_leader: matrix of the leader's input, ``[n, m_l]``.
        B_follower: matrix of the follower's input, ``[n, m_f]``.
        noise: covariance W of the noise w, ``[n, n]``.
        start: covariance S_0 of the start state, whose mean is 0, ``[n, n]``.

    Raises:
        ValueError: shapes do not fit together, entries are not finite, or ``noise`` or ``start`` is not a covariance matrix.
    """

    A: Tensor
    B_leader: Tensor
    B_follower: Tensor
    noise: Tensor
    start: Tensor

    def __post_init__(self) -> None:
        n = len(_matrix(self, "A", None, None))
        for name, columns in {"A": n, "B_leader": None, "B_follower": None, "noise": n, "start": n}.items():
            _matrix(self, name, n, columns)
        for name in ("noise", "start"):
            _check_semidefinite(getattr(self, name), name)


@dataclass(frozen=True, eq=False)
class QuadraticCost:
    """c = s^T Q s + u_l^T R_leader u_l + u_f^T R_follower u_f.

    Attributes:
        Q: ``[n, n]``, positive semidefinite.
        R_leader: ``[m_l, m_l]``, positive semidefinite.
        R_follower: ``[m_f, m_f]``, positive semidefinite.

    Raises:
        ValueError: a matrix is not square, symmetric, finite and positive semidefinite.
    """

    Q: Tensor
    R_leader: Tensor
    R_follower: Tensor

    def __post_init__(self) -> None:
        for name in ("Q", "R_leader", "R_follower"):
            size = len(_matrix(self, name, None, None))
            _check_semidefinite(_matrix(self, name, size, size), name)

    def plus(self, other: QuadraticCost, weight: float) -> QuadraticCost:
        """Return the sum of this cost and ``weight`` times the other."""
        names = ("Q", "R_leader", "R_follower")
        return QuadraticCost(*(getattr(self, name) + weight * getattr(other, name) for name in names))


def _matrix(record: Any, name: str, rows: int | None, columns: int | None) -> Tensor:
    """Store a field as a finite float64 matrix of this shape and return it."""
    value = as_float64(getattr(record, name), name)
    shape = f"shape [{'n' if rows is None else rows}, {'m' if columns is None else columns}]"
    fits = value.ndim == 2 and min(value.shape) >= 1
    fits = fits and rows in (None, value.shape[0]) and columns in (None, value.shape[1])
    require(fits, name, shape, f"shape {tuple(value.shape)}")
    check_finite(value, name)
    object.__setattr__(record, name, value)
    return value


def _check_semidefinite(value: Tensor, name: str, definite: bool = False) -> None:
    size = float(value.abs().max())
    skew = float((value - value.T).abs().max())
    require(skew <= 1e-9 * max(size, 1.0), name, "a symmetric matrix", f"entries that differ by {skew:.3g}")
    low = float(torch.linalg.eigvalsh(value)[0])
    kind, fits = ("definite", low > 1e-12 * size) if definite else ("semidefinite", low >= -1e-9 * max(size, 1.0))
    require(fits, name, f"a positive {kind} matrix", f"the eigenvalue {low:.6g}")


@dataclass(frozen=True, eq=False)
class LinearResponse:
    """The follower's best linear policy u_f = -F s.

    Attributes:
        F: ``[m_f, n]``.
        V: the Riccati equation's solution, ``[n, n]``; s^T V s is the cost to go, up to a constant.
        residual: largest entry of the Riccati equation's residual, divided by the larger of 1 and the largest entry of V.
        modulus: largest modulus of an eigenvalue of the closed loop A - B_l K - B_f F, without the discount.
    """

    F: Tensor
    V: Tensor
    residual: float
    modulus: float


@dataclass(frozen=True, eq=False)
class LinearOptimum:
    """A stationary point of the leader's return at the follower's best response.

    Attributes:
        x: the leader's parameter, ``[dim]``.
        F: the follower's best response to it, ``[m_f, n]``.
        leader_return: J_L(x, F).
        gradient_norm: norm of ``x - Proj(x + gradient)``; inside X that of the gradient.
    """

    x: Tensor
    F: Tensor
    leader_return: float
    gradient_norm: float


class LinearQuadraticProblem(BilevelProblem):
    """A linear-quadratic Stackelberg game (see the module).

    Args:
        dynamics: A, B_l, B_f, W, S_0.
        leader_cost: Q_l, R_ll, R_lf.
        follower_cost: Q_f, R_fl, R_ff; R_ff is positive definite.
        gamma: discount factor of both players, in [0, 1).
        sigma: standard deviation of the leader's noise, positive.
        leader_set: the leader's set X, with m_l * n coordinates; it need not contain K = 0.
        action_bound: bound on the absolute value of the follower's inputs, ``[m_f]`` or one number. Default: 1.1 times the
            smallest bound that the best response exceeds with probability below 1e-6 in any step, at the initial x and at the
            corners of X.

    Attributes:
        leader_set: the leader's set X.
        tau: the temperature, 0.
        action_bound: bounds on the follower's inputs, ``[m_f]``.

    Raises:
        ValueError: shapes do not fit together, a cost is not positive semidefinite, or, at the initial x or a corner of X, there
            is no best response (the message names the eigenvalue) or it exceeds the bounds too often.
    """

    lower_level: ClassVar[Any] = "regulator"

    def __init__(
        self,
        dynamics: LinearDynamics,
        leader_cost: QuadraticCost,
        follower_cost: QuadraticCost,
        gamma: float,
        sigma: float,
        leader_set: LeaderSet,
        action_bound: Any = None,
    ) -> None:
        self.dynamics, self.leader_cost, self.follower_cost = dynamics, leader_cost, follower_cost
        self.gamma = check_gamma(gamma, endless=True)
        self.sigma = check_number(
            sigma, "sigma", low=0.0, open_low=True, high=1e150, open_high=True
        )  # its square is finite
        self.leader_set = leader_set
        n, m_l, m_f = self.sizes
        for whose, cost in (("leader_cost", leader_cost), ("follower_cost", follower_cost)):
            for name, size in (("Q", n), ("R_leader", m_l), ("R_follower", m_f)):
                shape = tuple(getattr(cost, name).shape)
                require(shape == (size, size), f"{whose}.{name}", f"shape {(size, size)}", f"shape {shape}")
        _check_semidefinite(follower_cost.R_follower, "follower_cost.R_follower", definite=True)
        require(leader_set.dim == m_l * n, "leader_set", f"{m_l * n} coordinates, K of {m_l} x {n}", leader_set.dim)
        self._optimum: LinearOptimum | None = None
        points = self._corners()
        self.check_stable(torch.stack(points))
        if action_bound is None:
            spread = torch.stack([self.action_spread(x) for x in points]).amax(0)
            settles = bool(torch.isfinite(spread).all())
            wanted = "closed loops of the best response that are stable without the discount too"
            require(settles, "leader_set", f"{wanted} (their inputs have no bound else)", "one that is not")
            bound = 1.1 * float(norm.isf(0.5 * SATURATION / m_f)) * spread
            action_bound = torch.where(bound > 0.0, bound, torch.ones_like(bound))
        bound = as_float64(action_bound, "action_bound")
        require(bound.shape in ((), (m_f,)), "action_bound", f"a number or {m_f}", f"shape {tuple(bound.shape)}")
        positive = bool(torch.isfinite(bound).all()) and bool((bound > 0.0).all())
        require(positive, "action_bound", "finite positive numbers", bound.tolist())
        self.action_bound = bound.expand(m_f).clone()
        for x in points:
            chance = self.saturation_probability(x)
            least = f"bounds that the best response leaves with probability under {SATURATION:g} a step"
            require(chance < SATURATION, "action_bound", least, f"{chance:.3g} at x = {x.tolist()}")

    def measured_units(self) -> tuple[float, float]:
        """Return the largest entry of the follower's and of the leader's cost matrices; 1 if all are 0."""
        largest = [
            max(float(matrix.abs().max()) for matrix in (cost.Q, cost.R_leader, cost.R_follower)) or 1.0
            for cost in (self.follower_cost, self.leader_cost)
        ]
        return largest[0], largest[1]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The sizes n, m_l and m_f."""
        d = self.dynamics
        return len(d.A), int(d.B_leader.shape[1]), int(d.B_follower.shape[1])

    def _corners(self) -> list[Tensor]:
        """Return the initial x and at most 256 corners of the box around X, projected onto X."""
        ends = list(zip(self.leader_set.low.tolist(), self.leader_set.high.tolist(), strict=True))
        if 2 ** len(ends) <= _CORNERS:
            chosen: Any = itertools.product(*ends)
        else:
            sides = np.random.default_rng(0).integers(2, size=(_CORNERS, len(ends)))
            chosen = ([end[side] for end, side in zip(ends, row, strict=True)] for row in sides)
        corners = [self.project(torch.tensor(corner, dtype=torch.float64)) for corner in chosen]
        return [self.start_x(), *corners]

    def gain(self, x: Tensor) -> Tensor:
        """Return K, ``[..., m_l, n]``, given x ``[..., dim]``."""
        n, m_l, _ = self.sizes
        return x.unflatten(-1, (m_l, n))  # type: ignore[no-any-return]

    # --- what is solved ------------------------------------------------------------------------------------------

    def check_stable(self, x: Tensor) -> None:
        """Check that a stabilising best response exists, at x ``[dim]`` or at each row of x ``[k, dim]``.

        Raises:
            ValueError: an eigenvalue of sqrt(gamma) (A - B_l K) has modulus >= 1, and its mode is not controllable by the
                follower or does not affect the follower's cost.
        """
        points = x.detach().reshape(-1, self.leader_dim)
        d, root = self.dynamics, math.sqrt(self.gamma)
        matrices = root * (d.A - d.B_leader @ self.gain(points)).numpy()
        eigenvalues = np.linalg.eigvals(matrices)
        for i, k in np.argwhere(np.abs(eigenvalues) >= 1.0):
            value, K = eigenvalues[i, k], self.gain(points[i])
            shifted = value * np.eye(len(d.A)) - matrices[i]
            weight = self.follower_cost.Q + K.T @ self.follower_cost.R_leader @ K
            for stacked, wanted in (
                (np.hstack([shifted, root * d.B_follower.numpy()]), "one that the follower's input moves"),
                (np.vstack([shifted, weight.numpy()]), "one that the follower's cost sees"),
            ):
                smallest = np.linalg.svd(stacked, compute_uv=False)[-1]
                where = f"{_eigenvalue(value)} of sqrt(gamma) (A - B_leader K) at K = {K.tolist()}"
                fits = bool(smallest > 1e-9 * np.abs(stacked).max())
                require(fits, "x", f"eigenvalues of modulus under 1, or {wanted}", where)

    @torch.no_grad()
    def best_response(self, x: Tensor, leader_weight: float = 0.0) -> LinearResponse:
        """Return the follower's optimum at x, ``[dim]``, for its own cost plus ``leader_weight`` times the leader's.

        With weight 1/lam this is the penalised follower of the value penalty. Default: 0, the best response.

        Raises:
            ValueError: there is no best response with a finite return.
        """
        x = x.detach()
        self.check_stable(x)
        cost = self.follower_cost if leader_weight == 0.0 else self.follower_cost.plus(self.leader_cost, leader_weight)
        K, d, root = self.gain(x), self.dynamics, math.sqrt(self.gamma)
        A_K, Q = d.A - d.B_leader @ K, cost.Q + K.T @ cost.R_leader @ K
        try:
            solution = solve_discrete_are(
                root * A_K.numpy(), root * d.B_follower.numpy(), Q.numpy(), cost.R_follower.numpy()
            )
        except (np.linalg.LinAlgError, ValueError) as error:
            raise ValueError(f"x: expected a K with a Riccati solution, got K = {K.tolist()} ({error})") from error
        F = self._greedy(cost, A_K, torch.from_numpy(solution))
        V = self._lyapunov(A_K - d.B_follower @ F, Q + F.T @ cost.R_follower @ F)  # Newton's step: what rounding left
        F = self._greedy(cost, A_K, V)
        S = cost.R_follower + self.gamma * d.B_follower.T @ V @ d.B_follower
        excess = V - (Q + self.gamma * A_K.T @ V @ A_K - F.T @ S @ F)
        residual = float(excess.abs().max() / V.abs().max().clamp_min(1.0))
        closed = A_K - d.B_follower @ F
        return LinearResponse(F, V, residual, float(torch.linalg.eigvals(closed).abs().max()))

    def _greedy(self, cost: QuadraticCost, A_K: Tensor, V: Tensor) -> Tensor:
        """Return F of the module's formula, ``[m_f, n]``."""
        B = self.dynamics.B_follower
        S = cost.R_follower + self.gamma * B.T @ V @ B
        return torch.linalg.solve(S, self.gamma * B.T @ V @ A_K)  # type: ignore[no-any-return]

    def _lyapunov(self, M: Tensor, Q: Tensor) -> Tensor:
        """Solve P = Q + gamma M^T P M for P, ``[n, n]``, by one linear solve in n^2 unknowns; differentiable."""
        n = len(M)
        operator = torch.eye(n * n, dtype=torch.float64) - self.gamma * torch.kron(M.T.contiguous(), M.T.contiguous())
        return torch.linalg.solve(operator, Q.reshape(-1)).reshape(n, n)  # type: ignore[no-any-return]

    def _return(self, cost: QuadraticCost, x: Tensor, F: Tensor) -> Tensor:
        n, _, m_f = self.sizes
        require(tuple(F.shape) == (m_f, n), "F", f"shape {(m_f, n)}", f"shape {tuple(F.shape)}")
        K, d, gamma = self.gain(x), self.dynamics, self.gamma
        M = d.A - d.B_leader @ K - d.B_follower @ F
        eigenvalues = math.sqrt(gamma) * torch.linalg.eigvals(M.detach())
        worst = complex(eigenvalues[eigenvalues.abs().argmax()])
        where = f"{_eigenvalue(worst)} of sqrt(gamma) (A - B_leader K - B_follower F)"
        require(abs(worst) < 1.0, "F", "a closed loop with eigenvalues of modulus under 1", where)
        P = self._lyapunov(M, cost.Q + K.T @ cost.R_leader @ K + F.T @ cost.R_follower @ F)
        paid = (P * d.start).sum() + gamma / (1.0 - gamma) * (P * self.step_noise).sum()
        return -(paid + self.sigma**2 / (1.0 - gamma) * cost.R_leader.trace())

    @property
    def step_noise(self) -> Tensor:
        """Return N, the covariance of s' given s and u_f, ``[n, n]``."""
        B = self.dynamics.B_leader
        return self.dynamics.noise + self.sigma**2 * B @ B.T

    def leader_return(self, x: Tensor, F: Tensor) -> Tensor:
        """Return J_L(x, F), a scalar that the leader maximises, for x ``[dim]`` and F ``[m_f, n]``; differentiable in both.

        Raises:
            ValueError: the closed loop is unstable; the message names the eigenvalue.
        """
        return self._return(self.leader_cost, x, F)

    def follower_return(self, x: Tensor, F: Tensor) -> Tensor:
        """Return J_F(x, F), a scalar that the follower maximises, for x ``[dim]`` and F ``[m_f, n]``; differentiable in both."""
        return self._return(self.follower_cost, x, F)

    def attached_response(self, x: Tensor, F: Tensor) -> Tensor:
        """Return the best response F, ``[m_f, n]``, with its exact first derivative in x attached."""
        K, d, cost = self.gain(x), self.dynamics, self.follower_cost
        A_K = d.A - d.B_leader @ K
        Q = cost.Q + K.T @ cost.R_leader @ K + F.T @ cost.R_follower @ F
        return self._greedy(cost, A_K, self._lyapunov(A_K - d.B_follower @ F, Q))

    def return_at_best_response(self, x: Tensor) -> Tensor:
        """Return F_0(x) = J_L(x, F*(x)), a scalar whose gradient in x is the exact hypergradient.

        Raises:
            ValueError: there is no best response with a finite return.
        """
        return self.leader_return(x, self.attached_response(x, self.best_response(x).F))

    def leader_return_gradient(self, x: Tensor) -> Tensor:
        """Return dF_0/dx, ``[dim]``."""
        point = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.return_at_best_response(point), [point])
        return gradient

    # --- action bounds -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def action_spread(self, x: Tensor) -> Tensor:
        """Return the largest standard deviation over all steps of each input of the best response, ``[m_f]``.

        The state at step t is Gaussian with covariance S_{t+1} = M S_t M^T + N, which is iterated until it converges. The result
        is infinite if the closed loop is stable only with the discount.
        """
        answer = self.best_response(x)
        F, d = answer.F, self.dynamics
        if answer.modulus >= 1.0:
            return torch.full((len(F),), math.inf, dtype=torch.float64)
        M, N, S = d.A - d.B_leader @ self.gain(x) - d.B_follower @ F, self.step_noise, d.start
        variance = torch.zeros(len(F), dtype=torch.float64)
        settled = False
        while not settled:
            variance = torch.maximum(variance, (F @ S * F).sum(-1))
            following = M @ S @ M.T + N
            settled = bool((following - S).abs().max() <= 1e-12 * S.abs().max().clamp_min(1e-300))
            S = following
        return variance.sqrt()

    def saturation_probability(self, x: Tensor) -> float:
        """Return an upper bound on the probability that the best response exceeds its bounds in the worst step."""
        spread = self.action_spread(x)
        ratio = torch.where(spread > 0.0, self.action_bound / spread, torch.full_like(spread, math.inf))
        return min(1.0, float(2.0 * norm.sf(ratio.numpy()).sum()))

    # --- the leader's best ---------------------------------------------------------------------------------------

    def optimum(self, tau: float | None = None) -> LinearOptimum:  # type: ignore[override]
        """Return the best stationary point in X found by ascent from the initial x and eight random points; computed once.

        Each ascent is quasi-Newton, followed by Newton's method on the exact gradient (with a Jacobian by central differences) in
        the coordinates that are not at a bound. F_0 need not be concave, so a better point may exist.

        Raises:
            ValueError: tau is not 0, X has a budget, or an x on the way has no best response.
        """
        require(tau is None or tau == 0.0, "tau", "0: the follower is not regularised", tau)
        require(self.leader_set.budget == math.inf, "leader_set", "a box", f"a budget of {self.leader_set.budget:g}")
        if self._optimum is not None:
            return self._optimum
        low, high = self.leader_set.low, self.leader_set.high

        def objective(z: Floats) -> tuple[float, Floats]:
            x = torch.tensor(z, requires_grad=True)
            value = -self.return_at_best_response(x)
            (gradient,) = torch.autograd.grad(value, [x])
            return float(value.detach()), gradient.numpy()

        # Quasi-Newton ascent from each start.
        bounds, draws = list(zip(low.tolist(), high.tolist(), strict=True)), np.random.default_rng(0)
        starts = [self.start_x().numpy(), *draws.uniform(low.numpy(), high.numpy(), (8, len(low)))]
        found = [
            minimize(objective, z, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 0.0}) for z in starts
        ]
        x = torch.from_numpy(min(found, key=lambda end: float(end.fun)).x)
        # Newton's method from the best of the ends, while it brings the gradient down.
        gradient, norm_now = self._stationarity(x)
        for _ in range(20):
            moved = self.project(x + gradient)
            free = ((moved > low) & (moved < high)).nonzero().flatten()
            if norm_now < 1e-12 or not len(free):
                break
            step = torch.zeros_like(x)
            step[free] = torch.linalg.solve(self._jacobian(x)[free][:, free], -gradient[free])
            candidate = self.project(x + step)
            following, norm_then = self._stationarity(candidate)
            if norm_then >= norm_now:
                break
            x, gradient, norm_now = candidate, following, norm_then
        F = self.best_response(x).F
        self._optimum = LinearOptimum(x, F, float(self.leader_return(x, F)), norm_now)
        return self._optimum

    def _stationarity(self, x: Tensor) -> tuple[Tensor, float]:
        gradient = self.leader_return_gradient(x)
        return gradient, float((x - self.project(x + gradient)).norm())

    def _jacobian(self, x: Tensor, h: float = 1e-5) -> Tensor:
        """Return the derivative of the gradient, ``[dim, dim]``, symmetrised."""
        steps = h * torch.eye(len(x), dtype=torch.float64)
        gradient = self.leader_return_gradient
        jacobian = torch.stack([(gradient(x + e) - gradient(x - e)) / (2.0 * h) for e in steps])
        return (jacobian + jacobian.T) / 2.0


def _eigenvalue(value: complex) -> str:
    text = f"{value.real:.6g}" if value.imag == 0.0 else f"{value.real:.6g}{value.imag:+.6g}i"
    return f"the eigenvalue {text} (modulus {abs(value):.6g})"


# --- games ------------------------------------------------------------------------------------------------------------


def steering_game(
    gamma: float = 0.9, leader_effort: float = 0.2, follower_effort: float = 0.5, sigma: float = 0.3, noise: float = 0.3
) -> LinearQuadraticProblem:
    r"""Make a game in which the leader's cost depends on a quantity that only the follower can move.

        p' = 0.8 p             + 0.5 u_f + w_p         leader:   p^2 + leader_effort u_l^2
        q' = 0.7 q + 0.5 u_l   + 0.5 u_f + w_q         follower: q^2 + follower_effort u_f^2

    The follower's cost keeps q near 0; the leader wants p near 0, but its input affects q only. A leader without foresight does
    nothing. A leader with foresight makes q depend on p (K_p < 0), so that the follower also controls p when it controls q.

    p and q start at N(0, 0.5^2). X is K_p in [-1.5, 0], K_q in [0, 1.5]. The only mode that the follower cannot control is p - q
    where K_p + K_q = -0.2; its eigenvalue there is 0.8 + K_p/2, inside the unit circle.

    Raises:
        ValueError: gamma lies outside [0, 1), or an effort, sigma or noise is not positive.
    """
    efforts = {"leader_effort": leader_effort, "follower_effort": follower_effort, "noise": noise}
    for name, value in efforts.items():
        check_number(value, name, low=0.0, open_low=True, high=1e150, open_high=True)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    p, q = (torch.diag(row) for row in torch.eye(2, dtype=torch.float64))
    dynamics = LinearDynamics(
        A=0.8 * p + 0.7 * q,
        B_leader=torch.tensor([[0.0], [0.5]]),
        B_follower=torch.tensor([[0.5], [0.5]]),
        noise=float(noise) ** 2 * torch.eye(2),
        start=0.25 * torch.eye(2),
    )
    leader, follower = QuadraticCost(p, zero + leader_effort, zero), QuadraticCost(q, zero, zero + follower_effort)
    leader_set = LeaderSet(torch.tensor([-1.5, 0.0]), torch.tensor([0.0, 1.5]))
    return LinearQuadraticProblem(dynamics, leader, follower, gamma, sigma, leader_set)


def random_linear_quadratic(
    n_states: int = 3, n_leader_inputs: int = 1, gamma: float = 0.9, seed: int | None = 0
) -> LinearQuadraticProblem:
    """Make a random game in which the follower has one input for each state, so that it can stabilise the plant under any K.

    A has spectral norm 1 and B_l 0.5; B_f is half a random orthogonal matrix. Each player's cost has weight 1 on one random
    direction of the state and 1/20 on the others; the cost of inputs is 0.2 for both. sigma is 0.2 and the noise 0.1; X is
    [-1, 1] in every entry of K.

    Raises:
        ValueError: a size is below 1, gamma lies outside [0, 1), or the seed is negative.
    """
    n, m = check_size(n_states, "n_states"), check_size(n_leader_inputs, "n_leader_inputs")
    check_seed(seed)
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((n, n)), rng.standard_normal((n, m))
    orthogonal = np.linalg.qr(rng.standard_normal((n, n)))[0]
    eye = torch.eye(n, dtype=torch.float64)
    directions = torch.from_numpy(rng.standard_normal((2, n)))
    Q_l, Q_f = (torch.outer(v, v) / v.square().sum() + 0.05 * eye for v in directions)
    dynamics = LinearDynamics(
        torch.from_numpy(A / np.linalg.norm(A, 2)),
        torch.from_numpy(0.5 * B / np.linalg.norm(B, 2)),
        torch.from_numpy(0.5 * orthogonal),
        0.01 * eye,
        eye,
    )
    own, none = 0.2 * torch.eye(m, dtype=torch.float64), torch.zeros(m, m)
    leader, follower = QuadraticCost(Q_l, own, torch.zeros(n, n)), QuadraticCost(Q_f, none, 0.2 * eye)
    return LinearQuadraticProblem(dynamics, leader, follower, gamma, 0.2, LeaderSet.box(m * n, -1.0, 1.0))
