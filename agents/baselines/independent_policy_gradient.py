r"""Independent policy gradient (Daskalakis et al. 2020): each level ascends its own value and ignores the others' reactions.

x += alpha grad_x J_L(x, pi_y),      y_i += alpha grad_{y_i} V_i^{pi_y}(rho), for each player i in the MDP that it faces

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
    """Options of :class:`IndependentPolicyGradient`.

    Attributes:
        follower: how pi_y is parametrised, :class:`Softmax` or :class:`Direct`.
        estimator: ``MonteCarlo(...)`` estimates gradients from episodes; None, the default, computes exact ones.
        keep_best: default False: the last x is kept, as in the publication.
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
        # J_L at fixed policies, and each player's value at fixed x and other policies.
        held = tuple(pi.detach() for pi in pi_y)
        faced = level.faced(level.model(x.detach()), held, state.tau)
        own = [policy_return(mdp, pi, state.tau) for mdp, pi in zip(faced, pi_y, strict=True)]
        value = level.leader_return(x, held) + self.problem.over_contexts(torch.stack(own).sum(0))
        (-value).backward()
        self._measure_own(state)
        return {}

    def _measure_own(self, state: HeldState) -> None:
        """Convert the players' gradients from their own unit to the leader's, which divides all; not for plain descent."""
        assert state.held is not None
        if isinstance(state.optimizer, torch.optim.SGD):
            return
        for y in state.held.ys:
            assert y.grad is not None
            y.grad *= self.leader_unit / self.unit


class IndependentPolicyGradient(ExactLeader):
    """Gradient ascent of each player on its own return, without a penalty.

    Args:
        problem: a tabular problem, one over a zero-sum game, an environment that has one, or an environment's id.
        config: learning rates, schedules and bounds.
        seed: seed of a Monte Carlo estimator; unused by exact gradients.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default 0, projected onto X.

    Raises:
        ValueError: see :class:`TabularPBRL`.
    """

    method_class = IndependentMethod
