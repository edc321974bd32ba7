r"""Independent policy gradient (Daskalakis et al. 2020): each level ascends its own value, nobody foresees anything.

x += alpha grad_x J_L(x, pi_y),      y_i += alpha grad_{y_i} V_i^{pi_y}(rho), each player i in the MDP that it faces
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ...envs.mdp import GameProblem, TabularProblem, policy_return
from ...envs.mdp.checks import require
from ..common.lower_level import Policies, TabularLevel
from ..common.policies import Direct, HeldPolicies, Softmax
from ..common.projected_step import Projection
from ..common.sampled_level import sampled_level
from ..common.storage import storable
from ..common.tabular import Kinds, ProblemSource, TabularLeader, TabularLeaderConfig
from ..estimators import MonteCarlo


@storable
@dataclass(frozen=True, eq=False)
class IndependentPolicyGradientConfig(TabularLeaderConfig):
    """How :class:`IndependentPolicyGradient` learns.

    Attributes:
        follower: how pi_y is held, :class:`Softmax` or :class:`Direct`.
        estimator: ``MonteCarlo(...)`` takes gradients from episodes; None, the default, takes exact ones.
        keep_best: by default the last x is the answer, as the method is published.
    """

    follower: Softmax | Direct = field(default_factory=Softmax)
    estimator: MonteCarlo | None = None
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "Softmax(...) or Direct(...)"
        require(isinstance(self.follower, (Softmax, Direct)), "follower", expected, repr(self.follower))


class IndependentPolicyGradient(TabularLeader):
    """Each player follows its own gradient: the method without a penalty.

    Args:
        problem: a tabular problem or one over a zero-sum game, an environment that has one, or its id.
        config: steps, schedules, bounds.
        seed: of a Monte Carlo estimator; exact gradients draw nothing.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Raises:
        ValueError: as :class:`TabularPBRL`.
    """

    config: IndependentPolicyGradientConfig
    _level: TabularLevel[Any, Any]
    _kinds: ClassVar[Kinds] = (TabularProblem, GameProblem)

    def __init__(
        self,
        problem: ProblemSource,
        config: IndependentPolicyGradientConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        self._held: HeldPolicies | None = None
        config = IndependentPolicyGradientConfig() if config is None else config
        super().__init__(problem, config, seed, env_kwargs, x0, positive_tau=False)
        self._sampled = sampled_level(self.problem, config.estimator, seed)

    def _parameters(self) -> list[dict[str, Any]]:
        if self._held is None:
            self._held = HeldPolicies(self.config.follower, self._level.views)
        return [*super()._parameters(), *self._held.groups()]

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        assert self._held is not None
        self._held.set_rate(self.optimizer.param_groups[1:], self._rate(progress_remaining))
        level, pi_y = self._level, self._held.policies()
        if self._sampled is not None:
            (-self._sampled.independent(self._x, level.model(self._x), pi_y, self.tau)).backward()
            return {}
        held = tuple(pi.detach() for pi in pi_y)
        faced = level.faced(level.model(self._x.detach()), held, self.tau)
        own = [policy_return(mdp, pi, self.tau) for mdp, pi in zip(faced, pi_y, strict=True)]
        value = level.leader_return(self._x, held) + self.problem.over_contexts(torch.stack(own).sum(0))
        (-value).backward()
        return {}

    def _projections(self) -> list[Projection]:
        assert self._held is not None
        return [*super()._projections(), *self._held.projections()]

    def _policies(self, model: Any) -> Policies:
        assert self._held is not None
        return self._held.policies()

    def _state(self) -> dict[str, Any]:
        assert self._held is not None
        return {"ys": self._held.state(), "sampled": None if self._sampled is None else self._sampled.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        assert self._held is not None
        self._held.restore(state["ys"])
        if self._sampled is not None:
            self._sampled.restore(state["sampled"])

    def _steps(self) -> int:
        return 0 if self._sampled is None else self._sampled.sampler.steps
