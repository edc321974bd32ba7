"""A reward network over words in context, for ``RewardModel``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from ...envs.mdp.checks import check_size, require


class WordsReward(nn.Module):
    """Reward r_x of writing a token: a number per token, plus a perceptron on it and the words just before it.

    It sees ``window`` tokens, including the one written: enough for negations and intensifiers. The learned return of a message
    is the sum over its tokens. So the follower gets a reward for each token, although whole messages were compared.

    Args:
        observation_space: texts, ``MultiDiscrete([V + 1] * L)``, where V means an empty place.
        action_space: the next token, ``Discrete(V)``.
        window: number of tokens that it sees.
        embedding: size of a token's embedding.
        hidden: width of the perceptron.

    Raises:
        ValueError: the spaces are not of texts, or a size is under 1.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        window: int = 4,
        embedding: int = 8,
        hidden: int = 16,
    ) -> None:
        super().__init__()
        texts = isinstance(observation_space, gym.spaces.MultiDiscrete)
        require(texts, "observation_space", "texts, MultiDiscrete", repr(observation_space))
        require(isinstance(action_space, gym.spaces.Discrete), "action_space", "Discrete", repr(action_space))
        self.size = int(action_space.n)  # type: ignore[attr-defined]
        self.window = check_size(window, "window")
        self.own = nn.Embedding(self.size, 1)
        nn.init.zeros_(self.own.weight)
        self.embedding = nn.Embedding(self.size + 1, check_size(embedding, "embedding"))
        first = nn.Linear(window * embedding, check_size(hidden, "hidden"))
        self.layers = nn.Sequential(first, nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Return rewards ``[B]`` of tokens ``[B]`` after texts ``[B, L]``."""
        texts, written = obs.long(), actions.long().reshape(-1, 1)
        ends = (texts < self.size).sum(-1, keepdim=True)
        places = ends - torch.arange(self.window - 1, 0, -1, device=texts.device)
        before = texts.gather(-1, places.clamp_min(0)).masked_fill(places < 0, self.size)
        seen = self.embedding(torch.cat([before, written], -1)).flatten(1)
        return (self.own(written[:, 0]) + self.layers(seen))[:, 0]  # type: ignore[no-any-return]
