r"""Zero-order leader: the gradient of F(x) = J_L(x, pi*_tau(x)) from values alone, by two-point Gaussian smoothing.

    g = (1/n) sum_i [ F(x + u Z_i) - F(x - u Z_i) ] / (2u) Z_i,      Z_i standard normal,

whose expectation is the gradient of the smoothed E F(x + u Z) (Nesterov and Spokoiny, Random gradient-free minimization
of convex functions, 2017); for one direction of a linear F its mean square is dim + 2 times the gradient's. Each value asks
for the follower solved anew: all 2n are solved in one batch. Points outside X are projected on it first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...envs.mdp.checks import check_size
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState, generator
from ..leader import Progress
from ..records import storable
from ..schedules import Schedule, as_schedule


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class ZeroOrderConfig(ExactConfig):
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


@dataclass
class ZeroOrderState(ExactState):
    """What zero-order ascent goes on from.

    Attributes:
        generator: of the directions.
        V: values that the solver starts from, ``[..., S]``; None before the first iteration.
        evaluations: values of F asked for so far.
    """

    generator: Any = None
    V: Tensor | None = None
    evaluations: int = 0


class ZeroOrderMethod(ExactMethod):
    """x ascends F by differences of its values; see :class:`ZeroOrder`."""

    config_class = ZeroOrderConfig
    state_class = ZeroOrderState
    estimates = True

    def prepare(self, state: ZeroOrderState, seed: int | None) -> None:
        state.generator = generator(seed)

    def descend(self, state: ZeroOrderState, progress: Progress) -> dict[str, float]:
        u = as_schedule(self.config.smoothing, "smoothing", positive=True)(progress.remaining)
        x, n = state.x.detach(), self.config.directions
        Z = torch.randn((n, len(x)), generator=state.generator, dtype=x.dtype)
        points = self.leader_set.project(torch.cat([x + u * Z, x - u * Z]))
        F, V = self.level.leader_returns(points, state.tau, state.V)
        state.V = V.mean(0)
        state.evaluations += 2 * n
        gradient = ((F[:n] - F[n:]) / (2.0 * u)) @ Z / n
        state.x.grad = -gradient
        return {"evaluations": float(state.evaluations), "gradient_norm": float(gradient.norm())}


class ZeroOrder(ExactLeader):
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

    method_class = ZeroOrderMethod
