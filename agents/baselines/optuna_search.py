"""Optuna's search over x, with a trained follower for every trial: its Gaussian process or its CMA-ES.

The first trial is the initial x. Optuna searches the unit box, which stands for the box around X; where X is less than its box (a
budget), each point is projected onto X. With ``sampler="gp"`` a Gaussian process is fitted to all trials, and the next x
maximises the expected improvement (``GPSampler``). With ``"cmaes"`` generations are drawn from a normal distribution, at first
around the middle of the box (``CmaEsSampler``). Needs the extra ``optuna``.

Optuna's studies cannot be stored safely without running code from a file. Instead the trials are stored; with the same seed
they reproduce the study.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ...envs.mdp.checks import check_size, require
from ..records import storable
from .trials import SequentialConfig, SequentialMethod, SequentialState, TrialsLeader, check_population

Sampler = Literal["gp", "cmaes"]


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class OptunaSearchConfig(SequentialConfig):
    """Options of :class:`OptunaSearch`; other leaders' optimiser settings and records are not used.

    Attributes:
        sampler: ``"gp"``, Optuna's Gaussian process, or ``"cmaes"``, its CMA-ES.
        startup_trials: number of first trials, the initial x and random points, before the Gaussian process is used.
        population: number of trials per generation of CMA-ES, at least 4; None takes ``4 + 3 log dim``.
        follower_steps: training steps of each trial's follower (SB3 rounds up to whole rollouts).
        n_envs: number of its parallel environments.
        rollout_envs: number of episodes that measure a trial's leader return.
        rollout_tail: discount at which these episodes are cut; a critic fitted on them estimates the rest.
        warm_start: whether a trial's follower starts from the weights of the best trial's follower so far.
        evaluation_followers: number of followers that ``evaluate()`` newly trains, where no model is known.
        evaluation_steps: training steps of each of them.
        vec_env: how parallel environments are stepped (see :class:`PBRLConfig`).
    """

    sampler: Sampler = "gp"
    startup_trials: int = 4
    population: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sampler in get_args(Sampler), "sampler", f"one of {get_args(Sampler)}", repr(self.sampler))
        check_size(self.startup_trials, "startup_trials")
        check_population(self.population, 4)  # with fewer, one parent is left


class OptunaSearchMethod(SequentialMethod):
    """Points that Optuna proposes; see :class:`OptunaSearch`."""

    config_class = OptunaSearchConfig

    def init(self, x: Tensor, seed: int | None) -> SequentialState:
        try:
            import optuna

            if self.config.sampler == "cmaes":
                import cmaes  # noqa: F401  Optuna's CMA-ES stands on it
        except ImportError as error:
            raise ImportError(
                f'OptunaSearch needs Optuna and cmaes: pip install "bilevel-gym[optuna]" ({error})'
            ) from error
        self._optuna = optuna
        self._unit = {f"x{i}": optuna.distributions.FloatDistribution(0.0, 1.0) for i in range(self.leader_set.dim)}
        self._study: Any = None
        self._told = 0
        return super().init(x, seed)

    def propose(self, state: SequentialState) -> Tensor:
        with _quiet(self._optuna):
            params = self._from_process(state) if self.config.sampler == "gp" else self._from_strategy(state)
        X, unit = self.leader_set, torch.tensor([params[name] for name in self._unit], dtype=torch.float64)
        return X.project(X.low + unit * (X.high - X.low))

    def _seed(self, state: SequentialState, number: int) -> int:
        return int(np.random.default_rng([*state.words, number, 2]).integers(2**31))

    def _params(self, x: Tensor) -> dict[str, float]:
        """Return x in the unit box, by name."""
        X = self.leader_set
        unit = torch.where(X.high > X.low, (x - X.low) / (X.high - X.low), 0.5).clamp(0.0, 1.0)
        return dict(zip(self._unit, unit.tolist(), strict=True))

    def _from_process(self, state: SequentialState) -> dict[str, float]:
        """Ask the Gaussian process of all trials, in a study of their own: the answer depends on nothing else."""
        o, n = self._optuna, len(state.tried)
        sampler = o.samplers.GPSampler(seed=self._seed(state, n), n_startup_trials=self.config.startup_trials)
        study = o.create_study(direction="maximize", sampler=sampler)
        for trial in state.tried:
            told = {"params": self._params(trial.x), "value": trial.leader_return}
            study.add_trial(o.trial.create_trial(distributions=self._unit, **told))
        return dict(study.ask(self._unit).params)

    def _from_strategy(self, state: SequentialState) -> dict[str, float]:
        """Ask CMA-ES, whose study remembers its generations; after a file was read, the study is told all trials again."""
        if self._study is None:
            o = self._optuna
            sampler = o.samplers.CmaEsSampler(seed=self._seed(state, 0), popsize=self.config.population)
            self._study, self._told = o.create_study(direction="maximize", sampler=sampler), 0
            self._study.enqueue_trial(self._params(state.tried[0].x))
            self._asked = self._study.ask(self._unit)
        for trial in state.tried[self._told :]:
            self._study.tell(self._asked, trial.leader_return)
            self._asked, self._told = self._study.ask(self._unit), self._told + 1
        return dict(self._asked.params)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Let Optuna log errors only."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class OptunaSearch(TrialsLeader):
    """Search X with Optuna, each trial with a trained follower; x is the best trial.

    Args:
        env: a leader environment: an id, an environment (it is copied), a callable that makes one, or a problem.
        follower: an SB3 class, or a callable ``VecEnv -> BaseAlgorithm``.
        config: an :class:`OptunaSearchConfig`: sampler, trials and bounds.
        seed: seed of the search, the followers and their environments. Default: 0.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``, the first trial; by default the environment's own.
        settings: fields of the config by name, e.g. ``sampler="cmaes"``; not allowed with ``config``.

    Attributes:
        tried: all trials so far, each with its x, its measured return and that return's standard error, and its steps.
        best_trial: the trial whose x is the leader's, by its measured return; None before any.
        num_timesteps: all environment steps, including those that measure returns.

    Raises:
        ImportError: Optuna or cmaes is not installed.
        ValueError: see :class:`PBRL`.
    """

    method_class = OptunaSearchMethod
