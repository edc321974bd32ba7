r"""x's gradient over learned followers, whatever it is estimated from.

grad_x V_l^{pi_y} + lam ( grad_x V_f^{pi_y} - grad_x V_f^{pihat} ),        p^ = V_f^{pihat} - V_f^{pi_y}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..followers.sb3 import SB3Follower


@dataclass(frozen=True, eq=False)
class PenaltyEstimate:
    """p^ and the watch over the oracle.

    With exact followers ``0 <= p <= G/lam``, ``G = V_l^{pi_y} - V_l^{pihat}``: the penalised follower gives up no more of its
    reward than it earns the leader. An estimate below 0 by more than that whole range is the oracle's error, not a penalty.

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

    @property
    def failed(self) -> bool:
        """Whether the best response is certified to be worse than the penalised follower, by more than the penalty's range."""
        return self.margin < -2.0 * self.margin_stderr


@dataclass(frozen=True, eq=False)
class GradientEstimate:
    """One estimate.

    Attributes:
        ascent: the direction of ascent in x, ``[dim]``.
        penalty: p^.
        steps: environment steps spent on it.
    """

    ascent: Tensor
    penalty: PenaltyEstimate
    steps: int


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean of ``[N]`` and its standard error, infinite for a single value."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


class LeaderGradient(ABC):
    """An estimator of x's gradient at the followers as they are.

    Attributes:
        planned_steps: environment steps that a call spends.
    """

    planned_steps: int = 0

    @abstractmethod
    def __call__(self, x: Tensor, hat: SB3Follower, pi_y: SB3Follower, lam: float) -> GradientEstimate:
        """The estimate at x, ``[dim]``, of the best response ``hat`` and the penalised follower ``pi_y``."""

    def state(self) -> Any:
        """What a leader file holds of it, in tensors."""
        return None

    def restore(self, state: Any) -> None:  # noqa: B027
        """Take back what :meth:`state` gave."""
