"""What an estimator of x's gradient over learned followers shows to a leader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..penalties import Term


@dataclass(frozen=True, eq=False)
class PenaltyEstimate:
    """p^ and the watch over the best response.

    With exact followers ``0 <= p <= G/lam``, ``G = V_l^{pi_y} - V_l^{pihat}``: the penalised follower gives up no more of its
    reward than it earns the leader. An estimate below 0 by more than that whole range is the best response's error.

    Attributes:
        mean: p^.
        stderr: its standard error, 0 where nothing was sampled.
        margin: p^ + G/lam.
        margin_stderr: its standard error.
    """

    mean: float
    stderr: float
    margin: float
    margin_stderr: float


@dataclass(frozen=True, eq=False)
class GradientEstimate:
    """One estimate.

    Attributes:
        ascent: the direction of ascent in x, ``[dim]``.
        penalty: p^.
        steps: environment steps spent on it.
        gain: over a game, what the players' policies owe to the leader (see ``game_rollouts``).
    """

    ascent: Tensor
    penalty: PenaltyEstimate
    steps: int
    gain: Any = None


class Estimator(ABC):
    """An estimator of x's gradient at the followers as they are.

    Attributes:
        planned_steps: environment steps that a call spends.
    """

    planned_steps: int = 0

    @abstractmethod
    def __call__(self, x: Tensor, terms: Sequence[Term], followers: Mapping[str, Any], lam: float) -> GradientEstimate:
        """The gradient of the signed sum of the terms at x, ``[dim]``, at the followers by role; and p^."""

    def state_dict(self) -> dict[str, Any]:
        """What a leader file holds of it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what :meth:`state_dict` gave."""

    def close(self) -> None:  # noqa: B027
        """Close its environments."""
