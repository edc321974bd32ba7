"""x's gradient over four followers and the leader's linearised return: exact, and sampled within their standard errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import NikaidoIsodaPenalty, PBRLConfig, Rollouts
from bilevel_gym.agents.estimators.base import GradientEstimate
from bilevel_gym.agents.estimators.game_rollouts import (
    GameRolloutEstimator,
    leader_advantages,
    linearised_reward,
    pair_visitation,
    play,
)
from bilevel_gym.agents.estimators.known_model import ModelEstimator
from bilevel_gym.agents.learned.game_worlds import GameWorlds
from bilevel_gym.agents.learned.players import LearnedPlayers
from bilevel_gym.agents.lower_levels import TwoPlayers
from bilevel_gym.envs.incentive_design_v0 import IncentiveDesignEnv
from bilevel_gym.envs.mdp import IncentiveDesignProblem, joint_return, player_mdp, policy_return
from tests.games import moved_game, random_game, random_pair
from tests.problems import assert_gradient, numerical_gradient

GAME, OTHER = random_game(3, gamma=0.8, sharp=8.0), random_game(4, gamma=0.8, sharp=8.0)
PROBLEM = IncentiveDesignProblem.over(GAME, OTHER.P, OTHER.r, tau=0.2)
DESIGNER = PROBLEM.designer
PI, BEST = random_pair(GAME, 1), random_pair(GAME, 2)
X = torch.linspace(-1.0, 2.0, PROBLEM.leader_dim, dtype=torch.float64)


PENALTY = NikaidoIsodaPenalty()
TERMS = PENALTY.terms(2, True)


class Held(LearnedPlayers):
    """Four players who hold their policies."""

    def policies(self, followers: Any, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return PI, BEST


def held(problem: Any = PROBLEM) -> Held:
    return Held(IncentiveDesignEnv(problem), None, PBRLConfig.for_a_game(observe_commitment=False), PENALTY)


def by_model(problem: Any = PROBLEM) -> GradientEstimate:
    return ModelEstimator(held(problem), PENALTY)(X, TERMS, {}, 3.0)


def by_rollouts(rollouts: Rollouts) -> GameRolloutEstimator:
    return GameRolloutEstimator(held(), rollouts, np.random.default_rng(0))


def psi_at(x: Tensor, problem: Any = PROBLEM) -> Tensor:
    return PENALTY.value(TwoPlayers(problem), problem.game(x), PI, BEST, problem.tau)


def objective(x: Tensor, lam: float = 3.0) -> Tensor:
    return PROBLEM.leader_return(x, PI) - lam * psi_at(x)


def tangent(g: Tensor) -> Tensor:
    """Less the row's mean: what the simplex sees of a gradient."""
    return g - g.mean(-1, keepdim=True)


def leaders_gradients() -> tuple[Tensor, Tensor]:
    """dJ_L/dpi1 and dJ_L/dpi2 by autograd."""
    free = [pi.clone().requires_grad_() for pi in PI]
    g1, g2 = torch.autograd.grad(joint_return(DESIGNER, free[0], free[1]), free)
    return g1, g2


