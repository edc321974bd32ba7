"""The interface of leader environments: a Gymnasium environment for the follower, with a parameter x that the leader sets.

- ``leader_space``: the Box that x lies in, float64, bounded; None where x is not a vector (a large reward model).
- ``set_leader(x)``: sets x from the next step on.
- ``info["leader_reward"]``, ``info["leader_draw"]``: the leader's reward, and the random values that depend on x, in each step.
- ``leader_model()``: a torch module with parameter x, ``(obs, action, draw, next_obs) -> (r_follower, r_leader, log_p)``.
- ``commitment(obs)``: the leader context, i.e. the part of x that a follower may see at an observation.
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
        leader_space: the Box that x lies in, float64; where x also has a budget (see ``LeaderSet``), X is a subset of this Box.
            None where x is not a vector.
        gamma: the discount factor of both players, in [0, 1).
        commitment_size: number of entries of the leader context, an int.
        commitment_is_distribution: whether the entries of the leader context are non-negative and sum to one. Default: False.
    """

    leader_space: gym.spaces.Box | None
    gamma: float
    commitment_size: int
    commitment_is_distribution: bool = False

    @property
    @abstractmethod
    def leader_x(self) -> NDArray[np.float64]:
        """A copy of the leader's current parameter, ``[dim]``; ``[num_envs, dim]`` where each environment has its own x."""

    @abstractmethod
    def set_leader(self, x: Any) -> None:
        """Set x. It takes effect at the next step; values that are drawn once per episode use it from the next reset.

        Args:
            x: a point of X, ``[dim]``, which is copied; parallel environments also take ``[num_envs, dim]``, one row for each.

        Raises:
            ValueError: x has the wrong shape, has an entry that is not finite, or lies outside X.
        """

    @abstractmethod
    def leader_model(self) -> torch.nn.Module:
        """Return a torch module that computes a step's rewards and log-probability as functions of x.

        Its Parameter ``x`` (float64) starts at the current x. Called with batched tensors ``(obs, action, draw, next_obs)``, it
        returns ``(r_follower, r_leader, log_p)``, each differentiable in x: the rewards of the step, and the log-probability of
        the random values in it whose distribution depends on x. Parallel environments must all have the same x.
        """

    @abstractmethod
    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """Return the leader context at an observation, ``[commitment_size]``: the part of x that a follower may see.

        Parallel environments return ``[num_envs, commitment_size]``.

        Args:
            obs: an observation; for parallel environments one for each, ``[num_envs, ...]``.
        """


class LeaderEnv(HasLeader, gym.Env[ObsType, ActType]):
    """Base class of environments with a leader.

    ``step`` returns the follower's reward. ``info["leader_reward"]`` is the leader's reward in the step, a float, undiscounted.
    ``info["leader_draw"]`` holds the random values of the step whose distribution depends on x, e.g. the leader's own action.

    Attributes:
        draws_once: whether one draw at the start of an episode depends on x, affects the whole episode and is not part of the
            observations. A critic of the observations then cannot estimate what the draw is worth. Default: False.

    The other attributes are those of ``HasLeader``.
    """

    draws_once: bool = False

    def vectorised(self, num_envs: int, max_episode_steps: int | None) -> LeaderVectorEnv | None:
        """Make parallel environments like this one that are stepped together.

        Args:
            num_envs: number of parallel environments.
            max_episode_steps: number of steps after which an episode is truncated; None for never.

        Returns:
            The parallel environments; None, the default, if the environment has no such simulator.
        """
        return None


class LeaderVectorEnv(HasLeader, VectorEnv[Any, Any, Any]):
    """Parallel leader environments that are stepped together; each may have its own x.

    ``set_leader`` takes ``[dim]`` or ``[num_envs, dim]``, one row for each environment. An environment whose episode ends is
    reset in the same step (``final_obs``, ``final_info``). ``infos["leader_reward"]`` and ``infos["leader_draw"]`` have one row
    for each environment and always belong to the step that was taken, also where it ended an episode.

    Args:
        num_envs: number of parallel environments, at least 1.
        max_episode_steps: number of steps after which an episode is truncated, at least 1; None for never.
        observation_space: observation space of one environment.
        action_space: action space of one environment.

    The attributes are those of ``HasLeader``.

    Raises:
        ValueError: ``num_envs`` or ``max_episode_steps`` is below 1.
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
        """Restart finished environments at ``start``, write their last step into ``infos``, and return all states."""
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
        """Return the environments' state: arrays by name and the random generator's state; None before the first reset."""
        if self._state is None:
            return None
        arrays = {"_state": self._state.copy(), "_elapsed": self._elapsed.copy()}
        return {"generator": self.np_random.bit_generator.state, **arrays}

    def stand(self, place: dict[str, Any]) -> None:
        """Restore the state that :meth:`place` returned.

        Args:
            place: what :meth:`place` returned, here or on environments of the same kind and number.

        Raises:
            ValueError: the state does not fit these environments, or they were never reset.
        """
        now, then = self.place() or {}, {name: np.array(place[name]) for name in ("_state", "_elapsed")}
        fits = now and all(a.shape == now[name].shape and a.dtype == now[name].dtype for name, a in then.items())
        require(bool(fits), "place", "the state of environments like these, after a reset", "another")
        self.np_random.bit_generator.state = place["generator"]
        self._state, self._elapsed = then["_state"], then["_elapsed"]


class OfProblem(HasLeader):
    """Base class of environments, single or parallel, that simulate a problem.

    Attributes:
        problem: the problem, i.e. the model.
        _x: the leader's current parameter.
        _spaces: the observation space and the action space.
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
        problem: the problem to simulate.
        render_mode: ``"ansi"`` renders one line of text, ``"rgb_array"`` a picture; None (default) and other modes nothing.
    """

    vector_class: ClassVar[type[Any]]

    def __init__(self, problem: Any, render_mode: str | None = None) -> None:
        # Gymnasium has already warned of an unknown mode.
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

    ``MyEnv(**arguments)`` simulates ``MyProblem(**arguments)``. ``MyEnv.vector(num_envs, **arguments)`` simulates it in parallel;
    it is a ``vector_entry_point`` for Gymnasium. ``inspect.signature(MyEnv)`` shows the arguments of ``MyProblem``, and
    ``render_mode``.

    Args:
        args: positional arguments of the problem.
        render_mode: the environment's render mode, see :class:`ProblemEnv`. Default: None.
        kwargs: keyword arguments of the problem.
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
        """Make parallel environments that are stepped together.

        Args:
            num_envs: number of parallel environments.
            args: positional arguments of the problem.
            max_episode_steps: number of steps after which an episode is truncated; None (default) for never.
            kwargs: keyword arguments of the problem.
        """
        problem = cls.make_problem(*args, **kwargs)
        return cls.vector_class(problem, num_envs, max_episode_steps)  # type: ignore[no-any-return]
