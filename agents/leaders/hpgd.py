r"""Hyper policy gradient descent, HPGD (Thoma, Pasztor, Krause, Ramponi and Hu, arXiv 2406.01575): the hypergradient of
F(x) = J_L(x, pi*_tau(x)) from the follower's trajectories.

With pi* = softmax(Q*/tau), d_x log pi* = (1/tau) d_x A_F. The policy gradient theorem gives

    dF/dx = d_x V_L(s_0) + (1/tau) E sum_t gamma^t A_L(s_t,a_t) d_x A_F(s_t,a_t),       A = Q - V,

where d_x V_L is taken at fixed pi*, and so is d_x A_F = d_x Q_F - d_x V_F (Danskin's theorem). It equals the implicit
hypergradient, without an adjoint solve. :class:`HPGD` estimates it from episodes.

**The estimate.** A few steps (s,a) are kept from each of n episodes of pi*, of length T: step t with probability ~ gamma^t, until
the episode ends. Two pairs of episodes start from (s,a) and from s, independent of each other: one pair for A_L(s,a), one for
d_x A_F(s,a); the two members of a pair share their random numbers. The product of both, weighted by the episode's sum of gamma^t,
has the expectation above, truncated at T steps. One context is drawn for all episodes.
The publication truncates in another way, and its code averages returns over visits instead of playing further episodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...envs.mdp import TabularMDP, TabularProblem, mdp_world, sample, sampled_return, solve_soft
from ...envs.mdp.checks import check_number, check_size, require
from ...envs.mdp.tabular import entropy_weight
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState, generator
from ..leader import Progress
from ..records import storable
from ..schedules import Schedule


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class HPGDConfig(ExactConfig):
    """Options of :class:`HPGD`.

    Attributes:
        learning_rate: learning rate of x.
        optimizer_class: default plain gradient descent, as in the publication.
        tau: temperature in units of reward, positive; None takes the problem's own, or that of evaluation.
        max_gradient_norm: maximum norm of a gradient; longer ones are clipped. None clips them to norm 1 in the unit of the
            leader's rewards.
        episodes: n, number of episodes per iteration.
        points: number of steps kept of each episode; each starts four more episodes.
        tail: the length T is the smallest with gamma^T at most this.
        keep_best: default False: the last x is kept, as in the publication.
    """

    learning_rate: float | Schedule = 0.5
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.SGD
    max_gradient_norm: float | None = None
    episodes: int = 16
    points: int = 1
    tail: float = 0.01
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_gradient_norm is not None:
            check_number(self.max_gradient_norm, "max_gradient_norm", low=0.0, open_low=True)
        check_size(self.episodes, "episodes")
        check_size(self.points, "points")
        check_number(self.tail, "tail", low=0.0, high=1.0, open_low=True, open_high=True)


def _leader_reward(problem: TabularProblem, x: Tensor) -> Tensor:
    """Return r_l, ``[..., S, A]``; raise ``ValueError`` where J_L is not a return."""
    reward = problem.leader_reward(x)
    require(reward is not None, "problem", "a leader whose objective is a return of the follower's MDP", repr(problem))
    assert reward is not None
    return reward


def sampled_advantage_return(
    mdp: TabularMDP, reward: Tensor, pi: Tensor, tau: float, length: int, config: HPGDConfig, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Estimate the leader's return in one context, a scalar whose gradient in x is HPGD's; also return the steps spent.

    Args:
        mdp: M(x), in x's graph, without batch axes.
        reward: r_l at x, ``[S, A]``, in x's graph.
        pi: the follower's policy pi*, ``[S, A]``.
        tau: temperature, in units of reward, positive.
        length: length T of an episode.
        config: number of episodes, and of steps kept of each.
        generator: random number generator.
    """
    pi, world = pi.detach(), mdp_world(mdp)
    leaders = world.with_reward(reward.unsqueeze(-1))
    main = sample(world, pi, length, config.episodes, generator)
    weights = main.alive * mdp.gamma ** torch.arange(length, dtype=pi.dtype)
    kept = torch.multinomial(weights, config.points, replacement=True, generator=generator)
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
    # Where the last step earns no entropy, the policy there is not a softmax and does not depend on x.
    earns = torch.as_tensor(entropy_weight(mdp, 1.0), dtype=mdp.r.dtype).expand(mdp.n_states)
    weight = weights.sum(-1).repeat_interleave(config.points) * earns[s]
    response = (weight * A_L * A_F).mean() / tau
    return sampled_return(leaders, pi, main) + response - response.detach(), steps


