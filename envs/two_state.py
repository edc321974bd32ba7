r"""A two-state problem that is solved by hand: it has every quantity of the theory in closed form.

States 0 and 1; action a moves to state a with certainty; rho = (1/2, 1/2); x is a price in X = [-1, 3].

    follower   r_x(s,a) = c 1[s=1] + (x - k) 1[a=1]        c: bonus of state 1, k: cost of action 1
    leader     r_l(s,a) = (b - x) 1[a=1]                   b: benefit of action 1

**Best response.** Where an action leads does not depend on the state, so Q(1,.) = Q(0,.) + c, V(1) = V(0) + c, and in
both states Q(s,1) - Q(s,0) = x - k + gamma c = g. With u = g/tau:

    pi*(1|s) = sigmoid(u),      V*(0) = tau softplus(u) / (1-gamma)

**Optimum.** F(x) = J_L(x, pi*) = sigmoid(u) (b - x) / (1-gamma). F' = 0 where (1 - sigmoid(u)) (b - x) = tau, that is

    e^u + u = K,    K = (b - k + gamma c)/tau - 1,    e^u = W(e^K)  with Lambert's W
    x* = tau u + k - gamma c,    F(x*) = tau W(e^K) / (1-gamma)

log F is concave where x < b, and F is at most 0 and falling beyond, so F rises to its one maximum and falls after it:
the best point of X is x* clipped.

**Penalties.** For pi with y_s = pi(1|s), the visitation follows from d1 = rho_1 + gamma (d0 y_0 + d1 y_1):

    d1 = (rho_1 + gamma y_0/(1-gamma)) / (1 - gamma (y_1 - y_0)),    d0 = 1/(1-gamma) - d1

With KL between distributions on the two actions,

    value     V*(rho) - V^pi(rho) = tau sum_s d(s)  KL(pi(s), pi*(s))
    Bellman                       = tau sum_s mu(s) KL(pi(s), pi*(s))

where tau KL(pi(s), pi*(s)) = tau softplus(u) - y_s g + tau h(pi(s)), h the negative entropy; at tau = 0 it is
max(g, 0) - y_s g.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from scipy.special import wrightomega
from torch import Tensor
from torch.nn.functional import softplus

from .core import FromArguments
from .mdp import LeaderSet, Optimum, TabularMDP, TabularProblem, negative_entropy
from .mdp.checks import as_float64, check_gamma, check_number, check_tau, require
from .tabular import TabularEnv


class TwoStateProblem(TabularProblem):
    """The two-state problem (see the module).

    Args:
        gamma: discount factor, in [0, 1).
        tau: default temperature.
        bonus: c, the follower's reward in state 1.
        cost: k, the follower's cost of action 1.
        benefit: b, the leader's benefit of action 1, before it pays x.

    Raises:
        ValueError: gamma lies outside [0, 1), tau is negative, or an amount is not finite.
    """

    batched_kernel: ClassVar[bool] = True

    def __init__(
        self, gamma: float = 0.9, tau: float = 0.1, bonus: float = 0.5, cost: float = 1.0, benefit: float = 1.5
    ) -> None:
        self.gamma, self.tau = check_gamma(gamma, endless=True), check_tau(tau)
        self.bonus, self.cost, self.benefit = (
            check_number(value, name, low=-math.inf, high=math.inf, open_low=True, open_high=True)
            for name, value in (("bonus", bonus), ("cost", cost), ("benefit", benefit))
        )
        self.leader_set = LeaderSet.box(1, -1.0, 3.0)
        self._P = torch.eye(2, dtype=torch.float64).expand(2, 2, 2).contiguous()
        self._rho = torch.full((2,), 0.5, dtype=torch.float64)
        self._in_one = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        self._act_one = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        """Return M(x) for x ``[..., 1]``."""
        r = self.bonus * self._in_one + (x.unsqueeze(-1) - self.cost) * self._act_one
        return TabularMDP(self._P, r, self._rho, self.gamma, validate=False)

    def leader_reward(self, x: Tensor) -> Tensor:
        """Return the leader's reward (b - x) 1[a=1], ``[..., 2, 2]`` for x ``[..., 1]``."""
        return (self.benefit - x.unsqueeze(-1)) * self._act_one

    def _advantage(self, x: Tensor) -> Tensor:
        """g = Q*(s,1) - Q*(s,0), the same in both states; a scalar for x ``[1]``."""
        return x[..., 0] - self.cost + self.gamma * self.bonus

    def _soft_part(self, g: Tensor, tau: float) -> Tensor:
        """tau softplus(g/tau); its limit max(g, 0) at tau = 0."""
        return tau * softplus(g / tau, threshold=1000.0) if tau > 0.0 else g.clamp_min(0.0)

    def best_response(self, x: Tensor, tau: float) -> Tensor:
        """Return the best response pi*, ``[2, 2]``, at x ``[1]``; at tau = 0 the greedy policy, uniform over ties."""
        g = self._advantage(x)
        z = torch.stack([-g, g])
        row = torch.sigmoid(z / tau) if check_tau(tau) > 0.0 else torch.heaviside(z, torch.full_like(z, 0.5))
        return row.expand(2, 2)

    def follower_value(self, x: Tensor, tau: float) -> Tensor:
        """Return the follower's optimal value V*, ``[2]``, at x ``[1]``."""
        V_0 = self._soft_part(self._advantage(x), check_tau(tau)) / (1.0 - self.gamma)
        return torch.stack([V_0, V_0 + self.bonus])

    def _gap(self, x: Tensor, pi: Tensor, tau: float) -> Tensor:
        """tau KL(pi(s), pi*(s)), ``[2]``."""
        g = self._advantage(x)
        return self._soft_part(g, check_tau(tau)) - pi[:, 1] * g + tau * negative_entropy(pi)

    def value_penalty(self, x: Tensor, pi: Tensor, tau: float) -> Tensor:
        """Return V*(rho) - V^pi(rho), a scalar, for x ``[1]``, pi ``[2, 2]``."""
        y, gamma = pi[:, 1], self.gamma
        d_1 = (self._rho[1] + gamma * y[0] / (1.0 - gamma)) / (1.0 - gamma * (y[1] - y[0]))
        d_0 = 1.0 / (1.0 - gamma) - d_1
        return (torch.stack([d_0, d_1]) * self._gap(x, pi, tau)).sum()

    def bellman_penalty(self, x: Tensor, pi: Tensor, tau: float, mu: Tensor | None = None) -> Tensor:
        """Return tau sum_s mu(s) KL(pi(s), pi*(s)), a scalar, for x ``[1]``, pi ``[2, 2]``, mu ``[2]`` (uniform)."""
        weights = self._rho if mu is None else as_float64(mu, "mu")
        require(tuple(weights.shape) == (2,), "mu", "shape (2,)", f"shape {tuple(weights.shape)}")
        return (weights * self._gap(x, pi, tau)).sum()

    def optimum(self, tau: float | None = None) -> Optimum:
        """Return the optimum; at tau = 0 there is none, because F is discontinuous at its supremum.

        Raises:
            ValueError: tau is not positive.
        """
        tau = check_tau(self.tau if tau is None else tau, positive=True)
        K = (self.benefit - self.cost + self.gamma * self.bonus) / tau - 1.0
        w = float(wrightomega(K))  # W(e^K), without forming e^K
        u = math.log(w) if K > 0.0 else K - w
        x = self.project(torch.tensor([tau * u + self.cost - self.gamma * self.bonus], dtype=torch.float64))
        pi = self.best_response(x, tau)
        return Optimum(x, pi, float(pi[0, 1] * (self.benefit - x[0])) / (1.0 - self.gamma))


