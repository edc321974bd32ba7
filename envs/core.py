"""The interface of leader environments: a Gymnasium environment for the follower, with a parameter x that the leader sets.

- ``leader_space``: Box of x, float64, compact and convex; None where x is no vector (a large reward model).
- ``set_leader(x)``: from the next step on.
- ``info["leader_reward"]``, ``info["leader_draw"]``: of every step.
- ``leader_model()``: torch module with parameter x, ``(obs, action, draw, next_obs) -> (r_follower, r_leader, log_p)``.
- ``commitment(obs)``: what a follower may be shown of x at an observation.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .mdp.checks import check_size, require
from .render import Drawn

T = TypeVar("T")
ObsType = TypeVar("ObsType")
ActType = TypeVar("ActType")
Flags = NDArray[np.bool_]
Info = dict[str, Any]

_NEVER = np.iinfo(np.int64).max


class HasLeader(ABC):
    """The leader's interface, shared by single environments, parallel environments and games.

    Attributes:
        leader_space: Box of x, float64; where x also has a budget (see ``LeaderSet``), the Box around X. None where x
            is no vector.
        gamma: the discount of both players.
        commitment_size: number of entries of ``commitment``.
        commitment_is_distribution: whether those entries are non-negative and sum to one.
    """

    leader_space: gym.spaces.Box | None
    gamma: float
    commitment_size: int
    commitment_is_distribution: bool = False

    @property
    @abstractmethod
    def leader_x(self) -> NDArray[np.float64]:
        """A copy of the leader's current parameter, ``[dim]``, or ``[num_envs, dim]`` where each environment has its own."""

    @abstractmethod
    def set_leader(self, x: Any) -> None:
        """Set x; it takes effect at the next step, and for what is drawn once an episode at the next reset.

        x is copied.

        Args:
            x: a point of X, ``[dim]``; parallel environments also take ``[num_envs, dim]``, one row each.

        Raises:
            ValueError: wrong shape, an entry that is not finite, or a point outside X.
        """

    @abstractmethod
    def leader_model(self) -> torch.nn.Module:
        """Return a torch module of one step, whose Parameter ``x`` (float64) starts at the current x.

        Called with batched tensors ``(obs, action, draw, next_obs)`` it returns ``(r_follower, r_leader, log_p)``:
        the rewards of that step and the log-probability of what depends on x in it, each differentiable in x. Parallel
        environments have one where all have one x.
        """

    @abstractmethod
    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """The leader context, ``[commitment_size]``: what a follower may be shown of x at an observation.

        Parallel environments return one row each.
        """


class LeaderEnv(HasLeader, gym.Env[ObsType, ActType]):
    """Base class of environments with a leader.

    ``step`` returns the follower's reward; ``info`` has ``leader_reward``, a float, undiscounted, and
    ``leader_draw``, what x made the environment draw.

    Attributes:
        draws_once: whether x makes one draw an episode, which rules all of it and does not show in the observations: no
            critic of them then knows what the draw is worth.

    The others are those of ``HasLeader``.
    """

    draws_once: bool = False

    def vectorised(self, num_envs: int, max_episode_steps: int | None) -> LeaderVectorEnv | None:
        """Parallel environments like this one, stepped together; None if there is no such simulator."""
        return None


