"""CMA-ES: the search keeps to X, counts its trials and steps, and finds known optima; files, seeds, the missing extra."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, SAC
from stable_baselines3.common.vec_env import VecEnv

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import CMAES, CMAESConfig, TabularCMAES, leader_return_at_best_response
from bilevel_gym.agents.baselines.cma_es import TabularCMAESConfig
from bilevel_gym.envs.mdp import LeaderSet, random_stackelberg
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import F64, PROBLEMS

pytest.importorskip("cma")
from bilevel_gym.agents.baselines.cma_es import Search

SMALL: dict[str, Any] = {"follower_steps": 256, "n_envs": 16, "rollout_envs": 8, "population": 4}


def small(follower: Any = A2C, env: Any = "bilevel_gym/TwoState-v0", seed: int | None = 0, **changes: Any) -> CMAES:
    return CMAES(env, follower, config=CMAESConfig(**(SMALL | changes)), seed=seed)


# --- the search ------------------------------------------------------------------------------------------------------


def test_the_search_keeps_to_x() -> None:
    """The best point of the box lies in a corner that the budget cuts off; one coordinate cannot move at all."""
    low, high = torch.tensor([-1.0, 0.0, 0.3], dtype=F64), torch.tensor([1.0, 5.0, 0.3], dtype=F64)
    leader_set = LeaderSet(low, high, budget=3.0)
    search = Search(leader_set, torch.tensor([0.0, 0.0, 0.3], dtype=F64), 0.2, None, [0])
    for _ in range(150):
        points = search.ask()
        assert all(leader_set.contains(x) for x in points)
        search.tell((points @ torch.tensor([1.0, 2.0, 5.0], dtype=F64)).tolist())
    np.testing.assert_allclose(search.mean.numpy(), [0.0, 2.7, 0.3], atol=1e-3)


def test_the_search_draws_from_its_own_generator() -> None:
    np.random.seed(0)
    expected = np.random.random(3)
    np.random.seed(0)
    means = [float(TabularCMAES(TwoStateProblem(), seed=seed).learn(5).last_x[0]) for seed in (0, 0, 1)]
    assert means[0] == means[1] != means[2]
    np.testing.assert_array_equal(np.random.random(3), expected)


def assert_same_search(one: Search, other: Search) -> None:
    """To the bit: also in the trials that come next."""
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.ask(), other.ask())


# --- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_it_arrives_at_the_two_state_optimum(gamma: float) -> None:
    problem = TwoStateProblem(gamma=gamma, tau=0.1)
    leader = TabularCMAES(problem, config=TabularCMAESConfig(keep_best=False), x0=[-1.0]).learn(60)
    best = problem.optimum(0.1)
    assert leader.x[0] == pytest.approx(float(best.x[0]), abs=1e-5)
    assert leader.evaluate().leader_return == pytest.approx(best.leader_return, rel=1e-9)
    assert leader.evaluations == 60 * 4


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_leader_learns(name: str) -> None:
    problem = PROBLEMS[name](2)
    leader = TabularCMAES(problem, config=TabularCMAESConfig(keep_best=False, eval_every=1000, tau=0.05)).learn(25)
    mean, rng = torch.from_numpy(leader.x), torch.Generator().manual_seed(0)
    assert problem.leader_set.contains(mean)
    others = problem.project(torch.rand((30, problem.leader_dim), generator=rng, dtype=F64) * 2.0 - 1.0)
    best_of_others = max(leader_return_at_best_response(problem, x, 0.05) for x in others)
    assert leader_return_at_best_response(problem, mean, 0.05) > best_of_others


def test_files_hold_the_mean_and_the_deviations(tmp_path: Path) -> None:
    game = random_stackelberg(3, 2, 2, gamma=0.5)
    leader = TabularCMAES(game, config=TabularCMAESConfig(population=6), seed=3).learn(10)
    path = leader.save(tmp_path / "search")
    loaded = TabularCMAES.load(path, game)
    assert loaded.evaluate() == leader.evaluate()
    assert loaded.evaluations == 60
    assert_same_search(loaded.search, leader.search)
    started = float(loaded.history[-1].leader_return)
    assert loaded.learn(10, reset_num_timesteps=False).evaluations == 120
    assert loaded.history[-1].leader_return > started - 0.1


# --- followers trained for every trial -------------------------------------------------------------------------------


def test_every_step_counts_and_the_last_trial_is_finished() -> None:
    leader = small()
    leader.learn(4000)
    horizon = math.ceil(math.log(0.05) / math.log(0.9))
    each = 256 + 8 * horizon  # A2C's rollouts of 8 steps in 16 copies fit 256
    assert leader.num_timesteps == leader.trials * each
    assert 4000 <= leader.num_timesteps < 4000 + each
    assert leader.iteration == math.ceil(leader.trials / 4)
    assert leader.evaluate().steps <= leader.num_timesteps
    before = leader.trials
    leader.learn(each, reset_num_timesteps=False)
    assert leader.trials == before + 1


def test_a_generation_that_is_cut_off_moves_nothing() -> None:
    leader = small()
    start = leader.last_x
    leader.learn(1952 + 700)  # a generation, and two of the next one's four trials
    assert leader.trials == 4 + 2
    assert leader.iteration == 2
    after = leader.last_x
    assert not np.array_equal(after, start)
    with pytest.raises(ValueError, match="total_timesteps: expected at least 1952 "):
        small().learn(1951)
    once = small()
    once.learn(1952)
    np.testing.assert_array_equal(once.last_x, after)


def test_a_trial_s_follower_knows_nothing_of_earlier_ones() -> None:
    """It is trained to answer x from scratch: its leader's return is that of the best response, whatever came before."""
    leader = small(follower_steps=4000, rollout_envs=64, rollout_tail=1e-3)
    problem = leader.worlds.problem
    assert problem is not None
    for x in (1.4, -0.5, 1.0):
        point = np.array([x])
        _, returns = leader.trial(leader.state, point, 4000)
        best = leader_return_at_best_response(problem, torch.from_numpy(point), 0.002)
        assert float(returns.mean()) == pytest.approx(best, abs=max(4.0 * returns.std() / 8.0, 0.25))


