"""Both samplers against the tables they draw from."""

import gc
import weakref

import numpy as np
import pytest
import torch

from bilevel_gym.envs.mdp import random_stackelberg
from bilevel_gym.envs.tabular import (
    AliasSampler,
    Floats,
    InverseCdfSampler,
    TabularEnv,
    TabularVectorEnv,
    alias_tables,
)


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


def test_tables_made_some_rows_at_a_time_are_those_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    p, u = tables(50, 9, seed=3), np.random.default_rng(0).random(400)
    rows, whole = np.random.default_rng(1).integers(50, size=400), AliasSampler(p)
    for at_once in (1, 9, 63, 100):
        monkeypatch.setattr("bilevel_gym.envs.tabular.AT_ONCE", at_once)
        parts = AliasSampler(p)
        np.testing.assert_array_equal(parts.draw(rows, u), whole.draw(rows, u))
        assert parts.draw_one(int(rows[0]), float(u[0])) == whole.draw(rows, u)[0]


def test_simulators_of_one_problem_share_the_table_that_stays() -> None:
    problem, other = random_stackelberg(6, 2, 3, seed=0), random_stackelberg(6, 2, 3, seed=1)
    one, two, apart = TabularVectorEnv(problem, 4), TabularEnv(problem), TabularEnv(other)
    shared = one._tables.P.sampler
    assert shared is two._tables.P.sampler
    assert shared is not apart._tables.P.sampler
    kept = weakref.ref(shared)
    two.set_leader(problem.project(torch.ones(problem.leader_dim, dtype=torch.float64)).numpy())
    assert two._tables.P.sampler is kept()
    del one, two, shared
    gc.collect()
    assert kept() is None
