"""Save and load the training state of a Stable-Baselines3 model as tensors and numbers, without pickle."""

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
    """Return the weights, optimisers, SB3's counters, gSDE exploration matrices and the position in a replay buffer."""
    buffer = getattr(model, "replay_buffer", None)
    return {
        "parameters": model.get_parameters(),
        "variables": {name: value.detach() for name, value in _variables(model).items()},
        "counters": _counters(model),
        "explorations": [matrices for _, matrices in explorations(model)],
        "replay": None if buffer is None else buffer_state(buffer),
    }


def load_model_state(model: Any, state: dict[str, Any]) -> None:
    """Load what :func:`model_state` returned. The state of another model raises an error."""
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
        counts = type(value) is type(present) and 0 <= value < 2**63  # NaN fails this
        require(counts, name, f"a {type(present).__name__} in [0, 2^63)", repr(value))
        setattr(model, name, value)
    for (distribution, matrices), found in zip(explorations(model), state["explorations"], strict=True):
        for name, value in matrices.items():
            require(found[name].shape == value.shape, name, f"shape {tuple(value.shape)}", tuple(found[name].shape))
            setattr(distribution, name, found[name])
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        restore_buffer(buffer, state["replay"])
    hold_weights(model)


def hold_weights(model: Any) -> None:
    """Let ARS search from its policy's weights: it keeps the vector that it searches from apart from the policy."""
    if hasattr(model, "weights"):
        model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def explorations(model: BaseAlgorithm) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Return each distribution of state-dependent exploration (gSDE) with its matrices, which no state_dict holds."""
    found = [getattr(module, "action_dist", None) for module in model.policy.modules()]
    names = ("exploration_mat", "exploration_matrices")
    return [
        (dist, {name: getattr(dist, name).detach() for name in names})
        for dist in found
        if isinstance(dist, StateDependentNoiseDistribution)
    ]


def _variables(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """Return the tensors that SB3 keeps outside its modules, e.g. the logarithm of SAC's entropy coefficient."""
    return {name: attrgetter(name)(model) for name in model._get_torch_save_params()[1]}


def _counters(model: BaseAlgorithm) -> dict[str, Any]:
    """Return SB3's own counters: its private numeric attributes and two public ones."""
    return {
        name: plain(value)
        for name, value in vars(model).items()
        if isinstance(value, (int, float, np.number))
        and (name.startswith("_") or name in ("num_timesteps", "exploration_rate"))
    }
