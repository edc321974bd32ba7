"""Imported in multiprocessing's fork server and nowhere else: it leaves the process group of the process that began it.

So what is sent to that group, by Ctrl-C for one, reaches neither the server nor the processes that it forks.
"""

import os

os.setpgrp()
