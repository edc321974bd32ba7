"""F(x) = J_L(x, pi*_tau(x)) at many x, all followers solved together: what a black-box method asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from ...envs.mdp import SparseMDP, TabularMDP, TabularProblem, policy_return, solve_soft


def _stacked(mdps: list[TabularMDP]) -> TabularMDP:
    """One model with a leading axis ``[n, ...]``; fields that x does not move are kept once."""
    first, shape = mdps[0], mdps[0].batch_shape

    def stack(name: str, rank: int) -> Tensor:
        fields = [getattr(mdp, name) for mdp in mdps]
        if all(field is fields[0] for field in fields):
            return fields[0]  # type: ignore[no-any-return]
        return torch.stack([field.expand(*shape, *field.shape[-rank:]) for field in fields])

    return TabularMDP(
        stack("P", 3),
        torch.stack([mdp.r.expand(*shape, *mdp.r.shape[-2:]) for mdp in mdps]),
        stack("rho", 1),
        first.gamma,
        first.terminal,
        first.mask,
        first.terminal_entropy,
        validate=False,
    )


@torch.no_grad()
def leader_returns(
    problem: TabularProblem, points: Tensor, tau: float, V: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """F at every row of ``points``, and the followers' values.

    Args:
        problem: the bilevel problem; x moves neither terminal states nor the mask.
        points: points of X, ``[n, dim]``.
        tau: the follower's temperature.
        V: values to start the solver from, ``[..., S]`` or ``[n, ..., S]``.

    Returns:
        F, ``[n]``, and V*, ``[n, ..., S]``.
    """
    models = [problem.follower_mdp(x) for x in points]
    if isinstance(models[0], SparseMDP):  # no batch axes: one after the other
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
    paid = torch.stack([reward.expand(mdps.r.shape[1:]) for reward in rewards if reward is not None])
    return problem.over_contexts(policy_return(mdps.with_reward(paid), optimum.pi)), optimum.V
