"""The loop that every leader shares: SB3's verbs, x with its optimiser and its set X, the best x seen, logging."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...envs.mdp import LeaderSet
from ...envs.mdp.checks import check_number, check_size, require
from ..schedules import Schedule, as_schedule
from .evaluation import Evaluation

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger

Callback = Callable[["Leader"], "bool | None"]
"""Called after every outer iteration; False stops learning."""


@dataclass(frozen=True, eq=False)
class LeaderConfig:
    """What every leader can be told about x.

    Attributes:
        learning_rate: step of x, a number or a schedule.
        optimizer_class: a class of ``torch.optim``.
        optimizer_kwargs: its further arguments.
        low: lower bound on x, a number or one a coordinate; X is cut by it.
        high: upper bound on x, likewise.
        budget: bound on ``sum |x_i|``.
        eval_every: outer iterations between honest evaluations.
        keep_best: whether x is the best seen by honest evaluation, or the last.
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
        as_schedule(self.learning_rate, "learning_rate", positive=True)
        is_optimizer = isinstance(self.optimizer_class, type) and issubclass(
            self.optimizer_class, torch.optim.Optimizer
        )
        require(is_optimizer, "optimizer_class", "a class of torch.optim", repr(self.optimizer_class))
        check_size(self.eval_every, "eval_every")
        if self.budget is not None:
            check_number(self.budget, "budget", low=0.0)

    @property
    def narrows(self) -> bool:
        """Whether X is cut by bounds or a budget."""
        return self.low is not None or self.high is not None or self.budget is not None

    def cut(self, leader_set: LeaderSet) -> LeaderSet:
        """X cut by this config's bounds and budget."""
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        return leader_set.intersect(low, high, np.inf if self.budget is None else self.budget)


@dataclass(frozen=True, eq=False)
class Kept:
    """The best x seen and its record."""

    x: Tensor
    evaluation: Evaluation


class Leader(ABC):
    """A leader that learns x in X.

    Attributes:
        leader_set: X, cut by the config's bounds and budget.
        config: how it learns.
        num_timesteps: what ``learn`` counts: outer iterations of exact leaders, follower steps of sampled ones.
        iteration: outer iterations so far.
        kept: the best x seen by honest evaluation (the last one judged, without ``keep_best``), with its record.
        history: every honest record since counting began.
    """

    def __init__(self, leader_set: LeaderSet, start: Tensor, config: LeaderConfig, x0: Any, seed: int | None) -> None:
        whole = seed is None or (isinstance(seed, (int, np.integer)) and seed >= 0)
        require(whole, "seed", "None or a whole number >= 0", repr(seed))
        self.leader_set = config.cut(leader_set) if config.narrows else leader_set
        self.config = config
        self.seed = seed
        first = self.leader_set.project(start) if x0 is None else self.leader_set.check(x0, "x0")
        self._x = first.detach().clone().requires_grad_()
        self.num_timesteps = 0
        self.iteration = 0
        self.kept: Kept | None = None
        self.history: list[Evaluation] = []
        self._total = 0
        self._evaluated_at = -1
        self._logger: Logger | None = None
        self._rate = as_schedule(config.learning_rate, "learning_rate", positive=True)

    @property
    def x(self) -> npt.NDArray[np.float64]:
        """The leader's parameter, ``[dim]``: the best seen by honest evaluation (with ``keep_best``), the start before any."""
        return np.array((self._x if self.kept is None else self.kept.x).detach().numpy())

    @property
    def last_x(self) -> npt.NDArray[np.float64]:
        """The last iterate of x, ``[dim]``, from which learning goes on."""
        return np.array(self._x.detach().numpy())

    @property
    def logger(self) -> Logger:
        """SB3's logger; by default it writes nowhere."""
        if self._logger is None:
            from stable_baselines3.common.logger import Logger

            self._logger = Logger(folder=None, output_formats=[])
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Write the records with an SB3 logger, e.g. ``configure(folder, ["csv", "json", "tensorboard"])``."""
        self._logger = logger

    def _learn(self, total: int, callback: Callback | None, progress_bar: bool, reset_num_timesteps: bool) -> None:
        require(callback is None or callable(callback), "callback", "a callable that takes the leader", repr(callback))
        if reset_num_timesteps:
            self.num_timesteps = self.iteration = 0
            self.kept, self._evaluated_at, self.history = None, -1, []
        done = self.num_timesteps
        self._total = done + total
        if self.kept is None:
            self._judge()
        with tqdm(total=total, disable=not progress_bar, unit=self._unit) as bar:
            while self.num_timesteps < self._total:
                before = self.num_timesteps
                record = self._iterate(1.0 - self.num_timesteps / self._total)
                self.iteration += 1
                bar.update(min(self.num_timesteps, self._total) - before)
                if self.iteration % self.config.eval_every == 0:
                    self._judge(record)
                    bar.set_postfix(self._postfix())
                if callback is not None and callback(self) is False:
                    break
            if self._evaluated_at != self.iteration:
                self._judge()
                bar.set_postfix(self._postfix())

    def _postfix(self) -> dict[str, str]:
        best = self.kept.evaluation.leader_return if self.kept else float("nan")
        return {"best leader return": f"{best:.3f}"}

    def _judge(self, record: dict[str, float] | None = None) -> None:
        """Evaluate the last x honestly, log it, keep it if it is the best."""
        evaluation = self._evaluate(self._x.detach())
        self._evaluated_at = self.iteration
        self.history.append(evaluation)
        better = self.kept is None or evaluation.leader_return > self.kept.evaluation.leader_return
        if better or not self.config.keep_best:
            self.kept = Kept(self._x.detach().clone(), evaluation)
        for key, value in (evaluation.as_dict() | (record or {})).items():
            if value is not None:
                self.logger.record(f"leader/{key}", value)
        self.logger.dump(self.num_timesteps)

    def evaluate(self) -> Evaluation:
        """The record of :attr:`x`: return at the best response, return at pi_y, gap, penalty, lam, tau, steps."""
        if self.kept is None:
            self._judge()
        assert self.kept is not None
        return self.kept.evaluation

    _unit = "it"

    @abstractmethod
    def _iterate(self, progress_remaining: float) -> dict[str, float]:
        """One outer iteration: move x, advance ``num_timesteps``, return what to log."""

    @abstractmethod
    def _evaluate(self, x: Tensor) -> Evaluation:
        """The honest record of the last x."""

    @abstractmethod
    def save(self, path: str | Path) -> Path:
        """Write the leader to a file, whole or not at all."""
