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
    leader_return_at_best_response,
)
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
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.envs.four_rooms import FourRoomsProblem
from bilevel_gym.envs.goal_placement import GoalPlacementProblem
from bilevel_gym.envs.reward_grid import RewardGridProblem
from tests.problems import F64, fishery
UNITS = (1e-3, 7.0, 1e3)


class Times(TabularProblem):
    """A problem in another unit: both players' rewards, and the temperature that the problem states, times a number."""

    batched_kernel: ClassVar[bool] = True

    def __init__(self, problem: Any, factor: float) -> None:
        self.base, self.factor, self.tau = problem, factor, factor * problem.tau
        self.leader_set, self.context_probs = problem.leader_set, problem.context_probs

    def start_x(self) -> Tensor:
        return self.base.start_x()

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        mdp = self.base.follower_mdp(x)
        return mdp.with_reward(self.factor * mdp.r)

    def leader_reward(self, x: Tensor) -> Tensor | None:
        reward = self.base.leader_reward(x)
        return None if reward is None else self.factor * reward

    def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
        if self.base.leader_reward(x) is None:
            return self.factor * self.base.leader_return(x, pi)
        return super().leader_return(x, pi)

    def occupancy_return(self, x: Tensor, occupancy: Tensor) -> Tensor:
        return self.factor * self.base.occupancy_return(x, occupancy)


class GameTimes(GameProblem):
    """A problem over a zero-sum game in another unit."""

    def __init__(self, problem: Any, factor: float, tau: float | None = None) -> None:
        self.base, self.factor, self.tau = problem, factor, factor * (problem.tau if tau is None else tau)
        self.leader_set = problem.leader_set

    def game(self, x: Tensor) -> ZeroSumGame:
        game = self.base.game(x)
        return replace(game, r=self.factor * game.r, validate=False)

    def leader_return(self, x: Tensor, pi: tuple[Tensor, Tensor]) -> Tensor:
        return self.factor * self.base.leader_return(x, pi)


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
ONE = ("fishery", "fishery, sparse", "Stackelberg", "toll", "Four Rooms", "rewards that x alone pays")
GAMES = ("game", "game at tau = 0")

Make = Callable[[Any], Any]
EVERY = {"eval_every": 5}
LEADERS: dict[str, tuple[Make, tuple[str, ...], int]] = {
    "PBRL": (TabularPBRL, (*ONE, *GAMES, "goal"), 15),
    "PBRL, value, softmax": (
        lambda p: TabularPBRL(p, penalty=ValuePenalty(), config=TabularPBRLConfig(follower=Softmax())), ("fishery", "Stackelberg"), 15
    ),
    "PBRL, Bellman": (lambda p: TabularPBRL(p, penalty=BellmanPenalty()), ("fishery", "Stackelberg", "toll", "goal"), 15),
    "PBRL, Nikaido-Isoda": (lambda p: TabularPBRL(p, penalty=NikaidoIsodaPenalty()), GAMES, 15),
    "PBRL, mirror descent": (lambda p: TabularPBRL(p, oracle=MirrorDescent()), ("fishery", "toll"), 10),
    "PBRL, policy gradient": (lambda p: TabularPBRL(p, oracle=PolicyGradient()), ("fishery", "Stackelberg"), 10),
    "PBRL, Monte Carlo": (
        lambda p: TabularPBRL(p, config=TabularPBRLConfig(estimator=MonteCarlo())), ("fishery", "Stackelberg"), 10
    ),
    "hypergradient": (Hypergradient, (*ONE, "game", "game at tau = 0", "goal"), 15),
    "plain hypergradient": (
        lambda p: Hypergradient(p, config=HypergradientConfig(optimizer_class=torch.optim.SGD)), ("fishery", "game"), 15
    ),
    "SoBiRL": (SoBiRL, ("fishery", "Stackelberg", "toll"), 15),
    "independent": (IndependentPolicyGradient, ("fishery", "Stackelberg", "game"), 15),
    "meta-gradient": (MetaGradient, ("fishery", "Stackelberg", "game"), 10),
    "HPGD": (lambda p: HPGD(p, config=HPGDConfig(episodes=4)), ("fishery", "Stackelberg", "toll"), 10),
    "zero order": (ZeroOrder, ("fishery", "Stackelberg", "toll"), 10),
    "CMA-ES": (TabularCMAES, ("fishery", "Stackelberg"), 5),
    "single loop": (lambda p: SingleLoop(p, config=SingleLoopConfig(eval_every=5)), ("goal", "fishery"), 1500),
}  # fmt: skip
CASES = [(leader, problem) for leader, (_, problems, _) in LEADERS.items() for problem in problems]


@cache
def learned(leader: str, problem: str, unit: float) -> tuple[np.ndarray, np.ndarray, Any]:
    """What a leader ends at: its last x, the x that it returns, and the record of that."""
    make, _, iterations = LEADERS[leader]
    made = make(PROBLEMS[problem](unit)).learn(iterations)
    return made.last_x, made.x, made.evaluate()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("leader", "problem"), CASES)
def test_the_unit_of_rewards_moves_no_x(leader: str, problem: str, unit: float) -> None:
    last, x, record = learned(leader, problem, 1.0)
    last_in_unit, x_in_unit, in_unit = learned(leader, problem, unit)
    start = PROBLEMS[problem](1.0).start_x().numpy()
    assert np.abs(last - start).max() > 1e-3, "the leader did not move: the test would show nothing"
    np.testing.assert_allclose(last_in_unit, last, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(x_in_unit, x, rtol=1e-6, atol=1e-8)
    assert in_unit.leader_return == pytest.approx(unit * record.leader_return, rel=1e-6)
    assert in_unit.tau == pytest.approx(unit * record.tau, rel=1e-9)