class LeaderVectorEnv(HasLeader, VectorEnv[Any, Any, Any]):
    """Parallel leader environments that are stepped together; each may have its own x.

    ``leader_x`` and ``set_leader`` also take ``[num_envs, dim]``, one row an environment. Environments that end are reset in
    the same step (``final_obs``, ``final_info``); ``infos["leader_reward"]`` and ``["leader_draw"]``, one row an environment,
    belong to the step taken.

    Args:
        num_envs: number of parallel environments.
        max_episode_steps: steps after which an episode is truncated; None for never.
        observation_space: of one of them.
        action_space: of one of them.

    Attributes: as ``LeaderEnv``.

    Raises:
        ValueError: a size under one.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
    ) -> None:
        self.num_envs, limit = check_size(num_envs, "num_envs"), max_episode_steps
        self.max_episode_steps = None if limit is None else check_size(limit, "max_episode_steps")
        self._limit = self.max_episode_steps or _NEVER
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self._state: NDArray[Any] | None = None
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self._everyone = np.ones(self.num_envs, dtype=np.bool_)
        self._everyone.flags.writeable = False

    def _restart(
        self, infos: dict[str, Any], done: Flags, following: NDArray[Any], start: NDArray[Any]
    ) -> NDArray[Any]:
        """Restart the environments that are done at ``start``, write their last step into ``infos`` and return all states."""
        many = done.reshape(-1, *[1] * (following.ndim - 1))
        final: dict[str, Any] = {}
        for name in ("leader_reward", "leader_draw"):
            value = infos[name]
            final[name] = np.where(done.reshape(-1, *[1] * (value.ndim - 1)), value, np.zeros((), value.dtype))
            final[f"_{name}"] = done.copy()
        last: NDArray[Any] = following.copy()
        if not done.all():
            last = last.astype(object)
            last[~done] = None
        infos |= {"final_obs": last, "_final_obs": done.copy(), "final_info": final, "_final_info": done.copy()}
        self._elapsed[done] = 0
        return np.where(many, start, following)

    def place(self) -> dict[str, Any] | None:
        """The environments' state: arrays by name and the random generator's state; None before a reset."""
        if self._state is None:
            return None
        arrays = {"_state": self._state.copy(), "_elapsed": self._elapsed.copy()}
        return {"generator": self.np_random.bit_generator.state, **arrays}

    def stand(self, place: dict[str, Any]) -> None:
        """Restore the state that :meth:`place` returned.

        Raises:
            ValueError: the place of another environment.
        """
        now, then = self.place() or {}, {name: np.array(place[name]) for name in ("_state", "_elapsed")}
        fits = now and all(a.shape == now[name].shape and a.dtype == now[name].dtype for name, a in then.items())
        require(bool(fits), "place", "that of such environments, after a reset", "another")
        self.np_random.bit_generator.state = place["generator"]
        self._state, self._elapsed = then["_state"], then["_elapsed"]


class OfProblem(HasLeader):
    """Base class of environments, single or parallel, that simulate a problem.

    Attributes:
        problem: the model itself.
        _x: the leader's parameter.
        _spaces: of observations and of actions.
    """

    _x: torch.Tensor
    _spaces: tuple[gym.Space[Any], gym.Space[Any]]

    def _set_up(self, problem: Any, n_envs: int) -> None:
        """Store the problem and read X and the first x from it; n_envs is 1 for a single environment."""
        self.problem, self._n_envs = problem, n_envs
        low, high = problem.leader_set.low.numpy(), problem.leader_set.high.numpy()
        self.leader_space = gym.spaces.Box(low, high, dtype=np.float64)
        self._load(problem.start_x())

    @abstractmethod
    def _load(self, x: torch.Tensor) -> None:
        """Store a checked x as ``_x`` and compute what depends on it."""

    @property
    def leader_x(self) -> NDArray[np.float64]:
        return np.array(self._x.numpy())


class ProblemEnv(Drawn, OfProblem, LeaderEnv[Any, Any]):
    """A single environment that simulates a problem.

    Args:
        problem: the problem.
        render_mode: None, ``"ansi"`` for one line of text, ``"rgb_array"`` for a picture; another draws nothing.
    """

    vector_class: ClassVar[type[Any]]

    def __init__(self, problem: Any, render_mode: str | None = None) -> None:
        # Gymnasium has warned of a mode that is none of ours.
        self.render_mode = render_mode if render_mode in self.metadata["render_modes"] else None
        self._set_up(problem, 1)
        self.observation_space, self.action_space = self._spaces
        self._state: Any = None
        self._last = ""

    def vectorised(self, num_envs: int, max_episode_steps: int | None) -> LeaderVectorEnv:
        made: LeaderVectorEnv = self.vector_class(self.problem, num_envs, max_episode_steps)
        return made


class FromArguments:
    """Mixin that builds an environment's problem from the environment's arguments.

        class MyEnv(FromArguments, TabularEnv, problem=MyProblem):
            ...

    ``MyEnv(**arguments)`` simulates ``MyProblem(**arguments)``; ``MyEnv.vector(num_envs, **arguments)`` simulates it in parallel
    (a ``vector_entry_point`` for Gymnasium); ``inspect.signature(MyEnv)`` is that of ``MyProblem`` and ``render_mode``.

    Args:
        args: of the problem.
        render_mode: of the environment.
        kwargs: of the problem.
    """

    make_problem: ClassVar[Callable[..., Any]]
    vector_class: ClassVar[Any]

    def __init_subclass__(cls, problem: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if problem is not None:
            own, kind = inspect.signature(problem), inspect.Parameter.KEYWORD_ONLY
            drawn = inspect.Parameter("render_mode", kind, default=None, annotation="str | None")
            cls.make_problem = staticmethod(problem)
            cls.__signature__ = inspect.Signature([*own.parameters.values(), drawn])  # type: ignore[attr-defined]

    def __init__(self, *args: Any, render_mode: str | None = None, **kwargs: Any) -> None:
        super().__init__(self.make_problem(*args, **kwargs), render_mode)  # type: ignore[call-arg]

    @classmethod
    def vector(cls, num_envs: int, *args: Any, max_episode_steps: int | None = None, **kwargs: Any) -> LeaderVectorEnv:
        """``num_envs`` parallel environments, stepped together; the other arguments are the problem's."""
        problem = cls.make_problem(*args, **kwargs)
        return cls.vector_class(problem, num_envs, max_episode_steps)  # type: ignore[no-any-return]
