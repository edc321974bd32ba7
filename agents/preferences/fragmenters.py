"""How the pairs of segments for the labeller are chosen: at random, or by an ensemble's disagreement.

Disagreement is the variance over members of ``P(d1 > d2)`` (Christiano et al. 2017, section 2.2.4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...envs.mdp.checks import check_size, plain_fields, require
from ...wrappers import SegmentRecorder
from .labels import Pair
from .reward_model import RewardModel


class Fragmenter(ABC):
    """A rule that chooses pairs of recorded segments."""

    @abstractmethod
    def pairs(
        self, recorder: SegmentRecorder, model: RewardModel, n: int, since: int, rng: np.random.Generator
    ) -> list[Pair]:
        """Return ``n`` pairs from the steps recorded since step ``since``, or fewer where there are too few segments."""


@dataclass(frozen=True)
class RandomFragmenter(Fragmenter):
    """Draw pairs of segments uniformly, using each start at most once."""

    def starts(self, recorder: SegmentRecorder, since: int) -> NDArray[np.int64]:
        """Return the possible starts of segments as (time, environment), ``[k, 2]``."""
        return recorder.starts(since)

    def pairs(
        self, recorder: SegmentRecorder, model: RewardModel, n: int, since: int, rng: np.random.Generator
    ) -> list[Pair]:
        starts = self.starts(recorder, since)
        n = min(check_size(n, "n"), len(starts) // 2)
        drawn = starts[rng.choice(len(starts), 2 * n, replace=False)] if n else starts[:0]
        segments = [recorder.cut(int(time), int(copy)) for time, copy in drawn]
        return [Pair(left, right) for left, right in zip(segments[:n], segments[n:], strict=True)]


@dataclass(frozen=True)
class WholeEpisodes(RandomFragmenter):
    """Draw pairs of segments that begin with their episode: whole episodes, where none is longer than a segment."""

    def starts(self, recorder: SegmentRecorder, since: int) -> NDArray[np.int64]:
        starts, age = recorder.starts(since), recorder.window(since).age
        first = age[starts[:, 0] - (recorder.steps - len(age)), starts[:, 1]] == 0
        return np.asarray(starts[first])


@dataclass(frozen=True)
class ActiveFragmenter(Fragmenter):
    """Draw ``oversample`` times as many random pairs, and keep those with the largest disagreement of the ensemble.

    Raises:
        ValueError: ``oversample`` is under 1; when called, the reward model has a single member.
    """

    oversample: int = 10

    def __post_init__(self) -> None:
        plain_fields(self)
        check_size(self.oversample, "oversample")

    def pairs(
        self, recorder: SegmentRecorder, model: RewardModel, n: int, since: int, rng: np.random.Generator
    ) -> list[Pair]:
        expected = "an ensemble of two or more, to choose pairs by disagreement"
        require(len(model.members) > 1, "reward model", expected, len(model.members))
        found = RandomFragmenter().pairs(recorder, model, n * self.oversample, since, rng)
        if len(found) <= n:
            return found
        order = np.argsort(-disagreement(model, found), kind="stable")
        return [found[i] for i in order[:n]]


@torch.no_grad()
def disagreement(model: RewardModel, pairs: list[Pair]) -> NDArray[np.float64]:
    """Return the variance over members of P(left > right), ``[n]``."""
    require(not model.training, "model", "one in evaluation mode (dropout off)", "one in training mode")
    R_left, R_right = (model.returns([getattr(pair, side) for pair in pairs]) for side in ("left", "right"))
    return np.asarray(torch.sigmoid(R_left - R_right).var(0, correction=0).double().cpu().numpy())
