"""The Nikaido-Isoda penalty: sign, zeros, exploitability, and gradients against differences of psi solved anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import Geometric, NikaidoIsodaPenalty
from bilevel_gym.agents.lower_levels import TwoPlayers
from bilevel_gym.envs.mdp import (
    ZeroSumGame,
    best_responses,
    nikaido_isoda_gap,
    player_mdp,
    solve_nash,
    solve_soft,
    start_value,
)
from tests.games import moved_game, random_game, random_pair
from tests.problems import F64, assert_gradient, autograd, numerical_gradient, relative_error

TAU = 0.2


def value(game: ZeroSumGame, pi: tuple[Tensor, Tensor], best: tuple[Tensor, Tensor]) -> Tensor:
    """The penalty, its best responses held."""
    return NikaidoIsodaPenalty().value(TwoPlayers(None), game, pi, best, TAU)


def psi(game: ZeroSumGame, pi1: Tensor, pi2: Tensor, tau: float = TAU) -> Tensor:
    """The penalty, both best responses solved here and now."""
    mdps = player_mdp(game, 1, pi2, tau), player_mdp(game, 2, pi1, tau)
    first, second = (start_value(mdp, solve_soft(mdp, tau, tol=1e-13).V) for mdp in mdps)
    return (first + second).sum()


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_psi_solved_anew(seed: int, batch: tuple[int, ...]) -> None:
    game = random_game(seed, n_states=3, batch=batch)
    x = torch.tensor([0.3, -0.5, 0.2], dtype=F64)
    at_x = moved_game(game, x)
    pi1, pi2 = random_pair(game, seed)
    star1, star2 = (answer.pi for answer in best_responses(at_x, pi1, pi2, TAU))

    def penalty(game: ZeroSumGame, pi1: Tensor, pi2: Tensor) -> Tensor:
        return value(game, (pi1, pi2), (star1, star2)).sum()

    in_x = numerical_gradient(lambda z: psi(moved_game(game, z), pi1, pi2), x)
    in_1 = numerical_gradient(lambda p: psi(at_x, p, pi2), pi1)
    in_2 = numerical_gradient(lambda p: psi(at_x, pi1, p), pi2)
    assert_gradient(autograd(lambda z: penalty(moved_game(game, z), pi1, pi2), x), in_x)
    assert_gradient(autograd(lambda p: penalty(at_x, p, pi2), pi1), in_1)
    assert_gradient(autograd(lambda p: penalty(at_x, pi1, p), pi2), in_2)

    nash = solve_nash(at_x, TAU)  # a Nash solve in place of the two best responses gives another gradient
    wrong = autograd(lambda p: value(at_x, (p, pi2), (nash.pi1, nash.pi2)).sum(), pi1)
    assert relative_error(wrong, in_1) > 0.01


@pytest.mark.parametrize("tau", [1.0, TAU, 0.0])
def test_it_is_exploitability_positive_but_for_nash(tau: float) -> None:
    game = random_game(4)
    penalty, level = NikaidoIsodaPenalty(), TwoPlayers(None)
    for seed in range(20):
        pair = random_pair(game, seed, spread=10.0 if seed % 2 else 1.0)
        first, second = best_responses(game, *pair, tau)
        value = penalty.value(level, game, pair, (first.pi, second.pi), tau)
        assert float(value) > 0.0
        torch.testing.assert_close(value, nikaido_isoda_gap(game, *pair, tau), rtol=1e-9, atol=1e-9)
    nash = solve_nash(game, tau)
    pair = nash.pi1, nash.pi2
    first, second = best_responses(game, *pair, tau)
    assert abs(float(penalty.value(level, game, pair, (first.pi, second.pi), tau))) < 1e-9
    if tau > 0.0:
        for s in range(game.n_states):  # a mistake in any single state, of either player, is seen
            for player in (0, 1):
                wrong = [p.clone() for p in pair]
                wrong[player][s] = 0.9 * wrong[player][s] + 0.1 * torch.eye(wrong[player].shape[-1], dtype=F64)[0]
                assert float(nikaido_isoda_gap(game, wrong[0], wrong[1], tau)) > 1e-6


def test_lam_is_checked_and_scheduled() -> None:
    assert NikaidoIsodaPenalty().lam_at(1.0) == 4.0
    assert NikaidoIsodaPenalty(lam=Geometric(1.0, 10.0)).lam_at(0.0) == pytest.approx(10.0)
    with pytest.raises(ValueError, match=r"^lam: expected"):
        NikaidoIsodaPenalty(lam=0.0)
