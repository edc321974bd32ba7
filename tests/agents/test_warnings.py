"""Runs that learn nothing warn: before them if their steps cannot cross X, or after them; runs that learn do not warn."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.logger import configure

from bilevel_gym.agents import (
    PBRL,
    Hypergradient,
    IndependentPolicyGradient,
    PBRLConfig,
    Rollouts,
    SingleLoop,
    TabularPBRL,
)
from bilevel_gym.agents.evaluation import Evaluation
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP
from bilevel_gym.envs.two_state import TwoStateProblem
from bilevel_gym.wrappers import Attribute, DrawnAttribute, LinearReward, ShapedReward

TWO, GAME = (f"bilevel_gym/{name}-v0" for name in ("TwoState", "StackelbergGame"))
SMALL: dict[str, Any] = {"n_envs": 16, "follower_steps": 100, "warmup_steps": 1_000, "estimator": Rollouts(n_envs=16)}
TINY: dict[str, Any] = {"n_envs": 4, "follower_steps": 100, "warmup_steps": 100, "estimator": Rollouts(n_envs=4)}
OWN = Path(__file__).parents[2] / "docs" / "own_environment.md"
STOP: Callable[[Any], bool] = lambda leader: False  # noqa: E731
OURS = ("x cannot cross X", "x ends where it began", "x may be no better")


def warned(run: Callable[[], Any]) -> list[str]:
    """The warnings of this kind that a run gives."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in found if str(one.message).startswith(OURS)]


def at_once(leader: Any) -> Any:
    """The leader, whose one iteration leaves x where it is and costs nothing: what is warned of is said before it."""
    leader.method.step = lambda state, progress: (state, {})
    leader.method.evaluate = lambda state, x, iteration: Evaluation(0.0, None, None, None, None, 0.0, 0, iteration)
    return leader


class Walk(gym.Env[Any, Any]):
    """A walk on a line, whose rewards are in some unit."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, unit: float = 1.0) -> None:
        self.unit, self.push = unit, 0.4

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.normal(0.0, 0.3, 1)
        return self.place.copy(), {}

    def step(self, action: Any) -> Any:
        self.place = 0.8 * self.place + self.push * int(action) + self.np_random.normal(0.0, 0.1, 1)
        return self.place.copy(), -self.unit * abs(float(self.place[0]) - 1.0), False, False, {}


def paid(unit: float) -> gym.Env[Any, Any]:
    """A leader that pays for the place, with all rewards and payments in one unit."""
    payment = LinearReward(lambda obs, action, after: after[:1], size=1)
    walk = gym.wrappers.TimeLimit(Walk(unit), 8)
    return ShapedReward(
        walk, payment, 0.8, -unit, unit, leader_reward=lambda step: -unit * abs(float(step.next_obs[0]))
    )


# --- before a run: its steps cannot cross X ------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e3, 1e6, 3e7])
def test_rewards_in_a_large_unit(unit: float) -> None:
    def run(total: int, **kwargs: Any) -> None:
        leader = PBRL(lambda: paid(unit), A2C, **TINY, evaluation_steps=10**6, **kwargs)
        at_once(leader).learn(total, callback=STOP)

    message, _ = warned(lambda: run(30_000))
    moved = float(re.search(r"move it by at most ([\d.e+]+), but X extends", message)[1])  # type: ignore[index]
    assert moved == pytest.approx(0.235 * unit)  # steps are shares of X, whatever its unit
    assert f"X extends {unit:.3g} from the initial x" in message
    assert "learning_rate=0.05" in message
    (message,) = warned(lambda: run(30_000, learning_rate=0.5))
    assert message.startswith("x ends where it began")  # in one iteration that does nothing


def test_an_exact_leader_and_an_attribute_of_a_large_unit() -> None:
    base = TabularMDP(torch.full((2, 2, 2), 0.5), torch.eye(2), torch.tensor([0.5, 0.5]), 0.9)
    tolls = ArrayProblem(base, LeaderSet.box(2, -1e4, 1e4), lambda x: base.r + x, lambda x: base.r - x.abs())
    (message, *_) = warned(lambda: TabularPBRL(tolls).learn(3))
    assert message.startswith("x cannot cross X: 3 steps of x")
    attribute = Attribute("push", 0.0, 5e3, std=0.1)

    def drawn() -> gym.Env[Any, Any]:
        return DrawnAttribute(gym.wrappers.TimeLimit(Walk(), 8), [attribute], 0.8)

    leader = at_once(PBRL(drawn, A2C, **TINY, evaluation_steps=10**6))
    (message, *_) = warned(lambda: leader.learn(20_000, callback=STOP))
    assert "but X extends 5e+03 from the initial x" in message


@pytest.mark.skipif(not OWN.is_file(), reason="the documentation is not here")
def test_the_room_of_the_documentation() -> None:
    blocks = re.findall(r"```python\n(.*?)```", OWN.read_text(encoding="utf-8"), re.DOTALL)
    page: dict[str, Any] = {}
    exec(next(block for block in blocks if "class HeatEnv" in block), page)
    config = PBRLConfig(n_envs=8, follower_steps=512, learning_rate=0.1, x_noise=0.4, evaluation_steps=20_000)

    def room() -> Any:
        return gym.wrappers.TimeLimit(page["HeatEnv"](), 50)

    leader = at_once(PBRL(room, A2C, config=config))
    totals = range(leader.plan(1).least, 100_000, 1_000)
    ten = next(total for total in totals if leader.plan(total).iterations == 10)
    message = "x cannot cross X: 10 steps of x move it by at most 0.5, but X extends 1 from the initial x."
    assert warned(lambda: leader.learn(ten, callback=STOP))[0].startswith(message)
    assert leader.plan(100_000).iterations * 0.05 > 0.75  # what the page tells its readers to run


def test_logits_need_not_cross_their_bounds() -> None:
    assert LeaderSet.box(1, -1.0, 1.0).scale == np.inf
    assert LeaderSet.box(1, -1.0, 1.0, 0.5).intersect(low=-0.1).scale == 0.5
    with pytest.raises(ValueError, match=r"^scale: expected a number in \(0"):
        LeaderSet.box(1, -1.0, 1.0, 0.0)
    for env in (GAME, "bilevel_gym/FourRooms-v0"):
        assert warned(partial(Hypergradient(env, learning_rate=0.1).learn, 16)) == []  # 1.6 of 10, and of 20
        (message,) = warned(partial(Hypergradient(env, learning_rate=0.1).learn, 14))
        assert message.startswith("x cannot cross X: 14 steps of x move it by at most 1.4")


# --- after a run ----------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_noise_has_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistic alone: 20 runs of 32 gradients from N(0, 1), and from N(1, 1)."""
    signals: dict[float, list[float]] = {0.0: [], 1.0: []}
    for seed in range(20):
        for mean, found in signals.items():
            leader, rng = SingleLoop(TWO, env_kwargs={"tau": 0.3}), np.random.default_rng(seed)

            def step(state: Any, progress: Any, mean: float = mean, rng: Any = rng) -> Any:
                state.x.grad = torch.from_numpy(rng.normal(mean, 1.0, 1))
                state.num_timesteps += 1
                return state, {}

            monkeypatch.setattr(leader.method, "step", step)
            leader.method.config = leader.config.__class__(eval_every=32)
            messages = warned(partial(leader.learn, 100, callback=lambda leader: leader.iteration < 32))
            found.append(float(leader.gradient_signal or 0.0))
            ends = [one for one in messages if one.startswith("x ends where it began")]
            assert ["are noise" in one for one in ends] == [found[-1] < 2.0]
    assert np.mean(np.array(signals[0.0]) < 2.0) > 0.6
    assert np.min(signals[1.0]) > 2.0


