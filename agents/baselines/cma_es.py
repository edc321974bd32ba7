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
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp import LeaderSet
from ...envs.mdp.checks import check_number, check_size, require
from ...wrappers import set_leader
from ..checkpoint import size_of
from ..config import LeaderConfig, configured
from ..estimators.rollouts import collect, episode_returns
from ..evaluation import Evaluation, leader_return_at_best_response
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState
from ..followers.sb3 import SB3Follower
from ..followers.spec import Answering, FollowerSpec
from ..leader import Leader, Method, Progress, State
from ..learned.answers import Evaluating, judge, judge_steps
from ..learned.worlds import EnvSpec, Worlds
from ..plan import Cost, RecordCost
from ..records import snapshot, storable

MOST_TRIALS = 10**6
"""Maximum population: a larger generation does not fit in memory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _SearchConfig(LeaderConfig):
    sigma: float = 0.1
    population: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.sigma, "sigma", low=0.0, high=1e3, open_low=True)
        if self.population is not None:
            fits = 2 <= check_size(self.population, "population") <= MOST_TRIALS
            require(fits, "population", f"a number in [2, {MOST_TRIALS}]", self.population)
        defaults = LeaderConfig()
        for name in ("learning_rate", "optimizer_class", "optimizer_kwargs"):
            value, unused = getattr(self, name), "none: CMA-ES takes no gradient steps (see sigma)"
            require(value == getattr(defaults, name), name, unused, repr(value))


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
class CMAESConfig(_SearchConfig):
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
    """

    follower_steps: int = 20_000
    n_envs: int = 64
    rollout_envs: int = 64
    rollout_tail: float = 0.05
    evaluation_followers: int = 3
    evaluation_steps: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("follower_steps", "n_envs", "rollout_envs", "evaluation_followers", "evaluation_steps"):
            check_size(getattr(self, name), name)
        check_number(self.rollout_tail, "rollout_tail", low=0.0, high=1.0, open_low=True, open_high=True)


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


def _words(seed: int | None) -> list[int]:
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(4)]


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
        state.search = Search(self.leader_set, state.x.detach(), c.sigma, c.population, _words(seed))

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
class CMAESState(State):
    """The state that the search continues from.

    Attributes:
        search: the search.
        words: numbers that seed the trials.
        trials: number of followers trained so far.
        evaluations: number of records so far, which seeds the next one.
        earlier: weights of the best answer in the last record, where no model is known.
    """

    search: Any = None
    words: list[int] = field(default_factory=list)
    trials: int = 0
    evaluations: int = 0
    earlier: dict[str, Any] = field(default_factory=dict)


