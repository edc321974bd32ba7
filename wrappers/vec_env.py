r"""Shows x to the follower, adapts parallel leader environments to SB3, and checks and mixes their rewards.

**x shown to the follower.** A follower that learns under many x can respond to each of them only if it observes x. The feature
map of a discrete state is the product

    phi(s) = onehot(s) (x) k(s),        [S * width], flattened

where k(s) is the leader context in state s. In a Stackelberg game k(s) is the leader's policy pi_x(.|s). The exact Q is then
linear in phi, and onehot(s) lies in the span of phi because the rows of pi_x sum to one. A leader context that is not a
distribution gets a leading 1 for the same reason. If observations are vectors, k is appended to them. After ``set_leader``, the
latest observation still shows the old x; the next one shows the new x.

**Infos as arrays.** A :class:`VectorEnvAdapter` stores the infos of a step as one array ``[n, ...]`` per key, instead of one dict
per environment. :func:`info_column` and :func:`add_info_column` read and write such a key on any VecEnv, from these arrays or
from the dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from torch import Tensor, nn

from ..envs.actions import draw_action
from ..envs.core import LeaderVectorEnv
from ..envs.mdp.checks import as_float64, check_number, require

Features = NDArray[np.float32]
MOST_SEEN = 2**16
"""Largest size of observations that show x; for Discrete states it is the number of states times the size of the context."""

# --- x shown to the follower ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Joins an observation and a leader context into one vector, and splits it again.

    Attributes:
        base: the environment's observation space: Discrete, or a Box of one axis.
        size: number of entries of the leader context.
        is_distribution: whether these entries are non-negative and sum to one.

    Raises:
        ValueError: ``base`` is another kind of space, or the vectors would have more than ``MOST_SEEN`` entries.
    """

    base: Any
    size: int
    is_distribution: bool

    def __post_init__(self) -> None:
        discrete = isinstance(self.base, gym.spaces.Discrete) and self.base.start == 0
        vector = isinstance(self.base, gym.spaces.Box) and len(self.base.shape) == 1
        expected = "Discrete observations (from 0) or a Box of one axis, to show x in (observe_commitment=False does not show x)"
        require(discrete or vector, "env", expected, self.base)
        seen = int(self.base.n) * self.width if discrete else self.base.shape[0] + self.size
        fits = f"False if observations with x would have more than {MOST_SEEN} entries"
        require(
            seen <= MOST_SEEN,
            "observe_commitment",
            fits,
            f"True with {seen} entries, for {self.base} and {self.size} entries of x",
        )

    @property
    def width(self) -> int:
        """Number of entries per state: the leader context, and a leading 1 unless it is a distribution."""
        return self.size + (not self.is_distribution)

    @property
    def space(self) -> gym.spaces.Box:
        """The space of the joined vectors."""
        bound = (0.0, 1.0) if self.is_distribution else (-np.inf, np.inf)
        if isinstance(self.base, gym.spaces.Discrete):
            return gym.spaces.Box(*bound, (int(self.base.n) * self.width,), np.float32)
        ends = zip((self.base.low, self.base.high), bound, strict=True)
        low, high = (np.append(end, [edge] * self.size).astype(np.float32) for end, edge in ends)
        return gym.spaces.Box(low, high, dtype=np.float32)

    def join(self, obs: NDArray[Any], shown: Features) -> Features:
        """Join observations ``[n]`` or ``[n, d]`` and leader contexts ``[n, size]`` into vectors ``[n, ...]``."""
        if isinstance(self.base, gym.spaces.Box):
            return np.concatenate([obs.astype(np.float32), shown], axis=1)
        n, S = len(obs), int(self.base.n)
        features = np.zeros((n, S, self.width), dtype=np.float32)
        states, rows, ones = obs.astype(np.intp, copy=False), np.arange(n), self.width - self.size
        features[rows, states, :ones] = 1.0
        features[rows, states, ones:] = shown
        return features.reshape(n, -1)

    def seen(self, obs: Any) -> NDArray[Any]:
        """Return the environment's observations ``[n, ...]`` in the vectors' precision: those of a Box in float32."""
        return np.asarray(obs) if isinstance(self.base, gym.spaces.Discrete) else np.asarray(obs, dtype=np.float32)

    def base_observation(self, obs: Any) -> NDArray[Any]:
        """Return the observations that vectors ``[..., D]`` contain: states ``[...]``, or ``[..., d]``."""
        vectors = np.asarray(obs)
        if isinstance(self.base, gym.spaces.Box):
            return vectors[..., : self.base.shape[0]]
        # The first nonzero entry belongs to the block of the state.
        return (vectors != 0).argmax(-1) // self.width  # type: ignore[no-any-return]

    def base_tensor(self, obs: Any) -> Tensor:
        """Return :meth:`base_observation` as a tensor."""
        return torch.as_tensor(self.base_observation(obs))


