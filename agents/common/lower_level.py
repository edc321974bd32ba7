r"""The lower level as exact leaders see it: one follower, or the two players of a zero-sum game.

Each player has a policy; while the others' are held it faces an MDP of its own, in which it ascends. The leader is judged at
the level's solution at temperature tau.

    level           player i faces                            solution                       gap, summed over players
    one follower    M(x)                                      the soft optimum pi*_tau(x)    V*(rho) - V^pi(rho)
    two players     the game with the other's policy held     the Nash equilibrium           psi, Nikaido-Isoda (5.6)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ...envs.mdp import (
    BilevelProblem,
    GameProblem,
    NashEquilibrium,
    SoftOptimum,
    TabularMDP,
    TabularProblem,
    ZeroSumGame,
    attach,
    attach_nash,
    player_mdp,
    solve_nash,
    solve_soft,
    suboptimality,
)

Policies = tuple[Tensor, ...]
"""One policy a player, ``[..., S, A_i]``."""
Model = TypeVar("Model", TabularMDP, ZeroSumGame)
Solution = TypeVar("Solution", SoftOptimum, NashEquilibrium)


class LowerLevel(ABC, Generic[Model, Solution]):
    """The players of one problem."""

    @property
    @abstractmethod
    def views(self) -> tuple[TabularMDP, ...]:
        """For each player an MDP with the sizes and the mask of its policies, which x does not change."""

    @abstractmethod
    def model(self, x: Tensor) -> Model:
        """The lower level at x, differentiable in x, ``[dim]``."""

    @abstractmethod
    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        """J_L(x, pi), a scalar."""

    @abstractmethod
    def faced(self, model: Model, pi: Policies, tau: float) -> tuple[TabularMDP, ...]:
        """The MDP of each player while the others hold their policies, differentiable in both."""

    @abstractmethod
    def solve(self, model: Model, tau: float, V: Tensor | None = None) -> Solution:
        """The solution at temperature tau, from the values V of a nearby x."""

    @abstractmethod
    def attach(self, model: Model, tau: float, solution: Solution) -> Solution:
        """The solution with its first derivative in the model (implicit function theorem); tau > 0."""

    @abstractmethod
    def policies(self, solution: Solution) -> Policies:
        """The solution's policies."""

    @abstractmethod
    def values(self, solution: Solution) -> tuple[Tensor, ...]:
        """Each player's values at the solution, ``[..., S]``."""

    @torch.no_grad()
    def best_responses(self, model: Model, pi: Policies, tau: float, near: Solution) -> tuple[SoftOptimum, ...]:
        """Each player's best response to the others; a nearby solution is the warm start."""
        pairs = zip(self.faced(model, pi, tau), self.values(near), strict=True)
        return tuple(solve_soft(mdp, tau, V) for mdp, V in pairs)

    @torch.no_grad()
    def gap(self, model: Model, pi: Policies, tau: float, best: tuple[SoftOptimum, ...]) -> Tensor:
        """What the players would gain, added, by their best responses, ``[...]``."""
        players = zip(self.faced(model, pi, tau), pi, best, strict=True)
        return torch.stack([suboptimality(mdp, own, tau, optimum) for mdp, own, optimum in players]).sum(0)


class OneFollower(LowerLevel[TabularMDP, SoftOptimum]):
    """The follower of a tabular problem."""

    def __init__(self, problem: TabularProblem) -> None:
        self.problem = problem

    @cached_property
    def views(self) -> tuple[TabularMDP]:
        return (self.problem.follower_mdp(self.problem.start_x()).detach(),)

    def model(self, x: Tensor) -> TabularMDP:
        return self.problem.follower_mdp(x)

    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        return self.problem.leader_return(x, pi[0])

    def faced(self, model: TabularMDP, pi: Policies, tau: float) -> tuple[TabularMDP]:
        return (model,)

    def solve(self, model: TabularMDP, tau: float, V: Tensor | None = None) -> SoftOptimum:
        return solve_soft(model, tau, V)

    def attach(self, model: TabularMDP, tau: float, solution: SoftOptimum) -> SoftOptimum:
        return attach(model, tau, solution)

    def policies(self, solution: SoftOptimum) -> tuple[Tensor]:
        return (solution.pi,)

    def values(self, solution: SoftOptimum) -> tuple[Tensor]:
        return (solution.V,)


class TwoPlayers(LowerLevel[ZeroSumGame, NashEquilibrium]):
    """The two players of a game problem."""

    def __init__(self, problem: GameProblem) -> None:
        self.problem = problem

    @cached_property
    def views(self) -> tuple[TabularMDP, TabularMDP]:
        game = self.problem.game(self.problem.start_x()).detach()
        shape = (*game.batch_shape, game.n_states)
        uniform = tuple(torch.full((*shape, n), 1.0 / n, dtype=game.r.dtype) for n in game.n_actions)
        return self.faced(game, uniform, 0.0)

    def model(self, x: Tensor) -> ZeroSumGame:
        return self.problem.game(x)

    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        pi1, pi2 = pi
        return self.problem.leader_return(x, (pi1, pi2))

    def faced(self, model: ZeroSumGame, pi: Policies, tau: float) -> tuple[TabularMDP, TabularMDP]:
        pi1, pi2 = pi
        return player_mdp(model, 1, pi2, tau), player_mdp(model, 2, pi1, tau)

    def solve(self, model: ZeroSumGame, tau: float, V: Tensor | None = None) -> NashEquilibrium:
        return solve_nash(model, tau, V)

    def attach(self, model: ZeroSumGame, tau: float, solution: NashEquilibrium) -> NashEquilibrium:
        return attach_nash(model, tau, solution)

    def policies(self, solution: NashEquilibrium) -> tuple[Tensor, Tensor]:
        return solution.pi1, solution.pi2

    def values(self, solution: NashEquilibrium) -> tuple[Tensor, Tensor]:
        return solution.V, -solution.V


def lower_level(problem: BilevelProblem) -> OneFollower | TwoPlayers:
    """The lower level of a problem of either kind."""
    if isinstance(problem, GameProblem):
        return TwoPlayers(problem)
    assert isinstance(problem, TabularProblem)
    return OneFollower(problem)
