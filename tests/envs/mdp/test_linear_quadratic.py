"""Riccati, Lyapunov, the leader's gradient, its optimum and the action bounds, each against something slower and surer."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.envs.mdp import (
    LeaderSet,
    LinearDynamics,
    LinearQuadraticProblem,
    QuadraticCost,
    random_linear_quadratic,
    steering_game,
)
from bilevel_gym.envs.mdp.linear_quadratic import SATURATION
from tests.problems import assert_gradient, numerical_gradient

F64 = torch.float64


def coupled(seed: int) -> LinearQuadraticProblem:
    """A random game in which every cost weighs every input, noise is correlated and one follower input moves three states."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=F64)

    def square(n: int) -> Tensor:
        root = draw(n, n)
        return root @ root.T / n

    A = draw(3, 3)
    A = 0.9 * A / torch.linalg.matrix_norm(A, 2)
    dynamics = LinearDynamics(A, 0.3 * draw(3, 2), 0.5 * draw(3, 1), 0.1 * square(3), square(3))
    costs = [QuadraticCost(square(3), square(2), square(1) + 0.1) for _ in range(2)]
    return LinearQuadraticProblem(dynamics, costs[0], costs[1], 0.8, 0.4, LeaderSet.box(6, -0.05, 0.05))


GAMES: dict[str, Callable[[int], LinearQuadraticProblem]] = {
    "steering": lambda seed: steering_game(gamma=0.8 + 0.05 * seed),
    "random": lambda seed: random_linear_quadratic(3, 2, seed=seed),
    "one state": lambda seed: random_linear_quadratic(1, 1, gamma=0.95, seed=seed),
    "coupled": coupled,
}
everywhere = pytest.mark.parametrize(
    ("name", "seed"),
    [pytest.param(name, seed, marks=[pytest.mark.long] if seed == 2 else []) for name in GAMES for seed in range(3)],
)