class CMAESMethod(Method):
    """CMA-ES on the leader's return at a follower trained from scratch for every trial; see :class:`CMAES`."""

    counts = "total_timesteps"

    def __init__(self, env: EnvSpec, follower: FollowerSpec, config: CMAESConfig, env_kwargs: Any) -> None:
        self.config = config
        self.worlds, self.follower_spec = Worlds(env, env_kwargs, observe_commitment=False), follower
        self.source, self.leader_set = self.worlds.source, self.config.cut(self.worlds.leader_set)

    def start_x(self) -> Tensor:
        return self.worlds.start_x()

    def init(self, x: Tensor, seed: int | None) -> CMAESState:
        c = self.config
        self.worlds.require_sampled_return(x.detach())
        state = CMAESState(x, words=_words(seed))
        state.search = Search(self.leader_set, x.detach(), c.sigma, c.population, state.words)
        self.training, self._rollouts = self.worlds.make(c.n_envs), self.worlds.make(c.rollout_envs)
        self._example = self.new_follower(0)
        self.worlds.require_every_action(x.detach(), self._example)  # errors show before any work
        return state

    def new_follower(self, seed: int) -> SB3Follower:
        return SB3Follower(self.follower_spec, self.training, self.worlds.gamma, seed, self.worlds.linear, Answering())

    def step(self, state: CMAESState, progress: Progress) -> tuple[CMAESState, dict[str, float]]:
        """Run a generation; abandon it if the remaining steps do not suffice."""
        points, returns = state.search.ask(), []
        for x in points:
            if state.num_timesteps >= progress.total:
                return state, {"trials": float(state.trials)}
            returns.append(float(self.trial(state, x.numpy(), self.config.follower_steps, state.trials).mean()))
            state.trials += 1
        state.search.tell(returns)
        with torch.no_grad():
            state.x.copy_(state.search.mean)
        return state, {"trials": float(state.trials), "best_trial": max(returns)}

    def _trial_steps(self, steps: int) -> Cost:
        """Return the environment steps of :meth:`trial`."""
        measured = self.config.rollout_envs * self.worlds.horizon(self.config.rollout_tail)
        return self._example.cost(steps)._replace(leader=measured)

    def iteration_steps(self, state: CMAESState, total: int, first: bool, left: float = math.inf) -> Cost:
        one, n = self._trial_steps(self.config.follower_steps), state.search.population
        begun = int(min(n, -(-left // one.steps)))
        return Cost(begun * one.followers, begun * one.leader, one.certain, begun == n)

    def record_steps(self, state: CMAESState) -> RecordCost:
        if self.worlds.model is not None:
            return RecordCost()
        return judge_steps(self.worlds, self._sizes(1), self._example, 0, bool(state.earlier))

    def _sizes(self, n_followers: int) -> Evaluating:
        c = self.config
        return Evaluating(n_followers, c.evaluation_steps, c.n_envs, c.rollout_envs)

    def trial(self, state: CMAESState, x: NDArray[np.float64], steps: int, *number: int) -> NDArray[np.float64]:
        """Train a follower from scratch at x; return the leader's return in each of a few episodes, ``[n]``.

        Args:
            state: the state, which seeds the trial and counts its steps.
            x: a point of X, ``[dim]``.
            steps: environment steps of training.
            number: numbers that the trial's seed depends on.
        """
        seed, w = int(np.random.default_rng([*state.words, *number]).integers(2**31)), self.worlds
        for venv in (self.training, self._rollouts):
            set_leader(venv, x)
        follower = self.new_follower(seed)
        state.num_timesteps += follower.train(steps, steps)
        with follower.generators.active():
            player = follower.player(self._rollouts, greedily=True)
            episodes = collect(self._rollouts, player, w.horizon(self.config.rollout_tail), seed)
        state.num_timesteps += episodes.steps
        _, leader = episode_returns(episodes, w.base_space, w.gamma)
        return leader

    def evaluate(self, state: CMAESState, x: Tensor, iteration: int, n_followers: int = 1) -> Evaluation:
        """Evaluate x exactly where a model is known, else at the best answer found, whose steps count."""
        known = self.worlds.model
        if known is not None:
            value = leader_return_at_best_response(known, x)
            return Evaluation(value, None, None, None, None, 0.0, state.num_timesteps, iteration)
        seeds = np.random.SeedSequence([*state.words, state.evaluations, 1])
        state.evaluations += 1
        earlier = [("the best answer of an earlier record", state.earlier)] if state.earlier else []
        found = judge(self.worlds, self.follower_spec, x.numpy(), {}, earlier, self._sizes(n_followers), seeds)
        state.earlier = found.policy
        state.num_timesteps += found.steps
        value, stderr = found.leader_return
        cost = {"evaluation_followers": found.followers, "evaluation_steps": found.steps}
        steps = state.num_timesteps
        return Evaluation(
            value, None, None, None, None, 0.0, steps, iteration, stderr, best_answer=found.best_answer, **cost
        )

    def final(self, state: CMAESState, x: Tensor, record: Evaluation, iteration: int) -> Evaluation:
        """Evaluate the chosen x again, with ``evaluation_followers`` new followers if no model is known."""
        if self.worlds.model is not None:
            return super().final(state, x, record, iteration)  # type: ignore[no-any-return]
        return self.evaluate(state, x, iteration, self.config.evaluation_followers)

    def room(self, state: CMAESState) -> int:
        """Return the size in bytes of the earlier answer's weights."""
        return size_of(snapshot(self.new_follower(0).policy_state()))

    def fingerprint(self) -> list[float]:
        return self.worlds.fingerprint()


class CMAES(Leader):
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

    given = ("follower", "env")

    def __init__(
        self,
        env: EnvSpec,
        follower: FollowerSpec,
        *,
        config: CMAESConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
        **settings: Any,
    ) -> None:
        config = configured(type(self), CMAESConfig, config, settings)
        super().__init__(CMAESMethod(env, follower, config, env_kwargs), seed, x0)
