"""The command line ``bilevel-gym``: train, evaluate, record, plot, sweep, benchmark, list.

No other package of the library imports this one.
"""

if __name__ != "bilevel_gym.cli":
    raise ImportError(f"import bilevel_gym.cli, not {__name__}: it would load a second copy of each class")
