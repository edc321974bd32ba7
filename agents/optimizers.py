"""An optimiser's state from a file, checked before it is taken."""

from __future__ import annotations

from typing import Any

import torch


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Take back an optimiser's ``state_dict``.

    Raises:
        TypeError, ValueError, KeyError: one of another optimiser or of other parameters.
    """
    groups = optimizer.state_dict()["param_groups"]
    _require_alike(state["param_groups"], groups)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in state["state"].items():
        shape = parameters[index].shape
        for value in entries.values():
            if isinstance(value, torch.Tensor) and torch.broadcast_shapes(value.shape, shape) != shape:
                raise ValueError(f"optimizer: expected state of shape {tuple(shape)}, got {tuple(value.shape)}")
    optimizer.load_state_dict(state)


def _require_alike(got: Any, expected: Any) -> None:
    """Raise ``TypeError`` unless both are built alike, numbers standing for numbers."""
    number = (int, float, torch.Tensor)
    if isinstance(expected, dict):
        alike = isinstance(got, dict) and got.keys() == expected.keys()
        pairs = [(got[key], expected[key]) for key in expected] if alike else []
    elif isinstance(expected, (list, tuple)):
        alike = isinstance(got, (list, tuple)) and len(got) == len(expected)
        pairs = list(zip(got, expected, strict=False))
    else:
        alike, pairs = (
            (
                isinstance(got, number) and bool(torch.isfinite(torch.as_tensor(got)).all())
                if isinstance(expected, number)
                else type(got) is type(expected)
            ),
            [],
        )
    if not alike:
        raise TypeError(f"optimizer: expected settings like {expected!r}, got {got!r}")
    for pair in pairs:
        _require_alike(*pair)
