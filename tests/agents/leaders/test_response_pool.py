"""ResponsePool: search over x with every policy that was ever trained."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO

from benchmarks.worlds import deep_worlds
from bilevel_gym.agents import ResponsePool, leader_for, leader_return_at_best_response
from bilevel_gym.agents.followers.spec import AlgorithmSpec
from bilevel_gym.agents.leaders import response_pool
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP
from bilevel_gym.envs.tabular import TabularEnv

TWO = "bilevel_gym/TwoState-v0"
SMALL: dict[str, Any] = {"n_envs": 4, "fresh_steps": 256, "warm_steps": 128, "episodes": 4, "points": 64}


def threshold() -> gym.Env[Any, Any]:
    """The follower is paid x for the second action, which costs it 0.3; the leader earns 1 for it and pays x.

    Best is x just beyond 0.3; a gradient at 0 is 0.
    """
    P = torch.full((2, 2, 2), 0.5, dtype=torch.float64)
    second = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    base = TabularMDP(P, torch.zeros(2, 2), torch.full((2,), 0.5), gamma=0.9)
    problem = ArrayProblem(base, LeaderSet.box(1, 0.0, 1.0), lambda x: (x - 0.3) * second, lambda x: (1.0 - x) * second)
    return gym.wrappers.TimeLimit(TabularEnv(problem), 50)


@pytest.mark.parametrize("follower", [PPO, pytest.param(DQN, marks=pytest.mark.long)])
def test_it_crosses_a_threshold_that_a_gradient_does_not_see(follower: Any) -> None:
    settings: dict[str, Any] = {"n_envs": 16, "fresh_steps": 2_000, "warm_steps": 1_000, "episodes": 16, "points": 101}
    leader = ResponsePool(threshold, AlgorithmSpec(follower, SETTINGS[follower]), seed=1, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        leader.learn(20_000)
    # Just beyond the threshold; the pool's record there is exact, and the start is worth nothing.
    assert 0.3 < leader.x[0] < 0.36
    assert leader.evaluate_last().leader_return == pytest.approx(10.0 * (1.0 - 0.9**50) * (1.0 - leader.x[0]))
    problem: Any = leader.method.worlds.problem
    assert leader_return_at_best_response(problem, torch.from_numpy(leader.x), tau0=0.0) > 6.0
    assert leader_return_at_best_response(problem, torch.zeros(1), tau0=0.0) == 0.0


def test_the_search_goes_on_while_more_is_hoped_than_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of challenger find nothing, and still it searches if certainty must exceed hope."""
    settings: dict[str, Any] = {"n_envs": 16, "fresh_steps": 2_000, "warm_steps": 1_000, "episodes": 16, "points": 101}
    found = {}
    for gap in (response_pool.GAP, -10.0):
        monkeypatch.setattr(response_pool, "GAP", gap)
        leader = ResponsePool(threshold, AlgorithmSpec(PPO, SETTINGS[PPO]), seed=1, **settings)
        leader.learn(30_000)
        found[gap] = leader
    sure, never = found.values()
    assert (sure.finished, never.finished) == (True, False)
    assert never.num_timesteps > sure.num_timesteps + 2_000
    kinds = [response.kind for response in never.responses[-4:]]
    assert {"warm", "fresh"} == set(kinds)  # they take turns


SETTINGS: dict[Any, dict[str, Any]] = {
    PPO: {"n_steps": 32, "batch_size": 64, "learning_rate": 3e-3, "policy_kwargs": {"net_arch": []}},
    DQN: {"learning_starts": 64, "learning_rate": 1e-2, "gradient_steps": 4, "policy_kwargs": {"net_arch": []}},
}


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def small(seed: int = 0, **changes: Any) -> ResponsePool:
    return ResponsePool(TWO, A2C, seed=seed, **SMALL | changes)


def test_a_run_continues_bitwise_from_its_file(tmp_path: Path) -> None:
    whole, parts = small().learn(4_000), small()
    parts.learn(4_000, callback=lambda leader: leader.iteration < 3)
    assert parts.iteration == 3
    again = ResponsePool.load(parts.save(tmp_path / "pool.zip")).resume()
    np.testing.assert_array_equal(again.x, whole.x)
    assert again.finds == whole.finds
    assert [record.as_dict() for record in again.history] == [record.as_dict() for record in whole.history]
    assert again.num_timesteps == whole.num_timesteps


def test_the_plan_counts_the_steps_of_the_first_iterations() -> None:
    leader = small()
    plan = leader.plan(4_000)
    assert not plan.certain
    least = plan.least
    with pytest.raises(ValueError, match=f"at least {least}"):
        leader.learn(least - 1)
    leader.learn(least, callback=lambda leader: False)
    assert leader.num_timesteps == least