class TwoStateEnv(FromArguments, TabularEnv, problem=TwoStateProblem):
    """The smallest problem with a leader: two states, two actions, one price, and an optimum in closed form.

    ## Description
    Action ``a`` moves to state ``a``. The leader pays the follower x whenever it takes action 1, which the leader
    likes and the follower finds costly; in state 1 the follower also earns a bonus. ``problem.optimum(tau)``
    is the leader's best x.

    ## Action Space
    ``Discrete(2)``: the next state.

    ## Observation Space
    ``Discrete(2)``: the state.

    ## Leader Space
    ``Box(-1, 3, (1,), float64)``: the payment for action 1. ``commitment(s)`` is x, ``info["leader_draw"]`` 0.

    ## Rewards
    The follower's: ``bonus`` in state 1, plus ``x - cost`` for action 1. The leader's: ``benefit - x`` for action 1.

    ## Starting State
    Each with probability 1/2.

    ## Episode End
    It does not terminate; the registered environment truncates after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``gamma``: discount of both players, in [0, 1) (0.9).
    - ``tau``: default temperature of the follower (0.1).
    - ``bonus``, ``cost``, ``benefit``: amounts (0.5, 1.0, 1.5).
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``.

    ## Version History
    - v0: first version.

    ## References
    The penalties are those of Shen, Yang and Chen, arXiv 2402.06886; the problem is this library's own.
    """


vector_env = TwoStateEnv.vector
