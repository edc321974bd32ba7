"""The tracked hypergradient: exact at its fixed point, and at what rate it gets there."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import Geometric, Hypergradient, HypergradientConfig, SoBiRL, SoBiRLConfig
from bilevel_gym.agents.leaders.hypergradient import soft_leader_return
from bilevel_gym.agents.leaders.sobirl import tracked_hypergradient
from bilevel_gym.envs.mdp import TabularProblem, value_iteration
from bilevel_gym.envs.random_mdp import RandomMDPProblem
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import PROBLEMS, autograd, random_x, relative_error, slope

ALL: dict[str, Callable[[int], TabularProblem]] = {
    **PROBLEMS,
    "no return": lambda seed: RandomMDPProblem(6, 3, 8, gamma=0.8, seed=seed),
}


def exact(problem: TabularProblem, x: Tensor, tau: float) -> Tensor:
    return autograd(lambda z: soft_leader_return(problem, z, tau)[0], x)


def track(problem: TabularProblem, x: Tensor, tau: float, turns: int, sweeps: int, steps: int) -> list[Tensor]:
    """The gradients of this many turns at a fixed x, from V = u = 0."""
    mdp = problem.follower_mdp(x)
    V = u = torch.zeros((*mdp.batch_shape, mdp.n_states), dtype=mdp.r.dtype)
    gradients = []
    for _ in range(turns):
        V = value_iteration(mdp, tau, V, sweeps)
        gradient, u = tracked_hypergradient(problem, x, tau, V, u, steps)
        gradients.append(gradient)
    return gradients


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ALL)
def test_with_enough_inner_steps_it_is_the_hypergradient(name: str, seed: int) -> None:
    problem, tau = ALL[name](seed), 0.5
    x, n = random_x(problem, seed), 600  # 0.95^600 = 4e-14
    (once,) = track(problem, x, tau, 1, n, n)
    assert relative_error(once, exact(problem, x, tau)) < 1e-8


@pytest.mark.parametrize("name", ["terminal, masked", "Stackelberg", "contexts"])
def test_at_a_fixed_x_it_is_tracked_at_the_rate_gamma(name: str) -> None:
    problem, tau = ALL[name](0), 0.5
    x = random_x(problem, 0)
    expected, gamma = exact(problem, x, tau), problem.follower_mdp(x).gamma
    errors = [relative_error(g, expected) for g in track(problem, x, tau, 400, 2, 1)]
    assert errors[0] > 1e-3  # one turn does not do
    assert min(errors) < 1e-9
    falling = [error for error in errors if error > 1e-9]
    assert slope(range(len(falling)), np.log(falling)) < 0.9 * math.log(gamma)


@pytest.mark.parametrize(("sweeps", "steps"), [(1, 1), (10, 1), (2, 5)])
def test_it_arrives_where_the_exact_hypergradient_does(sweeps: int, steps: int) -> None:
    problem, tau = TwoStateProblem(gamma=0.7), 0.1
    config = SoBiRLConfig(
        learning_rate=Geometric(0.1, 1e-3),
        eval_every=1000,
        keep_best=False,
        tau=tau,
        sweeps=sweeps,
        adjoint_steps=steps,
    )
    leader = SoBiRL(problem, config=config, x0=[0.5]).learn(600)
    assert leader.last_x[0] == pytest.approx(float(problem.optimum(tau).x), abs=1e-6)
    assert leader.evaluate().leader_return == pytest.approx(problem.optimum(tau).leader_return, rel=1e-9)
    assert leader.evaluate().gap == pytest.approx(0.0, abs=1e-6)


def test_its_path_nears_the_exact_one_with_more_inner_steps() -> None:
    problem = PROBLEMS["Stackelberg"](1)
    kwargs: dict[str, Any] = {"learning_rate": 0.5, "optimizer_class": torch.optim.SGD, "tau": 0.1, "keep_best": False}
    exactly = Hypergradient(problem, config=HypergradientConfig(**kwargs)).learn(40).last_x
    away = [
        np.linalg.norm(
            SoBiRL(problem, config=SoBiRLConfig(sweeps=n, adjoint_steps=n, **kwargs)).learn(40).last_x - exactly
        )
        for n in (1, 3, 10, 150)
    ]
    assert np.linalg.norm(exactly) > 0.1
    assert all(b < 0.5 * a for a, b in pairwise(away))
    assert away[-1] < 1e-9


def test_the_published_problem_at_the_published_step() -> None:
    """One adjoint step and ten sweeps a turn; descent ends at the rate of the exact hypergradient, log(1 - step)."""
    step = 0.05
    config = SoBiRLConfig(
        learning_rate=step, optimizer_class=torch.optim.SGD, eval_every=10_000, keep_best=False, tau=1.0
    )
    leader, norms = SoBiRL(RandomMDPProblem(seed=1), config=config), []
    leader.learn(500, lambda _: norms.append(float(np.linalg.norm(leader.last_x))))
    assert norms[-1] < 1e-9
    assert slope(range(250), np.log(norms[250:])) == pytest.approx(math.log(1 - step), rel=1e-3)


def test_a_file_keeps_what_is_tracked(tmp_path: Path) -> None:
    problem = PROBLEMS["contexts"](0)
    whole, broken = (SoBiRL(problem, config=SoBiRLConfig(sweeps=2)) for _ in range(2))
    whole.learn(5).learn(5, reset_num_timesteps=False)
    loaded = SoBiRL.load(broken.learn(5).save(tmp_path / "leader"), problem)
    assert loaded.evaluate() == broken.evaluate()
    np.testing.assert_array_equal(loaded.learn(5, reset_num_timesteps=False).last_x, whole.last_x)
    assert SoBiRL.load(SoBiRL(problem).save(tmp_path / "new"), problem).learn(2).num_timesteps == 2


@pytest.mark.parametrize(("name", "value"), [("sweeps", 0), ("sweeps", 1.5), ("adjoint_steps", 0)])
def test_wrong_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected a whole number >= 1"):
        SoBiRLConfig(**{name: value})
    with pytest.raises(ValueError, match=r"^tau: expected a number in \("):
        SoBiRL(TwoStateProblem(), config=SoBiRLConfig(tau=0.0))
