"""The verbs that exact leaders share: learning on, schedules, X, the best x, records and logs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure
from torch import Tensor

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import (
    HPGD,
    BellmanPenalty,
    Geometric,
    HPGDConfig,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    Linear,
    SoBiRL,
    SoBiRLConfig,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    ZeroOrder,
    leader_return_at_best_response,
)
from bilevel_gym.agents.baselines.independent_policy_gradient import IndependentPolicyGradientConfig
from bilevel_gym.agents.baselines.zero_order import ZeroOrderConfig
from bilevel_gym.agents.config import LeaderConfig
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.agents.held_policies import Direct, Softmax
from bilevel_gym.agents.leader import projected_step
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    LeaderSet,
    TabularProblem,
    policy_return,
    random_stackelberg,
    solve_soft,
    start_value,
)
from bilevel_gym.envs.mdp.simplex import project_simplex
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import F64, PROBLEMS, random_mdp, true_value_penalty

Make = Callable[..., ExactLeader]
LEADERS: dict[str, tuple[Make, Callable[..., LeaderConfig]]] = {
    "PBRL": (TabularPBRL, TabularPBRLConfig),
    "hypergradient": (Hypergradient, HypergradientConfig),
    "tracked hypergradient": (SoBiRL, SoBiRLConfig),
    "independent": (IndependentPolicyGradient, IndependentPolicyGradientConfig),
    "HPGD": (HPGD, HPGDConfig),
    "zero order": (ZeroOrder, ZeroOrderConfig),
}


def make(name: str, problem: Any = None, x0: Any = None, env_kwargs: Any = None, **config: Any) -> ExactLeader:
    cls, config_class = LEADERS[name]
    problem = TwoStateProblem() if problem is None else problem
    return cls(problem, config=config_class(**config), x0=x0, env_kwargs=env_kwargs)


# --- counting, schedules, callbacks ------------------------------------------------------------------------------


def test_schedules_run_over_the_iterations_and_over_the_sum_when_learning_goes_on() -> None:
    tau, rate, lam = Geometric(0.5, 0.01), Linear(0.1, 0.01), Geometric(1.0, 10.0)
    config = TabularPBRLConfig(tau=tau, learning_rate=rate)
    leader, seen = TabularPBRL(TwoStateProblem(), penalty=ValuePenalty(lam), config=config), []

    def watch(_: Any) -> None:
        seen.append((leader.num_timesteps, leader.tau, leader.optimizer.param_groups[0]["lr"], leader.lam))

    leader.learn(6, watch).learn(4, watch, reset_num_timesteps=False).learn(2, watch)
    progress = [1 - k / 6 for k in range(6)] + [1 - k / 10 for k in range(6, 10)] + [1.0, 0.5]
    assert [row[0] for row in seen] == [*range(1, 11), 1, 2]
    np.testing.assert_allclose([row[1:] for row in seen], [(tau(p), rate(p), lam(p)) for p in progress], rtol=1e-14)


@pytest.mark.parametrize("name", LEADERS)
def test_a_callback_that_returns_false_stops_and_nothing_else_does(name: str) -> None:
    leader, answers = make(name), iter([None, True, 0, False, None])
    leader.learn(10, callback=lambda _: next(answers))
    assert leader.num_timesteps == leader.iteration == 4
    assert leader.history[-1].iteration == 4
    leader.learn(3, reset_num_timesteps=False)
    assert leader.num_timesteps == 7
    leader.learn(3)
    assert leader.num_timesteps == 3


@pytest.mark.parametrize("name", LEADERS)
def test_learning_is_deterministic_and_returns_the_leader(name: str) -> None:
    problem = PROBLEMS["terminal, masked"](0)
    first, second = (make(name, problem) for _ in range(2))
    assert first.learn(12) is first
    second.learn(12, progress_bar=True)
    np.testing.assert_array_equal(first.last_x, second.last_x)
    assert first.evaluate() == second.evaluate()


@pytest.mark.parametrize("iterations", [0, -3, 1.5, True])
@pytest.mark.parametrize("name", LEADERS)
def test_a_bad_number_of_iterations_is_named(name: str, iterations: Any) -> None:
    with pytest.raises(ValueError, match=r"^num_iterations: expected a whole number >= 1"):
        make(name).learn(iterations)


# --- x, X and the best x -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEADERS)
def test_x_is_the_best_of_the_honest_records(name: str) -> None:
    leader = make(name, eval_every=3, learning_rate=0.4, keep_best=True, x0=[0.5])
    xs: dict[int, Any] = {0: np.array([0.5])}
    leader.learn(20, callback=lambda one: xs.update({one.iteration: one.last_x}))
    assert [record.iteration for record in leader.history] == [0, 3, 6, 9, 12, 15, 18, 20]
    best = max(leader.history, key=lambda record: record.leader_return)
    assert leader.evaluate() == best
    np.testing.assert_array_equal(leader.x, xs[best.iteration])
    np.testing.assert_array_equal(leader.last_x, xs[20])
    last = make(name, eval_every=3, learning_rate=0.4, keep_best=False, x0=[0.5]).learn(20)
    np.testing.assert_array_equal(last.x, last.last_x)
    np.testing.assert_array_equal(last.x, leader.last_x)
    assert last.evaluate() == leader.history[-1]


@pytest.mark.parametrize("name", LEADERS)
def test_x_is_a_copy(name: str) -> None:
    start = np.array([0.5])
    leader = make(name, x0=start)
    start[0] = leader.x[0] = leader.last_x[0] = 2.0
    assert leader.x.tolist() == leader.last_x.tolist() == [0.5]
    leader.learn(2)
    x, last = leader.x, leader.last_x
    x[0] = last[0] = -7.0
    assert -7.0 not in (leader.x[0], leader.last_x[0])


@pytest.mark.parametrize("name", LEADERS)
def test_the_start_is_zero_projected_on_x(name: str) -> None:
    assert make(name).x.tolist() == [0.0]
    assert make(name, low=0.25).x.tolist() == [0.25]
    game = random_stackelberg(3, 2, 2)
    assert make(name, game).x.tolist() == [0.0] * 6
    assert make(name, game, low=[0.0] * 5 + [1.0], budget=1.0).x.tolist() == [0.0] * 5 + [1.0]


@pytest.mark.parametrize("name", LEADERS)
def test_x_stays_within_bounds_and_budget(name: str) -> None:
    problem = random_stackelberg(4, 2, 2, gamma=0.5, sparsity=0.0)
    low, high = np.linspace(-0.5, 0.1, 8), np.linspace(0.3, 0.9, 8)
    leader = make(name, problem, low=low, high=high, budget=1.0, learning_rate=0.5, eval_every=1000)
    xs: list[Any] = []
    leader.learn(40, callback=lambda one: xs.append(one.last_x))
    x = np.array(xs)
    assert bool(((x >= low) & (x <= high)).all())
    assert float(np.abs(x).sum(-1).max()) <= 1.0 + 1e-12
    assert float(np.abs(x[-1]).sum()) > 0.9  # the cut matters
    assert problem.leader_set.contains(leader.state.x.detach())


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_within_a_budget_the_leader_arrives_at_the_optimum(optimizer: type[torch.optim.Optimizer]) -> None:
    """max -sum_i w_i (x_i - 1)^2 s.t. sum |x_i| <= 1: x = 1 - t/w, clipped at 0; by hand (10/13, 3/13, 0).

    All slopes point out of X here: an optimiser that rescales them (Adam) would stay at (1/3, 1/3, 1/3).
    """
    base, weights = random_mdp(0, gamma=0.0), torch.tensor([10.0, 3.0, 1.0], dtype=F64)

    def reward(x: Tensor) -> Tensor:
        return torch.zeros_like(base.r) - (weights * (x - 1.0).square()).sum()

    problem = ArrayProblem(base, LeaderSet.box(3, -2.0, 2.0), lambda x: base.r, reward)
    config = HypergradientConfig(
        budget=1.0, learning_rate=Geometric(0.05, 1e-4), tau=0.1, optimizer_class=optimizer, keep_best=False
    )
    leader = Hypergradient(problem, config=config).learn(400)
    np.testing.assert_allclose(leader.last_x, [10 / 13, 3 / 13, 0.0], atol=1e-3)


@pytest.mark.parametrize(("optimizer", "decay"), [(torch.optim.Adam, 0.99), (torch.optim.SGD, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_projected_steps_arrive_on_a_simplex(seed: int, optimizer: Any, decay: float) -> None:
    """The nearest point of the simplex to z is its projection; the slopes are far from zero in every entry."""
    z = 0.5 * torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=F64)
    y = torch.full((5,), 0.2, dtype=F64, requires_grad=True)
    descent = optimizer([y], lr=0.04)
    for _ in range(500):
        descent.zero_grad()
        ((y - z).square().sum() - 100.0 * y.sum()).backward()
        projected_step(descent, [project_simplex])
        descent.param_groups[0]["lr"] *= decay
    torch.testing.assert_close(y.detach(), project_simplex(z), rtol=0.0, atol=1e-6)


def test_the_optimiser_is_an_argument() -> None:
    config = TabularPBRLConfig(
        optimizer_class=torch.optim.SGD, optimizer_kwargs={"momentum": 0.9}, follower=Softmax(0.5), learning_rate=0.01
    )
    leader = TabularPBRL(random_stackelberg(3, 2, 2), config=config).learn(5)
    assert isinstance(leader.optimizer, torch.optim.SGD)
    assert [(g["lr"], g["momentum"]) for g in leader.optimizer.param_groups] == [(0.01, 0.9), (0.5, 0.9)]


# --- evaluation and logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Stackelberg", "terminal, masked", "contexts", "reward"])
@pytest.mark.parametrize("penalty", [ValuePenalty(5.0), BellmanPenalty(5.0)])
def test_the_record_is_what_it_says(name: str, penalty: ValuePenalty | BellmanPenalty) -> None:
    problem = PROBLEMS[name](2)
    config = TabularPBRLConfig(follower=Direct(), tau=Geometric(0.3, 0.1), keep_best=False)
    leader = TabularPBRL(problem, penalty=penalty, config=config).learn(7)
    record, x = leader.evaluate(), torch.from_numpy(leader.x)
    assert (record.iteration, record.lam, record.tau, record.steps) == (7, 5.0, leader.tau, 0)
    mdp = problem.follower_mdp(x)
    assert leader.held is not None
    pi_y = leader.held.ys[0].detach()
    assert record.leader_return == pytest.approx(leader_return_at_best_response(problem, x), rel=1e-11)
    honest = problem.leader_return(x, solve_soft(mdp, problem.tau0).pi)
    assert record.leader_return == pytest.approx(float(honest), rel=1e-11)
    assert record.leader_return_at_pi_y == pytest.approx(float(problem.leader_return(x, pi_y)), rel=1e-12)
    gap = start_value(mdp, solve_soft(mdp, leader.tau).V) - policy_return(mdp, pi_y, leader.tau)
    assert record.penalty == pytest.approx(float(problem.over_contexts(gap)), rel=1e-9)
    (answer,) = leader.answers
    short = problem.over_contexts(true_value_penalty(mdp, answer.pi, leader.tau))
    assert record.gap == record.follower_regret == pytest.approx(float(short), rel=1e-6, abs=1e-12)
    assert 0.0 < float(short) < record.penalty


def test_ties_can_be_broken_for_the_leader_or_against_it() -> None:
    """At k - gamma c the two-state follower is indifferent."""
    problem = TwoStateProblem()
    x = torch.tensor([problem.cost - problem.gamma * problem.bonus], dtype=F64)
    best = float((problem.benefit - x[0]) / (1 - problem.gamma))
    for tie, share in ((1e-3, 1.0), (-1e-3, 0.0), (0.0, 0.5)):
        value = leader_return_at_best_response(problem, x, tau0=1e-5, tie=tie)
        assert value == pytest.approx(share * best, abs=1e-6)
    with pytest.raises(ValueError, match=r"^tau0: "):
        leader_return_at_best_response(problem, x, tau0=-1.0)
    with pytest.raises(ValueError, match=r"^x: expected a point of X"):
        leader_return_at_best_response(problem, x + 5.0)


def test_evaluating_an_untrained_leader() -> None:
    problem = TwoStateProblem()
    for name in LEADERS:
        leader = make(name, problem, x0=[0.6])
        assert leader.evaluate().leader_return == pytest.approx(
            leader_return_at_best_response(problem, torch.tensor([0.6], dtype=F64)), rel=1e-12
        )


def test_logs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    leader = TabularPBRL(random_stackelberg(4, 2, 2), config=TabularPBRLConfig(eval_every=2))
    leader.set_logger(configure(str(tmp_path), ["csv", "json", "tensorboard"]))
    leader.learn(5)
    expected = [record.leader_return for record in leader.history]
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([float(row["leader/leader_return"]) for row in rows], expected, rtol=1e-12)
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    np.testing.assert_allclose([line["leader/leader_return"] for line in lines], expected, rtol=1e-12)
    assert [line["leader/iteration"] for line in lines] == [0, 2, 4, 5]
    assert {"leader/follower_regret", "leader/tau", "leader/lam", "leader/penalty", "leader/stationarity"} <= set(
        lines[1]
    )
    assert any(path.name.startswith("events.out.tfevents") for path in tmp_path.iterdir())


# --- problems in every dress, and bad configs --------------------------------------------------------------------


class Renamed(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that shows a problem of its own."""

    def __init__(self, env: gym.Env[Any, Any], problem: TabularProblem) -> None:
        super().__init__(env)
        self.problem = problem


