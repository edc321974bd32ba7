"""The one contract: an ordinary Gymnasium environment of the follower, with a parameter x that a leader sets.

- ``leader_space``: Box of x, float64, compact and convex; None where x is no vector (a large reward model).
- ``set_leader(x)``: from the next step on.
- ``info["leader_reward"]``, ``info["leader_draw"]``: of every step.
- ``leader_model()``: torch module with parameter x, ``(obs, action, draw, next_obs) -> (r_follower, r_leader, log_p)``.
- ``commitment(obs)``: what a follower may be shown of x at an observation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from .mdp.checks import require

if TYPE_CHECKING:
    import torch

ObsType = TypeVar("ObsType")
ActType = TypeVar("ActType")


class LeaderEnv(gym.Env[ObsType, ActType], ABC):
    """Base class of environments with a leader.

    ``step`` returns the follower's reward; ``info`` has ``leader_reward``, a float, undiscounted, and
    ``leader_draw``, what x made the environment draw.

    Attributes:
        leader_space: Box of x, float64; where x also has a budget (see ``LeaderSet``), the Box around X. None where x
            is no vector.
        gamma: the discount of both players.
        commitment_size: number of entries of ``commitment``.
        commitment_is_distribution: whether those entries are non-negative and sum to one.
        draws_once: whether x makes one draw an episode, which rules all of it and does not show in the observations: no
            critic of them then knows what the draw is worth.
    """

    leader_space: gym.spaces.Box | None
    gamma: float
    commitment_size: int
    commitment_is_distribution: bool = False
    draws_once: bool = False

    @property
    @abstractmethod
    def leader_x(self) -> NDArray[np.float64]:
        """A copy of the leader's current parameter."""

    @abstractmethod
    def set_leader(self, x: Any) -> None:
        """Set the leader's parameter, from the next step on; what an episode draws from x, from the next reset on.

        x is copied.

        Raises:
            ValueError: wrong shape, an entry that is not finite, or a point outside X.
        """

    @abstractmethod
    def leader_model(self) -> torch.nn.Module:
        """A module with one Parameter ``x``, which starts at the current leader's, float64.

        Called with batched tensors ``(obs, action, draw, next_obs)`` it returns ``(r_follower, r_leader, log_p)``:
        the rewards of that step and the log-probability of what depends on x in it, each differentiable in x.
        """

    @abstractmethod
    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """What a follower may be shown of x at an observation, ``[commitment_size]``."""

    def vectorised(self, num_envs: int, max_episode_steps: int | None) -> LeaderVectorEnv | None:
        """Copies of this environment that are stepped together; None where there is no such simulator."""
        return None


class LeaderVectorEnv(VectorEnv[Any, Any, Any], ABC):
    """Copies of a ``LeaderEnv``, stepped together, each under an x of its own if need be.

    ``leader_x`` and ``set_leader`` also take ``[num_envs, dim]``, one row a copy. Copies that end are reset in the same
    step; ``infos["leader_reward"]`` and ``["leader_draw"]``, one row a copy, belong to the step taken.

    Attributes: as ``LeaderEnv``.
    """

    leader_space: gym.spaces.Box | None
    gamma: float
    commitment_size: int
    commitment_is_distribution: bool = False

    @property
    @abstractmethod
    def leader_x(self) -> NDArray[np.float64]:
        """A copy of the leader's current parameter, ``[dim]``, or ``[num_envs, dim]`` where each copy has its own."""

    @abstractmethod
    def set_leader(self, x: Any) -> None:
        """Set the leader's parameter, from the next step on; raises as ``LeaderEnv.set_leader``."""

    @abstractmethod
    def leader_model(self) -> torch.nn.Module:
        """As ``LeaderEnv.leader_model``, where all copies have one x."""

    @abstractmethod
    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """What each copy's follower may be shown of its copy's x, ``[num_envs, commitment_size]``."""

    _place: ClassVar[tuple[str, ...]] = ()

    def place(self) -> dict[str, Any] | None:
        """Where the copies stand, arrays by name and the generator's state; None where that cannot be told, or before a reset."""
        found = {name: getattr(self, name) for name in self._place}
        if not found or any(value is None for value in found.values()):
            return None
        return {"generator": self.np_random.bit_generator.state, **{name: np.array(found[name]) for name in found}}

    def stand(self, place: dict[str, Any]) -> None:
        """Go on from where :meth:`place` was called.

        Raises:
            ValueError: the place of another environment.
        """
        now = self.place()
        fits = now is not None and all(
            np.shape(place[name]) == now[name].shape and np.asarray(place[name]).dtype == now[name].dtype
            for name in self._place
        )
        require(fits, "place", "that of such copies, after a reset", "another")
        self.np_random.bit_generator.state = place["generator"]
        for name in self._place:
            value = np.array(place[name])
            setattr(self, name, value if value.ndim else value.item())
