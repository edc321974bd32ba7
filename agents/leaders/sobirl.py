r"""M-SoBiRL: the implicit hypergradient with tracked follower and adjoint, updated by a few sweeps and one step per iteration.

Source: Yang, Gao and Yuan, arXiv 2405.19697 (AISTATS 2025). V approximates the follower's soft value and u the adjoint; both
start where the last iteration left them. With ``pi(x,V) = softmax(Q/tau)``, ``Q = r_x + gamma P_x V``,

    V <- T(x, V)                                                  ``sweeps`` times; contracts at gamma
    u <- d_V J_L(x, pi(x,V)) + gamma P_pi^T u                     ``adjoint_steps`` times; contracts at gamma
    g  = d_x J_L(x, pi(x,V)) + u^T d_x T(x, V)
    x <- Proj_X( x + alpha g )

At the fixed point V = T(x, V) and ``u = (I - gamma P_pi)^{-T} d_V J_L``, so g is the exact hypergradient of
:class:`Hypergradient`; no linear system is solved. The error of g comes from those of V and u, which shrink by ``gamma^sweeps``
and ``gamma^adjoint_steps`` per iteration and grow as x moves: it vanishes with the steps of x.

The published code instead takes a gradient step of 0.5 on ``|(I - gamma P_pi)^T u - b|^2 / 2``: the same fixed point, but one
more constant, and a slowest direction that shrinks by ``1 - (1-gamma)^2 / 2`` at best.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.mdp import TabularMDP, TabularProblem, action_value, soft_maximum, soft_policy, value_iteration
from ...envs.mdp.checks import check_size
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState
from ..leader import Progress
from ..lower_levels import Policies
from ..records import storable
from ..schedules import Schedule


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class SoBiRLConfig(ExactConfig):
    """Options of :class:`SoBiRL`; tau must be positive, and None anneals it as :class:`Hypergradient` does.

    Attributes:
        sweeps: number of applications of T to the follower's value per iteration.
        adjoint_steps: number of adjoint steps per iteration.
    """

    sweeps: int = 10
    adjoint_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.sweeps, "sweeps")
        check_size(self.adjoint_steps, "adjoint_steps")


def tracked_hypergradient(
    problem: TabularProblem, x: Tensor, tau: float, V: Tensor, u: Tensor, adjoint_steps: int = 1
) -> tuple[Tensor, Tensor]:
    """Return g, ``[dim]``, and the next u, ``[..., S]``, of the formulas above, given x ``[dim]``, V and u ``[..., S]``."""
    x, V = x.detach().requires_grad_(), V.detach().requires_grad_()
    mdp = problem.follower_mdp(x)
    Q = action_value(mdp, V)
    TV = soft_maximum(mdp, Q, tau)
    value = problem.leader_return(x, soft_policy(mdp, Q, tau))
    direct, source = torch.autograd.grad(value, (x, V), retain_graph=True, materialize_grads=True)
    for _ in range(adjoint_steps):
        (carried,) = torch.autograd.grad(TV, V, u, retain_graph=True)
        u = source + carried
    (through_follower,) = torch.autograd.grad(TV, x, u, materialize_grads=True)
    return direct + through_follower, u


@dataclass
class SoBiRLState(ExactState):
    """The state of :class:`SoBiRLMethod`: tracked value and adjoint, ``[..., S]``; None, for 0, before the first iteration."""

    V: Tensor | None = None
    u: Tensor | None = None


class SoBiRLMethod(ExactMethod):
    """Ascent on F by the tracked hypergradient; see :class:`SoBiRL`."""

    config_class = SoBiRLConfig
    state_class = SoBiRLState
    positive_tau = True

    def default_tau(self) -> Schedule:
        return self.annealed(0.3)

    def descend(self, state: SoBiRLState, progress: Progress) -> dict[str, float]:
        x = state.x.detach()
        mdp = self.problem.follower_mdp(x)
        V = _or_zero(state.V, mdp)
        u = _or_zero(state.u, mdp)
        state.V = value_iteration(mdp, state.tau, V, self.config.sweeps)
        gradient, state.u = tracked_hypergradient(self.problem, x, state.tau, state.V, u, self.config.adjoint_steps)
        state.x.grad = -gradient
        return {"adjoint_change": float((state.u - u).abs().max()), "gradient_norm": float(gradient.norm())}

    def policies(self, state: SoBiRLState, model: TabularMDP) -> Policies:
        return (soft_policy(model, action_value(model, _or_zero(state.V, model)), state.tau),)


def _or_zero(table: Tensor | None, mdp: TabularMDP) -> Tensor:
    return torch.zeros((*mdp.batch_shape, mdp.n_states), dtype=mdp.r.dtype) if table is None else table


class SoBiRL(ExactLeader):
    """Ascent on F by the tracked hypergradient (M-SoBiRL).

    Args:
        problem: a tabular problem, an environment that has one, or an environment's id.
        config: learning rate, sweeps, schedules and bounds.
        seed: stored in files; the method uses no random numbers.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default the problem's, projected onto X.

    Raises:
        ValueError: see :class:`TabularPBRL`; also if tau is not positive.
    """

    method_class = SoBiRLMethod
