"""Leader files of learning from preferences: what they hold, what is given again, and what a stranger's file cannot do."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C

from bilevel_gym.agents import DRLHF, PreferenceConfig, PreferencePBRL, TrueReturnLabeller
from bilevel_gym.agents.preferences.files import MAGIC, _record
from bilevel_gym.agents.preferences.reward_model import MLPReward
from bilevel_gym.agents.preferences.training import RewardExplodedError

GRID = "bilevel_gym/RewardGrid-v0"
SMALL = PreferenceConfig(
    labels=12, first_labels=6, length=5, first_steps=64, follower_steps=64, first_epochs=2, epochs=1, n_envs=4
)


def exploding(leader: Any) -> None:
    leader.trainer.optimizer.param_groups[0]["lr"] = 1e9


def forged(path: Path, change: Callable[[Any, dict[str, bytes]], Any]) -> Path:
    """A leader file whose header and entries are changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(entries["leader.json"])
    change(header, entries)
    other = path.with_name("forged.zip")
    with zipfile.ZipFile(other, "w") as archive:
        for name, data in (entries | {"leader.json": json.dumps(header).encode()}).items():
            archive.writestr(name, data)
    return other


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    config = replace(SMALL, checkpoint=str(folder / "good.zip"))
    return DRLHF(GRID, A2C, config=config).learn(300).save(folder / "leader.zip")


@pytest.fixture
def file(saved: Path, tmp_path: Path) -> Path:
    """A file that a test may change."""
    return Path(shutil.copy(saved, tmp_path))


@pytest.fixture(scope="module")
def penalised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PreferencePBRL(GRID, A2C, config=SMALL).learn(200).save(tmp_path_factory.mktemp("penalised") / "leader.zip")


# --- no path to write -------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_not_in_the_file_and_may_be_given_again(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        assert b"good.zip" not in b"".join(archive.read(name) for name in archive.namelist())
    leader = DRLHF.load(file)
    assert leader.config.checkpoint is None
    with pytest.raises(RewardExplodedError, match="a smaller learning_rate"):
        leader.learn(300, exploding, reset_num_timesteps=False)
    assert sorted(one.name for one in file.parent.iterdir()) == ["leader.zip"]
    again = DRLHF.load(file, checkpoint=str(file.with_name("mine.zip")))
    with pytest.raises(RewardExplodedError, match=r"saved in .*mine\.zip"):
        again.learn(300, exploding, reset_num_timesteps=False)
    assert DRLHF.load(file.with_name("mine.zip")).iteration == again.iteration


STRANGE: dict[str, Callable[[Any, Path], None]] = {
    "the config's checkpoint": lambda h, path: h["arguments"]["config"]["fields"].update(checkpoint=str(path)),
    "a checkpoint beside the config": lambda h, path: h["arguments"].update(checkpoint=str(path)),
    "a labeller's path": lambda h, path: h["arguments"].update(labeller=str(path)),
    "a labeller": lambda h, path: h["arguments"].update(
        labeller={"class": "FileLabeller", "fields": {"path": str(path), "signature": None}}
    ),
    "the environment's log": lambda h, path: h["source"].update(env_kwargs={"dict": {"log": str(path)}}),
    "a net": lambda h, path: h["arguments"]["config"]["fields"].update(net=str(path)),
}


@pytest.mark.parametrize("name", STRANGE)
def test_no_file_names_a_path_to_write(name: str, file: Path) -> None:
    target = file.with_name("victim.txt")
    target.write_text("mine", encoding="utf-8")
    other = forged(file, lambda header, _: STRANGE[name](header, target))
    with pytest.raises(ValueError, match=r"forged\.zip"):
        DRLHF.load(other)
    assert target.read_text(encoding="utf-8") == "mine"


def test_a_labeller_of_another_kind_takes_nothing_from_the_file(file: Path) -> None:
    """Its state stands in the file under the name of a class; only one that is given again, of that name, reads it."""
    target = file.with_name("victim.prefs")
    state = ["FileLabeller", {"path": str(target), "left": 7}]
    other = forged(file, lambda header, _: header["state"]["state"]["asking"].update(labeller=state))
    assert DRLHF.load(other).state.asking.labeller.remaining is None
    assert not target.exists()


# --- what is given again ----------------------------------------------------------------------------------------------


def small_net(observations: Any, actions: Any) -> MLPReward:
    return MLPReward(observations, actions, (7,))


