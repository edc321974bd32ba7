"""The follower of a linear-quadratic problem: the Riccati solution u_f = -F s. The model is x itself; tau is always 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...envs.mdp import LinearResponse
from ..sources import waves
from .base import LowerLevel, Policies


class Regulator(LowerLevel):
    """The follower of a linear-quadratic problem."""

    takes_tau: ClassVar[bool] = False

    def model(self, x: Tensor) -> Tensor:
        return x

    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        return self.problem.leader_return(x, pi[0])  # type: ignore[no-any-return]

    def solve(self, model: Tensor, tau: float, V: Tensor | None = None) -> LinearResponse:
        return self.problem.best_response(model)  # type: ignore[no-any-return]

    def attach(self, model: Tensor, tau: float, solution: LinearResponse) -> LinearResponse:
        return replace(solution, F=self.problem.attached_response(model, solution.F))

    def policies(self, solution: LinearResponse) -> tuple[Tensor]:
        return (solution.F,)

    def best_responses(self, model: Tensor, pi: Policies, tau: float, near: Any) -> tuple[LinearResponse]:
        return (self.solve(model, tau),)

    @torch.no_grad()
    def gap(self, model: Tensor, pi: Policies, tau: float, best: tuple[LinearResponse, ...]) -> Tensor:
        return self.problem.follower_return(model, best[0].F) - self.problem.follower_return(model, pi[0])  # type: ignore[no-any-return]

    def fingerprint(self) -> list[float]:
        p = self.problem
        parts = [part for record in (p.dynamics, p.leader_cost, p.follower_cost) for part in vars(record).values()]
        return [*(float(size) for size in p.sizes), p.gamma, p.sigma, *waves([*parts, p.action_bound])]