def inner_x(problem: LinearQuadraticProblem, seed: int) -> Tensor:
    """A point well inside X."""
    low, high = problem.leader_set.low, problem.leader_set.high
    share = 0.1 + 0.8 * torch.rand(problem.leader_dim, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return low + share * (high - low)


def any_policy(problem: LinearQuadraticProblem, x: Tensor, seed: int) -> Tensor:
    """A follower's gain near the best one."""
    F = problem.best_response(x).F
    return F + 0.1 * torch.randn(F.shape, generator=torch.Generator().manual_seed(100 + seed), dtype=F64)


def long_sum(problem: LinearQuadraticProblem, cost: QuadraticCost, x: Tensor, F: Tensor) -> float:
    """-E sum gamma^t c_t by the second moments of s_t, step after step."""
    d, K = problem.dynamics, problem.gain(x)
    M = d.A - d.B_leader @ K - d.B_follower @ F
    stage = cost.Q + K.T @ cost.R_leader @ K + F.T @ cost.R_follower @ F
    S, total, weight = d.start, 0.0, 1.0
    while weight > 1e-17:
        total += weight * float((stage * S).sum() + problem.sigma**2 * cost.R_leader.trace())
        S = M @ S @ M.T + d.noise + problem.sigma**2 * d.B_leader @ d.B_leader.T
        weight *= problem.gamma
    return -total


# --- returns ----------------------------------------------------------------------------------------------------------


@everywhere
def test_returns_are_the_long_sums(name: str, seed: int) -> None:
    problem = GAMES[name](seed)
    x = inner_x(problem, seed)
    F = any_policy(problem, x, seed)
    for cost, value in (
        (problem.leader_cost, problem.leader_return(x, F)),
        (problem.follower_cost, problem.follower_return(x, F)),
    ):
        assert float(value) == pytest.approx(long_sum(problem, cost, x, F), rel=1e-11)


@everywhere
def test_returns_are_differentiable_in_both(name: str, seed: int) -> None:
    problem = GAMES[name](seed)
    x = inner_x(problem, seed)
    F = any_policy(problem, x, seed)
    size = problem.leader_dim
    for value in (problem.leader_return, problem.follower_return):

        def joint(z: Tensor, value: Any = value) -> Tensor:
            return value(z[:size], z[size:].reshape(F.shape))  # type: ignore[no-any-return]

        z = torch.cat([x, F.reshape(-1)]).requires_grad_()
        (gradient,) = torch.autograd.grad(joint(z), [z])
        assert_gradient(gradient, numerical_gradient(joint, z))


# --- the follower's answer --------------------------------------------------------------------------------------------


def riccati_residual(problem: LinearQuadraticProblem, x: Tensor, solution: Tensor) -> float:
    """max |V - min_F cost of F against V|, the minimum by completing the square in numpy."""
    d, c, K, g = problem.dynamics, problem.follower_cost, problem.gain(x).numpy(), problem.gamma
    A, B = (d.A - d.B_leader @ problem.gain(x)).numpy(), d.B_follower.numpy()
    V = solution.numpy()
    cross = g * B.T @ V @ A
    inverse = np.linalg.inv(c.R_follower.numpy() + g * B.T @ V @ B)
    right = c.Q.numpy() + K.T @ c.R_leader.numpy() @ K + g * A.T @ V @ A - cross.T @ inverse @ cross
    return float(np.abs(V - right).max())


@everywhere
def test_the_riccati_equation_holds(name: str, seed: int) -> None:
    problem = GAMES[name](seed)
    for x in (problem.start_x(), inner_x(problem, seed)):
        answer = problem.best_response(x)
        assert answer.residual < 1e-10
        assert riccati_residual(problem, x, answer.V) < 1e-10
        assert riccati_residual(problem, x, 1.001 * answer.V + 1e-6) > 1e-7  # the ruler tells a wrong V


@everywhere
def test_no_other_linear_policy_is_better(name: str, seed: int) -> None:
    problem = GAMES[name](seed)
    x = inner_x(problem, seed)
    F = problem.best_response(x).F
    best = float(problem.follower_return(x, F))
    rng = torch.Generator().manual_seed(seed)
    for scale in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            other = F + scale * torch.randn(F.shape, generator=rng, dtype=F64)
            assert float(problem.follower_return(x, other)) < best
    free = F.clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.follower_return(x, free), [free])
    assert float(slope.norm()) < 1e-9 * max(1.0, abs(best))


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_the_penalised_followers_policy(weight: float) -> None:
    """min_y F_lam is the regulator of c_f + c_l / lam: its slope vanishes, and the penalty falls with lam."""
    problem = coupled(0)
    x = inner_x(problem, 0)
    F = problem.best_response(x, leader_weight=weight).F.requires_grad_()
    value = problem.follower_return(x, F) + weight * problem.leader_return(x, F)
    (slope,) = torch.autograd.grad(value, [F])
    assert float(slope.norm()) < 1e-10
    best = problem.follower_return(x, problem.best_response(x).F)
    less = problem.follower_return(x, problem.best_response(x, leader_weight=weight / 2).F)
    assert float(best) > float(less) > float(problem.follower_return(x, F.detach()))


def test_a_scalar_game_by_hand() -> None:
    """n = 1: the Riccati equation is a quadratic, its root is written down."""
    a, b, q, r, gamma = 0.9, 0.5, 2.0, 0.7, 0.8
    one = torch.ones(1, 1, dtype=F64)
    dynamics = LinearDynamics(a * one, b * one, b * one, 0.1 * one, one)
    cost = QuadraticCost(q * one, r * one, r * one)
    problem = LinearQuadraticProblem(dynamics, cost, cost, gamma, 0.3, LeaderSet.box(1, -0.5, 0.5))
    k = 0.2
    c = a - b * k
    # X (r + g b^2 X) = (q + r k^2)(r + g b^2 X) + g c^2 X r
    g, Q = gamma, q + r * k * k
    A, B, C = g * b * b, r - Q * g * b * b - g * c * c * r, -Q * r
    X = (-B + math.sqrt(B * B - 4 * A * C)) / (2 * A)
    F = g * b * X * c / (r + g * b * b * X)
    m = c - b * F
    P = (Q + r * F * F) / (1 - g * m * m)
    answer = problem.best_response(torch.tensor([k], dtype=F64))
    assert float(answer.V) == pytest.approx(X, rel=1e-12)
    assert float(answer.F) == pytest.approx(F, rel=1e-12)
    assert answer.modulus == pytest.approx(abs(m), rel=1e-12)
    expected = -(P * (1.0 + g / (1 - g) * (0.1 + 0.09 * b * b)) + 0.09 * r / (1 - g))
    assert float(problem.leader_return(torch.tensor([k], dtype=F64), answer.F)) == pytest.approx(expected, rel=1e-12)