class CommitmentLeaderModel(nn.Module):
    """A leader model for the observations and actions of followers, which it converts to the environment's own.

    Args:
        inner: the environment's leader model.
        base_obs: a function from followers' observations ``[..., D]`` to the environment's; None if they are the same.
        base_action: a function from followers' actions to the environment's; None (default) if they are the same.

    Attributes:
        x: the parameter of the environment's leader model.
    """

    def __init__(
        self,
        inner: nn.Module,
        base_obs: Callable[[Any], Any] | None,
        base_action: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.x = inner.get_parameter("x")
        self.inner = inner
        self._base_obs, self._base_action = base_obs, base_action

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(r_follower, r_leader, log_p)`` for observations ``[..., D]``; see ``LeaderEnv.leader_model``."""
        if self._base_obs is not None:
            obs, next_obs = self._base_obs(obs), self._base_obs(next_obs)
        action = action if self._base_action is None else self._base_action(action)
        return self.inner(obs, action, draw, next_obs)  # type: ignore[no-any-return]


class ObserveCommitment(gym.Wrapper[Features, Any, Any, Any], RecordConstructorArgs):
    """Wrapper that adds the leader context to observations.

    ``info["base_obs"]`` and ``info["base_next_obs"]`` are the environment's own observations before and after the step, those of
    a Box in float32.

    Args:
        env: a leader environment whose observations are Discrete or a Box of one axis.

    Raises:
        ValueError: the environment has another kind of observations.
        AttributeError: the environment has no method ``commitment``.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._commitment = env.get_wrapper_attr("commitment")
        size, is_distribution = (env.get_wrapper_attr(f"commitment_{name}") for name in ("size", "is_distribution"))
        self._layout = Layout(env.observation_space, size, is_distribution)
        self.observation_space: gym.spaces.Space[Any] = self._layout.space
        self._base: Any = None

    def observation(self, obs: Any) -> Features:
        """Return the follower's observation, ``[D]``, given the environment's observation ``obs``."""
        return self._layout.join(np.asarray(obs)[None], self._commitment(obs)[None])[0]  # type: ignore[no-any-return]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Features, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._base = self._layout.seen(obs)
        return self.observation(obs), info

    def step(self, action: Any) -> tuple[Features, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        before, self._base = self._base, self._layout.seen(obs)
        info = {**info, "base_obs": before, "base_next_obs": self._base}
        return self.observation(obs), reward, terminated, truncated, info

    def base_observation(self, obs: Any) -> NDArray[Any]:
        """Return the environment's own observations, given followers' observations ``[..., D]``."""
        return self._layout.base_observation(obs)

    def leader_model(self) -> CommitmentLeaderModel:
        """Return the environment's leader model, for followers' observations."""
        return CommitmentLeaderModel(self.env.get_wrapper_attr("leader_model")(), self._layout.base_tensor)


# --- native simulators ------------------------------------------------------------------------------------------------


class VectorEnvAdapter(VecEnv):
    """Adapter that turns a ``LeaderVectorEnv`` into an SB3 VecEnv.

    Infos are dicts, one per environment, with ``leader_reward`` (float), ``leader_draw`` (int or array), ``TimeLimit.truncated``
    and, at an episode's end, ``terminal_observation``. :attr:`arrays` has the same values; ``infos=False`` is faster and leaves
    the dicts empty except at the end of episodes. ``env_method("set_leader", x)`` and ``env_method("commitment", obs)`` work as
    on other VecEnvs, also with ``indices``; the methods ``set_leader`` and ``commitment`` apply to all environments at once. For
    episode statistics, wrap it in SB3's ``VecMonitor``.

    Args:
        env: the parallel environments, e.g. ``gym.make_vec("bilevel_gym/StackelbergGame-v0", num_envs=64)``.
        observe_commitment: whether observations include the leader context (see the module). Default: False.
        infos: whether infos are filled at every step, or only at the end of episodes. Default: True.

    Attributes:
        arrays: the last step's infos as arrays ``[n, ...]`` by key; with ``observe_commitment`` also ``base_obs`` and
            ``base_next_obs``, the environments' own observations before and after the step (not after a reset).

    Raises:
        ValueError: ``env`` is not a ``LeaderVectorEnv``, or is wrapped; with ``observe_commitment``, observations are neither
            Discrete nor a Box of one axis.
    """

    def __init__(
        self, env: gym.vector.VectorEnv[Any, Any, Any], observe_commitment: bool = False, infos: bool = True
    ) -> None:
        base = env.unwrapped
        fits = isinstance(base, LeaderVectorEnv) and env is base
        require(fits, "env", "a LeaderVectorEnv (a natively vectorised environment) without wrappers", repr(env))
        assert isinstance(base, LeaderVectorEnv)
        self.env, self.infos = base, infos
        self.arrays: dict[str, NDArray[Any]] = {}
        space, self._layout = base.single_observation_space, None
        if observe_commitment:
            self._layout = Layout(space, base.commitment_size, base.commitment_is_distribution)
            space = self._layout.space
        super().__init__(base.num_envs, space, base.single_action_space)
        self._obs: Any = None
        self._actions: NDArray[Any] | None = None

    def _shown(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Return the followers' observations, ``[n, ...]``, given the environments' observations ``obs``."""
        return obs if self._layout is None else self._layout.join(obs, self.env.commitment(obs))

    def reset(self) -> NDArray[Any]:
        """Reset all environments, with the seed given to ``seed`` since the last reset; return observations ``[n, ...]``."""
        self._obs, _ = self.env.reset(seed=self._seeds[0])
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return self._shown(self._obs)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions, ``[n, ...]``, for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every environment."""
        obs, rewards, terminated, truncated, columns = self.env.step(self._actions)
        dones, after = terminated | truncated, obs
        rewarded, drawn, limited = columns["leader_reward"], columns["leader_draw"], truncated & ~terminated
        self.arrays = {"leader_reward": rewarded, "leader_draw": drawn, "TimeLimit.truncated": limited}
        # Fill the dicts at every step if that was asked for, else at the end of episodes only.
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended: list[int] = dones.nonzero()[0].tolist()
        if self.infos or ended:
            draws = drawn.tolist() if drawn.ndim == 1 else drawn
            told = [
                {"leader_reward": reward, "leader_draw": draw, "TimeLimit.truncated": cut}
                for reward, draw, cut in zip(rewarded.tolist(), draws, limited.tolist(), strict=True)
            ]
            infos = told if self.infos else infos
        if ended:
            after = obs.copy()
            for i in ended:
                after[i] = columns["final_obs"][i]
            last = self._shown(after)
            for i in ended:
                infos[i] = {**told[i], "terminal_observation": last[i]}
        if self._layout is not None:
            self.arrays |= {"base_obs": self._layout.seen(self._obs), "base_next_obs": self._layout.seen(after)}
        self._obs = obs
        return self._shown(obs), rewards.astype(np.float32), dones, infos

    def set_leader(self, x: Any) -> None:
        """Set x in all environments, ``[dim]``, or one row for each, ``[n, dim]``; see ``LeaderVectorEnv.set_leader``."""
        self.env.set_leader(x)

    def commitment(self, obs: Any) -> Features:
        """Return the leader context of each environment, ``[n, size]``, at the environments' own observations ``[n, ...]``."""
        return self.env.commitment(obs)

    def every_observation(self, x: Any, states: Any = None) -> NDArray[Any]:
        """Return the follower's observation in each state of a tabular problem, at any x.

        Args:
            x: a point of X, ``[dim]``, or several, ``[k, dim]``.
            states: the states, ``[S]``. Default: all.

        Returns:
            Observations ``[S, ...]``; for several x ``[k * S, ...]``, all states of one x after another.
        """
        space: Any = self.env.single_observation_space
        states, points = np.arange(space.n) if states is None else np.asarray(states), np.atleast_2d(x)
        if self._layout is None:
            return np.tile(states, len(points))
        features = []
        for point in points:
            with torch.no_grad():
                shown = self.env.problem.commitment(as_float64(point, "x")).to(torch.float32)  # type: ignore[attr-defined]
            rows = shown.reshape(-1, shown.shape[-1]).numpy()
            features.append(self._layout.join(states, rows[states if len(rows) > 1 else np.zeros_like(states)]))
        return np.concatenate(features)

    def base_observation(self, obs: Any) -> NDArray[Any]:
        """Return the environments' own observations, given followers' observations ``[..., D]``."""
        return np.asarray(obs) if self._layout is None else self._layout.base_observation(obs)

    def leader_model(self) -> nn.Module:
        """Return the environments' leader model, for followers' observations."""
        model = self.env.leader_model()
        return model if self._layout is None else CommitmentLeaderModel(model, self._layout.base_tensor)

    def close(self) -> None:
        self.env.close()

    def _rows(self) -> NDArray[np.float64]:
        """Return each environment's x, ``[n, dim]``."""
        x = self.env.leader_x
        return np.broadcast_to(x, (self.num_envs, x.shape[-1]))

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method for the environments in ``indices`` (default: all), and return one result for each.

        ``set_leader`` with ``indices`` changes x in those environments only. ``commitment`` takes one observation for all of
        ``indices`` or one for each. ``action_masks`` returns one row for each. Other methods are called once, on all environments
        together, and every environment gets the same result.
        """
        chosen = list(self._get_indices(indices))
        if method_name == "set_leader" and indices is not None:
            x = self._rows().copy()
            point = np.asarray(method_args[0] if method_args else method_kwargs["x"], dtype=np.float64)
            require(point.shape == x.shape[1:], "x", f"shape {x.shape[1:]}", f"shape {point.shape}")
            x[chosen] = point
            self.env.set_leader(x)
            return [None] * len(chosen)
        if method_name == "commitment":
            space = self.env.single_observation_space
            obs = np.zeros((self.num_envs, *(space.shape or ())), dtype=space.dtype)
            obs[chosen] = method_args[0] if method_args else method_kwargs["obs"]
            return list(self.env.commitment(obs)[chosen])
        owner = self if method_name in ("leader_model", "base_observation") else self.env
        answer = getattr(owner, method_name)(*method_args, **method_kwargs)
        return list(answer[chosen]) if method_name == "action_masks" else [answer] * len(chosen)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute once for each environment; only ``leader_x`` differs between environments."""
        chosen = list(self._get_indices(indices))
        if attr_name == "leader_x":
            return [row.copy() for row in self._rows()[chosen]]
        return [getattr(self.env, attr_name)] * len(chosen)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an existing attribute for all environments, which share it.

        Raises:
            ValueError: ``indices`` are given.
            AttributeError: there is no such attribute, or it cannot be set (for ``leader_x`` use ``set_leader``).
        """
        require(indices is None, "indices", "None, since the environments share their attributes", indices)
        getattr(self.env, attr_name)
        setattr(self.env, attr_name, value)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for every environment, since none has a wrapper."""
        return [False] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[None]:
        """Return None for every environment: these environments are not rendered."""
        return [None] * self.num_envs


# --- on any VecEnv ----------------------------------------------------------------------------------------------------


def set_leader(venv: VecEnv, x: Any) -> None:
    """Set x in every environment of a VecEnv, through any wrappers.

    It calls ``env_method``, because ``venv.set_attr`` would set an attribute of each environment's outermost wrapper only.

    Args:
        venv: parallel leader environments.
        x: a point of X for all environments, ``[dim]``, or one for each, ``[n, dim]``.

    Raises:
        ValueError: x has another shape, or an environment's ``set_leader`` refuses it.
    """
    points, n = np.asarray(x, dtype=np.float64), venv.num_envs
    if points.ndim != 1:
        require(points.ndim == 2 and len(points) == n, "x", f"shape (dim,) or ({n}, dim)", f"shape {points.shape}")
    if points.ndim == 1 or isinstance(venv.unwrapped, VectorEnvAdapter):
        venv.env_method("set_leader", points)
        return
    for i, row in enumerate(points):
        venv.env_method("set_leader", row, indices=i)


def leader_model(env: gym.Env[Any, Any], x: NDArray[np.float64]) -> nn.Module:
    """Set x, ``[dim]``, in a leader environment, through any wrappers, and return its leader model."""
    env.get_wrapper_attr("set_leader")(x)
    return env.get_wrapper_attr("leader_model")()  # type: ignore[no-any-return]


def info_column(venv: VecEnv, infos: Sequence[dict[str, Any]], name: str, optional: bool = False) -> Any:
    """Return the values of one key in the infos of a VecEnv's last step, ``[n, ...]``.

    Args:
        venv: parallel environments.
        infos: the infos that their last step returned.
        name: the key.
        optional: whether to return None if there is no such key. Default: False.

    Raises:
        ValueError: there is no such key, and it is not optional.
    """
    inner = venv.unwrapped
    held: Any = inner.arrays if isinstance(inner, VectorEnvAdapter) else infos[0]
    if optional and name not in held:
        return None
    require(name in held, "info", f"the key {name!r} after every step", sorted(held))
    return held[name] if held is not infos[0] else np.array([info[name] for info in infos])


def add_info_column(venv: VecEnv, infos: Sequence[dict[str, Any]], name: str, values: NDArray[Any]) -> None:
    """Add a key to the infos of a VecEnv's last step, with a number for each environment, ``[n]``."""
    inner = venv.unwrapped
    if isinstance(inner, VectorEnvAdapter):
        inner.arrays[name] = values
    if not isinstance(inner, VectorEnvAdapter) or inner.infos:
        for info, value in zip(infos, values.tolist(), strict=True):
            info[name] = value


LARGEST_REWARD = 1e15
"""Largest absolute reward that followers can learn from, because losses square it in float32."""
_LARGEST_OBSERVATION = float(np.finfo(np.float32).max)


def require_tame(what: str, values: NDArray[Any], limit: float, where: Callable[[int], str]) -> None:
    """Raise ``ValueError`` if a number in ``values``, ``[n, ...]``, is not finite or too large; name its row by ``where``."""
    # In most steps the sum of squares suffices, in a tenth of the time; comparisons with NaN are False.
    if values.dtype.kind == "f" and not float(np.vdot(values, values)) <= limit**2:
        tame = np.abs(values) <= limit
        if not tame.all():
            at = tuple(np.argwhere(~tame)[0])
            raise ValueError(
                f"{what}: expected finite numbers within {limit:g}, got {values[at]:g} {where(int(at[0]))}"
            )


def require_tame_observation(obs: Any, where: Callable[[int], str]) -> None:
    """Raise ``ValueError`` if an entry of observations ``[n, ...]``, also of a Dict space, is not finite or too large."""
    for part in obs.values() if isinstance(obs, dict) else (obs,):
        require_tame("observation", part, _LARGEST_OBSERVATION, where)


def require_tame_step(obs: Any, reward: float, where: str) -> None:
    """Raise the ``ValueError`` of :class:`FiniteSteps` for one step of a single environment."""
    require_tame("reward", np.array([reward], dtype=np.float64), LARGEST_REWARD, lambda _: where)
    require_tame_observation(_rows(obs), lambda _: where)


def _rows(obs: Any) -> Any:
    """Return an observation, also of a Dict space, as a batch of one."""
    if isinstance(obs, dict):
        return {key: np.asarray(part)[None] for key, part in obs.items()}
    return np.asarray(obs)[None]


class FiniteSteps(VecEnvWrapper):
    """VecEnv wrapper that raises an error at the first reward or observation that is not finite or too large.

    Args:
        venv: parallel environments of any kind.
        name: the environment's name, for the error message.

    Raises:
        ValueError: in ``reset`` and ``step``, if a reward exceeds ``LARGEST_REWARD`` or an observation the range of float32, or
            is NaN; the message names the environment, its number among the parallel ones, the step, and x.
    """

    def __init__(self, venv: VecEnv, name: str) -> None:
        super().__init__(venv)
        self._name, self._steps = name, 0

    def reset(self) -> VecEnvObs:
        obs = self.venv.reset()
        require_tame_observation(obs, self._where)
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        self._steps += 1
        require_tame("reward", rewards, LARGEST_REWARD, self._where)
        leader_rewards = info_column(self.venv, infos, "leader_reward", optional=True)
        if leader_rewards is not None:
            require_tame("leader_reward", leader_rewards, LARGEST_REWARD, self._where)
        require_tame_observation(obs, self._where)
        for i in dones.nonzero()[0]:
            last = _rows(infos[i]["terminal_observation"])
            require_tame_observation(last, lambda _, i=i: self._where(i))  # type: ignore[misc]
        return obs, rewards, dones, infos

    def _where(self, i: int) -> str:
        """Return the source of a value for messages: the environment, its number, the step, and x."""
        where = f"from {self._name}, parallel environment {i}, in step {self._steps}"
        if not self.venv.has_attr("leader_x"):
            return where
        return f"{where}, at x = {np.array2string(np.asarray(self.venv.get_attr('leader_x', i)[0]), threshold=20)}"


def legal_actions(venv: VecEnv) -> NDArray[Any]:
    """Draw a random action for each environment, ``[n, ...]``; one that its ``action_masks`` allows, if it has them."""
    space, n = venv.action_space, venv.num_envs
    masks = venv.env_method("action_masks") if venv.has_attr("action_masks") else [None] * n
    return np.stack([draw_action(space, mask) for mask in masks])


class RewardMixing(VecEnvWrapper):
    """VecEnv wrapper that pays own_weight * r_f + weight * r_l; ``info["follower_reward"]`` and ``["leader_reward"]`` remain.

    With own_weight 1 and weight 1/lam, a follower that maximises this return maximises the penalised objective, which is lam
    times this return plus a term that does not depend on the follower.

    Args:
        venv: parallel leader environments.
        weight: weight of the leader's reward, finite; you can change it at any time, from the next step on.
        own_weight: weight of the follower's own reward, finite. Default: 1.

    Raises:
        ValueError: a weight is not finite; in ``step``, the infos have no leader reward.
    """

    def __init__(self, venv: VecEnv, weight: float, own_weight: float = 1.0) -> None:
        self.weight = weight
        self.own_weight = check_number(own_weight, "own_weight", open_low=True, open_high=True)
        super().__init__(venv)

    @property
    def weight(self) -> float:
        """Weight of the leader's reward."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = check_number(value, "weight", open_low=True, open_high=True)

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        leader_rewards = info_column(self.venv, infos, "leader_reward")
        add_info_column(self.venv, infos, "follower_reward", rewards)
        mixed = self.own_weight * rewards + self._weight * leader_rewards
        return obs, mixed.astype(np.float32), dones, infos