def test_a_net_of_ones_own_is_given_again(tmp_path: Path) -> None:
    leader = DRLHF(GRID, A2C, config=replace(SMALL, net=small_net)).learn(200)
    path = leader.save(tmp_path / "leader")
    with pytest.raises(ValueError, match=r"^net: expected the net of the config, if it had one, got None"):
        DRLHF.load(path)
    again = DRLHF.load(path, net=small_net)
    assert again.config.net is small_net
    np.testing.assert_array_equal(again.x, leader.x)
    with pytest.raises(ValueError, match=r"leader\.zip"):
        DRLHF.load(path, net=lambda o, a: MLPReward(o, a, (9,)))
    plain = DRLHF(GRID, A2C, config=SMALL).learn(200).save(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"^net: expected"):
        DRLHF.load(plain, net=small_net)


def test_what_load_takes_is_named(file: Path) -> None:
    with pytest.raises(TypeError, match="follower, env, labeller, net, checkpoint"):
        DRLHF.load(file, judge=3)
    assert DRLHF.load(file, A2C, GRID, TrueReturnLabeller(), None).asked == 12


def test_x_is_the_reward_models_and_no_record_is_kept(file: Path) -> None:
    leader = DRLHF.load(file)
    flat = np.concatenate([p.detach().numpy().astype(np.float64).ravel() for p in leader.model.parameters()])
    for x in (leader.x, leader.last_x):
        np.testing.assert_array_equal(x, flat)
    assert leader.history == []
    before = leader.x
    leader.learn(64, reset_num_timesteps=False)
    assert not np.array_equal(leader.x, before)


# --- damaged and forged pairs -----------------------------------------------------------------------------------------


def with_pairs(file: Path, contents: bytes) -> Path:
    """The file with these bytes as its preference file, and a place for one pair."""

    def change(header: Any, entries: dict[str, bytes]) -> None:
        asking = header["state"]["state"]["asking"]
        blob = io.BytesIO()
        np.save(blob, np.frombuffer(contents, np.uint8))
        entries[f"arrays/{asking['preferences']['array']}.npy"] = blob.getvalue()
        asking["places"] = asking["places"][:1]

    return forged(file, change)


def head(file: Path) -> bytes:
    """The magic and the signature of the file's pairs."""
    signature = DRLHF.load(file).worlds.signature(SMALL.length)
    return MAGIC + _record(b"H", json.dumps(vars(signature)).encode())


def query(steps: int, shape: tuple[int, ...] = (), dtype: Any = np.int64) -> bytes:
    blob = io.BytesIO()
    arrays: dict[str, Any] = {"id": np.int64(0), "frame_stack": np.int64(1)}
    for side in ("left", "right"):
        arrays[f"{side}_obs"] = np.zeros((steps, *shape), dtype)
        arrays[f"{side}_actions"], arrays[f"{side}_mask"] = np.zeros(steps, np.int64), np.ones(steps, dtype=bool)
    np.savez_compressed(blob, **arrays)
    return _record(b"Q", blob.getvalue())


def test_pairs_that_fit_are_read(file: Path) -> None:
    leader = DRLHF.load(with_pairs(file, head(file) + query(5)))
    assert (len(leader.buffer), list(leader.pending)) == (0, [0])


@pytest.mark.parametrize(
    ("steps", "shape", "dtype", "why"),
    [
        (5, (3,), np.int64, "obs of the same shape"),
        (5, (), np.float32, "obs of the same type"),
        (6, (), np.int64, "segments of the same length"),
        (5, (2**22,), np.float64, "no more or larger queries than the settings need"),  # 320 MB in a few hundred kB
    ],
)
def test_pairs_of_another_world_or_of_a_hostile_size_are_refused(
    steps: int, shape: tuple[int, ...], dtype: Any, why: str, file: Path
) -> None:
    other = with_pairs(file, head(file) + query(steps, shape, dtype))
    with pytest.raises(ValueError, match=rf"{why}.*forged\.zip"):
        DRLHF.load(other)


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        (PreferencePBRL, "lam", 0.0),
        (PreferencePBRL, "loss_estimate", float("nan")),
        (PreferencePBRL, "penalty_estimate", float("inf")),
        (DRLHF, "begun", 3),
        (DRLHF, "seeds", ["x"]),
        (DRLHF, "num_timesteps", -0.5),
    ],
)
def test_forged_numbers_are_refused(
    method: Any, field: str, value: Any, saved: Path, penalised: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(saved if method is DRLHF else penalised, tmp_path))
    other = forged(path, lambda header, _: header["state"]["state"].update({field: value}))
    with pytest.raises(ValueError, match=rf"{field}.*forged\.zip"):
        method.load(other)


def test_weights_that_are_no_numbers_are_refused(file: Path) -> None:
    leader = DRLHF.load(file)
    with torch.no_grad():
        next(leader.model.parameters()).fill_(torch.nan)
    path = leader.save(file.with_name("nan.zip"))
    with pytest.raises(
        ValueError, match=r"model.*weight: expected finite numbers, got NaN or infinite ones .*nan\.zip"
    ):
        DRLHF.load(path)
