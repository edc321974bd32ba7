r"""What all methods of learning a reward from preferences share (Christiano et al. 2017; arXiv 2402.06886, 6.2).

    play random actions, or the untrained follower; ask about the first pairs; fit r_x to the answers
    repeat     train the followers on r_x
               ask about pairs of new segments of one of the followers; take the answers that have arrived, to any question
               fit r_x by the Bradley-Terry loss plus the method's own term; relabel replay buffers

A method defines the followers, the additional loss and the additional reward. Questions are asked early rather than late: after a
share u of the steps, the share log(1 + eu) / log(1 + e) of the questions after the first ones is due, with ``e = config.early``.
On-policy followers are asked about at the end of each rollout, before they learn from it; off-policy ones at the end of each
iteration. If rollouts are shorter than a segment, they share an iteration's questions, which are about segments that end in the
rollout, so that the reward of their last step still affects the update.

True rewards are recorded with the segments, and read only by labellers and by ``evaluate``; no other part of learning sees them.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ...envs.mdp import TabularMDP, policy_return
from ...envs.mdp.checks import require
from ...wrappers import LearnedReward, SegmentRecorder
from ...wrappers.segments import RUNNING
from ...wrappers.vec_env import legal_actions
from ..config import configured
from ..followers.sb3 import Generators, SB3Follower
from ..followers.spec import Answering, FollowerSpec
from ..leader import Leader, Method, Progress, State
from ..learned.worlds import EnvSpec
from ..plan import Cost
from .asking import Asking
from .config import PreferenceConfig, PreferenceEvaluation
from .labels import Labeller, Pair, PreferenceBuffer, TrueReturnLabeller
from .recorded import RecordedFollower
from .reward_model import RewardModel, default_net
from .training import Fit, RewardExplodedError, RewardTrainer
from .worlds import Copies, PreferenceWorlds, best_policy, regret

STEPS_SEEN = 4096
"""Maximum number of steps used to standardise a reward model's inputs and outputs, evenly spaced among more."""


@dataclass(kw_only=True)
class PreferenceState(State):
    """The state that learning from preferences continues from; methods add fields.

    Attributes:
        x: the reward model's weights, flat, float64.
        asking: the labeller, its questions and its answers.
        trainer: the reward model with its optimiser.
        followers: the followers by role.
        generators: random generators of the networks.
        rng: random generator of the choice of pairs.
        seeds: seeds of the followers, of random play and of evaluations.
        begun: whether the first pairs have been labelled and fitted.
        evaluations: number of records so far, which seeds the next one.
    """

    x: Tensor = field(metadata={"kept": False})
    asking: Asking
    trainer: RewardTrainer
    followers: dict[str, RecordedFollower]
    generators: Generators
    rng: np.random.Generator
    seeds: list[int]
    begun: bool = False
    evaluations: int = 0

    @property
    def model(self) -> RewardModel:
        """The reward model."""
        return self.trainer.model

    @property
    def buffer(self) -> PreferenceBuffer:
        """Labelled pairs."""
        return self.asking.buffer

    @property
    def pending(self) -> dict[int, Pair]:
        """Open queries, by number."""
        return self.asking.pending

    @property
    def asked(self) -> int:
        """Number of queries so far."""
        return self.asking.asked


