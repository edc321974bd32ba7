r"""PBRL with any SB3 follower (Shen, Yang and Chen, arXiv 2402.06886), by sampling.

The penalty (:mod:`..penalties.base`) defines which policies are learned and which returns make up x's gradient. The lower level
defines their environments, their training and the evaluation of x: one follower (:mod:`..learned.follower`) or two players
(:mod:`..learned.players`).

For the value penalty, minimising F_lam over y is itself reinforcement learning: ``max_y V^{pi_y}`` with reward ``r_f + r_l/lam``.
This is exact where leader and follower share gamma, rho and dynamics, and J_L is linear in the occupancy. So we need two
followers of the user's algorithm:

    best response          trained on r_f under the current x              stands for  pihat ~ pi*(x)
    penalised follower     trained on r_f + r_l/lam under the current x    stands for  pi_y

    x += alpha [ grad_x V_l^{pi_y} + lam ( grad_x V_f^{pi_y} - grad_x V_f^{pihat} ) ]

This gradient is estimated from rollouts only or, where the model is known and only the follower is learned, computed through the
model at the followers' policies (``PBRLConfig.estimator``). Returns are those of the unregularised problem (tau = 0): an
algorithm's entropy bonus is a means of training and not part of the problem.

**The check on the best response.** With exact followers ``p = V_f^{pihat} - V_f^{pi_y}`` lies between 0 and G/lam, where G is the
leader's gain from pi_y. Where the estimate p^ lies below 0 by more than that range (by two standard errors), the error of the
best response is larger than the penalty, and x is not moved. With ``swap`` it is not moved either where p^ is below 0 by two
standard errors: then pi_y is the better response to x, and pihat takes over its policy; both train on, each on its own reward.

**A best response that lags behind a moving x** is the method's weak point, since the leader exploits the lag. Against it:
followers observe the leader context, and most parallel environments train at x plus noise, so that they need not relearn when x
moves; a follower's policy is an average of its weights over iterations; and the entropy bonus of followers given as a class falls
slowly from a large value, like an exact leader's temperature, so that actions stay in use until x has settled.

Where the environment is tabular, evaluation at the best response, and so the choice of the best x, uses the model; with
:class:`Rollouts` the path of x (``last_x``) does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ...envs.mdp.checks import check_number, check_size, require
from ..checkpoint import size_of
from ..config import LeaderConfig, configured
from ..estimators.base import GradientEstimate, PenaltyEstimate
from ..estimators.game_rollouts import LeaderGain
from ..estimators.known_model import KnownModel
from ..estimators.rollouts import Rollouts
from ..evaluation import Evaluation
from ..followers.sb3 import SB3Follower
from ..followers.spec import FALLING_Q_TEMPERATURE, FollowerSpec
from ..followers.worker import FollowerWorker
from ..leader import Leader, Method, Progress, State, projected_step
from ..learned.follower import LearnedFollower
from ..learned.game_worlds import GameSpec
from ..learned.players import LearnedPlayers
from ..learned.worlds import EnvSpec, Vectorisation
from ..penalties import Penalty
from ..plan import Cost, RecordCost
from ..records import snapshot, storable
from ..schedules import Linear, Schedule, as_schedule
from ..sources import is_game, makes_one


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class PBRLConfig(LeaderConfig):
    """Options of :class:`PBRL`.

    Attributes:
        learning_rate: learning rate of x, in ``LeaderSet.unit``: 1, but between 1/40 and 1/2 of X's width in each coordinate.
        n_envs: number of parallel environments per follower.
        follower_steps: training steps of each follower per outer iteration (SB3 rounds up to whole rollouts).
        warmup_steps: training steps of each follower before x first moves, at most an eighth of the budget.
        estimator: how x's gradient is estimated: :class:`Rollouts`, from the followers' episodes only, or :class:`KnownModel`,
            through the model of a tabular problem at the followers' policies.
        observe_commitment: whether followers observe the leader context.
        x_noise: standard deviation of the noise on x in training, in ``LeaderSet.unit``; must be 0 without
            ``observe_commitment``.
        noisy_share: share of a follower's parallel environments with that noise; the others train at x.
        q_temperature: temperature, in units of reward, of the policy ``softmax(Q / q_temperature)`` of followers with a
            Q-network.
        swap: whether the best response takes over the penalised follower's policy where that is significantly better for the
            follower. With few short episodes that happens by chance, and costs. Soft followers never do it.
        averaging: weight of the past, in [0, 1), in the average over iterations of followers that the leader uses; training
            itself is not averaged.
        entropy: entropy bonus of followers that have a constant one. None takes one that suits an algorithm given as a class,
            and leaves a callable's model its own.
        evaluation_followers: number of followers that ``evaluate()`` newly trains, where no model is known; a record in
            ``learn`` trains one.
        evaluation_steps: training steps of each of them.
        vec_env: ``"native"``, the environment's own batched simulator; ``"dummy"``, SB3's ``DummyVecEnv``; ``"subproc"``, a
            process per environment (2 ``n_envs``, and those of the estimator). None: native where there is one, else dummy.
        relabel: whether replay buffers are updated when x and lam move (see ``agents.followers.replay``). None does what is
            valid; True raises an error where rewards cannot be relabelled; False uses SB3's buffer as it is.
        side_by_side: whether to train the penalised follower in its own process while the best response trains here. The
            numbers are bitwise the same. Scripts then need ``if __name__ == "__main__":``.
    """

    learning_rate: float | Schedule = 0.05
    n_envs: int = 64
    follower_steps: int = 2048
    warmup_steps: int = 20_000
    estimator: Rollouts | KnownModel = field(default_factory=Rollouts)
    observe_commitment: bool = True
    x_noise: float = 1.0
    noisy_share: float = 0.75
    q_temperature: float | Schedule = FALLING_Q_TEMPERATURE
    averaging: float = 0.9
    swap: bool = False
    entropy: float | Schedule | None = None
    evaluation_followers: int = 3
    evaluation_steps: int = 50_000
    vec_env: Vectorisation | None = None
    relabel: bool | None = None
    side_by_side: bool = False

    @staticmethod
    def for_a_game(**changes: Any) -> PBRLConfig:
        """Return a config, with these changes, that suits four on-policy followers in a zero-sum game."""
        settings: dict[str, Any] = {
            "learning_rate": Linear(0.05, 0.005),
            "follower_steps": 1024,
            "warmup_steps": 8192,
            "estimator": Rollouts(n_envs=32),
            "observe_commitment": False,
            "entropy": 0.05,
        }
        return PBRLConfig(**(settings | changes))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_envs", "follower_steps", "evaluation_followers", "evaluation_steps"):
            check_size(getattr(self, name), name)
        require(isinstance(self.side_by_side, bool), "side_by_side", "True or False", repr(self.side_by_side))
        require(isinstance(self.swap, bool), "swap", "True or False", repr(self.swap))
        alone = "False with vec_env='subproc', which has processes of its own"
        require(not (self.side_by_side and self.vec_env == "subproc"), "side_by_side", alone, self.side_by_side)
        check_number(self.warmup_steps, "warmup_steps", low=0)
        known = isinstance(self.estimator, (Rollouts, KnownModel))
        require(known, "estimator", "Rollouts() or KnownModel()", repr(self.estimator))
        check_number(self.x_noise, "x_noise", low=0.0)
        check_number(self.noisy_share, "noisy_share", low=0.0, high=1.0)
        as_schedule(self.q_temperature, "q_temperature", positive=True)
        check_number(self.averaging, "averaging", low=0.0, high=1.0, open_high=True)
        known = self.vec_env in (None, *get_args(Vectorisation))
        require(known, "vec_env", f"None or one of {get_args(Vectorisation)}", repr(self.vec_env))
        known = self.relabel is None or isinstance(self.relabel, bool)
        require(known, "relabel", "None, True or False", repr(self.relabel))
        if self.entropy is not None:
            as_schedule(self.entropy, "entropy", positive=False)


@dataclass
class PBRLState(State):
    """The state that PBRL continues from.

    Attributes:
        optimizer: optimiser of x.
        followers: the followers by role.
        estimator: estimator of x's gradient.
        rng: random generator of the noise on x and of the episodes' seeds.
        words: numbers that seed evaluations.
        lam: current coefficient of the penalty.
        warm: whether the warm-up is done.
        oracle_failures: number of iterations in which p^ was too negative and x was not moved.
        penalty_estimate: the latest p^.
        evaluations: number of records so far, which seeds the next one.
        earlier: weights of the best answer in the last record, where no model is known.
        gain: in a game, the leader's gain from the players' policies.
    """

    optimizer: Any = None
    followers: dict[str, SB3Follower] = field(default_factory=dict)
    estimator: Any = None
    rng: Any = None
    words: list[int] = field(default_factory=list)
    lam: float = 0.0
    warm: bool = False
    oracle_failures: int = 0
    penalty_estimate: PenaltyEstimate | None = None
    evaluations: int = 0
    earlier: dict[str, Any] = field(default_factory=dict)
    gain: LeaderGain | None = None


class PBRLMethod(Method):
    """The penalty method with learned followers; see :class:`PBRL`."""

    counts = "total_timesteps"

    def __init__(
        self, env: Any, follower: FollowerSpec, penalty: Penalty | None, config: PBRLConfig, env_kwargs: Any
    ) -> None:
        # The lower level: two players for a PettingZoo game or a penalty of several players, else one follower.
        learned = LearnedPlayers if is_game(env) or getattr(penalty, "several", False) else LearnedFollower
        self.config, self.env, self.env_kwargs, self.follower_spec = config, env, env_kwargs, follower
        self.penalty = learned.default_penalty() if penalty is None else penalty
        known = isinstance(self.penalty, Penalty)
        require(known, "penalty", "a penalty such as ValuePenalty()", type(penalty).__name__)
        self.penalty.check(learned.n_players)
        self.level: Any = learned(env, env_kwargs, config, self.penalty)
        self.source, self.worlds = self.level.worlds.source, self.level.worlds
        self.leader_set = config.cut(self.worlds.leader_set)
        self.unit = self.leader_set.unit
        self.swaps = config.swap and not (self.penalty.several or self.penalty.soft)
        self.terms = self.penalty.terms(self.level.n_players)
        self._lam = as_schedule(self.penalty.lam, "lam", positive=True)
        self._rate = as_schedule(config.learning_rate, "learning_rate", positive=True)
        self._worker: FollowerWorker | None = None
        self._failures_before = 0

    def start_x(self) -> Tensor:
        return self.worlds.start_x()

    def init(self, x: Tensor, seed: int | None) -> PBRLState:
        words = [int(s) for s in np.random.SeedSequence(seed).generate_state(4)]
        state = PBRLState(x, words=words[2:], rng=np.random.default_rng(words[3]), lam=self._lam(1.0))
        state.followers = self.level.make_followers(self.follower_spec, x.detach(), words[:2], state.lam)
        state.estimator = self.level.estimator(state.followers, state.rng)
        state.optimizer = self.config.optimizer([{"params": [x]}], self._rate(1.0))
        alone = replace(self.config, side_by_side=False)
        arguments = {"penalty": self.penalty, "config": alone, "seed": seed, "env_kwargs": self.env_kwargs}
        self._recipe = partial(_twin, self.env, self.follower_spec, arguments)
        return state

    # --- learning -------------------------------------------------------------------------------------------------------

    def begin(self, state: PBRLState, progress: Progress, afresh: bool) -> None:
        if afresh:
            state.oracle_failures = 0
        self._failures_before = state.oracle_failures

    @property
    def estimates(self) -> bool:  # type: ignore[override]
        """Whether x's gradient comes from episodes."""
        return isinstance(self.config.estimator, Rollouts)

    def reach(self, iterations: int) -> float:
        return float(self.config.reach(self._rate, iterations) * self.unit.max())

    def step(self, state: PBRLState, progress: Progress) -> tuple[PBRLState, dict[str, float]]:
        state.lam = self._lam(progress.remaining)
        state.optimizer.param_groups[0]["lr"] = self._rate(progress.remaining)
        # Train the followers at x and around it; then estimate x's gradient and p^ at the current followers.
        self._train(state, progress)
        found: GradientEstimate = state.estimator(state.x, self.terms, state.followers, state.lam)
        state.num_timesteps += found.steps
        state.penalty_estimate, state.gain = found.penalty, found.gain
        # Where the best response is worse than pi_y by more than the penalty's range, x does not move; with the swap neither
        # where it is worse at all, and it takes over pi_y's policy.
        p, state.x.grad = found.penalty, -found.ascent
        swap = self.swaps and p.mean < -2.0 * p.stderr
        if swap:
            state.followers["best_response"].take_policy(state.followers["penalised"].policy_state())
        if swap or p.margin < -2.0 * p.margin_stderr:
            state.oracle_failures += 1
        else:
            self._move(state)
        return state, {
            "penalty_estimate": p.mean,
            "penalty_estimate_stderr": p.stderr,
            "oracle_failures": float(state.oracle_failures),
            "gradient_norm": float(found.ascent.norm()),
            "gradient_agreement": found.agreement,
        }

    def _move(self, state: PBRLState) -> None:
        """Take the optimiser's step in x's units; with units of 1 it is a step in x itself."""
        unit = self.unit
        with torch.no_grad():
            state.x.div_(unit)
            state.x.grad = None if state.x.grad is None else state.x.grad * unit
        projected_step(state.optimizer, [lambda z: self.leader_set.project(z * unit) / unit])
        with torch.no_grad():
            state.x.copy_(self.leader_set.project(state.x * unit))

    def neighbourhood(self, state: PBRLState) -> NDArray[np.float64]:
        """Return x for every parallel environment, ``[n_envs, dim]``: x itself or x plus noise, projected onto X."""
        config = self.config
        points = np.repeat(state.x.detach().numpy()[None], config.n_envs, axis=0)
        noisy = round(config.noisy_share * config.n_envs) if config.observe_commitment else 0
        points[:noisy] += config.x_noise * self.unit.numpy() * state.rng.standard_normal((noisy, points.shape[1]))
        return self.leader_set.project(torch.from_numpy(points)).numpy()

    def _train(self, state: PBRLState, progress: Progress) -> None:
        config, n, points = self.config, len(state.followers), self.neighbourhood(state)
        # Training steps of each follower now, and over the whole run.
        asked = self._asked(progress.total, state.warm)
        per_iteration = n * config.follower_steps + state.estimator.planned_steps
        planned = int(progress.total * config.follower_steps / per_iteration) + int(config.warmup_steps)
        state.warm = True
        if config.side_by_side:
            if self._worker is None:
                self._worker = FollowerWorker(self._recipe, state.followers["penalised"])
            self._worker.start((state.lam, points, asked, planned))
            spent = self.level.train(state, points, asked, planned, ("best_response",))
            spent["penalised"] = self._worker.result()
        else:
            spent = self.level.train(state, points, asked, planned, tuple(state.followers))
        for name, steps in spent.items():
            state.num_timesteps += steps
            if steps >= 4 * asked and not self.penalty.several:
                model = type(state.followers[name].model).__name__
                warnings.warn(
                    f"follower: expected rollouts of about follower_steps={config.follower_steps} steps, got {steps} for "
                    f"{asked} asked: a rollout of {model} counts for each of {config.n_envs} parallel environments",
                    stacklevel=5,
                )

    def iteration_steps(self, state: PBRLState, total: int, first: bool, left: float = math.inf) -> Cost:
        asked = self._asked(total, state.warm or not first)
        costs = [follower.cost(asked) for follower in state.followers.values()]
        certain = state.estimator.certain and all(cost.certain for cost in costs)
        return Cost(sum(cost.followers for cost in costs), state.estimator.planned_steps, certain)

    def _asked(self, total: int, warm: bool) -> int:
        """Return the training steps of each follower in an iteration; the first one includes the warm-up."""
        return int(self.config.follower_steps) + (0 if warm else min(int(self.config.warmup_steps), total // 8))

    def record_steps(self, state: PBRLState) -> RecordCost:
        return self.level.record_steps(state)  # type: ignore[no-any-return]

    def end(self, state: PBRLState, iterations: int) -> None:
        failures = state.oracle_failures - self._failures_before
        if 2 * failures > iterations:
            warnings.warn(
                f"the best response was significantly worse than the penalised follower in {failures} of {iterations} "
                "iterations, and x was not moved in them: give the followers more steps (PBRLConfig.follower_steps)",
                stacklevel=4,
            )

    # --- evaluation -----------------------------------------------------------------------------------------------------

    def evaluate(self, state: PBRLState, x: Tensor, iteration: int) -> Evaluation:
        return self.level.evaluate(state, x, iteration, self.follower_spec, 1)  # type: ignore[no-any-return]

    def final(self, state: PBRLState, x: Tensor, record: Evaluation, iteration: int) -> Evaluation:
        """Evaluate the chosen x again, with ``evaluation_followers`` new followers if no model is known."""
        if self.worlds.model is not None:
            return super().final(state, x, record, iteration)  # type: ignore[no-any-return]
        n = self.config.evaluation_followers
        return self.level.evaluate(state, x, iteration, self.follower_spec, n)  # type: ignore[no-any-return]

    def close(self, state: PBRLState) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        for follower in state.followers.values():
            follower.venv.close()
        state.estimator.close()

    # --- files ----------------------------------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        return {"penalty": self.penalty, "config": self.config}

    def fingerprint(self) -> list[float]:
        return self.worlds.fingerprint()

    def room(self, state: PBRLState) -> int:
        """Return the size in bytes of the earlier answer's weights."""
        first = next(iter(state.followers.values()))
        return size_of(snapshot(first.policy_state()))

    def replay(self, state: PBRLState, whole: bool = False) -> dict[str, NDArray[Any]]:
        if self._worker is not None and not whole:
            self._worker.fetch_replay()
        return {
            f"{name}/{key}": array
            for name, follower in state.followers.items()
            for key, array in follower.replay_arrays(whole).items()
        }

    def loaded(self, state: PBRLState, replay: bool, path: Path) -> None:
        for follower in state.followers.values():
            follower.replay_read(replay)


class PBRL(Leader):
    """The penalty method with any Stable-Baselines3 algorithm as the follower.

    Args:
        env: a leader environment: an id, an environment (it is copied), a callable that makes one, or a problem (simulated
            without a time limit). Likewise a PettingZoo game, for four on-policy followers.
        follower: an SB3 class, built with settings that suit a moving x, or a callable ``VecEnv -> BaseAlgorithm`` (with the
            environment's discount).
        penalty: a :class:`ValuePenalty`, by default lam 2 to 8; a :class:`BellmanPenalty` for followers with a Q-network over
            discrete actions; for a game a :class:`NikaidoIsodaPenalty`.
        config: steps, parallel environments and bounds; for a game by default :meth:`PBRLConfig.for_a_game`.
        seed: seed of the followers, their environments and the leader's episodes.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        x0: initial x, ``[dim]``; by default the environment's own.
        settings: fields of the config by name, e.g. ``learning_rate=0.1``; not allowed with ``config``.

    Attributes:
        best_response: the follower trained as pihat; its ``model`` is the SB3 model. In a game a dict by player.
        penalised: the follower trained as pi_y, likewise.
        followers: all followers by role.
        penalty_estimate: the latest p^.
        oracle_failures: number of iterations in which p^ was too negative and x was not moved.
        num_timesteps: environment steps of all followers and of the leader's episodes.

    Raises:
        ValueError: the id is unknown, the environment has no leader, x0 is outside X, the follower cannot act in the
            environment or has another discount, the penalty does not suit the lower level, or the leader's objective is no
            return.

    Example:
        >>> from stable_baselines3 import A2C
        >>> from bilevel_gym.agents import PBRL, PBRLConfig
        >>> config = PBRLConfig(warmup_steps=256, follower_steps=256)
        >>> leader = PBRL("bilevel_gym/StackelbergGame-v0", A2C, config=config, env_kwargs={"n_states": 5})
        >>> leader.learn(10_000).evaluate().steps >= 10_000 or leader.num_timesteps >= 10_000
        True
    """

    given = ("follower", "env")

    def __init__(
        self,
        env: EnvSpec | GameSpec,
        follower: FollowerSpec,
        *,
        penalty: Penalty | None = None,
        config: PBRLConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
        **settings: Any,
    ) -> None:
        # A PettingZoo game, or a penalty of several players, has other defaults. A callable is called to find out.
        if makes_one(env) and is_game(made := env()):  # type: ignore[operator]
            env = made
        several = is_game(env) or getattr(penalty, "several", False)
        make = PBRLConfig.for_a_game if several else PBRLConfig
        config = configured(type(self), PBRLConfig, config, settings, make)
        super().__init__(PBRLMethod(env, follower, penalty, config, env_kwargs), seed, x0)

    @property
    def best_response(self) -> Any:
        """The follower trained as pihat; in a game a dict by player."""
        return self.method.level.by_player(self.state.followers, "best_response")

    @property
    def penalised(self) -> Any:
        """The follower trained as pi_y; in a game a dict by player."""
        return self.method.level.by_player(self.state.followers, "penalised")

    @property
    def follower(self) -> SB3Follower:
        """The trained best response, in a game the first player's; ``follower.save(path)`` writes a plain SB3 model."""
        return next(iter(self.state.followers.values()))  # type: ignore[no-any-return]

    def get_env(self) -> VecEnv:
        """The best response's parallel environments, for SB3's callbacks."""
        return self.follower.venv

    def follower_env(self, x: Any = None, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Make the followers' environment under x, to evaluate, watch or train a saved follower in.

        In a game it is the first player's, while the second plays its own policy.

        Args:
            x: the leader's parameter, ``[dim]``; None takes :attr:`x`.
            render_mode: render mode of an environment that was given as an id.

        Raises:
            ValueError: x is outside X, or ``render_mode`` is given for an environment that is already made.
        """
        point = self.leader_set.check(self.x if x is None else x, "x").detach()
        return self.method.level.alone(self.state.followers, point.numpy(), render_mode)  # type: ignore[no-any-return]


def _twin(env: Any, follower: Any, arguments: dict[str, Any]) -> tuple[SB3Follower, Callable[[Any], int]]:
    """In the penalised follower's process: return it, and a function that trains it by ``(lam, points, asked, planned)``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the leader has already warned
        leader = PBRL(env, follower, **arguments)

    def train(task: tuple[float, NDArray[np.float64], int, int]) -> int:
        leader.state.lam, points, asked, planned = task
        return int(leader.method.level.train(leader.state, points, asked, planned, ("penalised",))["penalised"])

    return leader.state.followers["penalised"], train
