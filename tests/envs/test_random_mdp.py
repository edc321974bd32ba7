"""The random MDP: what is drawn, the known minimum, the hypergradient and the rate at which descent ends."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym.agents import Hypergradient, HypergradientConfig
from bilevel_gym.agents.leaders.hypergradient import soft_leader_return
from bilevel_gym.envs.mdp import TabularMDP, solve_soft
from bilevel_gym.envs.random_mdp import BOUND, RandomMDPProblem
from tests.problems import F64, assert_gradient, autograd, numerical_gradient, slope


def test_the_draws_are_those_described() -> None:
    problem = RandomMDPProblem(200, 3, 40, seed=1)
    mdp = problem.follower_mdp(problem.start_x())
    TabularMDP(mdp.P, mdp.r, mdp.rho, mdp.gamma)  # a model
    reached = (mdp.P > 0).sum(-1).numpy().ravel()
    assert reached.min() >= 1
    assert reached.max() <= 199
    assert np.mean(reached) == pytest.approx(100.0, abs=4 * 199 / math.sqrt(12 * 600))  # uniform on 1..199
    assert float(problem.c.mean()) == pytest.approx(0.25, abs=4 * math.sqrt(7 / 144 / 600))  # two uniforms multiplied
    assert float(problem.M.std()) == pytest.approx(1.0, abs=0.1)
    x = torch.linspace(-1, 1, 40, dtype=F64)
    expected = [[float(problem.c[s, a]) * float(x @ problem.M @ x) for a in range(3)] for s in range(200)]
    np.testing.assert_allclose(problem.follower_mdp(x).r, expected, rtol=1e-12)


def test_a_seed_fixes_it_and_the_bounds_never_bind() -> None:
    one, two, other = RandomMDPProblem(seed=4), RandomMDPProblem(seed=4), RandomMDPProblem(seed=5)
    assert torch.equal(one.M, two.M)
    assert torch.equal(one.start_x(), two.start_x())
    assert not torch.equal(one.start_x(), other.start_x())
    starts = torch.stack([RandomMDPProblem(seed=k).start_x() for k in range(50)])
    assert float(starts.std()) == pytest.approx(1.0, abs=0.05)
    assert float(starts.square().sum(-1).max()) + 10 < BOUND**2
    one.start_x().zero_()
    assert float(one.start_x().norm()) > 1.0


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_is_the_minimum(seed: int) -> None:
    problem = RandomMDPProblem(4, 3, 6, seed=seed)
    optimum = problem.optimum()
    assert optimum.leader_return == -4 / 6
    for tau in (0.01, 1.0):
        assert torch.allclose(solve_soft(problem.follower_mdp(optimum.x), tau).pi, optimum.pi, atol=1e-14)
    assert float(problem.leader_return(optimum.x, optimum.pi)) == pytest.approx(optimum.leader_return, rel=1e-14)
    rng = torch.Generator().manual_seed(seed)
    for scale in (0.0, 0.1, 1.0, 5.0):
        x = scale * torch.randn(6, generator=rng, dtype=F64)
        pi = torch.softmax(3 * torch.randn(4, 3, generator=rng, dtype=F64), -1)
        assert float(problem.leader_return(x, pi)) < optimum.leader_return
        assert float(soft_leader_return(problem, x, 1.0)[0]) <= optimum.leader_return + 1e-14


@pytest.mark.parametrize("seed", range(3))
def test_the_hypergradient(seed: int) -> None:
    problem = RandomMDPProblem(seed=seed, dim=20)
    x = 0.3 * problem.start_x()

    def solved_anew(z: torch.Tensor) -> torch.Tensor:
        return problem.leader_return(z, solve_soft(problem.follower_mdp(z), 1.0, tol=1e-13).pi)

    assert_gradient(
        autograd(lambda z: soft_leader_return(problem, z, 1.0)[0], x), numerical_gradient(solved_anew, x, h=1e-3)
    )
    assert float(autograd(lambda z: soft_leader_return(problem, z, 1.0)[0], problem.optimum().x).norm()) == 0.0


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_descent_ends_at_the_rate_of_an_identity_hessian(alpha: float) -> None:
    problem, norms = RandomMDPProblem(seed=2), []
    config = HypergradientConfig(
        learning_rate=alpha, optimizer_class=torch.optim.SGD, eval_every=10_000, keep_best=False, tau=1.0
    )
    leader = Hypergradient(problem, config=config)

    def note(_: Any) -> bool:
        norms.append(float(np.linalg.norm(leader.last_x)))
        return norms[-1] > 1e-9

    leader.learn(1000, note)
    tail = norms[len(norms) // 2 :]
    assert tail[-1] < 1e-9
    assert slope(range(len(tail)), np.log(tail)) == pytest.approx(math.log(1 - alpha), rel=1e-6)
    assert leader.evaluate().leader_return == pytest.approx(problem.optimum().leader_return, abs=1e-14)


def test_a_follower_of_one_state_has_somewhere_to_go() -> None:
    assert RandomMDPProblem(1, 2, 3).follower_mdp(torch.ones(3, dtype=F64)).P.tolist() == [[[1.0], [1.0]]]


@pytest.mark.parametrize(
    ("name", "value"), [("n_states", 0), ("n_actions", 1.5), ("dim", -1), ("gamma", 1.0), ("tau", -1.0), ("seed", -2)]
)
def test_wrong_arguments_are_named(name: str, value: object) -> None:
    kwargs: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        gym.make("bilevel_gym/RandomMDP-v0", **kwargs)
