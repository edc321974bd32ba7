"""Goal placement: the objective by its definition, its gradients, and the exact solution of the unregularised problem."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from bilevel_gym.agents.leaders.hypergradient import soft_leader_return
from bilevel_gym.envs.goal_placement import SHARES, GoalPlacementProblem
from bilevel_gym.envs.mdp import policy_return, solve_soft, suboptimality, visitation
from tests.problems import F64, assert_gradient, autograd, generator, numerical_gradient, random_policy

SMALL: dict[str, Any] = {"size": 4, "width": 1.2}


def random_reward(problem: GoalPlacementProblem, seed: int = 0) -> Tensor:
    return 0.1 + 0.8 * torch.rand(problem.leader_dim, generator=generator(seed), dtype=F64)


def test_the_follower_is_paid_what_is_placed_less_the_ground() -> None:
    problem = GoalPlacementProblem(roughness=0.3, seed=4)
    x = random_reward(problem)
    mdp = problem.follower_mdp(x)
    assert tuple(mdp.r.shape) == (100, 4)
    assert -0.3 <= float(problem.ground.min()) < -0.25
    assert -0.05 < float(problem.ground.max()) <= 0.0
    for a in range(4):
        torch.testing.assert_close(mdp.r[:, a], x + problem.ground, rtol=0.0, atol=0.0)
    assert float(mdp.P[55, 0, 45]) == pytest.approx(0.8)
    torch.testing.assert_close(mdp.rho, torch.full((100,), 0.01, dtype=F64))


@pytest.mark.parametrize("seed", range(5))
def test_the_target_has_three_blobs_apart(seed: int) -> None:
    problem = GoalPlacementProblem(seed=seed)
    assert float(problem.target.sum()) == pytest.approx(1.0, abs=1e-12)
    places, expected = problem.grid.cells.numpy(), np.zeros(100)
    for share, goal in zip(SHARES, problem.goals, strict=True):
        steps = places - places[goal]
        blob = np.exp(-(steps**2).sum(-1) / 2.0)
        expected += share * blob / blob.sum()
        assert all(np.abs(steps[other]).sum() >= 5 for other in problem.goals if other != goal)
    np.testing.assert_allclose(problem.target, expected, atol=1e-14)


def test_the_objective_is_the_kernel_distance_of_visits_and_target() -> None:
    problem = GoalPlacementProblem(**SMALL, seed=1)
    x, places = random_reward(problem), problem.grid.cells.tolist()
    pi = random_policy(problem.follower_mdp(x), 3)
    m = (1 - problem.gamma) * visitation(problem.follower_mdp(x), pi)

    def distance(p: Tensor) -> float:
        e = (p - problem.target).tolist()
        k = [[math.exp(-((a - c) ** 2 + (b - d) ** 2) / (2 * 1.2**2)) for c, d in places] for a, b in places]
        return float(sum(e[s] * k[s][t] * e[t] for s in range(16) for t in range(16)))

    expected = distance(m) / distance(torch.full((16,), 1 / 16, dtype=F64))
    assert -float(problem.leader_return(x, pi)) == pytest.approx(expected, rel=1e-12)
    occupancy = m.unsqueeze(-1) * pi
    assert -float(problem.occupancy_return(x, occupancy)) == pytest.approx(expected, rel=1e-12)


def test_a_follower_that_wanders_scores_one_whatever_is_placed() -> None:
    problem = GoalPlacementProblem(seed=2)
    uniform = torch.full((100, 4), 0.25, dtype=F64)
    for seed in range(3):
        assert -float(problem.leader_return(random_reward(problem, seed), uniform)) == pytest.approx(1.0, abs=1e-12)


def test_batched_arguments_answer_row_by_row() -> None:
    problem = GoalPlacementProblem(**SMALL)
    x = torch.stack([random_reward(problem, seed) for seed in range(3)])
    pi = random_policy(problem.follower_mdp(x))
    rows = torch.stack([problem.leader_return(x[i], pi[i]) for i in range(3)])
    torch.testing.assert_close(problem.leader_return(x, pi), rows)


@pytest.mark.parametrize("seed", range(2))
def test_gradients(seed: int) -> None:
    problem = GoalPlacementProblem(**SMALL, seed=seed)
    x = random_reward(problem, seed)
    mdp = problem.follower_mdp(x)
    pi = random_policy(mdp, seed)
    assert_gradient(
        autograd(lambda z: problem.leader_return(x, z), pi),
        numerical_gradient(lambda z: problem.leader_return(x, z), pi),
    )
    assert_gradient(
        autograd(lambda z: soft_leader_return(problem, z, 0.1)[0], x),
        numerical_gradient(lambda z: problem.leader_return(x, solve_soft(problem.follower_mdp(z), 0.1).pi), x),
    )


def test_it_moves_with_the_policy_as_the_return_of_a_pseudo_reward() -> None:
    """grad f is (1-gamma) times the policy gradient of a follower that is paid c(s) = df/dm(s): what sampled methods use."""
    problem = GoalPlacementProblem(**SMALL)
    x = random_reward(problem)
    mdp = problem.follower_mdp(x)
    theta = random_policy(mdp).log()
    pi = torch.softmax(theta, -1)
    occupancy = ((1 - problem.gamma) * visitation(mdp, pi)).unsqueeze(-1) * pi
    c = autograd(lambda m: problem.occupancy_return(x, m), occupancy)
    torch.testing.assert_close(
        (1 - problem.gamma) * autograd(lambda z: policy_return(mdp.with_reward(c), torch.softmax(z, -1)), theta),
        autograd(lambda z: problem.leader_return(x, torch.softmax(z, -1)), theta),
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_is_a_best_response_at_tau_0(seed: int) -> None:
    problem = GoalPlacementProblem(seed=seed)
    optimum = problem.optimum(0.0)
    mdp = problem.follower_mdp(problem.leader_set.check(optimum.x))
    torch.testing.assert_close(optimum.pi.sum(-1), torch.ones(100, dtype=F64))
    assert float(optimum.pi.min()) >= 0.0
    assert abs(float(suboptimality(mdp, optimum.pi, 0.0, solve_soft(mdp, 0.0)))) < 1e-10
    assert float(problem.leader_return(optimum.x, optimum.pi)) == pytest.approx(optimum.leader_return, abs=1e-14)


def test_a_target_that_can_be_met_is_met() -> None:
    """On a grid so small that every cell is at hand, c = 0: the leader evens out the ground and all policies are optimal."""
    problem = GoalPlacementProblem(size=2)
    optimum = problem.optimum()
    assert optimum.leader_return == pytest.approx(0.0, abs=1e-12)
    mdp = problem.follower_mdp(optimum.x)
    assert abs(float(suboptimality(mdp, optimum.pi, 0.0, solve_soft(mdp, 0.0)))) < 1e-6


def test_no_follower_scores_better_than_the_optimum() -> None:
    problem = GoalPlacementProblem(seed=0)
    best = problem.optimum().leader_return
    near = problem.optimum().x
    for seed in range(5):
        x = random_reward(problem, seed)
        pis = [random_policy(problem.follower_mdp(x), seed, spread) for spread in (0.3, 3.0)]
        pis += [solve_soft(problem.follower_mdp(z), tau).pi for z in (x, near) for tau in (1.0, 0.1, 0.001)]
        assert all(float(problem.leader_return(x, pi)) < best for pi in pis)


def test_another_solver_finds_the_same_optimum() -> None:
    """By ascent on the policy itself, whose problem has no other local optimum (f is convex in the occupancy)."""
    problem = GoalPlacementProblem(**SMALL, seed=3)
    x = problem.start_x()

    def loss(flat: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, Any]:
        y = torch.from_numpy(flat).requires_grad_()
        value = -problem.leader_return(x, torch.softmax(y.view(16, 4), -1))
        value.backward()
        assert y.grad is not None
        return float(value.detach()), y.grad.numpy()

    found = minimize(
        loss, np.zeros(64), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 0, "gtol": 1e-9}
    )
    assert found.fun == pytest.approx(-problem.optimum().leader_return, abs=2e-6)
    assert found.fun > -problem.optimum().leader_return - 1e-12


def test_the_optimum_is_known_at_tau_0_only() -> None:
    with pytest.raises(ValueError, match=r"^tau: expected 0, where the answer is known, got 0\.1"):
        GoalPlacementProblem(tau=0.1).optimum()
    assert GoalPlacementProblem(**SMALL, tau=0.1).optimum(0.0).leader_return < 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 1),
        ("size", 2.5),
        ("gamma", 1.0),
        ("tau", -0.1),
        ("intended", 1.1),
        ("roughness", 1.0),
        ("roughness", -0.1),
        ("width", 0.0),
        ("width", 10.5),
        ("seed", -1),
        ("seed", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render_mode.*")
def test_wrong_arguments_are_named(name: str, value: object) -> None:
    kwargs: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        gym.make("bilevel_gym/GoalPlacement-v0", **kwargs)
