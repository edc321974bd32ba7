r"""Monte Carlo in place of exact gradients: the paper's setting (arXiv 2402.06886, section 6).

Every return in a penalised objective is replaced by the mean return of a batch of episodes of fixed length, whose autograd
gradient is unbiased for that of the truncated return (``envs.mdp.sampled_return``). What is cut is the return after ``length``
steps: a bias, which the batch does not lower.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..envs.mdp import TabularWorld, Trajectories, sample, sampled_return
from ..envs.mdp.checks import check_size, plain_fields, require
from .records import storable


@storable
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


@dataclass
class Sampler:
    """A Monte Carlo estimator with its source of random numbers.

    Attributes:
        monte_carlo: lengths, batches, variance reduction.
        generator: drawn from by every :meth:`play` that has no partner.
        steps: steps played so far, over all instances; none after an episode's end.
    """

    monte_carlo: MonteCarlo = field(metadata={"kept": False})
    generator: torch.Generator
    steps: int = 0

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
