"""Benchmarks that reproduce figures and tables or measure speed. Run ``python -m benchmarks``."""

import os

# One thread a process, set before numpy and torch are loaded: games run side by side, and speeds are per core.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
