r"""Independent policy gradient (Daskalakis et al. 2020): each level ascends its own value, nobody foresees anything.

x += alpha grad_x J_L(x, pi_y),      y_i += alpha grad_{y_i} V_i^{pi_y}(rho), each player i in the MDP that it faces

For optimisers that rescale gradients, such as Adam, each is measured in the unit of its player's rewards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ...envs.mdp import policy_return
from ...envs.mdp.checks import require
from ..exact import ExactLeader
from ..held_policies import Direct, HeldConfig, HeldMethod, HeldState, Softmax
from ..leader import Progress
from ..records import storable


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class IndependentPolicyGradientConfig(HeldConfig):
    """How :class:`IndependentPolicyGradient` learns.

    Attributes:
        follower: how pi_y is held, :class:`Softmax` or :class:`Direct`.
        estimator: ``MonteCarlo(...)`` takes gradients from episodes; None, the default, takes exact ones.
        keep_best: by default the last x is the answer, as the method is published.
    """

    follower: Softmax | Direct = field(default_factory=Softmax)
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "Softmax(...) or Direct(...)"
        require(isinstance(self.follower, (Softmax, Direct)), "follower", expected, repr(self.follower))


class IndependentMethod(HeldMethod):
    """Each player follows its own gradient; see :class:`IndependentPolicyGradient`."""

    config_class = IndependentPolicyGradientConfig
    state_class = HeldState

    def descend(self, state: Any, progress: Progress) -> dict[str, float]:
        state.held.set_rate(state.optimizer, self._rate(progress.remaining))
        level, x, pi_y = self.level, state.x, state.held.policies()
        if state.sampler is not None:
            (-level.sampled_independent(x, level.model(x), pi_y, state.tau, state.sampler)).backward()
            self._measure_own(state)
            return {}
        # J_L with the policies held, and each player's value with x and the others held.
        held = tuple(pi.detach() for pi in pi_y)
        faced = level.faced(level.model(x.detach()), held, state.tau)
        own = [policy_return(mdp, pi, state.tau) for mdp, pi in zip(faced, pi_y, strict=True)]
        value = level.leader_return(x, held) + self.problem.over_contexts(torch.stack(own).sum(0))
        (-value).backward()
        self._measure_own(state)
        return {}

    def _measure_own(self, state: HeldState) -> None:
        """Bring the players' gradients from their own unit to the leader's, by which all are divided; not in plain descent."""
        assert state.held is not None
        if isinstance(state.optimizer, torch.optim.SGD):
            return
        for y in state.held.ys:
            assert y.grad is not None
            y.grad *= self.leader_unit / self.unit


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
