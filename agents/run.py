"""A run of ``learn``: the state of the leader's loop, besides the method's state, and its callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..envs.mdp.checks import require
from .evaluation import Evaluation
from .plan import Cadence

Callback = Any
"""A callable, an SB3 callback, or a sequence of these, called with the leader after every outer iteration.

If it returns False, learning stops. A context manager is entered first. For SB3's callbacks see ``callbacks``.
"""


@dataclass(frozen=True, eq=False)
class Kept:
    """The best x so far and its record."""

    x: Tensor
    evaluation: Evaluation


@dataclass
class Gradients:
    """Statistics of x's gradient over a run, where it is estimated.

    Attributes:
        n: number of estimates.
        mean: their mean, ``[dim]``.
        squares: sum of their squared distances from the mean.
        signal: the largest ``|mean| / stderr`` after 4, 8, 16, ... estimates.
    """

    n: int = 0
    mean: Tensor | None = None
    squares: float = 0.0
    signal: float = 0.0


@dataclass
class Run:
    """The state of a leader's loop, besides the method's state.

    Attributes:
        iteration: number of outer iterations so far.
        total: value of ``num_timesteps`` at which the latest call of ``learn`` ends.
        cadence: when that call makes records.
        start: x when counting began, ``[dim]``.
        gradients: statistics of x's gradient since then.
        evaluated_at: the latest iteration evaluated; None before any.
        kept: the best x so far, with its record (without ``keep_best``, the latest one evaluated).
        history: all records since counting began.
        columns: the sets of keys that were logged together, with the formats that exclude them.
        log: the logged rows: step count, index into ``columns``, and values.
    """

    iteration: int = 0
    total: int = 0
    cadence: Cadence = field(default_factory=Cadence)
    start: Tensor | None = None
    gradients: Gradients = field(default_factory=Gradients)
    evaluated_at: int | None = None
    kept: Kept | None = None
    history: list[Evaluation] = field(default_factory=list)
    columns: list[list[tuple[str, list[str]]]] = field(default_factory=list)
    log: list[tuple[int, int, list[bool | int | float | str]]] = field(default_factory=list)


@contextmanager
def entered(callback: Callback | None, leader: Any) -> Iterator[list[Callable[[Any], Any]]]:
    """Enter the callbacks of a call of ``learn``, one or several, including SB3's, and yield them as a list.

    Raises:
        ValueError: a callback is not callable.
    """
    several = callback if isinstance(callback, Sequence) else [] if callback is None else [callback]
    fits = all(callable(one) or hasattr(one, "on_step") for one in several)
    require(fits, "callback", "a callable that takes the leader, one of SB3's, or several", repr(callback))
    known = []
    for one in several:
        if hasattr(one, "on_step"):
            from .callbacks import OnLeader

            one = OnLeader(one, leader)
        known.append(one)
    with ExitStack() as stack:
        for one in known:
            if isinstance(one, AbstractContextManager):
                stack.enter_context(one)
        yield known
