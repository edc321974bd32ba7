"""Learning what texts are liked: whole messages as segments, the untrained follower first, the reward of words, PBRL, DRLHF."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_gym
from bilevel_gym.agents import DRLHF, PreferenceConfig, PreferencePBRL
from bilevel_gym.agents.leader import Progress
from bilevel_gym.agents.preferences.fragmenters import RandomFragmenter, WholeEpisodes
from bilevel_gym.agents.preferences.labels import Pair, PreferenceBuffer, TrueReturnLabeller
from bilevel_gym.agents.preferences.reward_model import RewardModel
from bilevel_gym.agents.preferences.training import FitConfig, RewardTrainer
from bilevel_gym.agents.text.language_model import load_word_model, log_likelihood
from bilevel_gym.agents.text.policy import writer
from bilevel_gym.agents.text.pretrain import draw_messages
from bilevel_gym.agents.text.quality import text_env
from bilevel_gym.agents.text.reward_net import WordsReward
from bilevel_gym.wrappers import Segment

assert bilevel_gym.__version__
WORLD = "bilevel_gym/HappyText-v0"
V = 126
SMALL = PreferenceConfig(
    labels=24,
    first_labels=16,
    first_steps=640,
    follower_plays_first=True,
    length=24,
    n_envs=16,
    follower_steps=256,
    epochs=2,
    first_epochs=5,
    ensemble=1,
    net=WordsReward,
    fragmenter=WholeEpisodes(),
    device="cpu",
)


def follower(venv: Any) -> Any:
    return writer(kl=0.5, n_steps=16)(venv)


def what_was_written(segment: Segment) -> list[int]:
    """All tokens of a segment's last text, and the last action."""
    last = int(segment.mask.sum()) - 1
    text = segment.obs[last]
    return [*text[text < V].tolist(), int(segment.actions[last])]


# --- what is compared -------------------------------------------------------------------------------------------------


def test_whole_messages_are_compared() -> None:
    """They begin after their two given words, end as the environment ends them, and are worth their sentiment."""
    env = text_env(gym.make(WORLD))
    learner = DRLHF(WORLD, follower, config=SMALL)
    learner.method.begin(learner.state, Progress(0, 1), afresh=True)
    recorder, rng = learner.observed.recorder, np.random.default_rng(0)
    pairs = WholeEpisodes().pairs(recorder, learner.model, 20, 0, rng)
    assert len(pairs) == 20
    for segment in [side for pair in pairs for side in (pair.left, pair.right)]:
        assert (segment.obs[0] < V).sum() == 3
        tokens = what_was_written(segment)
        assert tokens[-1] == 0 or len(tokens) == 25
        assert segment.true_return == pytest.approx(env.sentiment(env.tokeniser.decode(tokens)), abs=1e-6)
    others = RandomFragmenter().pairs(recorder, learner.model, 20, 0, rng)
    begun = [int((side.obs[0] < V).sum()) for pair in others for side in (pair.left, pair.right)]
    assert max(begun) > 3
    later = WholeEpisodes().pairs(recorder, learner.model, 1000, recorder.steps - 15, rng)
    assert 0 < len(later) < 100
    assert min(min(pair.left.time, pair.right.time) for pair in later) >= recorder.steps - 15
    learner.close()


def test_the_untrained_follower_plays_first() -> None:
    """The first pairs are the language model's messages; random ones without; the follower's own draws go on as if not."""
    model, likelihood = load_word_model(), {}
    for first in (True, False):
        learner = DRLHF(WORLD, follower, config=replace(SMALL, follower_plays_first=first))
        before = learner.observed.follower.generators.state[2].clone()
        learner.method.begin(learner.state, Progress(0, 1), afresh=True)
        assert torch.equal(learner.observed.follower.generators.state[2], before)
        assert learner.num_timesteps == 640
        assert len(learner.buffer) == 16 if first else len(learner.buffer) >= 8  # random messages hardly end
        texts = torch.full((len(learner.buffer), 26), V)
        for row, preference in zip(texts, learner.buffer, strict=True):
            tokens = what_was_written(preference.pair.left)
            row[: len(tokens)] = torch.tensor(tokens)
        with torch.no_grad():
            found = log_likelihood(model, texts, 3)
        likelihood[first] = float(found.sum() / (found < 0).sum())
        learner.close()
    assert likelihood[True] > -1.6  # its entropy is 1.3 nats a token
    assert likelihood[False] < -4.8  # no better than a uniform guess


