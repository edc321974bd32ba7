"""Atari games whose reward is learned from preferences (arXiv 2402.06886, 6.2): the environments, and the actor-critic network.

An environment is ``ALE/<game>-v5`` under SB3's ``AtariWrapper``: up to 30 no-op steps at the start, four frames per step with the
maximum of the last two shown, 84 x 84 grey pixels, one episode per life, no sticky actions (as in preprocessing of the paper's
time). Four frames are stacked, channels first. The reward is the sign of the game's reward. The true reward, the *score*, is in
``info["score"]``; labels and evaluations use it. Evaluations play whole games.

The emulator, ale-py, is licensed under GPL-2.0-only and includes the games' ROMs; it is the extra ``atari``, and is imported only
when a game is made.
unless a game is made.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecTransposeImage
from torch import Tensor, nn

from ...envs.mdp.checks import check_size, require
from ...wrappers import WorkerVecEnv
from ..learned.worlds import Vectorisation
from .reward_model import convolutions
from .worlds import Copies

FRAMES = 4
"""Number of frames in an observation."""
SCORE = "score"
"""The key of ``info`` with the true reward."""


class SignPaid(gym.Wrapper[Any, Any, Any, Any]):
    """Replace the reward by its sign; the reward itself is in ``info["score"]``."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(np.sign(float(reward))), terminated, truncated, {**info, SCORE: float(reward)}


def _emulator() -> None:
    """Register the games with Gymnasium."""
    try:
        import ale_py
        import cv2  # noqa: F401
    except ImportError as error:
        raise ImportError("Atari games need ale-py and OpenCV: pip install 'bilevel-gym[atari]'") from error
    gym.register_envs(ale_py)


def _copy(game: str, whole: bool) -> gym.Env[Any, Any]:
    _emulator()  # a new worker process has nothing registered
    emulated = gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0)
    return SignPaid(AtariWrapper(Monitor(emulated), terminal_on_life_loss=not whole, clip_reward=False))


def _copies(n_envs: int, game: str, whole: bool, vec_env: Vectorisation | None) -> VecEnv:
    makers: list[Any] = [partial(_copy, game, whole)] * check_size(n_envs, "n_envs")
    venv = WorkerVecEnv(makers) if vec_env == "subproc" else DummyVecEnv(makers)
    return VecTransposeImage(VecFrameStack(venv, FRAMES))


def atari_copies(game: str, vec_env: Vectorisation | None = None) -> Copies:
    """Make an Atari game whose reward is learned; ``PreferenceConfig(frame_stack=4)`` then stores each frame once.

    Args:
        game: its name in the Arcade Learning Environment, e.g. ``"Seaquest"``.
        vec_env: how parallel environments are stepped (see ``agents.learned.worlds``).

    Raises:
        ImportError: the extra ``atari`` is not installed.
        ValueError: the game is unknown.

    Example:
        >>> from bilevel_gym.agents.preferences.atari import atari_copies
        >>> venv = atari_copies("Seaquest").make(2)
        >>> venv.observation_space.shape, venv.reset().shape
        ((4, 84, 84), (2, 4, 84, 84))
    """
    _emulator()
    known = sorted(name[4:-3] for name in gym.registry if name.startswith("ALE/") and name.endswith("-v5"))
    require(game in known, "game", f"one of {', '.join(known)}", repr(game))
    make = partial(_copies, game=game, vec_env=vec_env)
    return Copies(partial(make, whole=False), f"ALE/{game}-v5", SCORE, whole=partial(make, whole=True))


class AtariCNN(BaseFeaturesExtractor):
    """The paper's actor-critic network: convolutions 8, 5, 4, 4, strides 4, 2, 1, 1, filters 16, 32, 32, 32, and 256 units.

    The sizes are our default, meant as those of the paper's section 6.2 (unverified), with ReLU as in SB3's network for images.
    For an ``ActorCriticCnnPolicy``: ``policy_kwargs={"features_extractor_class": AtariCNN, "net_arch": []}``.

    Args:
        observation_space: Box of images, channels first.
        features_dim: number of units in the last layer.

    Raises:
        ValueError: the space is not of images, or they are too small.
    """

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 256) -> None:
        super().__init__(observation_space, check_size(features_dim, "features_dim"))
        layers = ((8, 4, 16), (5, 2, 32), (4, 1, 32), (4, 1, 32))
        self.layers, width = convolutions(observation_space, 64, layers, nn.ReLU())
        self.head = nn.Sequential(nn.Linear(width, features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        nearer = observations.contiguous(memory_format=torch.channels_last)  # halves the time on a CPU
        return self.head(self.layers(nearer))  # type: ignore[no-any-return]
