"""Make the compact language model: ``python -m bilevel_gym.agents.text.pretrain [PATH]``, under a minute on one core.

Maximum likelihood on messages drawn from the grammar, fresh ones in every step, so that there is nothing to overfit.
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
    """``n`` messages from the grammar as padded texts ``[n, L]``, end tokens included, and their exact log-probabilities."""
    tokeniser = WordTokeniser()
    texts = np.full((check_size(n, "n"), MESSAGES.longest + 2), tokeniser.size, dtype=np.int64)
    log_p = np.zeros(n)
    for i in range(n):
        words, log_p[i] = MESSAGES.sample(rng)
        tokens = [tokeniser.end, *tokeniser.encode(" ".join(words)), tokeniser.end]
        texts[i, : len(tokens)] = tokens
    return torch.from_numpy(texts), log_p


def pretrain(steps: int = STEPS, batch: int = BATCH, learning_rate: float = RATE, seed: int = 0) -> WordModel:
    """A compact model trained by Adam, its rate falling to 0 along a cosine; a seed fixes it."""
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
    """Train, write, and say how far it is from the grammar."""
    torch.set_num_threads(1)
    model = pretrain()
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name(WEIGHTS)
    save_word_model(model, WordTokeniser().words, path)
    texts, log_p = draw_messages(10_000, np.random.default_rng(1))
    tokens = float((texts[:, 1:] < model.size).sum())
    with torch.no_grad():
        ours = -float(log_likelihood(model, texts).sum()) / tokens
    print(f"{path}: {ours:.4f} nats a token on fresh messages; the grammar itself {-log_p.sum() / tokens:.4f}")


if __name__ == "__main__":
    main()
