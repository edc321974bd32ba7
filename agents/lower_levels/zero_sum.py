"""The lower level of a zero-sum game's two players; its solution is the Nash equilibrium."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...envs.mdp import (
    NashEquilibrium,
    TabularMDP,
    ZeroSumGame,
    attach_nash,
    game_world,
    player_mdp,
    policy_return,
    solve_nash,
)
from ...envs.mdp.checks import require
from ..monte_carlo import Sampler
from ..penalties import NikaidoIsodaPenalty, Penalty
from .base import Policies, TabularLevel


class TwoPlayers(TabularLevel):
    """The two players of a zero-sum game."""

    rate: ClassVar[float | None] = 0.2
    n_players: ClassVar[int] = 2
    zero_sum: ClassVar[bool] = True

    @cached_property
    def views(self) -> tuple[TabularMDP, TabularMDP]:
        game = self.problem.game(self.problem.start_x()).detach()
        shape = (*game.batch_shape, game.n_states)
        uniform = tuple(torch.full((*shape, n), 1.0 / n, dtype=game.r.dtype) for n in game.n_actions)
        return self.faced(game, uniform, 0.0)

    def model(self, x: Tensor) -> ZeroSumGame:
        return self.problem.game(x)  # type: ignore[no-any-return]

    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        return self.problem.leader_return(x, pi)  # type: ignore[no-any-return]

    def faced(self, model: ZeroSumGame, pi: Policies, tau: float) -> tuple[TabularMDP, TabularMDP]:
        pi1, pi2 = pi
        return player_mdp(model, 1, pi2, tau), player_mdp(model, 2, pi1, tau)

    def value(self, model: ZeroSumGame, player: int, pi: Policies, tau: float) -> Tensor:
        return policy_return(player_mdp(model, player + 1, pi[1 - player], tau), pi[player], tau)

    def solve(self, model: ZeroSumGame, tau: float, V: Tensor | None = None) -> NashEquilibrium:
        return solve_nash(model, tau, V)

    def attach(self, model: ZeroSumGame, tau: float, solution: NashEquilibrium) -> NashEquilibrium:
        return attach_nash(model, tau, solution)

    def policies(self, solution: NashEquilibrium) -> tuple[Tensor, Tensor]:
        return solution.pi1, solution.pi2

    def values(self, solution: NashEquilibrium) -> tuple[Tensor, Tensor]:
        return solution.V, -solution.V

    def default_penalty(self, lam: Any) -> Penalty:
        return NikaidoIsodaPenalty(lam=lam)

    # --- from episodes

    def require_return(self) -> None:
        paid = self.problem.leader_game(self.problem.start_x()) is not None
        expected = f"None, exact gradients: the leader's objective in a {type(self.problem).__name__} is not a return"
        require(paid, "estimator", expected, "MonteCarlo")

    def _leader_return(self, x: Tensor, pi: Policies, sampler: Sampler) -> Tensor:
        world = game_world(self.problem.leader_game(x), pi[1])
        return sampler.policy_return(world, pi[0], sampler.play(world, pi[0]))

    def sampled(
        self, x: Tensor, model: Any, penalty: Penalty, pi: Policies, best: Policies, tau: float, sampler: Sampler
    ) -> tuple[Tensor, Tensor]:
        slack = penalty.sampled(model, pi, best, tau, sampler)
        return self.problem.over_contexts(slack), self.problem.over_contexts(self._leader_return(x, pi, sampler))

    def sampled_independent(self, x: Tensor, model: Any, pi: Policies, tau: float, sampler: Sampler) -> Tensor:
        held, (pi1, pi2) = model.detach(), pi
        for_1, for_2 = game_world(held, pi2.detach(), tau), game_world(held, pi2, tau)
        played = sampler.play(for_1, pi1)
        own = sampler.policy_return(for_1, pi1, played, tau)
        own = own - sampler.policy_return(for_2, pi1.detach(), played, tau)
        both = self._leader_return(x, (pi1.detach(), pi2.detach()), sampler) + own
        return self.problem.over_contexts(both)  # type: ignore[no-any-return]
