r"""The loop that all methods of learning a reward from preferences share (Christiano et al. 2017; arXiv 2402.06886, 6.2).

    play at random, or as the follower begins; ask about the first pairs; fit r_x to the answers
    repeat     train the followers on r_x
               ask about pairs of segments of what one of them just did; take the answers that have come, to whichever question
               fit r_x by the Bradley-Terry loss, and by what the method adds to it; relabel replay buffers

A method says which followers there are, what is added to the loss, and what to the reward. Questions are due early rather than
late: after a share u of the steps, log(1 + eu) / log(1 + e) of those that follow the first, ``e = config.early``. On-policy
followers are asked about at the end of each rollout, before they learn from it; off-policy ones at the end of each iteration.
Rollouts shorter than a segment share an iteration's questions, which are then about segments that end in the rollout: what is
paid for their last step can still be learned from.

The true reward is recorded beside the segments and read by labellers alone (and by ``evaluate``); nothing else that learns sees
it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from tqdm.auto import tqdm

from ...envs.mdp import policy_return
from ...envs.mdp.checks import check_seed, check_size, require
from ...wrappers import LearnedReward, SegmentRecorder
from ..common.leader import Callback, Callbacks
from ..common.log import Log
from ..common.storage import decode, encode, read_arrays, read_leader, write_leader
from ..common.tabular import source_of_file
from ..common.worlds import EnvSpec
from ..files import reading
from ..followers.sb3 import Generators, SB3Follower
from ..followers.spec import Answering, FollowerSpec, follower_name, follower_of_file
from .buffer import PreferenceBuffer
from .config import PreferenceConfig, PreferenceEvaluation
from .files import Signature, preferences_as_bytes, preferences_from_bytes
from .labels import Labeller, Pair, Query, TrueReturnLabeller
from .recorded import RecordedFollower
from .reward_model import RewardModel, RewardNet, default_net
from .training import Fit, RewardExplodedError, RewardTrainer
from .worlds import Copies, PreferenceWorlds, best_policy, regret

STEPS_SEEN = 4096
"""Steps by which a reward model's inputs and outputs are standardised, at most; where there are more, some evenly spread."""