# --- the leader's gradient and optimum --------------------------------------------------------------------------------


@everywhere
def test_the_leaders_gradient_is_the_gradient(name: str, seed: int) -> None:
    problem = GAMES[name](seed)
    x = inner_x(problem, seed)

    def solved_anew(z: Tensor) -> Tensor:
        return problem.leader_return(z, problem.best_response(z).F)

    numerical = numerical_gradient(solved_anew, x)
    assert_gradient(problem.leader_return_gradient(x), numerical)
    value = problem.return_at_best_response(x)
    assert float(value) == pytest.approx(float(solved_anew(x)), rel=1e-12)


def test_without_a_future_nobody_steers() -> None:
    """gamma = 0: the follower does nothing, and the leader's input is a cost and no more."""
    problem = steering_game(gamma=0.0)
    x = inner_x(problem, 0)
    assert float(problem.best_response(x).F.norm()) == 0.0
    expected = -2.0 * 0.2 * 0.25 * x  # of leader_effort K S_0 K^T
    torch.testing.assert_close(problem.leader_return_gradient(x), expected, rtol=1e-12, atol=0.0)


def test_without_the_followers_reaction_the_gradient_is_wrong() -> None:
    problem = steering_game()
    x = inner_x(problem, 0)
    z = x.clone().requires_grad_()
    (held,) = torch.autograd.grad(problem.leader_return(z, problem.best_response(x).F), [z])
    right = problem.leader_return_gradient(x)
    assert float((held - right).norm()) > 0.1 * float(right.norm())


@everywhere
def test_the_optimum_is_stationary_and_no_neighbour_is_better(name: str, seed: int) -> None:
    problem = GAMES[name](seed)
    optimum = problem.optimum()
    assert problem.optimum() is optimum
    assert optimum.gradient_norm < 1e-8
    step = problem.project(optimum.x + problem.leader_return_gradient(optimum.x)) - optimum.x
    assert float(step.norm()) < 1e-8
    torch.testing.assert_close(optimum.F, problem.best_response(optimum.x).F)
    assert float(problem.leader_return(optimum.x, optimum.F)) == optimum.leader_return
    rng = torch.Generator().manual_seed(seed)
    for scale in (1e-4, 1e-2, 0.3):
        for _ in range(8):
            other = problem.project(optimum.x + scale * torch.randn(problem.leader_dim, generator=rng, dtype=F64))
            assert float(problem.return_at_best_response(other)) <= optimum.leader_return + 1e-12


def test_the_leader_who_steers_beats_the_one_who_does_not() -> None:
    problem = steering_game()
    optimum = problem.optimum()
    inside = (optimum.x > problem.leader_set.low) & (optimum.x < problem.leader_set.high)
    assert bool(inside.all())
    idle = float(problem.return_at_best_response(problem.start_x()))
    assert optimum.leader_return > 0.7 * idle  # both negative: a cost of 1.96 for one of 3.12
    # without the follower the leader's input reaches nothing it minds
    alone = problem.start_x().requires_grad_()
    (slope,) = torch.autograd.grad(problem.leader_return(alone, torch.zeros(1, 2, dtype=F64)), [alone])
    assert float(slope.norm()) == 0.0


# --- action bounds ----------------------------------------------------------------------------------------------------


