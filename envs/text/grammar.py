r"""A probabilistic context-free grammar of short everyday messages, happy, plain and sad.

    A -> beta with probability w_beta / sum w;      log p(message) = sum over the rules used

Every message has one derivation, so that this is its exact log-probability, and the mean of ``-log p`` per token is the entropy
rate that no language model of the corpus can beat. The messages were written for this project.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from functools import cached_property
from importlib.resources import files
from itertools import accumulate

import numpy as np

from ..mdp.checks import check_number, require

Rule = tuple[tuple[str, ...], ...]


class Grammar:
    """A probabilistic context-free grammar, given as text with one line for each symbol.

    A line is ``SYMBOL: weight word SYMBOL ... | weight ...``; a line that starts with ``|`` continues the previous one. The names
    before a colon are symbols; everything else is a word. The first symbol is the start symbol. No symbol may produce itself.

    Raises:
        ValueError: a line has another form, a weight is not positive, or a symbol produces itself.
    """

    def __init__(self, text: str) -> None:
        self._rules: dict[str, Rule] = {}
        self._cumulated: dict[str, list[float]] = {}
        for line in filter(None, (line.strip() for line in re.sub(r"\n\s*\|", " |", text).splitlines())):
            symbol, colon, right = line.partition(":")
            require(bool(colon), "text", "lines 'SYMBOL: weight word ... | ...'", repr(line))
            options = [option.split() for option in right.split("|")]
            require(all(len(option) >= 2 for option in options), "text", "a weight and words in every option", line)
            weights = [
                check_number(option[0], "weight", low=0.0, open_low=True, open_high=True, text=True)
                for option in options
            ]
            self._rules[symbol.strip()] = tuple(tuple(option[1:]) for option in options)
            self._cumulated[symbol.strip()] = [partial / sum(weights) for partial in accumulate(weights)]
        require(len(self._rules) > 0, "text", "one rule or more", "none")
        self.start = next(iter(self._rules))
        self.longest = self._longest(self.start, ())

    def _longest(self, symbol: str, above: tuple[str, ...]) -> int:
        """Return the number of words of the longest phrase."""
        if symbol not in self._rules:
            return 1
        require(symbol not in above, "text", "symbols that do not lead back to themselves", symbol)
        deeper = (*above, symbol)
        return max(sum(self._longest(part, deeper) for part in option) for option in self._rules[symbol])

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary, in alphabetical order."""
        parts = {part for options in self._rules.values() for option in options for part in option}
        return tuple(sorted(parts - set(self._rules)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Return a regular expression that matches all messages; there are finitely many, since no symbol produces itself."""

        def phrase(symbol: str) -> str:
            if symbol not in self._rules:
                return re.escape(symbol) + " "
            return "(?:" + "|".join("".join(map(phrase, option)) for option in self._rules[symbol]) + ")"

        return re.compile(phrase(self.start))

    def accepts(self, message: str) -> bool:
        """Return whether the grammar can produce a message, a string of words separated by single spaces."""
        return self._pattern.fullmatch(message + " ") is not None

    def sample(self, rng: np.random.Generator) -> tuple[tuple[str, ...], float]:
        """Draw a message; return its words and the log-probability of its derivation."""
        log_p, words, stack = 0.0, [], [self.start]
        while stack:
            symbol = stack.pop()
            options = self._rules.get(symbol)
            if options is None:
                words.append(symbol)
                continue
            cumulated = self._cumulated[symbol]
            chosen = min(bisect_right(cumulated, rng.random()), len(options) - 1)
            log_p += math.log(cumulated[chosen] - (cumulated[chosen - 1] if chosen else 0.0))
            stack.extend(reversed(options[chosen]))
        return tuple(words), log_p


MESSAGES = Grammar(files(__package__).joinpath("messages.txt").read_text(encoding="utf-8"))
"""The corpus that language models of this project are trained on."""
