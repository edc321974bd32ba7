"""Tuned hyper-parameters: what version 0.1 computed in code is what ``tuned.yml`` says, object for object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sb3_contrib import ARS, QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from bilevel_gym.agents.followers.spec import AlgorithmSpec
from bilevel_gym.agents.followers.tuned import _tuned, tuned_settings

RECORDED = json.loads((Path(__file__).parent / "tuned_settings.json").read_text(encoding="utf-8"))
"""By version 0.1: settings, each value by its repr, and the arguments (name, n_envs, linear, gamma, n_inputs) that gave them."""
ALGORITHMS = {
    cls.__name__: cls for cls in (A2C, DDPG, DQN, PPO, SAC, TD3, ARS, QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO)
}


def reprs(value: Any) -> Any:
    return {key: reprs(part) for key, part in value.items()} if isinstance(value, dict) else repr(value)


@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: "-".join(map(str, entry["of"][0])))
def test_settings_are_those_of_version_0_1(entry: dict[str, Any]) -> None:
    for arguments in entry["of"]:
        assert reprs(tuned_settings(*arguments)) == entry["settings"], arguments


def test_every_algorithm_and_every_case_was_recorded() -> None:
    recorded = [tuple(arguments) for entry in RECORDED for arguments in entry["of"]]
    assert {arguments[0] for arguments in recorded} == {*ALGORITHMS, "CrossQ"}  # CrossQ is listed nowhere
    assert len(set(recorded)) == len(recorded) == 13 * 2 * 2 * 3 * 3


def test_nothing_is_shared_between_followers() -> None:
    """SB3 writes into what it is given: one follower's settings are no other's."""
    tuned_settings("PPO", 8, linear=True, gamma=0.9)["policy_kwargs"]["net_arch"].append(3)
    assert tuned_settings("PPO", 8, linear=True, gamma=0.9)["policy_kwargs"] == {"net_arch": []}
    assert tuned_settings("TRPO", 8, linear=True, gamma=0.9)["policy_kwargs"] == {"net_arch": []}


def test_what_the_file_says_are_arguments_that_algorithms_have() -> None:
    for section in ("network", "linear_near", "linear_far", "continuous"):
        linear, gamma = section.startswith("linear"), 0.99 if section == "linear_far" else 0.9
        for name in _tuned()[section]:
            AlgorithmSpec(ALGORITHMS[name], tuned_settings(name, 8, linear, gamma, int(section == "continuous")))