@pytest.mark.parametrize("name", LEADERS)
def test_a_problem_is_a_problem_an_environment_or_an_id(name: str) -> None:
    kwargs: dict[str, Any] = {"gamma": 0.7, "tau": 0.2}
    env = gym.make("bilevel_gym/TwoState-v0", **kwargs)
    xs = [
        make(name, TwoStateProblem(**kwargs)).learn(3).last_x,
        make(name, env).learn(3).last_x,
        make(name, gym.wrappers.TimeLimit(env, 5)).learn(3).last_x,
        make(name, "bilevel_gym/TwoState-v0", env_kwargs=kwargs).learn(3).last_x,
        make(name, Renamed(gym.make("bilevel_gym/TwoState-v0"), TwoStateProblem(**kwargs))).learn(3).last_x,
    ]
    assert len({x.tobytes() for x in xs}) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": Linear(0.1, 0.0)}, "learning_rate"),
        ({"optimizer_class": "Adam"}, "optimizer_class"),
        ({"optimizer_class": torch.nn.Linear}, "optimizer_class"),
        ({"eval_every": 0}, "eval_every"),
        ({"eval_every": 2.5}, "eval_every"),
        ({"budget": -1.0}, "budget"),
        ({"budget": math.nan}, "budget"),
    ],
)
@pytest.mark.parametrize("name", LEADERS)
def test_bad_configs_are_named(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}: expected "):
        make(name, **kwargs)


@pytest.mark.parametrize("floor", [-0.1, 0.5, math.nan])
def test_a_bad_floor_is_named(floor: float) -> None:
    with pytest.raises(ValueError, match=r"^floor: expected "):
        Direct(floor=floor)


def test_a_floor_must_leave_room() -> None:
    config = TabularPBRLConfig(follower=Direct(floor=0.01))
    with pytest.raises(ValueError, match=r"^floor: expected at most 1/101"):
        TabularPBRL(random_stackelberg(1, 1, 101), config=config)
