"""Both samplers against the tables they draw from."""

import numpy as np
import pytest

from bilevel_gym.envs.tabular import AliasSampler, Floats, InverseCdfSampler, alias_tables


def tables(rows: int, size: int, seed: int) -> Floats:
    """Random distributions with zeros; the first row is a point mass."""
    rng = np.random.default_rng(seed)
    p = rng.exponential(size=(rows, size)) * (rng.random((rows, size)) < 0.6)
    p[:, -1] += 1e-3
    p[0] = 0.0
    p[0, size // 2] = 1.0
    normalised: Floats = p / p.sum(1, keepdims=True)
    return normalised


@pytest.mark.parametrize("size", [1, 2, 5, 17, 100])
def test_alias_tables_give_back_the_probabilities(size: int) -> None:
    p = tables(30, size, seed=size)
    keep, alias = alias_tables(p)
    back = keep.copy()
    for row in range(len(p)):
        np.add.at(back[row], alias[row], 1.0 - keep[row])
    np.testing.assert_allclose(back / size, p, atol=1e-14)


@pytest.mark.parametrize("size", [1, 3, 8, 13])
@pytest.mark.parametrize("sampler", [AliasSampler, InverseCdfSampler])
def test_draws_split_the_unit_interval_in_proportion(
    sampler: type[AliasSampler | InverseCdfSampler], size: int
) -> None:
    p = tables(4, size, seed=7)
    u = (np.arange(40_000) + 0.5) / 40_000  # on an even grid the share of k is p[k], up to the ends of its intervals
    chosen = sampler(p)
    for row in range(len(p)):
        k = chosen.draw(np.full(u.shape, row), u)
        np.testing.assert_allclose(np.bincount(k, minlength=size) / len(u), p[row], atol=2 * size / len(u))
        assert not np.isin(k, np.flatnonzero(p[row] == 0)).any()
        assert [chosen.draw_one(row, float(v)) for v in u[::997]] == k[::997].tolist()


def test_the_inverse_cdf_is_monotone_at_the_ends() -> None:
    p = np.array([[0.0, 0.25, 0.75, 0.0]])
    u = np.array([0.0, 0.25, np.nextafter(1.0, 0.0)])
    assert InverseCdfSampler(p).draw(np.zeros(3, dtype=np.int64), u).tolist() == [1, 2, 2]
