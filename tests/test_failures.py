"""The page on failures says what the code says."""

from __future__ import annotations

import re

import pytest

from tests.bad_inputs import CASES, on_the_page, said, tables


@pytest.mark.skipif(not on_the_page(), reason="no page")
def test_the_page_is_what_comes_of_each_input() -> None:
    """If this fails because a message has changed: ``python -m tests.bad_inputs``."""
    assert on_the_page() == tables()


def test_every_message_names_what_is_wrong() -> None:
    """An argument and a colon, or what was expected; the run that breaks off has nothing but its error."""
    for one in CASES:
        text = said(one)
        clear = re.search(r"expected|No such command|cut short|pip install|could be written|untouched", text)
        assert clear or one.what == "a run that breaks off", text
