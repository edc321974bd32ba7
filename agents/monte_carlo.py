r"""Monte Carlo instead of exact gradients: the paper's setting (arXiv 2402.06886, section 6).

Every return in a penalised objective is replaced by the mean return of a batch of episodes of fixed length. Its autograd gradient
is unbiased for that of the truncated return (``envs.mdp.sampled_return``). The return after ``length`` steps is cut off, a bias
that a larger batch does not reduce.
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
    """Estimate gradients from episodes. The defaults are ours: we could not verify the published lengths and batches.

    Attributes:
        length: steps per episode (unverified: 5).
        batch: episodes per policy (unverified: 16 in the Stackelberg game, 24 in incentive design).
        baseline: whether to subtract the mean over the batch's other episodes from the weights of the scores.
        paired: whether the policies that a penalty compares share their random numbers.

    Raises:
        ValueError: ``length`` or ``batch`` is under 1, or a flag is not a bool.

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
    """A Monte Carlo estimator with its random number generator.

    Attributes:
        monte_carlo: length, batch and variance reduction.
        generator: random number generator of every :meth:`play` without a partner.
        steps: steps played so far, over all batched models; steps after an episode's end do not count.
    """

    monte_carlo: MonteCarlo = field(metadata={"kept": False})
    generator: torch.Generator
    steps: int = 0

    def play(
        self, world: TabularWorld, pi: Tensor, first: Tensor | None = None, partner: Trajectories | None = None
    ) -> Trajectories:
        """Play episodes of pi (``first`` in the first step), with the partner's random numbers where episodes are paired."""
        m = self.monte_carlo
        played = sample(world, pi, m.length, m.batch, self.generator, first, partner if m.paired else None)
        self.steps += int(played.alive.sum())
        return played

    def policy_return(
        self, world: TabularWorld, pi: Tensor, played: Trajectories, tau: float = 0.0, first: Tensor | None = None
    ) -> Tensor:
        """Return the mean return of these episodes, ``[...]``; its autograd gradient is the estimate."""
        return sampled_return(world, pi, played, tau, first, self.monte_carlo.baseline)
