r"""The exact hypergradient of F(x) = J_L(x, pi*_tau(x)), by the implicit function theorem on V* = T(x, V*):

    dF/dx = d_x J_L(x, pi(x,V))|_{V=V*}  +  (d_V J_L)^T (I - gamma P_{pi*})^{-1} d_x T(x, V*)

It needs one adjoint solve besides the follower's Newton solve. In a zero-sum game pi* is the Nash equilibrium, which for tau > 0
is unique and smooth in x, T is the value of each state's matrix game, and pi(x,V) is its saddle point, whose derivative takes one
more linear system per state (:mod:`~bilevel_gym.envs.mdp.nash`). The method needs tau > 0; a falling tau leads to the
unregularised problem. In a linear-quadratic problem pi* is Riccati's and tau is 0
(:mod:`~bilevel_gym.envs.mdp.linear_quadratic`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...envs.mdp import BilevelProblem, SoftOptimum, TabularMDP, action_value, solve_soft
from ...envs.mdp.tabular import FactoredResolvent, entropy_weight, going_on
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState
from ..leader import Progress
from ..lower_levels import Policies, lower_level
from ..records import storable
from ..schedules import Schedule


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class HypergradientConfig(ExactConfig):
    """Options of :class:`Hypergradient`.

    Attributes:
        tau: temperature in units of the follower's reward, positive. None takes 0.4 reward units for a sixth of training,
            then the problem's own, or 0.003 reward units. In a game None anneals it from 0.2 reward units to the problem's
            own. In a linear-quadratic problem it must be 0.
    """


def soft_leader_return(problem: BilevelProblem, x: Tensor, tau: float, warm: Any = None) -> tuple[Tensor, Any]:
    """Return F(x) = J_L(x, pi*_tau(x)), a scalar whose gradient in x is the exact hypergradient, and the lower level's solution.

    The solution is a :class:`SoftOptimum` for one follower, a :class:`NashEquilibrium` for a game, and a
    :class:`LinearResponse` for a linear-quadratic problem.

    Args:
        problem: the bilevel problem, of one follower, a zero-sum game or linear-quadratic.
        x: a point of X, ``[dim]``.
        tau: temperature, positive; 0 for a linear-quadratic problem.
        warm: the solution at a nearby x, or any object with its values ``V``. Default: None.
    """
    level = lower_level(problem)
    model = level.model(x)
    solution = level.solve(model.detach(), tau, None if warm is None else warm.V)
    return level.leader_return(x, level.policies(level.attach(model, tau, solution))), solution


@torch.no_grad()
def cotangents(
    mdp: TabularMDP, reward: Tensor, tau: float, optimum: SoftOptimum, weights: Tensor | None, with_P: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    r"""Return F, dF/dr and dF/dr_l, ``[..., S, A]``, and dF/dP, ``[..., S, A, S]``, where J_L is the return of ``reward``.

    Let Q_l and V_l be the values of the leader's reward under pi*, and A = I - gamma P_{pi*}:

        A^T d = rho,                        the visitation
        g = d pi* (Q_l - V_l) / tau         through Q*, since d pi*(a)/d Q*(b) = pi*(a) ( 1[a=b] - pi*(b) ) / tau
        A^T w = gamma P^T g                 the adjoint
        dF/dr = g + w pi*,    dF/dr_l = d pi*,    dF/dP(s'|s,a) = gamma ( dF/dr_l V_l(s') + dF/dr V*(s') )

    Args:
        mdp: the follower's model.
        reward: r_l, ``[..., S, A]``.
        tau: temperature, positive, in units of reward.
        optimum: the follower's soft optimum.
        weights: weights ``[C]`` of the contexts in F; None where there are none.
        with_P: whether to compute dF/dP; otherwise it is None.
    """
    pi, resolvent = optimum.pi, FactoredResolvent(mdp, optimum.pi)
    rho = mdp.rho.expand(pi.shape[:-1])
    V_l = resolvent.solve((pi * reward).sum(-1))
    Q_l = action_value(mdp.with_reward(reward), V_l)
    d = resolvent.solve_adjoint(rho if weights is None else rho * weights.unsqueeze(-1))
    to_reward = d.unsqueeze(-1) * pi
    g = to_reward * (Q_l - V_l.unsqueeze(-1)) / tau
    entropy = entropy_weight(mdp, tau)
    if isinstance(entropy, Tensor):  # in a state without entropy the policy is greedy
        g = g * (entropy > 0).unsqueeze(-1)
    following = going_on(mdp, g).flatten(-2).unsqueeze(-2) @ mdp.P.flatten(-3, -2)
    w = resolvent.solve_adjoint(mdp.gamma * following.squeeze(-2))
    to_r = g + w.unsqueeze(-1) * pi
    value = (d * (pi * reward).sum(-1)).sum()
    if not with_P:
        return value, to_r, to_reward, None
    both = going_on(mdp, to_reward).unsqueeze(-1) * V_l[..., None, None, :]
    both = both + going_on(mdp, to_r).unsqueeze(-1) * optimum.V[..., None, None, :]
    return value, to_r, to_reward, mdp.gamma * both


def hypergradient(problem: BilevelProblem, x: Tensor, tau: float, warm: Any = None) -> tuple[Tensor, Tensor, Any]:
    """Return F(x), dF/dx, ``[dim]``, and the lower level's solution; for the arguments see :func:`soft_leader_return`.

    For one follower it takes one factorised matrix besides the Newton steps. Games, objectives that are no returns and sparse
    models use autograd, through :func:`soft_leader_return`.
    """
    x = x.detach().requires_grad_()
    level = lower_level(problem)
    tables = level.tables(x)
    if tables is None:
        value, solution = soft_leader_return(problem, x, tau, warm)
        (gradient,) = torch.autograd.grad(value, x)
        return value.detach(), gradient, solution
    mdp, reward = tables
    optimum = solve_soft(mdp.detach(), tau, None if warm is None else warm.V)
    where = (optimum, problem.context_probs, mdp.P.requires_grad)
    value, to_r, to_reward, to_P = cotangents(mdp.detach(), reward.detach(), tau, *where)
    pairs = ((mdp.r, to_r), (reward, to_reward), (mdp.P, to_P))
    moved = [
        (table, slope.sum_to_size(table.shape)) for table, slope in pairs if slope is not None and table.requires_grad
    ]
    if not moved:
        return value, torch.zeros_like(x), optimum
    outputs, slopes = zip(*moved, strict=True)
    (gradient,) = torch.autograd.grad(outputs, x, slopes)
    return value, gradient, optimum


@dataclass
class HypergradientState(ExactState):
    """The state of :class:`HypergradientMethod`: the solution's values at the latest x, ``[..., S]``; None before the first."""

    V: Tensor | None = None


class HypergradientMethod(ExactMethod):
    """Ascent on F by its exact gradient; see :class:`Hypergradient`."""

    config_class = HypergradientConfig
    state_class = HypergradientState
    levels = ("single", "zero_sum", "regulator")
    positive_tau = True

    def default_tau(self) -> float | Schedule:
        if not self.level.takes_tau:
            return 0.0
        if self.level.n_players > 1:
            return self.annealed(0.2)
        return self.quenched()

    def descend(self, state: HypergradientState, progress: Progress) -> dict[str, float]:
        _, gradient, solution = hypergradient(self.problem, state.x, state.tau, state)
        state.x.grad, state.V = -gradient, solution.V
        return {"oracle_residual": solution.residual, "gradient_norm": float(gradient.norm())}

    def policies(self, state: HypergradientState, model: Any) -> Policies:
        return self.level.policies(self.level.solve(model, state.tau, state.V))  # type: ignore[no-any-return]


class Hypergradient(ExactLeader):
    """Ascent on F by its exact gradient, the hypergradient.

    Args:
        problem: a tabular problem, one over a zero-sum game or a linear-quadratic one, an environment that has one, or an id.
        config: learning rate, schedules and bounds.
        seed: stored in files; the method uses no random numbers.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default 0, projected onto X.

    Raises:
        ValueError: see :class:`TabularPBRL`; also if tau is not positive, or for a linear-quadratic problem not 0.
    """

    method_class = HypergradientMethod
