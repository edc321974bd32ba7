r"""The lower level as a Monte Carlo leader sees it: returns from episodes, in place of linear solves.

An iteration plays each pair of policies once: what pi_y earns the leader and what it earns the follower come from the same
episodes. In a game the designer lives in another world and its return takes episodes of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...envs.mdp import (
    BilevelProblem,
    GameProblem,
    SparseMDP,
    TabularMDP,
    TabularProblem,
    TabularWorld,
    ZeroSumGame,
    game_world,
    kernel_world,
)
from ...envs.mdp.checks import check_count, require
from ..estimators import MonteCarlo, Sampler
from ..penalties import WeightedPenalty
from .lower_level import Policies

Model = TypeVar("Model", TabularMDP, ZeroSumGame)


class SampledLevel(ABC, Generic[Model]):
    """Estimates for one problem; autograd of each is unbiased for the gradient of the truncated returns.

    Attributes:
        sampler: plays, and counts the steps.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    @abstractmethod
    def penalised(
        self, x: Tensor, model: Model, penalty: WeightedPenalty, pi: Policies, best: Policies, tau: float
    ) -> tuple[Tensor, Tensor]:
        """p(x, y) and J_L(x, pi), scalars, with the best responses held.

        Args:
            x: the leader's parameter, ``[dim]``.
            model: the lower level at x.
            penalty: p.
            pi: the players' policies pi_y.
            best: the oracle's best response of each.
            tau: temperature.
        """

    @abstractmethod
    def independent(self, x: Tensor, model: Model, pi: Policies, tau: float) -> Tensor:
        """J_L(x, .) with pi held, plus each player's own value with x and the others held: a scalar."""

    def state(self) -> dict[str, Any]:
        """What a file keeps."""
        return {"generator": self.sampler.generator.get_state(), "steps": self.sampler.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.sampler.generator.set_state(state["generator"])
        self.sampler.steps = check_count(state["steps"], "steps")


class SampledFollower(SampledLevel[TabularMDP]):
    """The follower of a tabular problem, with the leader's draws shown.

    Raises:
        ValueError: a problem whose J_L is no return, a sparse model.
    """

    def __init__(self, problem: TabularProblem, sampler: Sampler) -> None:
        sparse = isinstance(problem.follower_mdp(problem.start_x()), SparseMDP)
        require(not sparse, "estimator", "None, exact gradients, for a sparse model", "MonteCarlo")
        is_return = problem.leader_reward(problem.start_x()) is not None
        _require_return(is_return, problem)
        super().__init__(sampler)
        self.problem = problem

    def _worlds(self, x: Tensor, model: TabularMDP) -> tuple[TabularWorld, TabularWorld]:
        """The follower's world, and the same paid by the leader's reward."""
        kernel = self.problem.kernel(x)
        world = kernel_world(kernel, model)
        return world, world.with_reward(kernel.r_leader)

    def penalised(
        self, x: Tensor, model: TabularMDP, penalty: WeightedPenalty, pi: Policies, best: Policies, tau: float
    ) -> tuple[Tensor, Tensor]:
        world, leaders = self._worlds(x, model)
        played = self.sampler.play(world, pi[0])
        slack = penalty.sampled(world, pi, best, tau, self.sampler, played)
        earned = self.sampler.policy_return(leaders, pi[0], played)
        return self.problem.over_contexts(slack), self.problem.over_contexts(earned)

    def independent(self, x: Tensor, model: TabularMDP, pi: Policies, tau: float) -> Tensor:
        world, leaders = self._worlds(x, model)
        played = self.sampler.play(world, pi[0])
        earned = self.sampler.policy_return(leaders, pi[0].detach(), played)
        own = self.sampler.policy_return(world.detach(), pi[0], played, tau)
        return self.problem.over_contexts(earned + own)


class SampledPlayers(SampledLevel[ZeroSumGame]):
    """The two players of a game problem, and the leader's world.

    Raises:
        ValueError: a problem whose J_L is no return.
    """

    def __init__(self, problem: GameProblem, sampler: Sampler) -> None:
        _require_return(problem.leader_game(problem.start_x()) is not None, problem)
        super().__init__(sampler)
        self.problem = problem

    def _leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        game = self.problem.leader_game(x)
        assert game is not None
        world = game_world(game, pi[1])
        return self.sampler.policy_return(world, pi[0], self.sampler.play(world, pi[0]))

    def penalised(
        self, x: Tensor, model: ZeroSumGame, penalty: WeightedPenalty, pi: Policies, best: Policies, tau: float
    ) -> tuple[Tensor, Tensor]:
        slack = penalty.sampled(model, pi, best, tau, self.sampler)
        return self.problem.over_contexts(slack), self.problem.over_contexts(self._leader_return(x, pi))

    def independent(self, x: Tensor, model: ZeroSumGame, pi: Policies, tau: float) -> Tensor:
        held, (pi1, pi2) = model.detach(), pi
        for_1, for_2 = game_world(held, pi2.detach(), tau), game_world(held, pi2, tau)
        played = self.sampler.play(for_1, pi1)
        own = self.sampler.policy_return(for_1, pi1, played, tau)
        own = own - self.sampler.policy_return(for_2, pi1.detach(), played, tau)
        return self.problem.over_contexts(self._leader_return(x, (pi1.detach(), pi2.detach())) + own)


def _require_return(is_return: bool, problem: BilevelProblem) -> None:
    name = type(problem).__name__
    require(
        is_return, "estimator", f"None, exact gradients: the leader's objective in a {name} is no return", "MonteCarlo"
    )


def sampled_level(
    problem: BilevelProblem, estimator: MonteCarlo | None, seed: int | None
) -> SampledFollower | SampledPlayers | None:
    """Estimates for a problem of either kind, drawn from the leader's seed; None where gradients are exact.

    Raises:
        ValueError: an estimator that is none, a problem whose J_L is no return, a sparse model.
    """
    if estimator is None:
        return None
    require(isinstance(estimator, MonteCarlo), "config.estimator", "MonteCarlo(...) or None, exact", repr(estimator))
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(int(seed))
    sampler = Sampler(estimator, generator)
    if isinstance(problem, GameProblem):
        return SampledPlayers(problem, sampler)
    assert isinstance(problem, TabularProblem)
    return SampledFollower(problem, sampler)
