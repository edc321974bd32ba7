"""The command line ``bilevel-gym``: train, evaluate, record, plot, sweep, benchmark, list. Nothing else imports it."""
