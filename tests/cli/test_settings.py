"""Settings: what overrides what, and the tuned ones that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bilevel_gym.agents import BellmanPenalty, PBRLConfig
from bilevel_gym.cli import catalogue
from bilevel_gym.cli.evidence import chosen, runs_of
from bilevel_gym.cli.settings import EXACT, Settings, build, config_class, entries, read, settings_of, tuned

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = [pytest.param(*names, entry, id="-".join(names)) for *names, entry in entries()]
GAME = "bilevel_gym/StackelbergGame-v0"


@pytest.mark.parametrize(("env", "leader", "follower", "entry"), ENTRIES)
def test_every_tuned_entry_constructs(env: str, leader: str, follower: str, entry: dict[str, Any]) -> None:
    (found,) = chosen(env, leader, follower)
    settings = runs_of(found, 1, {})[0]
    assert settings.budget == entry[catalogue.counts(catalogue.leader(leader))]
    built = build(settings)
    for key, raw in entry.get("leader_kwargs", {}).items():
        if isinstance(raw, (int, float, bool)) and hasattr(built.config, key):
            assert getattr(built.config, key) == raw
    model = getattr(getattr(built, "best_response", None), "model", None)
    for key in entry.get("follower_kwargs", {}):
        assert model is None or hasattr(model, key)
    if hasattr(built, "close"):
        built.close()


@pytest.mark.parametrize(("env", "leader", "follower", "entry"), ENTRIES)
def test_the_evidence_stands_on_the_page(env: str, leader: str, follower: str, entry: dict[str, Any]) -> None:
    assert set(entry) <= {"n_timesteps", "n_iterations", "leader_kwargs", "follower_kwargs", "evidence"}
    evidence = entry["evidence"]
    assert set(evidence) == {"measure", "value", "shown", "runs", "seeds", "env_seeds", "env_kwargs", "page"}
    assert evidence["shown"] in (ROOT / evidence["page"]).read_text(encoding="utf-8")
    assert evidence["seeds"]
    assert env in catalogue.environment_ids()
    assert leader in catalogue.leaders()
    assert follower == EXACT or follower in catalogue.followers()


def test_the_command_line_comes_before_a_file_before_the_tuned_ones(tmp_path: Path) -> None:
    def found(conf: dict[str, Any] | None = None, **given: Any) -> Settings:
        path = tmp_path / "conf.yml"
        path.write_text(yaml.safe_dump(conf or {}), encoding="utf-8")
        return settings_of({"env": "TollDesign-v0", "leader": "PBRL", "follower": "DQN", **given}, read(path))

    env = "bilevel_gym/TollDesign-v0"
    entry = tuned()[env]["PBRL"]["DQN"]
    assert found().n_timesteps == entry["n_timesteps"]
    assert found().leader_kwargs == entry["leader_kwargs"]
    assert found().env_kwargs == {}  # evidence is of certain cities; settings are for all
    conf = {env: {"PBRL": {"DQN": {"n_timesteps": 7, "leader_kwargs": {"averaging": 0.1, "n_envs": 8}}}}}
    filed = found(conf)
    assert (filed.n_timesteps, filed.leader_kwargs["averaging"], filed.leader_kwargs["n_envs"]) == (7, 0.1, 8)
    assert filed.leader_kwargs["follower_steps"] == entry["leader_kwargs"]["follower_steps"]
    given = found(conf, n_timesteps=9, leader_kwargs={"averaging": 0.2}, seed=4)
    assert (given.n_timesteps, given.leader_kwargs["averaging"], given.seed) == (9, 0.2, 4)
    flat = settings_of({}, yaml.safe_load(given.as_yaml()))
    assert flat == given


def test_a_hash_is_of_all_that_decides_the_numbers() -> None:
    one = Settings(GAME, "PBRL", "PPO", 10, leader_kwargs={"a": 1, "b": 2})
    assert one.hash == Settings(GAME, "PBRL", "PPO", 10, leader_kwargs={"b": 2, "a": 1}).hash
    others = [
        Settings(GAME, "PBRL", "PPO", 11, leader_kwargs={"a": 1, "b": 2}),
        Settings(GAME, "PBRL", "PPO", 10, leader_kwargs={"a": 1, "b": 3}),
        Settings(GAME, "PBRL", "PPO", 10, seed=1, leader_kwargs={"a": 1, "b": 2}),
    ]
    assert len({one.hash, *(other.hash for other in others)}) == 4


def test_arguments_reach_the_leader_and_its_config() -> None:
    kwargs = {"penalty": "BellmanPenalty(lam=3)", "n_envs": 4, "estimator": "Rollouts(n_envs=4)"}
    settings = settings_of({"env": "TwoState-v0", "follower": "DQN", "n_timesteps": 5, "leader_kwargs": kwargs})
    leader = build(settings)
    assert isinstance(leader.penalty, BellmanPenalty)
    assert (leader.penalty.lam, leader.config.n_envs, leader.config.estimator.n_envs) == (3, 4, 4)


@pytest.mark.parametrize("name", sorted(catalogue.leaders()))
def test_every_leader_has_a_config(name: str) -> None:
    config = config_class(catalogue.leader(name))
    assert config is not None
    assert config().__class__.__name__.endswith("Config")
    assert config_class(catalogue.leader("PBRL")) is PBRLConfig


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "--conf-file: expected YAML that is a mapping, got list in "),
        ("a: [1", "--conf-file: expected YAML, got "),
        ("!!python/object/apply:os.system ['true']", "--conf-file: expected YAML, got "),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "conf.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{message.replace('[', '.')}"):
        read(path)


def test_unknown_settings_in_a_file() -> None:
    with pytest.raises(ValueError, match=r"--conf-file: expected settings named env, leader, .*, got lam"):
        settings_of({"env": GAME}, {GAME: {"PBRL": {"PPO": {"lam": 3}}}})
