"""Stacks of problems: each part is what it is alone, solved, learned on and sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import NikaidoIsodaPenalty, TabularPBRL, TabularPBRLConfig, ValuePenalty
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.envs.mdp import (
    IncentiveDesignProblem,
    StackelbergProblem,
    Trajectories,
    kernel_world,
    random_incentive_design,
    random_stackelberg,
    sample,
    sampled_return,
    solve_nash,
    solve_soft,
    stack_problems,
)
from tests.problems import F64, autograd, generator, random_policy


def games(n: int = 3) -> list[StackelbergProblem]:
    return [random_stackelberg(4, 3, 2, gamma=0.8, sparsity=0.3, seed=seed) for seed in range(n)]


def designs(n: int = 3) -> list[IncentiveDesignProblem]:
    return [random_incentive_design(3, 2, 3, gamma=0.8, seed=seed) for seed in range(n)]


def test_a_stack_of_games_is_its_games() -> None:
    alone = games()
    stack = stack_problems(alone)
    assert stack.leader_dim == sum(game.leader_dim for game in alone)
    torch.testing.assert_close(stack.context_probs, torch.full((3,), 1 / 3, dtype=F64))
    x = torch.randn(stack.leader_dim, generator=generator(0), dtype=F64)
    xs = x.view(3, -1)
    mdp, kernel, reward = stack.follower_mdp(x), stack.kernel(x), stack.leader_reward(x)
    pi, total = random_policy(mdp, 1), torch.zeros((), dtype=F64)
    for i, game in enumerate(alone):
        own, own_kernel = game.follower_mdp(xs[i]), game.kernel(xs[i])
        for got, expected in ((mdp.P, own.P), (mdp.r, own.r), (mdp.rho, own.rho), (reward, game.leader_reward(xs[i]))):
            torch.testing.assert_close(got[i], expected, rtol=1e-14, atol=1e-15)
        for name in ("draw", "P", "r_follower", "r_leader"):
            torch.testing.assert_close(getattr(kernel, name)[i], getattr(own_kernel, name), rtol=1e-14, atol=1e-15)
        total = total + game.leader_return(xs[i], pi[i]) / 3
    torch.testing.assert_close(stack.leader_return(x, pi), total)


def test_a_stack_of_designs_is_its_designs() -> None:
    alone = designs()
    stack = stack_problems(alone)
    x = torch.randn(stack.leader_dim, generator=generator(0), dtype=F64)
    nash, mean = solve_nash(stack.game(x), 0.1), 0.0
    for i, design in enumerate(alone):
        own = design.game(x.view(3, -1)[i])
        torch.testing.assert_close(stack.game(x).r[i], own.r, rtol=1e-14, atol=0.0)
        answer = solve_nash(own, 0.1)
        mean += float(design.leader_return(x.view(3, -1)[i], (answer.pi1, answer.pi2))) / 3
    assert float(stack.leader_return(x, (nash.pi1, nash.pi2))) == pytest.approx(mean, rel=1e-8)


@pytest.mark.parametrize("kind", ["Stackelberg", "incentive design"])
def test_learning_on_a_stack_is_learning_on_each(kind: str) -> None:
    """Plain gradient steps N times as long."""
    alone: list[Any] = games() if kind == "Stackelberg" else designs()
    penalty = ValuePenalty(3.0) if kind == "Stackelberg" else NikaidoIsodaPenalty(3.0)

    def learned(problem: Any, rate: float) -> Any:
        config = TabularPBRLConfig(
            follower=Softmax(), learning_rate=rate, tau=0.2, optimizer_class=torch.optim.SGD, keep_best=False
        )
        return TabularPBRL(problem, penalty=penalty, config=config).learn(20)

    together = learned(stack_problems(alone), 0.3)
    each = [learned(problem, 0.1) for problem in alone]
    assert float(np.abs(together.x).max()) > 0.05
    np.testing.assert_allclose(together.x, np.concatenate([leader.x for leader in each]), rtol=0.0, atol=1e-11)
    mean = np.mean([leader.evaluate().leader_return for leader in each])
    assert together.evaluate().leader_return == pytest.approx(float(mean), rel=1e-7)


def test_one_call_estimates_for_all() -> None:
    """Ten games in one batch: each part is the estimate of that game alone from the same random numbers."""
    alone = games(10)
    stack = stack_problems(alone)
    x = torch.randn(stack.leader_dim, generator=generator(0), dtype=F64)
    pi = solve_soft(stack.follower_mdp(x), 0.1).pi
    world = kernel_world(stack.kernel(x), stack.follower_mdp(x))
    drawn = sample(world, pi, 5, 16, generator(1))

    def estimate(problem: StackelbergProblem, x: Tensor, pi: Tensor, drawn: Trajectories) -> Tensor:
        world = kernel_world(problem.kernel(x), problem.follower_mdp(x).detach())
        return sampled_return(world, pi, drawn, 0.1).sum()

    together = autograd(lambda z: estimate(stack, z, pi, drawn), x).view(10, -1)
    for i, game in enumerate(alone):
        own = Trajectories(*(getattr(drawn, field.name)[i] for field in dataclasses.fields(drawn)))
        single = autograd(lambda z, g=game, o=own, i=i: estimate(g, z, pi[i], o), x.view(10, -1)[i])  # type: ignore[misc]
        torch.testing.assert_close(together[i], single)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (list, "problems: expected at least one"),
        (lambda: [*games(1), *designs(1)], r"problems\[1\]: expected a StackelbergProblem, got IncentiveDesignProblem"),
        (
            lambda: [*games(1), random_stackelberg(5, 3, 2, gamma=0.8)],
            r"problems\[1\]: expected P of shape \(4, 3, 2, 4\)",
        ),
        (lambda: [*games(2), random_stackelberg(4, 3, 2)], r"problems\[2\]: expected gamma of 0.8, got 0.9"),
        (lambda: [stack_problems(games(2))] * 2, "P: expected shape"),
        (lambda: [stack_problems(designs(2))] * 2, "P: expected one game, or one axis of games"),
    ],
)
def test_what_does_not_stack_is_named(make: Callable[[], list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        stack_problems(make())
