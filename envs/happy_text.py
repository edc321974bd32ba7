"""A text environment: the follower writes a short message token by token, and a rule scores its sentiment."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .mdp.checks import check_size, require
from .render import Drawn
from .text import MESSAGES, SentimentRule, Tokeniser, WordTokeniser

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Obs = NDArray[np.int64]


class HappyTextEnv(Drawn, gym.Env[Obs, np.int64]):
    """The follower continues a short message; preferences between messages teach it to write happy ones.

    ## Description
    An episode is one message. Its first words are drawn from the grammar of everyday messages (``envs.text.MESSAGES``), the
    follower writes the rest, token by token, until it writes the end or the message is full. At the end a rule scores the
    sentiment of the whole text (``envs.text.SentimentRule``: a lexicon with negations and intensifiers, no model). The
    environment is for learning from preferences; its leader is the reward model that ``PreferencePBRL`` fits to comparisons of
    messages.

    ## Action Space
    ``Discrete(V)``: the next token; token ``tokeniser.end`` (0) ends the message.

    ## Observation Space
    ``MultiDiscrete([V + 1] * (1 + max_tokens))``: the end token, which begins every message, the tokens so far, and V in
    positions that are still empty.

    ## Rewards
    0 until the message ends, then its sentiment, in (-1, 1).

    ## Starting State
    The first ``prompt_words`` words of a message drawn from the grammar.

    ## Episode End
    Terminates with the end token, or when the message has ``max_tokens`` tokens, including the first words. ``info["text"]`` is
    then the message.

    ## Arguments
    - ``max_tokens``: largest number of tokens of a message, including the end token (24).
    - ``prompt_words``: number of first words that are given (2).
    - ``tokeniser``: converts texts to tokens; None for the grammar's words.
    - ``render_mode``: None, ``"ansi"`` (the text so far) or ``"rgb_array"`` (the same as a picture, for a person to compare).

    ## Version History
    - v0: first version.

    ## References
    A small version of the happy-tweet task of arXiv 2601.16399; its details are our defaults. Grammar, lexicon and rule are
    this library's own.
    """

    size: ClassVar[tuple[float, float]] = (4.0, 1.2)

    def __init__(
        self,
        max_tokens: int = 24,
        prompt_words: int = 2,
        tokeniser: Tokeniser | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.max_tokens = check_size(max_tokens, "max_tokens")
        whole = isinstance(prompt_words, (int, np.integer)) and 0 <= prompt_words < self.max_tokens
        require(whole, "prompt_words", f"a whole number from 0 to {self.max_tokens - 1}", repr(prompt_words))
        modes = (None, *self.metadata["render_modes"])
        require(render_mode in modes, "render_mode", f"one of {modes}", repr(render_mode))
        self.prompt_words, self.render_mode = int(prompt_words), render_mode
        reads = all(hasattr(tokeniser, name) for name in ("size", "end", "encode", "decode"))
        require(tokeniser is None or reads, "tokeniser", "None or a Tokeniser", repr(tokeniser))
        self.tokeniser: Tokeniser = WordTokeniser() if tokeniser is None else tokeniser
        self.sentiment = SentimentRule()
        self.nothing = self.tokeniser.size
        self.action_space = gym.spaces.Discrete(self.tokeniser.size)
        self.observation_space = gym.spaces.MultiDiscrete(np.full(1 + self.max_tokens, self.nothing + 1))
        self._tokens: list[int] = []

    def _observation(self) -> Obs:
        obs = np.full(1 + self.max_tokens, self.nothing, dtype=np.int64)
        obs[0] = self.tokeniser.end
        obs[1 : 1 + len(self._tokens)] = self._tokens
        return obs

    @property
    def text(self) -> str:
        """The text written so far."""
        return self.tokeniser.decode(self._tokens)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        words, _ = MESSAGES.sample(self.np_random)
        prompt = self.tokeniser.encode(" ".join(words[: self.prompt_words]))
        self._tokens = prompt[: self.max_tokens - 1]
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        token = int(action)
        require(
            0 <= token < self.tokeniser.size, "action", f"a token from 0 to {self.tokeniser.size - 1}", repr(action)
        )
        self._tokens.append(token)
        ended = token == self.tokeniser.end or len(self._tokens) == self.max_tokens
        if not ended:
            return self._observation(), 0.0, False, False, {}
        return self._observation(), self.sentiment(self.text), True, False, {"text": self.text}

    def _text(self) -> str:
        return self.text

    def _draw(self, panel: Axes) -> None:
        panel.axis("off")
        panel.text(0.0, 0.5, textwrap.fill(self.text, 48), family="monospace", fontsize=9, va="center")
