r"""Zero-order leader: the gradient of F(x) = J_L(x, pi*_tau(x)) from values alone, by two-point Gaussian smoothing.

    g = (1/n) sum_i [ F(x + u Z_i) - F(x - u Z_i) ] / (2u) Z_i,      Z_i standard normal,

whose expectation is the gradient of the smoothed E F(x + u Z) (Nesterov and Spokoiny, Random gradient-free minimization
of convex functions, 2017); for one direction of a linear F its mean square is dim + 2 times the gradient's. Each value asks
for the follower solved anew: all 2n are solved in one batch. Points outside X are projected on it first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from ...envs.mdp import TabularMDP, TabularProblem, solve_soft
from ...envs.mdp.checks import check_size
from ..common.many_returns import leader_returns
from ..common.storage import storable
from ..common.tabular import TabularLeader, TabularLeaderConfig
from ..schedules import Schedule, as_schedule


@storable
@dataclass(frozen=True, eq=False)
class ZeroOrderConfig(TabularLeaderConfig):
    """How :class:`ZeroOrder` learns.

    Attributes:
        tau: temperature; None takes the problem's own.
        directions: n, pairs of values an iteration.
        smoothing: u, a number or a schedule, positive.
        keep_best: by default the last x is the answer, as the method is published.
    """

    directions: int = 8
    smoothing: float | Schedule = 0.1
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.directions, "directions")
        as_schedule(self.smoothing, "smoothing", positive=True)


class ZeroOrder(TabularLeader):
    """Ascent on F by differences of its values.

    Args:
        problem: a tabular problem, an environment that has one, or its id.
        config: steps, directions, schedules, bounds.
        seed: of the directions.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Attributes:
        evaluations: values of F asked for so far, each a follower solved anew; honest evaluations come on top.

    Example:
        >>> from bilevel_gym.agents import ZeroOrder
        >>> leader = ZeroOrder("bilevel_gym/TwoState-v0", x0=[0.5]).learn(20)
        >>> leader.evaluations
        320
    """

    config: ZeroOrderConfig

    def __init__(
        self,
        problem: TabularProblem | gym.Env[Any, Any] | str,
        config: ZeroOrderConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        self.evaluations = 0
        self._V: Tensor | None = None
        config = ZeroOrderConfig() if config is None else config
        super().__init__(problem, config, seed, env_kwargs, x0, positive_tau=False)
        self._generator = torch.Generator()
        self._generator.seed() if seed is None else self._generator.manual_seed(int(seed))

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        u = as_schedule(self.config.smoothing, "smoothing", positive=True)(progress_remaining)
        x, n = self._x.detach(), self.config.directions
        Z = torch.randn((n, len(x)), generator=self._generator, dtype=x.dtype)
        points = self.leader_set.project(torch.cat([x + u * Z, x - u * Z]))
        F, V = leader_returns(self.problem, points, self.tau, self._V)
        self._V = V.mean(0)
        self.evaluations += 2 * n
        gradient = ((F[:n] - F[n:]) / (2.0 * u)) @ Z / n
        self._x.grad = -gradient
        return {"evaluations": float(self.evaluations), "gradient_norm": float(gradient.norm())}

    def _pi_y(self, mdp: TabularMDP) -> Tensor:
        return solve_soft(mdp, self.tau).pi

    def _state(self) -> dict[str, Any]:
        return {"V": self._V, "generator": self._generator.get_state(), "evaluations": self.evaluations}

    def _restore(self, state: dict[str, Any]) -> None:
        self._V, self.evaluations = state["V"], state["evaluations"]
        self._generator.set_state(state["generator"])
