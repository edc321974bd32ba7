"""Queries to a labeller, the labelled pairs, and labellers: by the true return, by a program, or from outside.

A labeller gets queries (numbered pairs of segments) and returns answers at any time: at once, later, in any order, or never. An
answer is ``left``, ``right``, ``equal`` or ``skip`` (cannot tell: the pair is not used).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ...envs.mdp.checks import check_count, check_number, check_seed, check_size, require
from ...wrappers import Segment

Label = Literal["left", "right", "equal", "skip"]
LABELS: tuple[Label, ...] = get_args(Label)
PREFERENCE: dict[Label, float] = {"left": 1.0, "equal": 0.5, "right": 0.0}
"""Share of the preference for the left segment; a skipped pair has none."""


def check_label(label: object) -> Label:
    """Return the label; raise ``ValueError`` unless it is left, right, equal or skip."""
    known = isinstance(label, str) and label in LABELS
    require(known, "label", f"one of {', '.join(LABELS)}", repr(label))
    return label  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two segments to be compared.

    Raises:
        ValueError: the segments differ in length, or in the shapes or types of observations or actions.
    """

    left: Segment
    right: Segment

    def __post_init__(self) -> None:
        a, b = self.left, self.right
        require(len(a) == len(b), "pair", f"segments of the same length, {len(a)}", len(b))
        for name in ("obs", "actions"):
            one, two = getattr(a, name), getattr(b, name)
            require(one.shape == two.shape, "pair", f"{name} of the same shape, {one.shape}", two.shape)
            require(one.dtype == two.dtype, "pair", f"{name} of the same type, {one.dtype}", two.dtype)
        require(a.frame_stack == b.frame_stack, "pair", f"segments of {a.frame_stack} frames per step", b.frame_stack)


@dataclass(frozen=True, eq=False)
class Preference:
    """A labelled pair that was not skipped."""

    pair: Pair
    label: Label

    @property
    def mu(self) -> float:
        """Share of the preference for the left segment."""
        return PREFERENCE[self.label]


class PreferenceBuffer:
    """A buffer of labelled pairs that drops the oldest first.

    Args:
        capacity: maximum number of labelled pairs. Default: 3000.

    Attributes:
        seen: number of labelled pairs ever added.
        skipped: number of skipped pairs.

    Raises:
        ValueError: ``capacity`` is under 1; in ``add``, shapes or types differ from the buffer's, or the label is invalid.
    """

    def __init__(self, capacity: int = 3000) -> None:
        self._held: deque[Preference] = deque(maxlen=check_size(capacity, "capacity"))
        self.seen = self.skipped = 0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Preference]:
        return iter(self._held)

    def __getitem__(self, index: int) -> Preference:
        return self._held[index]

    def add(self, pair: Pair, label: Label) -> None:
        """Add a labelled pair; a skipped one is only counted."""
        if check_label(label) == "skip":
            self.skipped += 1
            return
        if self._held:
            Pair(self._held[0].pair.left, pair.left)  # raises if they do not fit together
        self._held.append(Preference(pair, label))
        self.seen += 1

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[list[Preference]]:
        """Iterate once over all pairs in random order, in batches of at most ``size``.

        Raises:
            ValueError: the buffer is empty.
        """
        require(len(self) > 0, "buffer", "at least one labelled pair", "none")
        order = rng.permutation(len(self)).tolist()
        for i in range(0, len(order), size):
            yield [self._held[j] for j in order[i : i + size]]


@dataclass(frozen=True, eq=False)
class Query:
    """A numbered pair for the labeller."""

    id: int
    pair: Pair


@dataclass(frozen=True)
class Answer:
    """The label of a query.

    Raises:
        ValueError: the label is not left, right, equal or skip.
    """

    id: int
    label: Label

    def __post_init__(self) -> None:
        check_label(self.label)


