"""What every penalty shows to a leader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...envs.mdp import TabularMDP, Trajectories
from ...envs.mdp.checks import plain_fields
from ..estimators import Sampler
from ..schedules import Schedule, as_schedule


@dataclass(frozen=True, eq=False)
class WeightedPenalty(ABC):
    """A penalty's coefficient.

    Attributes:
        lam: coefficient of the penalty, positive; a number or a schedule.

    Raises:
        ValueError: lam not positive or not finite.
    """

    lam: float | Schedule = 5.0

    needs_positive_tau: ClassVar[bool] = False
    """Whether the penalty is defined for tau > 0 only."""

    def __post_init__(self) -> None:
        plain_fields(self)
        as_schedule(self.lam, "lam", positive=True)

    def lam_at(self, progress_remaining: float) -> float:
        """lam at the remaining progress, 1 at the start and 0 at the end."""
        return as_schedule(self.lam, "lam", positive=True)(progress_remaining)

    @abstractmethod
    def at(self, model: Any, pi: tuple[Tensor, ...], best: tuple[Tensor, ...], tau: float) -> Tensor:
        """p(x, y), ``[...]``, of one policy and one best response a player; its autograd is the penalty's gradient."""

    @abstractmethod
    def sampled(
        self,
        model: Any,
        pi: tuple[Tensor, ...],
        best: tuple[Tensor, ...],
        tau: float,
        sampler: Sampler,
        played: Trajectories | None = None,
    ) -> Tensor:
        """The estimate of p(x, y) and, by autograd, of its gradient, ``[...]``.

        Args:
            model: the follower's world, or the players' game, carrying x's graph.
            pi: one policy a player, carrying y's graph.
            best: one best response a player; constants.
            tau: temperature.
            sampler: plays.
            played: the follower's episodes in its world, where they were drawn before.
        """


@dataclass(frozen=True, eq=False)
class Penalty(WeightedPenalty):
    """A penalty p(x, y) >= 0 of a single-agent lower level and its coefficient."""

    def at(self, model: TabularMDP, pi: tuple[Tensor, ...], best: tuple[Tensor, ...], tau: float) -> Tensor:
        return self(model, pi[0], best[0], tau)

    @abstractmethod
    def __call__(self, mdp: TabularMDP, pi: Tensor, pi_star: Tensor, tau: float) -> Tensor:
        """p(x, y), ``[...]``, whose autograd is the penalty's gradient.

        Args:
            mdp: M(x), carrying x's graph.
            pi: the follower's policy pi_y, ``[..., S, A]``, carrying y's graph.
            pi_star: the oracle's best response at x, ``[..., S, A]``; a constant.
            tau: temperature.
        """
