r"""Causal language models, and the compact one in the package.

    p(w_1 .. w_T) = prod_t p(w_t | end, w_1 .. w_{t-1}),       w_T = end

A message begins and ends with the same token. The compact model is a GRU over word embeddings with 48k weights, trained on
messages from the project's own grammar (``pretrain``); its weights are in ``word_model.npz``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...envs.mdp.checks import check_size, require
from ...envs.text import WordTokeniser
from ..files import reading

WEIGHTS = "word_model.npz"


class LanguageModel(nn.Module, ABC):
    """A causal model of token sequences.

    Attributes:
        size: vocabulary size V.
        width: size of the hidden state, d.
    """

    size: int
    width: int

    @abstractmethod
    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the states ``[B, T, d]`` after each of the tokens ``[B, T]``; none depends on a later token."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the next token, ``[..., V]``, from states ``[..., d]``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return log-probabilities ``[B, T, V]`` of the next token after each of the tokens ``[B, T]``."""
        return torch.log_softmax(self.logits(self.hidden(tokens)), -1)

    def last_hidden(self, texts: Tensor) -> Tensor:
        """Return the states ``[B, d]`` after the last token of each text ``[B, L]``, padded at the end with a token beyond V."""
        lengths = (texts < self.size).sum(-1)
        seen = texts[:, : int(lengths.max())]
        # Padding after a text does not affect the state at its last token.
        hidden = self.hidden(seen.masked_fill(seen >= self.size, 0))
        return hidden[torch.arange(len(texts), device=texts.device), lengths - 1]


class WordModel(LanguageModel):
    """A GRU over word embeddings.

    Args:
        size: vocabulary size V.
        embedding: size of a word's embedding.
        width: size of the GRU's state.

    Raises:
        ValueError: a size is under 1.
    """

    def __init__(self, size: int, embedding: int = 48, width: int = 80) -> None:
        super().__init__()
        self.size, self.width = check_size(size, "size"), check_size(width, "width")
        self.embedding = nn.Embedding(size, check_size(embedding, "embedding"))
        self.gru = nn.GRU(embedding, width, batch_first=True)
        self.head = nn.Linear(width, size)

    def hidden(self, tokens: Tensor) -> Tensor:
        return self.gru(self.embedding(tokens))[0]  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)  # type: ignore[no-any-return]


def save_word_model(model: WordModel, words: tuple[str, ...], path: str | Path) -> None:
    """Write weights and vocabulary to an ``.npz`` file without pickles."""
    weights: dict[str, Any] = {name: value.cpu().numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(path, words=np.array(words), **weights)


def load_word_model(path: str | Path | None = None) -> WordModel:
    """Load a compact model from a file; by default the package's pretrained one.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the model's vocabulary differs from the tokeniser's.
    """
    if path is None:
        with as_file(files(__package__).joinpath(WEIGHTS)) as own:
            return load_word_model(own)
    with reading(path, "word model"):
        with np.load(path, allow_pickle=False) as held:
            words = tuple(str(word) for word in held["words"])
            weights = {name: torch.from_numpy(held[name]) for name in held.files if name != "words"}
        known = WordTokeniser().words
        expected = f"a model with the grammar's {len(known)} words"
        require(words == known, "path", expected, f"{path}, with {len(words)} others")
        size, embedding = weights["embedding.weight"].shape
        model = WordModel(size, embedding, width=weights["head.weight"].shape[1])
        model.load_state_dict(weights)
    return model


def log_likelihood(model: LanguageModel, texts: Tensor, first: Tensor | int = 1) -> Tensor:
    """Return ``log p`` of each token given those before it, ``[B, L]``; 0 for padding and for tokens before ``first``.

    Args:
        model: the language model.
        texts: texts ``[B, L]``, as the environment observes them: the end token, the tokens, padding beyond V.
        first: index of the first token to count, a number or ``[B]``. Default: 1.
    """
    safe = texts.masked_fill(texts >= model.size, 0)
    found = model(safe[:, :-1]).gather(-1, safe[:, 1:, None])[..., 0]
    place = torch.arange(1, texts.shape[1], device=texts.device)
    counts = (texts[:, 1:] < model.size) & (place >= torch.as_tensor(first, device=texts.device).reshape(-1, 1))
    return nn.functional.pad(found * counts, (1, 0))
