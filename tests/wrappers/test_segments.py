"""Segments are what was played: their returns are what the environment paid, their ends are where episodes ended."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from bilevel_gym.wrappers import LearnedReward, Segment, SegmentRecorder


class Counter(gym.Env[Any, Any]):
    """Observes the step's number in its episode and the copy's number, pays the step's number; ends after ``end`` steps."""

    render_mode = "rgb_array"

    def __init__(self, name: int, end: int, terminates: bool) -> None:
        self.name, self.end, self.terminates, self.t = name, end, terminates, 0
        self.observation_space = gym.spaces.Box(0.0, 100.0, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(3)

    def _obs(self) -> Any:
        return np.array([self.t, self.name], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        paid = float(self.t)
        self.t += 1
        over = self.t == self.end
        return self._obs(), paid, over and self.terminates, over and not self.terminates, {"secret": 10.0 * paid}

    def render(self) -> Any:
        return np.full((2, 2, 3), self.t, np.uint8)


def recorder(
    *ends: tuple[int, bool], steps: int, length: int, wrap: Any = lambda venv: venv, **kwargs: Any
) -> SegmentRecorder:
    """Played with actions t % 3; ``wrap`` puts something on top."""
    makers: list[Any] = [partial(Counter, i, end, terminates) for i, (end, terminates) in enumerate(ends)]
    recorded = SegmentRecorder(DummyVecEnv(makers), length, **kwargs)
    venv = wrap(recorded)
    venv.reset()
    for t in range(steps):
        venv.step(np.full(len(ends), t % 3))
    return recorded


def test_segment_returns_are_the_sum_of_what_the_environment_paid() -> None:
    venv = recorder((7, True), (5, False), steps=40, length=4)
    starts = venv.starts()
    assert len(starts) > 30
    for time, copy in starts:
        segment, end = venv.cut(time, copy), (7, 5)[copy]
        begin = time % end
        paid = [float(begin + k) for k in range(4) if begin + k < end]
        assert segment.true_return == sum(paid)
        assert segment.mask.sum() == len(paid)
        np.testing.assert_array_equal(segment.obs[segment.mask, 0], paid)
        np.testing.assert_array_equal(segment.obs[segment.mask, 1], copy)
        np.testing.assert_array_equal(segment.actions[segment.mask], np.arange(time, time + len(paid)) % 3)
        assert not segment.obs[~segment.mask].any()


def test_a_segment_reaches_over_its_own_end_and_over_nothing_else() -> None:
    venv = recorder((7, True), (5, False), steps=40, length=4)
    for copy, end, last in ((0, 7, 6), (1, 5, 1)):  # padded up to the termination; not over a time limit
        begins = {time % end for time, c in venv.starts() if c == copy}
        assert begins == set(range(last + 1))
    with pytest.raises(ValueError, match="time: expected the start of 4 steps of one episode, got 3, after which 2"):
        venv.cut(3, 1)
    with pytest.raises(ValueError, match="time: expected a step that is still stored"):
        venv.cut(40, 0)


def test_a_reset_cuts() -> None:
    venv = recorder((100, True), steps=3, length=4)
    assert len(venv.starts()) == 0
    venv.reset()
    venv.step(np.zeros(1, int))
    assert len(venv.starts()) == 0  # four steps, of two episodes
    for _ in range(3):
        venv.step(np.zeros(1, int))
    assert venv.starts().tolist() == [[3, 0]]
    assert venv.starts(since=4).tolist() == []


def test_old_steps_are_overwritten() -> None:
    venv = recorder((100, True), steps=50, length=4, capacity=8)
    assert venv.starts().tolist() == [[t, 0] for t in range(42, 47)]
    assert venv.cut(45, 0).true_return == 45 + 46 + 47 + 48
    window = venv.window(since=47)
    np.testing.assert_array_equal(window.age[:, 0], [47, 48, 49])
    np.testing.assert_array_equal(window.true_rewards[:, 0], [47, 48, 49])


def test_the_learned_reward_stays_out_of_the_record() -> None:
    """The follower is paid the learned reward, of the observation before the step; the record holds the environment's."""
    seen: list[tuple[Any, Any]] = []

    def reward(obs: Any, actions: Any) -> Any:
        seen.append((obs.copy(), actions.copy()))
        return 1000.0 + obs[:, 0]

    venv = recorder((7, True), steps=5, length=4, wrap=lambda below: LearnedReward(below, reward))
    assert [float(obs[0, 0]) for obs, _ in seen] == [0, 1, 2, 3, 4]
    assert venv.cut(0, 0).true_return == 0 + 1 + 2 + 3
    top = LearnedReward(venv, reward)
    top.reset()
    _, paid, _, infos = top.step(np.zeros(1, int))
    assert (paid[0], infos[0]["true_reward"]) == (1000.0, 0.0)
    assert paid.dtype == np.float32


def test_the_true_reward_may_stand_in_the_infos() -> None:
    assert recorder((7, True), steps=5, length=4, true_reward="secret").cut(0, 0).true_return == 60.0
    with pytest.raises(ValueError, match="true_reward: expected the key 'hidden'"):
        recorder((7, True), steps=1, length=1, true_reward="hidden")


def test_pictures_show_what_the_step_was_taken_from() -> None:
    pictures = recorder((7, True), steps=7, length=4, pictures=True).cut(4, 0).pictures
    assert pictures is not None
    np.testing.assert_array_equal(pictures[:, 0, 0, 0], [4, 5, 6, 0])


def test_stacked_frames_are_stored_once() -> None:
    """Three frames a stack: the segment gives back the stacks that were observed."""

    class Film(Counter):
        def __init__(self) -> None:
            super().__init__(0, 9, True)
            self.observation_space = gym.spaces.Box(0, 255, (3, 2, 2), np.uint8)

        def _obs(self) -> Any:
            frames = [np.full((2, 2), max(0, self.t - k), np.uint8) for k in (2, 1, 0)]
            return np.stack(frames)

    venv = SegmentRecorder(DummyVecEnv([Film]), 4, frame_stack=3)
    obs: list[Any] = [venv.reset()]
    for _ in range(9):
        obs.append(venv.step(np.zeros(1, int))[0])
    segment = venv.cut(2, 0)
    assert segment.obs.shape == (6, 2, 2)
    np.testing.assert_array_equal(segment.observations, np.stack([o[0] for o in obs[2:6]]))
    ended = venv.cut(7, 0)
    np.testing.assert_array_equal(ended.observations[ended.mask], np.stack([o[0] for o in obs[7:9]]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": 0}, "length: expected a whole number >= 1"),
        ({"length": 9, "capacity": 8}, "capacity: expected 9 steps"),
        ({"length": 2, "frame_stack": 4}, "frame_stack: expected the first number"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentRecorder(DummyVecEnv([lambda: Counter(0, 5, True)]), **kwargs)


def test_wrong_segments_and_rewards_are_refused() -> None:
    mask = np.ones(3, bool)
    with pytest.raises(ValueError, match="obs: expected 3 of 3 steps, got 2"):
        Segment(np.zeros((2, 1)), np.zeros(3), mask)
    with pytest.raises(ValueError, match="true_rewards: expected finite numbers"):
        Segment(np.zeros((3, 1)), np.zeros(3), mask, np.array([0.0, np.nan, 0.0]))
    with pytest.raises(ValueError, match="whose true rewards were recorded"):
        _ = Segment(np.zeros((3, 1)), np.zeros(3), mask).true_return
    for answer, message in ((np.zeros(2), "shape"), (np.array([np.nan]), "finite")):
        venv = LearnedReward(DummyVecEnv([lambda: Counter(0, 5, True)]), lambda *_, answer=answer: answer)
        venv.reset()
        with pytest.raises(ValueError, match=f"reward: expected {message}"):
            venv.step(np.zeros(1, int))


class Frames(gym.Env[Any, Any]):
    """A picture of a number that only grows, so that every frame is told from every other; episodes of 3 to 6 steps."""

    def __init__(self, name: int) -> None:
        self.name, self.total, self.t = name, 0, 0
        self.observation_space = gym.spaces.Box(0, 255, (8, 8, 1), np.uint8)
        self.action_space = gym.spaces.Discrete(2)

    def _obs(self) -> Any:
        return np.full((8, 8, 1), 1 + (7 * self.total + self.name) % 251, np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        self.total += 1
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.total += 1
        over = self.t >= 3 + self.total % 4
        return self._obs(), 1.0, over and self.total % 2 == 0, over and self.total % 2 == 1, {}


def test_stacks_of_frames_are_made_again_from_single_frames() -> None:
    makers: list[Any] = [partial(Frames, 0), partial(Frames, 100)]
    venv = VecTransposeImage(VecFrameStack(DummyVecEnv(makers), 4))
    held = SegmentRecorder(venv, length=3, capacity=16, frame_stack=4)
    assert held._obs.shape == (16 + 3, 2, 8, 8)  # one frame a step, and three for the oldest stack
    obs: Any = held.reset()
    seen: list[Any] = []
    for t in range(60):
        seen.append(obs)
        obs, _, _, _ = held.step(np.full(2, t % 2))
        first = max(0, t + 1 - 16)
        times, copies = (a.ravel() for a in np.meshgrid(np.arange(first, t + 1), [0, 1], indexing="ij"))
        expected = np.concatenate(seen[first : t + 1])
        np.testing.assert_array_equal(held.observations(times, copies), expected)
    for time, copy in held.starts():
        segment = held.cut(int(time), int(copy))
        for k in np.flatnonzero(segment.mask):
            np.testing.assert_array_equal(segment.observations[k], seen[time + k][copy])
    assert len(held._heads) < 30
    obs, actions = held.sample(44, 1000)
    np.testing.assert_array_equal(obs, np.concatenate(seen[44:]))
    np.testing.assert_array_equal(actions, np.repeat(np.arange(44, 60) % 2, 2))
    assert len(held.sample(44, 5)[0]) == 5
