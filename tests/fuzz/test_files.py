"""Every file that is read, damaged or forged: it is refused by a ``ValueError`` that names it, or it is harmless."""

from __future__ import annotations

import io
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import A2C

import bilevel_gym
from bilevel_gym.agents import (
    CMAES,
    DRLHF,
    HPGD,
    PBRL,
    CMAESConfig,
    HPGDConfig,
    Hypergradient,
    OptunaSearch,
    PBRLConfig,
    PreferenceConfig,
    PreferencePBRL,
    ResponsePool,
    Rollouts,
    SingleLoop,
    SingleLoopConfig,
    TabularCMAES,
    TabularPBRL,
    TabularPBRLConfig,
)
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.agents.preferences.files import preferences_as_bytes, read_preferences
from bilevel_gym.agents.text.language_model import load_word_model
from tests.fuzz.hostile import (
    DELETED,
    LONG,
    arrays,
    changed,
    damaged,
    fuzz,
    json_values,
    little_memory,
    npy,
    packed,
    parts,
    paths,
    tiny_dqn,
)

TWO, GAME = "bilevel_gym/TwoState-v0", "bilevel_gym/StackelbergGame-v0"
SMALL = PBRLConfig(n_envs=2, follower_steps=8, warmup_steps=8, estimator=Rollouts(n_envs=2), eval_every=2)
ASKED = PreferenceConfig(labels=6, first_labels=4, length=4, first_steps=32, follower_steps=16, n_envs=2, ensemble=1)


@dataclass(frozen=True)
class Kind:
    """A leader whose files are damaged."""

    make: Callable[[], Any]
    total: int
    load: Callable[[Path], Any]


KINDS = {
    "PBRL": Kind(lambda: TabularPBRL(TWO, config=TabularPBRLConfig(follower=Softmax(0.2))), 3, TabularPBRL.load),
    "hypergradient": Kind(lambda: Hypergradient(TWO), 3, Hypergradient.load),
    "HPGD": Kind(lambda: HPGD(TWO, config=HPGDConfig(episodes=2)), 3, HPGD.load),
    "CMA-ES": Kind(lambda: TabularCMAES(TWO), 3, TabularCMAES.load),
    "single loop": Kind(
        lambda: SingleLoop(TWO, config=SingleLoopConfig(tau=0.3, block=5), env_kwargs={"tau": 0.3}), 30, SingleLoop.load
    ),
    "sampled PBRL": Kind(lambda: PBRL(TWO, A2C, config=SMALL), 200, PBRL.load),
    "sampled PBRL, replay": Kind(
        lambda: PBRL(GAME, tiny_dqn, config=SMALL, env_kwargs={"n_states": 2}),
        500,
        lambda path: PBRL.load(path, tiny_dqn),
    ),
    "sampled CMA-ES": Kind(
        lambda: CMAES(TWO, A2C, config=CMAESConfig(follower_steps=16, n_envs=2, rollout_envs=2, population=2)),
        150,
        CMAES.load,
    ),
    "pool": Kind(
        lambda: ResponsePool(TWO, A2C, n_envs=2, fresh_steps=16, warm_steps=16, episodes=2, points=8),
        600,
        ResponsePool.load,
    ),
    "Optuna's search": Kind(
        lambda: OptunaSearch(TWO, A2C, follower_steps=16, n_envs=2, rollout_envs=2, startup_trials=2, warm_start=True),
        220,
        OptunaSearch.load,
    ),
    "DRLHF": Kind(lambda: DRLHF("bilevel_gym/RewardGrid-v0", A2C, config=ASKED), 64, DRLHF.load),
    "preference PBRL": Kind(
        lambda: PreferencePBRL("bilevel_gym/RewardGrid-v0", A2C, config=ASKED), 64, PreferencePBRL.load
    ),
}


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    with little_memory():
        yield


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz"))


@cache
def whole(name: str) -> bytes:
    """A good file of a run that was cut off."""
    kind, path = KINDS[name], folder() / "whole.zip"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leader = kind.make()
        leader.learn(kind.total, lambda one: one.iteration < 2)
        leader.save(path, replay=True)
    return path.read_bytes()


@st.composite
def forged(draw: Any, name: str) -> bytes:
    """A leader file with something wrong in its bytes, its settings, its state, an array, or the bytes of an entry."""
    data = whole(name)
    kind = draw(st.sampled_from(["bytes", "settings", "state", "state", "array", "array", "entry"]))
    if kind == "bytes":
        return bytes(draw(damaged(data)))
    entries = parts(data)
    if kind in ("entry", "array"):
        entry = draw(st.sampled_from(sorted(one for one in entries if kind == "entry" or one.endswith(".npy"))))
        if kind == "entry":
            return packed(entries | {entry: draw(damaged(entries[entry]))})
        return packed(entries | {entry: npy(draw(arrays(np.load(io.BytesIO(entries[entry])))))})
    tree = json.loads(entries["leader.json"])
    for _ in range(draw(st.integers(1, 2))):
        where = draw(st.sampled_from([one for one in paths(tree) if (one[0] == "state") == (kind == "state")]))
        tree = changed(tree, where, draw(st.one_of(json_values(), st.just(DELETED))))
    return packed(entries | {"leader.json": json.dumps(tree).encode()})


