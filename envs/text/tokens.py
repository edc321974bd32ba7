"""Tokenisers: texts as sequences of whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..mdp.checks import require
from .grammar import MESSAGES


class Tokeniser(Protocol):
    """Converts text to tokens 0 to ``size - 1`` and back; the token ``end`` begins and ends every message."""

    size: int
    end: int

    def encode(self, text: str) -> list[int]:
        """Convert a text to tokens, without ``end``."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Convert tokens to a text, without ``end``."""


class WordTokeniser:
    """A tokeniser whose tokens are the words between spaces; token 0 is the end.

    Args:
        words: the vocabulary. Default: that of ``MESSAGES``.

    Raises:
        ValueError: there are no words, or one occurs twice; in ``encode``, a word is not in the vocabulary.
    """

    end = 0

    def __init__(self, words: Sequence[str] = MESSAGES.words) -> None:
        require(0 < len(words) == len(set(words)), "words", "one word or more, none of them twice", list(words))
        self.words = ("", *words)
        self.size = len(self.words)
        self._token = {word: token for token, word in enumerate(self.words) if token != self.end}

    def encode(self, text: str) -> list[int]:
        unknown = [word for word in text.split() if word not in self._token]
        require(not unknown, "text", "words of the vocabulary", " ".join(unknown))
        return [self._token[word] for word in text.split()]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(self.words[token] for token in tokens if token != self.end)
