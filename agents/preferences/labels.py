"""What is asked of a labeller and kept of the answers, and who may answer: the true return, a program, somebody outside.

A labeller is asked queries, pairs of segments with a number, and hands over answers when it has them: at once, later, in any
order, or never. It says ``left``, ``right``, ``equal`` or ``skip`` (cannot be told: the pair teaches nothing).
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
"""Share of the preference that goes to the left segment; a skipped pair has none."""


def check_label(label: object) -> Label:
    """The label; raises ``ValueError`` unless it is one of left, right, equal, skip."""
    known = isinstance(label, str) and label in LABELS
    require(known, "label", f"one of {', '.join(LABELS)}", repr(label))
    return label  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two segments to be compared.

    Raises:
        ValueError: segments of unequal length, or whose observations or actions have other shapes or types.
    """

    left: Segment
    right: Segment

    def __post_init__(self) -> None:
        a, b = self.left, self.right
        require(len(a) == len(b), "pair", f"segments of one length, {len(a)}", len(b))
        for name in ("obs", "actions"):
            one, two = getattr(a, name), getattr(b, name)
            require(one.shape == two.shape, "pair", f"{name} of one shape, {one.shape}", two.shape)
            require(one.dtype == two.dtype, "pair", f"{name} of one type, {one.dtype}", two.dtype)
        require(a.frame_stack == b.frame_stack, "pair", f"segments of {a.frame_stack} frames a step", b.frame_stack)


@dataclass(frozen=True, eq=False)
class Preference:
    """A labelled pair; skipped pairs are none."""

    pair: Pair
    label: Label

    @property
    def mu(self) -> float:
        """Share of the preference that goes to the left segment."""
        return PREFERENCE[self.label]


class PreferenceBuffer:
    """Labelled pairs, the oldest forgotten first, and batches of them.

    Args:
        capacity: labelled pairs that it keeps.

    Attributes:
        seen: labelled pairs that it was ever given.
        skipped: answers that said skip.

    Raises:
        ValueError: a capacity under one; in ``add``, segments of another shape or type than those held, no label.
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
        """Keep a labelled pair; a skipped one is counted only."""
        if check_label(label) == "skip":
            self.skipped += 1
            return
        if self._held:
            Pair(self._held[0].pair.left, pair.left)  # raises where they do not fit together
        self._held.append(Preference(pair, label))
        self.seen += 1

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[list[Preference]]:
        """All pairs once, in random order, at most ``size`` at a time.

        Raises:
            ValueError: an empty buffer.
        """
        require(len(self) > 0, "buffer", "at least one labelled pair", "none")
        order = rng.permutation(len(self)).tolist()
        for i in range(0, len(order), size):
            yield [self._held[j] for j in order[i : i + size]]


@dataclass(frozen=True, eq=False)
class Query:
    """A pair that a labeller is asked about, under a number."""

    id: int
    pair: Pair


@dataclass(frozen=True)
class Answer:
    """The label of a query.

    Raises:
        ValueError: another label than left, right, equal, skip.
    """

    id: int
    label: Label

    def __post_init__(self) -> None:
        check_label(self.label)


class Labeller(ABC):
    """Whoever answers queries."""

    @property
    def remaining(self) -> int | None:
        """How many queries it will still take; None for no limit."""
        return None

    @property
    def first_id(self) -> int:
        """The least number that no query of an earlier session has."""
        return 0

    def earlier(self) -> tuple[list[tuple[Pair, Label]], dict[int, Pair]]:
        """What earlier sessions left: pairs with their labels, and queries still open, by number."""
        return [], {}

    def state_dict(self) -> dict[str, Any]:
        """What a file keeps of it: numbers and texts by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what :meth:`state_dict` gave."""

    @abstractmethod
    def ask(self, queries: Sequence[Query]) -> None:
        """Take queries; returns at once."""

    @abstractmethod
    def answers(self) -> list[Answer]:
        """The answers that have come since the last call; returns at once."""


class _AtOnce(Labeller):
    """A labeller that answers as soon as it is asked."""

    def __init__(self, budget: int | None) -> None:
        self._left = None if budget is None else check_size(budget, "budget")
        self._given: list[Answer] = []

    @property
    def remaining(self) -> int | None:
        return self._left

    def state_dict(self) -> dict[str, Any]:
        """What the budget leaves."""
        return {"left": self._left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._left = None if state["left"] is None else check_count(state["left"], "left")

    def ask(self, queries: Sequence[Query]) -> None:
        """Answer them.

        Raises:
            ValueError: more queries than the budget leaves.
        """
        within = self._left is None or len(queries) <= self._left
        require(within, "queries", f"at most {self._left}, what the budget leaves", len(queries))
        self._given += [Answer(query.id, self._label(query.pair)) for query in queries]
        self._left = None if self._left is None else self._left - len(queries)

    def answers(self) -> list[Answer]:
        given, self._given = self._given, []
        return given

    @abstractmethod
    def _label(self, pair: Pair) -> Label: ...


class TrueReturnLabeller(_AtOnce):
    r"""Answers from the segments' true returns R.

    .. math:: P(left) = \sigma((R_{left} - R_{right}) / temperature), at temperature 0 whichever is larger.

    Args:
        noise: probability that left and right are swapped, in [0, 1/2].
        tie: a difference of returns up to this is ``equal``.
        temperature: of the answers, in the return's unit.
        budget: queries that it takes in all; None for no limit.
        seed: of its answers.

    Raises:
        ValueError: a number outside its interval; when asked, segments whose true rewards were not recorded.
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
        """What the budget leaves, and the generator's state."""
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
    """Answers by a function of the pair, e.g. a rule or a model.

    Args:
        function: from a :class:`Pair` to left, right, equal or skip.
        budget: queries that it takes in all; None for no limit.

    Raises:
        ValueError: no function; when asked, an answer that is no label.
    """

    def __init__(self, function: Callable[[Pair], Label], budget: int | None = None) -> None:
        require(callable(function), "function", "a function of a pair", repr(function))
        super().__init__(budget)
        self._function = function

    def _label(self, pair: Pair) -> Label:
        return check_label(self._function(pair))
