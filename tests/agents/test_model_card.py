"""A leader as a folder in the layout of the Hugging Face Hub."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy

from bilevel_gym.agents import DRLHF, PBRL, PBRLConfig, PreferenceConfig, Rollouts, TabularPBRL
from bilevel_gym.agents.model_card import load_follower, push_to_hub, write_model_card, write_zoo_folder

SMALL = PBRLConfig(n_envs=4, warmup_steps=64, follower_steps=64, estimator=Rollouts(n_envs=4))
ENV = "bilevel_gym/TwoState-v0"


def metadata(folder: Path) -> dict[str, Any]:
    _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[PBRL, Path]:
    leader = PBRL(ENV, A2C, config=SMALL).learn(500)
    return leader, write_model_card(leader, tmp_path_factory.mktemp("card"))


def test_the_folder_holds_leader_followers_and_record(sampled: tuple[PBRL, Path]) -> None:
    leader, folder = sampled
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert names == [
        "README.md",
        "evaluation.json",
        "followers/best_response.zip",
        "followers/penalised.zip",
        "followers/world.json",
        "leader.zip",
    ]
    np.testing.assert_array_equal(PBRL.load(folder / "leader.zip").x, leader.x)
    model = A2C.load(folder / "followers" / "best_response.zip", env=leader.follower_env(), device="cpu")
    assert model.observation_space == leader.follower_env().observation_space
    assert json.loads((folder / "evaluation.json").read_text()) == leader.evaluate().as_dict()


def test_the_world_of_its_followers_has_an_id(sampled: tuple[PBRL, Path]) -> None:
    leader, folder = sampled
    env = gym.make("bilevel_gym/UnderLeader-v0", world=str(folder / "followers" / "world.json"))
    assert env.observation_space == leader.follower_env().observation_space
    np.testing.assert_array_equal(env.get_wrapper_attr("leader_x"), leader.x)
    model = A2C.load(folder / "followers" / "best_response.zip", env=env, device="cpu")
    mean, _ = evaluate_policy(model, env, n_eval_episodes=2, deterministic=True, warn=False)
    same, _ = evaluate_policy(model, leader.follower_env(), n_eval_episodes=2, deterministic=True, warn=False)
    assert np.isfinite(mean)
    assert np.isfinite(same)


def test_a_followers_file_is_read_only_where_it_is_trusted(sampled: tuple[PBRL, Path], tmp_path: Path) -> None:
    """SB3's format is a zip whose settings are pickled: here is one whose pickle leaves a file when it is read."""
    _, folder = sampled
    good, bad, left = folder / "followers" / "best_response.zip", tmp_path / "bad.zip", tmp_path / "left"

    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (left,)

    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            data = json.loads(old.read("data")) if name == "data" else None
            if data is not None:
                pickled = base64.b64encode(pickle.dumps(Code())).decode()
                data["clip_range"] = {":type:": "code", ":serialized:": pickled}
            new.writestr(name, old.read(name) if data is None else json.dumps(data))
    for trusted in ({}, {"trust_pickle": False}, {"trust_pickle": 1}):
        with pytest.raises(
            ValueError, match=r"^trust_pickle: expected True if you trust the file, since SB3.s files hold pickles"
        ):
            load_follower(bad, A2C, **trusted)
    assert not left.exists()
    load_follower(bad, A2C, trust_pickle=True)
    assert left.exists()  # that is what the word is for
    model = load_follower(good, A2C, trust_pickle=True)
    assert model.get_env().get_attr("leader_x")[0].shape == (1,)
    env = gym.make("bilevel_gym/UnderLeader-v0", world=str(folder / "followers" / "world.json"))
    assert load_follower(good, A2C, env, trust_pickle=True).observation_space == env.observation_space


def test_a_follower_as_rl_zoo3_has_an_agent(sampled: tuple[PBRL, Path], tmp_path: Path) -> None:
    """``python -m rl_zoo3.enjoy`` was seen to play it; here its files are read as that reads them."""
    leader, _ = sampled
    agent = write_zoo_folder(leader, tmp_path)
    name = "bilevel_gym-UnderLeader-v0"
    assert agent == tmp_path / "a2c" / f"{name}_1"
    assert sorted(path.relative_to(agent).as_posix() for path in agent.rglob("*.*ml")) == [
        f"{name}/args.yml",
        f"{name}/config.yml",
    ]
    held = yaml.load((agent / name / "args.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert isinstance(held, OrderedDict)
    assert yaml.load((agent / name / "config.yml").read_text(), Loader=yaml.UnsafeLoader) == {}
    env = gym.make("bilevel_gym/UnderLeader-v0", **held["env_kwargs"])
    np.testing.assert_array_equal(env.get_wrapper_attr("leader_x"), leader.x)
    assert A2C.load(agent / f"{name}.zip", env=env, device="cpu").observation_space == env.observation_space
    with pytest.raises(ValueError, match=r"leader: expected one with a follower and an env.*, got TabularPBRL"):
        write_zoo_folder(TabularPBRL(ENV), tmp_path)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"env_id": "bilevel_gym/TwoState-v0"}'])
def test_a_world_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "world.json").write_text(text)
    with pytest.raises(ValueError, match="world: expected a JSON"):
        gym.make("bilevel_gym/UnderLeader-v0", world=str(tmp_path / "world.json"))
    with pytest.raises(ValueError, match="env_id: expected the id of an environment with a leader, got 'CartPole-v1'"):
        gym.make("bilevel_gym/UnderLeader-v0", env_id="CartPole-v1")


