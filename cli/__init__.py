"""The command line ``bilevel-gym``: train, evaluate, record, plot, sweep, benchmark, list. The library does not import it."""

if __name__ != "bilevel_gym.cli":
    raise ImportError(f"import bilevel_gym.cli, not {__name__}: second copies of its classes would be strangers")
