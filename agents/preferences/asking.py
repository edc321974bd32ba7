"""Keep track of the questions to a labeller and its answers: what is labelled, what is open, how many were asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...envs.mdp.checks import check_count, require
from ...wrappers import Segment
from .config import PreferenceConfig
from .files import MOST, preferences_as_bytes, preferences_from_bytes
from .labels import Labeller, Pair, PreferenceBuffer, Query
from .worlds import PreferenceWorlds


class Asking:
    """A labeller's questions and answers, continuing from earlier sessions of the labeller.

    Args:
        labeller: the labeller.
        worlds: the environment whose segments are compared.
        config: settings: number of pairs to keep, number that may be open, form of the segments.

    Attributes:
        labeller: the labeller.
        buffer: labelled pairs.
        pending: open queries, by number.
        asked: number of queries so far.
    """

    def __init__(self, labeller: Labeller, worlds: PreferenceWorlds, config: PreferenceConfig) -> None:
        self.labeller, self._config, self._signature = labeller, config, worlds.signature(config.length)
        self.buffer = PreferenceBuffer(config.capacity)
        labelled, self.pending = labeller.earlier()
        for pair, label in labelled:
            self.buffer.add(pair, label)
        self.asked = len(labelled) + len(self.pending)
        self._next_id = labeller.first_id
        # The segments of a file must have as many steps, and the environment's shapes and types.
        H, k, space, actions = config.length, config.frame_stack, worlds.observation_space, worlds.action_space
        shape = space.shape or ()
        obs = np.zeros((H, *shape) if k == 1 else (H + k - 1, *shape[1:]), space.dtype)
        taken = np.zeros((H, *(actions.shape or ())), actions.dtype)
        self._like = Segment(obs, taken, np.ones(H, dtype=bool), frame_stack=k)

    def allowed(self, n: int) -> int:
        """Return how many of ``n`` further questions may be asked now."""
        left = self.labeller.remaining
        return max(0, min(n, self._config.max_pending - len(self.pending), n if left is None else left))

    def ask(self, pairs: Sequence[Pair]) -> None:
        """Ask the labeller about pairs."""
        queries = [Query(self._next_id + i, pair) for i, pair in enumerate(pairs)]
        self._next_id += len(queries)
        self.asked += len(queries)
        self.pending |= {query.id: query.pair for query in queries}
        self.labeller.ask(queries)

    def collect(self) -> int:
        """Take the answers that have arrived; return their number.

        Raises:
            ValueError: an answer belongs to no query.
        """
        answers = self.labeller.answers()
        for answer in answers:
            require(0 <= answer.id < self._next_id, "labeller", "an answer to a query", f"number {answer.id}")
            pair = self.pending.pop(answer.id, None)
            if pair is not None:  # only the first answer counts
                self.buffer.add(pair, answer.label)
        return len(answers)

    # --- files ----------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Maximum size in bytes of the pairs in a file or in memory, as large as a preference file with pictures."""
        arrays = (self._like.obs, self._like.actions, self._like.mask)
        one = MOST if self._config.pictures else 2 * sum(array.nbytes for array in arrays) + 2**14
        return one * (self._config.capacity + self._config.max_pending)

    def state_dict(self) -> dict[str, Any]:
        """Return pairs and labels in the format of a preference file, and counters; true rewards are left out."""
        contents = preferences_as_bytes(self.buffer, self.pending, self._signature)
        pairs = [*(preference.pair for preference in self.buffer), *self.pending.values()]
        places = [[[s.time, s.copy] for s in (pair.left, pair.right)] for pair in pairs]  # not part of preference files
        return {
            "preferences": np.frombuffer(contents, dtype=np.uint8),
            "places": places,
            "counts": [self.asked, self._next_id, self.buffer.seen, self.buffer.skipped],
            "labeller": [type(self.labeller).__name__, self.labeller.state_dict()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned. If the labeller continues its own file, the pairs come from that file.

        Raises:
            ValueError: the pairs belong to another environment, or are more or larger than the settings allow.
        """
        name, held = state["labeller"]
        if name == type(self.labeller).__name__:
            self.labeller.load_state_dict(held)
        if self.labeller.first_id:
            self.asked = self._next_id = self.labeller.first_id
            return
        data = state["preferences"].numpy().tobytes()
        found = preferences_from_bytes(data, "the file's", self._signature, self._config.pictures, self.room)
        self.pending = {}
        for (number, pair), places in zip(found.pairs.items(), state["places"], strict=True):
            sides = zip((pair.left, pair.right), places, strict=True)
            pair = Pair(*(replace(side, time=int(time), copy=int(copy)) for side, (time, copy) in sides))
            Pair(self._like, pair.left)  # raises if they do not fit together
            if number in found.labels:
                self.buffer.add(pair, found.labels[number])
            else:
                self.pending[number] = pair
        counts = [check_count(count, "counts") for count in state["counts"]]
        self.asked, self._next_id, self.buffer.seen, self.buffer.skipped = counts
