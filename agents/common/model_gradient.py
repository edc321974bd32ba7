"""x's gradient through the known model of a tabular problem, at the followers' policies in every state."""

from __future__ import annotations

import torch
from torch import Tensor

from ...envs.mdp import TabularMDP, policy_return
from ..followers.sb3 import SB3Follower
from .leader_gradient import GradientEstimate, LeaderGradient, PenaltyEstimate
from .worlds import Worlds


class ModelGradient(LeaderGradient):
    """The estimator of :class:`KnownModel`: the exact gradient at learned policies.

    Args:
        worlds: the environment, one that has a model.
    """

    def __init__(self, worlds: Worlds) -> None:
        assert worlds.problem is not None
        self.worlds, self.problem = worlds, worlds.problem

    def __call__(self, x: Tensor, hat: SB3Follower, pi_y: SB3Follower, lam: float) -> GradientEstimate:
        x = x.detach().requires_grad_()
        mdp = self._mdp(x)
        best, own = (self.worlds.policy(follower, x.detach()).reshape(mdp.r.shape) for follower in (hat, pi_y))
        returns = [policy_return(mdp, pi, self._tau(f)) for pi, f in ((best, hat), (own, pi_y))]
        gap = self.problem.over_contexts(returns[0] - returns[1])
        leader_return = self.problem.leader_return(x, own)
        (ascent,) = torch.autograd.grad(leader_return - lam * gap, [x])
        with torch.no_grad():
            p, gain = float(gap), float(leader_return - self.problem.leader_return(x, best))
        return GradientEstimate(ascent, PenaltyEstimate(p, 0.0, p + gain / lam, 0.0), 0)

    def _mdp(self, x: Tensor) -> TabularMDP:
        """M(x)."""
        return self.problem.follower_mdp(x)

    def _tau(self, follower: SB3Follower) -> float:
        """The weight of entropy in the follower's return."""
        return 0.0
