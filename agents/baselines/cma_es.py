r"""Nested black-box search: CMA-ES over x, with a newly trained follower for every trial.

Each generation draws x_1 .. x_k ~ N(m, sigma^2 C), measures the leader's return at a follower that knows nothing of earlier
trials, and updates m, sigma and C by the ranking (Hansen and Ostermeier 2001; implemented by pycma). The search scales the box
around X to [0, 1]^dim. pycma handles bounds; a budget is met by projecting each trial. The leader's x is the mean m: in many
dimensions it is better than any single trial, and it is not the maximum of noisy returns.

:class:`TabularCMAES` solves for the follower exactly in every trial and counts trials. :class:`CMAES` trains an SB3 follower from
scratch and counts its steps. Both need the extra ``search``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp import LeaderSet
from ...envs.mdp.checks import check_number, require
from ..config import LeaderConfig, require_unused
from ..evaluation import Evaluation
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState
from ..followers.sb3 import SB3Follower
from ..followers.spec import Answering
from ..leader import Progress
from ..plan import Cost
from ..records import storable
from .trials import (
    TrialsConfig,
    TrialsLeader,
    TrialsMethod,
    TrialsState,
    check_population,
    seed_words,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class _SearchConfig(LeaderConfig):
    sigma: float = 0.1
    population: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.sigma, "sigma", low=0.0, high=1e3, open_low=True)
        check_population(self.population)
        optimiser = ("learning_rate", "optimizer_class", "optimizer_kwargs")
        require_unused(self, optimiser, "CMA-ES takes no gradient steps (see sigma)")


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class TabularCMAESConfig(ExactConfig, _SearchConfig):
    """Options of :class:`TabularCMAES`; other leaders' optimiser settings are not used.

    Attributes:
        tau: the follower's temperature in units of reward; None takes that of evaluation.
        sigma: initial standard deviation, as a share of X's width in each coordinate.
        population: number of trials per generation; None takes pycma's ``4 + 3 log dim``.
        eval_every: number of generations between evaluations at the best response.
    """


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class CMAESConfig(_SearchConfig, TrialsConfig):
    """Options of :class:`CMAES`; other leaders' optimiser settings are not used.

    Attributes:
        sigma: initial standard deviation, as a share of X's width in each coordinate.
        population: number of trials per generation; None takes pycma's ``4 + 3 log dim``.
        eval_every: number of generations between evaluations at the best response.
        follower_steps: training steps of each trial's follower, from scratch (SB3 rounds up to whole rollouts).
        n_envs: number of its parallel environments.
        rollout_envs: number of episodes that measure a trial's leader return.
        rollout_tail: discount at which these episodes are cut; a critic fitted on them estimates the rest.
        evaluation_followers: number of followers that ``evaluate()`` newly trains, where no model is known; a record in
            ``learn`` trains one.
        evaluation_steps: training steps of each of them.
        vec_env: how parallel environments are stepped (see :class:`PBRLConfig`).
    """


class Search:
    """pycma's search over X, with its own random generator.

    pycma's state cannot be stored safely without running code from a file. Instead the returns given to the search are stored;
    with the same seed they reproduce it.

    Args:
        leader_set: the leader's set X.
        mean: initial mean, a point of X.
        sigma: initial standard deviation, as a share of X's width in each coordinate.
        population: number of trials per generation, or None.
        entropy: numbers that seed its generator.

    Raises:
        ImportError: pycma is not installed.
    """

    def __init__(
        self, leader_set: LeaderSet, mean: Tensor, sigma: float, population: int | None, entropy: list[int]
    ) -> None:
        try:
            import cma
        except ImportError as error:
            raise ImportError('CMA-ES needs pycma: pip install "bilevel-gym[search]"') from error
        self._cma, self._set = cma, leader_set
        self._low, self._width = leader_set.low, leader_set.high - leader_set.low
        self._start, self._sigma, self._population, self._entropy = mean.clone(), sigma, population, entropy
        self._begin()

    def _begin(self) -> None:
        rng = np.random.default_rng(self._entropy)
        unit = torch.where(self._width > 0, (self._start - self._low) / self._width, 0.5)
        options = {
            "bounds": [0.0, 1.0],
            "seed": np.nan,  # does not touch numpy's global generator
            "randn": lambda *shape: rng.standard_normal(shape),
            "verbose": -9,
            "verb_log": 0,
            "CMA_stds": torch.full_like(unit, self._sigma).numpy(),
            **({} if self._population is None else {"popsize": self._population}),
            # pycma 4.5 fails with this where a coordinate reaches its bound
            **({"maxstd": np.inf} if len(unit) == 1 else {}),
        }
        self._es = self._cma.CMAEvolutionStrategy(unit.clamp(0.0, 1.0).numpy(), 1.0, options)
        self._asked: list[NDArray[np.float64]] = []
        self._told: list[list[float] | None] = []

    def _point(self, unit: Any) -> Tensor:
        return self._set.project(self._low + torch.as_tensor(np.asarray(unit), dtype=torch.float64) * self._width)

    def ask(self) -> Tensor:
        """Return the trials of a generation, points of X, ``[population, dim]``."""
        self._told.append(None)
        self._asked = self._es.ask()
        return self._point(np.stack(self._asked))

    def tell(self, returns: list[float]) -> None:
        """Report the leader's returns at the latest trials."""
        self._told[-1] = [float(value) for value in returns]
        self._es.tell(self._asked, [-value for value in returns])

    @property
    def population(self) -> int:
        """Number of trials per generation."""
        return int(self._es.popsize)

    @property
    def mean(self) -> Tensor:
        """m, projected onto X, ``[dim]``."""
        return self._point(self._es.result.xfavorite)

    def state_dict(self) -> dict[str, Any]:
        """Return seed and start of the search, and the returns of each generation (None where it was abandoned)."""
        return {"entropy": self._entropy, "start": self._start, "told": self._told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the search from what :meth:`state_dict` returned, without running the trials again."""
        self._entropy = [int(word) for word in state["entropy"]]
        self._start = self._set.check(state["start"], "start")
        self._begin()
        for returns in state["told"]:
            asked = self.ask()
            if returns is not None:
                require(len(returns) == len(asked), "told", f"{len(asked)} returns", len(returns))
                self.tell([float(value) for value in returns])


@dataclass
class TabularCMAESState(ExactState):
    """The state that the search continues from.

    Attributes:
        search: the search.
        V: the solver's initial values, ``[..., S]``; None before the first generation.
        evaluations: number of trials so far.
    """

    search: Any = None
    V: Tensor | None = None
    evaluations: int = 0


class TabularCMAESMethod(ExactMethod):
    """CMA-ES on F, solving for the follower in every trial; see :class:`TabularCMAES`."""

    config_class = TabularCMAESConfig
    state_class = TabularCMAESState

    def default_tau(self) -> float:
        return float(self.problem.tau0)

    def reach(self, iterations: int) -> float:
        return math.inf

    def prepare(self, state: TabularCMAESState, seed: int | None) -> None:
        c = self.config
        state.search = Search(self.leader_set, state.x.detach(), c.sigma, c.population, seed_words(seed))

    def descend(self, state: TabularCMAESState, progress: Progress) -> dict[str, float]:
        points = state.search.ask()
        values, V = self.level.leader_returns(points, state.tau, state.V)
        state.V = V.mean(0)
        state.search.tell((values / self.leader_unit).tolist())
        state.evaluations += len(points)
        with torch.no_grad():
            state.x.copy_(state.search.mean)  # without a gradient, the optimiser's step does not move x
        return {"evaluations": float(state.evaluations), "best_trial": float(values.max())}


class TabularCMAES(ExactLeader):
    """CMA-ES on F(x) = J_L(x, pi*_tau(x)), solving for the follower in every trial.

    Args:
        problem: a tabular problem, an environment that has one, or an environment's id.
        config: a :class:`TabularCMAESConfig`: search and bounds.
        seed: seed of the search.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default 0, projected onto X.

    Attributes:
        evaluations: number of trials so far, without those of evaluations.

    Raises:
        ImportError: pycma is not installed.
    """

    method_class = TabularCMAESMethod


@dataclass
class CMAESState(TrialsState):
    """The state that the search continues from.

    Attributes:
        search: the search.
    """

    search: Any = None


class CMAESMethod(TrialsMethod):
    """CMA-ES on the leader's return at a follower trained from scratch for every trial; see :class:`CMAES`."""

    config_class = CMAESConfig

    def init(self, x: Tensor, seed: int | None) -> CMAESState:
        c = self.config
        state = CMAESState(x, words=seed_words(seed))
        state.search = Search(self.leader_set, x.detach(), c.sigma, c.population, state.words)
        self.open(x)
        return state

    def new_follower(self, seed: int) -> SB3Follower:
        return SB3Follower(self.follower_spec, self.training, self.worlds.gamma, seed, self.worlds.linear, Answering())

    def train(self, follower: SB3Follower, steps: int) -> int:
        return follower.train(steps, steps)

    def training_steps(self, steps: int) -> Cost:
        return self._example.cost(steps)

    def step(self, state: CMAESState, progress: Progress) -> tuple[CMAESState, dict[str, float]]:
        """Run a generation; abandon it if the remaining steps do not suffice."""
        points, found = state.search.ask(), []
        for x in points:
            if state.num_timesteps >= progress.total:
                return state, {"trials": float(state.trials)}
            _, returns = self.trial(state, x.numpy(), self.config.follower_steps, state.trials)
            found.append(float(returns.mean()))
            state.trials += 1
        state.search.tell(found)
        with torch.no_grad():
            state.x.copy_(state.search.mean)
        return state, {"trials": float(state.trials), "best_trial": max(found)}

    def iteration_steps(self, state: CMAESState, total: int, first: bool, left: float = math.inf) -> Cost:
        one, n = self.trial_steps(), state.search.population
        begun = int(min(n, -(-left // one.steps)))
        return Cost(begun * one.followers, begun * one.leader, one.certain, begun == n)

    def final(self, state: CMAESState, x: Tensor, record: Evaluation, iteration: int) -> Evaluation:
        """Evaluate the chosen x again, with ``evaluation_followers`` new followers if no model is known."""
        if self.worlds.model is not None:
            return super().final(state, x, record, iteration)  # type: ignore[no-any-return]
        return self.evaluate(state, x, iteration, self.config.evaluation_followers)


class CMAES(TrialsLeader):
    """CMA-ES on the leader's return at an SB3 follower, trained from scratch for every trial.

    Args:
        env: a leader environment: an id, an environment (it is copied), a callable that makes one, or a problem.
        follower: an SB3 class, or a callable ``VecEnv -> BaseAlgorithm``.
        config: a :class:`CMAESConfig`: search, trials and bounds.
        seed: seed of the search, the followers and their environments.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default the environment's own.
        settings: fields of the config by name, e.g. ``population=8``; not allowed with ``config``.

    Attributes:
        trials: number of followers trained so far.
        num_timesteps: their environment steps, including those that measure returns.

    Raises:
        ImportError: pycma is not installed.
        ValueError: see :class:`PBRL`.
    """

    method_class = CMAESMethod
