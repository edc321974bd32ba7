r"""Meta-gradient (Yang et al. 2021, adaptive incentive design): differentiate the leader's return through the followers' step.

    theta' = theta + alpha grad_theta J_F(theta; x)             each player in the MDP that it faces, at once
    x     += eta ( d_x J_L(x, theta') + (d theta'/dx)^T grad_theta' J_L(x, theta') )
    theta  = theta'

theta are softmax logits. The gradients are exact: autograd differentiates the policy gradient, itself two linear solves, once
more. With K inner steps the leader's return is differentiated through all of them; the published method has K = 1. There
is no penalty: the followers' slack is not held against x.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ...envs.mdp import GameProblem, TabularProblem, policy_return
from ...envs.mdp.checks import check_size
from ..common.lower_level import Policies, TabularLevel
from ..common.policies import Softmax
from ..common.storage import storable
from ..common.tabular import Kinds, ProblemSource, TabularLeader, TabularLeaderConfig
from ..schedules import Geometric, Schedule, as_schedule


@storable
@dataclass(frozen=True, eq=False)
class MetaGradientConfig(TabularLeaderConfig):
    """How :class:`MetaGradient` learns.

    Attributes:
        learning_rate: eta, the step of x.
        inner_rate: alpha, the followers' plain gradient step; a number or a schedule.
        inner_steps: K, steps of the followers in an iteration.
        keep_best: by default the last x is the answer, as the method is published.
    """

    learning_rate: float | Schedule = field(default_factory=lambda: Geometric(0.1, 0.01))
    inner_rate: float | Schedule = 3.0
    inner_steps: int = 1
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        as_schedule(self.inner_rate, "inner_rate", positive=True)
        check_size(self.inner_steps, "inner_steps")


def softmax_policies(level: TabularLevel[Any, Any], thetas: Policies) -> Policies:
    """pi_theta of each player."""
    return tuple(Softmax().policy(theta, view) for theta, view in zip(thetas, level.views, strict=True))


def followers_step(level: TabularLevel[Any, Any], model: Any, thetas: Policies, tau: float, alpha: float) -> Policies:
    """theta' of each player, ``[..., S, A_i]``: one step up its own value.

    Args:
        level: the players.
        model: their model at x, carrying x's graph.
        thetas: logits, ``[..., S, A_i]``, each requiring a gradient.
        tau: temperature.
        alpha: the step.

    Returns:
        The logits after it, carrying the graph of x and of ``thetas``.
    """
    pi = softmax_policies(level, thetas)
    values = [policy_return(mdp, own, tau).sum() for mdp, own in zip(level.faced(model, pi, tau), pi, strict=True)]
    pairs = zip(values, thetas, strict=True)
    return tuple(theta + alpha * torch.autograd.grad(value, theta, create_graph=True)[0] for value, theta in pairs)


class MetaGradient(TabularLeader):
    """Ascent on the leader's return after the followers' next step.

    Args:
        problem: a tabular problem or one over a zero-sum game, an environment that has one, or its id.
        config: steps, schedules, bounds.
        seed: kept for files; the method draws nothing.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Example:
        >>> from bilevel_gym.agents import MetaGradient
        >>> leader = MetaGradient("bilevel_gym/incentive_design_v0").learn(50)
        >>> leader.history[-1].leader_return > leader.history[0].leader_return
        True
    """

    config: MetaGradientConfig
    _level: TabularLevel[Any, Any]
    _kinds: ClassVar[Kinds] = (TabularProblem, GameProblem)

    def __init__(
        self,
        problem: ProblemSource,
        config: MetaGradientConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        config = MetaGradientConfig() if config is None else config
        super().__init__(problem, config, seed, env_kwargs, x0, positive_tau=False)
        self._inner_rate = as_schedule(config.inner_rate, "inner_rate", positive=True)
        self._thetas: Policies = tuple(Softmax().start(view) for view in self._level.views)

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        level, alpha = self._level, self._inner_rate(progress_remaining)
        model, thetas = level.model(self._x), tuple(theta.requires_grad_() for theta in self._thetas)
        for _ in range(self.config.inner_steps):
            thetas = followers_step(level, model, thetas, self.tau, alpha)
        value = level.leader_return(self._x, softmax_policies(level, thetas))
        (self._x.grad,) = torch.autograd.grad(-value, self._x)
        self._thetas = tuple(theta.detach() for theta in thetas)
        return {}

    def _policies(self, model: Any) -> Policies:
        return softmax_policies(self._level, self._thetas)

    def _state(self) -> dict[str, Any]:
        return {"thetas": list(self._thetas)}

    def _restore(self, state: dict[str, Any]) -> None:
        self._thetas = tuple(state["thetas"])
