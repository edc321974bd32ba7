"""What a budget buys, as a leader says before it spends a step, against what learn then spends."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import (
    CMAES,
    DRLHF,
    PBRL,
    BellmanPenalty,
    Hypergradient,
    KnownModel,
    OptunaSearch,
    PreferencePBRL,
    Rollouts,
    SingleLoop,
    Sweep,
    TabularCMAES,
    TrueReward,
)
from bilevel_gym.agents.leader import Method
from bilevel_gym.agents.leaders.single_loop import SingleLoopMethod
from bilevel_gym.wrappers import LinearReward, ShapedReward

TWO, GAME, GRID, CART = (
    f"bilevel_gym/{name}-v0" for name in ("TwoState", "StackelbergGame", "RewardGrid", "ShapedCartPole")
)
ROLLOUTS = Rollouts(n_envs=4)
SMALL: dict[str, Any] = {"n_envs": 4, "follower_steps": 100, "warmup_steps": 300, "estimator": ROLLOUTS}
ASKED: dict[str, Any] = {
    "labels": 8,
    "first_labels": 4,
    "length": 5,
    "first_steps": 50,
    "first_epochs": 5,
    "epochs": 2,
    "follower_steps": 70,
    "n_envs": 4,
}


class Walk(gym.Env[Any, Any]):
    """A walk on a line towards 1, seen as a number."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.normal(0.0, 0.3, 1)
        return self.place.copy(), {}

    def step(self, action: Any) -> Any:
        self.place = 0.8 * self.place + 0.4 * int(action) + self.np_random.normal(0.0, 0.1, 1)
        return self.place.copy(), -abs(float(self.place[0]) - 1.0), False, False, {}


def paid(env: gym.Env[Any, Any], gamma: float) -> gym.Env[Any, Any]:
    """A leader pays for where the walk goes; no model is known, and no table can be counted."""
    payment = LinearReward(lambda obs, action, after: after[:1], size=1)
    return ShapedReward(env, payment, leader_reward=lambda step: -abs(float(step.next_obs[0])), gamma=gamma)


def unknown() -> gym.Env[Any, Any]:
    return paid(gym.wrappers.TimeLimit(Walk(), 8), 0.8)


def endless() -> gym.Env[Any, Any]:
    return paid(Walk(), 0.99)


def built(algorithm: Any, **kwargs: Any) -> Callable[[VecEnv], Any]:
    return lambda venv: algorithm("MlpPolicy", venv, policy_kwargs={"net_arch": [8]}, device="cpu", seed=0, **kwargs)