# --- the reward of words ----------------------------------------------------------------------------------------------


def as_segment(text: np.ndarray[Any, Any], H: int, true_return: float) -> Segment:
    """A whole message as a recorder would cut it."""
    tokens = text[text < V]
    obs = np.full((H, H + 1), V)
    for t in range(len(tokens) - 1):
        obs[t, : t + 1] = tokens[: t + 1]
    n = len(tokens) - 1
    actions, rewards = np.zeros(H, np.int64), np.zeros(H)
    actions[:n], rewards[n - 1] = tokens[1:], true_return
    return Segment(obs, actions, np.arange(H) < n, rewards)


def test_preferences_teach_the_words_reward() -> None:
    """From comparisons of whole messages, by the rule, to held-out ones; labels that are shuffled teach nothing."""
    env = text_env(gym.make(WORLD))
    texts, _ = draw_messages(1600, np.random.default_rng(0))
    H = texts.shape[1] - 1
    segments = [
        as_segment(text, H, env.sentiment(env.tokeniser.decode(text[text < V].tolist()))) for text in texts.numpy()
    ]
    space = gym.spaces.MultiDiscrete(np.full(H + 1, V + 1))
    accuracy = {}
    for shuffled in (False, True):
        labeller, rng = TrueReturnLabeller(), np.random.default_rng(1)
        train, test = PreferenceBuffer(), PreferenceBuffer()
        for i in range(0, len(segments), 2):
            pair = Pair(segments[i], segments[i + 1])
            label = labeller._label(pair)
            if shuffled and i < 1200 and label != "equal":
                label = "left" if rng.random() < 0.5 else "right"
            (train if i < 1200 else test).add(pair, label)
        torch.manual_seed(0)
        model = RewardModel([WordsReward(space, env.action_space)], device="cpu")
        trainer = RewardTrainer(model, FitConfig(learning_rate=5e-3, weight_decay=0.1))
        trainer.fit(train, 20)
        accuracy[shuffled] = trainer.assess(test).accuracy
    assert accuracy[False] > 0.8
    assert accuracy[True] < 0.65


# --- the methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [pytest.param(DRLHF, marks=pytest.mark.long), PreferencePBRL])
def test_the_methods_write(method: Any, tmp_path: Path) -> None:
    """All questions are asked and answered; every follower trains; what is saved is read back."""
    learner = method(WORLD, follower, config=SMALL, seed=1)
    learner.learn(640 + 512 * len(learner.followers))
    assert learner.buffer.seen == 24
    assert [f.follower.num_timesteps for f in learner.followers.values()] == [512] * len(learner.followers)
    path = learner.save(tmp_path / "writer.zip")
    again = method.load(path, follower=follower, net=WordsReward)
    np.testing.assert_array_equal(again.x, learner.x)
    assert len(again.buffer) == 24
    recorder = learner.observed.recorder
    texts = torch.from_numpy(recorder.sample(recorder.steps - 5, 10**6)[0])
    with torch.no_grad():
        one, two = (found.best_response.follower.policy(texts, deterministic=True)[2] for found in (learner, again))
    torch.testing.assert_close(one, two)
    for found in (learner, again):
        found.close()


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).resolve().parents[3] / "examples" / "happy_text.py"
    spec = importlib.util.spec_from_file_location("happy_text_example", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    before, after = example.main(2_000, replace(SMALL, labels=20))
    assert before.grammatical > 0.7
    assert before != after
    assert "after: Quality(" in capsys.readouterr().out
