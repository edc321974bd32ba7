"""Records where no model is known: the best of all policies at hand, an error that means something, and fresh draws each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO

from bilevel_gym.agents import CMAES, PBRL, Evaluation, PBRLConfig, Rollouts, leader_return_at_best_response
from bilevel_gym.agents.baselines.cma_es import CMAESConfig
from bilevel_gym.agents.leader import Leader
from bilevel_gym.agents.learned.answers import Answer, best_answer
from tests.agents.leaders.test_pbrl import Chase, ppo_for_chase

GAME = "bilevel_gym/StackelbergGame-v0"
SMALL: dict[str, Any] = {
    "n_envs": 8,
    "follower_steps": 64,
    "warmup_steps": 64,
    "estimator": Rollouts(n_envs=16),
    "evaluation_steps": 256,
}


class Hidden(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that changes nothing, but hides that the environment has a model."""


def hidden_game() -> Any:
    return Hidden(gym.make(GAME, n_states=5, seed=1))


# --- which answer is best, and how sure that is --------------------------------------------------------------------------


def answers(follower: list[float], leader: list[float], noise: float, seed: int, n: int = 400) -> list[Answer]:
    """Answers with these means, with noise of their own."""
    rng = np.random.default_rng(seed)
    made = []
    for k, (f, earned) in enumerate(zip(follower, leader, strict=True)):
        e = noise * rng.standard_normal((2, n))
        made.append(Answer(str(k), str(k), f + e[0], earned + e[1]))
    return made


def test_the_best_answer_is_what_the_follower_likes_best() -> None:
    given = answers([1.0, 3.0, 2.9], [50.0, 2.0, 2.2], 0.1, 0)
    found = best_answer(given, np.random.default_rng(0))
    assert found.best.name == "1"
    assert found.leader_return == pytest.approx(2.0, abs=0.05)
    assert found.leader_return_stderr == pytest.approx(
        0.2, abs=0.05
    )  # by the second, which the leader gets 0.2 more from
    for k, short in enumerate([2.0, 0.0, 0.1]):
        regret, stderr = found.regret(given[k])
        assert regret == pytest.approx(short, abs=0.05)
        assert stderr < 0.02


def test_no_regret_is_negative() -> None:
    for seed in range(20):
        given = answers([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], 1.0, seed, n=8)
        found = best_answer(given, np.random.default_rng(0))
        assert min(found.regret(answer)[0] for answer in given) == 0.0


def test_the_error_covers_the_noise_of_episodes() -> None:
    errors, returns = [], []
    for seed in range(200):
        found = best_answer(answers([1.0, 0.0], [2.0, 2.0], 1.0, seed, n=25), np.random.default_rng(seed))
        returns.append(found.leader_return)
        errors.append(found.leader_return_stderr)
    assert np.std(returns) == pytest.approx(0.2, rel=0.2)
    assert np.mean(np.abs(np.array(returns) - 2.0) < 2.0 * np.array(errors)) > 0.93


def test_where_two_answers_are_as_good_the_error_tells_what_the_leader_stands_to_lose() -> None:
    found = best_answer(answers([1.0, 1.0], [0.0, 6.0], 0.5, 0), np.random.default_rng(0))
    assert found.leader_return_stderr > 2.0


def test_two_ways_to_play_one_policy_are_no_two_answers() -> None:
    (one, other) = answers([1.0, 0.9], [2.0, 4.0], 0.001, 0)
    same = replace(other, source=one.source)
    assert best_answer([one, same], np.random.default_rng(0)).leader_return_stderr < 0.01
    assert best_answer([one, other], np.random.default_rng(0)).leader_return_stderr == pytest.approx(2.0, rel=0.01)


