"""Your own lower level in one file: three followers, each in its own environment with its own reward.

Three fishers fish in three lakes. One tax x on effort applies to all; the leader earns it and values the fish left in the lakes.
Each fisher responds to x independently. The lower level's solution is therefore three soft optima, and the penalty is the sum of
the fishers' regrets:

    psi(x, pi) = sum_i [ max V_i(x, .) - V_i(x, pi_i) ]

A lower level defines its model, its solution and its evaluation; the leader and the penalty are the library's.

    python lower_level.py
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from bilevel_gym.agents import NikaidoIsodaPenalty, TabularPBRL, TabularPBRLConfig
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.agents.lower_levels import TabularLevel
from bilevel_gym.envs.mdp import BilevelProblem, LeaderSet, TabularMDP, policy_return, solve_soft

Policies = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Lakes:
    """The three followers' models at one x."""

    worlds: tuple[TabularMDP, ...]

    def detach(self) -> Lakes:
        """The models without the autograd graph of x."""
        return Lakes(tuple(world.detach() for world in self.worlds))


@dataclass(frozen=True, eq=False)
class Answers:
    """The fishers' soft optima."""

    pi: Policies
    V: Tensor
    residual: float


class IndependentFishers(TabularLevel):
    """Players that do not meet: each faces its own MDP, independent of the others."""

    n_players: ClassVar[int] = 3

    @cached_property
    def views(self) -> tuple[TabularMDP, ...]:
        return self.model(self.problem.start_x()).detach().worlds

    @property
    def value_shapes(self) -> set[tuple[int, ...]]:
        return {(self.n_players, self.views[0].n_states)}

    def model(self, x: Tensor) -> Lakes:
        return Lakes(tuple(self.problem.lake(x, i) for i in range(self.n_players)))

    def faced(self, model: Lakes, pi: Policies, tau: float) -> tuple[TabularMDP, ...]:
        return model.worlds

    def solve(self, model: Lakes, tau: float, V: Tensor | None = None) -> Answers:
        optima = [solve_soft(world, tau, None if V is None else V[i]) for i, world in enumerate(model.worlds)]
        return Answers(tuple(o.pi for o in optima), torch.stack([o.V for o in optima]), max(o.residual for o in optima))

    def policies(self, solution: Answers) -> Policies:
        return solution.pi

    def values(self, solution: Answers) -> tuple[Tensor, ...]:
        return tuple(solution.V)

    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        return self.problem.leader_return(x, pi)  # type: ignore[no-any-return]

    def attach(self, model: Lakes, tau: float, solution: Any) -> Any:
        raise NotImplementedError("this level has no implicit derivative: the penalty method needs none")


class LakesProblem(BilevelProblem):
    """Stocks 0..9 in three lakes that grow at their own rates; effort 0, 1, 2 catches as much; x taxes a unit of it."""

    lower_level: ClassVar[Any] = IndependentFishers

    def __init__(self, growth: tuple[float, float, float] = (0.4, 0.6, 0.8)) -> None:
        self.leader_set, self.growth = LeaderSet.box(1, 0.0, 1.0), growth
        self.stock = torch.arange(10, dtype=torch.float64).unsqueeze(-1).expand(10, 3)
        self.effort = torch.arange(3, dtype=torch.float64).expand(10, 3)
        self.catch = torch.minimum(self.effort, self.stock)

    def lake(self, x: Tensor, i: int) -> TabularMDP:
        """Lake i at x: the remaining stock grows by one with the lake's rate, and the fisher sells the catch."""
        left = (self.stock - self.catch).long()
        P = torch.zeros(10, 3, 10, dtype=torch.float64)
        P.scatter_add_(-1, left.unsqueeze(-1), torch.full((10, 3, 1), 1.0 - self.growth[i], dtype=torch.float64))
        P.scatter_add_(
            -1, (left + 1).clamp(max=9).unsqueeze(-1), torch.full((10, 3, 1), self.growth[i], dtype=torch.float64)
        )
        rho = torch.full((10,), 0.1, dtype=torch.float64)
        return TabularMDP(P, self.catch - x[0] * self.effort, rho, gamma=0.9, validate=False)

    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        """A tenth of the stock in all lakes, plus the taxes."""
        paid = 0.1 * self.stock + x[0] * self.effort
        return torch.stack(
            [policy_return(self.lake(x, i).with_reward(paid), policy) for i, policy in enumerate(pi)]
        ).sum()


def leader() -> TabularPBRL:
    """The penalty method with three followers."""
    config = TabularPBRLConfig(follower=Softmax(0.5))
    return TabularPBRL(LakesProblem(), penalty=NikaidoIsodaPenalty(lam=10.0), config=config, x0=[0.2])


if __name__ == "__main__":
    made = leader()
    before = made.evaluate().leader_return
    record = made.learn(100).evaluate()
    print(
        f"leader's return at the fishers' best responses: {before:.3f} before, {record.leader_return:.3f} after, x = {made.x}"
    )
    print(f"what the fishers fall short of theirs by, together: {record.penalty:.4f}")