def paid_gradients(rewards: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The policy gradients, at pi1 and pi2, of rewards paid in the players' world against the best responses."""
    answers: list[Tensor] = []
    for player in (1, 2):
        mdp = player_mdp(GAME, player, BEST[2 - player], 0.0).with_reward(rewards[player - 1])
        pi = PI[player - 1].clone().requires_grad_()
        answers.extend(torch.autograd.grad(policy_return(mdp, pi), [pi]))
    return answers[0], answers[1]


def test_the_linearised_return_has_the_leaders_policy_gradient() -> None:
    advantages, d_leader = leader_advantages(DESIGNER, *PI), pair_visitation(DESIGNER, *PI)
    d = pair_visitation(GAME, PI[0], BEST[1]), pair_visitation(GAME, BEST[0], PI[1])
    rewards = [linearised_reward(advantages[i], PI[i], d_leader, d[i]) for i in (0, 1)]
    assert all((reward.abs() > 0.01).any() for reward in rewards)
    for paid, exact in zip(paid_gradients((rewards[0], rewards[1])), leaders_gradients(), strict=True):
        assert torch.allclose(tangent(paid), tangent(exact), atol=1e-12)


def test_paying_the_leaders_reward_itself_does_not() -> None:
    paid = [player_mdp(DESIGNER, player, PI[2 - player], 0.0).r * (3 - 2 * player) for player in (1, 2)]
    for wrong, exact in zip(paid_gradients((paid[0], paid[1])), leaders_gradients(), strict=True):
        assert (tangent(wrong) - tangent(exact)).norm() > 0.2 * tangent(exact).norm()


def test_a_state_that_the_follower_never_meets_has_no_price_without_bound() -> None:
    A = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    pi = torch.full((2, 2), 0.5, dtype=torch.float64)
    d_leader, d = torch.tensor([5.0, 5.0]).double(), torch.tensor([10.0, 0.0]).double()
    assert linearised_reward(A, pi, d_leader, d).tolist() == [[0.5, -0.5], [20.0, -20.0]]


def test_through_the_known_model_the_gradient_is_that_of_central_differences() -> None:
    found = by_model()
    gain = found.gain
    assert gain is not None
    assert_gradient(found.ascent, numerical_gradient(objective, X))
    psi = float(psi_at(X))
    at_stake = sum(float((gain.d_leader * A.max(-1).values).sum()) for A in gain.advantages)
    assert found.penalty.mean == pytest.approx(psi, abs=1e-12)
    assert found.penalty.margin == pytest.approx(psi + at_stake / 3.0, abs=1e-12)
    assert torch.equal(gain.d_leader, pair_visitation(DESIGNER, *PI))


@pytest.fixture(scope="module")
def sampled() -> dict[str, Any]:
    """Independent estimates: without memory, each call stands alone."""
    estimator = by_rollouts(Rollouts(400, 1e-4, critic_memory=0.0))
    found = [estimator(X, TERMS, {}, 3.0) for _ in range(40)]
    gains: list[Any] = [estimate.gain for estimate in found]
    rewards = [
        [linearised_reward(gain.advantages[i], PI[i], gain.d_leader, gain.d[i]) for i in (0, 1)] for gain in gains
    ]
    return {"found": found, "rewards": rewards, "estimator": estimator}


def assert_unbiased(values: Any, exact: Any, largest: float) -> None:
    """Within 4 standard errors everywhere, and with errors small enough to tell."""
    values, exact = np.asarray(values), np.asarray(exact)
    stderr = values.std(0, ddof=1) / np.sqrt(len(values))
    assert np.all(np.abs(values.mean(0) - exact) < 4.0 * stderr + 1e-9)
    assert np.all(stderr < largest * np.abs(exact).max())


def test_sampled_gradient_of_x_is_the_exact_one_within_its_standard_error(sampled: dict[str, Any]) -> None:
    exact = numerical_gradient(objective, X).numpy()
    assert_unbiased([g.ascent.numpy() for g in sampled["found"]], exact, 0.05)


def test_sampled_penalty_is_unbiased(sampled: dict[str, Any]) -> None:
    right = by_model().penalty
    estimates = [g.penalty for g in sampled["found"]]
    assert_unbiased([[e.mean] for e in estimates], [right.mean], 0.05)
    assert np.mean([e.margin for e in estimates]) == pytest.approx(right.margin, rel=0.05)
    spread = np.std([e.mean for e in estimates], ddof=1)
    assert 0.6 < np.mean([e.stderr for e in estimates]) / spread < 1.7  # unpaired would be wider


def test_sampled_linearised_return_has_the_leaders_policy_gradient(sampled: dict[str, Any]) -> None:
    exact = leaders_gradients()
    estimates = [paid_gradients((rewards[0], rewards[1])) for rewards in sampled["rewards"]]
    for i in (0, 1):
        assert_unbiased([tangent(e[i]).numpy() for e in estimates], tangent(exact[i]).numpy(), 0.05)


def test_every_step_is_counted(sampled: dict[str, Any]) -> None:
    estimator = sampled["estimator"]
    assert estimator.planned_steps == 3 * 400 * estimator.horizon == sampled["found"][0].steps


def test_memory_steadies_what_is_estimated() -> None:
    def spread(memory: float) -> float:
        estimator = by_rollouts(Rollouts(32, 0.05, critic_memory=memory))
        return float(np.std([estimator(X, TERMS, {}, 3.0).ascent.numpy() for _ in range(30)][10:], axis=0).mean())

    assert spread(0.9) < 0.5 * spread(0.0)


def test_a_state_comes_back() -> None:
    one, two = (by_rollouts(Rollouts(16)) for _ in range(2))
    one(X, TERMS, {}, 3.0)
    two.load_state_dict(one.state_dict())
    two.rng.bit_generator.state = one.rng.bit_generator.state
    again, same = two(X, TERMS, {}, 3.0), one(X, TERMS, {}, 3.0)
    assert torch.equal(again.ascent, same.ascent)
    assert again.gain is not None
    assert same.gain is not None
    assert torch.equal(again.gain.advantages[0], same.gain.advantages[0])


class MovedProblem(IncentiveDesignProblem):
    """x moves the transitions too."""

    def game(self, x: Tensor) -> Any:
        return moved_game(super().game(x), x[:3])


def test_moving_transitions_need_the_known_model() -> None:
    problem = MovedProblem(GAME.P, GAME.r, DESIGNER.P, DESIGNER.r, GAME.rho, GAME.gamma, 0.2)
    with pytest.raises(ValueError, match=r"estimator: expected KnownModel\(\) where x moves the transitions"):
        GameRolloutEstimator(held(problem), Rollouts(8), np.random.default_rng(0))
    found = by_model(problem)

    def moved(x: Tensor) -> Tensor:
        return problem.leader_return(x, PI) - 3.0 * psi_at(x, problem)

    assert_gradient(found.ascent, numerical_gradient(moved, X))


def test_episodes_are_not_longer_than_the_games() -> None:
    game = GameWorlds(IncentiveDesignEnv(PROBLEM, max_cycles=3), None, observe_commitment=False)
    assert game.horizon(1e-6) == 3
    episodes = play(game.simulator(1, 5), *PI, 3, 0)
    assert episodes.state.shape == (3, 5)
    assert np.array_equal(episodes.following[:-1], episodes.state[1:])
