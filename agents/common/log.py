"""What a leader has logged, kept beside its logger: the log of a resumed run is that of an unbroken one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...envs.mdp.checks import require

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger


class Log:
    """Rows that were written with an SB3 logger.

    Attributes:
        rows: steps, and the key, the value and the excluded formats of each entry.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, list[tuple[str, Any, list[str]]]]] = []

    def dump(self, logger: Logger, step: int) -> None:
        """Write what was recorded since the last call, and keep it."""
        entries = [
            (
                key,
                value if isinstance(value, (bool, int, str)) else float(value),
                list(logger.name_to_excluded[key] or ()),
            )
            for key, value in logger.name_to_value.items()
            if isinstance(value, (bool, int, float, str)) or hasattr(value, "__float__")
        ]
        self.rows.append((step, entries))
        logger.dump(step)

    def tell(self, logger: Logger) -> None:
        """Write all rows with a new logger, but not on the screen."""
        from stable_baselines3.common.logger import HumanOutputFormat

        formats = logger.output_formats
        logger.output_formats = [
            f for f in formats if not (isinstance(f, HumanOutputFormat) and f.file in (sys.stdout, sys.stderr))
        ]
        for step, entries in self.rows:
            for key, value, excluded in entries:
                logger.record(key, value, tuple(excluded) or None)
            logger.dump(step)
        logger.output_formats = formats

    def restore(self, rows: Any) -> None:
        """Take back ``rows`` from JSON.

        Raises:
            TypeError, ValueError: something else.
        """
        self.rows = [
            (int(step), [(str(key), value, [str(name) for name in excluded]) for key, value, excluded in entries])
            for step, entries in rows
        ]
        for _, entries in self.rows:
            for key, value, _ in entries:
                require(isinstance(value, (bool, int, float, str)), key, "a number or a string", repr(value))