def refused_or_read(load: Callable[[Path], Any], path: Path) -> Any:
    """What a file gives; None where it is refused as it should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load(path)
        except ValueError as error:
            if str(path) not in str(error):
                raise AssertionError("an error that does not name the file") from error
            return None


@pytest.mark.parametrize("name", KINDS)
def test_a_forged_leader_file(name: str) -> None:
    kind = KINDS[name]

    @fuzz(12)
    @given(st.data())
    def attempt(data: Any) -> None:
        path = folder() / "forged.zip"
        path.write_bytes(data.draw(forged(name)))
        leader = refused_or_read(kind.load, path)
        if leader is None:
            return
        leader.save(folder() / "again.zip", replay=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with suppress(ValueError, FloatingPointError):  # what is read can be learned on with, or says what is wrong
                leader.resume(lambda _: False)
        if hasattr(leader, "close"):
            leader.close()

    attempt()


BAD: list[Any] = [None, True, -1, 2**70, "x", math.nan, math.inf, [], {}, [1], {"array": 0}, DELETED, -0.5]
EXACT = [name for name, kind in KINDS.items() if kind.total < 50]


@pytest.mark.parametrize(
    "name", [*EXACT, "sampled PBRL", "sampled PBRL, replay", "sampled CMA-ES", "Optuna's search", "pool"]
)
def test_no_part_of_a_state_is_taken_on_trust(name: str) -> None:
    """A number, text, record or array of it is damaged: the file is refused, or the leader takes a step.

    Twenty-five of them, always the same; each once where the fuzzers go on for long.
    """
    entries, path, rng = parts(whole(name)), folder() / "damaged.zip", np.random.default_rng(0)
    tree = json.loads(entries["leader.json"])
    files: list[dict[str, bytes]] = []
    for where in paths(tree):
        if where[0] == "state" and len(where) > 1:
            for bad in BAD if LONG else [BAD[rng.integers(len(BAD))]]:
                files.append({"leader.json": json.dumps(changed(tree, where, bad)).encode()})
    for entry in (one for one in entries if one.endswith(".npy")):
        held = np.load(io.BytesIO(entries[entry]))
        real = held.dtype.kind == "f"
        others = [
            held[None],
            -held if real else np.full_like(held, 77),
            np.full_like(held, math.nan) if real else -held,
        ]
        files += [{entry: npy(other)} for other in others]
    if not LONG:
        files = [files[i] for i in rng.permutation(len(files))[:25]]
    for k, damage in enumerate(files):
        path.write_bytes(packed(entries | damage))
        leader = refused_or_read(KINDS[name].load, path)
        if leader is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                before = leader.iteration
                leader.learn(1, lambda _: False, reset_num_timesteps=False)
            assert leader.iteration == before + 1, k
            leader.close()


@cache
def preferences() -> bytes:
    learner = DRLHF("bilevel_gym/RewardGrid-v0", A2C, config=ASKED)
    learner.learn(48)
    pairs = {100 + i: preference.pair for i, preference in enumerate(learner.buffer)}
    return preferences_as_bytes(learner.buffer, pairs, learner.worlds.signature(ASKED.length))


@fuzz(40)
@given(st.data())
def test_a_forged_preference_file(data: Any) -> None:
    from bilevel_gym.agents.preferences.files import MAGIC, _record, _records

    good = preferences()
    if data.draw(st.booleans()):
        bad = data.draw(damaged(good))
    else:  # one record's payload, under a sum that is right
        records = [(kind, payload) for kind, payload, _ in _records(good, len(MAGIC))]
        i = data.draw(st.integers(0, len(records) - 1))
        kind, payload = records[i]
        if kind != b"Q" and data.draw(st.booleans()):
            tree = json.loads(payload)
            tree = changed(tree, data.draw(st.sampled_from(paths(tree))), data.draw(json_values()))
            records[i] = (kind, json.dumps(tree).encode())
        else:
            records[i] = (data.draw(st.sampled_from([kind, b"Q", b"A", b"H", b"Z"])), data.draw(damaged(payload)))
        bad = MAGIC + b"".join(_record(*record) for record in records)
    path = folder() / "forged.preferences"
    path.write_bytes(bad)
    found = refused_or_read(read_preferences, path)
    if found is not None:
        assert all(label in ("left", "right", "equal", "skip") for _, label in found.answered)
        assert isinstance(found.pending, dict)


@fuzz(15)
@given(st.data())
def test_a_forged_language_model(data: Any) -> None:
    good = Path(bilevel_gym.__file__).parent / "agents" / "text" / "word_model.npz"
    path = folder() / "forged.npz"
    path.write_bytes(data.draw(damaged(good.read_bytes())))
    refused_or_read(load_word_model, path)


def test_what_the_fuzzers_begin_with_is_read() -> None:
    for name, kind in KINDS.items():
        path = folder() / "whole.zip"
        path.write_bytes(packed(parts(whole(name))))
        assert kind.load(path).iteration >= 1
    (folder() / "whole.preferences").write_bytes(preferences())
    assert len(read_preferences(folder() / "whole.preferences").answered) >= 4
