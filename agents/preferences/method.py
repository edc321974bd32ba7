r"""What all methods of learning a reward from preferences share (Christiano et al. 2017; arXiv 2402.06886, 6.2).

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
from ...wrappers.vec_env import legal_actions
from ..config import configured
from ..followers.sb3 import Generators, SB3Follower
from ..followers.spec import Answering, FollowerSpec
from ..leader import Leader, Method, Progress, State
from ..learned.worlds import EnvSpec
from .asking import Asking
from .config import PreferenceConfig, PreferenceEvaluation
from .labels import Labeller, Pair, PreferenceBuffer, TrueReturnLabeller
from .recorded import RecordedFollower
from .reward_model import RewardModel, default_net
from .training import Fit, RewardExplodedError, RewardTrainer
from .worlds import Copies, PreferenceWorlds, best_policy, regret

STEPS_SEEN = 4096
"""Steps by which a reward model's inputs and outputs are standardised, at most; where there are more, some evenly spread."""


@dataclass(kw_only=True)
class PreferenceState(State):
    """What learning from preferences goes on from; a method's own state adds fields.

    Attributes:
        x: the reward model's weights, flat, float64.
        asking: the questions, their labeller, and the answers.
        trainer: the reward model with its optimiser.
        followers: by role.
        generators: of the nets.
        rng: of the choice of pairs.
        seeds: of the followers, and of random play and evaluations.
        begun: whether the first pairs are labelled and fitted.
        evaluations: records so far; they seed what a record draws.
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
        """Queries so far."""
        return self.asking.asked


class PreferenceMethod(Method):
    """One follower is paid r_x and asked about; r_x is fitted to the answers by the Bradley-Terry loss alone.

    Other methods say :meth:`further`, :meth:`credit`, :meth:`paying`, and what they find. Arguments are the leader's.
    """

    config: PreferenceConfig
    counts = "total_timesteps"
    judges = False
    observed: ClassVar[str] = "best_response"
    """The role whose segments are compared: pi_y."""
    state_class: ClassVar[type[PreferenceState]] = PreferenceState

    def __init__(self, env: Any, follower: Any, config: Any, labeller: Any, env_kwargs: Any) -> None:
        require(labeller is None or isinstance(labeller, Labeller), "labeller", "a Labeller", repr(labeller))
        self.config, self.follower_spec, self.labeller = config, follower, labeller
        self.specs: dict[str, FollowerSpec] = {"best_response": follower}
        self.worlds = PreferenceWorlds(env, env_kwargs, config.vec_env, config.gamma)
        self.source = self.worlds.source

    def start_x(self) -> None:
        """The nets are drawn by :meth:`init`."""

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

    # --- what a method says -----------------------------------------------------------------------------------------

    def paying(self, model: RewardModel, recorder: SegmentRecorder) -> VecEnv:
        """What a follower is trained on."""
        return LearnedReward(recorder, model.reward)

    def credit(self, state: Any, first: int, last: int) -> NDArray[np.float64] | None:
        """What the observed follower is paid on top in its steps ``[first, last)``, ``[last - first, n]``."""
        return None

    def further(self, state: Any, since: dict[str, int], progress: Progress) -> Callable[[], Tensor] | None:
        """What is added to the loss of every step of a fit; ``since``: the followers' recorded steps before this iteration."""
        return None

    def found(self, state: Any) -> dict[str, float | None]:
        """The method's own part of a record."""
        return {"penalty": None, "lam": None}

    def table(self, state: Any, mdp: TabularMDP) -> Tensor:
        """The reward that followers learn from, ``[S, A]``, in a tabular world."""
        S, A = mdp.n_states, mdp.n_actions
        paid = state.model.reward(np.repeat(np.arange(S), A), np.tile(np.arange(A), S))
        return torch.from_numpy(paid.reshape(S, A))

    # --- learning ---------------------------------------------------------------------------------------------------

    def begin(self, state: Any, progress: Progress, afresh: bool) -> None:
        """Random play, the first questions, the first fit."""
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
        # The follower's draws and episodes are then those that it would have had without this.
        held = observed.follower.generators.state
        for _ in range(-(-config.first_steps // n)):
            obs, *_ = recorder.step(play(obs))
            state.num_timesteps += n
        observed.follower.generators.state = held
        recorder.seed(own_seed)
        state.model.fit_inputs(recorder.sample(0, STEPS_SEEN)[0])
        # Wait for the first answers, all that come within the labeller's time.
        self.ask(state, config.first_labels - state.asked, 0)
        deadline = time.monotonic() + config.patience
        while self.collect(state) or (state.pending and time.monotonic() < deadline):
            if state.pending:
                time.sleep(min(0.2, config.patience))
        if len(state.buffer) == 0:
            raise TimeoutError(
                f"labeller: expected an answer within {config.patience:g} s, got none that says left, right or equal to "
                f"{state.asked} queries; they stay open"
            )
        self.fit(state, config.first_epochs, None, progress)
        state.begun = True

    def step(self, state: Any, progress: Progress) -> tuple[Any, dict[str, float]]:
        config, observed = self.config, state.followers[self.observed]
        since = {role: f.recorder.steps for role, f in state.followers.items()}
        # The followers train on r_x as it is; on-policy ones are asked about as they go.
        for f in state.followers.values():
            self.relabel(state, f)
            ended = partial(self.rollout_ended, state, f, progress, f.recorder.steps) if f is observed else None
            state.num_timesteps += f.train(config.follower_steps, progress.total // len(state.followers), ended)
        if not observed.on_policy:
            self.ask(state, self.due(state, progress), since[self.observed])
            self.collect(state)
        # r_x is fitted to all answers held.
        fit = self.fit(state, config.epochs, since, progress)
        return state, {
            "labels": float(state.buffer.seen),
            **vars(fit),
            "pending": float(len(state.pending)),
            **{key: value for key, value in self.found(state).items() if value is not None},
        }

    def end(self, state: Any, iterations: int) -> None:
        if state.pending:
            warnings.warn(f"{len(state.pending)} queries are still without an answer", stacklevel=4)

    def relabel(self, state: Any, f: RecordedFollower) -> None:
        """Make an off-policy follower's replay buffer true to the reward model as it is now."""
        own = f is state.followers[self.observed]
        f.relabel(state.model.reward, partial(self.credit, state) if own else lambda *_: None)

    def rollout_ended(
        self, state: Any, f: RecordedFollower, progress: Progress, begun: int, found: dict[str, Any]
    ) -> None:
        """Ask about what an on-policy follower just did, and pay what that owes it, before it learns from it.

        Args:
            state: the state.
            f: the follower that is observed.
            progress: before this iteration.
            begun: the recorder's steps then.
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
            scaling = model.get_vec_normalize_env()  # the rollout's rewards are scaled by it, and clipped
            scaled = credit if scaling is None else scaling.normalize_reward(credit)
            model.rollout_buffer.rewards += scaled.astype(np.float32)
            model.rollout_buffer.compute_returns_and_advantage(last_values=found["values"], dones=found["dones"])

    def due(self, state: Any, progress: Progress, done: float = 1.0) -> int:
        """Questions that are due after this share of the iteration and have not been asked."""
        config, early = self.config, self.config.early
        soon = state.num_timesteps + done * len(state.followers) * config.follower_steps
        share = min(1.0, soon / max(1, progress.total))
        share = share if early == 0.0 else np.log1p(early * share) / np.log1p(early)
        due = round(config.first_labels + (config.labels - config.first_labels) * float(share))
        return due - int(state.asked)

    def ask(self, state: Any, n: int, since: int) -> None:
        """Ask ``n`` questions, as far as they are allowed, about segments recorded from step ``since`` on."""
        n = state.asking.allowed(n)
        if n > 0:
            recorder = state.followers[self.observed].recorder
            state.asking.ask(self.config.fragmenter.pairs(recorder, state.model, n, since, state.rng))

    def collect(self, state: Any) -> int:
        """Take the answers that have come; how many."""
        return int(state.asking.collect())

    def fit(self, state: Any, epochs: int, since: dict[str, int] | None, progress: Progress) -> Fit:
        """Fit r_x, and standardise what is paid by the newest steps; without ``since`` by the answers alone."""
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
        """The record of the learned reward; what a fresh follower's training and the episodes cost is not counted."""
        mdp, short, short_y, cost = self.worlds.true_mdp(), None, None, {}
        if mdp is not None:
            pi = best_policy(mdp, self.table(state, mdp))
            asked = state.followers[self.observed].follower.probabilities(np.arange(mdp.n_states))
            pi_y = torch.from_numpy(asked)
            mean, stderr = float(policy_return(mdp, pi)), 0.0
            short, short_y = regret(mdp, pi), regret(mdp, pi_y / pi_y.sum(-1, keepdim=True))
        else:
            returns, spent = self.true_returns(state)
            # Followers differ by more than their episodes do.
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
        """Undiscounted true returns of the followers that are judged, ``[followers, episodes]``, and the steps that it took.

        Those trained afresh, and the episodes, are other ones at each call.
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
                f"{path}: the world keeps its state to itself, so that new episodes begin: what is learned from here on is not, "
                "to the bit, what the run would have learned that was not interrupted",
                stacklevel=4,
            )

    def loaded(self, state: Any, replay: bool, path: Path) -> None:
        state.x = weights(state.model)
        require(bool(torch.isfinite(state.x).all()), "x", "finite numbers", "others")
        for f in state.followers.values():
            f.follower.replay_read(replay and state.begun)


class PreferenceLeader(Leader):
    """A leader that learns a reward from preferences while a follower learns from that reward, by its ``method_class``.

    x is the reward model's weights, flat, float64. Of a learned reward nothing but the last is kept: ``evaluate`` is of that, a
    ``PreferenceEvaluation``, and ``history`` stays empty.

    A file, with ``replay=True``, also holds what was recorded and the place in the episodes. Then learning on is to the bit,
    where the world is one of the library's native simulators and the labeller one that answers at once; in other worlds it
    begins new episodes. True rewards are not stored; a follower, a net or a labeller of one's own has to be given again, as
    ``load(path, follower, env, labeller, net, checkpoint)``: a labeller that goes on with a preference file brings its pairs,
    else the file's are taken, and ``checkpoint`` is the config's.

    Attributes:
        model: the reward model.
        buffer: labelled pairs.
        pending: open queries, by number.
        asked: queries so far.
        followers: all that are trained, by role.

    Raises:
        ValueError: no environment or follower that can be used, a config of another kind, a labeller that is none.
        TimeoutError: in ``learn``, a labeller that has answered nothing within ``config.patience`` seconds.
        RewardExplodedError: in ``learn``, a reward model whose output explodes; the leader, and ``config.checkpoint`` if that is
            set, hold its last good state.
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
        """What is paid r_x."""
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
        """Undiscounted true returns of the followers that ``evaluate`` judges, ``[followers, episodes]``."""
        return self.method.true_returns(self.state)[0]  # type: ignore[no-any-return]

    def evaluate(self) -> PreferenceEvaluation:
        """The record of the learned reward; what a fresh follower's training and the episodes cost is not counted."""
        return super().evaluate()  # type: ignore[no-any-return]

    @classmethod
    def _arguments(cls, header: dict[str, Any], named: dict[str, Any], path: str | Path) -> dict[str, Any]:
        arguments = super()._arguments(header, named, path)
        net, labeller, checkpoint = (named.get(name) for name in ("net", "labeller", "checkpoint"))
        own = arguments.pop("own_net")
        require(own == (net is not None), "net", "the net of the config, if it had one", repr(net))
        config = replace(arguments["config"], net=net, checkpoint=checkpoint)
        return dict(labeller=labeller, **(arguments | {"config": config}))  # a file that names a labeller is refused


def weights(model: RewardModel) -> Tensor:
    """x: the weights of a reward model, flat, float64."""
    return torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()])
