"""Pretrain the compact language model: ``python -m bilevel_gym.agents.text.pretrain [PATH]``, under a minute on one core.

Maximum likelihood on messages drawn from the grammar, new ones in every step, so overfitting is not possible.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import trange

from ...envs.mdp.checks import check_size
from ...envs.text import MESSAGES, WordTokeniser
from .language_model import WEIGHTS, WordModel, log_likelihood, save_word_model

STEPS, BATCH, RATE = 3000, 128, 5e-3


def draw_messages(n: int, rng: np.random.Generator) -> tuple[Tensor, NDArray[np.float64]]:
    """Draw ``n`` messages from the grammar: padded texts ``[n, L]`` with end tokens, and their exact log-probabilities."""
    tokeniser = WordTokeniser()
    texts = np.full((check_size(n, "n"), MESSAGES.longest + 2), tokeniser.size, dtype=np.int64)
    log_p = np.zeros(n)
    for i in range(n):
        words, log_p[i] = MESSAGES.sample(rng)
        tokens = [tokeniser.end, *tokeniser.encode(" ".join(words)), tokeniser.end]
        texts[i, : len(tokens)] = tokens
    return torch.from_numpy(texts), log_p


def pretrain(steps: int = STEPS, batch: int = BATCH, learning_rate: float = RATE, seed: int = 0) -> WordModel:
    """Train a compact model by Adam, with a cosine learning rate down to 0; the result depends on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WordModel(WordTokeniser().size)
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, check_size(steps, "steps"))
    for _ in trange(steps, desc="pretraining", disable=steps < 500):
        texts, _ = draw_messages(batch, rng)
        texts = texts[:, : int((texts < model.size).sum(-1).max())]
        loss = -log_likelihood(model, texts).sum() / (texts[:, 1:] < model.size).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


def main() -> None:
    """Train the model, write it, and print its loss next to the grammar's entropy."""
    torch.set_num_threads(1)
    model = pretrain()
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name(WEIGHTS)
    save_word_model(model, WordTokeniser().words, path)
    texts, log_p = draw_messages(10_000, np.random.default_rng(1))
    tokens = float((texts[:, 1:] < model.size).sum())
    with torch.no_grad():
        ours = -float(log_likelihood(model, texts).sum()) / tokens
    print(f"{path}: {ours:.4f} nats per token on new messages; the grammar itself {-log_p.sum() / tokens:.4f}")


if __name__ == "__main__":
    main()
