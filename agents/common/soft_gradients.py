r"""x's gradient over the followers of the sampled Bellman penalty, p = V_tau^{pi*}(rho) - V_tau^{pi_y}(rho).

The estimators of the value penalty with every return of the follower's regularised, ``r_f - tau h(pi)`` a step. The entropy
has no gradient in x while the policies are held, so that where x enters rewards alone it is not felt; where x moves what is
drawn, the return to go G_t beside ``grad_x log p_x`` holds the entropy of later steps.

A learned follower is not told that a step is an episode's last: here every step earns its entropy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp import TabularMDP, TabularProblem, negative_entropy
from ..followers.sb3 import SB3Follower
from ..followers.soft_q import SoftQFollower
from .model_gradient import ModelGradient
from .rollout_gradient import RolloutGradient
from .rollouts import Act, Rollout


def lived_mdp(problem: TabularProblem, x: Tensor) -> TabularMDP:
    """M(x) as learned followers live in it: every step earns entropy, missing actions that simulators take are actions."""
    mdp = problem.follower_mdp(x)
    mask = None if problem.takes_missing_actions else mdp.mask
    return replace(mdp, mask=mask, terminal_entropy=True, validate=False)


class SoftModelGradient(ModelGradient):
    """The estimator of ``KnownModel``: the exact gradient at learned policies."""

    def _mdp(self, x: Tensor) -> TabularMDP:
        return lived_mdp(self.problem, x)

    def _tau(self, follower: SB3Follower) -> float:
        assert isinstance(follower, SoftQFollower)
        return follower.temperature


class SoftRolloutGradient(RolloutGradient):
    """The estimator of ``Rollouts``. Both followers' actions come from the same random numbers: they are near each other."""

    def _act(self, follower: SB3Follower, seed: int) -> Act:
        assert isinstance(follower, SoftQFollower)
        return follower.coupled_player(seed)

    def _paid(self, rollout: Rollout, follower: SB3Follower) -> NDArray[np.float64]:
        assert isinstance(follower, SoftQFollower)
        T, N = rollout.alive.shape
        pi = torch.from_numpy(follower.probabilities(rollout.obs.reshape(T * N, *rollout.obs.shape[2:])))
        bonus: NDArray[np.float64] = -follower.temperature * negative_entropy(pi).numpy().reshape(T, N)
        return rollout.r_follower + bonus