# --- records -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table", "continuous", "search"])
def test_three_calls_differ_and_say_what_they_cost(name: str) -> None:
    if name == "search":
        pytest.importorskip("cma")
        config = CMAESConfig(n_envs=8, rollout_envs=16, evaluation_steps=256, follower_steps=64)
        leader: Leader = CMAES(hidden_game(), A2C, config=config)
    else:
        env, spec = (hidden_game(), A2C) if name == "table" else (Chase, ppo_for_chase)
        leader = PBRL(env, spec, config=PBRLConfig(**SMALL, evaluation_followers=2))
    n_followers = 3 if name == "search" else 2
    first = leader.evaluate()
    before = leader.num_timesteps
    records = [leader.evaluate() for _ in range(3)]
    assert len({record.leader_return for record in [first, *records]}) == 4
    assert sum(record.evaluation_steps for record in records) == leader.num_timesteps - before
    for record in records:
        assert record.evaluation_followers == n_followers
        assert record.evaluation_steps >= n_followers * 256
        assert record.leader_return_stderr > 0.0
        assert record.follower_regret is None or record.follower_regret >= 0.0
        assert record.penalty is None or record.penalty >= 0.0
        assert record.best_answer != "exact"


@pytest.mark.parametrize("env", [Chase, hidden_game])
def test_one_seed_gives_the_same_records_and_a_file_goes_on_with_them(env: Any, tmp_path: Path) -> None:
    spec = ppo_for_chase if env is Chase else A2C
    leader = PBRL(env, spec, config=PBRLConfig(**SMALL, evaluation_followers=1)).learn(2_000)
    leader.evaluate()
    again = PBRL.load(leader.save(tmp_path / "leader.zip"), spec, env)
    second, third = leader.evaluate(), leader.evaluate()
    assert again.evaluate() == second
    assert again.evaluate() == third
    assert second.leader_return != third.leader_return


@pytest.mark.long
def test_the_truth_lies_within_the_error_and_more_followers_make_it_smaller() -> None:
    """A follower of a table whose algorithm has learned next to nothing; the truth is known, and hidden."""
    problem: Any = gym.make(GAME, n_states=5, seed=1).get_wrapper_attr("problem")
    rng, apart, errors = np.random.default_rng(0), [], []
    for k in range(4):
        x = torch.from_numpy(rng.uniform(-1.0, 1.0, size=problem.leader_dim))
        config = PBRLConfig(**SMALL | {"evaluation_steps": 2_000}, evaluation_followers=1 + 7 * (k % 2))
        leader = PBRL(hidden_game(), PPO, config=config, x0=x.numpy(), seed=k)
        record = leader.method.final(leader.state, leader.state.x.detach(), None, 0)
        truth = leader_return_at_best_response(problem, x, tau0=1e-5)
        apart.append(abs(record.leader_return - truth) / record.leader_return_stderr)
        errors.append(record.leader_return_stderr)
    assert max(apart) < 3.0
    assert errors[1] + errors[3] < errors[0] + errors[2]


def test_a_policy_that_the_leader_holds_can_be_the_best_answer() -> None:
    """Followers that are trained for 8 steps know nothing; the leader's own has been trained."""
    config = PBRLConfig(**SMALL | {"evaluation_steps": 8}, evaluation_followers=2)
    leader = PBRL(Chase, ppo_for_chase, config=config, x0=[0.8])
    leader.best_response.train(8_000, 8_000)
    record = leader.method.final(leader.state, leader.state.x.detach(), None, 0)
    assert record.best_answer == "best_response, greedily"
    assert record.follower_regret is not None
    assert record.penalty is not None
    assert 0.0 < record.follower_regret < 0.1 * record.penalty  # what its exploration costs


def test_x_is_chosen_by_the_return_less_its_error() -> None:
    leader = PBRL(Chase, ppo_for_chase, config=PBRLConfig(**SMALL))
    told = iter([(1.0, 0.1), (3.0, 2.5), (1.2, 0.1), (1.3, float("nan"))])

    def evaluate(state: Any, x: Any, iteration: int) -> Evaluation:
        value, stderr = next(told)
        return Evaluation(value, None, None, None, None, 0.0, 0, iteration, stderr)

    leader.method.evaluate = evaluate
    kept = []
    for x in (0.1, 0.2, 0.3, 0.4):
        with torch.no_grad():
            leader.state.x.fill_(x)
        leader._judge()
        kept.append(float(leader.x[0]))
    assert kept == [0.1, 0.1, 0.3, 0.4]


def test_what_is_told_in_the_end_did_not_choose_x() -> None:
    leader = PBRL(Chase, ppo_for_chase, config=PBRLConfig(**SMALL, evaluation_followers=1)).learn(2_000)
    assert leader.evaluate().leader_return not in {record.leader_return for record in leader.history}
