"""x's gradient through the known model of a tabular problem or game, at the followers' policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..penalties import Penalty, Term
from ..records import storable
from .base import Estimator, GradientEstimate, PenaltyEstimate


@storable
@dataclass(frozen=True)
class KnownModel:
    """Estimate x's gradient through the known tabular model, at the followers' policies: exact for those, and without steps."""


class ModelEstimator(Estimator):
    """The estimator that :class:`KnownModel` configures.

    Args:
        learned: the learned lower level; it must have a model.
        penalty: the penalty that defines the terms.
    """

    def __init__(self, learned: Any, penalty: Penalty) -> None:
        self.learned, self.penalty = learned, penalty

    def __call__(self, x: Tensor, terms: Sequence[Term], followers: Mapping[str, Any], lam: float) -> GradientEstimate:
        learned, level = self.learned, self.learned.exact
        own, best = learned.policies(followers, x.detach())
        x = x.detach().requires_grad_()
        model = learned.lived(x)
        p = level.problem.over_contexts(self.penalty.shortfall(level, model, own, best, learned.temperature(followers)))
        earned = level.leader_return(x, own)
        (ascent,) = torch.autograd.grad(earned - lam * p, [x])
        with torch.no_grad():
            stake, gain = learned.at_stake(x, model, own, best, earned)
            p = float(p)
        return GradientEstimate(ascent, PenaltyEstimate(p, 0.0, p + stake / lam, 0.0), 0, gain)
