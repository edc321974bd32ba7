"""Trials of x: train a follower at x, measure the leader's return in episodes, count all steps.

:class:`TrialsMethod` is what black-box searches over any SB3 follower share. :class:`SequentialMethod` tries one x after another
and answers with the best trial: a search only proposes the next x. It uses no gradient and never the model: its belief in an x
is the return that it measured there.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp.checks import check_number, check_size, require
from ...wrappers import set_leader
from ..checkpoint import size_of
from ..config import LeaderConfig, configured, require_unused
from ..estimators.rollouts import collect, episode_returns, mean_and_error
from ..evaluation import Evaluation, leader_return_at_best_response
from ..followers.sb3 import SB3Follower
from ..followers.spec import FollowerSpec
from ..leader import Leader, Method, Progress, State
from ..learned.answers import Evaluating, fresh_follower, judge, judge_steps
from ..learned.worlds import EnvSpec, Vectorisation, Worlds
from ..plan import Cost, RecordCost
from ..records import snapshot

MOST_TRIALS = 10**6
"""Maximum population: a larger generation does not fit in memory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrialsConfig(LeaderConfig):
    """Options of all leaders that train a follower for every trial.

    Attributes:
        follower_steps: training steps of each trial's follower (SB3 rounds up to whole rollouts).
        n_envs: number of its parallel environments.
        rollout_envs: number of episodes that measure a trial's leader return.
        rollout_tail: discount at which these episodes are cut; a critic fitted on them estimates the rest.
        evaluation_followers: number of followers that ``evaluate()`` newly trains, where no model is known.
        evaluation_steps: training steps of each of them.
        vec_env: how parallel environments are stepped: ``"native"``, ``"dummy"`` or ``"subproc"``; None takes the environment's
            own batched simulator, if it has one, and otherwise SB3's ``DummyVecEnv``.
    """

    follower_steps: int = 20_000
    n_envs: int = 64
    rollout_envs: int = 64
    rollout_tail: float = 0.05
    evaluation_followers: int = 3
    evaluation_steps: int = 50_000
    vec_env: Vectorisation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("follower_steps", "n_envs", "rollout_envs", "evaluation_followers", "evaluation_steps"):
            check_size(getattr(self, name), name)
        check_number(self.rollout_tail, "rollout_tail", low=0.0, high=1.0, open_low=True, open_high=True)
        known = self.vec_env in (None, *get_args(Vectorisation))
        require(known, "vec_env", f"None or one of {get_args(Vectorisation)}", repr(self.vec_env))


def check_population(population: int | None, least: int = 2) -> None:
    """Raise ``ValueError`` unless it is None or a number of trials that fits in memory."""
    if population is not None:
        fits = least <= check_size(population, "population") <= MOST_TRIALS
        require(fits, "population", f"a number in [{least}, {MOST_TRIALS}]", population)


