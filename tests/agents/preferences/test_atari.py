"""Atari games: what is seen and paid, whole games, the nets' shapes, and a run that is killed and goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import PreferenceConfig, TrueReward
from bilevel_gym.agents.preferences.atari import AtariCNN, atari_copies
from bilevel_gym.agents.preferences.files import read_preferences
from bilevel_gym.agents.preferences.training import FitConfig
from bilevel_gym.wrappers import SegmentRecorder

ROOT = Path(__file__).resolve().parents[3]
IMAGES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)


def needs_atari() -> None:
    pytest.importorskip("ale_py", reason="the extra `atari` is not installed")
    pytest.importorskip("cv2", reason="the extra `atari` is not installed")


def follower(venv: VecEnv) -> A2C:
    kwargs: dict[str, Any] = {"features_extractor_class": AtariCNN, "net_arch": []}
    return A2C("CnnPolicy", venv, 3e-4, ent_coef=0.01, policy_kwargs=kwargs, seed=0, device="cpu")


SMALL = PreferenceConfig(
    labels=12,
    first_labels=6,
    first_steps=120,
    early=0.0,
    n_envs=2,
    follower_steps=40,
    epochs=1,
    first_epochs=1,
    ensemble=1,
    fit=FitConfig(batch_size=4),
    memory=64,
    penalty_steps=16,
    evaluation_episodes=1,
    device="cpu",
    frame_stack=4,
)


def test_the_papers_actor_critic() -> None:
    net = AtariCNN(IMAGES)
    layers = [m for m in net.layers if isinstance(m, torch.nn.Conv2d)]
    found = [(m.in_channels, m.out_channels, m.kernel_size, m.stride) for m in layers]
    filters, kernels, strides = (4, 16, 32, 32, 32), (8, 5, 4, 4), (4, 2, 1, 1)
    assert found == [(filters[i], filters[i + 1], (kernels[i],) * 2, (strides[i],) * 2) for i in range(4)]
    assert net(torch.zeros(3, 4, 84, 84)).shape == (3, 256)
    assert isinstance(net.head[0], torch.nn.Linear)
    assert net.head[0].in_features == 32 * 2 * 2
    for space in (gym.spaces.Box(0, 1, (5,)), gym.spaces.Box(0, 255, (4, 40, 84), np.uint8)):
        with pytest.raises(ValueError, match="observation_space: expected images"):
            AtariCNN(space)


@pytest.mark.parametrize("missing", ["ale_py", "cv2"])
def test_without_the_emulator_the_error_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'bilevel-gym\[atari\]'"):
        atari_copies("Seaquest")


def test_a_game_that_is_none_is_refused() -> None:
    needs_atari()
    with pytest.raises(ValueError, match=r"game: expected one of .*Seaquest.*, got 'Seequest'"):
        atari_copies("Seequest")


LONGER = [pytest.param(game, marks=pytest.mark.long) for game in ("BeamRider", "MsPacman")]


@pytest.mark.parametrize("game", ["Seaquest", *LONGER])
def test_the_sign_is_paid_and_the_score_told(game: str) -> None:
    """A life is an episode; the scores of its steps, sum over a game, are what the game shows."""
    needs_atari()
    venv = atari_copies(game).make(2)
    assert venv.observation_space == IMAGES
    venv.seed(0)
    obs = venv.reset()
    rng = np.random.default_rng(0)
    total, ended, lives_lost, magnitudes = np.zeros(2), 0, 0, set[float]()
    for _ in range(700):
        obs, paid, dones, infos = venv.step(rng.integers(0, venv.action_space.n, 2))  # type: ignore[attr-defined]
        for i, info in enumerate(infos):
            total[i] += info["score"]
            magnitudes.add(abs(info["score"]))
            assert paid[i] == np.sign(info["score"])
            if "episode" in info:
                assert dones[i]
                assert info["episode"]["r"] == pytest.approx(total[i])
                total[i], ended = 0.0, ended + 1
            elif dones[i]:
                lives_lost += 1
    assert obs.shape == (2, 4, 84, 84)  # type: ignore[union-attr]
    assert max(magnitudes) > 1.0  # so that the two differ
    assert lives_lost > 0
    venv.close()


def test_frames_are_kept_once_and_stacked_again() -> None:
    needs_atari()
    held = SegmentRecorder(atari_copies("MsPacman").make(2), 25, 80, "score", frame_stack=4)
    assert held._obs.shape == (83, 2, 84, 84)
    held.seed(0)
    obs, seen = held.reset(), []
    for _ in range(120):
        seen.append(np.array(obs))
        obs, *_ = held.step(np.array([1, 2]))
    found, _ = held.sample(40, 10**6)
    np.testing.assert_array_equal(found, np.concatenate(seen[40:]))
    held.close()


def test_followers_are_paid_signs_and_judged_by_scores_of_whole_games() -> None:
    needs_atari()
    learner = TrueReward(atari_copies("MsPacman"), follower, config=SMALL).learn(80)
    assert learner.observed.follower.venv is learner.observed.recorder
    returns = learner.true_returns()
    assert returns[0, 0] >= 60.0  # ten points a pill, three lives
    assert (learner.worlds.true_reward, learner.worlds.has_leader) == ("score", False)
    learner.close()


KILLED = """
games: {MsPacman: 3.0e-4}
methods: [pbrl]
steps: 2400
lam: [10, 10]
follower: {n_steps: 5, ent_coef: 0.01}
fit: {learning_rate: 3.0e-4, batch_size: 8}
preferences: {length: 25, first_labels: 10, labels: 40, early: 0.0, first_epochs: 1, epochs: 1, ensemble: 1, n_envs: 4,
  first_steps: 240, follower_steps: 120, memory: 64, penalty_steps: 16, frame_stack: 4, evaluation_episodes: 1}