def test_the_best_response_hardly_ever_leaves_its_bounds() -> None:
    for problem in (steering_game(), steering_game(sigma=1.0, noise=0.01), random_linear_quadratic(2, 1, seed=4)):
        rng = torch.Generator().manual_seed(0)
        low, high = problem.leader_set.low, problem.leader_set.high
        shares = torch.rand(60, problem.leader_dim, generator=rng, dtype=F64)
        for share in shares:
            assert problem.saturation_probability(low + share * (high - low)) < SATURATION


@pytest.mark.parametrize("seed", range(3))
def test_the_spread_is_that_of_the_transient_and_the_stationary_law(seed: int) -> None:
    problem = random_linear_quadratic(2, 1, seed=seed)
    x, d = inner_x(problem, seed), problem.dynamics
    F = problem.best_response(x).F
    M, S = d.A - d.B_leader @ problem.gain(x) - d.B_follower @ F, d.start
    variances = []
    for _ in range(3000):
        variances.append((F @ S @ F.T).diagonal())
        S = M @ S @ M.T + problem.step_noise
    torch.testing.assert_close(problem.action_spread(x), torch.stack(variances).amax(0).sqrt(), rtol=1e-9, atol=0.0)
    bound = problem.action_bound / problem.action_spread(x)
    expected = sum(math.erfc(float(b) / math.sqrt(2.0)) for b in bound)
    assert problem.saturation_probability(x) == pytest.approx(expected, rel=1e-6)


def game(**changes: Any) -> LinearQuadraticProblem:
    eye = torch.eye(2, dtype=F64)
    parts: dict[str, Any] = {
        "A": 0.8 * eye,
        "B_leader": eye[:, :1],
        "B_follower": eye[:, 1:],
        "noise": 0.1 * eye,
        "start": eye,
        "leader": QuadraticCost(eye, eye[:1, :1], eye[:1, :1]),
        "follower": QuadraticCost(eye, eye[:1, :1], eye[:1, :1]),
        "gamma": 0.9,
        "sigma": 0.2,
        "leader_set": LeaderSet.box(2, -0.1, 0.1),
        "action_bound": None,
        **changes,
    }
    dynamics = LinearDynamics(*(parts[k] for k in ("A", "B_leader", "B_follower", "noise", "start")))
    rest = (parts[k] for k in ("leader", "follower", "gamma", "sigma", "leader_set", "action_bound"))
    return LinearQuadraticProblem(dynamics, *rest)


def test_narrow_bounds_are_refused() -> None:
    wide = game().action_bound
    with pytest.raises(
        ValueError, match=r"action_bound: expected bounds that .* under 1e-06 a step, got 0\.\d+ at x = "
    ):
        game(action_bound=0.1 * wide)
    assert bool((game(action_bound=[100.0]).action_bound == 100.0).all())
    for wrong in ([1.0, 2.0], 0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"^action_bound: expected"):
            game(action_bound=wrong)


# --- bad input --------------------------------------------------------------------------------------------------------

EYE = torch.eye(2, dtype=F64)


