r"""A replay buffer that stays correct while the leader's x moves.

A stored transition (o, a, w, o'), with w the leader's draw, was paid under an earlier x and an earlier lam. Before each training
the buffer updates

    the mixture ``r_f + r_l / lam``     always: both rewards are stored, and mixed again at the current lam
    the rewards                         where x affects rewards only (log p_x does not depend on x): o, a, w, o' are as likely
                                        as before, and the leader model recomputes their rewards at the new x; a leader
                                        context in o and o' is updated too

Where x is the leader's policy or changes the dynamics, (o, a, w, o') belongs to the MDP of its own x. If o contains the leader
context, the follower can tell, and the transition is kept with its rewards. If not, the transition would mislead, and is dropped
as soon as x moves.

Product features of a discrete state and the leader context are stored as the state and its block (:mod:`.product_features`), and
made when a batch is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from ...envs.mdp.checks import require
from ...wrappers.vec_env import info_column
from .product_features import Blocks

Floats = NDArray[np.float64]
Relabel = Callable[
    [Floats, NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]],
    tuple[NDArray[Any], NDArray[Any], NDArray[Any], Floats],
]
"""A function of x, ``[dim]``, and of transitions (obs, action, draw, next_obs) in the environment's own observations, each
``[n, ...]``. It returns them at x: obs and next_obs as the follower sees them, of product features the states' blocks, then both
rewards r_f and r_l, ``[n]``."""


_LARGEST_DRAWS = 2**26
"""Maximum size in bytes of the leader's draws that a file may ask for."""


def played_actions(buffer: ReplayBuffer, copies: NDArray[np.intp], n: int) -> NDArray[Any]:
    """Return the first n actions of some of the parallel environments, ``[n * copies, ...]``, unscaled: SB3 stores the actions
    of a Box scaled to [-1, 1]."""
    space = buffer.action_space
    actions = buffer.actions[:n, copies].reshape(n * len(copies), *(space.shape or ()))
    if isinstance(space, gym.spaces.Box):
        actions = space.low + 0.5 * (actions + 1.0) * (space.high - space.low)
    return actions


def buffer_arrays(buffer: Any, whole: bool = False) -> dict[str, NDArray[Any]]:
    """Return a buffer's arrays by name, without copying them.

    Args:
        buffer: any of SB3's replay buffers.
        whole: whether to return whole arrays, or only the steps that have been filled. Default: False.
    """
    steps = buffer.buffer_size if whole or buffer.full else buffer.pos
    found: dict[str, NDArray[Any]] = {}
    for name, value in vars(buffer).items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for key, part in parts:
            if isinstance(part, np.ndarray) and part.dtype != object and name != "_points":
                filled = not name.startswith("_") and part.shape[:2] == (buffer.buffer_size, buffer.n_envs)
                found[f"{name}.{key}" if key else name] = part[:steps] if filled else part
    return found


def buffer_state(buffer: Any) -> dict[str, Any]:
    """Return all of a buffer except :func:`buffer_arrays`, as tensors and numbers."""
    own = isinstance(buffer, TrueReplay)
    draws, points = (buffer.draws, buffer._points) if own else (None, None)
    return {
        "pos": int(buffer.pos),
        "full": bool(buffer.full),
        "draws": None if draws is None else (draws.dtype.str, list(draws.shape[2:])),
        "points": None if points is None else torch.from_numpy(points),
    }


def restore_buffer(buffer: Any, state: dict[str, Any]) -> None:
    """Load what :func:`buffer_state` returned, and allocate the arrays. The state of another buffer raises an error."""
    pos, draws, points = int(state["pos"]), state["draws"], state["points"]
    require(0 <= pos < buffer.buffer_size, "replay", f"a position below {buffer.buffer_size}", pos)
    if isinstance(buffer, TrueReplay):
        if draws is not None:
            dtype = np.dtype(draws[0])
            require(dtype.kind in "biuf", "draws", "numbers", dtype)
            shape = (buffer.buffer_size, buffer.n_envs, *(int(size) for size in draws[1]))
            fits = min(shape) >= 0 and math.prod(shape) * dtype.itemsize <= _LARGEST_DRAWS
            require(fits, "draws", f"at most {_LARGEST_DRAWS} bytes in all", shape)
            buffer.draws = np.zeros(shape, dtype)
        buffer._points = None if points is None else points.double().numpy().copy()
    buffer.pos, buffer.full = pos, bool(state["full"])