save_every: 2
quick: {steps: 1200, preferences: {labels: 24}}
"""


@pytest.mark.long
def test_a_run_that_is_killed_goes_on_without_losing_a_label(tmp_path: Path) -> None:
    needs_atari()
    settings = tmp_path / "settings.yaml"
    settings.write_text(KILLED, encoding="utf-8")
    script = [sys.executable, str(ROOT / "examples" / "preferences_atari.py"), "--settings", str(settings), "--quick"]
    first = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if (tmp_path / "runs/atari/MsPacman-pbrl/leader.zip").exists() and "step" in line:
            break  # saved after two iterations, killed after more
    first.send_signal(signal.SIGKILL)
    first.wait()
    labels = tmp_path / "runs/atari/MsPacman-pbrl/labels.prefs"
    before = read_preferences(labels).answered
    assert 10 < len(before) < 24
    done = subprocess.run([*script, "--resume"], capture_output=True, text=True, cwd=tmp_path, check=True)
    begun = next(line for line in done.stdout.splitlines() if "begins at" in line)
    assert f"with {len(before)} labels" in begun
    assert "begins at step 0 " not in begun
    after = read_preferences(labels).answered
    assert len(after) == 24
    assert [label for _, label in after[: len(before)]] == [label for _, label in before]
    for (pair, _), (same, _) in zip(before, after[: len(before)], strict=True):
        np.testing.assert_array_equal(pair.left.obs, same.left.obs)
    assert "24 labels; score of whole games" in done.stdout


def test_copies_in_processes_play_the_same_games() -> None:
    needs_atari()
    one, other = (atari_copies("Seaquest", vec_env).make(2) for vec_env in (None, "subproc"))
    one.seed(3), other.seed(3)
    np.testing.assert_array_equal(one.reset(), other.reset())
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(0, 18, 2)
        obs, paid, dones, infos = one.step(actions)
        again = other.step(actions)
        for a, b in zip((obs, paid, dones), again, strict=False):
            np.testing.assert_array_equal(a, b)
        assert [info["score"] for info in infos] == [info["score"] for info in again[3]]
    one.close(), other.close()
