"""What all tests share: one fork server that has imported the library, so that the processes it forks need not, and how many
cases ``make test`` runs of tests that take seconds each."""

import multiprocessing
from collections import defaultdict
from collections.abc import Sequence
from unittest import mock

import pytest

from tests.cases import KEPT

if "forkserver" in multiprocessing.get_all_start_methods():
    from multiprocessing import forkserver

    _preload = forkserver.set_forkserver_preload

    def _and_the_library(names: Sequence[str]) -> None:
        _preload([*names, "bilevel_gym.cli.forkserver", "tests.agents.users"])

    # The server is started once in a process, by whichever test comes first, and imports what that one asks for.
    mock.patch.object(forkserver, "set_forkserver_preload", _and_the_library).start()
    _and_the_library([])


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as long what ``KEPT`` leaves out."""
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0].removeprefix("tests/")].append(item)
    for name, kept in KEPT.items():
        found = cases[name]
        chosen = {len(found) * j // kept for j in range(kept)}
        for i, item in enumerate(found):
            if i not in chosen:
                item.add_marker(pytest.mark.long)
