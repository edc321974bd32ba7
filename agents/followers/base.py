"""What leaders ask of a follower that is trained."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Follower(Protocol):
    """A policy that is trained in parallel environments of its own, whose reward and x the leader sets."""

    @property
    def num_timesteps(self) -> int:
        """Environment steps spent by training."""
        ...

    def train(self, steps: int, planned_total: int) -> int:
        """Train for at least ``steps`` environment steps of about ``planned_total`` in all; return the steps really spent."""
        ...

    def act(self, obs: Any) -> NDArray[Any]:
        """Actions of the policy at observations ``[n, ...]``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, as tensors and numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        ...