class Labeller(ABC):
    """Base class of labellers, which answer queries."""

    @property
    def remaining(self) -> int | None:
        """Number of further queries that it accepts; None for no limit."""
        return None

    @property
    def first_id(self) -> int:
        """The smallest number not used by a query of an earlier session."""
        return 0

    def earlier(self) -> tuple[list[tuple[Pair, Label]], dict[int, Pair]]:
        """Return the pairs with labels, and the open queries by number, of earlier sessions."""
        return [], {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state to store in a file: numbers and texts by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Load what :meth:`state_dict` returned."""

    @abstractmethod
    def ask(self, queries: Sequence[Query]) -> None:
        """Accept queries without waiting for their answers."""

    @abstractmethod
    def answers(self) -> list[Answer]:
        """Return the answers that arrived since the last call, without waiting."""


class _AtOnce(Labeller):
    """A labeller that answers immediately."""

    def __init__(self, budget: int | None) -> None:
        self._left = None if budget is None else check_size(budget, "budget")
        self._given: list[Answer] = []

    @property
    def remaining(self) -> int | None:
        return self._left

    def state_dict(self) -> dict[str, Any]:
        """Return the remaining budget."""
        return {"left": self._left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._left = None if state["left"] is None else check_count(state["left"], "left")

    def ask(self, queries: Sequence[Query]) -> None:
        """Answer the queries.

        Raises:
            ValueError: there are more queries than the budget allows.
        """
        within = self._left is None or len(queries) <= self._left
        require(within, "queries", f"at most {self._left} (the remaining budget)", len(queries))
        self._given += [Answer(query.id, self._label(query.pair)) for query in queries]
        self._left = None if self._left is None else self._left - len(queries)

    def answers(self) -> list[Answer]:
        given, self._given = self._given, []
        return given

    @abstractmethod
    def _label(self, pair: Pair) -> Label: ...


class TrueReturnLabeller(_AtOnce):
    r"""Answer by the segments' true returns R.

    .. math:: P(left) = \sigma((R_{left} - R_{right}) / temperature), at temperature 0 the larger return wins.

    Args:
        noise: probability that left and right are swapped, in [0, 1/2].
        tie: largest difference of returns that counts as ``equal``.
        temperature: temperature of the answers, in units of return.
        budget: total number of queries to accept; None for no limit.
        seed: seed of its answers.

    Raises:
        ValueError: a number is out of range; when asked, the segments have no true rewards.
    """

    def __init__(
        self,
        noise: float = 0.0,
        tie: float = 0.0,
        temperature: float = 0.0,
        budget: int | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__(budget)
        self.noise = check_number(noise, "noise", low=0.0, high=0.5)
        self.tie = check_number(tie, "tie", low=0.0, high=math.inf, open_high=True)
        self.temperature = check_number(temperature, "temperature", low=0.0, high=math.inf, open_high=True)
        self.rng = np.random.default_rng(check_seed(seed))

    def state_dict(self) -> dict[str, Any]:
        """Return the remaining budget and the random generator's state."""
        return {**super().state_dict(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rng.bit_generator.state = state["rng"]

    def _label(self, pair: Pair) -> Label:
        better = pair.left.true_return - pair.right.true_return
        if abs(better) <= self.tie:
            return "equal"
        left = better > 0.0
        if self.temperature > 0.0:
            left = self.rng.random() < 1.0 / (1.0 + math.exp(-max(min(better / self.temperature, 700.0), -700.0)))
        if self.noise > 0.0 and self.rng.random() < self.noise:
            left = not left
        return "left" if left else "right"


class ProgramLabeller(_AtOnce):
    """Answer by a function of the pair, e.g. a rule or a model.

    Args:
        function: maps a :class:`Pair` to left, right, equal or skip.
        budget: total number of queries to accept; None for no limit.

    Raises:
        ValueError: ``function`` is not callable; when asked, it returns no label.
    """

    def __init__(self, function: Callable[[Pair], Label], budget: int | None = None) -> None:
        require(callable(function), "function", "a function of a pair", repr(function))
        super().__init__(budget)
        self._function = function

    def _label(self, pair: Pair) -> Label:
        return check_label(self._function(pair))
