"""The compact language model, its pretraining, and models of the transformers library."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bilevel_gym.agents.text.huggingface import HuggingFaceModel, HuggingFaceTokeniser
from bilevel_gym.agents.text.language_model import (
    LanguageModel,
    WordModel,
    load_word_model,
    log_likelihood,
    save_word_model,
)
from bilevel_gym.agents.text.pretrain import draw_messages, pretrain
from bilevel_gym.envs.happy_text import HappyTextEnv
from bilevel_gym.envs.text import WordTokeniser

V = WordTokeniser().size


def tiny_gpt2() -> LanguageModel:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    return HuggingFaceModel(config)


MODELS = pytest.mark.parametrize("make", [load_word_model, tiny_gpt2])


@MODELS
def test_probabilities_sum_to_one_and_see_no_later_token(make: Any) -> None:
    model, rng = make(), torch.Generator().manual_seed(0)
    texts = torch.randint(V, (6, 12), generator=rng)
    with torch.no_grad():
        log_p = model(texts)
        assert log_p.shape == (6, 12, V)
        torch.testing.assert_close(log_p.double().exp().sum(-1), torch.ones(6, 12).double(), rtol=0, atol=1e-5)
        for t in (1, 5, 11):
            other = texts.clone()
            other[:, t:] = (texts[:, t:] + 1 + torch.randint(V - 1, (6, 12 - t), generator=rng)) % V
            changed = model(other)
            torch.testing.assert_close(changed[:, :t], log_p[:, :t], rtol=1e-5, atol=1e-5)
            assert float((changed[:, t] - log_p[:, t]).abs().min(-1).values.max()) > 1e-4


@MODELS
def test_the_last_state_is_that_of_the_text_without_padding(make: Any) -> None:
    model = make()
    texts, _ = draw_messages(8, np.random.default_rng(0))
    with torch.no_grad():
        found = model.last_hidden(texts)
        for text, state in zip(texts, found, strict=True):
            torch.testing.assert_close(model.hidden(text[text < V][None])[0, -1], state, rtol=1e-5, atol=1e-5)


def test_a_texts_likelihood_is_the_sum_over_its_tokens() -> None:
    model = load_word_model()
    texts, _ = draw_messages(4, np.random.default_rng(1))
    with torch.no_grad():
        found = log_likelihood(model, texts)
        later = log_likelihood(model, texts, torch.tensor([3, 1, 4, 2]))
        for i, text in enumerate(texts):
            tokens = text[text < V].tolist()
            by_hand = [float(model(torch.tensor([tokens[:t]]))[0, -1, tokens[t]]) for t in range(1, len(tokens))]
            expected = [0.0, *by_hand] + [0.0] * (len(text) - len(tokens))
            np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-5)
            assert float(later[i].sum()) == pytest.approx(sum(by_hand[[2, 0, 3, 1][i] :]), abs=1e-4)


def test_the_shipped_model_knows_the_grammar() -> None:
    """Its cross-entropy on fresh messages lies above the grammar's entropy, and by under 0.03 nats a token."""
    model = load_word_model()
    texts, log_p = draw_messages(3000, np.random.default_rng(2))
    with torch.no_grad():
        ours = log_likelihood(model, texts).double().sum(-1).numpy()
    excess = log_p - ours  # KL of each message's mean, in expectation not negative
    tokens = float((texts[:, 1:] < V).sum()) / len(texts)
    error = float(excess.std()) / np.sqrt(len(excess))
    assert excess.mean() + 3 * error > 0.0
    assert excess.mean() / tokens < 0.03
    assert sum(p.numel() for p in model.parameters()) < 50_000


def test_pretraining_is_fixed_by_its_seed_and_learns() -> None:
    one, two, other = pretrain(30, 32, seed=1), pretrain(30, 32, seed=1), pretrain(30, 32, seed=2)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(one.head.weight, other.head.weight)
    texts, _ = draw_messages(200, np.random.default_rng(3))
    with torch.no_grad():
        before, after = (float(-log_likelihood(m, texts).sum()) for m in (WordModel(V), one))
    assert after < 0.8 * before


def test_a_model_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, words = WordModel(V, embedding=5, width=7), WordTokeniser().words
    save_word_model(model, words, tmp_path / "model.npz")
    again = load_word_model(tmp_path / "model.npz")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    save_word_model(model, ("", "b"), tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"^path: expected a model with the grammar's 126 words"):
        load_word_model(tmp_path / "other.npz")


# --- the transformers library -----------------------------------------------------------------------------------------


def test_a_models_dropout_stays_off() -> None:
    model = tiny_gpt2().train()
    texts = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(texts), model(texts), rtol=0, atol=0)
        theirs = torch.log_softmax(model.model(input_ids=texts).logits, -1)  # type: ignore[operator]
        torch.testing.assert_close(model(texts), theirs, rtol=1e-5, atol=1e-5)


def words_of_the_library() -> Any:
    """A tokeniser of the library, with the grammar's words in another order, and one token for all others."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = ["<rest>", *reversed(WordTokeniser().words[1:]), "<end>"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<rest>")
    raw = tokenizers.Tokenizer(model)
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", unk_token="<rest>")


def test_the_world_speaks_another_tokeniser() -> None:
    tokeniser = HuggingFaceTokeniser(words_of_the_library(), size=200)
    assert (tokeniser.size, tokeniser.end) == (200, len(WordTokeniser().words))
    text = "the coffee was not very good ."
    assert tokeniser.decode([*tokeniser.encode(text), tokeniser.end]) == text
    env = HappyTextEnv(tokeniser=tokeniser, prompt_words=0)
    obs, _ = env.reset(seed=0)
    assert (obs[0], obs[1]) == (tokeniser.end, 200)
    for token in tokeniser.encode(text):
        env.step(np.int64(token))
    _, reward, terminated, _, info = env.step(np.int64(tokeniser.end))
    assert terminated
    assert info["text"] == text
    assert reward == env.sentiment(text)
    with pytest.raises(ValueError, match=r"^size: expected 127 tokens or more, got 5"):
        HuggingFaceTokeniser(words_of_the_library(), size=5)
    nameless = words_of_the_library()
    nameless.eos_token = None
    with pytest.raises(ValueError, match=r"^source: expected a tokeniser with an end-of-sequence token"):
        HuggingFaceTokeniser(nameless)


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'bilevel-gym\[transformers\]'"):
        HuggingFaceModel("gpt2")
    with pytest.raises(ImportError, match=r"pip install 'bilevel-gym\[transformers\]'"):
        HuggingFaceTokeniser("gpt2")