@pytest.mark.parametrize("seed", [0, 1])
def test_it_climbs(seed: int) -> None:
    """From a price of 1.3, at which the leader keeps 2, towards the best (6.6 at 0.77)."""
    config = CMAESConfig(**(SMALL | {"follower_steps": 1024, "low": 0.0, "keep_best": False}))
    leader = CMAES("bilevel_gym/TwoState-v0", A2C, config=config, seed=seed, x0=[1.3]).learn(20_000)
    assert leader.history[-1].leader_return > 4.0 > 2.5 > leader.history[0].leader_return


@pytest.mark.parametrize("algorithm", [A2C, DQN])
def test_one_seed_gives_one_result(algorithm: Any) -> None:
    def x(seed: int) -> float:
        return float(small(algorithm, seed=seed).learn(2000).last_x[0])

    first = x(1)
    assert x(1) == first != x(2)


class Wrapped(gym.Wrapper[Any, Any, Any, Any]):
    """Hides the model."""


def test_where_there_is_no_model_it_evaluates_by_one_more_trial() -> None:
    env = Wrapped(TabularEnv(random_stackelberg(3, 2, 2)))
    leader = small(env=gym.wrappers.TimeLimit(env, 30), evaluation_steps=512)
    assert leader.worlds.problem is None
    record = leader.learn(2500).evaluate()
    assert record.leader_return_stderr > 0.0
    assert leader.num_timesteps > leader.trials * (256 + 8 * 29)  # honest evaluation's steps are among them
    assert leader.trials <= 8


def test_files_of_sampled_leaders(tmp_path: Path) -> None:
    leader = small(seed=5).learn(4000)
    path = leader.save(tmp_path / "cma")
    loaded = CMAES.load(path)
    assert loaded.evaluate() == leader.evaluate()
    np.testing.assert_array_equal(loaded.last_x, leader.last_x)
    assert (loaded.trials, loaded.num_timesteps) == (leader.trials, leader.num_timesteps)
    assert_same_search(loaded.search, leader.search)
    assert loaded.learn(2000, reset_num_timesteps=False).num_timesteps >= leader.num_timesteps + 2000
    with pytest.raises(ValueError, match=r"^follower: expected .*A2C"):
        CMAES.load(path, DQN)
    with pytest.raises(ValueError, match=r"^env: expected the environment of"):
        CMAES.load(path, env=gym.make("bilevel_gym/TwoState-v0", cost=2.0))


def test_a_callable_has_to_be_given_again(tmp_path: Path) -> None:
    def build(venv: VecEnv) -> A2C:
        return A2C("MlpPolicy", venv, gamma=0.9, n_steps=4, seed=0)

    path = small(build).save(tmp_path / "cma")
    with pytest.raises(ValueError, match=r"^follower: expected the callable"):
        CMAES.load(path)
    assert CMAES.load(path, build).trials == 0


# --- bad arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TabularCMAESConfig, CMAESConfig])
@pytest.mark.parametrize(
    "kwargs",
    [{"sigma": 0.0}, {"sigma": math.nan}, {"population": 1}, {"population": 0}, {"learning_rate": 0.5}, {"eval_every": 0}],
)  # fmt: skip
def test_bad_settings_are_named(config: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(kwargs))}: expected "):
        config(**kwargs)


@pytest.mark.parametrize("name", ["follower_steps", "n_envs", "rollout_envs", "evaluation_steps", "rollout_tail"])
def test_bad_sizes_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        CMAESConfig(**dict[str, Any]({name: 0}))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^follower: expected an algorithm for"):
        small(SAC)
    with pytest.raises(ValueError, match=r"^config: "):
        CMAES("bilevel_gym/TwoState-v0", A2C, config=TabularCMAESConfig())
    with pytest.raises(ValueError, match=r"^env: expected an environment without action masks"):
        small(env=TabularEnv(PROBLEMS["terminal, masked"](0)))
    with pytest.raises(ValueError, match=r"^total_timesteps: "):
        small().learn(0)


def test_without_pycma_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    for make in (lambda: TabularCMAES(TwoStateProblem()), small):
        with pytest.raises(ImportError, match=r"bilevel-gym\[search\]"):
            make()


@pytest.mark.parametrize("config", [CMAESConfig, TabularCMAESConfig])
def test_a_search_that_cannot_be_made_is_refused(config: Any) -> None:
    for sigma in (1e308, 0.0, float("inf")):
        with pytest.raises(ValueError, match=r"^sigma: expected a number in \(0, 1000"):
            config(sigma=sigma)
    for population in (2**40, 10**6 + 1, 1):
        with pytest.raises(ValueError, match=r"^population: expected a number in \[2, 1000000\]"):
            config(population=population)
