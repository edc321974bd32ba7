"""Zero-sum games: the players' views, the equilibrium against closed forms and linear programs, exploitability."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from bilevel_gym.envs.mdp import (
    NashEquilibrium,
    ZeroSumGame,
    attach_nash,
    best_responses,
    joint_return,
    joint_value,
    matrix_game,
    negative_entropy,
    nikaido_isoda_gap,
    player_mdp,
    policy_value,
    regularised_matrix_game,
    solve_nash,
)
from tests.games import moved_game, random_game, random_pair
from tests.problems import F64, assert_gradient, autograd, generator, numerical_gradient, slope

ROCK_PAPER_SCISSORS = [[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]


def one_shot(payoffs: Any) -> ZeroSumGame:
    r = torch.as_tensor(payoffs, dtype=F64)
    return ZeroSumGame.from_payoffs(r, -r)


def test_rock_paper_scissors() -> None:
    for tau in (0.0, 0.01, 1.0):
        nash = solve_nash(one_shot(ROCK_PAPER_SCISSORS), tau)
        for side in (nash.V, nash.pi1 - 1 / 3, nash.pi2 - 1 / 3):
            torch.testing.assert_close(side, torch.zeros_like(side), rtol=0.0, atol=1e-8)
        assert nash.residual < 1e-9


@pytest.mark.parametrize(("a", "b", "c", "d"), [(1, -1, -1, 1), (3, -1, -2, 5), (0.5, 0.1, -4, 0.2)])
def test_matching_pennies_with_unequal_payoffs(a: float, b: float, c: float, d: float) -> None:
    """No saddle in pure strategies: p = (d-c)/N, q = (d-b)/N, value (ad-bc)/N with N = a-b-c+d."""
    nash = solve_nash(one_shot([[a, b], [c, d]]), 0.0)
    N = a - b - c + d
    assert float(nash.pi1[0, 0]) == pytest.approx((d - c) / N, abs=1e-8)
    assert float(nash.pi2[0, 0]) == pytest.approx((d - b) / N, abs=1e-8)
    assert float(nash.V[0]) == pytest.approx((a * d - b * c) / N, abs=1e-8)


def program_value(A: np.ndarray[Any, Any]) -> float:
    """Player 2's program: min v s.t. A q <= v. The other side of the one that the library solves."""
    rows, columns = A.shape
    answer = linprog(
        np.append(np.zeros(columns), 1.0),
        A_ub=np.hstack([A, -np.ones((rows, 1))]),
        b_ub=np.zeros(rows),
        A_eq=np.append(np.ones(columns), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * columns + [(None, None)],
        method="highs-ipm",
    )
    return float(answer.fun)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4), (4, 1)])
