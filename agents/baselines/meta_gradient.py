r"""Meta-gradient (Yang et al. 2021, adaptive incentive design): differentiate the leader's return through the followers' step.

    theta' = theta + alpha grad_theta J_F(theta; x)             all players at once, each in the MDP that it faces
    x     += eta ( d_x J_L(x, theta') + (d theta'/dx)^T grad_theta' J_L(x, theta') )
    theta  = theta'

theta are softmax logits. The gradients are exact: autograd differentiates through the policy gradient, which takes two linear
solves. With K inner steps the leader's return is differentiated through all of them; the published method has K = 1. There is no
penalty on the followers' regret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...envs.mdp import policy_return
from ...envs.mdp.checks import check_size
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState
from ..held_policies import Softmax
from ..leader import Progress
from ..lower_levels import Policies, TabularLevel
from ..records import storable
from ..schedules import Geometric, Schedule, as_schedule


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class MetaGradientConfig(ExactConfig):
    """Options of :class:`MetaGradient`.

    Attributes:
        learning_rate: eta, the learning rate of x.
        inner_rate: alpha, the followers' learning rate, a number or a schedule. None takes 3 per unit of their rewards.
        inner_steps: K, number of the followers' gradient steps per iteration.
        keep_best: default False: the last x is kept, as in the publication.
    """

    learning_rate: float | Schedule = field(default_factory=lambda: Geometric(0.1, 0.01))
    inner_rate: float | Schedule | None = None
    inner_steps: int = 1
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner_rate is not None:
            as_schedule(self.inner_rate, "inner_rate", positive=True)
        check_size(self.inner_steps, "inner_steps")


def softmax_policies(level: TabularLevel, thetas: Policies) -> Policies:
    """Return pi_theta of each player."""
    return tuple(Softmax().policy(theta, view) for theta, view in zip(thetas, level.views, strict=True))


def followers_step(level: TabularLevel, model: Any, thetas: Policies, tau: float, alpha: float) -> Policies:
    """Return theta' of each player, ``[..., S, A_i]``: one gradient step up its own value.

    Args:
        level: the lower level of the players.
        model: the players' model at x, in x's graph.
        thetas: logits, ``[..., S, A_i]``, which require gradients.
        tau: temperature, in units of reward.
        alpha: the followers' learning rate.

    Returns:
        The new logits, in the graph of x and of ``thetas``.
    """
    pi = softmax_policies(level, thetas)
    values = [policy_return(mdp, own, tau).sum() for mdp, own in zip(level.faced(model, pi, tau), pi, strict=True)]
    pairs = zip(values, thetas, strict=True)
    return tuple(theta + alpha * torch.autograd.grad(value, theta, create_graph=True)[0] for value, theta in pairs)


@dataclass
class MetaGradientState(ExactState):
    """The state of :class:`MetaGradientMethod`: the players' logits."""

    thetas: tuple[Tensor, ...] = ()


class MetaGradientMethod(ExactMethod):
    """x ascends the leader's return after the followers' next step; see :class:`MetaGradient`."""

    config_class = MetaGradientConfig
    state_class = MetaGradientState
    levels = None

    def prepare(self, state: MetaGradientState, seed: int | None) -> None:
        state.thetas = tuple(Softmax().start(view) for view in self.level.views)

    def descend(self, state: MetaGradientState, progress: Progress) -> dict[str, float]:
        rate = 3.0 / self.unit if self.config.inner_rate is None else self.config.inner_rate
        level, alpha = self.level, as_schedule(rate, "inner_rate", positive=True)(progress.remaining)
        model, thetas = level.model(state.x), tuple(theta.requires_grad_() for theta in state.thetas)
        for _ in range(self.config.inner_steps):
            thetas = followers_step(level, model, thetas, state.tau, alpha)
        value = level.leader_return(state.x, softmax_policies(level, thetas))
        (state.x.grad,) = torch.autograd.grad(-value, state.x)
        state.thetas = tuple(theta.detach() for theta in thetas)
        return {}

    def policies(self, state: MetaGradientState, model: Any) -> Policies:
        return softmax_policies(self.level, state.thetas)


class MetaGradient(ExactLeader):
    """Gradient ascent on the leader's return after the followers' next step.

    Args:
        problem: a tabular problem, one over a zero-sum game, an environment that has one, or an environment's id.
        config: learning rates, schedules and bounds.
        seed: stored in files; the method uses no random numbers.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default 0, projected onto X.

    Example:
        >>> from bilevel_gym.agents import MetaGradient
        >>> leader = MetaGradient("bilevel_gym/incentive_design_v0").learn(50)
        >>> leader.history[-1].leader_return > leader.history[0].leader_return
        True
    """

    method_class = MetaGradientMethod
