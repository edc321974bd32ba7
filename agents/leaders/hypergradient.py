r"""The exact hypergradient of F(x) = J_L(x, pi*_tau(x)), by the implicit function theorem on V* = T(x, V*):

    dF/dx = d_x J_L(x, pi(x,V))|_{V=V*}  +  (d_V J_L)^T (I - gamma P_{pi*})^{-1} d_x T(x, V*)

one adjoint solve beside the follower's Newton solve. Needs tau > 0; annealing tau leads to the unregularised problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from torch import Tensor

from ...envs.mdp import SoftOptimum, TabularMDP, TabularProblem, attach, solve_soft
from ..common.storage import storable
from ..common.tabular import TabularLeader, TabularLeaderConfig
from ..schedules import Schedule


@storable
@dataclass(frozen=True, eq=False)
class HypergradientConfig(TabularLeaderConfig):
    """How :class:`Hypergradient` learns: tau is positive; None anneals it from 0.3 to ``problem.tau0``, at least 0.003."""


def soft_leader_return(
    problem: TabularProblem, x: Tensor, tau: float, warm: SoftOptimum | None = None
) -> tuple[Tensor, SoftOptimum]:
    """F(x) = J_L(x, pi*_tau(x)), a scalar whose gradient in x is the exact hypergradient, and the follower's optimum."""
    mdp = problem.follower_mdp(x)
    optimum = solve_soft(mdp.detach(), tau, None if warm is None else warm.V)
    return problem.leader_return(x, attach(mdp, tau, optimum).pi), optimum


class Hypergradient(TabularLeader):
    """Ascent on F by its exact gradient.

    Args:
        problem: a tabular problem, an environment that has one, or its id.
        config: steps, schedules, bounds.
        seed: kept for files; the method draws nothing.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Raises:
        ValueError: as :class:`TabularPBRL`; tau must be positive.
    """

    def __init__(
        self,
        problem: TabularProblem | gym.Env[Any, Any] | str,
        config: HypergradientConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        self._follower: SoftOptimum | None = None
        super().__init__(
            problem, HypergradientConfig() if config is None else config, seed, env_kwargs, x0, positive_tau=True
        )

    def _default_tau(self) -> Schedule:
        return self._annealed(0.3)

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        value, self._follower = soft_leader_return(self.problem, self._x, self.tau, self._follower)
        (-value).backward()
        assert self._x.grad is not None
        return {"oracle_residual": self._follower.residual, "gradient_norm": float(self._x.grad.norm())}

    def _pi_y(self, mdp: TabularMDP) -> Tensor:
        return solve_soft(mdp, self.tau, None if self._follower is None else self._follower.V).pi

    def _state(self) -> dict[str, Any]:
        return {} if self._follower is None else vars(self._follower)

    def _restore(self, state: dict[str, Any]) -> None:
        self._follower = SoftOptimum(**state) if state else None
