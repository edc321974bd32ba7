r"""Hyper policy gradient descent, HPGD (Thoma, Pasztor, Krause, Ramponi and Hu, arXiv 2406.01575): the hypergradient of
F(x) = J_L(x, pi*_tau(x)) from the follower's trajectories.

With pi* = softmax(Q*/tau), d_x log pi* = (1/tau) d_x A_F, and the policy gradient theorem gives

    dF/dx = d_x V_L(s_0) + (1/tau) E sum_t gamma^t A_L(s_t,a_t) d_x A_F(s_t,a_t),       A = Q - V,

where d_x V_L holds pi*, and so does d_x A_F = d_x Q_F - d_x V_F (Danskin). It equals the implicit hypergradient, without an
adjoint solve: :func:`advantage_leader_return` is the sum by occupancy, :class:`HPGD` the estimate from episodes.

**The estimate.** From each of n episodes of pi*, of T steps, a few steps (s,a) are kept, t with probability ~ gamma^t until the
episode's end. From (s,a) and from s go two pairs of episodes, independent of each other: one for A_L(s,a), one for d_x A_F(s,a),
both members of a pair on the same random numbers. The product of the two, weighted by the episode's sum of gamma^t, has the
expectation above, cut at T steps. One context is drawn for all.
The publication's own truncation is another, and its code averages returns over visits in place of fresh episodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...envs.mdp import (
    SoftOptimum,
    TabularMDP,
    TabularProblem,
    action_value,
    attach,
    mdp_world,
    policy_value,
    sample,
    sampled_return,
    solve_soft,
    visitation,
)
from ...envs.mdp.checks import check_number, check_size, check_tau, require
from ...envs.mdp.tabular import entropy_weight
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState, generator
from ..leader import Progress
from ..records import storable
from ..schedules import Schedule


@storable
@dataclass(frozen=True, eq=False)
class HPGDConfig(ExactConfig):
    """How :class:`HPGD` learns.

    Attributes:
        learning_rate: step of x.
        optimizer_class: plain gradient descent, as the method is published.
        tau: temperature, positive; None takes the problem's own, and that of honest evaluation where it has none.
        max_gradient_norm: longer gradients are cut to this norm.
        episodes: n, episodes an iteration.
        points: steps kept of each; four more episodes go from every one.
        tail: episodes are cut once gamma^T is no more than this.
        keep_best: by default the last x is the answer, as the method is published.
    """

    learning_rate: float | Schedule = 0.5
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.SGD
    max_gradient_norm: float = 1.0
    episodes: int = 16
    points: int = 1
    tail: float = 0.01
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.max_gradient_norm, "max_gradient_norm", low=0.0, open_low=True)
        check_size(self.episodes, "episodes")
        check_size(self.points, "points")
        check_number(self.tail, "tail", low=0.0, high=1.0, open_low=True, open_high=True)


def _leader_reward(problem: TabularProblem, x: Tensor) -> Tensor:
    """r_l, ``[..., S, A]``; ``ValueError`` where J_L is no return."""
    reward = problem.leader_reward(x)
    require(reward is not None, "problem", "a leader whose objective is a return of the follower's MDP", repr(problem))
    assert reward is not None
    return reward


def _earns_entropy(mdp: TabularMDP) -> Tensor:
    """1.0 where the follower's policy is a softmax, 0.0 where a last step earns no entropy and x moves nothing, ``[..., S]``."""
    return torch.as_tensor(entropy_weight(mdp, 1.0), dtype=mdp.r.dtype).expand(*mdp.batch_shape, mdp.n_states)


def advantage_leader_return(
    problem: TabularProblem, x: Tensor, tau: float, warm: SoftOptimum | None = None
) -> tuple[Tensor, SoftOptimum]:
    """F(x), a scalar whose gradient in x is HPGD's sum by occupancy, and the follower's optimum.

    Raises:
        ValueError: a tau that is not positive, a J_L that is no return.
    """
    check_tau(tau, positive=True)
    mdp = problem.follower_mdp(x)
    held = mdp.detach()
    optimum = solve_soft(held, tau, None if warm is None else warm.V)
    leaders = held.with_reward(_leader_reward(problem, x).detach())
    V_L = policy_value(leaders, optimum.pi)
    A_L = action_value(leaders, V_L) - V_L.unsqueeze(-1)
    follower = attach(mdp, tau, optimum)
    A_F = follower.Q - follower.V.unsqueeze(-1)
    occupancy = (visitation(held, optimum.pi) * _earns_entropy(held)).unsqueeze(-1) * optimum.pi
    response = problem.over_contexts((occupancy * A_L * A_F).sum((-2, -1))) / tau
    return problem.leader_return(x, optimum.pi) + response - response.detach(), optimum


@dataclass(frozen=True, eq=False)
class SampledReturn:
    """An estimate of the leader's return whose gradient in x is HPGD's estimate.

    Attributes:
        value: a scalar.
        steps: the follower's environment steps spent.
    """

    value: Tensor
    steps: int