def test_random_matrix_games_against_a_linear_program(shape: tuple[int, int]) -> None:
    A = 10.0 * torch.randn(4, *shape, generator=generator(sum(shape)), dtype=F64)
    p, q = matrix_game(A)
    low, up = (A.mT @ p.unsqueeze(-1)).amin((-1, -2)), (A @ q.unsqueeze(-1)).amax((-1, -2))
    torch.testing.assert_close(low, up, rtol=0.0, atol=1e-8)
    nash = solve_nash(ZeroSumGame.from_payoffs(A, -A), 0.0)
    for i, payoffs in enumerate(A.numpy()):
        assert float(nash.V[i]) == pytest.approx(program_value(payoffs), abs=1e-7)  # the other program's own accuracy
    torch.testing.assert_close(nash.V, low, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("tau", [10.0, 0.1, 0.01])
@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (20, 20), (1, 4), (4, 1)])
def test_a_regularised_matrix_game_is_a_fixed_point(shape: tuple[int, int], tau: float) -> None:
    A = 3.0 * torch.rand(7, *shape, generator=generator(0), dtype=F64)
    p, q = regularised_matrix_game(A, tau)
    torch.testing.assert_close(p, torch.softmax((A @ q.unsqueeze(-1)).squeeze(-1) / tau, -1), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(q, torch.softmax(-(A.mT @ p.unsqueeze(-1)).squeeze(-1) / tau, -1), rtol=1e-8, atol=1e-10)


def residual(game: ZeroSumGame, V: Tensor, pi1: Tensor, pi2: Tensor, tau: float) -> float:
    """How much the value of each state's matrix game, played best by either side, differs from V; in numpy."""
    worst = 0.0
    for s in range(game.n_states):
        A = (game.r[s] + game.gamma * game.P[s] @ V).numpy()
        p, q = pi1[s].numpy(), pi2[s].numpy()
        up, low = A @ q, A.T @ p
        if tau > 0.0:
            h = [float((v * np.log(np.maximum(v, 1e-300))).sum()) for v in (p, q)]
            best = up.max() + tau * np.log(np.exp((up - up.max()) / tau).sum()) + tau * h[1]
            worst_case = low.min() - tau * np.log(np.exp((low.min() - low) / tau).sum()) - tau * h[0]
        else:
            best, worst_case = up.max(), low.min()
        worst = max(worst, abs(best - float(V[s])), abs(worst_case - float(V[s])))
    return worst


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01, 0.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_equilibrium_of_a_markov_game(seed: int, tau: float) -> None:
    game = random_game(seed, n_states=6, n_actions=(4, 3), sharp=4.0)
    nash = solve_nash(game, tau)
    assert residual(game, nash.V, nash.pi1, nash.pi2, tau) < 1e-9
    assert nash.residual == pytest.approx(residual(game, nash.V, nash.pi1, nash.pi2, tau), abs=1e-12)
    assert abs(float(nikaido_isoda_gap(game, nash.pi1, nash.pi2, tau))) < 1e-8
    warm = solve_nash(game, tau, nash.V)
    assert warm.iterations <= 2
    torch.testing.assert_close(warm.V, nash.V, rtol=0.0, atol=1e-8)


def test_a_batch_is_its_instances() -> None:
    game = random_game(2, n_states=3, n_actions=(3, 2), batch=(2,))
    for tau in (0.1, 0.0):
        nash = solve_nash(game, tau)
        for i in range(2):
            one = solve_nash(ZeroSumGame(game.P[i], game.r[i], game.rho[i], game.gamma), tau)
            torch.testing.assert_close(nash.V[i], one.V, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("tau", [1.0, 0.2, 0.05])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("n_actions", [(3, 2), (2, 4)])
def test_the_equilibrium_s_derivative(n_actions: tuple[int, int], batch: tuple[int, ...], tau: float) -> None:
    """V, pi1 and pi2, weighed at random, against differences of the equilibrium solved anew; x moves r and P."""
    game, x = random_game(4, n_states=3, n_actions=n_actions, batch=batch), torch.tensor([0.3, -0.5, 0.2], dtype=F64)
    shapes = [(*batch, 3, n) for n in (1, *n_actions)]
    weights = [torch.randn(*shape, generator=generator(i), dtype=F64) for i, shape in enumerate(shapes)]

    for part in range(3):

        def total(nash: NashEquilibrium) -> Tensor:
            return (weights[part] * (nash.V.unsqueeze(-1), nash.pi1, nash.pi2)[part]).sum()  # noqa: B023

        def attached(z: Tensor) -> Tensor:
            at_z = moved_game(game, z)
            return total(attach_nash(at_z, tau, solve_nash(at_z, tau)))

        numerical = numerical_gradient(
            lambda z: total(solve_nash(moved_game(game, z), tau, tol=1e-13)), x, h=min(1e-3, 5e-3 * tau)
        )
        assert_gradient(autograd(attached, x), numerical)


def test_attaching_changes_no_value() -> None:
    game = random_game(6)
    nash = solve_nash(game, 0.1)
    attached = attach_nash(game, 0.1, nash)
    for name in ("V", "pi1", "pi2"):
        torch.testing.assert_close(getattr(attached, name), getattr(nash, name), rtol=0.0, atol=1e-13)
    with pytest.raises(ValueError, match=r"^tau: expected"):
        attach_nash(game, 0.0, nash)


def test_an_unsolved_game_is_said() -> None:
    """Too few rounds; and a temperature of a millionth of the rewards, which rounding does not let be solved."""
    game = random_game(0, n_states=6, n_actions=(4, 3))
    with pytest.warns(RuntimeWarning, match=r"limit of 1 rounds with residual"):
        nash = solve_nash(game, 0.1, max_iterations=1)
    assert nash.residual > 1e-6
    hard = ZeroSumGame(game.P, 1000.0 * game.r, game.rho, 0.9)
    with pytest.warns(RuntimeWarning, match=r"a larger tau than 0.0001 is easier"):
        solve_nash(hard, 1e-4, max_iterations=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert solve_nash(game, 0.1, max_iterations=30).residual < 1e-9


@pytest.mark.filterwarnings("ignore:solve_nash stopped")  # after one step, as asked
def test_newton_is_quadratic() -> None:
    """From V* plus an error e, one evaluation of the saddle point's policies leaves an error of order e^2."""
    game = random_game(3, n_states=5, n_actions=(3, 3), sharp=4.0)
    nash = solve_nash(game, 0.3, tol=1e-14)
    direction = torch.randn(5, generator=generator(0), dtype=F64)
    sizes = 10.0 ** torch.arange(-3.0, -0.9, 0.5, dtype=F64)
    left = [solve_nash(game, 0.3, nash.V + e * direction, max_iterations=1).V - nash.V for e in sizes]
    errors = [float(e.abs().max()) for e in left]
    assert slope(sizes.log(), np.log(errors)) == pytest.approx(2.0, abs=0.15)


def test_newton_s_steps_are_guarded() -> None:
    """A game of van der Wal's kind, in which Newton's steps alone go 12, 4, 12, 4, ...; its value is 8."""
    P, r = torch.zeros(2, 2, 2, 2, dtype=F64), torch.zeros(2, 2, 2, dtype=F64)
    P[0, :, :, 0] = torch.tensor([[1.0, 1 / 3], [1.0, 1.0]], dtype=F64)
    P[..., 1] = 1.0 - P[..., 0]
    r[0] = torch.tensor([[3.0, 6.0], [2.0, 1.0]], dtype=F64)
    game = ZeroSumGame(P, r, torch.tensor([1.0, 0.0], dtype=F64), 0.75)
    V, newton = torch.zeros(2, dtype=F64), []
    for _ in range(4):
        V = joint_value(game, *matrix_game(game.r + game.gamma * (game.P @ V.view(1, 1, 2, 1)).squeeze(-1)))
        newton.append(float(V[0]))
    assert newton == pytest.approx([12.0, 4.0, 12.0, 4.0])
    for tau in (0.0, 0.01):
        nash = solve_nash(game, tau)
        assert float(nash.V[0]) == pytest.approx(8.0, abs=1e-8)
        assert nash.residual < 1e-9


def test_both_players_see_one_value() -> None:
    """Player 1's MDP has the value V, player 2's -V; and V is the expectation written out."""
    game = random_game(4, batch=(2,))
    pi1, pi2 = random_pair(game, 4)
    for tau in (0.0, 0.2):
        V = joint_value(game, pi1, pi2, tau)
        torch.testing.assert_close(policy_value(player_mdp(game, 2, pi1, tau), pi2, tau), -V, rtol=1e-12, atol=1e-12)
        joint = pi1.unsqueeze(-1) * pi2.unsqueeze(-2)
        reward = (joint * game.r).sum((-1, -2)) - tau * negative_entropy(pi1) + tau * negative_entropy(pi2)
        P = (joint.unsqueeze(-1) * game.P).sum((-2, -3))
        torch.testing.assert_close(V, reward + game.gamma * (P @ V.unsqueeze(-1)).squeeze(-1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(joint_return(game, pi1, pi2, tau), (game.rho * V).sum(-1))


@pytest.mark.parametrize("tau", [0.2, 0.0])
def test_the_gap_is_exploitability_and_positive_elsewhere(tau: float) -> None:
    game = random_game(5)
    for seed in range(5):
        pi1, pi2 = random_pair(game, seed, spread=3.0)
        first, second = best_responses(game, pi1, pi2, tau)
        gains = joint_return(game, first.pi, pi2, tau) - joint_return(game, pi1, second.pi, tau)
        gap = nikaido_isoda_gap(game, pi1, pi2, tau)
        torch.testing.assert_close(gap, gains, rtol=1e-8, atol=1e-9)
        assert float(gap) > 1e-3


def test_the_gap_of_a_matrix_game_of_known_value() -> None:
    """max_a (A q)_a - min_b (A^T p)_b, by hand for rock, paper, scissors."""
    game = one_shot(ROCK_PAPER_SCISSORS)
    p, q = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64), torch.tensor([[0.5, 0.5, 0.0]], dtype=F64)
    assert float(nikaido_isoda_gap(game, p, q, 0.0)) == pytest.approx(0.5 + 1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("P", torch.ones(2, 2, 2, 3)),
        ("P", torch.ones(2, 2, 2, 2)),
        ("r", torch.full((2, 2, 2), float("nan"))),
        ("r", torch.ones(2, 2)),
        ("rho", [0.5, 0.6]),
        ("rho", [1.0]),
        ("gamma", 1.0),
    ],
)
def test_wrong_fields_are_named(field: str, value: Any) -> None:
    fields: dict[str, Any] = {
        "P": torch.full((2, 2, 2, 2), 0.5),
        "r": torch.zeros(2, 2, 2),
        "rho": [0.5, 0.5],
        "gamma": 0.9,
    }
    ZeroSumGame(**fields)
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        ZeroSumGame(**(fields | {field: value}))


def test_payoffs_that_do_not_add_up_to_zero_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^r2: expected -r1.*got 3 and -2 at index \(0, 1\)"):
        ZeroSumGame.from_payoffs([[1.0, 3.0]], [[-1.0, -2.0]])
    with pytest.raises(ValueError, match=r"^r2: expected shape"):
        ZeroSumGame.from_payoffs([[1.0, 3.0]], [[-1.0]])


def test_unequal_sizes_are_named() -> None:
    r = torch.zeros(2, 3, 2, 2, dtype=F64)  # two games of three states
    P = torch.full((3, 2, 2, 3), 1 / 3, dtype=F64)
    assert ZeroSumGame.from_payoffs(r, -r, P, gamma=0.5).batch_shape == (2,)
    with pytest.raises(ValueError, match=r"^P: expected batch axes that broadcast"):
        ZeroSumGame.from_payoffs(r, -r, P.expand(5, 3, 2, 2, 3), gamma=0.5)
    with pytest.raises(ValueError, match=r"^r2: expected shape \(2, 3, 2, 2\), as r1 has"):
        ZeroSumGame.from_payoffs(r, -r[:1])
    with pytest.raises(ValueError, match=r"^P: expected shape \[..., 3, 2, 2, 3\], as r has"):
        ZeroSumGame.from_payoffs(r, -r, P[:2])
    with pytest.raises(ValueError, match=r"^rho: expected shape \[..., 3\], as r has"):
        ZeroSumGame.from_payoffs(r, -r, P, rho=[0.5, 0.5])


def test_wrong_arguments_are_named() -> None:
    game = random_game(0)
    pi1, pi2 = random_pair(game, 0)
    with pytest.raises(ValueError, match=r"^player: expected"):
        player_mdp(game, 3, pi2, 0.1)
    with pytest.raises(ValueError, match=r"^held: expected"):
        player_mdp(game, 1, pi1[..., :1], 0.1)
    with pytest.raises(ValueError, match=r"^tau: expected"):
        solve_nash(game, -1.0)
