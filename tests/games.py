"""Small random zero-sum games and pairs of policies."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_gym.envs.mdp import ZeroSumGame
from tests.problems import F64, generator


def random_game(
    seed: int = 0,
    n_states: int = 4,
    n_actions: tuple[int, int] = (3, 2),
    gamma: float = 0.9,
    batch: tuple[int, ...] = (),
    sharp: float = 2.0,
) -> ZeroSumGame:
    """A random game, rho of full support; the larger ``sharp``, the nearer its transitions are to certain."""
    rng, S = generator(seed), n_states
    P = torch.rand(*batch, S, *n_actions, S, generator=rng, dtype=F64) ** sharp
    r = 2.0 * torch.rand(*batch, S, *n_actions, generator=rng, dtype=F64) - 0.5
    rho = 0.1 + torch.rand(*batch, S, generator=rng, dtype=F64)
    return ZeroSumGame(P / P.sum(-1, keepdim=True), r, rho / rho.sum(-1, keepdim=True), gamma)


def random_pair(game: ZeroSumGame, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two policies of full support."""
    rng, shape = generator(500 + seed), (*game.batch_shape, game.n_states)
    pi1, pi2 = (torch.softmax(spread * torch.randn(*shape, n, generator=rng, dtype=F64), -1) for n in game.n_actions)
    return pi1, pi2


def moved_game(game: ZeroSumGame, x: Tensor) -> ZeroSumGame:
    """x, ``[..., 3]``, moves the rewards and the transitions."""
    rng = generator(77)
    phi, kappa = (torch.randn(3, *t.shape, generator=rng, dtype=F64) for t in (game.r, game.P))
    mix = [(torch.sin(x) @ f.flatten(1)).unflatten(-1, f.shape[1:]) for f in (phi, kappa)]
    return ZeroSumGame(torch.softmax(game.P.log() + mix[1], -1), game.r + mix[0], game.rho, game.gamma, validate=False)
