"""The state of a Stable-Baselines3 model as tensors and numbers: all that its training goes on from, without a pickle."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import StateDependentNoiseDistribution

from ...envs.mdp.checks import plain, require
from ..files import restore_optimizer
from .replay import buffer_state, restore_buffer


def model_state(model: BaseAlgorithm) -> dict[str, Any]:
    """Weights, optimisers and SB3's own counters, exploration matrices (gSDE) and the place in a replay buffer."""
    buffer = getattr(model, "replay_buffer", None)
    return {
        "parameters": model.get_parameters(),
        "variables": {name: value.detach() for name, value in _variables(model).items()},
        "counters": _counters(model),
        "explorations": [matrices for _, matrices in explorations(model)],
        "replay": None if buffer is None else buffer_state(buffer),
    }


def load_model_state(model: Any, state: dict[str, Any]) -> None:
    """Take back what :func:`model_state` gave; raises what the state of another model leads to."""
    parameters, expected = dict(state["parameters"]), model.get_parameters()
    require(parameters.keys() == expected.keys(), "follower", f"parts {sorted(expected)}", sorted(parameters))
    for name, part in parameters.items():
        held: Any = attrgetter(name)(model)
        if isinstance(held, torch.optim.Optimizer):
            restore_optimizer(held, part)
        else:
            held.load_state_dict(part)
    for name, value in _variables(model).items():
        with torch.no_grad():
            value.copy_(state["variables"][name])
    for name, present in _counters(model).items():
        value = state["counters"][name]
        counts = type(value) is type(present) and 0 <= value < 2**63  # which no NaN is
        require(counts, name, f"a {type(present).__name__} that counts", repr(value))
        setattr(model, name, value)
    for (distribution, matrices), found in zip(explorations(model), state["explorations"], strict=True):
        for name, value in matrices.items():
            require(found[name].shape == value.shape, name, f"shape {tuple(value.shape)}", tuple(found[name].shape))
            setattr(distribution, name, found[name])
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        restore_buffer(buffer, state["replay"])
    if hasattr(model, "weights"):  # ARS searches from a vector beside its policy
        model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def explorations(model: BaseAlgorithm) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Of state-dependent exploration: each distribution and its matrices, which no state_dict holds."""
    found = [getattr(module, "action_dist", None) for module in model.policy.modules()]
    names = ("exploration_mat", "exploration_matrices")
    return [
        (dist, {name: getattr(dist, name).detach() for name in names})
        for dist in found
        if isinstance(dist, StateDependentNoiseDistribution)
    ]


def _variables(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """Tensors that SB3 keeps beside its modules, e.g. the logarithm of SAC's entropy coefficient."""
    return {name: attrgetter(name)(model) for name in model._get_torch_save_params()[1]}


def _counters(model: BaseAlgorithm) -> dict[str, Any]:
    """SB3's own counters: the numbers that are no settings, which are all public but for two."""
    return {
        name: plain(value)
        for name, value in vars(model).items()
        if isinstance(value, (int, float, np.number))
        and (name.startswith("_") or name in ("num_timesteps", "exploration_rate"))
    }
