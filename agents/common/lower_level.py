r"""The lower level as exact leaders see it: one follower, the two players of a zero-sum game, or a regulator.

Each player has a policy. In a table, while the others' are held, it faces an MDP of its own, in which it ascends. The leader is
judged at the level's solution at temperature tau.

    level           player i faces                            solution                       gap, summed over players
    one follower    M(x)                                      the soft optimum pi*_tau(x)    V*(rho) - V^pi(rho)
    two players     the game with the other's policy held     the Nash equilibrium           psi, Nikaido-Isoda (5.6)
    a regulator     no table: its policy is u_f = -F s        Riccati's F, at tau = 0        J_F(x,F*) - J_F(x,F)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from ...envs.mdp import (
    BilevelProblem,
    GameProblem,
    LinearQuadraticProblem,
    LinearResponse,
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
"""One policy a player, ``[..., S, A_i]``; a regulator's is F, ``[m_f, n]``."""
Model = TypeVar("Model", TabularMDP, ZeroSumGame, Tensor)
Solution = TypeVar("Solution", SoftOptimum, NashEquilibrium, LinearResponse)
Answer = TypeVar("Answer", SoftOptimum, LinearResponse)


class LowerLevel(ABC, Generic[Model, Solution, Answer]):
    """The players of one problem.

    Attributes:
        takes_tau: whether the players can be regularised; tau is 0 where not.
    """

    takes_tau: ClassVar[bool]

    @abstractmethod
    def model(self, x: Tensor) -> Model:
        """The lower level at x, differentiable in x, ``[dim]``."""

    @abstractmethod
    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        """J_L(x, pi), a scalar."""

    @abstractmethod
    def solve(self, model: Model, tau: float, V: Tensor | None = None) -> Solution:
        """The solution at temperature tau, from the values V of a nearby x."""

    @abstractmethod
    def attach(self, model: Model, tau: float, solution: Solution) -> Solution:
        """The solution with its first derivative in the model (implicit function theorem); tau > 0 in a table."""

    @abstractmethod
    def policies(self, solution: Solution) -> Policies:
        """The solution's policies."""

    @abstractmethod
    def best_responses(self, model: Model, pi: Policies, tau: float, near: Solution) -> tuple[Answer, ...]:
        """Each player's best response to the others; a nearby solution is the warm start."""

    @abstractmethod
    def gap(self, model: Model, pi: Policies, tau: float, best: tuple[Answer, ...]) -> Tensor:
        """What the players would gain, added, by their best responses, ``[...]``."""


class TabularLevel(LowerLevel[Model, Solution, SoftOptimum]):
    """Players whose policies are tables."""

    takes_tau = True

    @property
    @abstractmethod
    def views(self) -> tuple[TabularMDP, ...]:
        """For each player an MDP with the sizes and the mask of its policies, which x does not change."""

    @abstractmethod
    def faced(self, model: Model, pi: Policies, tau: float) -> tuple[TabularMDP, ...]:
        """The MDP of each player while the others hold their policies, differentiable in both."""

    @abstractmethod
    def values(self, solution: Solution) -> tuple[Tensor, ...]:
        """Each player's values at the solution, ``[..., S]``."""

    @torch.no_grad()
    def best_responses(self, model: Model, pi: Policies, tau: float, near: Solution) -> tuple[SoftOptimum, ...]:
        pairs = zip(self.faced(model, pi, tau), self.values(near), strict=True)
        return tuple(solve_soft(mdp, tau, V) for mdp, V in pairs)

    @torch.no_grad()
    def gap(self, model: Model, pi: Policies, tau: float, best: tuple[SoftOptimum, ...]) -> Tensor:
        players = zip(self.faced(model, pi, tau), pi, best, strict=True)
        return torch.stack([suboptimality(mdp, own, tau, optimum) for mdp, own, optimum in players]).sum(0)


class OneFollower(TabularLevel[TabularMDP, SoftOptimum]):
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


class TwoPlayers(TabularLevel[ZeroSumGame, NashEquilibrium]):
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


class Regulator(LowerLevel[Tensor, LinearResponse, LinearResponse]):
    """The follower of a linear-quadratic problem; the model is x itself."""

    takes_tau = False

    def __init__(self, problem: LinearQuadraticProblem) -> None:
        self.problem = problem

    def model(self, x: Tensor) -> Tensor:
        return x

    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        return self.problem.leader_return(x, pi[0])

    def solve(self, model: Tensor, tau: float, V: Tensor | None = None) -> LinearResponse:
        return self.problem.best_response(model)

    def attach(self, model: Tensor, tau: float, solution: LinearResponse) -> LinearResponse:
        return replace(solution, F=self.problem.attached_response(model, solution.F))

    def policies(self, solution: LinearResponse) -> tuple[Tensor]:
        return (solution.F,)

    def best_responses(self, model: Tensor, pi: Policies, tau: float, near: LinearResponse) -> tuple[LinearResponse]:
        return (self.solve(model, tau),)

    @torch.no_grad()
    def gap(self, model: Tensor, pi: Policies, tau: float, best: tuple[LinearResponse, ...]) -> Tensor:
        return self.problem.follower_return(model, best[0].F) - self.problem.follower_return(model, pi[0])


def lower_level(problem: BilevelProblem) -> OneFollower | TwoPlayers | Regulator:
    """The lower level of a problem of any kind."""
    if isinstance(problem, GameProblem):
        return TwoPlayers(problem)
    if isinstance(problem, LinearQuadraticProblem):
        return Regulator(problem)
    assert isinstance(problem, TabularProblem)
    return OneFollower(problem)
