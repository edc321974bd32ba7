r"""A probabilistic context-free grammar of short everyday messages, happy, plain and sad.

    A -> beta with probability w_beta / sum w;      log p(message) = sum over the rules used

Every message has one derivation, so that this is its exact log-probability, and the mean of ``-log p`` per token is the entropy
rate that no language model of the corpus can beat. The messages are this project's own: nothing is copied from anywhere.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate

import numpy as np

from ..mdp.checks import check_number, require

Rule = tuple[tuple[str, ...], ...]


class Grammar:
    """A grammar read from text, one line a symbol: ``SYMBOL: weight word SYMBOL ... | weight ...``; a line may go on with ``|``.

    A symbol is what stands before a colon; all else is a word. The first symbol is the start. No symbol may lead back to itself.

    Raises:
        ValueError: a line of another form, a weight that is not positive, a symbol that leads back to itself.
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
        """Words of the longest phrase."""
        if symbol not in self._rules:
            return 1
        require(symbol not in above, "text", "symbols that do not lead back to themselves", symbol)
        deeper = (*above, symbol)
        return max(sum(self._longest(part, deeper) for part in option) for option in self._rules[symbol])

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary, sorted."""
        parts = {part for options in self._rules.values() for option in options for part in option}
        return tuple(sorted(parts - set(self._rules)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """All messages as one regular expression: no symbol leads back to itself, so that they are finitely many."""

        def phrase(symbol: str) -> str:
            if symbol not in self._rules:
                return re.escape(symbol) + " "
            return "(?:" + "|".join("".join(map(phrase, option)) for option in self._rules[symbol]) + ")"

        return re.compile(phrase(self.start))

    def accepts(self, message: str) -> bool:
        """Whether a message, words apart by single spaces, is one of the grammar's."""
        return self._pattern.fullmatch(message + " ") is not None

    def sample(self, rng: np.random.Generator) -> tuple[tuple[str, ...], float]:
        """A message, as words, and the log-probability of its derivation."""
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


MESSAGES = Grammar("""
MESSAGE: 3 HAPPY | 4 PLAIN | 3 SAD
HAPPY: 6 GOOD STOP | 2 GOOD and GOOD STOP | 1 FACT and GOOD STOP | 1 BAD but GOOD STOP
PLAIN: 6 FACT . | 2 FACT and FACT .
SAD: 6 BAD STOP | 2 BAD and BAD STOP | 1 FACT and BAD STOP | 1 GOOD but BAD STOP
STOP: 3 . | 1 !
GOOD: 4 THING BE PRAISE | 3 SELF GLAD | 3 WE LIKING THING | 1 PERSON made me GLAD | 1 thank you for THING
BAD: 4 THING BE BLAME | 3 SELF GLOOMY | 3 WE DISLIKING THING | 1 PERSON made me GLOOMY | 1 sorry about THING
FACT: 3 THING BE STATE | 2 I_AM PLACE | 2 PERSON BE PLACE | 4 WHO DID | 2 WHO DID WHEN
PRAISE: 5 NICE | 3 MUCH NICE | 1 not POOR
BLAME: 5 POOR | 3 MUCH POOR | 2 not NICE | 1 not MUCH NICE
GLAD: 5 JOY | 3 MUCH JOY | 1 not GLOOM
GLOOMY: 5 GLOOM | 3 MUCH GLOOM | 2 not JOY | 1 not MUCH JOY
LIKING: 2 love | 2 like | 2 enjoy | 1 really love | 1 really like
DISLIKING: 3 hate | 1 really hate | 1 do not like | 1 do not enjoy | 1 do not love
NICE: 2 great | 3 good | 2 lovely | 1 wonderful | 2 nice | 1 perfect | 2 fun | 1 amazing | 1 sweet | 1 beautiful
POOR: 3 bad | 2 awful | 1 terrible | 2 boring | 1 horrible | 1 ugly | 1 dirty | 2 annoying
JOY: 3 happy | 2 glad | 1 proud | 2 excited | 1 grateful | 1 calm
GLOOM: 3 sad | 2 angry | 1 lonely | 2 worried | 1 upset | 2 tired
MUCH: 3 very | 2 really | 2 so | 1 quite
BE: 3 is | 2 was
SELF: 4 i am | 2 i feel | 2 we are | 1 we feel
I_AM: 3 i am | 1 we are
WE: 3 i | 1 we
WHO: 2 i | 1 we | 2 PERSON
PERSON: 2 my sister | 2 my brother | 2 my mother | 1 my father | 2 my friend | 1 my neighbour | 1 the teacher | 1 the doctor
THING: 6 the NOUN | 3 my NOUN | 2 the KIND NOUN | 1 this NOUN
KIND: 1 old | 1 new | 1 little | 1 red | 1 green | 1 big
NOUN: 3 coffee | 2 weather | 1 garden | 2 book | 2 movie | 2 music | 2 dinner | 1 soup | 1 walk | 1 party | 1 game | 1 house
| 1 office | 1 lesson | 2 trip | 1 song | 1 bread | 1 cake | 1 picture | 1 city | 1 train
STATE: 1 late | 1 early | 1 open | 1 closed | 1 long | 1 short | 1 over | 1 here
PLACE: 3 at home | 2 at work | 1 in town | 1 on the train | 1 in the garden | 1 in the office
DID: 2 went to the GOAL | 1 took the train | 1 read the book | 1 made the soup | 1 heard the song
| 1 saw the movie | 1 had dinner at home
GOAL: 1 office | 1 market | 1 river | 1 school | 1 station
WHEN: 2 today | 2 yesterday | 1 this morning | 1 this evening
""")
"""The corpus that language models of this project are trained on."""