LEADERS: dict[str, tuple[Callable[[], Any], int]] = {
    "PBRL, A2C": (lambda: PBRL(TWO, A2C, **SMALL), 1_250),
    "PBRL, PPO, records every second iteration": (lambda: PBRL(TWO, PPO, **SMALL, eval_every=2), 2_000),
    "PBRL, DQN, whose rollouts are of seven steps": (
        lambda: PBRL(TWO, built(DQN, gamma=0.9, train_freq=7, learning_starts=10), **SMALL), 1_250),
    "PBRL, DQN, Bellman penalty": (lambda: PBRL(TWO, DQN, penalty=BellmanPenalty(), **SMALL), 1_250),
    "PBRL, the known model": (lambda: PBRL(GAME, A2C, **SMALL | {"estimator": KnownModel()}, env_kwargs={"n_states": 4}), 750),
    "PBRL, LQ, records cost episodes": (
        lambda: PBRL("bilevel_gym/LQStackelberg-v0", A2C, **SMALL, env_kwargs={"gamma": 0.8}), 1_875),
    "PBRL, a game": (lambda: PBRL("bilevel_gym/incentive_design_v0", A2C, **SMALL), 2_000),
    "PBRL, no model": (lambda: PBRL(unknown, A2C, **SMALL, evaluation_steps=20), 2_000),
    "PBRL, no model, records as often as asked": (lambda: PBRL(unknown, A2C, **SMALL, evaluation_steps=20, eval_every=1), 1_250),
    "PBRL, no model, no record": (lambda: PBRL(unknown, A2C, **SMALL, evaluation_steps=20_000), 1_000),
    "CMAES": (lambda: CMAES(TWO, A2C, population=3, n_envs=4, follower_steps=50, rollout_envs=2), 700),
    "CMAES, no model": (
        lambda: CMAES(unknown, A2C, population=2, n_envs=4, follower_steps=50, rollout_envs=2, evaluation_steps=50), 1_125),
    "Sweep": (lambda: Sweep(TWO, A2C, n_envs=4, follower_steps=50, rollout_envs=2), 700),
    "Sweep, warm starts, no model": (
        lambda: Sweep(unknown, PPO, n_envs=4, follower_steps=50, rollout_envs=2, warm_start=True), 700),
    "OptunaSearch": (lambda: OptunaSearch(TWO, A2C, n_envs=4, follower_steps=50, rollout_envs=2, startup_trials=2), 700),
    "OptunaSearch, DQN": (
        lambda: OptunaSearch(TWO, DQN, n_envs=4, follower_steps=50, rollout_envs=2, sampler="cmaes"), 700),
    "SingleLoop": (lambda: SingleLoop(TWO, env_kwargs={"tau": 0.3}, block=7, eval_every=13), 500),
    "PreferencePBRL": (lambda: PreferencePBRL(GRID, A2C, **ASKED), 1_000),
    "DRLHF": (lambda: DRLHF(GRID, PPO, **ASKED), 1_000),
    "DRLHF, off-policy": (lambda: DRLHF(GRID, DQN, **ASKED), 500),
    "TrueReward": (lambda: TrueReward(GRID, A2C, **ASKED), 500),
    "Hypergradient": (lambda: Hypergradient(TWO), 7),
    "TabularCMAES": (lambda: TabularCMAES(TWO), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", LEADERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_plan_is_what_learn_spends(name: str) -> None:
    make, total = LEADERS[name]
    leader = make()
    for share, afresh in ((1.0, True), (0.5, False)):  # a run, and one that goes on
        asked, before, gone = math.ceil(share * total), leader.num_timesteps, leader.iteration
        plan = leader.plan(asked, afresh)
        assert plan == leader.plan(asked, afresh)  # nothing is spent by asking
        assert (leader.num_timesteps, leader.iteration) == (before, gone)
        kept = len(leader.history)
        leader.learn(asked, reset_num_timesteps=afresh)
        made, records = leader.iteration - (0 if afresh else gone), len(leader.history) - (0 if afresh else kept)
        assert made - plan.iterations == (
            name.startswith("CMAES") and made > plan.iterations
        )  # a generation that is given up
        assert records == plan.records
        spent = leader.num_timesteps - (0 if afresh else before)
        assert spent == (plan.spent if plan.unit == "total_timesteps" else asked)
        assert plan.certain


def test_each_part_is_counted_where_it_is_spent() -> None:
    leader: Any = PBRL(TWO, A2C, **SMALL)
    rollout = leader.follower.model.n_steps * 4
    horizon = leader.worlds.horizon(0.05)
    plan: Any = leader.plan(10_000)

    def up(steps: int) -> int:
        return int(-(-steps // rollout) * rollout)

    assert plan.follower_steps == 2 * up(400) + (plan.iterations - 1) * 2 * up(100)
    assert plan.leader_steps == plan.iterations * 2 * 4 * horizon
    assert (plan.first_steps, plan.record.later, plan.evaluation_steps) == (0, 0, 0)
    # On-policy and off-policy followers, and preferences' random play in whole steps of all parallel environments.
    assert DRLHF(GRID, A2C, **ASKED).plan(1_000).first_steps == 52


# --- a budget that buys nothing -----------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[Callable[[], Any], int]] = {
    "no time limit": (lambda: PBRL(endless, A2C, n_envs=2, estimator=Rollouts(n_envs=2)), 4_000),
    "no time limit, by default": (lambda: PBRL(endless, A2C), 9_000),
    "long episodes": (lambda: PBRL("bilevel_gym/ShapedMountainCar-v0", PPO), 4_000),
    "records that are asked for": (lambda: PBRL(unknown, A2C, **SMALL, evaluation_steps=20_000, eval_every=10), 20_000),
    "questions": (lambda: DRLHF(GRID, A2C), 2_000),
    "questions of two followers": (lambda: PreferencePBRL(GRID, A2C), 6_000),
    "a generation": (lambda: CMAES(TWO, A2C), 80_000),
    "a trial": (lambda: Sweep(TWO, A2C), 60_000),
    "a trial of Optuna": (lambda: OptunaSearch(unknown, A2C, sampler="cmaes"), 60_000),
    "two blocks": (lambda: SingleLoop(TWO, env_kwargs={"tau": 0.3}), 99),
    "four players": (lambda: PBRL("bilevel_gym/incentive_design_v0", A2C), 9_000),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_budget_without_an_iteration_is_refused_before_anything_is_spent(name: str) -> None:
    make, total = REFUSED[name]
    leader = make()
    plan, start = leader.plan(total), leader.x
    pattern = rf"^total_timesteps: expected at least {plan.least} \(one iteration costs {plan.least:,} steps, .*\), got {total}$"
    with pytest.raises(ValueError, match=pattern):
        leader.learn(total)
    assert (leader.num_timesteps, leader.iteration, leader.history) == (0, 0, [])
    assert all(one.num_timesteps == 0 for one in models(leader))
    assert getattr(leader.state, "asking", None) is None or leader.asked == 0
    np.testing.assert_array_equal(leader.x, start)
    # The number that is named is the smallest one that is taken.
    leader.plan(plan.least).require_iteration()
    assert leader.plan(plan.least).iterations == 1
    with pytest.raises(ValueError, match=f"at least {plan.least} "):
        leader.plan(plan.least - 1).require_iteration()


def models(leader: Any) -> list[Any]:
    followers = getattr(leader.state, "followers", None)
    held = followers.values() if isinstance(followers, dict) else []
    return [getattr(one, "follower", one).model for one in held]


def test_the_smallest_budget_is_enough_to_move_x() -> None:
    leader = PBRL(TWO, A2C, **SMALL)
    least = leader.plan(1).least
    leader.learn(least)
    assert leader.iteration == 1
    assert leader.num_timesteps == leader.plan(least).spent or leader.warm


def test_what_is_left_of_a_run_may_be_less_than_an_iteration() -> None:
    leader = PBRL(TWO, A2C, **SMALL)
    leader.learn(3_000, callback=lambda leader: leader.iteration < 3)
    leader.learn(10, reset_num_timesteps=False)
    assert leader.iteration == 4


# --- records ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [30_000, 60_000, 200_000, 1_000_000, 10**8])
def test_records_take_at_most_a_third_where_nobody_says_how_many(total: int) -> None:
    leader = PBRL(unknown, A2C, **SMALL, evaluation_steps=5_000)
    plan = leader.plan(total)
    assert plan.evaluation_steps <= total / 3
    assert plan.spent - total < 2 * (plan.record.later + 2_000)
    assert plan.records == total // 3 // plan.record.later or plan.records > 0.6 * (total // 3 // plan.record.later)
    assert (plan.cadence.start, plan.cadence.end) == (plan.records > 1, plan.records > 0)


def test_a_cadence_that_is_asked_for_is_kept() -> None:
    leader = PBRL(unknown, A2C, **SMALL, evaluation_steps=5_000, eval_every=2)
    plan: Any = leader.plan(100_000)
    assert plan.cadence.every == 2
    assert plan.records == 1 + -(-plan.iterations // 2)
    assert plan.evaluation_steps > 100_000 / 3


def test_exact_leaders_keep_their_own() -> None:
    leader = Hypergradient(TWO).learn(25)
    assert [record.iteration for record in leader.history] == [0, 10, 20, 25]
    assert Hypergradient(TWO, eval_every=7).plan(25).cadence.every == 7


def test_a_run_that_is_finished_later_makes_the_records_that_were_planned(tmp_path: Any) -> None:
    path = tmp_path / "leader.zip"
    whole = PBRL(unknown, A2C, **SMALL, evaluation_steps=20)
    whole.learn(4_500, callback=lambda leader: leader.iteration != 2 or leader.save(path, replay=True) is not None)
    for finish in ("resume", "learn on"):  # what the command line does
        loaded = PBRL.load(path, env=unknown)
        assert (loaded.iteration, loaded.run.cadence) == (2, whole.run.cadence)
        if finish == "resume":
            loaded.resume()
        else:
            loaded.learn(4_500 - loaded.num_timesteps, reset_num_timesteps=False)
        assert loaded.history == whole.history
        np.testing.assert_array_equal(loaded.last_x, whole.last_x)
    assert len({record.iteration for record in whole.history}) == len(whole.history) > 2


# --- what is shown ------------------------------------------------------------------------------------------------------


def test_a_plan_reads_well() -> None:
    leader = PBRL(GAME, A2C, env_kwargs={"n_states": 5})
    plan = leader.plan(300_000)
    assert str(plan).splitlines() == [
        f"PBRL: 300,000 steps buy {plan.iterations} iterations",
        f"  followers' training        {plan.follower_steps:>14,} steps",
        f"  leader's own episodes      {plan.leader_steps:>14,} steps",
        f"  evaluation                              0 steps  ({plan.records} records from the model, which cost none)",
        f"  in all                     {plan.spent:>14,} steps",
    ]
    assert str(Hypergradient(TWO).plan(60)) == "Hypergradient: 60 iterations"
    costly = PBRL(CART, A2C)
    assert f"(no record: one costs {costly.plan(100_000).record.later:,}, more than a third of the budget)" in str(
        costly.plan(100_000)
    )
    assert str(DRLHF(GRID, A2C).plan(20_000)).splitlines()[1] == "  before the first iteration          2,048 steps"


def test_learn_shows_it_before_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    leader = SingleLoop(TWO, env_kwargs={"tau": 0.3})
    plan = str(leader.plan(1_000))
    leader.learn(1_000, progress_bar=True)
    assert plan in capsys.readouterr().err
    leader.learn(1_000)
    assert plan not in "".join(capsys.readouterr())


def test_algorithms_that_train_for_whole_episodes_spend_about_so_much() -> None:
    kwargs: dict[str, Any] = {"train_freq": (1, "episode"), "gamma": 0.95, "learning_starts": 10}
    spec = partial(DDPG, "MlpPolicy", policy_kwargs={"net_arch": [8]}, device="cpu", **kwargs)
    leader = PBRL("bilevel_gym/LQStackelberg-v0", spec, **SMALL | {"n_envs": 1}, env_kwargs={"gamma": 0.95})
    plan = leader.plan(30_000)
    assert not plan.certain
    assert f"30,000 steps buy about {plan.iterations} iterations" in str(plan)
    assert (
        PBRL("bilevel_gym/LQStackelberg-v0", built(SAC, gamma=0.95), **SMALL, env_kwargs={"gamma": 0.95})
        .plan(30_000)
        .certain
    )


def test_a_method_that_does_not_say_what_an_iteration_costs_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SingleLoopMethod, "iteration_steps", Method.iteration_steps)
    leader = SingleLoop(TWO, env_kwargs={"tau": 0.3})
    assert (leader.plan(5).iterations, str(leader.plan(5))) == (None, "SingleLoop: 5 steps")
    assert leader.learn(5).iteration == 1
