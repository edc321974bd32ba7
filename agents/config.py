"""Options that all leaders share: the step of x, the bounds of X, when x is judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..envs.mdp import LeaderSet
from ..envs.mdp.checks import check_number, check_size, plain_fields, require
from .schedules import Schedule, as_schedule


@dataclass(frozen=True, eq=False)
class LeaderConfig:
    """Options shared by all leaders.

    Attributes:
        learning_rate: step of x, a number or a schedule.
        optimizer_class: a class of ``torch.optim``.
        optimizer_kwargs: its further arguments.
        low: lower bound on x, a number or one a coordinate; X is cut by it.
        high: upper bound on x, likewise.
        budget: bound on ``sum |x_i|``.
        eval_every: outer iterations between evaluations at the best response.
        keep_best: whether x is the best seen by those evaluations, or the last.
    """

    learning_rate: float | Schedule = 0.1
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)
    low: Any = None
    high: Any = None
    budget: float | None = None
    eval_every: int = 10
    keep_best: bool = True

    def __post_init__(self) -> None:
        plain_fields(self)
        as_schedule(self.learning_rate, "learning_rate", positive=True)
        cls, kwargs = self.optimizer_class, self.optimizer_kwargs
        is_optimizer = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
        require(is_optimizer, "optimizer_class", "a class of torch.optim", repr(cls))
        try:
            self.optimizer([{"params": [torch.zeros(1, requires_grad=True)]}], 0.1)
        except Exception as error:  # whatever the class raises
            expected = f"arguments of {cls.__name__}, got {kwargs!r} ({error})"
            raise ValueError(f"optimizer_kwargs: expected {expected}") from error
        check_size(self.eval_every, "eval_every")
        require(isinstance(self.keep_best, bool), "keep_best", "True or False", repr(self.keep_best))
        if self.budget is not None:
            check_number(self.budget, "budget", low=0.0)

    def optimizer(self, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        """The optimiser over these parameter groups."""
        return self.optimizer_class(groups, lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    @property
    def narrows(self) -> bool:
        """Whether X is cut by bounds or a budget."""
        return self.low is not None or self.high is not None or self.budget is not None

    def cut(self, leader_set: LeaderSet) -> LeaderSet:
        """X cut by this config's bounds and budget."""
        if not self.narrows:
            return leader_set
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        return leader_set.intersect(low, high, np.inf if self.budget is None else self.budget)
