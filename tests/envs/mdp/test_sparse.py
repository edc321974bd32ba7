"""Sparse models against the dense ones, central differences and a direct solver."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, eye_array
from scipy.sparse.linalg import splu
from torch import Tensor

from bilevel_gym.agents import (
    BellmanPenalty,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    SoBiRL,
    SoBiRLConfig,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    ZeroOrder,
)
from bilevel_gym.agents.baselines.independent_policy_gradient import IndependentPolicyGradientConfig
from bilevel_gym.agents.baselines.zero_order import ZeroOrderConfig
from bilevel_gym.agents.held_policies import Direct, Softmax
from bilevel_gym.agents.leaders.hypergradient import soft_leader_return
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    GridMap,
    LeaderSet,
    SparseMDP,
    TabularMDP,
    action_value,
    induced_transition,
    mdp_world,
    policy_return,
    policy_value,
    solve_soft,
    start_value,
    suboptimality,
    visitation,
)
from bilevel_gym.envs.mdp import sparse as sparse_module
from bilevel_gym.envs.mdp.sparse import Resolvent
from tests.problems import (
    F64,
    MDPS,
    assert_gradient,
    autograd,
    generator,
    numerical_gradient,
    random_mdp,
    random_policy,
    random_x,
    residual,
)

SINGLE = [name for name in MDPS if not name.startswith("batched")]
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}


def to_sparse(mdp: TabularMDP) -> SparseMDP:
    P = csr_array(mdp.P.reshape(-1, mdp.n_states).numpy())
    return SparseMDP(P, mdp.r, mdp.rho, mdp.gamma, mdp.terminal, mdp.mask, mdp.terminal_entropy)


def grid_mdp(side: int, gamma: float, seed: int = 0, intended: float = 0.7) -> SparseMDP:
    """A square grid, a uniform reward in each cell."""
    n = side * side
    r = torch.rand(n, 1, generator=generator(seed), dtype=F64).repeat(1, 4)
    P = GridMap.open(side, side).sparse_transition(intended)
    return SparseMDP(P, r, torch.full((n,), 1 / n, dtype=F64), gamma)


# --- the follower ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01, 0.001, 0.0])
@pytest.mark.parametrize("name", SINGLE)
def test_the_soft_optimum_is_the_dense_one(name: str, tau: float) -> None:
    dense = MDPS[name](5)
    expected, answer = solve_soft(dense, tau), solve_soft(to_sparse(dense), tau, tol=1e-13)
    torch.testing.assert_close(answer.V, expected.V, **CLOSE)
    torch.testing.assert_close(answer.Q, expected.Q, **CLOSE)
    torch.testing.assert_close(answer.pi, expected.pi, rtol=0.0, atol=1e-10 / max(tau, 0.01))
    assert residual(dense, answer.V, tau) < 1e-10
    assert answer.residual == pytest.approx(residual(dense, answer.V, tau), abs=1e-13)
    assert answer.products > 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_evaluation_is_the_dense_one(seed: int, gamma: float) -> None:
    dense = random_mdp(seed, 12, 4, gamma, terminal=True, masked=True, terminal_entropy=bool(seed % 2))
    sparse, pi = to_sparse(dense), random_policy(dense, seed)
    V = policy_value(dense, pi, 0.3)
    torch.testing.assert_close(policy_value(sparse, pi, 0.3), V, **CLOSE)
    torch.testing.assert_close(policy_value(sparse, pi, 0.3, guess=V + 0.1), V, **CLOSE)
    torch.testing.assert_close(visitation(sparse, pi), visitation(dense, pi), **CLOSE)
    torch.testing.assert_close(action_value(sparse, V), action_value(dense, V), **CLOSE)
    optimum = solve_soft(dense, 0.3)
    torch.testing.assert_close(suboptimality(sparse, pi, 0.3, optimum), suboptimality(dense, pi, 0.3, optimum), **CLOSE)


@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_a_grid_is_evaluated_as_a_direct_solver_does(gamma: float) -> None:
    mdp = grid_mdp(40, gamma)
    pi = random_policy(mdp, 1, spread=3.0)
    P_pi = csr_array((pi.reshape(-1).numpy(), np.arange(6400), np.arange(0, 6401, 4)), shape=(1600, 6400)) @ mdp.P
    lu = splu((eye_array(1600) - gamma * P_pi).tocsc())
    V, d = lu.solve((pi * mdp.r).sum(-1).numpy()), lu.solve(mdp.rho.numpy(), trans="T")
    torch.testing.assert_close(policy_value(mdp, pi), torch.from_numpy(V), **CLOSE)
    torch.testing.assert_close(visitation(mdp, pi), torch.from_numpy(d), **CLOSE)
    assert float(visitation(mdp, pi).sum()) == pytest.approx(1 / (1 - gamma), rel=1e-11)


def test_a_map_has_the_same_transitions_sparse_and_dense() -> None:
    grid = GridMap(["  x ", "x   ", "   x"])
    for intended in (1.0, 0.7, 0.0):
        sparse = grid.sparse_transition(intended)
        dense = grid.transition(intended).reshape(-1, grid.n_cells)
        np.testing.assert_allclose(sparse.toarray(), dense, rtol=0.0, atol=1e-15)
        assert sparse.nnz == int((dense > 0).sum())
    with pytest.raises(ValueError, match="intended"):
        grid.sparse_transition(1.2)


# --- convergence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "tau"), [(0.99, 0.01), (0.999, 0.0), (0.9999, 0.01)])
def test_it_converges_on_a_grid(gamma: float, tau: float) -> None:
    mdp = grid_mdp(100, gamma)
    answer = solve_soft(mdp, tau)
    assert answer.residual <= 1e-11 * float(answer.V.abs().max())
    assert answer.iterations < 60
    assert answer.products < math.log(1e-11) / math.log(gamma)  # value iteration's sweeps
    again = solve_soft(mdp, tau, answer.V)
    assert (again.iterations, again.products) == (0, 0)
    near = solve_soft(mdp.with_reward(mdp.r + 1e-4), tau, answer.V)
    assert near.iterations <= 3
    torch.testing.assert_close(near.V, answer.V + 1e-4 / (1 - gamma), rtol=1e-8, atol=0.0)


@pytest.mark.long
def test_the_loosest_inner_solves_alone_do_not_converge() -> None:
    """Rounding decides on which grids. With the tightening that :func:`solve_soft` does all of them do."""
    strayed = 0
    for seed in range(8):
        mdp = grid_mdp(100, 0.9999, seed)
        solved = solve_soft(mdp, 0.01)
        assert solved.residual <= 1e-11 * float(solved.V.abs().max())
        V = torch.zeros(mdp.n_states, dtype=F64)
        for _ in range(2 * solved.iterations):
            answer = solve_soft(mdp, 0.01, V, max_iterations=1)  # eta starts anew at its loosest
            V = answer.V
        strayed += answer.residual > 1.0
    assert strayed >= 2


@pytest.mark.parametrize("transposed", [False, True])
def test_where_the_krylov_method_stagnates_sweeps_go_on(monkeypatch: pytest.MonkeyPatch, transposed: bool) -> None:
    dense = random_mdp(3, 30, 3, 0.95)
    mdp, pi = to_sparse(dense), random_policy(dense, 3)
    b = torch.randn(30, generator=generator(0), dtype=F64).numpy()
    matrix = np.eye(30) - 0.95 * (pi.unsqueeze(-2) @ dense.P).squeeze(-2).numpy()
    expected = np.linalg.solve(matrix.T if transposed else matrix, b)
    for useless in (lambda v: np.zeros_like(v), lambda v: v * math.nan, lambda v: 1e3 * v):
        monkeypatch.setattr(sparse_module, "bicgstab", lambda _, e, f=useless, **__: (f(e), -10))
        resolvent = Resolvent(mdp, pi)
        np.testing.assert_allclose(resolvent.solve(b, 1e-12, transposed), expected, rtol=0.0, atol=1e-10)
        assert resolvent.products < 1.2 * math.log(1e-14) / math.log(0.95) + 30


def test_a_residual_that_rounding_forbids_ends() -> None:
    mdp = grid_mdp(10, 0.9)
    pi = random_policy(mdp)
    b = mdp.r[:, 0].numpy()
    V = Resolvent(mdp, pi).solve(b, 0.0)
    torch.testing.assert_close(torch.from_numpy(V), policy_value(mdp, pi), rtol=0.0, atol=1e-12)


def test_a_long_cycle() -> None:
    """Every eigenvalue of P_pi lies on the unit circle: the worst case of a Krylov method."""
    n, gamma = 500, 0.95
    P = csr_array((np.ones(n), (np.arange(n), (np.arange(n) + 1) % n)), shape=(n, n))
    r = torch.zeros(n, 1, dtype=F64)
    r[0] = 1.0
    mdp = SparseMDP(P, r, torch.full((n,), 1 / n, dtype=F64), gamma)
    expected = gamma ** (-torch.arange(n, dtype=F64) % n) / (1 - gamma**n)
    torch.testing.assert_close(policy_value(mdp, torch.ones(n, 1, dtype=F64)), expected, **CLOSE)


# --- derivatives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["terminal", "terminal entropy", "masked, terminal", "gamma 0"])
def test_derivatives_are_those_of_the_dense_model(name: str) -> None:
    dense = MDPS[name](2)
    weights = torch.randn(dense.n_states, generator=generator(1), dtype=F64)

    def through(mdp: TabularMDP, z: Tensor) -> Tensor:
        """V, d and Q of a policy and a reward that z moves."""
        pi = torch.softmax(z if mdp.mask is None else z.masked_fill(~mdp.mask, -1e300), -1)
        moved = mdp.with_reward(mdp.r + z.sin())
        V = policy_value(moved, pi, 0.3)
        return (weights * (V + visitation(moved, pi))).sum() + action_value(moved, V).square().sum()

    z = torch.randn(dense.r.shape, generator=generator(3), dtype=F64)
    got = autograd(lambda y: through(to_sparse(dense), y), z)
    torch.testing.assert_close(got, autograd(lambda y: through(dense, y), z), rtol=1e-9, atol=1e-10)
    assert_gradient(got, numerical_gradient(lambda y: through(to_sparse(dense), y), z))


def test_only_first_derivatives() -> None:
    mdp = to_sparse(random_mdp(0))
    V = torch.zeros(5, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(action_value(mdp, V).square().sum(), V, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def reward_problem(base: TabularMDP, seed: int = 0) -> ArrayProblem:
    """x, four numbers, moves both rewards, neither linearly; dense or sparse as the base is."""
    phi = torch.randn(4, *base.r.shape, generator=generator(seed), dtype=F64)

    def shift(x: Tensor) -> Tensor:
        return (torch.sin(x) @ phi.flatten(1)).view(base.r.shape)

    return ArrayProblem(
        base,
        LeaderSet.box(4, -2.0, 2.0),
        follower_reward=lambda x: base.r + 0.5 * shift(x),
        leader_reward=lambda x: base.r.flip(0) + 0.3 * shift(x + 1.0) - 0.1 * x.square().sum(),
    )


@pytest.mark.parametrize("tau", [0.5, 0.05])
@pytest.mark.parametrize("seed", range(2))
def test_the_hypergradient(seed: int, tau: float) -> None:
    dense = random_mdp(seed, n_actions=4, gamma=0.95, terminal=True, masked=True)
    problem, twin = reward_problem(to_sparse(dense)), reward_problem(dense)
    x = random_x(problem, seed)
    got = autograd(lambda z: soft_leader_return(problem, z, tau)[0], x)
    torch.testing.assert_close(got, autograd(lambda z: soft_leader_return(twin, z, tau)[0], x), rtol=1e-8, atol=1e-9)

    def solved_anew(z: Tensor) -> Tensor:
        return problem.leader_return(z, solve_soft(problem.follower_mdp(z).detach(), tau, tol=1e-13).pi)

    assert_gradient(got, numerical_gradient(solved_anew, x, h=2e-3 * tau))


def test_the_hypergradient_of_a_grid() -> None:
    """Every cell its own price: the derivative along three random directions."""
    base, tau = grid_mdp(30, 0.99), 0.1
    own = torch.rand(900, 1, generator=generator(9), dtype=F64)
    problem = ArrayProblem(
        base,
        LeaderSet.box(900, -1, 1),
        follower_reward=lambda x: base.r + x.unsqueeze(-1),
        leader_reward=lambda x: (own - x.unsqueeze(-1)).repeat(1, 4),
    )
    x = 0.1 * random_x(problem)
    gradient = autograd(lambda z: soft_leader_return(problem, z, tau)[0], x)
    for seed in range(3):
        way = torch.randn(900, generator=generator(seed), dtype=F64)

        def along(t: Tensor, way: Tensor = way) -> Tensor:
            return soft_leader_return(problem, x + t * way, tau)[0]

        numerical = numerical_gradient(along, torch.zeros((), dtype=F64), h=1e-4)
        assert float(gradient @ way) == pytest.approx(float(numerical), rel=1e-6)


# --- leaders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Hypergradient(p, config=HypergradientConfig(tau=0.2, eval_every=4)),
        lambda p: SoBiRL(p, config=SoBiRLConfig(tau=0.2, eval_every=4)),
        lambda p: TabularPBRL(p, penalty=ValuePenalty(3.0), config=TabularPBRLConfig(tau=0.2)),
        lambda p: TabularPBRL(p, penalty=ValuePenalty(3.0), config=TabularPBRLConfig(follower=Softmax(), tau=0.2)),
        lambda p: TabularPBRL(p, penalty=BellmanPenalty(3.0), config=TabularPBRLConfig(follower=Direct(), tau=0.2)),
        lambda p: IndependentPolicyGradient(p, config=IndependentPolicyGradientConfig(tau=0.2)),
        lambda p: ZeroOrder(p, config=ZeroOrderConfig(tau=0.2, directions=2)),
    ],
    ids=["hypergradient", "SoBiRL", "PBRL, solved", "PBRL, softmax", "PBRL, Bellman", "independent", "zero order"],
)
def test_exact_leaders_go_the_same_way(make: Any, tmp_path: Path) -> None:
    dense = random_mdp(1, n_actions=4, gamma=0.8, terminal=True, masked=True)
    problem = reward_problem(to_sparse(dense))
    one, two = make(reward_problem(dense)).learn(8), make(problem).learn(8)
    assert np.linalg.norm(two.last_x) > 0.05
    np.testing.assert_allclose(two.last_x, one.last_x, rtol=0.0, atol=1e-7)
    assert two.evaluate().leader_return == pytest.approx(one.evaluate().leader_return, abs=1e-7)
    loaded = type(two).load(two.save(tmp_path / "leader"), problem)
    np.testing.assert_array_equal(loaded.last_x, two.last_x)
    with pytest.raises(ValueError, match=r"^problem: expected the problem of"):
        type(two).load(
            tmp_path / "leader", reward_problem(to_sparse(random_mdp(2, n_actions=4, gamma=0.8, terminal=True)))
        )


def test_the_model_keeps_its_kind() -> None:
    dense = random_mdp(0, terminal=True, masked=True, terminal_entropy=True)
    mdp = to_sparse(dense)
    moved = mdp.with_reward(mdp.r.clone().requires_grad_())
    assert isinstance(moved, SparseMDP)
    assert isinstance(moved.detach(), SparseMDP)
    assert not moved.detach().r.requires_grad
    assert (mdp.n_states, mdp.n_actions, mdp.batch_shape) == (5, 3, ())
    back = mdp.dense()
    assert type(back) is TabularMDP
    assert torch.equal(back.P, dense.P)
    pi = random_policy(dense)
    assert float(policy_return(back, pi, 0.1)) == float(policy_return(dense, pi, 0.1))
    assert float(start_value(mdp, solve_soft(mdp, 0.1).V)) == pytest.approx(
        float(start_value(dense, solve_soft(dense, 0.1).V))
    )


# --- bad input ----------------------------------------------------------------------------------------------------


def entry(value: float) -> csr_array:
    P = np.full((4, 2), 0.5)
    P[2] = [value, 1.0 - value]
    return csr_array(P)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"P": torch.full((2, 2, 2), 0.5)}, "^P: expected a scipy sparse matrix, got Tensor"),
        ({"P": csr_array(np.full((2, 2), 0.5))}, r"^P: expected shape \(4, 2\), as r has, got shape \(2, 2\)"),
        ({"P": entry(-0.5)}, "^P: expected probabilities >= 0, got -0.5"),
        ({"P": entry(math.nan)}, "^P: expected finite numbers"),
        (
            {"P": csr_array(np.diag([1.0, 0.9]).repeat(2, 0))},
            "^P: expected rows that sum to 1, got a sum of 0.9 in row 2",
        ),
        ({"r": torch.zeros(3, 2, 2)}, r"^r: expected shape \[S, A\], without batch axes"),
        ({"rho": torch.full((3, 2), 0.5)}, r"^rho: expected shape \[S\], without batch axes"),
        ({"terminal": torch.zeros(3, 2, dtype=torch.bool)}, r"^terminal: expected shape \[S\]"),
        ({"mask": torch.ones(3, 2, 2, dtype=torch.bool)}, r"^mask: expected shape \[S, A\]"),
        ({"mask": [[True, True], [False, False]]}, "^mask: expected at least one action"),
        ({"r": [[0.0, math.inf], [0.0, 0.0]]}, "^r: expected finite"),
        ({"gamma": 1.0}, r"^gamma: expected a number in \[0, 1\)"),
    ],
)
def test_bad_models(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"P": entry(0.5), "r": torch.zeros(2, 2), "rho": [0.5, 0.5], "gamma": 0.9}
    SparseMDP(**good)
    with pytest.raises(ValueError, match=message):
        SparseMDP(**(good | changes))


def test_what_is_not_covered_says_so() -> None:
    problem = reward_problem(to_sparse(random_mdp(0)))
    base = problem.base
    pi = random_policy(base)
    for reads_P in (
        lambda: problem.kernel(problem.start_x()),
        lambda: induced_transition(base, pi),
        lambda: mdp_world(base),
    ):
        with pytest.raises(NotImplementedError, match="a dense P is needed here"):
            reads_P()
    with pytest.raises(ValueError, match=r"^transition: expected None with a sparse base"):
        ArrayProblem(base, LeaderSet.box(1, 0, 1), lambda _: base.r, lambda _: base.r, lambda _: base.P)
    for wrong in (pi.expand(2, 5, 3), pi[:, :2]):
        for solve in (policy_value, visitation):
            with pytest.raises(ValueError, match=r"^pi: expected shape \(5, 3\), got shape"):
                solve(base, wrong)
