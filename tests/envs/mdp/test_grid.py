"""Maps: numbering, moves, slips."""

import pytest
import torch

from bilevel_gym.envs.mdp import GridMap


def test_moves_stop_at_walls_and_borders() -> None:
    grid = GridMap(["x  ", " x "])
    assert grid.cells.tolist() == [[0, 1], [0, 2], [1, 0], [1, 2]]
    assert grid.moves.tolist() == [[0, 1, 0, 0], [1, 1, 3, 0], [2, 2, 2, 2], [1, 3, 3, 3]]
    assert [grid.index(*cell) for cell in grid.cells.tolist()] == list(range(grid.n_cells))


def test_moves_slip_evenly_to_the_other_three() -> None:
    P = GridMap.open(3, 3).transition(0.7)
    assert torch.allclose(P.sum(-1), torch.ones(9, 4, dtype=torch.float64))
    assert torch.allclose(P[4, 0, [1, 5, 7, 3]], torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64))
    # in a corner, up and left both stay
    assert P[0, 0, 0].item() == pytest.approx(0.8)
    assert P[0, 1, 0].item() == pytest.approx(0.2)


@pytest.mark.parametrize("rows", [[], ["", ""], ["  ", " "], ["xx"]])
def test_a_map_that_is_none_is_named(rows: list[str]) -> None:
    with pytest.raises(ValueError, match="rows: expected"):
        GridMap(rows)


@pytest.mark.parametrize("cell", [(0, 0), (-1, 1), (0, 3)])
def test_a_wall_has_no_number(cell: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cell: expected a free cell"):
        GridMap(["x  "]).index(*cell)


def test_a_slip_is_a_probability() -> None:
    with pytest.raises(ValueError, match="intended"):
        GridMap(["  "]).transition(1.2)