class PreferenceMethod(Method):
    """One follower is paid r_x and compared; r_x is fitted to the answers by the Bradley-Terry loss only.

    Other methods override :meth:`further`, :meth:`credit`, :meth:`paying` and :meth:`found`. The arguments are the leader's.
    """

    config: PreferenceConfig
    counts = "total_timesteps"
    judges = False
    observed: ClassVar[str] = "best_response"
    """The role whose segments are compared, pi_y."""
    state_class: ClassVar[type[PreferenceState]] = PreferenceState

    def __init__(self, env: Any, follower: Any, config: Any, labeller: Any, env_kwargs: Any) -> None:
        require(labeller is None or isinstance(labeller, Labeller), "labeller", "a Labeller", repr(labeller))
        self.config, self.follower_spec, self.labeller = config, follower, labeller
        self.specs: dict[str, FollowerSpec] = {"best_response": follower}
        self.worlds = PreferenceWorlds(env, env_kwargs, config.vec_env, config.gamma)
        self.source = self.worlds.source

    def start_x(self) -> None:
        """Return None: :meth:`init` draws the networks."""

    def init(self, x: None, seed: int | None) -> Any:
        config, worlds = self.config, self.worlds
        seeds = np.random.SeedSequence(seed).generate_state(5)
        of_labels, of_pairs, later, of_nets, of_followers = (int(s) % 2**31 for s in seeds)
        labeller = TrueReturnLabeller(seed=of_labels) if self.labeller is None else self.labeller
        generators, net = Generators(of_nets), default_net if config.net is None else config.net
        with generators.active():
            members = [net(worlds.observation_space, worlds.action_space) for _ in range(config.ensemble)]
            model = RewardModel(members, config.device)
        paying = partial(self.paying, model)
        return self.state_class(
            x=weights(model),
            asking=Asking(labeller, worlds, config),
            trainer=RewardTrainer(model, config.fit, later),
            followers={
                role: RecordedFollower(worlds, spec, config, of_followers, paying)  # common random numbers
                for role, spec in self.specs.items()
            },
            generators=generators,
            rng=np.random.default_rng(of_pairs),
            seeds=[of_followers, later],
        )

    # --- what a method defines --------------------------------------------------------------------------------------

    def paying(self, model: RewardModel, recorder: SegmentRecorder) -> VecEnv:
        """Return the environment that a follower is trained on."""
        return LearnedReward(recorder, model.reward)

    def credit(self, state: Any, first: int, last: int) -> NDArray[np.float64] | None:
        """Return the additional reward of the observed follower in its steps ``[first, last)``, ``[last - first, n]``."""
        return None

    def further(self, state: Any, since: dict[str, int], progress: Progress) -> Callable[[], Tensor] | None:
        """Return the term added to the loss of a fit; ``since``: the followers' recorded steps before this iteration."""
        return None

    def found(self, state: Any) -> dict[str, float | None]:
        """Return the method's own entries of a record."""
        return {"penalty": None, "lam": None}

    def table(self, state: Any, mdp: TabularMDP) -> Tensor:
        """Return the reward that followers learn from in a tabular environment, ``[S, A]``."""
        S, A = mdp.n_states, mdp.n_actions
        paid = state.model.reward(np.repeat(np.arange(S), A), np.tile(np.arange(A), S))
        return torch.from_numpy(paid.reshape(S, A))

    # --- learning ---------------------------------------------------------------------------------------------------

    def begin(self, state: Any, progress: Progress, afresh: bool) -> None:
        """Play random actions, ask the first questions and fit the reward model for the first time."""
        if state.begun:
            return
        config, observed, (own_seed, seed) = self.config, state.followers[self.observed], state.seeds
        recorder, n = observed.recorder, config.n_envs
        recorder.seed(seed)
        obs = recorder.reset()
        if config.follower_plays_first:
            play = observed.follower.player(recorder)
        else:
            recorder.action_space.seed(seed)
            play = lambda _: legal_actions(recorder)  # noqa: E731
        # The follower's random numbers and episodes are then the same as without this play.
        held = observed.follower.generators.state
        for _ in range(-(-config.first_steps // n)):
            obs, *_ = recorder.step(play(obs))
            state.num_timesteps += n
        observed.follower.generators.state = held
        recorder.seed(own_seed)
        state.model.fit_inputs(recorder.sample(0, STEPS_SEEN)[0])
        # Wait for the first answers, and take all that arrive in the labeller's time.
        wanted = state.asking.allowed(config.first_labels - state.asked)
        self.ask(state, wanted, 0)
        if wanted and state.asked == 0:
            self._require_segments(recorder)
        deadline = time.monotonic() + config.patience
        while self.collect(state) or (state.pending and time.monotonic() < deadline):
            if state.pending:
                time.sleep(min(0.2, config.patience))
        if len(state.buffer) == 0:
            raise TimeoutError(
                f"labeller: expected an answer within {config.patience:g} s, got no left, right or equal to "
                f"{state.asked} queries; they stay open"
            )
        self.fit(state, config.first_epochs, None, progress)
        state.begun = True

    def _require_segments(self, recorder: SegmentRecorder) -> None:
        """Raise ``ValueError`` that explains why the first play has not two segments to compare."""
        config, played = self.config, recorder.window(0)
        longest, ended = int(played.age.max()) + 1, bool((played.ended != RUNNING).any())
        most = f"at most {longest} steps, the longest episode of the first play"
        require(not ended or longest >= config.length, "length", most, config.length)
        enough = f"two segments or more, of length={config.length}, in {config.n_envs} parallel environments"
        require(False, "first_steps", f"steps for {enough}", config.first_steps)

    def step(self, state: Any, progress: Progress) -> tuple[Any, dict[str, float]]:
        config, observed = self.config, state.followers[self.observed]
        since = {role: f.recorder.steps for role, f in state.followers.items()}
        # Train the followers on the current r_x; on-policy ones are asked about during training.
        for f in state.followers.values():
            self.relabel(state, f)
            ended = partial(self.rollout_ended, state, f, progress, f.recorder.steps) if f is observed else None
            state.num_timesteps += f.train(config.follower_steps, progress.total // len(state.followers), ended)
        if not observed.on_policy:
            self.ask(state, self.due(state, progress), since[self.observed])
            self.collect(state)
        # Fit r_x to all answers in the buffer.
        fit = self.fit(state, config.epochs, since, progress)
        return state, {
            "labels": float(state.buffer.seen),
            **vars(fit),
            "pending": float(len(state.pending)),
            **{key: value for key, value in self.found(state).items() if value is not None},
        }

    def first_steps(self, state: Any) -> int:
        n = self.config.n_envs
        return 0 if state.begun else -(-self.config.first_steps // n) * n

    def iteration_steps(self, state: Any, total: int, first: bool, left: float = math.inf) -> Cost:
        costs = [f.follower.cost(self.config.follower_steps) for f in state.followers.values()]
        return Cost(sum(cost.followers for cost in costs), certain=all(cost.certain for cost in costs))

    def end(self, state: Any, iterations: int) -> None:
        if state.pending:
            warnings.warn(f"{len(state.pending)} queries have no answer yet", stacklevel=4)

    def relabel(self, state: Any, f: RecordedFollower) -> None:
        """Update the rewards in an off-policy follower's replay buffer to the current reward model."""
        own = f is state.followers[self.observed]
        f.relabel(state.model.reward, partial(self.credit, state) if own else lambda *_: None)

    def rollout_ended(
        self, state: Any, f: RecordedFollower, progress: Progress, begun: int, found: dict[str, Any]
    ) -> None:
        """Ask about an on-policy follower's new rollout, and add its credit, before it learns from the rollout.

        Args:
            state: the state.
            f: the observed follower.
            progress: progress before this iteration.
            begun: number of recorded steps before this iteration.
            found: SB3's local variables.
        """
        model: Any = f.follower.model
        steps, rollout, H = f.recorder.steps, int(model.rollout_buffer.buffer_size), self.config.length
        if rollout < H:
            done = (steps - begun) * self.config.n_envs / self.config.follower_steps
            self.ask(state, self.due(state, progress, min(1.0, done)), max(0, steps - rollout - H + 1))
        else:
            self.ask(state, self.due(state, progress), max(0, min(steps - rollout, steps - 4 * H)))
        self.collect(state)
        credit = self.credit(state, steps - rollout, steps)
        if credit is not None:
            scaling = model.get_vec_normalize_env()  # it scaled and clipped the rollout's rewards
            scaled = credit if scaling is None else scaling.normalize_reward(credit)
            model.rollout_buffer.rewards += scaled.astype(np.float32)
            model.rollout_buffer.compute_returns_and_advantage(last_values=found["values"], dones=found["dones"])

    def due(self, state: Any, progress: Progress, done: float = 1.0) -> int:
        """Return the number of questions due after this share of the iteration and not asked yet."""
        config, early = self.config, self.config.early
        soon = state.num_timesteps + done * len(state.followers) * config.follower_steps
        share = min(1.0, soon / max(1, progress.total))
        share = share if early == 0.0 else np.log1p(early * share) / np.log1p(early)
        due = round(config.first_labels + (config.labels - config.first_labels) * float(share))
        return due - int(state.asked)

    def ask(self, state: Any, n: int, since: int) -> None:
        """Ask up to ``n`` questions about segments recorded from step ``since`` on."""
        n = state.asking.allowed(n)
        if n > 0:
            recorder = state.followers[self.observed].recorder
            state.asking.ask(self.config.fragmenter.pairs(recorder, state.model, n, since, state.rng))

    def collect(self, state: Any) -> int:
        """Take the answers that have arrived; return their number."""
        return int(state.asking.collect())

    def fit(self, state: Any, epochs: int, since: dict[str, int] | None, progress: Progress) -> Fit:
        """Fit r_x, and normalise the paid reward on the newest steps; without ``since`` fit to the answers only."""
        with state.generators.active():
            further = None if since is None else self.further(state, since, progress)
            fit: Fit = state.trainer.fit(state.buffer, epochs, further)
        recorder, config, centre = state.followers[self.observed].recorder, self.config, self.config.centre
        if centre is None:
            centre = not any(f.recorder.terminations for f in state.followers.values())
        newest = recorder.sample(recorder.steps - config.recorded, STEPS_SEEN)
        state.model.normalise(*newest, centre, config.unit)
        state.x = weights(state.model)
        return fit

    # --- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, state: Any, x: Tensor, iteration: int) -> PreferenceEvaluation:
        """Evaluate the learned reward; the steps of evaluation are not counted in ``steps``."""
        mdp, short, short_y, cost = self.worlds.true_mdp(), None, None, {}
        if mdp is not None:
            pi = best_policy(mdp, self.table(state, mdp))
            asked = state.followers[self.observed].follower.probabilities(np.arange(mdp.n_states))
            pi_y = torch.from_numpy(asked)
            mean, stderr = float(policy_return(mdp, pi)), 0.0
            short, short_y = regret(mdp, pi), regret(mdp, pi_y / pi_y.sum(-1, keepdim=True))
        else:
            returns, spent = self.true_returns(state)
            # The spread between followers is larger than that between episodes.
            each = returns.mean(1) if len(returns) > 1 else returns[0]
            mean, stderr = (
                float(each.mean()),
                float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan"),
            )
            fresh = len(returns) if self.config.evaluation_steps else 0
            cost = {"evaluation_followers": fresh, "evaluation_steps": spent}
        fit = state.trainer.assess(state.buffer) if len(state.buffer) else Fit(float("nan"), float("nan"))
        counts = {"labels": state.buffer.seen, "steps": state.num_timesteps, "iteration": iteration}
        judged = {"true_return": mean, "true_return_stderr": stderr, "regret": short, "regret_at_pi_y": short_y}
        parts: dict[str, Any] = {**counts, **judged, **vars(fit), **self.found(state), **cost}
        return PreferenceEvaluation(**parts)

    def true_returns(self, state: Any) -> tuple[NDArray[np.float64], int]:
        """Return the undiscounted true returns of the evaluated followers, ``[followers, episodes]``, and the steps spent.

        Each call trains new followers, with new seeds, and plays new episodes.
        """
        config, worlds, spent, returns = self.config, self.worlds, 0, []
        rng = np.random.default_rng([state.seeds[1], state.evaluations])
        state.evaluations += 1
        for _ in range(config.evaluation_followers if config.evaluation_steps else 1):
            seed, venv, follower = int(rng.integers(2**31)), None, state.followers["best_response"].follower
            if config.evaluation_steps:
                recorder = SegmentRecorder(worlds.make(config.n_envs), 1, 1, worlds.true_reward)
                venv, spec = self.paying(state.model, recorder), self.specs["best_response"]
                follower = SB3Follower(spec, venv, worlds.gamma, seed, worlds.linear, Answering())
                spent += follower.train(int(config.evaluation_steps), int(config.evaluation_steps))
            held = follower.generators.state
            play = partial(follower.player, greedily=isinstance(worlds.action_space, gym.spaces.Box))
            found, steps = worlds.true_returns(play, config.evaluation_episodes, seed)
            follower.generators.state = held
            returns.append(found)
            spent += steps
            if venv is not None:
                venv.close()
        return np.stack(returns), spent

    def close(self, state: Any) -> None:
        for f in state.followers.values():
            f.recorder.close()

    # --- files ------------------------------------------------------------------------------------------------------

    def checkpoint_on(self, error: Exception) -> str | Path | None:
        return self.config.checkpoint if isinstance(error, RewardExplodedError) else None

    def arguments(self) -> dict[str, Any]:
        return {"config": self.config, "own_net": self.config.net is not None}

    def room(self, state: Any) -> int:
        return int(state.asking.room)

    def replay(self, state: Any, whole: bool = False) -> dict[str, NDArray[Any]]:
        held = state.followers if state.begun else {}
        return {f"{role}/{name}": array for role, f in held.items() for name, array in f.arrays(whole).items()}

    def place(self, state: Any) -> Any:
        return {role: f.place() for role, f in state.followers.items()} if state.begun else None

    def stand(self, state: Any, place: Any, path: Path) -> None:
        if place is not None and not all([f.stand(place[role]) for role, f in state.followers.items()]):
            warnings.warn(
                f"{path}: the environment's state cannot be restored, so new episodes begin: from here on the results are not, "
                "to the bit, those of an uninterrupted run",
                stacklevel=4,
            )

    def loaded(self, state: Any, replay: bool, path: Path) -> None:
        state.x = weights(state.model)
        require(bool(torch.isfinite(state.x).all()), "x", "finite numbers", "NaN or infinite ones")
        for f in state.followers.values():
            f.follower.replay_read(replay and state.begun)


class PreferenceLeader(Leader):
    """A leader that learns a reward from preferences, while followers learn from that reward, by its ``method_class``.

    x is the reward model's weights, flat, float64. Only the latest reward is kept: ``evaluate`` returns its
    ``PreferenceEvaluation``, and ``history`` stays empty.

    A file written with ``replay=True`` also holds the recorded steps and the place in the episodes. Then learning continues
    exactly, bit by bit, in the library's native simulators with a labeller that answers immediately; other environments begin
    new episodes. True rewards are not stored. Your own follower, net or labeller must be given again, as
    ``load(path, follower, env, labeller, net, checkpoint)``. A labeller that continues a preference file brings its own pairs,
    otherwise the file's are used; ``checkpoint`` is the config's.

    Attributes:
        model: the reward model.
        buffer: labelled pairs.
        pending: open queries, by number.
        asked: number of queries so far.
        followers: all trained followers, by role.

    Raises:
        ValueError: the environment, the follower, the config or the labeller does not fit.
        TimeoutError: in ``learn``, the labeller has answered nothing within ``config.patience`` seconds.
        RewardExplodedError: in ``learn``, the reward model's output explodes. The leader, and ``config.checkpoint`` if set, hold
            the last good state.
    """

    method_class: ClassVar[type[Any]] = PreferenceMethod
    given = ("follower", "env", "labeller", "net", "checkpoint")

    def __init__(
        self,
        env: EnvSpec | Copies,
        follower: FollowerSpec,
        *,
        config: PreferenceConfig | None = None,
        labeller: Labeller | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        config = configured(type(self), PreferenceConfig, config, settings)
        super().__init__(self.method_class(env, follower, config, labeller, env_kwargs), seed)

    @property
    def best_response(self) -> RecordedFollower:
        """The follower that is paid r_x."""
        return self.state.followers["best_response"]  # type: ignore[no-any-return]

    @property
    def observed(self) -> RecordedFollower:
        """The follower whose segments are compared."""
        return self.state.followers[self.method.observed]  # type: ignore[no-any-return]

    @property
    def follower(self) -> SB3Follower:
        """The trained follower; ``follower.save(path)`` writes a plain SB3 model."""
        return self.best_response.follower

    def get_env(self) -> VecEnv:
        """The follower's parallel environments, for SB3's callbacks."""
        return self.follower.venv

    def true_returns(self) -> NDArray[np.float64]:
        """Return undiscounted true returns of the followers that ``evaluate`` evaluates, ``[followers, episodes]``."""
        return self.method.true_returns(self.state)[0]  # type: ignore[no-any-return]

    def evaluate(self) -> PreferenceEvaluation:
        """Evaluate the learned reward; the steps of evaluation are not counted in ``steps``."""
        return super().evaluate()  # type: ignore[no-any-return]

    @classmethod
    def _arguments(cls, header: dict[str, Any], named: dict[str, Any], path: str | Path) -> dict[str, Any]:
        arguments = super()._arguments(header, named, path)
        net, labeller, checkpoint = (named.get(name) for name in ("net", "labeller", "checkpoint"))
        own = arguments.pop("own_net")
        require(own == (net is not None), "net", "the net of the config, if it had one", repr(net))
        config = replace(arguments["config"], net=net, checkpoint=checkpoint)
        return dict(labeller=labeller, **(arguments | {"config": config}))  # fails if a file names a labeller


def weights(model: RewardModel) -> Tensor:
    """Return x: the weights of a reward model, flat, float64."""
    return torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()])
