"""Docstrings as Sphinx reads them: formulas that stand indented below a sentence are shown as they are typed."""

from __future__ import annotations

import re
from typing import Any

_SECTION = re.compile(r"^\s*(Args|Attributes|Example|Examples|Raises|Returns|Yields|Note|Source):\s*$")
_LIST = re.compile(r"^\s*([-*]|\d+\.)\s")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Mark blocks that are indented by four or more below a paragraph as literal, and Markdown's headings as bold lines."""
    found: list[str] = []
    above = ""  # the line before the last blank one
    base = 0  # indentation of the block of text in hand
    literal = False
    for line in lines:
        if not line.strip():
            found.append(line)
            continue
        after_blank = not found or not found[-1].strip()
        if literal and _indent(line) > base:
            found.append(line)
            above = line
            continue
        literal = False
        opens = after_blank and _indent(line) >= _indent(above) + 4 and bool(above.strip())
        plain = not (
            _SECTION.match(above) or _LIST.match(above) or above.lstrip().startswith(".. ") or above.endswith("::")
        )
        if opens and plain and not line.lstrip().startswith(">>>"):
            base = _indent(above)
            found += [" " * base + ".. code-block:: none", "", line]
            literal, above = True, line
            continue
        heading = re.match(r"^(\s*)##+ (.*)$", line)
        if heading:
            found += [f"{heading[1]}**{heading[2]}**", ""]
        else:
            found.append(_without_bars(line))
        above = line
    lines[:] = found


def _without_bars(line: str) -> str:
    """``|x|`` outside of code is no substitution."""
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    return "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)
