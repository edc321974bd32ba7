"""Measures of a follower's texts: sentiment, likelihood under the pretrained model, diversity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from ...envs.happy_text import HappyTextEnv
from ...envs.mdp.checks import check_size, require
from ...envs.text import MESSAGES
from .language_model import LanguageModel, log_likelihood

Texts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Written:
    """Messages that a follower has finished writing.

    Attributes:
        texts: the texts as the environment observes them, ``[n, L]``.
        first: index of the first token that the follower wrote, ``[n]``.
        lengths: number of tokens of each text, including the end token at its start, ``[n]``.
        messages: the messages as strings, without the end token.
        sentiment: rule-based sentiment of each message, ``[n]``.
    """

    texts: Texts
    first: NDArray[np.int64]
    lengths: NDArray[np.int64]
    messages: list[str]
    sentiment: NDArray[np.float64]

    @property
    def continuations(self) -> list[list[int]]:
        """The tokens that the follower wrote, including the end token."""
        rows = zip(self.texts.tolist(), self.first.tolist(), self.lengths.tolist(), strict=True)
        return [row[first:end] for row, first, end in rows]


def write(act: Callable[[Texts], NDArray[Any]], env: HappyTextEnv, n: int, seed: int) -> Written:
    """Let a policy write ``n`` messages.

    Args:
        act: returns tokens ``[n]`` for texts ``[n, L]``, e.g. ``lambda obs: model.predict(obs)[0]`` for an SB3 model, or
            ``SB3Follower.act``. Torch's generator is seeded before and restored after.
        env: the environment that provides the beginnings.
        n: number of messages.
        seed: seed of the beginnings and of torch's generator.

    Raises:
        ValueError: ``n`` is under 1.
    """
    check_size(n, "n")
    tokeniser, nothing = env.tokeniser, env.nothing
    obs = np.stack([env.reset(seed=seed if i == 0 else None)[0] for i in range(n)])
    first = (obs < nothing).sum(1)
    writing = np.arange(n)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while len(writing):
            tokens = np.asarray(act(obs[writing]))
            places = (obs[writing] < nothing).sum(1)
            obs[writing, places] = tokens
            writing = writing[(tokens != tokeniser.end) & (places < env.max_tokens)]
    messages = [tokeniser.decode([t for t in row[1:] if t < nothing]) for row in obs.tolist()]
    scores = np.array([env.sentiment(message) for message in messages])
    return Written(obs, first, (obs < nothing).sum(1), messages, scores)


def distinct_n(sequences: Sequence[Sequence[int]], n: int) -> float:
    """Share of distinct n-grams among all n-grams of the sequences (Li et al. 2016); 0 where there are none."""
    check_size(n, "n")
    grams = [tuple(seq[i : i + n]) for seq in sequences for i in range(len(seq) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


@torch.no_grad()
def mean_log_likelihood(model: LanguageModel, written: Written) -> float:
    """Mean ``log p_0`` per token that the follower wrote, including end tokens, in nats."""
    texts = torch.from_numpy(written.texts)
    total = log_likelihood(model, texts, torch.from_numpy(written.first)).double().sum()
    return float(total) / sum(len(tokens) for tokens in written.continuations)


@dataclass(frozen=True)
class Quality:
    """Quality measures of a set of messages. Diversity can be compared between sets of the same size only.

    Attributes:
        sentiment: mean rule-based score.
        log_likelihood: mean log-probability per written token under the pretrained model, in nats.
        distinct_1: share of distinct tokens among those written.
        distinct_2: share of distinct bigrams.
        distinct_messages: share of distinct messages.
        grammatical: share of messages that the grammar can generate.
        tokens: mean number of tokens written, including the end token.
    """

    sentiment: float
    log_likelihood: float
    distinct_1: float
    distinct_2: float
    distinct_messages: float
    grammatical: float
    tokens: float


def assess(written: Written, pretrained: LanguageModel) -> Quality:
    """Compute all quality measures.

    Raises:
        ValueError: there are no messages.
    """
    require(len(written.messages) > 0, "written", "one message or more", "none")
    parts = written.continuations
    return Quality(
        sentiment=float(written.sentiment.mean()),
        log_likelihood=mean_log_likelihood(pretrained, written),
        distinct_1=distinct_n(parts, 1),
        distinct_2=distinct_n(parts, 2),
        distinct_messages=len(set(written.messages)) / len(written.messages),
        grammatical=float(np.mean([MESSAGES.accepts(message) for message in written.messages])),
        tokens=float(np.mean([len(part) for part in parts])),
    )


def text_env(env: gym.Env[Any, Any]) -> HappyTextEnv:
    """Return the text environment inside its wrappers.

    Raises:
        ValueError: the environment is not a ``HappyTextEnv``.
    """
    base = env.unwrapped
    require(isinstance(base, HappyTextEnv), "env", "HappyText-v0", repr(env))
    assert isinstance(base, HappyTextEnv)
    return base