ONE, ZERO = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)
BLIND = QuadraticCost(torch.diag(torch.tensor([1.0, 0.0])), ONE, ONE)
SPIRAL = torch.tensor([[0.0, 2.0], [-2.0, 0.0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"A": 1.2 * EYE},
            r"^x: expected eigenvalues of modulus under 1, or one that the follower's input moves, got the eigenvalue "
            r"1\.13842 \(modulus 1\.13842\) of sqrt\(gamma\) \(A - B_leader K\) at K = \[\[0\.0, 0\.0\]\]",
        ),
        (
            {"A": torch.diag(torch.tensor([0.5, 1.2])), "follower": BLIND},
            r"^x: .* or one that the follower's cost sees, got the eigenvalue 1\.13842",
        ),
        ({"A": SPIRAL, "B_follower": torch.zeros(2, 1)}, r"^x: .*the eigenvalue 0[+-]1\.89737i \(modulus 1\.89737\)"),
        ({"A": torch.diag(torch.tensor([1.02, 0.5]))}, "^leader_set: expected .* stable without the discount too"),
        ({"A": torch.ones(2, 3)}, r"^A: expected shape \[2, 2\], got shape \(2, 3\)"),
        ({"A": EYE * math.nan}, "^A: expected finite numbers, got nan"),
        ({"B_leader": torch.ones(3, 1)}, r"^B_leader: expected shape \[2, m\], got shape \(3, 1\)"),
        ({"B_follower": torch.ones(2)}, r"^B_follower: expected shape \[2, m\], got shape \(2,\)"),
        ({"noise": -EYE}, "^noise: expected a positive semidefinite matrix, got the eigenvalue -1"),
        ({"start": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, "^start: expected a symmetric matrix"),
        ({"leader": QuadraticCost(ONE, ONE, ONE)}, r"^leader_cost\.Q: expected shape \(2, 2\), got shape \(1, 1\)"),
        (
            {"follower": QuadraticCost(EYE, ONE, ZERO)},
            r"^follower_cost\.R_follower: expected a positive definite matrix",
        ),
        ({"gamma": 1.0}, r"^gamma: expected a number in \[0, 1\)"),
        ({"sigma": 0.0}, "^sigma: expected"),
        ({"leader_set": LeaderSet.box(3, -1, 1)}, "^leader_set: expected 2 coordinates, K of 1 x 2, got 3"),
    ],
)
def test_bad_games_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        game(**changes)


@pytest.mark.parametrize("name", ["Q", "R_leader", "R_follower"])
def test_bad_costs_are_named(name: str) -> None:
    parts = {"Q": EYE, "R_leader": EYE, "R_follower": EYE}
    with pytest.raises(ValueError, match=f"^{name}: expected a positive semidefinite matrix, got the eigenvalue -0.5"):
        QuadraticCost(**{**parts, name: torch.diag(torch.tensor([1.0, -0.5]))})
    with pytest.raises(ValueError, match=f"^{name}: expected a symmetric matrix, got entries that differ by 3"):
        QuadraticCost(**{**parts, name: torch.tensor([[1.0, 3.0], [0.0, 1.0]])})


def test_unstable_loops_name_the_eigenvalue() -> None:
    problem = game()
    x = torch.zeros(2, dtype=F64)
    with pytest.raises(
        ValueError, match=r"^F: .*got the eigenvalue 1\.70763 \(modulus 1\.70763\) of sqrt\(gamma\) \(A - B_l"
    ):
        problem.leader_return(x, torch.tensor([[0.0, -1.0]], dtype=F64))
    with pytest.raises(ValueError, match=r"^F: expected shape \(1, 2\), got shape \(2, 1\)"):
        problem.follower_return(x, torch.zeros(2, 1, dtype=F64))
    outside = torch.tensor([-1.0, 0.0], dtype=F64)  # no point of X; the mathematics is asked all the same
    for ask in (problem.best_response, problem.return_at_best_response, problem.leader_return_gradient):
        with pytest.raises(ValueError, match=r"^x: .*the eigenvalue 1\.70763 .*at K = \[\[-1\.0, 0\.0\]\]"):
            ask(outside)
    with pytest.raises(ValueError, match=r"tau: expected 0: the follower is not regularised, got 0\.1"):
        problem.optimum(0.1)


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (steering_game, {"gamma": 1.0}, "gamma: expected"),
        (steering_game, {"leader_effort": -1.0}, "leader_effort: expected"),
        (steering_game, {"noise": 0.0}, "noise: expected"),
        (random_linear_quadratic, {"n_states": 0}, "n_states: expected"),
        (random_linear_quadratic, {"seed": -1}, "seed: expected"),
    ],
)
def test_bad_arguments_are_named(make: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_a_pickled_game_is_the_same() -> None:
    problem = steering_game()
    again = pickle.loads(pickle.dumps(problem))
    assert again.optimum().leader_return == problem.optimum().leader_return
