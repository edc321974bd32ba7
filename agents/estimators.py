r"""How a leader's gradients are estimated.

**Over learned followers** (``PBRLConfig.estimator``): :class:`Rollouts`, from the followers' episodes alone, or
:class:`KnownModel`, through the problem's model at the followers' policies.

**In place of exact ones** (``TabularPBRLConfig.estimator``): :class:`MonteCarlo`, the paper's setting (arXiv 2402.06886,
section 6). Every return in a penalised objective is replaced by the mean return of a batch of episodes of fixed length,
whose autograd gradient is unbiased for that of the truncated return (``envs.mdp.sampled_return``). What is cut is the return
after ``length`` steps: a bias, which the batch does not lower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..envs.mdp import TabularWorld, Trajectories, sample, sampled_return
from ..envs.mdp.checks import check_number, check_size, plain_fields, require


@dataclass(frozen=True)
class MonteCarlo:
    """Gradients from episodes. The published lengths and batches are remembered, not read: unverified.

    Attributes:
        length: steps of an episode (unverified: 5).
        batch: episodes a policy (unverified: 16 in the Stackelberg game, 24 in incentive design).
        baseline: whether the mean over the batch's other episodes is subtracted from the weights of the scores.
        paired: whether the policies that a penalty compares are played with the same random numbers.

    Raises:
        ValueError: a length or a batch under one, flags that are none.

    Example:
        >>> from bilevel_gym.agents import MonteCarlo, TabularPBRL, TabularPBRLConfig
        >>> config = TabularPBRLConfig(estimator=MonteCarlo(length=5, batch=16))
        >>> leader = TabularPBRL("bilevel_gym/StackelbergGame-v0", config=config, env_kwargs={"n_states": 10}).learn(20)
        >>> leader.history[-1].steps  # 20 iterations, two policies, 16 episodes, 5 steps
        3200
    """

    length: int = 5
    batch: int = 16
    baseline: bool = True
    paired: bool = True

    def __post_init__(self) -> None:
        plain_fields(self)
        check_size(self.length, "length")
        check_size(self.batch, "batch")
        for name in ("baseline", "paired"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, "True or False", repr(value))


@dataclass(frozen=True)
class Rollouts:
    """x's gradient from fresh episodes of the followers at x, and from nothing else.

    Attributes:
        n_envs: episodes per policy and iteration.
        tail: discount at which they are cut, in (0, 1); a critic stands for the rest.
        gae_lambda: of the leader's advantages; None takes 0 for discrete observations, whose linear critic is exact,
            0.95 for others, and 1 where the leader draws once an episode, which no critic of the observations can know.
        critic_memory: weight that a critic keeps of earlier iterations' statistics, in [0, 1).

    Raises:
        ValueError: a number outside its range.
    """

    n_envs: int = 64
    tail: float = 0.05
    gae_lambda: float | None = None
    critic_memory: float = 0.8

    def __post_init__(self) -> None:
        plain_fields(self)
        check_size(self.n_envs, "n_envs")
        check_number(self.tail, "tail", low=0.0, high=1.0, open_low=True, open_high=True)
        check_number(self.critic_memory, "critic_memory", low=0.0, high=1.0, open_high=True)
        if self.gae_lambda is not None:
            check_number(self.gae_lambda, "gae_lambda", low=0.0, high=1.0)


@dataclass(frozen=True)
class KnownModel:
    """x's gradient through the model of a tabular problem, at the followers' policies: exact for those, and without steps."""


class Sampler:
    """A Monte Carlo estimator with its source of random numbers.

    Args:
        monte_carlo: lengths, batches, variance reduction.
        generator: drawn from by every :meth:`play` that has no partner.

    Attributes:
        steps: steps played so far, over all instances; none after an episode's end.
    """

    def __init__(self, monte_carlo: MonteCarlo, generator: torch.Generator) -> None:
        self.monte_carlo, self.generator = monte_carlo, generator
        self.steps = 0

    def play(
        self, world: TabularWorld, pi: Tensor, first: Tensor | None = None, partner: Trajectories | None = None
    ) -> Trajectories:
        """Episodes of pi (``first`` in the first step), with the partner's random numbers where episodes are paired."""
        m = self.monte_carlo
        played = sample(world, pi, m.length, m.batch, self.generator, first, partner if m.paired else None)
        self.steps += int(played.alive.sum())
        return played

    def policy_return(
        self, world: TabularWorld, pi: Tensor, played: Trajectories, tau: float = 0.0, first: Tensor | None = None
    ) -> Tensor:
        """The mean return of these episodes, ``[...]``, whose gradient is the estimate."""
        return sampled_return(world, pi, played, tau, first, self.monte_carlo.baseline)
