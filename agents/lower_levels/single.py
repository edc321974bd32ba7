"""The lower level of one follower in a tabular problem; its solution is the soft optimum of M(x)."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...envs.mdp import SoftOptimum, TabularMDP, attach, kernel_world, policy_return, solve_soft
from ...envs.mdp.checks import require
from ..monte_carlo import Sampler
from ..penalties import Penalty, ValuePenalty
from .base import Policies, TabularLevel


class OneFollower(TabularLevel):
    """The single follower of a tabular problem."""

    @cached_property
    def views(self) -> tuple[TabularMDP]:
        return (self.problem.follower_mdp(self.problem.start_x()).detach(),)

    def model(self, x: Tensor) -> TabularMDP:
        return self.problem.follower_mdp(x)  # type: ignore[no-any-return]

    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        return self.problem.leader_return(x, pi[0])  # type: ignore[no-any-return]

    def leader_reward(self, x: Tensor) -> Tensor | None:
        return self.problem.leader_reward(x)  # type: ignore[no-any-return]

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

    def default_penalty(self, lam: Any) -> Penalty:
        return ValuePenalty(lam=lam)

    @torch.no_grad()
    def at_best_response(self, x: Tensor, tau0: float, tie: float = 0.0) -> float:
        """Return F_0(x); to break ties the follower's reward is shifted by ``tie * r_l``."""
        mdp = self.problem.follower_mdp(x).detach()
        if tie:
            reward = self.problem.leader_reward(x)
            require(reward is not None, "tie", "0 for a problem without a leader reward", tie)
            mdp = mdp.with_reward(mdp.r + tie * reward)
        return float(self.problem.leader_return(x, solve_soft(mdp, tau0).pi))

    def tables(self, x: Tensor) -> tuple[TabularMDP, Tensor] | None:
        reward, mdp = self.problem.leader_reward(x), self.problem.follower_mdp(x)
        return None if reward is None or mdp.sparse else (mdp, reward)

    # --- from episodes; the leader's draws are included, so that pi_y's returns to both come from the same episodes

    def require_return(self) -> None:
        name = type(self.problem).__name__
        require(not self.views[0].sparse, "estimator", "None, exact gradients, for a sparse model", "MonteCarlo")
        expected = f"None, exact gradients: the leader's objective in a {name} is not a return"
        require(self.leader_reward(self.problem.start_x()) is not None, "estimator", expected, "MonteCarlo")

    def sampled(
        self, x: Tensor, model: Any, penalty: Penalty, pi: Policies, best: Policies, tau: float, sampler: Sampler
    ) -> tuple[Tensor, Tensor]:
        kernel = self.problem.kernel(x)
        world = kernel_world(kernel, model)
        played = sampler.play(world, pi[0])
        slack = penalty.sampled(world, pi, best, tau, sampler, played)
        earned = sampler.policy_return(world.with_reward(kernel.r_leader), pi[0], played)
        return self.problem.over_contexts(slack), self.problem.over_contexts(earned)

    def sampled_independent(self, x: Tensor, model: Any, pi: Policies, tau: float, sampler: Sampler) -> Tensor:
        kernel = self.problem.kernel(x)
        world = kernel_world(kernel, model)
        played = sampler.play(world, pi[0])
        earned = sampler.policy_return(world.with_reward(kernel.r_leader), pi[0].detach(), played)
        own = sampler.policy_return(world.detach(), pi[0], played, tau)
        return self.problem.over_contexts(earned + own)  # type: ignore[no-any-return]

    # --- F at many x, with all followers solved in one batch, for black-box methods

    @torch.no_grad()
    def leader_returns(self, points: Tensor, tau: float, V: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return F(x) = J_L(x, pi*_tau(x)) at every row of ``points``, and the followers' values.

        Args:
            points: points of X, ``[n, dim]``; terminal states and the mask must not depend on x.
            tau: the follower's temperature, in units of reward.
            V: initial values of the solver, ``[..., S]`` or ``[n, ..., S]``.

        Returns:
            F, ``[n]``, and V*, ``[n, ..., S]``.
        """
        problem = self.problem
        models = [problem.follower_mdp(x) for x in points]
        if models[0].sparse:  # sparse models cannot be batched: solve one by one
            starts = [None] * len(points) if V is None else V.expand(len(points), models[0].n_states)
            optima = [solve_soft(mdp, tau, start) for mdp, start in zip(models, starts, strict=True)]
            values = [problem.leader_return(x, optimum.pi) for x, optimum in zip(points, optima, strict=True)]
            return torch.stack(values), torch.stack([optimum.V for optimum in optima])
        mdps = _stacked(models)
        optimum = solve_soft(mdps, tau, None if V is None else V.expand(mdps.r.shape[:-1]))
        rewards = [problem.leader_reward(x) for x in points]
        if any(reward is None for reward in rewards):
            values = [problem.leader_return(x, pi) for x, pi in zip(points, optimum.pi, strict=True)]
            return torch.stack(values), optimum.V
        paid = torch.stack([reward.expand(mdps.r.shape[1:]) for reward in rewards])
        return problem.over_contexts(policy_return(mdps.with_reward(paid), optimum.pi)), optimum.V


def _stacked(mdps: list[TabularMDP]) -> TabularMDP:
    """Stack models along a new leading axis ``[n, ...]``; fields that do not depend on x are kept once."""
    first, shape = mdps[0], mdps[0].batch_shape

    def stack(name: str, rank: int) -> Tensor:
        fields = [getattr(mdp, name) for mdp in mdps]
        if all(field is fields[0] for field in fields):
            return fields[0]  # type: ignore[no-any-return]
        return torch.stack([field.expand(*shape, *field.shape[-rank:]) for field in fields])

    r = torch.stack([mdp.r.expand(*shape, *mdp.r.shape[-2:]) for mdp in mdps])
    return replace(first, P=stack("P", 3), r=r, rho=stack("rho", 1), validate=False)
