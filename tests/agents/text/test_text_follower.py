"""Followers that write: the policy, the cost of leaving the language model, the reward net, what texts are worth."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv

import bilevel_gym
from bilevel_gym.agents.text.huggingface import HuggingFaceModel
from bilevel_gym.agents.text.language_model import WordModel, load_word_model
from bilevel_gym.agents.text.policy import KLReward, TextPolicy, writer
from bilevel_gym.agents.text.quality import Written, assess, distinct_n, mean_log_likelihood, text_env, write
from bilevel_gym.agents.text.reward_net import WordsReward

assert bilevel_gym.__version__
WORLD = "bilevel_gym/HappyText-v0"
V = 126


def worlds(n: int, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([partial(gym.make, WORLD, **kwargs)] * n)


def some_texts(venv: DummyVecEnv, steps: int) -> torch.Tensor:
    """Texts so far after some steps at random."""
    obs, rng = venv.reset(), np.random.default_rng(0)
    for _ in range(steps):
        obs, *_ = venv.step(rng.integers(1, V, venv.num_envs))
    return torch.as_tensor(np.asarray(obs))


def tiny_gpt2() -> HuggingFaceModel:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return HuggingFaceModel(
        transformers.GPT2Config(
            vocab_size=V, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )


@pytest.mark.parametrize("make", [load_word_model, tiny_gpt2])
def test_before_training_the_policy_is_the_language_model(make: Any) -> None:
    venv = worlds(5)
    venv.seed(0)
    policy: Any = PPO(TextPolicy, venv, policy_kwargs={"language_model": make}, device="cpu").policy
    texts, model = some_texts(venv, 4), make()
    with torch.no_grad():
        actions, values, log_prob = policy(texts)
        for text, action, taken in zip(texts, actions, log_prob, strict=True):
            expected = model(text[text < V][None])[0, -1, action]
            torch.testing.assert_close(taken, expected, rtol=1e-5, atol=1e-5)
        again, evaluated, entropy = policy.evaluate_actions(texts, actions)
        p = torch.as_tensor(policy.get_distribution(texts).distribution.probs)
    torch.testing.assert_close(evaluated, log_prob)
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1), rtol=1e-4, atol=1e-5)
    assert values.tolist() == again.tolist() == policy.predict_values(texts).tolist() == [[0.0]] * 5


def test_the_critic_does_not_move_the_writer() -> None:
    policy: Any = PPO(TextPolicy, worlds(3), device="cpu").policy
    with torch.no_grad():
        policy.value_net[-1].weight.fill_(0.1)
    policy.predict_values(some_texts(worlds(3), 2)).sum().backward()
    assert all(p.grad is None for p in policy.language_model.parameters())
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in policy.value_net[-1].parameters())


def test_other_worlds_and_other_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^env: expected texts"):
        PPO(TextPolicy, DummyVecEnv([lambda: gym.make("CartPole-v1")]), device="cpu")
    with pytest.raises(ValueError, match=r"^language_model: expected 126 tokens, got 9"):
        PPO(TextPolicy, worlds(1), policy_kwargs={"language_model": partial(WordModel, 9)}, device="cpu")
    with pytest.raises(ValueError, match=r"^kl: expected"):
        writer(kl=-0.1)


def test_a_policy_is_saved_and_loaded(tmp_path: Path) -> None:
    model = A2C(TextPolicy, worlds(2), seed=0, device="cpu")
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(0.01)
    model.save(tmp_path / "writer.zip")
    again = A2C.load(tmp_path / "writer.zip", device="cpu")
    texts = some_texts(worlds(2), 3)
    with torch.no_grad():
        policies: tuple[Any, Any] = model.policy, again.policy
        one, two = (policy.get_distribution(texts).distribution.probs for policy in policies)
    torch.testing.assert_close(one, two)


# --- the cost of leaving the language model ---------------------------------------------------------------------------


def test_kl_reward_by_hand() -> None:
    """r - kl (log pi(a|s) - log p_0(a|s)); its mean over actions is r - kl KL(pi, p_0); before training it is r."""
    reference = load_word_model()
    near = KLReward(worlds(4), reference, kl=0.5)
    model = PPO(TextPolicy, near, seed=0, device="cpu")
    policy: Any = model.policy
    with pytest.raises(ValueError, match=r"^policy: expected"):
        near.step(np.ones(4, dtype=np.int64))
    near.watch(model.policy)
    texts = torch.as_tensor(np.asarray(near.reset()))
    _, rewards, _, infos = near.step(np.arange(1, 5))
    np.testing.assert_allclose(rewards, 0.0, atol=1e-5)
    with torch.no_grad():
        for p in policy.language_model.parameters():
            p.mul_(0.9)
        texts = torch.as_tensor(np.asarray(near.reset()))
        log_pi = policy.get_distribution(texts).distribution.logits.double()
        log_p0 = torch.stack([reference(text[text < V][None])[0, -1] for text in texts]).double()
    actions = np.array([0, 7, 9, 11])
    _, rewards, dones, infos = near.step(actions)
    row = np.arange(4)
    expected = (log_pi - log_p0).numpy()[row, actions]
    np.testing.assert_allclose([info["log_ratio"] for info in infos], expected, rtol=1e-4, atol=1e-5)
    assert dones.tolist() == [True, False, False, False]
    own = np.array([text_env(gym.make(WORLD)).sentiment(infos[0]["text"]), 0, 0, 0])
    np.testing.assert_allclose(rewards, own - 0.5 * expected, rtol=1e-4, atol=1e-5)
    assert bool(((log_pi.exp() * (log_pi - log_p0)).sum(-1) > 0).all())


@pytest.mark.long
def test_the_true_reward_makes_the_follower_happier() -> None:
    """By more than four standard errors of the difference to the model it started from, which itself is neutral."""
    env, pretrained = text_env(gym.make(WORLD)), load_word_model()
    model = writer(kl=0.05, seed=0, n_steps=16)(worlds(32))
    before = write(lambda obs: model.predict(obs)[0], env, 300, seed=1)
    model.learn(6 * 512)
    after = write(lambda obs: model.predict(obs)[0], env, 300, seed=1)
    error = np.sqrt(before.sentiment.var() / 300 + after.sentiment.var() / 300)
    assert abs(before.sentiment.mean()) < 4 * before.sentiment.std() / np.sqrt(300)
    assert after.sentiment.mean() - before.sentiment.mean() > 4 * error
    assert mean_log_likelihood(pretrained, after) > -2.5  # a uniform writer has -4.8 at most


def test_a_model_of_the_library_learns_too() -> None:
    model = writer(kl=0.0, language_model=tiny_gpt2, seed=0, n_steps=8, batch_size=64)(worlds(8, max_tokens=6))
    policy: Any = model.policy
    before = [p.detach().clone() for p in policy.language_model.parameters()]
    model.learn(64)
    after = policy.language_model.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- the reward net ---------------------------------------------------------------------------------------------------


def test_a_reward_of_words_sees_its_window_and_no_more() -> None:
    env = gym.make(WORLD)
    torch.manual_seed(0)
    net = WordsReward(env.observation_space, env.action_space, window=3)
    tokens = torch.full((1, 25), V)
    tokens[0, :6] = torch.tensor([0, 11, 12, 13, 14, 15])
    action = torch.tensor([16])

    def with_token(place: int, token: int) -> float:
        changed = tokens.clone()
        changed[0, place] = token
        return float(net(changed, action).detach())

    held = with_token(1, 11)
    assert [with_token(place, 99) == held for place in range(6)] == [True, True, True, True, False, False]
    assert float(net(tokens, torch.tensor([17])).detach()) != held
    short = torch.full((1, 25), V)
    short[0, 0] = 0  # a window that reaches over the beginning
    assert bool(torch.isfinite(net(short, action)).all())
    with pytest.raises(ValueError, match=r"^observation_space: expected texts"):
        WordsReward(gym.spaces.Box(0, 1, (3,)), env.action_space)


# --- what texts are worth ---------------------------------------------------------------------------------------------


def test_distinct_n_by_hand() -> None:
    sequences = [[1, 2, 1], [1, 2], [3]]
    assert distinct_n(sequences, 1) == 3 / 6
    assert distinct_n(sequences, 2) == 2 / 3  # 12, 21, 12
    assert distinct_n(sequences, 3) == 1.0
    assert distinct_n(sequences, 4) == 0.0


def test_quality_by_hand() -> None:
    """Two messages: 'good' after a beginning of one word, and 'bad bad' from the start; figures count what was written."""
    env = text_env(gym.make(WORLD, prompt_words=1))
    encode = env.tokeniser.encode
    rows = [[0, *encode("the good"), 0], [0, *encode("bad bad"), 0]]
    texts = np.full((2, 25), V)
    for text, row in zip(texts, rows, strict=True):
        text[: len(row)] = row
    messages = ["the good", "bad bad"]
    scores = np.array([env.sentiment(message) for message in messages])
    written = Written(texts, np.array([2, 1]), np.array([4, 4]), messages, scores)
    assert written.continuations == [rows[0][2:], rows[1][1:]]
    model = load_word_model()
    quality = assess(written, model)
    with torch.no_grad():
        log_p = [model(torch.tensor([row]))[0] for row in rows]
    by_hand = sum(float(log_p[0][t - 1, rows[0][t]]) for t in (2, 3)) + sum(
        float(log_p[1][t - 1, rows[1][t]]) for t in (1, 2, 3)
    )
    assert quality.log_likelihood == pytest.approx(by_hand / 5, abs=1e-5)
    assert quality.sentiment == pytest.approx((np.tanh(2 / 4) + np.tanh(-4 / 4)) / 2)
    assert (quality.distinct_1, quality.distinct_2) == (3 / 5, 3 / 3)
    assert (quality.distinct_messages, quality.tokens, quality.grammatical) == (1.0, 2.5, 0.0)


def test_writing_follows_the_worlds_rules_and_its_seed() -> None:
    env = text_env(gym.make(WORLD, max_tokens=8))
    model = PPO(TextPolicy, worlds(1, max_tokens=8), device="cpu")
    state = torch.get_rng_state()
    one, two, other = (write(lambda obs: model.predict(obs)[0], env, 60, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.messages == two.messages != other.messages
    for row, length, message, score in zip(one.texts, one.lengths, one.messages, one.sentiment, strict=True):
        tokens = row[:length]
        assert (tokens[1:-1] != 0).all()
        assert tokens[-1] == 0 or length == 9
        assert env.sentiment(message) == score
    assert {9, 7} <= set(one.lengths.tolist())