def require_playable(buffer: Any) -> None:
    """Raise ``ValueError`` where the arrays of a buffer, read from a file, hold actions outside its action space."""
    space, actions = buffer.action_space, buffer.actions[: buffer.size()]
    n = getattr(space, "nvec", getattr(space, "n", np.inf))  # any number is allowed in a Box
    playable = isinstance(space, gym.spaces.Box) or bool(((actions >= 0) & (actions < n)).all())
    require(playable, "replay", f"actions in {space}", "actions outside it")


class TrueReplay(ReplayBuffer):
    """SB3's replay buffer, which also stores the leader's draws and both rewards.

    Args:
        args: as for SB3's ``ReplayBuffer``.
        venv: the parallel environments whose steps are stored, wrapped in a ``RewardMixing``.
        base_space: space of the environment's own observations, where the follower's observations hold more; default None.
        blocks: the form of product features; None, the default, stores whole observations.
        kwargs: as for SB3's ``ReplayBuffer``.

    Attributes:
        observations: the follower's observation before each step; of product features the block of the state.
        next_observations: observation after each step, likewise.
        base_obs: observation before each step, ``[size, n_envs]``, where the follower sees features of it; else None.
        base_next_obs: observation after each step, likewise.
        draws: the leader's draws, ``[size, n_envs, ...]``; None before the first step.
        follower_rewards: r_f, ``[size, n_envs]``, float32 as in a VecEnv.
        leader_rewards: r_l, ``[size, n_envs]``.
    """

    draws: NDArray[Any] | None = None
    _points: Floats | None = None

    base_obs: NDArray[np.int64] | None = None
    base_next_obs: NDArray[np.int64] | None = None

    def __init__(
        self,
        buffer_size: int,
        observation_space: gym.spaces.Space[Any],
        *args: Any,
        venv: VecEnv,
        base_space: gym.spaces.Space[Any] | None = None,
        blocks: Blocks | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(buffer_size, observation_space if blocks is None else blocks.space, *args, **kwargs)
        self._venv, self._base_space, self._blocks = venv, base_space, blocks
        if isinstance(base_space, gym.spaces.Discrete):
            shape = (self.buffer_size, self.n_envs)
            self.base_obs, self.base_next_obs = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.follower_rewards = np.zeros_like(self.rewards)
        self.leader_rewards = np.zeros(self.rewards.shape)

    @classmethod
    def in_place_of(
        cls, model: Any, venv: VecEnv, base_space: gym.spaces.Space[Any] | None = None
    ) -> TrueReplay | None:
        """Replace a model's replay buffer, plain and still empty, by this one; returns None for other models."""
        held = getattr(model, "replay_buffer", None)
        if type(held) is not ReplayBuffer or held.optimize_memory_usage:
            return None
        like = (model.buffer_size, model.observation_space, model.action_space, model.device, model.n_envs)
        timeouts: dict[str, Any] = {"handle_timeout_termination": held.handle_timeout_termination}
        blocks = Blocks.shown(model, venv, base_space, scaled=True)
        model.replay_buffer = cls(*like, **timeouts, venv=venv, base_space=base_space, blocks=blocks)
        return model.replay_buffer  # type: ignore[no-any-return]

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        at = self.pos
        drawn, base = (info_column(self._venv, infos, name, optional=True) for name in ("leader_draw", "base_obs"))
        if self.base_obs is not None and self.base_next_obs is not None:
            self.base_obs[at], self.base_next_obs[at] = base, info_column(self._venv, infos, "base_next_obs")
            if self._blocks is not None:
                obs = self._blocks.split(obs, self.base_obs[at])
                next_obs = self._blocks.split(next_obs, self.base_next_obs[at])
        super().add(obs, next_obs, action, reward, done, infos)
        if drawn is None:
            drawn = np.zeros(self.n_envs, np.int64)
        if self.draws is None:
            self.draws = np.zeros((self.buffer_size, *drawn.shape), drawn.dtype)
        self.draws[at] = drawn
        self.follower_rewards[at] = info_column(self._venv, infos, "follower_reward")
        self.leader_rewards[at] = info_column(self._venv, infos, "leader_reward")

    def _get_samples(self, batch_inds: NDArray[Any], env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return a batch, with SB3's random numbers; features are made of the blocks."""
        if self._blocks is None or self.base_obs is None or self.base_next_obs is None:
            return super()._get_samples(batch_inds, env)
        at = batch_inds, np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))  # noqa: NPY002
        ended = self.dones[at] * (1 - self.timeouts[at])
        return ReplayBufferSamples(
            self._features(self.base_obs[at], self.observations[at], env),
            self.to_torch(self.actions[at]),
            self._features(self.base_next_obs[at], self.next_observations[at], env),
            self.to_torch(ended.reshape(-1, 1)),
            self.to_torch(self._normalize_reward(self.rewards[at].reshape(-1, 1), env)),
        )

    def _features(self, states: NDArray[np.int64], blocks: NDArray[Any], env: VecNormalize | None) -> torch.Tensor:
        assert self._blocks is not None
        features = self._blocks.join(states, blocks)
        if env is None and self.device.type == "cpu":
            return features
        return self.to_torch(self._normalize_obs(features.numpy(), env))  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_venv"}

    def renew(
        self, points: Floats, weight: float, relabel: Relabel | None, told: bool, own_weight: float = 1.0
    ) -> None:
        """Update the buffer before its model is trained at ``points``.

        Args:
            points: x of each parallel environment, ``[n_envs, dim]``.
            weight: weight of the leader's reward: 1/lam, or 0 for the best response.
            relabel: recomputes transitions at a new x, where x affects rewards only; else None.
            told: whether observations contain the leader context.
            own_weight: weight of the follower's own reward. Default: 1.
        """
        if self._points is not None and not np.array_equal(points, self._points):
            if relabel is not None:
                self.relabel(points, relabel)
            elif not told:
                self.reset()
        self._points = points.copy()
        self.mix(weight, own_weight)

    def mix(self, weight: float, own_weight: float = 1.0) -> None:
        """Set the rewards to ``own_weight * r_f + weight * r_l``, as ``RewardMixing`` does."""
        n = self.size()
        self.rewards[:n] = own_weight * self.follower_rewards[:n] + weight * self.leader_rewards[:n]

    def relabel(self, points: Floats, relabel: Relabel) -> None:
        """Recompute every transition at its environment's x, ``points`` ``[n_envs, dim]``. Call :meth:`mix` afterwards."""
        n = self.size()
        if n == 0 or self.draws is None:
            return
        different, which = np.unique(points, axis=0, return_inverse=True)
        base, base_next = self._base()
        for k, x in enumerate(different):
            rows = np.flatnonzero(which.ravel() == k)
            held = (part[:n, rows] for part in (base, self.draws, base_next))
            before, draw, after = (part.reshape(n * len(rows), *part.shape[2:]) for part in held)
            seen, seen_next, *paid = relabel(x, before, played_actions(self, rows, n), draw, after)
            if self.base_obs is not None and self._blocks is None:  # whole features are stored
                form = Blocks(int(self._base_space.n), seen.shape[1])  # type: ignore[union-attr]
                seen, seen_next = form.join(before, seen).numpy(), form.join(after, seen_next).numpy()
            found = (seen, seen_next, *paid)
            kept = (self.observations, self.next_observations, self.follower_rewards, self.leader_rewards)
            for part, value in zip(kept, found, strict=True):
                part[:n, rows] = np.asarray(value).reshape(n, len(rows), *part.shape[2:])

    def _base(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the environment's own observations before and after each step, ``[size, n_envs, ...]``."""
        if self.base_obs is not None and self.base_next_obs is not None:
            return self.base_obs, self.base_next_obs
        if self._base_space is None:
            shape = (self.buffer_size, self.n_envs, *(self.observation_space.shape or ()))
            return self.observations.reshape(shape), self.next_observations.reshape(shape)
        size = int(np.prod(self._base_space.shape or ()))  # a Box: the leader context comes after the observation
        return self.observations[..., :size], self.next_observations[..., :size]
