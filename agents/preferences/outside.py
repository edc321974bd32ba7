"""Labellers and preference files: answers that come from outside, through a file, and answers that are kept in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .files import PreferenceLog, Signature, read_preferences
from .labels import Answer, Label, Labeller, Pair, Query


class FileLabeller(Labeller):
    """Appends queries to a preference file and finds the answers that others append there.

    A file that exists is gone on with: what is answered in it counts, what is not stays open.

    Args:
        path: the file; whoever answers opens it as ``PreferenceLog(path)``, shows ``contents.pending`` and calls ``answer``.
        signature: of the world; None where the file exists.

    Raises:
        FileNotFoundError: no file, and no signature to begin one with.
        ValueError: a file that is none, or of another environment.
    """

    def __init__(self, path: str | Path, signature: Signature | None = None) -> None:
        self.log = PreferenceLog(path, signature)

    @property
    def first_id(self) -> int:
        return max(self.log.contents.pairs, default=-1) + 1

    def earlier(self) -> tuple[list[tuple[Pair, Label]], dict[int, Pair]]:
        return self.log.contents.answered, self.log.contents.pending

    def ask(self, queries: Sequence[Query]) -> None:
        for query in queries:
            self.log.ask(query.id, query.pair)

    def answers(self) -> list[Answer]:
        return [Answer(number, label) for number, label in self.log.refresh().items()]


class LoggedLabeller(Labeller):
    """Passes on another labeller's queries and answers, and keeps each query with its answer in a preference file.

    An answer is in the file before the learner has it, so that none is lost with the process; a file that exists is gone on
    with. What was not answered is asked anew, in other pairs.

    Args:
        labeller: who answers.
        path: the file.
        signature: of the world; None where the file exists.

    Raises:
        FileNotFoundError: no file, and no signature to begin one with.
        ValueError: a file that is none, or of another environment.
    """

    def __init__(self, labeller: Labeller, path: str | Path, signature: Signature | None = None) -> None:
        log = PreferenceLog(path, signature)
        self._first_id = max(log.contents.pairs, default=-1) + 1
        log.contents.pairs.clear()  # the learner's buffer holds the pairs
        self.labeller, self.log = labeller, log
        self._open: dict[int, Pair] = {}

    @property
    def remaining(self) -> int | None:
        return self.labeller.remaining

    @property
    def first_id(self) -> int:
        return self._first_id

    def earlier(self) -> tuple[list[tuple[Pair, Label]], dict[int, Pair]]:
        return read_preferences(self.log.path, pictures=False).answered, {}

    def ask(self, queries: Sequence[Query]) -> None:
        self.labeller.ask(queries)
        self._open |= {query.id: query.pair for query in queries}

    def answers(self) -> list[Answer]:
        given = self.labeller.answers()
        for answer in given:
            pair = self._open.pop(answer.id, None)
            if pair is not None:
                self.log.record(answer.id, pair, answer.label)
        return given