def seed_words(seed: int | None) -> list[int]:
    """Return the numbers that all random numbers of a search derive from."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(4)]


@dataclass
class TrialsState(State):
    """The state that all searches continue from.

    Attributes:
        words: numbers that seed the trials.
        trials: number of followers trained so far.
        evaluations: number of records so far, which seeds the next one.
        earlier: weights of the best answer in the last record, where no model is known.
    """

    words: list[int] = field(default_factory=list)
    trials: int = 0
    evaluations: int = 0
    earlier: dict[str, Any] = field(default_factory=dict)


class TrialsMethod(Method):
    """A search whose every trial trains a follower. The arguments are the leader's."""

    counts = "total_timesteps"
    config_class: ClassVar[type[TrialsConfig]]

    def __init__(self, env: EnvSpec, follower: FollowerSpec, config: Any, env_kwargs: dict[str, Any] | None) -> None:
        self.config = config
        self.worlds, self.follower_spec = Worlds(env, env_kwargs, False, config.vec_env), follower
        self.source, self.leader_set = self.worlds.source, self.config.cut(self.worlds.leader_set)

    def start_x(self) -> Tensor:
        return self.worlds.start_x()

    def open(self, x: Tensor) -> None:
        """Make the environments and an example of the followers, so that errors show before any work."""
        self.worlds.require_sampled_return(x.detach())
        self.training, self._rollouts = (self.worlds.make(n) for n in (self.config.n_envs, self.config.rollout_envs))
        self._example = self.new_follower(0)
        self.worlds.require_every_action(x.detach(), self._example)

    # --- a trial ----------------------------------------------------------------------------------------------------

    def new_follower(self, seed: int) -> SB3Follower:
        """Make an untrained follower."""
        return fresh_follower(self.worlds, self.follower_spec, self.training, seed)

    def train(self, follower: SB3Follower, steps: int) -> int:
        """Train a trial's follower, with all schedules of a fixed x; return the environment steps spent."""
        return follower.train_alone(steps)

    def training_steps(self, steps: int) -> Cost:
        """Return the environment steps of :meth:`train`."""
        return self._example.cost_alone(steps)

    def trial(
        self,
        state: Any,
        x: NDArray[np.float64],
        steps: int,
        *number: int,
        weights: dict[str, Any] | None = None,
    ) -> tuple[SB3Follower, NDArray[np.float64]]:
        """Train a follower at x; return it, and the leader's return in each of a few episodes, ``[n]``.

        Args:
            state: the state, which seeds the trial and counts its steps.
            x: a point of X, ``[dim]``.
            steps: environment steps of training.
            number: numbers that the trial's seed depends on.
            weights: what the follower starts from, another's ``policy_state()``. Default: new weights.
        """
        seed, w = int(np.random.default_rng([*state.words, *number]).integers(2**31)), self.worlds
        for venv in (self.training, self._rollouts):
            set_leader(venv, x)
        follower = self.new_follower(seed)
        if weights:
            follower.take_policy(weights)
        state.num_timesteps += self.train(follower, steps)
        # The follower plays its best action; for continuous actions this is the policy's mean.
        with follower.generators.active():
            player = follower.player(self._rollouts, greedily=True)
            episodes = collect(self._rollouts, player, w.horizon(self.config.rollout_tail), seed)
        state.num_timesteps += episodes.steps
        _, leader = episode_returns(episodes, w.base_space, w.gamma)
        return follower, leader

    def trial_steps(self) -> Cost:
        """Return the environment steps of :meth:`trial`."""
        measured = self.config.rollout_envs * self.worlds.horizon(self.config.rollout_tail)
        return self.training_steps(self.config.follower_steps)._replace(leader=measured)

    # --- evaluation -------------------------------------------------------------------------------------------------

    def record_steps(self, state: Any) -> RecordCost:
        if self.worlds.model is not None:
            return RecordCost()
        return judge_steps(self.worlds, self._sizes(1), self._example, 0, bool(state.earlier))

    def _sizes(self, n_followers: int) -> Evaluating:
        c = self.config
        return Evaluating(n_followers, c.evaluation_steps, c.n_envs, c.rollout_envs)

    def evaluate(self, state: Any, x: Tensor, iteration: int, n_followers: int = 1) -> Evaluation:
        """Evaluate x exactly where a model is known, else at the best answer found, whose steps count."""
        known = self.worlds.model
        if known is not None:
            value = leader_return_at_best_response(known, x.detach())
            return Evaluation(value, None, None, None, None, 0.0, state.num_timesteps, iteration)
        seeds = np.random.SeedSequence([*state.words, state.evaluations, 1])
        state.evaluations += 1
        earlier = [("the best answer of an earlier record", state.earlier)] if state.earlier else []
        point = x.detach().numpy()
        found = judge(self.worlds, self.follower_spec, point, {}, earlier, self._sizes(n_followers), seeds)
        state.earlier = found.policy
        state.num_timesteps += found.steps
        value, stderr = found.leader_return
        cost = {"evaluation_followers": found.followers, "evaluation_steps": found.steps}
        steps = state.num_timesteps
        return Evaluation(
            value, None, None, None, None, 0.0, steps, iteration, stderr, best_answer=found.best_answer, **cost
        )

    # --- files ------------------------------------------------------------------------------------------------------

    def room(self, state: Any) -> int:
        """Return the size in bytes of the earlier answer's weights."""
        return size_of(snapshot(self.new_follower(0).policy_state()))

    def fingerprint(self) -> list[float]:
        return self.worlds.fingerprint()

    def close(self, state: Any) -> None:
        for venv in (self.training, self._rollouts):
            venv.close()


class TrialsLeader(Leader):
    """A leader by a search with trained followers, named by the class attribute ``method_class``.

    Args:
        env: a leader environment: an id, an environment (it is copied), a callable that makes one, or a problem.
        follower: an SB3 class, or a callable ``VecEnv -> BaseAlgorithm``.
        config: the search's settings; None takes them from the keyword arguments.
        seed: seed of the search, the followers and their environments. Default: 0.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default the environment's own.
        settings: fields of the config by name, e.g. ``follower_steps=30_000``; not allowed with ``config``.
    """

    given = ("follower", "env")
    method_class: ClassVar[type[TrialsMethod]]

    def __init__(
        self,
        env: EnvSpec,
        follower: FollowerSpec,
        *,
        config: Any = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
        **settings: Any,
    ) -> None:
        config = configured(type(self), self.method_class.config_class, config, settings)
        super().__init__(self.method_class(env, follower, config, env_kwargs), seed, x0)


