"""The loop that every leader shares: SB3's verbs, x with its optimiser and its set X, the best x seen, logging."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...envs.mdp import LeaderSet
from ...envs.mdp.checks import check_number, check_seed, check_size, plain_fields, require
from ..files import restore_optimizer
from ..schedules import Schedule, as_schedule
from .evaluation import Evaluation
from .log import Log
from .storage import encode

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import VecEnv

OneCallback = Callable[[Any], "bool | None"]
Callback = Any
"""A callable or one of SB3's callbacks, or a sequence of such: called with the leader after every outer iteration.

False stops learning. One that is a context manager is entered first. For SB3's see ``agents.callbacks``.
"""
Self = TypeVar("Self", bound="Leader")


class Callbacks(AbstractContextManager["Callbacks"]):
    """One callback or several as one, SB3's among them.

    Args:
        callback: one, several, or None.
        leader: what learns.

    Raises:
        ValueError: something that cannot be called.
    """

    def __init__(self, callback: Callback | None, leader: Any) -> None:
        several = callback if isinstance(callback, Sequence) else [] if callback is None else [callback]
        known = [_of_sb3(one, leader) if hasattr(one, "on_step") else one for one in several]
        fits = all(callable(one) for one in known)
        require(fits, "callback", "a callable that takes the leader, one of SB3's, or several", repr(callback))
        self._callbacks: list[OneCallback] = known
        self._entered = ExitStack()

    def __enter__(self) -> Callbacks:
        for one in self._callbacks:
            if isinstance(one, AbstractContextManager):
                self._entered.enter_context(one)
        return self

    def __exit__(self, *raised: Any) -> bool | None:
        return self._entered.__exit__(*raised)

    def __call__(self, leader: Any) -> bool:
        """Call all; whether none said False."""
        return all([one(leader) is not False for one in self._callbacks])


def _of_sb3(callback: Any, leader: Any) -> OneCallback:
    from ..callbacks import OnLeader

    return OnLeader(callback, leader)


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
        plain_fields(self)
        as_schedule(self.learning_rate, "learning_rate", positive=True)
        is_optimizer = isinstance(self.optimizer_class, type) and issubclass(
            self.optimizer_class, torch.optim.Optimizer
        )
        require(is_optimizer, "optimizer_class", "a class of torch.optim", repr(self.optimizer_class))
        try:
            self.optimizer_class([torch.zeros(1, requires_grad=True)], lr=0.1, **self.optimizer_kwargs)  # type: ignore[call-arg]
        except Exception as error:  # whatever the class raises
            expected = f"arguments of {self.optimizer_class.__name__}"
            raise ValueError(
                f"optimizer_kwargs: expected {expected}, got {self.optimizer_kwargs!r} ({error})"
            ) from error
        check_size(self.eval_every, "eval_every")
        require(isinstance(self.keep_best, bool), "keep_best", "True or False", repr(self.keep_best))
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
        self.leader_set = config.cut(leader_set) if config.narrows else leader_set
        self.config = config
        self.seed = check_seed(seed)
        first = self.leader_set.project(start) if x0 is None else self.leader_set.check(x0, "x0")
        self._x = first.detach().clone().requires_grad_()
        self.num_timesteps = 0
        self.iteration = 0
        self.kept: Kept | None = None
        self.history: list[Evaluation] = []
        self._total = 0
        self._evaluated_at = -1
        self._logger: Logger | None = None
        self._log = Log()
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
        """Write the records with an SB3 logger, e.g. ``configure(folder, ["csv", "json", "tensorboard"])``.

        What was logged since counting began, also by the run that a loaded leader comes from, is written first: the files are
        then those of an unbroken run.
        """
        self._logger = logger
        self._log.tell(logger)

    @property
    def remaining_timesteps(self) -> int:
        """What is left of the last call of ``learn``, in its unit: 0 where it came to its end."""
        return max(0, self._total - self.num_timesteps)

    @abstractmethod
    def learn(
        self: Self,
        total: int,
        /,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Learn x; ``total`` is counted as :attr:`num_timesteps`."""

    def resume(self: Self, callback: Callback | None = None, progress_bar: bool = False) -> Self:
        """Finish the call of ``learn`` that ended early: the one that a file's leader was saved in.

        On one machine the leader is then, to the bit, what the unbroken call would have left (see ``Checkpoint``).

        Args:
            callback: called with the leader after every iteration; False stops.
            progress_bar: show one.
        """
        if self.remaining_timesteps:
            return self.learn(self.remaining_timesteps, callback, progress_bar, False)
        self._learn(0, callback, progress_bar, False)
        return self

    def _learn(self, total: int, callback: Callback | None, progress_bar: bool, reset_num_timesteps: bool) -> None:
        callbacks = Callbacks(callback, self)
        if reset_num_timesteps:
            self.num_timesteps = self.iteration = 0
            self.kept, self._evaluated_at, self.history, self._log = None, -1, [], Log()
        done = self.num_timesteps
        if total:  # none is asked for where a run that had come to its end is resumed
            self._total = done + total
        with callbacks, tqdm(total=total, disable=not progress_bar, unit=self._unit) as bar:
            if self.kept is None:
                self._judge()
            while self.num_timesteps < self._total:
                before = self.num_timesteps
                record = self._iterate(1.0 - self.num_timesteps / self._total)
                self.iteration += 1
                bar.update(min(self.num_timesteps, self._total) - before)
                if self.iteration % self.config.eval_every == 0:
                    self._judge(record)
                    bar.set_postfix(self._postfix())
                if not callbacks(self):
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
        self._log.dump(self.logger, self.num_timesteps)

    def evaluate_last(self) -> Evaluation:
        """The honest record of :attr:`last_x`: logged, and kept where it is the best."""
        if self._evaluated_at != self.iteration or not self.history:
            self._judge()
        return self.history[-1]

    def get_env(self) -> VecEnv | None:
        """The follower's copies of the world, for SB3's callbacks; None where it has none."""
        return None

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

    # --- files ---------------------------------------------------------------------------------------------------

    _counters: ClassVar[tuple[str, ...]] = ("num_timesteps", "iteration", "_total", "_evaluated_at")

    @abstractmethod
    def save(self, path: str | Path, replay: bool = False) -> Path:
        """Write the leader to a file, whole or not at all: all that learning on needs, so that it goes on to the bit.

        Args:
            path: the file, ``.zip`` where it has no suffix.
            replay: whether the followers' replay buffers go in. They may be large; without them learning on with a follower
                that has one is not to the bit.

        Returns:
            The path written.

        Raises:
            OSError: a file that cannot be written; what was there before still is.
            TypeError: a config with something that no file can hold.
        """

    def _header(self) -> dict[str, Any]:
        """What a file's header holds of any leader."""
        return {
            "config": encode(self.config),
            "seed": self.seed,
            "counters": {name: getattr(self, name) for name in self._counters},
            "evaluation": None if self.kept is None else self.kept.evaluation.as_dict(),
            "history": [evaluation.as_dict() for evaluation in self.history],
            "log": self._log.rows,
        }

    def _tensors(self) -> dict[str, Any]:
        """What a file's tensors are of any leader."""
        optimizer: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        return {
            "x": self._x.detach(),
            "kept": None if self.kept is None else self.kept.x,
            "optimizer": None if optimizer is None else optimizer.state_dict(),
        }

    def _take_back(self, header: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Take back what :meth:`_header` and :meth:`_tensors` gave; raises what a file of another form leads to."""
        for name in self._counters:
            value, present = header["counters"][name], getattr(self, name)
            fits = isinstance(value, int) and (isinstance(value, bool) or not isinstance(present, bool)) and value >= -1
            require(fits, name, f"a number like {present}", repr(value))
            setattr(self, name, value)
        self.history = [Evaluation.from_dict(record) for record in header["history"]]
        self._log.restore(header["log"])
        self.kept = None
        if header["evaluation"] is not None:
            kept = self.leader_set.check(tensors["kept"], "kept")
            self.kept = Kept(kept, Evaluation.from_dict(header["evaluation"]))
        with torch.no_grad():
            self._x.copy_(self.leader_set.check(tensors["x"], "x"))
        optimizer: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if optimizer is not None:
            restore_optimizer(optimizer, tensors["optimizer"])
