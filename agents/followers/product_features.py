r"""Product features of a discrete state and the leader context, held by their one block that is not zero.

A follower that is shown x in state s observes ``phi = onehot(s) (x) k(s)``, ``[S * width]``: zeros but for the block of s.
Buffers store s and k(s), S times less. Batches of more than :data:`DENSE` entries an observation are tensors that a linear layer
reads without the zeros: ``(W phi)_j = sum_k W[j, s * width + k] k(s)_k``.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

DENSE = 1024
"""Up to this many entries an observation, batches are plain tensors and SB3's rollout buffers are kept."""


class ProductFeatures(Tensor):
    """Product features ``[n, S * width]`` as a tensor that stores states and blocks.

    A linear layer reads the blocks only. Any other function gets the plain tensor, so that networks of all kinds work.
    Its own memory is one NaN: whatever reads it past ``__torch_function__`` is not silently wrong.

    Attributes:
        states: the states, ``[n]``.
        blocks: the leader contexts there, ``[n, width]``.
        n_states: number of states S.
    """

    states: Tensor
    blocks: Tensor
    n_states: int

    @staticmethod
    def of(states: Tensor, blocks: Tensor, n_states: int) -> ProductFeatures:
        """Make features of states ``[n]`` and blocks ``[n, width]``."""
        shape = (len(states), n_states * blocks.shape[-1])
        made = blocks.new_full((), float("nan")).expand(shape).as_subclass(ProductFeatures)
        made.states, made.blocks, made.n_states = states, blocks, n_states
        return made

    def dense(self) -> Tensor:
        """Return the plain tensor, ``[n, S * width]``."""
        return _dense(self.states, self.blocks, self.n_states)

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return a linear layer's output, ``[n, out]``; what it adds are the block's products, in order."""
        # One row of weights per state: [S, out * width], then those of each observation.
        n_out, width = len(weight), self.blocks.shape[-1]
        rows = weight.view(n_out, self.n_states, width).transpose(0, 1).index_select(0, self.states)
        answer = (rows @ self.blocks.unsqueeze(-1)).squeeze(-1)
        return answer if bias is None else answer + bias

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, ProductFeatures):
            if func in _SAME and len(args) == 1:
                return first
            if func in _ABOUT:
                return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
            if func is Tensor.flatten and first.ndim == 2:
                return first
            if func is torch.nn.functional.linear:
                return first._linear(*args[1:], **kwargs)

        def plain(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(plain(part) for part in value)
            return value.dense() if isinstance(value, ProductFeatures) else value

        return func(*plain(args), **{name: plain(value) for name, value in kwargs.items()})


_SAME = {Tensor.float, Tensor.detach, Tensor.contiguous, Tensor.cpu}
"""Functions that return the features themselves: they are float32, on the CPU, and have no gradient."""
_FORM = (getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device"))
_ABOUT = {Tensor.size, Tensor.dim, Tensor.is_floating_point, *_FORM}
"""Functions that ask for the form only."""


def _dense(states: Tensor, blocks: Tensor, n_states: int) -> Tensor:
    n, width = blocks.shape
    features = blocks.new_zeros(n, n_states, width)
    features[torch.arange(n), states] = blocks
    return features.view(n, -1)


@dataclass(frozen=True)
class Blocks:
    """The form of product features.

    Attributes:
        n_states: number of states S.
        width: number of entries of a state's block.
    """

    n_states: int
    width: int

    @staticmethod
    def shown(
        model: Any, venv: VecEnv, base_space: gym.spaces.Space[Any] | None, scaled: bool = False
    ) -> Blocks | None:
        """Return the form of a model's observations; None where they are no product features, or a wrapper may change them.

        Args:
            model: an SB3 model.
            venv: the parallel environments that it was built on.
            base_space: space of the environment's own observations, where ``venv`` shows x; else None.
            scaled: whether a VecNormalize around ``venv`` is allowed: replay buffers store observations before it. Default:
                False.
        """
        outer = model.get_env()
        while scaled and isinstance(outer, VecNormalize):
            outer = outer.venv
        if outer is not venv or not isinstance(base_space, gym.spaces.Discrete):
            return None
        n_states = int(base_space.n)
        return Blocks(n_states, venv.observation_space.shape[0] // n_states)

    @property
    def space(self) -> gym.spaces.Box:
        """The space of a block."""
        return gym.spaces.Box(-np.inf, np.inf, (self.width,), np.float32)

    def states(self, obs: NDArray[Any]) -> NDArray[np.int64]:
        """Return the states of features ``[n, S * width]``: the first entry that is not 0 lies in the state's block."""
        return (obs != 0).argmax(-1).astype(np.int64) // self.width  # type: ignore[no-any-return]

    def split(self, obs: NDArray[Any], states: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the blocks, ``[n, width]``, of features ``[n, S * width]`` in states ``[n]``."""
        split: NDArray[np.float32] = obs.reshape(len(obs), self.n_states, self.width)[np.arange(len(obs)), states]
        return split

    def join(self, states: NDArray[np.int64], blocks: NDArray[np.float32]) -> Tensor:
        """Return the features of states ``[n]`` with blocks ``[n, width]``, as :class:`ProductFeatures` where they are large."""
        parts = torch.from_numpy(states), torch.from_numpy(blocks), self.n_states
        return ProductFeatures.of(*parts) if self.n_states * self.width > DENSE else _dense(*parts)


class ProductRollouts(RolloutBuffer):
    """SB3's rollout buffer of product features, which stores states and blocks.

    Args:
        blocks: the form of the features.
        args: as for SB3's ``RolloutBuffer``, but for the observation space.
        kwargs: as for SB3's ``RolloutBuffer``.

    Attributes:
        observations: the blocks.
        states: the states, ``[steps, n_envs]``.
    """

    def __init__(self, blocks: Blocks, buffer_size: int, *args: Any, **kwargs: Any) -> None:
        self.blocks = blocks
        super().__init__(buffer_size, blocks.space, *args, **kwargs)

    @staticmethod
    def in_place_of(model: Any, venv: VecEnv, base_space: gym.spaces.Space[Any] | None) -> None:
        """Replace a model's plain rollout buffer by this one, where it stores large product features on the CPU."""
        held, blocks = getattr(model, "rollout_buffer", None), Blocks.shown(model, venv, base_space)
        large = blocks is not None and blocks.n_states * blocks.width > DENSE
        if blocks is None or not large or type(held) is not RolloutBuffer or held.device.type != "cpu":
            return
        like = (held.buffer_size, held.action_space, held.device)
        model.rollout_buffer = ProductRollouts(
            blocks, *like, gae_lambda=held.gae_lambda, gamma=held.gamma, n_envs=held.n_envs
        )

    def reset(self) -> None:
        super().reset()
        self.states = np.zeros((self.buffer_size, self.n_envs), np.int64)

    def add(self, obs: NDArray[Any], *args: Any, **kwargs: Any) -> None:
        """Store a step, as SB3's buffer does; ``obs`` are whole features, ``[n_envs, S * width]``."""
        states = self.states[self.pos] = self.blocks.states(obs)
        super().add(self.blocks.split(obs, states), *args, **kwargs)

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        if not self.generator_ready:
            self.states = self.swap_and_flatten(self.states)[:, 0]
        yield from super().get(batch_size)

    def _get_samples(self, batch_inds: NDArray[Any], env: VecNormalize | None = None) -> RolloutBufferSamples:
        features = self.blocks.join(self.states[batch_inds], self.observations[batch_inds])
        return super()._get_samples(batch_inds, env)._replace(observations=features)
