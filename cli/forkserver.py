"""Imported in multiprocessing's fork server and nowhere else: it leaves the process group of the process that began it.

So what is sent to that group, by Ctrl-C for one, reaches neither the server nor the processes that it forks; which find loaded
what ``agents`` loads when it is asked for.
"""

import os

os.setpgrp()

from .. import agents  # noqa: E402

for _name in agents.__all__:
    getattr(agents, _name)
