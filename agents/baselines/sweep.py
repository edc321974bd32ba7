"""Sweep: try points that fill X evenly, each with a trained follower, and take the best.

The first trial is the initial x. The others are a scrambled Sobol sequence over the box around X (Owen 1998; implemented by
torch): random points, stratified in every coordinate, of which any number can be taken one after another. Where X is less than
its box (a budget), each point is projected onto X.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.mdp.checks import require
from ..records import storable
from .trials import SequentialConfig, SequentialMethod, SequentialState, TrialsLeader


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class SweepConfig(SequentialConfig):
    """Options of :class:`Sweep`; other leaders' optimiser settings and records are not used.

    Attributes:
        follower_steps: training steps of each trial's follower (SB3 rounds up to whole rollouts).
        n_envs: number of its parallel environments.
        rollout_envs: number of episodes that measure a trial's leader return.
        rollout_tail: discount at which these episodes are cut; a critic fitted on them estimates the rest.
        warm_start: whether a trial's follower starts from the weights of the best trial's follower so far.
        evaluation_followers: number of followers that ``evaluate()`` newly trains, where no model is known.
        evaluation_steps: training steps of each of them.
        vec_env: how parallel environments are stepped (see :class:`PBRLConfig`).
    """


class SweepMethod(SequentialMethod):
    """Points of a scrambled Sobol sequence; see :class:`Sweep`."""

    config_class = SweepConfig

    def init(self, x: Tensor, seed: int | None) -> SequentialState:
        most = torch.quasirandom.SobolEngine.MAXDIM
        require(self.leader_set.dim <= most, "env", f"an x of at most {most} coordinates", self.leader_set.dim)
        return super().init(x, seed)

    def propose(self, state: SequentialState) -> Tensor:
        X, at = self.leader_set, len(state.tried) - 1  # the first trial is no point of the sequence
        engine = torch.quasirandom.SobolEngine(X.dim, scramble=True, seed=state.words[0])
        unit = engine.fast_forward(at).draw(1, dtype=torch.float64)[0]
        return X.project(X.low + unit * (X.high - X.low))


class Sweep(TrialsLeader):
    """Try stratified random points of X, each with a trained follower; x is the best trial.

    Args:
        env: a leader environment: an id, an environment (it is copied), a callable that makes one, or a problem.
        follower: an SB3 class, or a callable ``VecEnv -> BaseAlgorithm``.
        config: a :class:`SweepConfig`: trials and bounds.
        seed: seed of the points, the followers and their environments. Default: 0.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``, the first trial; by default the environment's own.
        settings: fields of the config by name, e.g. ``follower_steps=30_000``; not allowed with ``config``.

    Attributes:
        tried: all trials so far, each with its x, its measured return and that return's standard error, and its steps.
        best_trial: the trial whose x is the leader's, by its measured return; None before any.
        num_timesteps: all environment steps, including those that measure returns.

    Raises:
        ValueError: x has more coordinates than the sequence, or see :class:`PBRL`.
    """

    method_class = SweepMethod
