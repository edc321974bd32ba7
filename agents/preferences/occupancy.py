r"""What a follower's recorded steps say of its value under the learned reward, and how that moves with x.

    (1 - gamma) V_x^pi(rho) = sum_t w_t r_x(s_t, a_t),      w_t = gamma^t / ( sum_t gamma^t + sum_ends gamma^T / (1 - gamma) )

over steps numbered within their episodes; T is the length of an episode that ended by itself, after which nothing is paid. Of
an episode that is cut, what lies beyond is taken to be like what was seen. By Lemma 7a (arXiv 2402.06886) the gradient in x,
the policy held, is the same sum of grad_x r_x. Without a discount, w is uniform and the sum is the mean reward of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...wrappers.segments import TERMINATED, SegmentRecorder, Steps
from .reward_model import RewardModel


@dataclass(frozen=True, eq=False)
class Occupancy:
    """Steps and their weights.

    Attributes:
        obs: ``[B, ...]``.
        actions: ``[B, ...]``.
        weight: ``[B]``.
    """

    obs: Tensor
    actions: Tensor
    weight: Tensor

    def mean_reward(self, model: RewardModel) -> Tensor:
        """Each member's ``(1 - gamma) V_x``, not normalised, ``[M]``, differentiable in the weights."""
        r: Tensor = model(self.obs, self.actions)
        return (r * self.weight.to(r.dtype)).sum(-1)


def weights(steps: Steps, gamma: float | None) -> NDArray[np.float64]:
    """w, ``[T, n]``; uniform for gamma None."""
    if gamma is None:
        return np.full(steps.age.shape, 1.0 / max(1, steps.age.size))
    powers = gamma ** steps.age.astype(np.float64)
    beyond = gamma * powers[steps.ended == TERMINATED].sum() / (1.0 - gamma)
    return powers / (powers.sum() + beyond)  # type: ignore[no-any-return]


def occupancy(
    recorder: SegmentRecorder, since: int, gamma: float | None, model: RewardModel, most: int, rng: np.random.Generator
) -> Occupancy:
    """The steps recorded from step ``since`` on, or ``most`` of them drawn by their weights where there are more."""
    steps = recorder.window(since)
    w = weights(steps, gamma).ravel()
    chosen = np.arange(len(w))
    if len(w) > most:
        total = w.sum()
        chosen = rng.choice(len(w), most, p=w / total)
        w = np.full(most, total / most)
    t, copies = np.divmod(chosen, recorder.num_envs)
    obs, actions = recorder.observations(steps.time[t], copies), steps.actions[t, copies]
    return Occupancy(model.tensor(obs), model.tensor(actions), model.tensor(w))


def known_occupancy(d: Tensor, model: RewardModel) -> Occupancy:
    """All state-action pairs of a tabular world, weighted by d ``[S, A]``."""
    S, A = d.shape
    obs, actions = np.repeat(np.arange(S), A), np.tile(np.arange(A), S)
    return Occupancy(model.tensor(obs), model.tensor(actions), d.flatten().to(model.device))
