"""The examples in docstrings run without changes."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

from bilevel_gym import agents, cli, envs, wrappers

MODULES = [
    module.name
    for package in (agents, cli, envs, wrappers)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if ">>>" in (importlib.util.find_spec(module.name).loader.get_source(module.name) or "")  # type: ignore[union-attr]
]


EXTRAS = {"bilevel_gym.agents.preferences.atari": "ale_py", "bilevel_gym.wrappers.worlds.designed_hopper": "mujoco"}


def test_there_are_examples() -> None:
    assert "bilevel_gym.agents.leaders.pbrl" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    results = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert results.attempted > 0
    assert results.failed == 0
