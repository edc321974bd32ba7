"""Reward models r_x(s, a): a multi-layer perceptron, the paper's convolutional network, and ensembles of any network.

A net is a torch module ``(obs [B, ...], actions [B, ...]) -> [B]``; observations and actions are those of the environment.
:class:`RewardModel` turns one or several nets into a reward to pay: the mean of its members, shifted and scaled to the unit that
followers expect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from ...envs.mdp.checks import check_number, check_size, require
from ...wrappers import Segment

NUMBERS = 2**24
"""Numbers in the observations per batch where no gradient is needed, which bounds the memory."""
_SMALLEST = 36
"""Smallest number of rows and columns of an image for :class:`ConvReward`."""
RewardNet = Callable[[gym.Space[Any], gym.Space[Any]], nn.Module]
"""A function that builds a net from an observation space and an action space."""


def _n_outputs(action_space: gym.Space[Any]) -> int:
    return int(action_space.n) if isinstance(action_space, gym.spaces.Discrete) else 1


def _of_action(values: Tensor, actions: Tensor) -> Tensor:
    """Select the output of the action taken, ``[B]`` from ``[B, A]``; a single output is taken as it is."""
    if values.shape[-1] == 1:
        return values[..., 0]
    return values.gather(-1, actions.long().reshape(-1, 1))[..., 0]


class MLPReward(nn.Module):
    """A perceptron on the flattened observation, with one output per discrete action; other actions are inputs.

    Args:
        observation_space: Box, Discrete (one-hot), MultiDiscrete or MultiBinary.
        action_space: Discrete, Box (scaled to [-1, 1] where bounded), MultiDiscrete (one-hot) or MultiBinary.
        hidden: sizes of the hidden layers; empty for a linear reward, which is a table where all is Discrete.

    Inputs from a Box are standardised by the moments given to :meth:`fit_inputs`.

    Raises:
        ValueError: a space is of another kind.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], hidden: tuple[int, ...] = (64, 64)
    ) -> None:
        super().__init__()
        seen = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            way_out = " (gymnasium.wrappers.FlattenObservation makes a Box)" if name == "observation_space" else ""
            require(isinstance(space, seen), name, f"no Dict or Tuple{way_out}", repr(space))
        self.observation_space, self.action_space = observation_space, action_space
        # The inputs are the observation's numbers, then those of a continuous action, each shifted and scaled.
        width = get_flattened_obs_dim(observation_space)
        mean, std = torch.zeros(width), torch.ones(width)
        if isinstance(action_space, gym.spaces.Box):
            # in float64, where the sum of two largest float32 numbers is finite
            low, high = (
                torch.as_tensor(end, dtype=torch.float64).flatten() for end in (action_space.low, action_space.high)
            )
            bounded = torch.isfinite(low.float()) & torch.isfinite(high.float())
            mean = torch.cat([mean, torch.where(bounded, (low + high) / 2, 0.0).float()])
            std = torch.cat([std, torch.where(bounded, (high - low) / 2, 1.0).float()])
        elif not isinstance(action_space, gym.spaces.Discrete):
            width = get_flattened_obs_dim(action_space)
            mean, std = torch.cat([mean, torch.zeros(width)]), torch.cat([std, torch.ones(width)])
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.width = len(mean)
        widths = [check_size(n, "hidden") for n in hidden]
        self.layers = nn.Sequential(*create_mlp(len(mean), _n_outputs(action_space), widths, nn.LeakyReLU))

    def _features(self, obs: Tensor) -> Tensor:
        seen: Any = preprocess_obs(obs, self.observation_space)
        return seen.flatten(1).to(self.layers[-1].weight.dtype)  # type: ignore[no-any-return]

    def fit_inputs(self, obs: Tensor) -> None:
        """Set the standardisation from these observations, ``[B, ...]``; call it once, before training."""
        if isinstance(self.observation_space, gym.spaces.Box):
            features = self._features(obs)
            n = features.shape[1]
            self.mean[:n], self.std[:n] = features.mean(0), features.std(0, correction=0).clamp_min(1e-3)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        seen = self._features(obs)
        if isinstance(self.action_space, gym.spaces.Box):
            seen = torch.cat([seen, actions.flatten(1).to(seen.dtype)], -1)
        elif not isinstance(self.action_space, gym.spaces.Discrete):
            done: Any = preprocess_obs(actions, self.action_space)
            seen = torch.cat([seen, done.flatten(1).to(seen.dtype)], -1)
        return _of_action(self.layers((seen - self.mean) / self.std), actions)


def convolutions(
    observation_space: gym.Space[Any], least: int, layers: Sequence[tuple[int, int, int]], activation: nn.Module
) -> tuple[nn.Sequential, int]:
    """Return convolutions given as (kernel, stride, filters), flattened, and the number of outputs.

    Raises:
        ValueError: not images, channels first, with at least ``least`` rows and columns.
    """
    shape = observation_space.shape or ()
    image = isinstance(observation_space, gym.spaces.Box) and len(shape) == 3 and min(shape[1:]) >= least
    require(image, "observation_space", f"images [C, H, W] of {least} x {least} or more", repr(observation_space))
    channels, parts = shape[0], list[nn.Module]()
    for kernel, stride, filters in layers:
        parts += [nn.Conv2d(channels, filters, kernel, stride), activation]
        channels = filters
    net = nn.Sequential(*parts, nn.Flatten())
    with torch.no_grad():
        return net, net(torch.zeros(1, *shape)).shape[1]


