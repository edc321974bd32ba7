"""Bilevel reinforcement learning: a leader chooses a parameter of the problem that a follower then solves.

Importing this package registers its environments with Gymnasium and PettingZoo, so that
``gymnasium.make("bilevel_gym/StackelbergGame-v0")`` works afterwards. ``bilevel_gym.agents`` and
``bilevel_gym.wrappers`` are imported on first use: until then neither torch nor Stable-Baselines3 is loaded.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from . import envs

if TYPE_CHECKING:
    from . import agents, wrappers

__version__ = "0.1.0"

__all__ = ["__version__", "agents", "envs", "wrappers"]


def __getattr__(name: str) -> ModuleType:
    """Import ``agents`` or ``wrappers`` on first use."""
    if name in {"agents", "wrappers"}:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
