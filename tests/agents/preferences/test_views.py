"""What a person is shown: pictures, lines or numbers; nothing after the end of an episode."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bilevel_gym.agents.preferences.labels import Pair
from bilevel_gym.agents.preferences.views import LINES, pictures, view
from bilevel_gym.wrappers import Segment

H = 5


def pair(left: Any, right: Any = None, steps: int = H, stack: int = 1, shown: tuple[Any, Any] = (None, None)) -> Pair:
    """Two segments of these observations; the right one ends after ``steps``."""
    right = left if right is None else right
    lived = np.arange(H) < steps
    return Pair(
        Segment(left, np.zeros(H, int), np.ones(H, bool), None, shown[0], stack),
        Segment(right, np.arange(H), lived, None, shown[1], stack),
    )


def counted(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(np.uint8)


def test_a_segments_own_pictures_come_first() -> None:
    own = counted(H, 9, 12, 3), counted(H, 9, 12, 3)[::-1]
    asked = pair(np.zeros((H, 2)), steps=3, shown=own)
    seen = view(asked)
    assert (seen["kind"], seen["length"]) == ("pictures", H)
    assert (seen["left"]["shape"], seen["right"]["shape"]) == ([H, 9, 12, 3], [3, 9, 12, 3])
    assert (seen["left"]["steps"], seen["right"]["steps"]) == (H, 3)
    assert seen["right"]["actions"] == [[0], [1], [2]]
    both = pictures(asked)
    assert both is not None
    np.testing.assert_array_equal(both[0], own[0])
    np.testing.assert_array_equal(both[1], own[1][:3])
    assert view(pair(np.zeros((H, 2)), shown=(own[0], None)))["kind"] == "lines"  # the other has none


@pytest.mark.parametrize(
    ("obs", "stack", "expected"),
    [
        (counted(H, 9, 12, 3), 1, lambda obs: obs),
        (counted(H, 3, 9, 12), 1, lambda obs: np.moveaxis(obs, 1, -1)),
        (counted(H, 9, 12, 1), 1, lambda obs: obs),
        (counted(H, 4, 9, 12), 1, lambda obs: obs[:, 3, :, :, None]),  # of a stack the newest
        (counted(H, 9, 12, 4), 1, lambda obs: obs[..., 3:]),
        (counted(H, 9, 12, 6), 1, lambda obs: obs[..., 3:]),  # of colours
        (counted(H, 9, 12), 1, lambda obs: obs[..., None]),
        (counted(H + 3, 9, 12), 4, lambda obs: obs[3:, ..., None]),  # frames that are held once each
    ],
)
def test_observations_that_are_images_are_shown(obs: Any, stack: int, expected: Any) -> None:
    both = pictures(pair(obs, stack=stack))
    assert both is not None
    np.testing.assert_array_equal(both[0], expected(obs))


def test_images_of_floats_share_one_scale() -> None:
    left, right = np.full((H, 8, 8, 3), 0.0), np.full((H, 8, 8, 3), 2.0)
    left[0] = 1.0
    both = pictures(pair(left, right))
    assert both is not None
    assert (both[0][0] == 127).all()
    assert (both[0][1] == 0).all()
    assert (both[1] == 255).all()
    flat = pictures(pair(np.ones((H, 8, 8, 3))))
    assert flat is not None
    assert (flat[0] == 0).all()


def test_vectors_are_lines_on_one_scale() -> None:
    left = np.arange(2.0 * H).reshape(H, 2)
    seen = view(pair(left, -left, steps=2))
    assert (seen["kind"], seen["hidden"]) == ("lines", 0)
    assert (seen["low"], seen["high"]) == ([-2.0, -3.0], [8.0, 9.0])  # of the steps that were taken
    assert seen["right"]["values"] == [[0.0, -1.0], [-2.0, -3.0]]
    long = view(pair(np.zeros((H, 100))))
    assert (len(long["left"]["values"][0]), long["hidden"]) == (LINES, 100 - LINES)


def test_what_is_not_finite_is_null() -> None:
    obs = np.zeros((H, 3))
    obs[1, 0], obs[:, 2] = np.nan, np.inf
    seen = view(pair(obs))
    assert seen["left"]["values"][1] == [None, 0.0, None]
    assert (seen["low"], seen["high"]) == ([0.0] * 3, [0.0] * 3)
    json.dumps(seen, allow_nan=False)


@pytest.mark.parametrize(
    ("obs", "row"), [(np.arange(H), [3]), (np.ones((H, 2), np.int8), [1, 1]), (np.ones((H, 2), bool), [1, 1])]
)
def test_whole_numbers_are_numbers(obs: Any, row: list[int]) -> None:
    seen = view(pair(obs))
    assert seen["kind"] == "numbers"
    assert seen["left"]["values"][3] == row
    json.dumps(seen)


def test_many_whole_numbers_are_lines() -> None:
    assert view(pair(np.ones((H, 17), int)))["kind"] == "lines"
