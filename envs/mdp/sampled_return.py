r"""Monte Carlo returns whose autograd gradient is an unbiased estimate of the truncated return's gradient.

The return of episodes of T steps of pi (of another policy in the first step, where one is given),

    J_T = E sum_{t<T} gamma^t [ c(s_t) + r(s_t,a_t,w_t) ],      c(s) = state_reward(s) - tau h(pi(s)),

depends on parameters through its rewards and through the density of the episodes,

    rho(s_0) prod_t pi(a_t|s_t) p(w_t|s_t,a_t) P(s_{t+1}|s_t,a_t,w_t).

With G_t = sum_{k>=t} gamma^{k-t} [ c(s_k) + r_k ] the return to go, the score trick gives

    grad J_T = E{ G_0 grad log rho(s_0) + sum_t gamma^t [ grad c(s_t) + grad r_t
                  + (G_t - c(s_t)) grad( log pi(a_t|s_t) + log p(w_t|s_t,a_t) )
                  + gamma G_{t+1} grad log P(s_{t+1}|s_t,a_t,w_t) ] }

A draw is held to account only for what comes after it, so the entropy of *later* steps belongs to G. Subtracting from each
weight a number that does not depend on the episode, here the mean of the same weight over the other episodes of the batch,
leaves the expectation as it is.

x may enter r, p, P or rho, and y the policy; in a game pi_2 is p. Lemma 7 of arXiv 2402.06886 is the case of T = infinity
and an x in r (7a) or in p alone (7b).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_tau, require
from .tabular import negative_entropy
from .trajectories import TabularWorld, Trajectories, _batch_shape, pick


def _to_go(terms: Tensor) -> Tensor:
    """sum_{k>=t} of the last axis."""
    return terms.flip(-1).cumsum(-1).flip(-1)


def _less_the_others(weights: Tensor) -> Tensor:
    """Weights ``[..., batch, T]`` less their mean over the other episodes; as they are, where there is no other."""
    n = weights.shape[-2]
    return weights if n == 1 else (weights - weights.mean(-2, keepdim=True)) * (n / (n - 1))


def _log(p: Tensor, alive: Tensor) -> Tensor:
    """log p, 0 after the episode's end."""
    return torch.where(alive, p, 1.0).log()


def sampled_return(
    world: TabularWorld,
    pi: Tensor,
    trajectories: Trajectories,
    tau: float = 0.0,
    first: Tensor | None = None,
    baseline: bool = True,
) -> Tensor:
    """The mean discounted return of trajectories, ``[...]``; its gradient is the unbiased estimate above.

    First derivatives only. The parameters' values must be those at which the trajectories were drawn.

    Args:
        world: what the trajectories were drawn from, carrying x's graph (in a game also player 2's).
        pi: policy, ``[..., S, A]``, carrying y's graph.
        trajectories: from :func:`~bilevel_gym.envs.mdp.sample` with the same arguments.
        tau: temperature; a step's entropy counts in the return.
        first: policy of the first step, ``[..., S, A]``; None takes pi.
        baseline: whether the mean over the batch's other episodes is subtracted from the weights.

    Raises:
        ValueError: a policy of another size, trajectories whose batch axes are not those of world and policy, tau < 0.
    """
    check_tau(tau)
    shape = _batch_shape(world, pi, first)
    found = tuple(trajectories.batch_shape)
    require(found == tuple(shape), "trajectories", f"batch axes {tuple(shape)} of world and policy", f"{found}")
    s, a, w, s_next = trajectories.states, trajectories.actions, trajectories.draws, trajectories.next_states
    alive = trajectories.alive
    counted = alive * world.gamma ** torch.arange(trajectories.length, dtype=world.r.dtype)
    # gamma^t r_t and gamma^t c(s_t), [..., batch, T]
    r = counted * pick(world.r, 3, shape, s, a, w)
    c = torch.zeros_like(r)
    if world.state_reward is not None:
        c = c + pick(world.state_reward, 1, shape, s)
    if tau != 0.0:
        c = c - _entropy_term(world, pi, first, s, shape, tau)
    c = counted * c
    estimate = (r + c).sum(-1)
    # weights of the scores: gamma^t G_t, gamma^t (G_t - c_t), gamma^{t+1} G_{t+1}
    G = _to_go((r + c).detach())
    after_action, after_step = G - c.detach(), G - (r + c).detach()
    if baseline:
        G, after_action, after_step = (_less_the_others(weights) for weights in (G, after_action, after_step))
    score = torch.zeros_like(estimate)
    if world.rho.requires_grad:
        score = score + G[..., 0] * pick(world.rho, 1, shape, s[..., 0]).log()
    if pi.requires_grad or (first is not None and first.requires_grad):
        chosen = pick(pi, 2, shape, s, a)
        if first is not None:
            chosen = torch.cat([pick(first, 2, shape, s[..., :1], a[..., :1]), chosen[..., 1:]], -1)
        score = score + (after_action * _log(chosen, alive)).sum(-1)
    if world.draw.requires_grad:
        score = score + (after_action * _log(pick(world.draw, 3, shape, s, a, w), alive)).sum(-1)
    if world.P.requires_grad:
        goes_on = torch.cat([alive[..., 1:], alive[..., -1:]], -1)  # no weight hangs on the last step's next state
        score = score + (after_step * _log(pick(world.P, 4, shape, s, a, w, s_next), goes_on)).sum(-1)
    return (estimate + score - score.detach()).mean(-1)


def _entropy_term(
    world: TabularWorld, pi: Tensor, first: Tensor | None, s: Tensor, shape: torch.Size, tau: float
) -> Tensor:
    """tau h(pi(s_t)), ``[..., batch, T]``; nothing where a last step earns no entropy."""
    h = pick(negative_entropy(pi), 1, shape, s)
    if first is not None:
        h = torch.cat([pick(negative_entropy(first), 1, shape, s[..., :1]), h[..., 1:]], -1)
    if world.terminal is not None and not world.terminal_entropy:
        h = h * ~pick(world.terminal, 1, shape, s)
    return tau * h
