"""Only multiprocessing's fork server imports this module: it moves the server to a process group of its own.

Signals to the parent's group, such as that of Ctrl-C, then reach neither the server nor the processes that it forks. The
module also imports what ``agents`` loads on demand, so that forked processes need not.
"""

import os

os.setpgrp()

from .. import agents  # noqa: E402

for _name in agents.__all__:
    getattr(agents, _name)
