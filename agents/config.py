"""Options shared by all leaders: the learning rate of x, the bounds of X, how often x is evaluated."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..envs.mdp import LeaderSet
from ..envs.mdp.checks import ArgumentError, check_number, check_size, plain_fields, require
from .schedules import Schedule, as_schedule


def keywords(cls: type) -> list[str]:
    """Return the names of a constructor's keyword arguments, without ``*args`` and ``**kwargs``."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in inspect.signature(cls).parameters.items() if parameter.kind in named]


def configured(
    leader: type, config_class: type[Any], config: Any, settings: dict[str, Any], make: Callable[..., Any] | None = None
) -> Any:
    """Build a leader's config from a config object or from its fields as keyword arguments.

    Args:
        leader: the leader's class.
        config_class: the class of its config.
        config: a config object, or None.
        settings: fields of the config by name; must be empty if ``config`` is given.
        make: function that makes a config from settings; None takes ``config_class``.

    Raises:
        ArgumentError: a name is neither an argument of the leader nor a field of its config.
        ValueError: the config has another class, or both a config and settings are given.
    """
    fields = [field.name for field in dataclasses.fields(config_class)]
    unknown = [name for name in settings if name not in fields]
    if unknown:
        known = ", ".join(dict.fromkeys([*keywords(leader), *fields]))
        raise ArgumentError(f"{leader.__name__}: expected arguments named {known}, got {', '.join(map(repr, unknown))}")
    both = f"None with {', '.join(settings)}: give either a config or its fields as keywords"
    require(config is None or not settings, "config", both, type(config).__name__)
    fits = config is None or isinstance(config, config_class)
    require(fits, "config", f"a {config_class.__name__}", repr(config))
    return (make or config_class)(**settings) if config is None else config


@dataclass(frozen=True, eq=False, kw_only=True)
class LeaderConfig:
    """Options shared by all leaders.

    Attributes:
        learning_rate: learning rate of x, a number or a schedule.
        optimizer_class: a class of ``torch.optim``.
        optimizer_kwargs: further arguments of that class.
        low: lower bound on x, a number or one per coordinate; it narrows X.
        high: upper bound on x, likewise.
        budget: upper bound on ``sum |x_i|``; None for none.
        eval_every: number of outer iterations between records, i.e. evaluations at the best response. None: 10 where a
            record costs no environment steps; else as many evenly spaced records as a third of the budget pays for.
        keep_best: whether the leader's x is the best one evaluated, or the last.
    """

    learning_rate: float | Schedule = 0.1
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)
    low: Any = None
    high: Any = None
    budget: float | None = None
    eval_every: int | None = None
    keep_best: bool = True

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.learning_rate is not None:
            as_schedule(self.learning_rate, "learning_rate", positive=True)
        cls, kwargs = self.optimizer_class, self.optimizer_kwargs
        is_optimizer = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
        require(is_optimizer, "optimizer_class", "a class of torch.optim", repr(cls))
        try:
            self.optimizer([{"params": [torch.zeros(1, requires_grad=True)]}], 0.1)
        except Exception as error:  # whatever the class raises
            expected = f"arguments of {cls.__name__}, got {kwargs!r} ({error})"
            raise ValueError(f"optimizer_kwargs: expected {expected}") from error
        if self.eval_every is not None:
            check_size(self.eval_every, "eval_every")
        require(isinstance(self.keep_best, bool), "keep_best", "True or False", repr(self.keep_best))
        if self.budget is not None:
            check_number(self.budget, "budget", low=0.0)

    def optimizer(self, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        """Make the optimiser of these parameter groups."""
        return self.optimizer_class(groups, lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def reach(self, rate: Schedule, iterations: int) -> float:
        """Return how far a coordinate of x can move in these iterations; infinite if steps scale with the gradient."""
        scaled = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax)
        if not issubclass(self.optimizer_class, scaled):
            return math.inf
        return iterations * sum(rate((k + 0.5) / 100) for k in range(100)) / 100

    @property
    def narrows(self) -> bool:
        """Whether bounds or a budget make X smaller."""
        return self.low is not None or self.high is not None or self.budget is not None

    def cut(self, leader_set: LeaderSet) -> LeaderSet:
        """Return X restricted to this config's bounds and budget."""
        if not self.narrows:
            return leader_set
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        return leader_set.intersect(low, high, np.inf if self.budget is None else self.budget)


def require_unused(config: LeaderConfig, names: Iterable[str], why: str) -> None:
    """Raise ``ValueError`` where a field that the leader does not use is set."""
    defaults = LeaderConfig()
    for name in names:
        value = getattr(config, name)
        require(value == getattr(defaults, name), name, f"none: {why}", repr(value))
