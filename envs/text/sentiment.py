r"""A rule that scores the sentiment of a text by a lexicon, intensifiers and negations; nothing in it is learned.

    total = sum over words w of the lexicon of   value(w) * prod intensity(v) * (-1/2 if negated)
    score = tanh(total / 4)                                                                   in (-1, 1), 0 for a neutral text

The product is over the intensifiers directly before w ("so very good"). A word is negated if one of the three words before it,
in the same clause, is a negation; clauses end at punctuation and at "and", "but", "or". A negated word keeps half of
its strength: "not great" is worse than a neutral text, and better than "awful". Values lie in [-3, 3]; they are our
own choice, in ``lexicon.json``.
"""

from __future__ import annotations

import json
import math
import re
from importlib.resources import files
from typing import Any

from ..mdp.checks import require

_TOKENS = re.compile(r"[a-z]+(?:'[a-z]+)?|[.!?,;:]")
NEGATION_REACH, NEGATED, SCALE = 3, -0.5, 4.0


class SentimentRule:
    """A rule-based sentiment score of a text (see the module).

    Args:
        lexicon: a dict with ``values`` (a number in [-3, 3] for each word), ``intensifiers`` (a positive number for each word),
            ``negations`` and ``boundaries`` (lists of words). Default: the package's lexicon.

    Raises:
        ValueError: a key is missing, or a number lies outside its range.
    """

    def __init__(self, lexicon: dict[str, Any] | None = None) -> None:
        if lexicon is None:
            lexicon = json.loads(files(__package__).joinpath("lexicon.json").read_text(encoding="utf-8"))
        assert lexicon is not None
        parts = ("values", "intensifiers", "negations", "boundaries")
        require(all(part in lexicon for part in parts), "lexicon", f"the keys {', '.join(parts)}", sorted(lexicon))
        self.values: dict[str, float] = {word: float(value) for word, value in lexicon["values"].items()}
        self.intensifiers: dict[str, float] = {word: float(by) for word, by in lexicon["intensifiers"].items()}
        self.negations, self.boundaries = frozenset(lexicon["negations"]), frozenset(lexicon["boundaries"])
        require(all(abs(v) <= 3.0 for v in self.values.values()), "lexicon", "values in [-3, 3]", "larger ones")
        require(all(by > 0.0 for by in self.intensifiers.values()), "lexicon", "intensities > 0", "others")

    def total(self, text: str) -> float:
        """Return the sum of the words' values, each multiplied for the intensifiers and negations before it."""
        words = _TOKENS.findall(text.lower())
        return sum(self._worth(words, i) for i, word in enumerate(words) if word in self.values)

    def _worth(self, words: list[str], i: int) -> float:
        value, before = self.values[words[i]], i - 1
        while before >= 0 and words[before] in self.intensifiers:
            value *= self.intensifiers[words[before]]
            before -= 1
        for word in reversed(words[max(0, i - NEGATION_REACH) : i]):
            if word in self.boundaries:
                break
            if word in self.negations:
                return NEGATED * value
        return value

    def __call__(self, text: str) -> float:
        """Return the score, in (-1, 1)."""
        return math.tanh(self.total(text) / SCALE)
