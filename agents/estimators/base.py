"""The interface of estimators of x's gradient over learned followers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..penalties import Term


@dataclass(frozen=True, eq=False)
class PenaltyEstimate:
    """An estimate p^ of the penalty, and the check on the best response.

    With exact followers ``0 <= p <= G/lam``, ``G = V_l^{pi_y} - V_l^{pihat}``: the penalised follower gives up no more of its
    reward than it earns the leader. An estimate below 0 by more than that whole range is an error of the best response.

    Attributes:
        mean: p^.
        stderr: its standard error, 0 where nothing was sampled.
        margin: p^ + G/lam.
        margin_stderr: standard error of the margin.
    """

    mean: float
    stderr: float
    margin: float
    margin_stderr: float


@dataclass(frozen=True, eq=False)
class GradientEstimate:
    """An estimate of x's gradient.

    Attributes:
        ascent: the ascent direction of x, ``[dim]``.
        penalty: the estimate p^.
        steps: environment steps spent.
        gain: in a game, the leader's gain from the players' policies (see ``game_rollouts``); else None.
        agreement: estimated share of the squared gradient that is no noise, from two halves of the episodes; 1 where it is not
            measured.
    """

    ascent: Tensor
    penalty: PenaltyEstimate
    steps: int
    gain: Any = None
    agreement: float = 1.0


class Estimator(ABC):
    """An estimator of x's gradient at the current followers.

    Attributes:
        planned_steps: environment steps per call, on average where it is not certain.
        certain: whether every call takes as many.
    """

    planned_steps: int = 0
    certain: bool = True

    @abstractmethod
    def __call__(self, x: Tensor, terms: Sequence[Term], followers: Mapping[str, Any], lam: float) -> GradientEstimate:
        """Estimate the gradient in x of the signed sum of the terms, ``[dim]``, at the followers by role, and the penalty p^."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a leader file stores."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Load what :meth:`state_dict` returned."""

    def close(self) -> None:  # noqa: B027
        """Close its environments."""
