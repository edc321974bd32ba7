"""Answers from outside, which may come late: a person or another process reads and answers in a preference file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .files import PreferenceLog, Signature
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