def test_a_leader_whose_reward_is_noise() -> None:
    rng = np.random.default_rng(0)

    def make() -> gym.Env[Any, Any]:
        payment = LinearReward(lambda obs, action, after: after[:1], size=1)
        walk = gym.wrappers.TimeLimit(Walk(), 8)
        return ShapedReward(walk, payment, 0.8, leader_reward=lambda step: float(rng.normal()))

    leader = PBRL(make, A2C, **SMALL, evaluation_steps=100, learning_rate=0.2, seed=1)
    (message,) = warned(lambda: leader.learn(6_000))
    assert message.startswith("x may be no better than its start: the estimates of its gradient are noise")
    assert leader.gradient_signal is not None
    assert leader.gradient_signal < 2.0


def test_a_run_that_ends_where_it_began(tmp_path: Path) -> None:
    unwanted: dict[str, Any] = {
        "low": 0.0,
        "high": 0.5,
        "env_kwargs": {"benefit": -3.0},
    }  # the best x is 0, the initial x
    sampled = PBRL(TWO, A2C, **SMALL, **unwanted, learning_rate=0.8)
    sampled.set_logger(configure(str(tmp_path), ["json"]))
    (message,) = warned(lambda: sampled.learn(6_000))
    assert message.startswith("x ends where it began: ")
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert rows[-1]["leader/moved"] == 0.0
    assert rows[-1]["leader/gradient_signal"] == sampled.gradient_signal
    exact = IndependentPolicyGradient(TWO, **unwanted)
    (message,) = warned(lambda: exact.learn(10))
    assert message.startswith(
        "x ends where it began: its gradient is 0 there, or points out of X. What may help: another"
    )
    np.testing.assert_array_equal(exact.x, [0.0])


def test_a_run_from_the_optimum() -> None:
    problem: Any = TwoStateProblem()
    leader = Hypergradient(TWO, x0=problem.optimum(0.1).x, learning_rate=0.5)
    (message,) = warned(lambda: leader.learn(6))
    assert message.startswith("x ends where it began: no later record is better than the first, although last_x is")
    assert leader.moved > 0.0


# --- runs that learn ------------------------------------------------------------------------------------------------------


LEARNS: dict[str, tuple[Callable[[], Any], int]] = {
    "TabularPBRL, TwoState": (lambda: TabularPBRL(TWO), 60),
    "TabularPBRL, a game": (lambda: TabularPBRL(GAME, env_kwargs={"n_states": 5}), 60),
    "Hypergradient, a game": (lambda: Hypergradient(GAME, env_kwargs={"n_states": 5}), 60),
    "PBRL, TwoState": (lambda: PBRL(TWO, A2C, **SMALL, low=0.0, high=1.5, learning_rate=0.1), 20_000),
    "PBRL, a game": (lambda: PBRL(GAME, A2C, **SMALL, learning_rate=0.15, env_kwargs={"n_states": 5}), 25_000),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name == "PBRL, a game" else []) for name in LEARNS],
)
def test_no_false_alarm(name: str) -> None:
    make, total = LEARNS[name]
    leader = make()
    assert warned(lambda: leader.learn(total)) == []
    assert leader.evaluate().leader_return > leader.history[0].leader_return + 0.1
