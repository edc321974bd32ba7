"""Defaults do not depend on the unit in which rewards come: the same x for rewards times any number, in every exact leader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.worlds import fishery
from bilevel_gym.agents import (
    HPGD,
    BellmanPenalty,
    HPGDConfig,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    MetaGradient,
    MirrorDescent,
    MonteCarlo,
    NikaidoIsodaPenalty,
    PolicyGradient,
    SingleLoop,
    SingleLoopConfig,
    SoBiRL,
    TabularCMAES,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    ZeroOrder,
)
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.envs.four_rooms import FourRoomsProblem
from bilevel_gym.envs.goal_placement import GoalPlacementProblem
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    GameProblem,
    LeaderSet,
    SparseMDP,
    TabularMDP,
    TabularProblem,
    TollDesignProblem,
    ZeroSumGame,
    random_city,
    random_incentive_design,
    random_stackelberg,
    solve_soft,
)
from bilevel_gym.envs.reward_grid import RewardGridProblem
from tests.problems import F64

UNITS = (1e-3, 7.0, 1e3)


class Times(TabularProblem):
    """A problem in another unit: both players' rewards, and the temperature that the problem states, times a number."""

    batched_kernel: ClassVar[bool] = True

    def __init__(self, problem: Any, factor: float) -> None:
        self.base, self.factor, self.tau = problem, factor, factor * problem.tau
        self.leader_set, self.context_probs = problem.leader_set, problem.context_probs

    def start_x(self) -> Tensor:
        return self.base.start_x()  # type: ignore[no-any-return]

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        mdp = self.base.follower_mdp(x)
        return mdp.with_reward(self.factor * mdp.r)  # type: ignore[no-any-return]

    def leader_reward(self, x: Tensor) -> Tensor | None:
        reward = self.base.leader_reward(x)
        return None if reward is None else self.factor * reward

    def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
        if self.base.leader_reward(x) is None:
            return self.factor * self.base.leader_return(x, pi)  # type: ignore[no-any-return]
        return super().leader_return(x, pi)

    def occupancy_return(self, x: Tensor, occupancy: Tensor) -> Tensor:
        return self.factor * self.base.occupancy_return(x, occupancy)  # type: ignore[no-any-return]


class GameTimes(GameProblem):
    """A problem over a zero-sum game in another unit."""

    def __init__(self, problem: Any, factor: float, tau: float | None = None) -> None:
        self.base, self.factor, self.tau = problem, factor, factor * (problem.tau if tau is None else tau)
        self.leader_set = problem.leader_set

    def game(self, x: Tensor) -> ZeroSumGame:
        game = self.base.game(x)
        return replace(game, r=self.factor * game.r, validate=False)  # type: ignore[no-any-return]

    def leader_return(self, x: Tensor, pi: tuple[Tensor, Tensor]) -> Tensor:
        return self.factor * self.base.leader_return(x, pi)  # type: ignore[no-any-return]


def sparse(factor: float) -> ArrayProblem:
    """The fishery with a sparse P."""
    from scipy.sparse import csr_array

    problem = fishery()
    base = problem.base
    P = csr_array(base.P.reshape(-1, base.n_states).numpy())
    mdp = SparseMDP(P, base.r, base.rho, base.gamma)
    rewards: list[Any] = [
        lambda x: factor * problem.follower_mdp(x).r,
        lambda x: factor * problem.leader_reward(x),
    ]
    return ArrayProblem(mdp, problem.leader_set, rewards[0], rewards[1])


def stackelberg(factor: float) -> Any:
    game = random_stackelberg(6, 3, 3, seed=1, tau=0.0)
    return replace(game, r_leader=factor * game.r_leader, r_follower=factor * game.r_follower)


GAME = random_incentive_design(3, 2, 3)
PROBLEMS: dict[str, Callable[[float], Any]] = {
    "fishery": lambda factor: fishery(unit=factor),
    "fishery, sparse": sparse,
    "Stackelberg": stackelberg,
    "toll": lambda factor: Times(TollDesignProblem(random_city(8), tau=0.3, revenue_weight=0.1), factor),
    "Four Rooms": lambda factor: Times(FourRoomsProblem(0.003, 3.0), factor),
    "goal": lambda factor: Times(GoalPlacementProblem(3), factor),
    "game": lambda factor: GameTimes(GAME, factor),
    "game at tau = 0": lambda factor: GameTimes(GAME, factor, 0.0),
    "rewards that x alone pays": lambda factor: Times(RewardGridProblem(3), factor),
}
ONE = ("fishery", "fishery, sparse", "Stackelberg", "toll", "Four Rooms")
GAMES = ("game", "game at tau = 0")

