"""Random actions of an environment, drawn among those that its ``action_masks()`` allows."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from .mdp.checks import require


def legal_action(env: gym.Env[Any, Any]) -> Any:
    """Draw a random action among those that exist in the current state.

    Args:
        env: the environment, between a reset and an episode's end.

    Raises:
        ValueError: as :func:`draw_action`.
    """
    masked = env.has_wrapper_attr("action_masks")
    return draw_action(env.action_space, env.get_wrapper_attr("action_masks")() if masked else None)


def draw_action(space: gym.Space[Any], mask: Any = None) -> Any:
    """Draw a random action from a space, with the space's own generator.

    Args:
        space: the action space.
        mask: which actions exist, True or 1 for each that does: ``[n]`` for a Discrete space; for MultiDiscrete the masks of all
            parts in one row, ``[sum(nvec)]``; for MultiBinary two entries a part, for 0 and for 1, ``[2 n]``. None for all.

    Raises:
        ValueError: a mask of another length, or one that leaves no action.
    """
    if mask is None:
        return space.sample()
    allowed = np.asarray(mask).astype(bool).ravel()
    if isinstance(space, gym.spaces.Discrete):
        counts = np.array([space.n])
    elif isinstance(space, gym.spaces.MultiDiscrete):
        counts = space.nvec.ravel()
    elif isinstance(space, gym.spaces.MultiBinary):
        counts = np.full(int(np.prod(space.shape)), 2)
    else:
        raise ValueError(f"action_masks: expected none for actions in {space}, got some")
    require(len(allowed) == counts.sum(), "action_masks", f"{counts.sum()} entries for {space}", len(allowed))
    parts = np.split(allowed, np.cumsum(counts)[:-1])
    require(all(part.any() for part in parts), "action_masks", "an action that exists", "a mask that leaves none")
    if allowed.all():
        return space.sample()
    if isinstance(space, gym.spaces.MultiBinary):
        free = np.array([2 if part.all() else int(part[1]) for part in parts], dtype=np.int8)
        return space.sample(mask=free.reshape(space.shape))
    flags = tuple(part.astype(np.int8) for part in parts)
    return space.sample(mask=flags) if isinstance(space, gym.spaces.MultiDiscrete) else space.sample(mask=flags[0])