def test_its_metadata_is_what_the_hub_reads(sampled: tuple[PBRL, Path]) -> None:
    leader, folder = sampled
    found = metadata(folder)
    assert found["library_name"] == "bilevel-gym"
    assert {"reinforcement-learning", "stable-baselines3", "PBRL", "A2C", ENV} <= set(found["tags"])
    (model,) = found["model-index"]
    assert model["name"] == "PBRL-A2C-TwoState-v0"
    (metric,) = model["results"][0]["metrics"]
    assert metric["value"] == f"{leader.evaluate().leader_return:.4g} +/- 0"
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.eval_results[0].metric_type == "mean_reward"
    assert card.data.model_name == "PBRL-A2C-TwoState-v0"


def test_the_code_on_the_card_runs(sampled: tuple[PBRL, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = sampled
    monkeypatch.chdir(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    held: dict[str, Any] = {}
    for block in text.split("```python\n")[1:]:
        exec(block.split("```")[0], held)
    assert isinstance(held["leader"], PBRL)
    assert isinstance(held["model"], A2C)


def test_an_exact_leader_has_no_followers(tmp_path: Path) -> None:
    folder = write_model_card(TabularPBRL(ENV).learn(5), tmp_path / "new" / "card", name="mine")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "evaluation.json", "leader.zip"]
    assert metadata(folder)["model-index"][0]["name"] == "mine"
    assert "stable-baselines3" not in metadata(folder)["tags"]


def test_a_learned_reward(tmp_path: Path) -> None:
    config = PreferenceConfig(labels=4, first_labels=2, length=5, first_steps=64, follower_steps=64, first_epochs=2)
    folder = write_model_card(DRLHF("bilevel_gym/RewardGrid-v0", A2C, config=config).learn(200), tmp_path)
    assert (folder / "followers" / "best_response.zip").is_file()
    assert metadata(folder)["model-index"][0]["results"][0]["metrics"][0]["name"].startswith("true return")


def test_pushing(sampled: tuple[PBRL, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, folder = sampled
    asked: list[Any] = []
    api = SimpleNamespace(
        create_repo=lambda *args, **kwargs: asked.append((args, kwargs)),
        upload_folder=lambda **kwargs: asked.append(kwargs) or "address",  # type: ignore[func-returns-value]
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda token: asked.append(token) or api))  # type: ignore[func-returns-value]
    assert push_to_hub(folder, "user/name", private=True, token="secret") == "address"
    assert asked[:2] == ["secret", (("user/name",), {"private": True, "exist_ok": True})]
    assert (asked[2]["folder_path"], asked[2]["repo_id"]) == (str(folder), "user/name")
    with pytest.raises(ValueError, match="folder: expected one that write_model_card wrote"):
        push_to_hub(tmp_path, "user/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install \"bilevel-gym\[hub\]\""):
        push_to_hub(folder, "user/name")


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload asks for."""

    commits: ClassVar[list[dict[str, bytes]]] = []

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            answer = {"url": f"{os.environ['HF_ENDPOINT']}/user/name"}
        elif self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            answer = {"files": [file | {"shouldIgnore": False, "oid": None} for file in files]}
        elif self.path == "/api/models/user/name/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.commits.append({file["path"]: base64.b64decode(file["content"]) for file in files})
            answer = {"commitOid": "0" * 40, "commitUrl": f"{os.environ['HF_ENDPOINT']}/user/name/commit/{'0' * 40}"}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_pushing_by_the_hubs_own_library(sampled: tuple[PBRL, Path], tmp_path: Path) -> None:
    """In a process of its own, for the library reads the address when it is imported; the server is here."""
    pytest.importorskip("huggingface_hub")
    _, folder = sampled
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    asked = f"push_to_hub({str(folder)!r}, 'user/name', True, 'hf_word')"
    code = f"from bilevel_gym.agents.model_card import push_to_hub; print({asked})"
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
    }
    os.environ["HF_ENDPOINT"] = settings["HF_ENDPOINT"]
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )
    finally:
        del os.environ["HF_ENDPOINT"]
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"/user/name/commit/{'0' * 40}")
    sent = {name: data for commit in Hub.commits for name, data in commit.items()}
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert sent == there


def test_what_is_no_leader(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leader: expected a leader of this library, got 3"):
        write_model_card(3, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="folder: expected a folder, got the file"):
        write_model_card(TabularPBRL(ENV), tmp_path / "file")