Make = Callable[[Any], Any]
EVERY = {"eval_every": 5}
LEADERS: dict[str, tuple[Make, tuple[str, ...], int]] = {
    "PBRL": (TabularPBRL, (*ONE, *GAMES, "goal", "rewards that x alone pays"), 6),
    "PBRL, value, softmax": (
        lambda p: TabularPBRL(p, penalty=ValuePenalty(), follower=Softmax()), ("fishery", "Stackelberg"), 6
    ),
    "PBRL, Bellman": (lambda p: TabularPBRL(p, penalty=BellmanPenalty()), ("Stackelberg", "toll", "goal"), 6),
    "PBRL, Nikaido-Isoda": (lambda p: TabularPBRL(p, penalty=NikaidoIsodaPenalty()), GAMES[:1], 6),
    "PBRL, mirror descent": (lambda p: TabularPBRL(p, oracle=MirrorDescent()), ("fishery", "toll"), 6),
    "PBRL, policy gradient": (lambda p: TabularPBRL(p, oracle=PolicyGradient()), ("fishery", "Stackelberg"), 6),
    "PBRL, Monte Carlo": (
        lambda p: TabularPBRL(p, config=TabularPBRLConfig(estimator=MonteCarlo())), ("fishery", "Stackelberg"), 6
    ),
    "hypergradient": (Hypergradient, (*ONE, "game", "game at tau = 0", "goal"), 6),
    "SoBiRL": (SoBiRL, ("fishery", "Stackelberg", "toll"), 6),
    "independent": (IndependentPolicyGradient, ("Stackelberg", "Four Rooms"), 6),
    "meta-gradient": (MetaGradient, ("fishery", "Stackelberg", "game"), 6),
    "HPGD": (lambda p: HPGD(p, config=HPGDConfig(episodes=2)), ("Stackelberg",), 6),
    "zero order": (ZeroOrder, ("fishery", "Stackelberg", "toll"), 6),
    "CMA-ES": (TabularCMAES, ("fishery", "Stackelberg"), 2),
    "single loop": (lambda p: SingleLoop(p, config=SingleLoopConfig(eval_every=5)), ("goal",), 800),
}  # fmt: skip
CASES = [(leader, problem) for leader, (_, problems, _) in LEADERS.items() for problem in problems]
ALL_UNITS = [(leader, "fishery", unit) for leader in ("PBRL", "hypergradient") for unit in UNITS[1:]]


@cache
def learned(leader: str, problem: str, unit: float) -> tuple[np.ndarray, np.ndarray, Any]:
    """What a leader ends at: its last x, the x that it returns, and the record of that."""
    make, _, iterations = LEADERS[leader]
    made = make(PROBLEMS[problem](unit)).learn(iterations)
    return made.last_x, made.x, made.evaluate()