def test_it_says_that_the_budget_ended_early_and_ends_by_itself_otherwise() -> None:
    leader = ResponsePool(threshold, AlgorithmSpec(PPO, SETTINGS[PPO]), **SMALL | {"fresh_steps": 1_500})
    with pytest.warns(UserWarning, match="the budget ended before all kinds of challenger"):
        leader.learn(2_000)
    leader = small(near=1.0)
    leader.learn(50_000)
    assert leader.finished
    assert leader.num_timesteps < 20_000
    kinds = [response.kind for response in leader.responses]
    assert kinds[:3] == ["untrained", "fresh", "warm"]
    assert kinds[-1] == "fresh"
    spent, x = leader.num_timesteps, leader.x
    assert leader.resume().num_timesteps == spent
    np.testing.assert_array_equal(leader.x, x)
    leader.learn(50_000, reset_num_timesteps=False)
    assert leader.num_timesteps > spent


def test_it_says_that_no_follower_learned_anything() -> None:
    leader = ResponsePool(threshold, A2C, **SMALL, seed=0)
    leader.method._spec = AlgorithmSpec(A2C, {"learning_rate": 1e-9})
    with pytest.warns(UserWarning, match=r"follower: none of \d+ trained policies earns significantly more"):
        leader.learn(1_000)


def test_x_is_chosen_without_the_model_which_judges_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    leader = small()
    with monkeypatch.context() as patched:
        patched.setattr(response_pool, "leader_return_at_best_response", None)
        patched.setattr(response_pool, "judge", None)
        patched.setattr(type(leader.method.worlds), "model", property(lambda self: 1 / 0))
        leader.learn(700, callback=lambda leader: True)
    x = torch.from_numpy(leader.x)
    assert leader.evaluate().leader_return == leader_return_at_best_response(leader.method.worlds.problem, x)


class Hidden(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that hides the model."""


def test_where_no_model_is_known_new_followers_judge() -> None:
    leader = ResponsePool(lambda: Hidden(threshold()), A2C, **SMALL, evaluation_followers=2, evaluation_steps=64)
    leader.learn(1_500, callback=lambda leader: leader.iteration < 2)
    first, second = leader.evaluate(), leader.evaluate()
    assert first.evaluation_followers == 2
    assert first.evaluation_steps == leader.method.evaluation_cost(leader.state).first
    assert second.steps == first.steps + second.evaluation_steps
    assert first.leader_return_stderr >= 0.0
    assert first.follower_regret is not None
    assert first.follower_regret >= 0.0


def test_a_records_regret_is_that_of_what_the_belief_rested_on() -> None:
    leader = small().learn(3_000, callback=lambda leader: leader.iteration < 4)
    state, method = leader.state, leader.method
    x = state.trained[-1]
    record = method.evaluate(state, x, 7)
    F = method.pool(state).returns(x[None])[0][:, 0].mean(-1)
    far = [k for k, response in enumerate(state.responses) if abs(float(response.x - x)) > 0.05 * 4.0]
    assert 0 < len(far) < len(F)
    assert record.follower_regret == pytest.approx(float(F.max() - F[far].max()))
    assert method.evaluate(state, torch.tensor([1.234], dtype=torch.float64), 7).follower_regret is None


def test_it_refuses_x_in_the_dynamics_and_says_what_to_take() -> None:
    with pytest.raises(ValueError, match=r"env: expected an environment whose x enters rewards only.*PBRL"):
        ResponsePool("bilevel_gym/LQStackelberg-v0", PPO)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 1}, "episodes: expected at least 2"),
        ({"margin": -1.0}, "margin"),
        ({"near": 2.0}, "near"),
        ({"tail": 0.0}, "tail"),
        ({"keep_best": True}, "keep_best: expected False"),
        ({"learning_rate": 0.5}, "learning_rate: expected none"),
        ({"vec_env": "threads"}, "vec_env"),
    ],
)
def test_bad_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_it_draws_its_belief(tmp_path: Path) -> None:
    leader = small()
    with pytest.raises(ValueError, match="draw: expected a leader that has learned"):
        leader.draw()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        leader.learn(1_500)
    figure = leader.draw(tmp_path / "belief.png")
    assert (tmp_path / "belief.png").stat().st_size > 5_000
    drawn = figure.axes[0].get_lines()[1]
    x = torch.as_tensor(np.asarray(drawn.get_xdata()))[:, None]
    expected = leader.method.pool(leader.state).believe(leader.method.leader_set.project(x)).feared
    np.testing.assert_allclose(np.asarray(drawn.get_ydata()), expected)


@pytest.mark.long
@pytest.mark.parametrize("name", ["pendulum_0", "fishery_1", "fishery_3"])
def test_with_its_defaults_it_gains_most_of_what_can_be_gained(name: str) -> None:
    """From the start of the pendulum and of the third fishery a gradient sees nothing; the model is hidden."""
    world = deep_worlds()[name]
    leader = leader_for(world.make, PPO, x0=world.start).learn(460_000)
    assert isinstance(leader, ResponsePool)
    start = world.truth(world.start)
    assert (world.truth(leader.x) - start) / (world.best - start) > 0.8


def test_an_unbounded_X_is_refused_by_name() -> None:
    class Unbounded(Hidden):
        leader_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    with pytest.raises(ValueError, match=r"env: expected a leader_space with finite bounds.*got one in \[-inf, inf\]"):
        ResponsePool(lambda: Unbounded(threshold()), A2C)