def in_context(mdp: TabularMDP, context: int) -> TabularMDP:
    """Return a model in one of its contexts, or the model itself where it has no context axis."""
    if not mdp.batch_shape:
        return mdp

    def part(table: Tensor | None, rank: int) -> Any:
        return table if table is None or table.ndim == rank else table[context]

    ranks = {"P": 3, "r": 2, "rho": 1, "terminal": 1, "mask": 2}
    return replace(mdp, **{name: part(getattr(mdp, name), rank) for name, rank in ranks.items()}, validate=False)


@dataclass
class HPGDState(ExactState):
    """The state that HPGD continues from.

    Attributes:
        generator: random generator of the trajectories and contexts.
        V: the follower's values in each context, ``[C or 1, S]``; None before the first iteration.
        steps: the follower's environment steps so far.
    """

    generator: Any = None
    V: Tensor | None = None
    steps: int = 0


class HPGDMethod(ExactMethod):
    """Ascent on F by a gradient estimated from the follower's trajectories; see :class:`HPGD`."""

    config_class = HPGDConfig
    state_class = HPGDState
    positive_tau = True
    estimates = True

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
        # One context is drawn for all episodes; the follower's best response in it is exact.
        mdp, reward = self.problem.follower_mdp(state.x), _leader_reward(self.problem, state.x)
        probs = self.problem.context_probs
        c = 0 if probs is None else int(torch.multinomial(probs, 1, generator=state.generator))
        mdp, reward = in_context(mdp, c), reward if reward.ndim == 2 else reward[c]
        if state.V is None:
            state.V = torch.zeros(1 if probs is None else len(probs), mdp.n_states, dtype=mdp.r.dtype)
        optimum = solve_soft(mdp.detach(), state.tau, state.V[c])
        state.V[c] = optimum.V
        # The estimate; its gradient is clipped to a norm.
        how = (self.length, self.config, state.generator)
        value, steps = sampled_advantage_return(mdp, reward, optimum.pi, state.tau, *how)
        state.steps += steps
        (-value).backward()
        longest = self.config.max_gradient_norm
        if longest is None:
            assert state.x.grad is not None
            state.x.grad /= self.leader_unit
        norm = torch.nn.utils.clip_grad_norm_([state.x], 1.0 if longest is None else longest)
        return {"oracle_residual": optimum.residual, "gradient_norm": float(norm), "steps": float(state.steps)}

    def sampled_steps(self, state: HPGDState) -> int:
        return state.steps


class HPGD(ExactLeader):
    """Ascent on F by a gradient estimated from trajectories of the follower's exact best response.

    Args:
        problem: a tabular problem, an environment that has one, or an environment's id.
        config: learning rate, episodes, schedules and bounds.
        seed: seed of the trajectories and contexts.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default 0, projected onto X.

    Attributes:
        steps: the follower's environment steps so far.

    Raises:
        ValueError: see :class:`TabularPBRL`; also if tau is not positive, or J_L not a return.

    Example:
        >>> from bilevel_gym.agents import HPGD, HPGDConfig
        >>> leader = HPGD("bilevel_gym/TwoState-v0", config=HPGDConfig(learning_rate=0.1), x0=[0.5]).learn(20)
        >>> leader.evaluate().leader_return > 2.0
        True
    """

    method_class = HPGDMethod
