r"""M-SoBiRL: the implicit hypergradient with the follower and the adjoint tracked, a few sweeps and one step a turn.

Source of the method: Yang, Gao and Yuan, arXiv 2405.19697 (AISTATS 2025). V stands for the follower's soft value, u for the
adjoint; both start where the last turn left them. With ``pi(x,V) = softmax(Q/tau)``, ``Q = r_x + gamma P_x V``,

    V <- T(x, V)                                                  ``sweeps`` times; contracts at gamma
    u <- d_V J_L(x, pi(x,V)) + gamma P_pi^T u                     ``adjoint_steps`` times; contracts at gamma
    g  = d_x J_L(x, pi(x,V)) + u^T d_x T(x, V)
    x <- Proj_X( x + alpha g )

At the fixed point V = T(x, V) and ``u = (I - gamma P_pi)^{-T} d_V J_L``, so g is the exact hypergradient of
:class:`Hypergradient`; no linear system is solved. The error of g follows those of V and u, which shrink by ``gamma^sweeps`` and
``gamma^adjoint_steps`` a turn against what x moves: it vanishes with the steps of x.

The published code takes a step of 0.5 down ``|(I - gamma P_pi)^T u - b|^2 / 2`` in place of the fixed-point step: the same fixed
point, one more constant, and a slowest direction that shrinks by ``1 - (1-gamma)^2 / 2`` at best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from ...envs.mdp import TabularMDP, TabularProblem, action_value, soft_maximum, soft_policy, value_iteration
from ...envs.mdp.checks import check_size
from ..common.storage import storable
from ..common.tabular import TabularLeader, TabularLeaderConfig
from ..schedules import Schedule


@storable
@dataclass(frozen=True, eq=False)
class SoBiRLConfig(TabularLeaderConfig):
    """How :class:`SoBiRL` learns; tau is positive, and None anneals it as :class:`Hypergradient` does.

    Attributes:
        sweeps: applications of T to the follower's value a turn.
        adjoint_steps: steps of the adjoint a turn.
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
    """g, ``[dim]``, and the next u, ``[..., S]``, of the formulas above, from x ``[dim]``, V and u ``[..., S]``."""
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


class SoBiRL(TabularLeader):
    """Ascent on F by the tracked hypergradient.

    Args:
        problem: a tabular problem, an environment that has one, or its id.
        config: steps, sweeps, schedules, bounds.
        seed: kept for files; the method draws nothing.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default the problem's, projected on X.

    Raises:
        ValueError: as :class:`TabularPBRL`; tau must be positive.
    """

    config: SoBiRLConfig

    def __init__(
        self,
        problem: TabularProblem | gym.Env[Any, Any] | str,
        config: SoBiRLConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        self._V: Tensor | None = None
        self._u: Tensor | None = None
        super().__init__(problem, SoBiRLConfig() if config is None else config, seed, env_kwargs, x0, positive_tau=True)

    def _default_tau(self) -> Schedule:
        return self._annealed(0.3)

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        x = self._x.detach()
        mdp = self.problem.follower_mdp(x)
        V, u = self._values(mdp), self._u
        u = torch.zeros_like(V) if u is None else u
        self._V = value_iteration(mdp, self.tau, V, self.config.sweeps)
        gradient, self._u = tracked_hypergradient(self.problem, x, self.tau, self._V, u, self.config.adjoint_steps)
        self._x.grad = -gradient
        return {"adjoint_change": float((self._u - u).abs().max()), "gradient_norm": float(gradient.norm())}

    def _values(self, mdp: TabularMDP) -> Tensor:
        """The tracked V, ``[..., S]``; 0 before the first turn."""
        return torch.zeros((*mdp.batch_shape, mdp.n_states), dtype=mdp.r.dtype) if self._V is None else self._V

    def _pi_y(self, mdp: TabularMDP) -> Tensor:
        return soft_policy(mdp, action_value(mdp, self._values(mdp)), self.tau)

    def _state(self) -> dict[str, Any]:
        return {} if self._V is None else {"V": self._V, "u": self._u}

    def _restore(self, state: dict[str, Any]) -> None:
        self._V, self._u = state.get("V"), state.get("u")
