"""The parts of preference learning: who answers, what is kept, what is asked, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from bilevel_gym.agents.preferences.files import (
    FileLabeller,
    PreferenceLog,
    Signature,
    load_preferences,
    read_preferences,
    save_preferences,
)
from bilevel_gym.agents.preferences.fragmenters import ActiveFragmenter, RandomFragmenter, disagreement
from bilevel_gym.agents.preferences.labels import (
    Answer,
    Pair,
    PreferenceBuffer,
    ProgramLabeller,
    Query,
    TrueReturnLabeller,
)
from bilevel_gym.agents.preferences.reward_model import MLPReward, RewardModel
from bilevel_gym.wrappers import Segment, SegmentRecorder

SPACE, ACTIONS = gym.spaces.Box(-1.0, 1.0, (2,), np.float32), gym.spaces.Discrete(3)
SIGNATURE = Signature.of("World-v0", SPACE, ACTIONS, 4)


def segment(seed: int, worth: float = 0.0, H: int = 4) -> Segment:
    rng = np.random.default_rng(seed)
    rewards = np.append(np.zeros(H - 1), worth)
    obs = rng.uniform(-1, 1, (H, 2)).astype(np.float32)
    return Segment(obs, rng.integers(0, 3, H), np.ones(H, bool), rewards)


def pair(seed: int, left: float = 0.0, right: float = 0.0) -> Pair:
    return Pair(segment(2 * seed, left), segment(2 * seed + 1, right))


def labels_of(labeller: Any, pairs: list[Pair]) -> list[str]:
    labeller.ask([Query(i, p) for i, p in enumerate(pairs)])
    answers = labeller.answers()
    assert [answer.id for answer in answers] == list(range(len(pairs)))
    assert labeller.answers() == []
    return [answer.label for answer in answers]


# --- labellers --------------------------------------------------------------------------------------------------------


def test_the_true_return_decides_and_ties_are_equal() -> None:
    pairs = [pair(0, 2.0, 1.0), pair(1, 1.0, 2.0), pair(2, 1.0, 1.0), pair(3, 1.0, 1.4)]
    assert labels_of(TrueReturnLabeller(), pairs) == ["left", "right", "equal", "right"]
    assert labels_of(TrueReturnLabeller(tie=0.5), pairs) == ["left", "right", "equal", "equal"]


def test_noise_and_temperature_err_as_often_as_they_say() -> None:
    n = 4000
    pairs = [pair(0, 1.0, 0.0)] * n
    for labeller, chance in (
        (TrueReturnLabeller(noise=0.2, seed=1), 0.8),
        (TrueReturnLabeller(temperature=2.0, seed=1), 1 / (1 + np.exp(-0.5))),
        (TrueReturnLabeller(temperature=1e-9, seed=1), 1.0),
    ):
        share = np.mean([label == "left" for label in labels_of(labeller, pairs)])
        assert abs(share - chance) <= 4.0 * np.sqrt(chance * (1 - chance) / n)


def test_the_budget_is_kept() -> None:
    labeller = TrueReturnLabeller(budget=3)
    assert labels_of(labeller, [pair(0, 1.0)] * 2) == ["left", "left"]
    assert labeller.remaining == 1
    with pytest.raises(ValueError, match=r"queries: expected at most 1 \(the remaining budget\), got 2"):
        labeller.ask([Query(0, pair(0)), Query(1, pair(1))])
    assert labeller.remaining == 1


def test_a_program_answers() -> None:
    assert labels_of(ProgramLabeller(lambda p: "skip" if p.left.obs[0, 0] < 2 else "left"), [pair(0)]) == ["skip"]
    with pytest.raises(ValueError, match="label: expected one of left, right, equal, skip, got 'both'"):
        labels_of(ProgramLabeller(lambda _: "both"), [pair(0)])  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("label", ["Left", "", None, 0, np.array(["left", "right"])])
def test_another_label_is_refused(label: Any) -> None:
    with pytest.raises(ValueError, match="label: expected one of left, right, equal, skip"):
        Answer(0, label)
    with pytest.raises(ValueError, match="label: expected one of left, right, equal, skip"):
        PreferenceBuffer().add(pair(0), label)


def test_segments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="pair: expected segments of the same length, 4, got 3"):
        Pair(segment(0), segment(1, H=3))
    other = Segment(np.zeros((4, 3), np.float32), np.zeros(4, int), np.ones(4, bool))
    with pytest.raises(ValueError, match=r"pair: expected obs of the same shape, \(4, 2\), got \(4, 3\)"):
        Pair(segment(0), other)
    with pytest.raises(ValueError, match="pair: expected actions of the same type"):
        Pair(segment(0), Segment(segment(1).obs, np.zeros(4, np.float32), np.ones(4, bool)))
    buffer = PreferenceBuffer()
    buffer.add(pair(0), "left")
    with pytest.raises(ValueError, match="pair: expected segments of the same length, 4, got 3"):
        buffer.add(Pair(segment(0, H=3), segment(1, H=3)), "left")


# --- buffer -----------------------------------------------------------------------------------------------------------


def test_first_in_first_out_and_skips_are_counted_only() -> None:
    buffer = PreferenceBuffer(capacity=2)
    pairs = [pair(i) for i in range(4)]
    for p, label in zip(pairs, ("left", "skip", "right", "equal"), strict=True):
        buffer.add(p, label)  # type: ignore[arg-type]
    assert [held.pair for held in buffer] == pairs[2:]
    assert [held.mu for held in buffer] == [0.0, 0.5]
    assert (len(buffer), buffer.seen, buffer.skipped) == (2, 3, 1)


def test_batches_go_over_every_pair_once() -> None:
    buffer = PreferenceBuffer()
    for i in range(7):
        buffer.add(pair(i), "left" if i % 2 else "right")
    batches = list(buffer.batches(3, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    order = [list(buffer).index(p) for batch in batches for p in batch]
    assert sorted(order) == list(range(7))
    assert order != sorted(order)
    assert [p.mu for batch in batches for p in batch] == [i % 2 for i in order]


def test_an_empty_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer: expected at least one labelled pair, got none"):
        list(PreferenceBuffer().batches(2, np.random.default_rng(0)))


# --- files ------------------------------------------------------------------------------------------------------------


def same_pair(one: Pair, two: Pair) -> None:
    for a, b in ((one.left, two.left), (one.right, two.right)):
        for name in ("obs", "actions", "mask"):
            mine, theirs = getattr(a, name), getattr(b, name)
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def full(n: int = 5) -> PreferenceBuffer:
    buffer = PreferenceBuffer()
    for i in range(n):
        buffer.add(pair(i, 1.0), ("left", "right", "equal")[i % 3])
    return buffer


def test_saved_and_loaded_without_the_true_rewards(tmp_path: Path) -> None:
    buffer = full()
    loaded = load_preferences(save_preferences(tmp_path / "a.prefs", buffer, SIGNATURE), SIGNATURE)
    assert [p.label for p in loaded] == [p.label for p in buffer]
    for one, two in zip(buffer, loaded, strict=True):
        same_pair(one.pair, two.pair)
        assert two.pair.left.true_rewards is None
    assert len(load_preferences(tmp_path / "a.prefs", capacity=2)) == 2


@pytest.mark.parametrize("lost", [1, 40, 300])
def test_of_a_file_cut_short_the_rest_is_kept_and_said(tmp_path: Path, lost: int) -> None:
    path = save_preferences(tmp_path / "a.prefs", full(), SIGNATURE)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.warns(UserWarning, match=r"cut short or damaged at byte \d+: kept \d queries and 4 answers, lost"):
        loaded = load_preferences(path, SIGNATURE)
    assert [p.label for p in loaded] == ["left", "right", "equal", "left"]
    with pytest.warns(UserWarning, match="cut short"):
        log = PreferenceLog(path)  # the torn end is cut off, so that what is appended can be read
    log.ask(9, pair(9))
    log.answer(9, "right")
    assert [p.label for p in load_preferences(path)] == ["left", "right", "equal", "left", "right"]


def test_a_damaged_byte_ends_the_reading(tmp_path: Path) -> None:
    path = save_preferences(tmp_path / "a.prefs", full(), SIGNATURE)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="damaged at byte"):
        assert 0 < len(load_preferences(path)) < 5


def test_a_file_of_another_environment_is_refused(tmp_path: Path) -> None:
    path = save_preferences(tmp_path / "a.prefs", full(), SIGNATURE)
    other = Signature.of("Other-v0", SPACE, gym.spaces.Discrete(4), 4)
    with pytest.raises(
        ValueError, match=r"preferences of Other-v0 \(action_space Discrete\(4\)\), got .*Discrete\(3\)"
    ):
        load_preferences(path, other)
    with pytest.raises(ValueError, match=r"\(length 5\), got .*, of 4"):
        FileLabeller(path, Signature.of("World-v0", SPACE, ACTIONS, 5))
    (tmp_path / "b").write_bytes(b"something else")
    with pytest.raises(ValueError, match="path: expected a preference file"):
        read_preferences(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_preferences(tmp_path / "c")


def test_answers_come_late_from_outside_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "asked.prefs"
    labeller = FileLabeller(path, SIGNATURE)
    labeller.ask([Query(i, pair(i)) for i in range(3)])
    assert labeller.answers() == []
    person = PreferenceLog(path)
    assert list(person.contents.pending) == [0, 1, 2]
    person.answer(2, "left")
    person.answer(0, "skip")
    assert {(a.id, a.label) for a in labeller.answers()} == {(2, "left"), (0, "skip")}
    assert labeller.answers() == []
    with pytest.raises(ValueError, match="id: expected the number of a query in the file, got 7"):
        person.answer(7, "left")
    again = FileLabeller(path, SIGNATURE)
    labelled, pending = again.earlier()
    assert [label for _, label in labelled] == ["skip", "left"]
    assert list(pending) == [1]
    same_pair(pending[1], pair(1))
    assert again.first_id == 3
    person.answer(1, "right")
    assert again.answers() == [Answer(1, "right")]


def test_a_half_written_record_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "asked.prefs"
    labeller = FileLabeller(path, SIGNATURE)
    labeller.ask([Query(0, pair(0))])
    before = path.stat().st_size
    PreferenceLog(path).answer(0, "equal")
    record = path.read_bytes()
    path.write_bytes(record[: before + 5])
    labeller.answers()
    path.write_bytes(record)
    assert labeller.answers() == [Answer(0, "equal")]


def test_pictures_travel(tmp_path: Path) -> None:
    shown = [
        Segment(s.obs, s.actions, s.mask, None, np.full((4, 2, 2, 3), i, np.uint8))
        for i, s in enumerate((segment(0), segment(1)))
    ]
    PreferenceLog(tmp_path / "p", SIGNATURE).ask(0, Pair(*shown))
    pictures = read_preferences(tmp_path / "p").pairs[0].right.pictures
    assert pictures is not None
    assert pictures.shape == (4, 2, 2, 3)
    assert (pictures == 1).all()
    log = PreferenceLog(tmp_path / "p")
    assert log.contents.pairs[0].right.pictures is None  # left in the file until somebody looks
    pictures = log.pair(0).right.pictures
    assert pictures is not None
    assert (pictures == 1).all()
    with pytest.raises(ValueError, match="id: expected the number of a query in the file, got 1"):
        log.pair(1)


def test_a_log_writes_whole_records_into_its_own_file_only(tmp_path: Path) -> None:
    path = tmp_path / "asked.prefs"
    log = PreferenceLog(path, SIGNATURE)
    log.ask(0, pair(0))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[-200:-100])  # another writer died in the middle of a record
    log.answer(0, "left")
    assert read_preferences(path).labels == {0: "left"}
    assert (tmp_path / "asked.prefs.cut").read_bytes() == whole[-200:-100]
    path.write_bytes(b"another file that is longer than the first" * 100)
    other = path.read_bytes()
    with pytest.raises(ValueError, match=r"path: expected the file that was opened, got .*, which has been replaced"):
        log.ask(1, pair(1))
    with pytest.raises(ValueError, match=r"path: expected the file that was opened, got .*, which has been replaced"):
        log.pair(0)
    assert path.read_bytes() == other
    path.unlink()
    with pytest.raises(FileNotFoundError):
        log.answer(0, "left")
    assert not path.exists()


def test_of_a_full_disk_nothing_is_left(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # a limit on the size of files stands for the disk
    path = tmp_path / "asked.prefs"
    log = PreferenceLog(path, SIGNATURE)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"100 of [0-9]+ bytes could be written, nothing was kept"):
            log.ask(0, pair(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    log.ask(0, pair(0))
    assert list(read_preferences(path).pairs) == [0]


# --- fragmenters ------------------------------------------------------------------------------------------------------


def played(steps: int = 60) -> SegmentRecorder:
    venv = SegmentRecorder(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2), length=4)
    venv.seed(0)
    venv.reset()
    rng = np.random.default_rng(0)
    for _ in range(steps):
        venv.step(rng.integers(0, 2, 2))
    return venv


def ensemble(venv: SegmentRecorder, n: int) -> RewardModel:
    torch.manual_seed(0)
    return RewardModel([MLPReward(venv.observation_space, venv.action_space) for _ in range(n)], "cpu")


def test_random_pairs_are_of_different_places() -> None:
    venv = played()
    pairs = RandomFragmenter().pairs(venv, ensemble(venv, 1), 20, 0, np.random.default_rng(0))
    places = [(s.time, s.copy) for p in pairs for s in (p.left, p.right)]
    assert len(pairs) == 20
    assert len(set(places)) == 40
    late = RandomFragmenter().pairs(venv, ensemble(venv, 1), 500, 50, np.random.default_rng(0))
    assert 0 < len(late) < 20  # no more than there are
    assert all(s.time >= 50 for p in late for s in (p.left, p.right))


def test_active_pairs_are_those_of_most_disagreement() -> None:
    venv = played()
    model = ensemble(venv, 3)
    chosen = ActiveFragmenter(10).pairs(venv, model, 5, 0, np.random.default_rng(3))
    every = RandomFragmenter().pairs(venv, model, 50, 0, np.random.default_rng(3))
    ranked = np.sort(disagreement(model, every))[::-1]
    np.testing.assert_allclose(disagreement(model, chosen), ranked[:5], rtol=1e-5)
    with pytest.raises(ValueError, match="reward model: expected an ensemble of two or more"):
        ActiveFragmenter().pairs(venv, ensemble(venv, 1), 5, 0, np.random.default_rng(0))


def test_disagreement_is_the_variance_of_the_members_probabilities() -> None:
    venv = played()
    model = ensemble(venv, 3)
    pairs = RandomFragmenter().pairs(venv, model, 4, 0, np.random.default_rng(0))
    for one, expected in zip(pairs, disagreement(model, pairs), strict=True):
        chances = []
        for member in model.members:
            R = []
            for s in (one.left, one.right):
                obs, actions = torch.as_tensor(s.observations), torch.as_tensor(s.actions)
                R.append((member(obs, actions) * torch.as_tensor(s.mask)).sum().item())
            chances.append(1.0 / (1.0 + np.exp(R[1] - R[0])))
        assert expected == pytest.approx(np.var(chances), rel=1e-4)