# --- one x after another ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class SequentialConfig(TrialsConfig):
    """Options of :class:`Sweep` and :class:`OptunaSearch`; other leaders' optimiser settings and records are not used.

    Attributes:
        warm_start: whether a trial's follower starts from the weights of the best trial's follower so far. Default: False, new
            weights.
    """

    follower_steps: int = 60_000
    warm_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.warm_start, bool), "warm_start", "True or False", repr(self.warm_start))
        require_unused(
            self, ("learning_rate", "optimizer_class", "optimizer_kwargs"), "the search takes no gradient steps"
        )
        kept = "x is the best trial by its measured return (see leader.tried)"
        require_unused(self, ("eval_every", "keep_best"), kept)


@dataclass(frozen=True, eq=False)
class Trial:
    """A trial of x.

    Attributes:
        x: the point of X, ``[dim]``.
        leader_return: the leader's mean return in the trial's episodes.
        stderr: its standard error; infinite for a single episode.
        steps: environment steps of the trial, of training and episodes.
    """

    x: Tensor
    leader_return: float
    stderr: float
    steps: int


@dataclass
class SequentialState(TrialsState):
    """The state that a search continues from.

    Attributes:
        tried: all trials so far.
        policy: weights of the best trial's follower, where the next one starts from them.
    """

    tried: list[Trial] = field(default_factory=list)
    policy: dict[str, Any] = field(default_factory=dict)

    @property
    def best_trial(self) -> Trial | None:
        """The trial with the highest measured return, the leader's belief about its x; None before any."""
        return max(self.tried, key=lambda trial: trial.leader_return, default=None)


class SequentialMethod(TrialsMethod):
    """A search that tries one x per iteration, first the initial one; the leader's x is the best trial."""

    judges = False

    @abstractmethod
    def propose(self, state: SequentialState) -> Tensor:
        """Return the next x to try, a point of X, ``[dim]``; it depends only on the seed and on ``state.tried``."""

    def init(self, x: Tensor, seed: int | None) -> SequentialState:
        self.open(x)
        return SequentialState(x, words=seed_words(seed))

    def step(self, state: SequentialState, progress: Progress) -> tuple[SequentialState, dict[str, float]]:
        x = self.propose(state) if state.tried else state.x.detach().clone()
        before, warm = state.num_timesteps, self.config.warm_start
        number, weights = len(state.tried), state.policy if warm else None
        follower, returns = self.trial(state, x.numpy(), self.config.follower_steps, number, weights=weights)
        trial = Trial(x, *mean_and_error(returns), state.num_timesteps - before)
        state.tried.append(trial)
        state.trials = len(state.tried)
        if trial is state.best_trial:
            state.policy = follower.policy_state() if warm else {}
            with torch.no_grad():
                state.x.copy_(x)
        best = state.best_trial
        assert best is not None
        return state, {"best_trial": best.leader_return, "trial": trial.leader_return, "trials": float(state.trials)}

    def iteration_steps(self, state: SequentialState, total: int, first: bool, left: float = math.inf) -> Cost:
        return self.trial_steps()

    def evaluate(self, state: SequentialState, x: Tensor, iteration: int, n_followers: int | None = None) -> Evaluation:
        return super().evaluate(state, x, iteration, n_followers or self.config.evaluation_followers)

    def room(self, state: SequentialState) -> int:
        """Return the size in bytes of two followers' weights; the trials' points are few numbers."""
        return 2 * super().room(state)

    def loaded(self, state: SequentialState, replay: bool, path: Path) -> None:
        """Check the trials and weights that were read."""
        require(state.trials == len(state.tried), "trials", f"{len(state.tried)}, one for each trial", state.trials)
        for i, trial in enumerate(state.tried):
            self.leader_set.check(trial.x, f"tried[{i}].x")
            check_number(trial.leader_return, f"tried[{i}].leader_return")
        best = state.best_trial
        if best is not None:
            require(torch.equal(best.x, state.x.detach()), "x", "the x of the best trial", "another one")
        for weights in (state.policy, state.earlier):
            if weights:
                self._example.take_policy(weights)