class ConvReward(nn.Module):
    """The paper's network for images: convolutions 7, 5, 3, 3, strides 3, 2, 1, 1, 16 filters, 64 units, dropout 0.5.

    The sizes are our default, meant as those of the paper's section 6.2 (unverified); the activation is that of Christiano et
    al. (2017).

    Args:
        observation_space: Box of images, channels first.
        action_space: Discrete.
        dropout: dropout probability before the last layer.

    Raises:
        ValueError: the space is not of images, or they are too small.
    """

    def __init__(self, observation_space: gym.Space[Any], action_space: gym.Space[Any], dropout: float = 0.5) -> None:
        super().__init__()
        require(isinstance(action_space, gym.spaces.Discrete), "action_space", "Discrete", repr(action_space))
        check_number(dropout, "dropout", low=0.0, high=1.0, open_high=True)
        self.observation_space = observation_space
        layers = ((7, 3, 16), (5, 2, 16), (3, 1, 16), (3, 1, 16))
        self.features, width = convolutions(observation_space, _SMALLEST, layers, nn.LeakyReLU(0.01))
        self.head = nn.Sequential(
            nn.Linear(width, 64), nn.LeakyReLU(0.01), nn.Dropout(dropout), nn.Linear(64, _n_outputs(action_space))
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # halves the time on a CPU

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        seen = preprocess_obs(obs.contiguous(memory_format=torch.channels_last), self.observation_space)
        return _of_action(self.head(self.features(seen)), actions)


def default_net(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> nn.Module:
    """Build a :class:`ConvReward` for images it can take, channels first, and Discrete actions; else an :class:`MLPReward`."""
    shape = observation_space.shape or ()
    images = isinstance(observation_space, gym.spaces.Box) and len(shape) == 3 and min(shape[1:]) >= _SMALLEST
    convolved = images and isinstance(action_space, gym.spaces.Discrete)
    return (ConvReward if convolved else MLPReward)(observation_space, action_space)


class RewardModel(nn.Module):
    """A net or an ensemble as the reward that a follower is paid, ``(mean over members of r_x - shift) / scale``.

    Args:
        members: the nets.
        device: device of the model; "auto", the default, takes a GPU if there is one.

    Attributes:
        members: the nets.
        shift: number to subtract.
        scale: number to divide by.

    Raises:
        ValueError: there is no member, or one is no torch module.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, members: list[nn.Module], device: str = "auto") -> None:
        super().__init__()
        fits = len(members) >= 1 and all(isinstance(member, nn.Module) for member in members)
        require(fits, "members", "one or more torch modules", members)
        self.members = nn.ModuleList(members)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.eval()
        self.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """Return an array as a tensor on the model's device, with float64 converted to float32."""
        found = torch.as_tensor(np.asarray(values))
        single = found.dtype == torch.float64 and self.scale.dtype == torch.float32
        return found.to(self.shift.device, torch.float32 if single else found.dtype)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Return each member's r_x, not normalised, ``[M, B]``, differentiable in the weights."""
        return torch.stack([member(obs, actions) for member in self.members])

    def returns(self, segments: Sequence[Segment]) -> Tensor:
        """Return each member's R_x of B segments of equal length, ``[M, B]``."""
        names = ("observations", "actions", "mask")
        obs, actions, mask = (self.tensor(np.stack([getattr(one, name) for one in segments])) for name in names)
        r = self(obs.flatten(0, 1), actions.flatten(0, 1)).reshape(-1, *mask.shape)
        return (r * mask).sum(-1)  # type: ignore[no-any-return]

    def numbers(self, obs: NDArray[Any]) -> int:
        """Return the number of net inputs for observations ``[n, ...]``, where one-hot states count in full."""
        width = max(int(getattr(member, "width", 1)) for member in self.members)
        return max(1, obs.size, len(obs) * width)

    @torch.no_grad()
    def raw(self, obs: NDArray[Any], actions: NDArray[Any], batch: int = 8192) -> NDArray[np.float64]:
        """Return the mean r_x over members, without dropout and not normalised, ``[n]``, in batches of ``batch`` steps."""
        batch = max(1, min(batch, NUMBERS // self.numbers(obs[:1])))
        held, parts = self.training, [np.zeros(0)]
        if held:
            self.eval()
        for i in range(0, len(obs), batch):
            r = self(self.tensor(obs[i : i + batch]), self.tensor(actions[i : i + batch]))
            parts.append(r.mean(0).double().cpu().numpy())
        if held:
            self.train()
        return np.concatenate(parts)

    def reward(self, obs: NDArray[Any], actions: NDArray[Any]) -> NDArray[np.float64]:
        """Return the reward to pay, ``[n]``, for observations and actions ``[n, ...]``."""
        return (self.raw(obs, actions) - float(self.shift)) / float(self.scale)

    def fit_inputs(self, obs: NDArray[Any]) -> None:
        """Let members with ``fit_inputs`` standardise by the moments of these observations, ``[B, ...]``."""
        for member in self.members:
            fit: Any = getattr(member, "fit_inputs", None)
            if fit is not None:
                fit(self.tensor(obs))

    def normalise(self, obs: NDArray[Any], actions: NDArray[Any], centre: bool, unit: float = 1.0) -> None:
        """Set shift and scale so that the reward has standard deviation ``unit`` over these steps and, if ``centre``, mean 0.

        Centring is right only where no episode terminates; otherwise the level of the reward matters.
        """
        values = self.raw(obs, actions)
        if len(values) == 0:
            return
        spread = float(values.std()) if centre else float(np.sqrt(np.mean(values**2)))
        self.shift.fill_(float(values.mean()) if centre else 0.0)
        self.scale.fill_((spread if spread > 1e-6 else 1.0) / unit)
