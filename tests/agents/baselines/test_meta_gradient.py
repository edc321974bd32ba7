"""Meta-gradient: its steps against the recursion written out with closed-form policy gradients, and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import Geometric, MetaGradient
from bilevel_gym.agents.baselines.meta_gradient import MetaGradientConfig
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.envs.mdp import (
    BilevelProblem,
    GameProblem,
    TabularMDP,
    TabularProblem,
    best_responses,
    player_mdp,
    policy_return_gradient,
    random_incentive_design,
    random_stackelberg,
    stack_problems,
)
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import F64, PROBLEMS, assert_gradient, generator, numerical_gradient, random_x, relative_error

TAU, ALPHA, ETA = 0.2, 0.7, 1e-3
Players = tuple[Tensor, ...]


def one_step(problem: BilevelProblem, x_0: Tensor, inner_steps: int) -> tuple[MetaGradient, Players]:
    """A leader after one iteration from random logits, and those logits."""
    config = MetaGradientConfig(
        tau=TAU, learning_rate=ETA, inner_rate=ALPHA, inner_steps=inner_steps, optimizer_class=torch.optim.SGD
    )
    leader = MetaGradient(problem, config=config, x0=x_0.numpy())
    logits = [torch.randn(t.shape, generator=generator(5 + i), dtype=F64) for i, t in enumerate(leader.thetas)]
    leader.state.thetas = tuple(theta.clone() for theta in logits)
    return leader.learn(1), tuple(logits)


def ascended(mdp: TabularMDP, theta: Tensor) -> Tensor:
    """theta' = theta + alpha grad_theta V(rho), by the policy gradient's closed form and the softmax's derivative."""
    pi = Softmax().policy(theta, mdp)
    slope = policy_return_gradient(mdp, pi, TAU)
    return theta + ALPHA * pi * (slope - (pi * slope).sum(-1, keepdim=True))


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("name", PROBLEMS)
def test_over_one_follower_x_steps_along_the_derivative_of_the_recursion(name: str, inner_steps: int) -> None:
    problem = PROBLEMS[name](1)
    x_0 = random_x(problem, 1)
    leader, (theta_0,) = one_step(problem, x_0, inner_steps)

    def moved(x: Tensor) -> Tensor:
        theta = theta_0
        for _ in range(inner_steps):
            theta = ascended(problem.follower_mdp(x), theta)
        return theta

    def after(x: Tensor) -> Tensor:
        return problem.leader_return(x, Softmax().policy(moved(x), problem.follower_mdp(x)))

    torch.testing.assert_close(leader.thetas[0], moved(x_0), rtol=1e-10, atol=1e-12)
    numerical = numerical_gradient(after, x_0)
    assert_gradient((torch.from_numpy(leader.last_x) - x_0) / ETA, numerical)
    held = Softmax().policy(moved(x_0), problem.follower_mdp(x_0))  # without (d theta'/dx)^T it is another gradient
    assert relative_error(numerical_gradient(lambda x: problem.leader_return(x, held), x_0), numerical) > 0.01


def both_ascended(problem: GameProblem, x: Tensor, thetas: Players, steps: int) -> Players:
    one, two = thetas
    for _ in range(steps):
        game, pi1, pi2 = problem.game(x), torch.softmax(one, -1), torch.softmax(two, -1)
        one, two = ascended(player_mdp(game, 1, pi2, TAU), one), ascended(player_mdp(game, 2, pi1, TAU), two)
    return one, two


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_over_a_game_both_players_step_at_once(inner_steps: int) -> None:
    problem = random_incentive_design(3, 2, 3, gamma=0.8, seed=1)
    x_0 = torch.randn(problem.leader_dim, generator=generator(1), dtype=F64)
    leader, thetas = one_step(problem, x_0, inner_steps)

    def after(x: Tensor) -> Tensor:
        one, two = both_ascended(problem, x, thetas, inner_steps)
        return problem.leader_return(x, (torch.softmax(one, -1), torch.softmax(two, -1)))

    for got, expected in zip(leader.thetas, both_ascended(problem, x_0, thetas, inner_steps), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert_gradient((torch.from_numpy(leader.last_x) - x_0) / ETA, numerical_gradient(after, x_0))


def test_the_players_stay_with_a_held_x_and_find_its_equilibrium() -> None:
    """Each theta' is the next theta: with x held by its bounds the gap goes to 0."""
    problem = random_incentive_design(3, 2, 3, gamma=0.8, seed=2)
    leader = MetaGradient(problem, config=MetaGradientConfig(low=0.0, high=0.0, tau=0.3, inner_rate=2.0)).learn(400)
    assert leader.history[0].gap is not None
    assert leader.history[0].gap > 0.1
    assert leader.history[-1].gap == pytest.approx(0.0, abs=1e-9)
    pi1, pi2 = leader.method.policies(leader.state, None)
    first, second = best_responses(problem.game(problem.start_x()), pi1, pi2, 0.3)
    torch.testing.assert_close(torch.cat([first.pi, second.pi], -1), torch.cat([pi1, pi2], -1), rtol=0.0, atol=1e-4)


def test_it_learns_over_games_and_over_one_follower() -> None:
    for seed in range(3):
        leader = MetaGradient(random_incentive_design(seed=seed)).learn(150)
        assert leader.history[-1].leader_return > leader.history[0].leader_return + 1.0
        game = random_stackelberg(5, 3, 3, gamma=0.8, sparsity=0.3, seed=seed)
        over_one = MetaGradient(game, config=MetaGradientConfig(tau=0.05)).learn(100)
        assert over_one.history[-1].leader_return > 1.1 * over_one.history[0].leader_return


def test_a_stack_takes_each_problem_s_own_steps() -> None:
    problems = [random_incentive_design(3, 2, 2, seed=seed) for seed in range(2)]
    one, all_at_once = (
        MetaGradientConfig(learning_rate=rate, inner_rate=1.0, optimizer_class=torch.optim.SGD)
        for rate in (0.5, 0.5 * len(problems))
    )
    alone = [MetaGradient(problem, config=one).learn(5).last_x for problem in problems]
    stacked = MetaGradient(stack_problems(problems), config=all_at_once).learn(5).last_x
    np.testing.assert_allclose(stacked, np.concatenate(alone), rtol=1e-9)


def test_learning_on_from_a_file_is_learning_on(tmp_path: Path) -> None:
    config = MetaGradientConfig(inner_rate=Geometric(1.0, 0.5), inner_steps=2, eval_every=3)
    problem = random_incentive_design(3, 2, 3, seed=4)
    twin, broken = (MetaGradient(problem, config=config).learn(7) for _ in range(2))
    loaded = MetaGradient.load(broken.save(tmp_path / "leader"), problem)
    assert loaded.evaluate() == broken.evaluate()
    for leader in (twin, loaded):
        leader.learn(8, reset_num_timesteps=False)
    np.testing.assert_array_equal(loaded.last_x, twin.last_x)
    assert loaded.evaluate() == twin.evaluate()


@pytest.mark.parametrize(
    ("name", "value"), [("inner_rate", 0.0), ("inner_rate", float("nan")), ("inner_steps", 0), ("inner_steps", 1.5)]
)
def test_wrong_settings_are_named(name: str, value: Any) -> None:
    kwargs: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        MetaGradientConfig(**kwargs)


def test_a_problem_of_neither_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^problem: expected a TabularProblem or a GameProblem"):
        MetaGradient("CartPole-v1")
    assert isinstance(MetaGradient(TwoStateProblem()).problem, TabularProblem)
