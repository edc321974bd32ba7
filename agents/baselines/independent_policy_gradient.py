r"""Independent policy gradient (Daskalakis et al. 2020): each level ascends its own value, nobody foresees anything.

x += alpha grad_x J_L(x, pi_y),      y += alpha grad_y V_x^{pi_y}(rho)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from torch import Tensor

from ...envs.mdp import TabularMDP, TabularProblem, policy_return
from ..common.policies import Direct, Softmax
from ..common.projected_step import Projection
from ..common.storage import storable
from ..common.tabular import TabularLeader, TabularLeaderConfig


@storable
@dataclass(frozen=True, eq=False)
class IndependentPolicyGradientConfig(TabularLeaderConfig):
    """How :class:`IndependentPolicyGradient` learns.

    Attributes:
        follower: how pi_y is held, :class:`Softmax` or :class:`Direct`.
        keep_best: by default the last x is the answer, as the method is published.
    """

    follower: Softmax | Direct = field(default_factory=Softmax)
    keep_best: bool = False


class IndependentPolicyGradient(TabularLeader):
    """The method without a penalty, exact.

    Args:
        problem: a tabular problem, an environment that has one, or its id.
        config: steps, schedules, bounds.
        seed: kept for files; the method draws nothing.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.
    """

    config: IndependentPolicyGradientConfig

    def __init__(
        self,
        problem: TabularProblem | gym.Env[Any, Any] | str,
        config: IndependentPolicyGradientConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        self._y: Tensor | None = None
        config = IndependentPolicyGradientConfig() if config is None else config
        super().__init__(problem, config, seed, env_kwargs, x0, positive_tau=False)

    def _parameters(self) -> list[dict[str, Any]]:
        if self._y is None:
            self._y = self.config.follower.start(self.problem.follower_mdp(self._x.detach())).requires_grad_()
        groups = super()._parameters()
        rate = self.config.follower.learning_rate
        groups.append({"params": [self._y]} if rate is None else {"params": [self._y], "lr": rate})
        return groups

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        assert self._y is not None
        if self.config.follower.learning_rate is None:
            self.optimizer.param_groups[1]["lr"] = self._rate(progress_remaining)
        held = self.problem.follower_mdp(self._x.detach())
        pi_y = self.config.follower.policy(self._y, held)
        own_value = self.problem.over_contexts(policy_return(held, pi_y, self.tau))
        (-self.problem.leader_return(self._x, pi_y.detach()) - own_value).backward()
        return {}

    def _projections(self) -> list[Projection]:
        mdp = self.problem.follower_mdp(self._x.detach())
        return [*super()._projections(), lambda y: self.config.follower.project(y, mdp)]

    def _pi_y(self, mdp: TabularMDP) -> Tensor:
        assert self._y is not None
        return self.config.follower.policy(self._y.detach(), mdp)

    def _state(self) -> dict[str, Any]:
        return {"y": None if self._y is None else self._y.detach()}

    def _restore(self, state: dict[str, Any]) -> None:
        if state["y"] is not None:
            self._y = state["y"].requires_grad_()
