r"""The exact hypergradient of F(x) = J_L(x, pi*_tau(x)), by the implicit function theorem on V* = T(x, V*):

    dF/dx = d_x J_L(x, pi(x,V))|_{V=V*}  +  (d_V J_L)^T (I - gamma P_{pi*})^{-1} d_x T(x, V*)

one adjoint solve beside the follower's Newton solve. Over a zero-sum game pi* is the Nash equilibrium, unique and smooth in x
for tau > 0, T the value of each state's matrix game, and pi(x,V) its saddle point, whose derivative is one more linear
system a state (:mod:`~bilevel_gym.envs.mdp.nash`). Needs tau > 0; lowering tau leads to the unregularised problem.
Over a linear-quadratic problem pi* is Riccati's and tau is 0 (:mod:`~bilevel_gym.envs.mdp.linear_quadratic`).
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
    """How :class:`Hypergradient` learns.

    Attributes:
        tau: temperature, positive; None takes 0.4 reward units for a sixth of training, and then the problem's own, or
            0.003 reward units. Over a game None anneals it from 0.2 reward units to the problem's own. Over a
            linear-quadratic problem it is 0.
    """


def soft_leader_return(problem: BilevelProblem, x: Tensor, tau: float, warm: Any = None) -> tuple[Tensor, Any]:
    """F(x) = J_L(x, pi*_tau(x)), a scalar whose gradient in x is the exact hypergradient, and the lower level's solution.

    The solution is a :class:`SoftOptimum` over one follower, a :class:`NashEquilibrium` over a game, a
    :class:`LinearResponse` over a linear-quadratic problem.

    Args:
        problem: over one follower or over a zero-sum game.
        x: a point of X, ``[dim]``.
        tau: temperature, positive; 0 over a linear-quadratic problem.
        warm: the solution at a nearby x, or what else has its values ``V``; None for none.
    """
    level = lower_level(problem)
    model = level.model(x)
    solution = level.solve(model.detach(), tau, None if warm is None else warm.V)
    return level.leader_return(x, level.policies(level.attach(model, tau, solution))), solution


@torch.no_grad()
def cotangents(
    mdp: TabularMDP, reward: Tensor, tau: float, optimum: SoftOptimum, weights: Tensor | None, with_P: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    r"""F, dF/dr and dF/dr_l, ``[..., S, A]``, and dF/dP, ``[..., S, A, S]``, where J_L is the return of ``reward``.

    With Q_l and V_l the values of the leader's reward under pi*, and A = I - gamma P_{pi*}:

        A^T d = rho,                        the visitation
        g = d pi* (Q_l - V_l) / tau         through Q*, since d pi*(a)/d Q*(b) = pi*(a) ( 1[a=b] - pi*(b) ) / tau
        A^T w = gamma P^T g                 the adjoint
        dF/dr = g + w pi*,    dF/dr_l = d pi*,    dF/dP(s'|s,a) = gamma ( dF/dr_l V_l(s') + dF/dr V*(s') )

    Args:
        mdp: the follower's model.
        reward: r_l, ``[..., S, A]``.
        tau: temperature, positive.
        optimum: the follower's soft optimum.
        weights: of the contexts, ``[C]``, by which F is summed over the batch; None where there are none.
        with_P: whether to work out dF/dP; else it is None.
    """
    pi, resolvent = optimum.pi, FactoredResolvent(mdp, optimum.pi)
    rho = mdp.rho.expand(pi.shape[:-1])
    V_l = resolvent.solve((pi * reward).sum(-1))
    Q_l = action_value(mdp.with_reward(reward), V_l)
    d = resolvent.solve_adjoint(rho if weights is None else rho * weights.unsqueeze(-1))
    to_reward = d.unsqueeze(-1) * pi
    g = to_reward * (Q_l - V_l.unsqueeze(-1)) / tau
    entropy = entropy_weight(mdp, tau)
    if isinstance(entropy, Tensor):  # a state that earns no entropy has a greedy policy
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
    """F(x), dF/dx, ``[dim]``, and the lower level's solution; the arguments are those of :func:`soft_leader_return`.

    Over one follower one factored matrix beside its own Newton steps. Games, an objective that is no return and a sparse
    model are left to autograd, through :func:`soft_leader_return`.
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
    """Values of the lower level's solution at the last x, ``[..., S]``; None before the first."""

    V: Tensor | None = None


class HypergradientMethod(ExactMethod):
    """x ascends F by its exact gradient; see :class:`Hypergradient`."""

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
    """Ascent on F by its exact gradient.

    Args:
        problem: a tabular problem, one over a zero-sum game or a linear-quadratic one, an environment that has one, or its id.
        config: steps, schedules, bounds.
        seed: kept for files; the method draws nothing.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Raises:
        ValueError: as :class:`TabularPBRL`; tau must be positive, over a linear-quadratic problem 0.
    """

    method_class = HypergradientMethod
