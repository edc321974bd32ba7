r"""A building whose leader chooses insulation and airflow, and so the linear dynamics that a follower's heating has to cope with.

    s' = A(x) s + B u + noise e,   e ~ N(0, I),   s_0 ~ N(0, I)           s: temperatures of four zones, as deviations
    follower   -s^T Q s - .01 |u|^2                                       Q = diag(8, 1, 5, 6)
    leader     -var(s) - .5 |u|^2 - .1 |x|^2                              var over the zones, with divisor 4

x = (i, a): insulation of each zone, airflow of the pairs (0,1), (1,2), (2,3), (3,0). With k_jk the exchange of a pair,

    A_jk = k_jk a_pair,      A_jj = 1 + c_j (1 - i_j) - sum_k A_jk

**Best response.** For each x a discounted linear-quadratic regulator: V and F by the Riccati equation, u = -F s. At temperature
tau the soft optimum is u ~ N(-F s, tau/2 S^{-1}) with S = R + gamma B^T V B and the same F.

**Returns** of u ~ N(-F s, C), over an infinite horizon: with M = A - B F and P = Q + F^T R F + gamma M^T P M,

    J = -[ tr(P) + ( gamma tr(P (W + B C B^T)) + tr(R C) + .1 |x|^2 ) / (1 - gamma) ]

(the last term the leader's alone, W = noise^2 I).

**Derivative of F in x.** As in ``.linear_quadratic``: V is the cost of F held fixed, to first order, so that one Lyapunov
equation, put into the formula of F, has the right derivative.

Source: the building of BC-HG (ICAPS 2026), as restated by its follower's and leader's rewards; the constants are its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_are
from torch import Tensor

from .checks import check_gamma, check_number, check_tau, require
from .problem import BilevelProblem, LeaderSet

Floats = NDArray[np.float64]
F64 = torch.float64
ZONES, INPUTS = 4, 2
PAIRS = ((0, 1), (1, 2), (2, 3), (3, 0))
EXCHANGE = ((0.05, 0.03), (0.04, 0.04), (0.06, 0.03), (0.05, 0.05))
"""k_jk and k_kj of each pair (j, k)."""


class BuildingProblem(BilevelProblem):
    """The problem above.

    Args:
        gamma: discount of both players, in [0, 1).
        noise: standard deviation of the temperatures' noise, positive.
        bound: largest input of the follower, positive; the best response stays far inside.
        tau: temperature of the follower's entropy, 0 for a greedy one.

    Raises:
        ValueError: a number outside its interval.
    """

    lower_level: ClassVar[Any] = "building"

    def __init__(self, gamma: float = 0.9, noise: float = 0.02, bound: float = 10.0, tau: float = 0.0) -> None:
        self.gamma, self.tau, self.horizon = check_gamma(gamma, endless=True), check_tau(tau), 100
        self.noise = check_number(noise, "noise", low=0.0, open_low=True, open_high=True)
        self.bound = check_number(bound, "bound", low=0.0, open_low=True, open_high=True)
        self.leader_set = LeaderSet.box(8, 0.0, 1.0)
        self.B = torch.tensor([[0.1, 0.0], [0.6, 0.0], [0.0, 0.55], [0.0, 0.3]], dtype=F64)
        self._drift = torch.tensor([0.04, 0.03, 0.06, 0.05], dtype=F64)
        eye = torch.eye(ZONES, dtype=F64)
        self.costs = {
            "follower": (
                torch.diag(torch.tensor([8.0, 1.0, 5.0, 6.0], dtype=F64)),
                0.01 * torch.eye(INPUTS, dtype=F64),
            ),
            "leader": ((eye - 0.25) / ZONES, 0.5 * torch.eye(INPUTS, dtype=F64)),
        }
        # A(x) is linear in x: what one unit of each airflow adds.
        self._flow = torch.zeros(len(PAIRS), ZONES, ZONES, dtype=F64)
        for n, ((j, k), (there, back)) in enumerate(zip(PAIRS, EXCHANGE, strict=True)):
            for row, column, rate in ((j, k, there), (k, j, back)):
                self._flow[n, row, column] += rate
                self._flow[n, row, row] -= rate
        # Of simulators.
        self.action_low, self.action_high = -np.ones(INPUTS), np.ones(INPUTS)
        self.obs_low, self.obs_high = np.full(ZONES, -np.inf), np.full(ZONES, np.inf)

    def start_x(self) -> Tensor:
        """Half of everything."""
        return torch.full((8,), 0.5, dtype=F64)

    def dynamics(self, x: Tensor) -> Tensor:
        """A(x), ``[..., 4, 4]`` for x ``[..., 8]``."""
        own = 1.0 + self._drift * (1.0 - x[..., :ZONES])
        return torch.diag_embed(own) + torch.einsum("...p,pjk->...jk", x[..., ZONES:], self._flow)

    # --- best response and returns ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def best_response(self, x: Tensor) -> Tensor:
        """F of the follower's optimum u = -F s, ``[2, 4]``; it does not depend on the temperature."""
        A, (Q, R) = self.dynamics(self.leader_set.check(x)), self.costs["follower"]
        root = math.sqrt(self.gamma)
        V = torch.from_numpy(solve_discrete_are(root * A.numpy(), root * self.B.numpy(), Q.numpy(), R.numpy()))
        F = self._greedy(A, V)
        return self._greedy(A, self._lyapunov(A - self.B @ F, Q + F.T @ R @ F))  # Newton's step: what rounding left

    def _curvature(self, V: Tensor) -> Tensor:
        """S = R + gamma B^T V B."""
        return self.costs["follower"][1] + self.gamma * self.B.T @ V @ self.B

    def _greedy(self, A: Tensor, V: Tensor) -> Tensor:
        return torch.linalg.solve(self._curvature(V), self.gamma * self.B.T @ V @ A)  # type: ignore[no-any-return]

    def _lyapunov(self, M: Tensor, Q: Tensor) -> Tensor:
        """P = Q + gamma M^T P M."""
        n = len(M)
        operator = torch.eye(n * n, dtype=F64) - self.gamma * torch.kron(M.T.contiguous(), M.T.contiguous())
        return torch.linalg.solve(operator, Q.reshape(-1)).reshape(n, n)  # type: ignore[no-any-return]

    def _return(self, whose: str, x: Tensor, F: Tensor, covariance: Tensor) -> Tensor:
        require(tuple(F.shape) == (INPUTS, ZONES), "F", f"shape {(INPUTS, ZONES)}", f"shape {tuple(F.shape)}")
        (Q, R), M = self.costs[whose], self.dynamics(x) - self.B @ F
        largest = math.sqrt(self.gamma) * float(torch.linalg.eigvals(M.detach()).abs().max())
        require(largest < 1.0, "F", "a closed loop with sqrt(gamma) |eigenvalues| under 1", f"{largest:.6g}")
        P = self._lyapunov(M, Q + F.T @ R @ F)
        spread = self.noise**2 * torch.eye(ZONES, dtype=F64) + self.B @ covariance @ self.B.T
        lasting = self.gamma * (P * spread).sum() + (R * covariance).sum()
        if whose == "leader":
            lasting = lasting + 0.1 * x.square().sum()
        return -(P.trace() + lasting / (1.0 - self.gamma))

    def leader_return(self, x: Tensor, F: Tensor, covariance: Tensor | None = None) -> Tensor:
        """J_L of u ~ N(-F s, covariance), a scalar, differentiable; no covariance means u = -F s."""
        return self._return(
            "leader", x, F, torch.zeros(INPUTS, INPUTS, dtype=F64) if covariance is None else covariance
        )

    def follower_return(self, x: Tensor, F: Tensor, covariance: Tensor | None = None) -> Tensor:
        """J_F, likewise, without entropy."""
        return self._return(
            "follower", x, F, torch.zeros(INPUTS, INPUTS, dtype=F64) if covariance is None else covariance
        )

    def return_at_best_response(self, x: Tensor, tau: float | None = None) -> Tensor:
        """F(x) at a temperature, by default the problem's; a scalar whose gradient in x is the exact hypergradient.

        Args:
            x: a point of X, ``[8]``.
            tau: 0 for the greedy follower, which a learned deterministic policy is held against; above 0 for the soft one
                with its noise.
        """
        tau = check_tau(self.tau if tau is None else tau)
        F, A, (Q, R) = self.best_response(x), self.dynamics(x), self.costs["follower"]
        V = self._lyapunov(A - self.B @ F, Q + F.T @ R @ F)
        covariance = 0.5 * tau * torch.linalg.inv(self._curvature(V))
        return self.leader_return(x, self._greedy(A, V), covariance)

    def leader_return_gradient(self, x: Tensor, tau: float | None = None) -> Tensor:
        """dF/dx, ``[8]``."""
        point = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.return_at_best_response(point, tau), [point])
        return gradient

    def at_best_response(self, x: Any, tau: float | None = None) -> float:
        """F(x) as a number."""
        return float(self.return_at_best_response(self.leader_set.check(x).detach(), tau))

    def follower_value(self, x: Any) -> float:
        """The follower's largest return, without entropy."""
        point = self.leader_set.check(x).detach()
        return float(self.follower_return(point, self.best_response(point)))

    def returns(self, x: Any, act: Callable[[Floats], Any], episodes: int = 4096) -> tuple[float, float]:
        """The follower's and the leader's return of any policy over 100 steps, by episodes with a fixed seed.

        Args:
            x: a point of X, ``[8]``.
            act: from temperatures ``[n, 4]`` to actions ``[n, 2]`` in [-1, 1], beyond which they are clipped.
            episodes: how many.
        """
        point = self.leader_set.check(x).detach()
        rng, A, discount, paid = np.random.default_rng(0), self.dynamics(point).numpy(), 1.0, np.zeros(2)
        s = self.draw_starts(rng, episodes)
        for _ in range(self.horizon):
            a = np.asarray(act(s), dtype=np.float64)
            require(a.shape == (episodes, INPUTS), "act", f"actions of shape {(episodes, INPUTS)}", f"shape {a.shape}")
            a = a.clip(self.action_low, self.action_high)
            paid += discount * np.array([np.mean(r) for r in self.rewards(point.numpy(), s, a, None)])
            s = self.move(A, s, a) + self.noise * rng.standard_normal(s.shape)
            discount *= self.gamma
        return float(paid[0]), float(paid[1])

    # --- for simulators ---------------------------------------------------------------------------------------------------

    def move(self, A: Any, s: Any, a: Any) -> Any:
        """The next temperatures without noise, ``[..., 4]``, of actions in [-1, 1]; numpy or torch as A is."""
        B = self.B if isinstance(A, Tensor) else self.B.numpy()
        return (A @ s[..., None])[..., 0] + self.bound * a @ B.T

    def rewards(self, x: Any, obs: Any, a: Any, next_obs: Any) -> tuple[Any, Any]:
        """r_f and r_l, ``[...]``, of actions in [-1, 1]; numpy or torch."""
        pay = []
        for Q, R in self.costs.values():
            state_cost, input_cost = (part if isinstance(obs, Tensor) else part.numpy() for part in (Q, R))
            u = self.bound * a
            pay.append(-((obs @ state_cost) * obs).sum(-1) - ((u @ input_cost) * u).sum(-1))
        return pay[0], pay[1] - 0.1 * (x * x).sum(-1)

    def observe(self, s: Floats) -> Floats:
        return s

    def draw_starts(self, rng: np.random.Generator, n: int) -> Floats:
        return rng.standard_normal((n, ZONES))
