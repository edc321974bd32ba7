r"""Zero-order leader: the gradient of F(x) = J_L(x, pi*_tau(x)) from its values, by two-point Gaussian smoothing.

    g = (1/n) sum_i [ F(x + u Z_i) - F(x - u Z_i) ] / (2u) Z_i,      Z_i standard normal,

whose expectation is the gradient of the smoothed E F(x + u Z) (Nesterov and Spokoiny, Random gradient-free minimization of convex
functions, 2017). For one direction and a linear F, its mean square is dim + 2 times that of the gradient. Each value needs the
solution of the follower; all 2n are solved in one batch. Points outside X are first projected onto it.
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
    """Options of :class:`ZeroOrder`.

    Attributes:
        tau: temperature in units of reward; None takes the problem's own.
        directions: n, pairs of values per iteration.
        smoothing: u, a number or a schedule, positive.
        keep_best: default False: the last x is kept, as in the publication.
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
    """The state that zero-order ascent continues from.

    Attributes:
        generator: random generator of the directions.
        V: the solver's initial values, ``[..., S]``; None before the first iteration.
        evaluations: number of values of F computed so far.
    """

    generator: Any = None
    V: Tensor | None = None
    evaluations: int = 0


class ZeroOrderMethod(ExactMethod):
    """Ascent on F by differences of its values; see :class:`ZeroOrder`."""

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
        problem: a tabular problem, an environment that has one, or an environment's id.
        config: learning rate, directions, schedules and bounds.
        seed: seed of the directions.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default 0, projected onto X.

    Attributes:
        evaluations: number of values of F computed so far, each with a new follower, without those of evaluations.

    Example:
        >>> from bilevel_gym.agents import ZeroOrder
        >>> leader = ZeroOrder("bilevel_gym/TwoState-v0", x0=[0.5]).learn(20)
        >>> leader.evaluations
        320
    """

    method_class = ZeroOrderMethod
