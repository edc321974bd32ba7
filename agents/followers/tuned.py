"""Hyper-parameters of SB3 algorithms that follow a moving x or answer a fixed one, read from ``tuned.yml``."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import yaml
from stable_baselines3.common.noise import NormalActionNoise

from ..schedules import Linear

NEAR = 0.95
"""Largest discount at which a linear critic's one-step errors are trusted and steps are long."""


@cache
def _tuned() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((files(__package__) / "tuned.yml").read_text(encoding="utf-8"))
    return found


def tuned_settings(
    name: str, n_envs: int, linear: bool, gamma: float, n_inputs: int = 0, fixed: bool = False
) -> dict[str, Any]:
    """Return an algorithm's tuned arguments; empty for an algorithm that is not listed.

    Args:
        name: name of the algorithm's class, e.g. ``"PPO"``.
        n_envs: number of parallel environments.
        linear: whether observations are product features, for which a linear policy or Q-function is exact.
        gamma: the discount.
        n_inputs: size of an action in a Box; 0, the default, for discrete actions.
        fixed: whether the follower is trained at a fixed x. Default: False, for a moving x.
    """
    near = "linear_near" if gamma <= NEAR else "linear_far"
    section = "continuous" if n_inputs else near if linear else "network"
    if fixed:
        section = "fixed_box" if n_inputs else "fixed"
    settings: dict[str, Any] = _value(_tuned()[section].get(name, {}), n_envs, n_inputs)
    return settings


def _value(written: Any, n_envs: int, n_inputs: int) -> Any:
    match written:
        case {"per_env": number}:
            return number * n_envs
        case {"envs_each": number}:
            return max(1, n_envs // number)
        case {"linear": [start, end]}:
            return Linear(start, end)
        case {"noise": deviation}:
            return NormalActionNoise(np.zeros(n_inputs), np.full(n_inputs, deviation))
        case {"torch.nn": name}:
            return getattr(torch.nn, name)
        case dict():
            return {key: _value(part, n_envs, n_inputs) for key, part in written.items()}
        case list():
            return list(written)
    return written
