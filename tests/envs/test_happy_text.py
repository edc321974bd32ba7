"""The world of text: its grammar, its rule of sentiment, its steps."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import bilevel_gym
from bilevel_gym.envs.text import MESSAGES, Grammar, SentimentRule, WordTokeniser

assert bilevel_gym.__version__
WORLD = "bilevel_gym/HappyText-v0"


# --- the grammar ------------------------------------------------------------------------------------------------------


def test_a_small_grammar_by_hand() -> None:
    """p(a) = 3/4 * 1/2, p(b) = 3/4 * 1/2, p(c c) = 1/4."""
    grammar = Grammar("S: 3 T | 1 c c\nT: 2 a\n| 2 b")
    assert grammar.words == ("a", "b", "c")
    assert grammar.longest == 2
    assert [grammar.accepts(text) for text in ("a", "b", "c c", "c", "a b", "", "cc")] == [True] * 3 + [False] * 4
    rng = np.random.default_rng(0)
    drawn = [grammar.sample(rng) for _ in range(4000)]
    for words, p in ((("a",), 0.375), (("b",), 0.375), (("c", "c"), 0.25)):
        found = [log_p for message, log_p in drawn if message == words]
        assert found == pytest.approx([math.log(p)] * len(found))
        assert abs(len(found) / 4000 - p) < 4 * math.sqrt(p * (1 - p) / 4000)


@pytest.mark.parametrize("text", ["", "S a", "S: a", "S: 0 a", "S: -1 a", "S: 1", "S: 1 T\nT: 1 a S"])
def test_a_wrong_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(text|weight): expected"):
        Grammar(text)


def test_a_message_has_one_derivation() -> None:
    """So its log-probability is a function of the message, and what is frequent is as frequent as it says."""
    rng = np.random.default_rng(0)
    held: dict[tuple[str, ...], float] = {}
    drawn = [MESSAGES.sample(rng) for _ in range(20_000)]
    for words, log_p in drawn:
        assert held.setdefault(words, log_p) == pytest.approx(log_p, abs=1e-12)
        assert len(words) <= MESSAGES.longest
    often = max(held, key=lambda words: held[words])
    p = math.exp(held[often])
    count = sum(words == often for words, _ in drawn)
    assert abs(count - 20_000 * p) < 4 * math.sqrt(20_000 * p)
    assert 100 <= len(MESSAGES.words) <= 200
    assert all(MESSAGES.accepts(" ".join(words)) for words in held)
    assert not any(MESSAGES.accepts(" ".join(reversed(words))) for words in held)


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("", 0.0),
        ("the train is late .", 0.0),
        ("the soup is good .", 2.0),
        ("the soup is very good .", 2.0 * 1.3),
        ("the soup is so very good .", 2.0 * 1.3 * 1.2),
        ("the soup is not good .", -1.0),
        ("the soup is not very good .", -1.3),
        ("the soup is not bad .", 1.0),
        ("i do not love the soup .", -1.5),
        ("not one of us was glad .", 2.0),  # four words away: out of reach
        ("not here , the soup is good .", 2.0),  # another clause
        ("it is not , good", 2.0),
        ("not old and good", 2.0),
        ("the soup is good but the bread is awful .", 2.0 - 2.5),
        ("very late and good", 2.0),  # "very" is before another word
        ("I DON'T like it!", -0.75),
        ("good good", 4.0),
    ],
)
def test_sentiment_by_hand(text: str, total: float) -> None:
    rule = SentimentRule()
    assert rule.total(text) == pytest.approx(total, abs=1e-12)
    assert rule(text) == pytest.approx(math.tanh(total / 4.0), abs=1e-12)


def test_the_rule_covers_the_grammar() -> None:
    """Happy and sad words of the grammar are in the lexicon, on their side; no plain message has a sentiment."""
    rule = SentimentRule()
    for name, sign in (("NICE", 1), ("JOY", 1), ("LIKING", 1), ("POOR", -1), ("GLOOM", -1), ("DISLIKING", -1)):
        for option in MESSAGES._rules[name]:
            assert sign * rule.total(" ".join(option)) > 0.0
    for name in ("MUCH", "STATE", "KIND", "NOUN", "PERSON", "WHEN", "DID", "GOAL", "PLACE"):
        for option in MESSAGES._rules[name]:
            assert rule.total(" ".join(option)) == 0.0
    assert {option[0] for option in MESSAGES._rules["MUCH"]} <= set(rule.intensifiers)


@pytest.mark.parametrize(
    "lexicon",
    [
        {},
        {"values": {"good": 4.0}, "intensifiers": {}, "negations": [], "boundaries": []},
        {"values": {}, "intensifiers": {"very": 0.0}, "negations": [], "boundaries": []},
    ],
)
def test_a_wrong_lexicon_is_refused(lexicon: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^lexicon: expected"):
        SentimentRule(lexicon)


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_texts_and_tokens() -> None:
    tokeniser = WordTokeniser(["a", "bc"])
    assert (tokeniser.size, tokeniser.encode("bc a a"), tokeniser.decode([2, 1, 0])) == (3, [2, 1, 1], "bc a")
    with pytest.raises(ValueError, match=r"^text: expected words of the vocabulary, got d"):
        tokeniser.encode("a d")
    with pytest.raises(ValueError, match=r"^words: expected"):
        WordTokeniser(["a", "a"])


# --- the environment --------------------------------------------------------------------------------------------------


def type_in(env: Any, text: str) -> list[Any]:
    return [env.step(token) for token in [*env.unwrapped.tokeniser.encode(text), env.unwrapped.tokeniser.end]]


def test_a_message_is_paid_at_its_end() -> None:
    env: Any = gym.make(WORLD, prompt_words=0, render_mode="ansi")
    obs, _ = env.reset(seed=0)
    V = env.action_space.n
    assert obs.tolist() == [0] + [V] * 24
    *steps, last = type_in(env, "the coffee was not very good .")
    assert all((reward, terminated) == (0.0, False) for _, reward, terminated, _, _ in steps)
    obs, reward, terminated, truncated, info = last
    assert env.render() == info["text"] == "the coffee was not very good ."
    assert (reward, terminated, truncated) == (pytest.approx(math.tanh(-1.3 / 4)), True, False)
    assert (obs < V).sum() == 9
    assert (obs[8], obs[9]) == (0, V)


def test_a_full_message_ends() -> None:
    env: Any = gym.make(WORLD, max_tokens=5, prompt_words=2)
    env.reset(seed=3)
    steps = [env.step(env.unwrapped.tokeniser.encode("happy")[0]) for _ in range(3)]
    assert [step[2] for step in steps] == [False, False, True]
    assert steps[-1][4]["text"].endswith("happy happy happy")
    assert steps[-1][1] == env.unwrapped.sentiment(steps[-1][4]["text"])


def test_beginnings_are_the_grammars() -> None:
    env: Any = gym.make(WORLD, prompt_words=2)
    texts = set()
    for seed in range(200):
        env.reset(seed=seed)
        texts.add(env.unwrapped.text)
    assert {len(text.split()) for text in texts} == {2}
    assert {"i am", "the coffee", "my sister"} <= texts


def test_a_picture_shows_the_text() -> None:
    env: Any = gym.make(WORLD, render_mode="rgb_array")
    env.reset(seed=0)
    before, again = env.render(), env.render()
    env.step(env.unwrapped.tokeniser.encode("happy")[0])
    after = env.render()
    np.testing.assert_array_equal(before, again)
    assert before.shape == after.shape
    assert before.dtype == np.uint8
    assert (before < 128).sum() < (after < 128).sum()


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_words": -1}, "prompt_words"),
        ({"prompt_words": 24}, "prompt_words"),
        ({"render_mode": "pixels"}, "render_mode"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render_mode.*")
def test_wrong_arguments_are_named(kwargs: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        gym.make(WORLD, **kwargs)


def test_a_token_outside_is_refused() -> None:
    env: Any = gym.make(WORLD).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action: expected a token from 0 to 125, got 126"):
        env.step(126)