class _RolloutEnd(BaseCallback):
    """Calls a function with SB3's local variables at the end of each rollout."""

    def __init__(self, function: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._function = function

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._function(self.locals)


Self = TypeVar("Self", bound="PreferenceLearner")


class PreferenceLearner:
    """A method that learns a reward from preferences while a follower learns from that reward.

    Args:
        env: an id, an environment (copied), a callable that makes one, or ``Copies``.
        follower: an SB3 class, or a callable ``VecEnv -> BaseAlgorithm``.
        config: how.
        labeller: who answers; None takes the true return's sign.
        seed: of the nets, the followers, their worlds and the choice of pairs.
        env_kwargs: arguments of an id.

    Attributes:
        model: the reward model; its weights are the leader's x.
        buffer: labelled pairs.
        pending: open queries, by number.
        num_timesteps: environment steps of learning, random play included.
        iteration: iterations so far.
        asked: queries so far.

    Raises:
        ValueError: no environment or follower that can be used, a config of another kind, a labeller that is none.
    """

    def __init__(
        self,
        env: EnvSpec | Copies,
        follower: FollowerSpec,
        config: PreferenceConfig | None = None,
        labeller: Labeller | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
    ) -> None:
        config = PreferenceConfig() if config is None else config
        require(isinstance(config, PreferenceConfig), "config", "a PreferenceConfig", repr(config))
        require(labeller is None or isinstance(labeller, Labeller), "labeller", "a Labeller", repr(labeller))
        self.config, self.follower_spec, self.seed = config, follower, check_seed(seed)
        seeds = [int(s) % 2**31 for s in np.random.SeedSequence(self.seed).generate_state(6)]
        self.worlds = PreferenceWorlds(env, env_kwargs, config.vec_env, config.gamma)
        self.labeller = TrueReturnLabeller(seed=seeds[0]) if labeller is None else labeller
        self.rng, self._evaluation_seed = np.random.default_rng(seeds[1]), seeds[2]
        self.generators = Generators(seeds[3])
        net = default_net if config.net is None else config.net
        with self.generators.active():
            members = [net(self.worlds.observation_space, self.worlds.action_space) for _ in range(config.ensemble)]
            self.model = RewardModel(members, config.device)
        self.trainer = RewardTrainer(self.model, config.fit, seeds[2])
        self.buffer, self.pending = PreferenceBuffer(config.capacity), dict[int, Pair]()
        self.num_timesteps = self.iteration = self.asked = 0
        self._next_id, self._total, self._begun, self._trained_from = self.labeller.first_id, 0, False, 0
        self._take_earlier()
        self._follower_seed = seeds[4]
        self.best_response = self._new_follower(self._follower_seed, follower)
        self._logger: Logger | None = None
        self._log = Log()

    # --- what a method says -------------------------------------------------------------------------------------------

    @property
    def followers(self) -> list[RecordedFollower]:
        """All that are trained."""
        return [self.best_response]

    @property
    def observed(self) -> RecordedFollower:
        """The one whose segments are compared: pi_y."""
        return self.best_response

    def _further(self, since: dict[int, int]) -> Callable[[], Tensor] | None:
        """What is added to the loss of every step of a fit; ``since``: the followers' recorded steps before this iteration."""
        return None

    def _credit(self, first: int, last: int) -> NDArray[np.float64] | None:
        """What the observed follower is paid on top in its steps ``[first, last)``, ``[last - first, n]``."""
        return None

    def _paying(self, recorder: SegmentRecorder) -> VecEnv:
        """What a follower is trained on."""
        return LearnedReward(recorder, self.model.reward)

    def _record(self) -> dict[str, float | None]:
        """The method's own part of an evaluation."""
        return {"penalty": None, "lam": None}

    # --- learning -----------------------------------------------------------------------------------------------------

    @property
    def x(self) -> NDArray[np.float64]:
        """The leader's parameter: the reward model's weights, flat."""
        return np.concatenate([p.detach().double().cpu().numpy().ravel() for p in self.model.parameters()])

    @property
    def logger(self) -> Logger:
        """SB3's logger; by default it writes nowhere."""
        if self._logger is None:
            self._logger = Logger(folder=None, output_formats=[])
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Write the records with an SB3 logger; what was logged before, also before a resumption, is written first."""
        self._logger = logger
        self._log.tell(logger)

    @property
    def follower(self) -> SB3Follower:
        """The trained follower; ``follower.save(path)`` writes a plain SB3 model."""
        return self.best_response.follower

    def get_env(self) -> VecEnv:
        """The follower's copies of the world, for SB3's callbacks."""
        return self.best_response.follower.venv

    def evaluate_last(self) -> PreferenceEvaluation:
        """As :meth:`evaluate`: of a learned reward nothing but the last is kept."""
        return self.evaluate()

    def _new_follower(self, seed: int, spec: FollowerSpec) -> RecordedFollower:
        made = RecordedFollower(self.worlds, spec, self.config, seed)
        return made.paid_by(self._paying(made.recorder))

    def learn(
        self: Self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Learn until this many environment steps are spent: of all followers and of the random play; the last iteration is
        finished.

        Args:
            total_timesteps: steps.
            callback: called with the learner after every iteration; False stops.
            progress_bar: show one.
            reset_num_timesteps: False goes on counting, so that the questions' schedule runs over the sum.

        Raises:
            TimeoutError: a labeller that has answered nothing within ``config.patience`` seconds.
            RewardExplodedError: a reward model whose output explodes; the learner, and ``config.checkpoint`` if that is set,
                hold its last good state.
        """
        callbacks = Callbacks(callback, self)
        total = check_size(total_timesteps, "total_timesteps")
        if reset_num_timesteps:
            self.num_timesteps = self.iteration = 0
            self._log = Log()
        before = self.num_timesteps
        self._total = before + total
        try:
            with callbacks, tqdm(total=total, disable=not progress_bar, unit="step") as bar:
                if not self._begun:
                    self._begin()
                while self.num_timesteps < self._total:
                    record = self._iterate()
                    self.iteration += 1
                    bar.n = min(self.num_timesteps - before, total)
                    bar.set_postfix(labels=len(self.buffer), loss=f"{record['cross_entropy']:.3f}")
                    for key, value in record.items():
                        self.logger.record(f"leader/{key}", value)
                    self._log.dump(self.logger, self.num_timesteps)
                    if not callbacks(self):
                        break
        except RewardExplodedError as error:
            if self.config.checkpoint is None:
                raise
            raise RewardExplodedError(f"{error}; saved in {self.save(self.config.checkpoint)}") from error
        if self.pending:
            warnings.warn(f"{len(self.pending)} queries are still without an answer", stacklevel=2)
        return self

    @property
    def remaining_timesteps(self) -> int:
        """Steps that are left of the last call of ``learn``: 0 where it came to its end."""
        return max(0, self._total - self.num_timesteps)

    def resume(self: Self, callback: Callback | None = None, progress_bar: bool = False) -> Self:
        """Finish the call of ``learn`` that ended early: the one that a file's learner was saved in."""
        left = self.remaining_timesteps
        return self.learn(left, callback, progress_bar, False) if left else self

    def _begin(self) -> None:
        """Random play, the first questions, the first fit."""
        recorder, config = self.observed.recorder, self.config
        recorder.seed(self._evaluation_seed)
        obs, play = recorder.reset(), self._first_player()
        held = self.observed.follower.generators.state
        for _ in range(-(-config.first_steps // config.n_envs)):
            obs, *_ = recorder.step(play(obs))
            self.num_timesteps += config.n_envs
        self.observed.follower.generators.state = held
        recorder.seed(self._follower_seed)  # the follower's episodes are those that it would have had without this
        self.model.fit_inputs(recorder.sample(0, STEPS_SEEN)[0])
        self._ask(config.first_labels - self.asked, 0)
        deadline = time.monotonic() + config.patience
        while self._collect() or (self.pending and time.monotonic() < deadline):
            if self.pending:
                time.sleep(min(0.2, config.patience))
        if len(self.buffer) == 0:
            raise TimeoutError(
                f"labeller: expected an answer within {config.patience:g} s, got none that says left, right or equal to "
                f"{self.asked} queries; they stay open"
            )
        self._fit(config.first_epochs, None)
        self._begun = True

    def _first_player(self) -> Callable[[Any], NDArray[Any]]:
        """What plays before anything is learned."""
        if self.config.follower_plays_first:
            return self.observed.follower.player(self.observed.recorder)
        space = self.observed.recorder.action_space
        space.seed(self._evaluation_seed)
        return lambda _: np.stack([space.sample() for _ in range(self.config.n_envs)])

    def _iterate(self) -> dict[str, float]:
        config = self.config
        since = {id(f): f.recorder.steps for f in self.followers}
        planned = int(self._total / len(self.followers))
        for f in self.followers:
            if f.begun is None:
                f.begun = f.recorder.steps
            self._relabel(f)
            self._trained_from = f.recorder.steps
            asks = f is self.observed and f.on_policy
            callback = _RolloutEnd(lambda found, f=f: self._rollout_ended(f, found)) if asks else None  # type: ignore[misc]
            self.num_timesteps += f.follower.train(config.follower_steps, planned, callback, fresh_episodes=False)
        if not self.observed.on_policy:
            self._ask(self._due(), since[id(self.observed)])
            self._collect()
        fit = self._fit(config.epochs, since)
        return {
            "cross_entropy": fit.cross_entropy,
            "accuracy": fit.accuracy,
            "labels": float(self.buffer.seen),
            "pending": float(len(self.pending)),
            **{key: value for key, value in self._record().items() if value is not None},
        }

    def _relabel(self, f: RecordedFollower) -> None:
        """Make an off-policy follower's replay buffer true to the reward model as it is now."""
        f.relabel(self.model.reward, self._credit if f is self.observed else None)

    def _rollout_ended(self, follower: RecordedFollower, found: dict[str, Any]) -> None:
        """Ask about what an on-policy follower just did, before it learns from it."""
        model: Any = follower.follower.model
        steps, rollout, H = follower.recorder.steps, int(model.rollout_buffer.buffer_size), self.config.length
        if rollout < H:
            done = (steps - self._trained_from) * self.config.n_envs / self.config.follower_steps
            self._ask(self._due(min(1.0, done)), max(0, steps - rollout - H + 1))
        else:
            self._ask(self._due(), max(0, min(steps - rollout, steps - 4 * H)))
        self._collect()

    def _due(self, done: float = 1.0) -> int:
        """Questions that are due after this share of the iteration and have not been asked."""
        config, early = self.config, self.config.early
        soon = self.num_timesteps + done * len(self.followers) * config.follower_steps
        share = min(1.0, soon / max(1, self._total))
        share = share if early == 0.0 else np.log1p(early * share) / np.log1p(early)
        return round(config.first_labels + (config.labels - config.first_labels) * float(share)) - self.asked

    def _ask(self, n: int, since: int) -> None:
        left = self.labeller.remaining
        n = min(n, self.config.max_pending - len(self.pending), n if left is None else left)
        if n <= 0:
            return
        pairs = self.config.fragmenter.pairs(self.observed.recorder, self.model, n, since, self.rng)
        queries = [Query(self._next_id + i, pair) for i, pair in enumerate(pairs)]
        self._next_id += len(queries)
        self.asked += len(queries)
        self.pending |= {query.id: query.pair for query in queries}
        self.labeller.ask(queries)

    def _collect(self) -> int:
        """Take the answers that have come; how many."""
        answers = self.labeller.answers()
        for answer in answers:
            require(0 <= answer.id < self._next_id, "labeller", "an answer to a query", f"one to number {answer.id}")
            pair = self.pending.pop(answer.id, None)
            if pair is not None:  # a second answer comes too late
                self.buffer.add(pair, answer.label)
        return len(answers)

    def _take_earlier(self) -> None:
        """Go on with what earlier sessions of the labeller left."""
        labelled, self.pending = self.labeller.earlier()
        for pair, label in labelled:
            self.buffer.add(pair, label)
        self.asked = len(labelled) + len(self.pending)

    def _fit(self, epochs: int, since: dict[int, int] | None) -> Fit:
        with self.generators.active():
            further = None if since is None else self._further(since)
            fit = self.trainer.fit(self.buffer, epochs, further)
        recorder = self.observed.recorder
        centre = self.config.centre
        if centre is None:
            centre = not any(f.recorder.terminations for f in self.followers)
        self.model.normalise(
            *recorder.sample(recorder.steps - self.config.recorded, STEPS_SEEN), centre, self.config.unit
        )
        return fit

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self) -> PreferenceEvaluation:
        """The record of the learned reward; what a fresh follower's training and the episodes cost is not counted."""
        mdp = self.worlds.true_mdp()
        short: float | None = None
        short_y: float | None = None
        if mdp is not None:
            pi = best_policy(mdp, self._table())
            states = np.arange(mdp.n_states)
            pi_y = torch.from_numpy(self.observed.follower.probabilities(states))
            mean, stderr = float(policy_return(mdp, pi)), 0.0
            short, short_y = regret(mdp, pi), regret(mdp, pi_y / pi_y.sum(-1, keepdim=True))
        else:
            returns = self.true_returns()
            mean, stderr = float(returns.mean()), float(returns.std(ddof=1) / np.sqrt(len(returns)))
        fit = self.trainer.assess(self.buffer) if len(self.buffer) else Fit(float("nan"), float("nan"))
        own = self._record()
        return PreferenceEvaluation(
            labels=self.buffer.seen,
            true_return=mean,
            true_return_stderr=stderr,
            regret=short,
            regret_at_pi_y=short_y,
            cross_entropy=fit.cross_entropy,
            accuracy=fit.accuracy,
            penalty=own["penalty"],
            lam=own["lam"],
            steps=self.num_timesteps,
            iteration=self.iteration,
        )

    def _table(self) -> Tensor:
        """The reward that followers learn from, ``[S, A]``, in a tabular world."""
        return self.worlds.table(self.model)

    def true_returns(self) -> NDArray[np.float64]:
        """Undiscounted true return of each of ``evaluation_episodes`` episodes of the follower that :meth:`evaluate` judges."""
        c, follower = self.config, self.best_response.follower
        venv = None
        if c.evaluation_steps:
            venv = self._paying(SegmentRecorder(self.worlds.make(c.n_envs), 1, 1, self.worlds.true_reward))
            seed, linear = self._evaluation_seed, self.worlds.linear
            follower = SB3Follower(self.follower_spec, venv, self.worlds.gamma, seed, linear, Answering())
            follower.train(int(c.evaluation_steps), int(c.evaluation_steps))
        held = follower.generators.state
        greedily = isinstance(self.worlds.action_space, gym.spaces.Box)
        returns, _ = self.worlds.true_returns(
            lambda world: follower.player(world, greedily), c.evaluation_episodes, self._evaluation_seed
        )
        follower.generators.state = held
        if venv is not None:
            venv.close()
        return returns

    def close(self) -> None:
        """Close the followers' worlds."""
        for f in self.followers:
            f.recorder.close()

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, replay: bool = False) -> Path:
        """Write the learner to a zip, whole or not at all: reward model, followers, labelled pairs, open queries, generators.

        True rewards are not stored; a follower, a net or a labeller of one's own has to be given again.

        Args:
            path: the file, ``.zip`` where it has no suffix.
            replay: whether what was recorded, replay buffers and the place in the episodes go in. Then learning on is to the
                bit, where the world is one of the library's native simulators and the labeller one that answers at once;
                in other worlds it begins new episodes.

        Returns:
            The path written.

        Raises:
            OSError: a file that cannot be written; what was there before still is.
            TypeError: a config that no file can hold.
        """
        header = {
            "leader": type(self).__name__,
            "source": {"env_id": self.worlds.source.env_id, "env_kwargs": encode(self.worlds.source.env_kwargs)},
            "signature": asdict(self.worlds.signature(self.config.length)),
            "follower": self._follower_name(),
            "config": encode(replace(self.config, net=None)),
            "own_net": self.config.net is not None,
            "seed": self.seed,
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "method": self._method_state(),
            "seeds": [self._follower_seed, self._evaluation_seed],
            "seen": [self.buffer.seen, self.buffer.skipped],
            "places": [[_place(p.pair) for p in self.buffer], [_place(pair) for pair in self.pending.values()]],
            "rng": [self.rng.bit_generator.state, self.trainer.rng.bit_generator.state],
            "labeller": [type(self.labeller).__name__, self.labeller.state()],
            "log": self._log.rows,
        }
        contents = preferences_as_bytes(self.buffer, self.pending, self.worlds.signature(self.config.length))
        tensors = {
            "reward": self.trainer.state(),
            "generators": self.generators.state_dict(),
            "followers": [f.state() for f in self.followers],
            "preferences": torch.frombuffer(bytearray(contents), dtype=torch.uint8),
            "stands": [f.stand() for f in self.followers] if replay and self._begun else None,
        }
        held = enumerate(self.followers) if replay and self._begun else ()
        arrays = {f"{i}/{name}": array for i, f in held for name, array in f.arrays().items()}
        return write_leader(path, header, tensors, arrays)

    def _follower_name(self) -> str | None:
        """Under which a file names the follower; None where it has to be given again."""
        return follower_name(self.follower_spec)

    def _method_state(self) -> Any:
        """What a file holds of the method's own, as JSON."""
        return None

    @classmethod
    def load(
        cls: type[Self],
        path: str | Path,
        follower: Any = None,
        env: EnvSpec | Copies | None = None,
        labeller: Labeller | None = None,
        net: RewardNet | None = None,
    ) -> Self:
        """Read a learner back, ready to evaluate or to learn on with ``reset_num_timesteps=False``.

        Args:
            path: the file.
            follower: needed where it was a callable.
            env: needed where the environment was given as an object and not as an id.
            labeller: who answers from now on; one that continues a preference file brings its pairs, else the file's are taken.
            net: needed where the config had one.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a truncated file, that of another method or environment, something that is missing or another.
        """
        header, tensors = read_leader(path, cls.__name__)
        with reading(path):
            env, kwargs = source_of_file(header, env, "env")
            require(header["own_net"] == (net is not None), "net", "the net of the config, if it had one", repr(net))
            spec = follower_of_file(header["follower"], follower, path)
            config = replace(decode(header["config"]), net=net)
            learner = cls._again(env, spec, config, labeller, header["seed"], kwargs, header["method"])
            learner.worlds.signature(config.length).require_same(Signature(**header["signature"]), path)
            learner._take_back(header, tensors, path)
        return learner

    @classmethod
    def _again(
        cls: type[Self],
        env: Any,
        follower: Any,
        config: PreferenceConfig,
        labeller: Labeller | None,
        seed: int | None,
        env_kwargs: dict[str, Any] | None,
        method: Any,
    ) -> Self:
        """Build one anew; ``method`` is what ``_method_state`` gave."""
        return cls(env, follower, config, labeller, seed, env_kwargs)

    def _take_back(self, header: dict[str, Any], tensors: dict[str, Any], path: str | Path) -> None:
        try:
            self.trainer.restore(tensors["reward"])
            for f, state in zip(self.followers, tensors["followers"], strict=True):
                f.follower.load_state_dict(state)
                if tensors["stands"] is None:
                    f.follower.forget_replay()
        except (ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"follower: expected what {path} was trained with, got another ({error})") from error
        for name in _COUNTERS:
            value, present = header["counters"][name], getattr(self, name)
            fits = isinstance(value, int) and value >= 0 and isinstance(value, bool) == isinstance(present, bool)
            require(fits, name, f"a number like {present}", repr(value))
            setattr(self, name, value)
        self._follower_seed, self._evaluation_seed = (int(seed) for seed in header["seeds"])
        self.rng.bit_generator.state, self.trainer.rng.bit_generator.state = header["rng"]
        self.generators.load_state_dict(tensors["generators"])
        self._log.restore(header["log"])
        name, state = header["labeller"]
        if name == type(self.labeller).__name__:
            self.labeller.restore(state)
        if tensors["stands"] is not None:
            self._take_stands(tensors["stands"], path)
        if self.labeller.first_id:
            self._next_id = self.labeller.first_id
            self.asked = self.labeller.first_id
            return
        held = preferences_from_bytes(tensors["preferences"].numpy().tobytes(), path)
        answered, pending = header["places"]
        self.pending = {
            number: _placed(held.pending[number], at) for number, at in zip(held.pending, pending, strict=True)
        }
        for (pair, label), at in zip(held.answered, answered, strict=True):
            self.buffer.add(_placed(pair, at), label)
        self.buffer.seen, self.buffer.skipped = (int(number) for number in header["seen"])

    def _take_stands(self, stands: list[Any], path: str | Path) -> None:
        """Go on within the episodes that a file was written in."""
        same = [f.take_stand(state) for f, state in zip(self.followers, stands, strict=True)]
        into = {f"{i}/{name}": array for i, f in enumerate(self.followers) for name, array in f.arrays(True).items()}
        read_arrays(path, into)
        if not all(same):
            warnings.warn(
                f"{path}: the world keeps its state to itself, so that new episodes begin: what is learned from here on is not, "
                "to the bit, what the run would have learned that was not interrupted",
                stacklevel=4,
            )


def _place(pair: Pair) -> list[int]:
    """Which recorded steps a pair was cut from: preference files do not say."""
    return [pair.left.time, pair.left.copy, pair.right.time, pair.right.copy]


def _placed(pair: Pair, place: list[int]) -> Pair:
    left, right = ((int(place[i]), int(place[i + 1])) for i in (0, 2))
    return Pair(replace(pair.left, time=left[0], copy=left[1]), replace(pair.right, time=right[0], copy=right[1]))


_COUNTERS = ("num_timesteps", "iteration", "asked", "_next_id", "_total", "_begun")
