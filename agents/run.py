"""A run of ``learn``: what the leader's loop keeps beside the method's state, and its callbacks."""

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
"""A callable or one of SB3's callbacks, or a sequence of such: called with the leader after every outer iteration.

False stops learning. One that is a context manager is entered first. For SB3's see ``callbacks``.
"""


@dataclass(frozen=True, eq=False)
class Kept:
    """The best x seen and its record."""

    x: Tensor
    evaluation: Evaluation


@dataclass
class Gradients:
    """x's gradient over a run, where it is an estimate.

    Attributes:
        n: how many estimates.
        mean: their mean, ``[dim]``.
        squares: the sum of their squared distances from it.
        signal: the largest ``|mean| / stderr`` after 4, 8, 16, ... of them.
    """

    n: int = 0
    mean: Tensor | None = None
    squares: float = 0.0
    signal: float = 0.0


@dataclass
class Run:
    """What a leader's loop keeps beside the method's state.

    Attributes:
        iteration: outer iterations so far.
        total: up to which ``num_timesteps`` the last call of ``learn`` goes.
        cadence: when that call makes records.
        start: x when counting began, ``[dim]``.
        gradients: x's gradient since then.
        evaluated_at: the iteration last evaluated, None before any.
        kept: the best x seen (the last one evaluated, without ``keep_best``), with its record.
        history: every record since counting began.
        columns: each set of what was logged together: keys, with the formats that leave them out.
        log: what was logged: steps, which of the columns, and their values.
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
    """The callbacks of a call of ``learn``, one or several, SB3's among them, entered where they are context managers.

    Raises:
        ValueError: something that cannot be called.
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