@pytest.mark.parametrize(
    ("leader", "problem", "unit"), [(*case, UNITS[i % 3]) for i, case in enumerate(CASES)] + ALL_UNITS
)
def test_the_unit_of_rewards_moves_no_x(leader: str, problem: str, unit: float) -> None:
    last, x, record = learned(leader, problem, 1.0)
    last_in_unit, x_in_unit, in_unit = learned(leader, problem, unit)
    start = PROBLEMS[problem](1.0).start_x().numpy()
    assert np.abs(last - start).max() > 1e-3, "the leader did not move: the test would show nothing"
    np.testing.assert_allclose(last_in_unit, last, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(x_in_unit, x, rtol=1e-6, atol=1e-8)
    assert in_unit.leader_return == pytest.approx(unit * record.leader_return, rel=1e-6)
    assert in_unit.tau == pytest.approx(unit * record.tau, rel=1e-9)


@pytest.mark.parametrize("unit", [1e-3, pytest.param(7.0, marks=pytest.mark.long), 1e3])
@pytest.mark.parametrize("leader", [TabularPBRL, Hypergradient])
def test_the_fishery_learns_and_records_the_truth_in_any_unit(leader: Any, unit: float) -> None:
    problem = fishery(unit=unit)

    def greedy(x: Tensor) -> Tensor:
        return solve_soft(problem.follower_mdp(x), 0.0).pi

    start = problem.start_x()
    assert float(problem.leader_return(start, greedy(start))) / unit == pytest.approx(52.88, abs=0.005)
    made = leader(problem, eval_every=20).learn(120)
    x, record = torch.as_tensor(made.x), made.evaluate()
    assert record.leader_return == pytest.approx(float(problem.leader_return(x, greedy(x))), rel=1e-4)
    assert record.leader_return / unit > 64.5  # the best of a grid: 64.78


def test_units_by_hand() -> None:
    # One state, two actions, rewards 3 and 1: Q differs by 2 whatever gamma. The leader's differ by 5.
    base = TabularMDP(torch.ones(1, 2, 1, dtype=F64), torch.tensor([[3.0, 1.0]]), torch.ones(1), 0.9)
    problem = ArrayProblem(
        base, LeaderSet.box(1, -1, 1), lambda x: base.r + x, lambda x: torch.tensor([[-2.0, 3.0]]) * (1 + x)
    )
    assert problem.reward_unit == pytest.approx(2.5 * 2.0, rel=1e-12)
    assert problem.leader_reward_unit == pytest.approx(2.5 * 5.0, rel=1e-12)
    assert problem.tau0 == pytest.approx(0.002 * 5.0, rel=1e-12)
    # A state that is not visited, one in which nothing is to be chosen, and an action that does not exist count for nothing.
    P = torch.eye(3, dtype=F64).unsqueeze(1).expand(3, 2, 3)
    r = torch.tensor([[4.0, 1.0], [5.0, -900.0], [70.0, 7.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    base = TabularMDP(P, r, torch.tensor([0.25, 0.75, 0.0]), 0.9, mask=mask)
    problem = ArrayProblem(base, LeaderSet.box(1, -1, 1), lambda x: base.r + x, lambda x: base.r)
    assert problem.reward_unit == pytest.approx(2.5 * 3.0, rel=1e-12)


def test_units_where_rewards_are_equal() -> None:
    base = TabularMDP(torch.ones(1, 2, 1, dtype=F64), torch.zeros(1, 2), torch.ones(1), 0.9)
    flat = ArrayProblem(base, LeaderSet.box(2, 0, 1), lambda x: base.r + 4.0, lambda x: base.r - 2.0)
    assert (flat.reward_unit, flat.leader_reward_unit) == (1.0, 1.0)
    # Rewards that x alone makes unequal: measured at a point inside X, here (1/3, 2/3).
    paid = ArrayProblem(base, LeaderSet.box(2, 0, 1), lambda x: 30.0 * x.unsqueeze(0), lambda x: base.r)
    assert paid.reward_unit == pytest.approx(2.5 * 10.0, rel=1e-12)


def test_units_of_a_game_are_the_ranges_of_its_rewards() -> None:
    game = GAME.game(GAME.start_x())
    assert GAME.reward_unit == pytest.approx(float(game.r.max() - game.r.min()), rel=1e-12)
    assert GAME.leader_reward_unit == pytest.approx(float(GAME.r_id.max() - GAME.r_id.min()), rel=1e-12)
    assert GameTimes(GAME, 7.0).leader_reward_unit == pytest.approx(7.0 * GAME.reward_unit, rel=1e-12)  # no leader game


def test_a_stated_unit_stands_in_a_copy() -> None:
    problem = random_stackelberg(4, seed=0)
    stated = problem.in_units(1.0)
    assert (stated.reward_unit, stated.leader_reward_unit, stated.tau0) == (1.0, 1.0, 0.002)
    assert problem.reward_unit != 1.0
    assert TabularPBRL(stated).schedule(1.0) == 0.4
    assert problem.in_units(2.0, 8.0).leader_reward_unit == 8.0
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"^reward_unit: "):
            problem.in_units(wrong)


def test_a_temperature_that_is_stated_is_the_rewards_own() -> None:
    for unit in UNITS:
        problem = fishery(unit=unit, tau=0.3)
        assert problem.tau0 == 0.3
        config = HypergradientConfig(tau=0.25)
        assert Hypergradient(problem, config=config).schedule(1.0) == 0.25
