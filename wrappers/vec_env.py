"""The native simulator as a Stable-Baselines3 VecEnv, and the leader's parameter on any VecEnv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
from torch import nn

from ..envs.core import LeaderVectorEnv
from ..envs.mdp.checks import require


class VectorEnvAdapter(VecEnv):
    """A ``LeaderVectorEnv`` as the VecEnv that SB3 algorithms train on.

    Infos are one dict a copy, with ``leader_reward`` (float), ``leader_draw`` (int, or an array), ``TimeLimit.truncated``
    and, at an episode's end, ``terminal_observation``. ``env_method("set_leader", x)`` and ``env_method("commitment", obs)``
    work as on other VecEnvs, with ``indices`` too; ``set_leader`` and ``commitment`` serve all copies at once. For
    episode statistics, wrap it in SB3's ``VecMonitor``.

    Args:
        env: the simulator, e.g. ``gym.make_vec("bilevel_gym/StackelbergGame-v0", num_envs=64)``.

    Raises:
        ValueError: an env that is no ``LeaderVectorEnv``, or one inside a wrapper.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        base = env.unwrapped
        fits = isinstance(base, LeaderVectorEnv) and env is base
        require(fits, "env", "a LeaderVectorEnv (a natively vectorised environment) without wrappers", repr(env))
        assert isinstance(base, LeaderVectorEnv)
        self.env = base
        super().__init__(base.num_envs, base.single_observation_space, base.single_action_space)
        self._actions: NDArray[Any] | None = None

    def reset(self) -> NDArray[Any]:
        """Start every copy anew, from the seed given to ``seed`` last, if any; ``[n, ...]``."""
        obs: NDArray[Any]
        obs, _ = self.env.reset(seed=self._seeds[0])
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions, ``[n, ...]``, for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every copy."""
        obs, rewards, terminated, truncated, columns = self.env.step(self._actions)
        limited = truncated & ~terminated
        drawn = columns["leader_draw"]
        draws = drawn.tolist() if drawn.ndim == 1 else list(drawn)
        rows = zip(columns["leader_reward"].tolist(), draws, limited.tolist(), strict=True)
        infos = [
            {"leader_reward": reward, "leader_draw": draw, "TimeLimit.truncated": cut} for reward, draw, cut in rows
        ]
        dones = terminated | truncated
        final_obs = columns.get("final_obs")
        if final_obs is not None:
            for i in dones.nonzero()[0].tolist():
                infos[i]["terminal_observation"] = np.asarray(final_obs[i], dtype=obs.dtype)[()]
        return obs, rewards.astype(np.float32), dones, infos

    def set_leader(self, x: Any) -> None:
        """Set x, ``[dim]`` for all copies or ``[n, dim]``, one row a copy; raises as the simulator's ``set_leader``."""
        self.env.set_leader(x)

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """What each copy's follower may be shown of its copy's x, ``[n, size]`` for obs ``[n, ...]``."""
        return self.env.commitment(obs)

    def leader_model(self) -> nn.Module:
        """The step as a function of x."""
        return self.env.leader_model()

    def close(self) -> None:
        self.env.close()

    def _indices(self, indices: VecEnvIndices) -> list[int]:
        return list(self._get_indices(indices))

    def _rows(self) -> NDArray[np.float64]:
        """Each copy's x, ``[n, dim]``."""
        x = self.env.leader_x
        return np.broadcast_to(x, (self.num_envs, x.shape[-1]))

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method for the copies in ``indices``, by default all; one answer a copy.

        ``set_leader`` with ``indices`` changes the x of those copies alone. ``commitment`` takes one observation, or
        one a copy of ``indices``; ``action_masks`` gives each copy its own row. Other methods belong to the simulator as a
        whole: they are called once and every copy gets the answer.
        """
        chosen = self._indices(indices)
        if method_name == "set_leader" and indices is not None:
            x = self._rows().copy()
            point = np.asarray(method_args[0] if method_args else method_kwargs["x"], dtype=np.float64)
            require(point.shape == x.shape[1:], "x", f"shape {x.shape[1:]}", f"shape {point.shape}")
            x[chosen] = point
            self.env.set_leader(x)
            return [None] * len(chosen)
        if method_name == "commitment":
            space = self.observation_space
            obs = np.zeros((self.num_envs, *(space.shape or ())), dtype=space.dtype)
            obs[chosen] = method_args[0] if method_args else method_kwargs["obs"]
            return list(self.env.commitment(obs)[chosen])
        if method_name == "action_masks":
            masks = getattr(self.env, method_name)()  # of environments whose actions may be missing
            return list(masks[chosen])
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * len(chosen)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the simulator, once a copy; ``leader_x`` is each copy's own."""
        chosen = self._indices(indices)
        if attr_name == "leader_x":
            return [row.copy() for row in self._rows()[chosen]]
        return [getattr(self.env, attr_name)] * len(chosen)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an existing attribute of the simulator, which all copies share.

        Raises:
            ValueError: ``indices`` given.
            AttributeError: no such attribute, or one that cannot be set (``leader_x``: use ``set_leader``).
        """
        require(indices is None, "indices", "None, for the copies share their attributes", indices)
        getattr(self.env, attr_name)
        setattr(self.env, attr_name, value)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False for every copy: there are no wrapped environments inside."""
        return [False] * len(self._indices(indices))

    def get_images(self) -> Sequence[None]:
        """The simulator draws no images."""
        return [None] * self.num_envs


def set_leader(venv: VecEnv, x: Any) -> None:
    """Set the leader's parameter in every copy of a VecEnv, through any wrappers.

    It goes through ``env_method``: ``venv.set_attr`` would write to the outermost wrapper of each copy and leave the
    environment as it was.

    Args:
        venv: copies of a leader environment.
        x: ``[dim]`` for all copies, or ``[n, dim]``, one row a copy.

    Raises:
        ValueError: a shape that is neither; what the environment's ``set_leader`` raises.
    """
    points = np.asarray(x, dtype=np.float64)
    if points.ndim == 1:
        venv.env_method("set_leader", points)
        return
    n = venv.num_envs
    require(points.ndim == 2 and len(points) == n, "x", f"shape (dim,) or ({n}, dim)", f"shape {points.shape}")
    if isinstance(venv.unwrapped, VectorEnvAdapter):
        venv.env_method("set_leader", points)
        return
    for i, row in enumerate(points):
        venv.env_method("set_leader", row, indices=i)
