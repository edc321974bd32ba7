"""The tests of which ``make test`` runs some cases only are there."""

from pathlib import Path

import pytest

from tests.cases import KEPT

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", KEPT)
def test_the_test_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    assert f"def {function}(" in (HERE / file).read_text(encoding="utf-8")