def sampled_advantage_return(
    mdp: TabularMDP,
    leader_reward: Tensor,
    pi: Tensor,
    tau: float,
    length: int,
    episodes: int,
    points: int,
    generator: torch.Generator,
) -> SampledReturn:
    """The estimate above in one context.

    Args:
        mdp: M(x), carrying x's graph, without batch axes.
        leader_reward: r_l at x, ``[S, A]``, carrying x's graph.
        pi: the follower's policy pi*, ``[S, A]``.
        tau: its temperature, positive.
        length: T.
        episodes: n.
        points: steps kept of each.
        generator: source of the random numbers.
    """
    pi, world = pi.detach(), mdp_world(mdp)
    leaders = world.with_reward(leader_reward.unsqueeze(-1))
    main = sample(world, pi, length, episodes, generator)
    weights = main.alive * mdp.gamma ** torch.arange(length, dtype=pi.dtype)
    kept = torch.multinomial(weights, points, replacement=True, generator=generator)
    s, a = (part.gather(-1, kept).reshape(-1) for part in (main.states, main.actions))
    first = torch.nn.functional.one_hot(a, mdp.n_actions).to(pi.dtype).unsqueeze(-2).expand(len(a), *pi.shape)
    start = torch.nn.functional.one_hot(s, mdp.n_states).to(pi.dtype)
    advantages, steps = [], int(main.alive.sum())
    for kind, temperature in ((leaders.detach(), 0.0), (world, tau)):
        kind = kind.with_start(start)
        from_s = sample(kind, pi, length, 1, generator)
        from_sa = sample(kind, pi, length, 1, generator, first, from_s)
        Q = sampled_return(kind, pi, from_sa, temperature, first)
        advantages.append(Q - sampled_return(kind, pi, from_s, temperature))
        steps += int(from_s.alive.sum() + from_sa.alive.sum())
    A_L, A_F = advantages
    weight = weights.sum(-1).repeat_interleave(points) * _earns_entropy(mdp)[s]
    response = (weight * A_L * A_F).mean() / tau
    return SampledReturn(sampled_return(leaders, pi, main) + response - response.detach(), steps)


def in_context(mdp: TabularMDP, context: int) -> TabularMDP:
    """One instance of a model with a context axis, or the model itself where it has none."""
    if not mdp.batch_shape:
        return mdp
    fields = [
        field if field is None or field.ndim == rank else field[context]
        for field, rank in ((mdp.P, 3), (mdp.r, 2), (mdp.rho, 1), (mdp.terminal, 1), (mdp.mask, 2))
    ]
    P, r, rho, terminal, mask = fields
    assert P is not None
    assert r is not None
    assert rho is not None
    return TabularMDP(P, r, rho, mdp.gamma, terminal, mask, mdp.terminal_entropy, validate=False)


@dataclass
class HPGDState(ExactState):
    """What HPGD goes on from.

    Attributes:
        generator: of the trajectories and the contexts drawn.
        V: the follower's values in each context, ``[C or 1, S]``; None before the first iteration.
        steps: the follower's environment steps spent.
    """

    generator: Any = None
    V: Tensor | None = None
    steps: int = 0


class HPGDMethod(ExactMethod):
    """x ascends F by the estimate from the follower's trajectories; see :class:`HPGD`."""

    config_class = HPGDConfig
    state_class = HPGDState
    positive_tau = True

    def __init__(self, problem: Any, config: Any = None, env_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(problem, config, env_kwargs)
        x = self.start_x()
        _leader_reward(self.problem, x)
        gamma = self.problem.follower_mdp(x).gamma
        self.length = 1 if gamma == 0.0 else max(1, math.ceil(math.log(self.config.tail) / math.log(gamma)))

    def default_tau(self) -> float:
        return float(self.problem.tau if self.problem.tau > 0.0 else self.problem.tau0)

    def prepare(self, state: HPGDState, seed: int | None) -> None:
        state.generator = generator(seed)

    def descend(self, state: HPGDState, progress: Progress) -> dict[str, float]:
        # One context is drawn for all episodes; the follower answers x in it exactly.
        mdp, reward = self.problem.follower_mdp(state.x), _leader_reward(self.problem, state.x)
        probs = self.problem.context_probs
        c = 0 if probs is None else int(torch.multinomial(probs, 1, generator=state.generator))
        mdp, reward = in_context(mdp, c), reward if reward.ndim == 2 else reward[c]
        if state.V is None:
            state.V = torch.zeros(1 if probs is None else len(probs), mdp.n_states, dtype=mdp.r.dtype)
        optimum = solve_soft(mdp.detach(), state.tau, state.V[c])
        state.V[c] = optimum.V
        # The estimate, its gradient cut to a norm.
        how = (self.length, self.config.episodes, self.config.points, state.generator)
        estimate = sampled_advantage_return(mdp, reward, optimum.pi, state.tau, *how)
        state.steps += estimate.steps
        (-estimate.value).backward()
        norm = torch.nn.utils.clip_grad_norm_([state.x], self.config.max_gradient_norm)
        return {"oracle_residual": optimum.residual, "gradient_norm": float(norm), "steps": float(state.steps)}

    def sampled_steps(self, state: HPGDState) -> int:
        return state.steps


class HPGD(ExactLeader):
    """Ascent on F by the gradient estimated from the follower's trajectories; the follower answers x exactly.

    Args:
        problem: a tabular problem, an environment that has one, or its id.
        config: steps, episodes, schedules, bounds.
        seed: of the trajectories and the contexts drawn.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Attributes:
        steps: the follower's environment steps spent.

    Raises:
        ValueError: as :class:`TabularPBRL`; tau must be positive, J_L a return.

    Example:
        >>> from bilevel_gym.agents import HPGD, HPGDConfig
        >>> leader = HPGD("bilevel_gym/TwoState-v0", HPGDConfig(learning_rate=0.1), x0=[0.5]).learn(100)
        >>> leader.evaluate().leader_return > 2.0
        True
    """

    method_class = HPGDMethod
