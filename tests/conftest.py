"""What all tests share: one fork server that has imported the library, so that the processes it forks need not."""

import multiprocessing
from collections.abc import Sequence
from unittest import mock

if "forkserver" in multiprocessing.get_all_start_methods():
    from multiprocessing import forkserver

    _preload = forkserver.set_forkserver_preload

    def _and_the_library(names: Sequence[str]) -> None:
        _preload([*names, "bilevel_gym.cli.forkserver", "tests.agents.users"])

    # The server is started once in a process, by whichever test comes first, and imports what that one asks for.
    mock.patch.object(forkserver, "set_forkserver_preload", _and_the_library).start()
    _and_the_library([])
