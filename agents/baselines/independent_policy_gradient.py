r"""Independent policy gradient (Daskalakis et al. 2020): each level ascends its own value, nobody foresees anything.

x += alpha grad_x J_L(x, pi_y),      y_i += alpha grad_{y_i} V_i^{pi_y}(rho), each player i in the MDP that it faces
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ...envs.mdp import policy_return
from ...envs.mdp.checks import require
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState, generator
from ..held_policies import Direct, HeldPolicies, Softmax
from ..leader import Progress, Projection
from ..lower_levels import Policies
from ..monte_carlo import MonteCarlo, Sampler
from ..records import storable


@storable
@dataclass(frozen=True, eq=False)
class IndependentPolicyGradientConfig(ExactConfig):
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
        exact = self.estimator is None or isinstance(self.estimator, MonteCarlo)
        require(exact, "config.estimator", "MonteCarlo(...) or None, exact", repr(self.estimator))


@dataclass
class IndependentState(ExactState):
    """The players' policies and their parameters y; what plays for a Monte Carlo estimator, or None."""

    held: HeldPolicies = None  # type: ignore[assignment]  # made by prepare
    sampler: Sampler | None = None


class IndependentMethod(ExactMethod):
    """Each player follows its own gradient; see :class:`IndependentPolicyGradient`."""

    config_class = IndependentPolicyGradientConfig
    state_class = IndependentState
    levels = None

    def __init__(self, problem: Any, config: Any = None, env_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(problem, config, env_kwargs)
        if self.config.estimator is not None:
            self.level.require_return()

    def prepare(self, state: IndependentState, seed: int | None) -> None:
        state.held = HeldPolicies(self.config.follower, self.level.views)
        if self.config.estimator is not None:
            state.sampler = Sampler(self.config.estimator, generator(seed))

    def parameters(self, state: IndependentState) -> list[dict[str, Any]]:
        return [*super().parameters(state), *state.held.groups()]

    def projections(self, state: IndependentState) -> list[Projection]:
        return [*super().projections(state), *state.held.projections()]

    def descend(self, state: IndependentState, progress: Progress) -> dict[str, float]:
        state.held.set_rate(state.optimizer, self._rate(progress.remaining))
        level, x, pi_y = self.level, state.x, state.held.policies()
        if state.sampler is not None:
            (-level.sampled_independent(x, level.model(x), pi_y, state.tau, state.sampler)).backward()
            return {}
        # J_L with the policies held, and each player's value with x and the others held.
        held = tuple(pi.detach() for pi in pi_y)
        faced = level.faced(level.model(x.detach()), held, state.tau)
        own = [policy_return(mdp, pi, state.tau) for mdp, pi in zip(faced, pi_y, strict=True)]
        value = level.leader_return(x, held) + self.problem.over_contexts(torch.stack(own).sum(0))
        (-value).backward()
        return {}

    def policies(self, state: IndependentState, model: Any) -> Policies:
        return state.held.policies()

    def sampled_steps(self, state: IndependentState) -> int:
        return 0 if state.sampler is None else int(state.sampler.steps)


class IndependentPolicyGradient(ExactLeader):
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

    method_class = IndependentMethod
