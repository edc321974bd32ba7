r"""PBRL over any SB3 follower (Shen, Yang and Chen, arXiv 2402.06886, sampled).

Over zero-sum games see :mod:`.game_pbrl`, with the Bellman penalty :mod:`.bellman_pbrl`.

For the value penalty, minimising F_lam over y is itself reinforcement learning, ``max_y V^{pi_y}`` with reward
``r_f + r_l/lam``: exact where leader and follower share gamma, rho and dynamics and J_L is linear in the occupancy. So
two followers of the user's algorithm are needed:

    best response          trained on r_f under the current x              stands for  pihat ~ pi*(x)
    penalised follower     trained on r_f + r_l/lam under the current x    stands for  pi_y

    x += alpha [ grad_x V_l^{pi_y} + lam ( grad_x V_f^{pi_y} - grad_x V_f^{pihat} ) ]

That gradient comes from their rollouts alone, or, where the model is known and only the follower is learned, through the
model at their policies (``PBRLConfig.estimator``). Returns are those of the unregularised problem (tau = 0): an algorithm's
entropy bonus is a means of its training, no part of what is solved.

**The oracle is watched.** With exact followers ``p = V_f^{pihat} - V_f^{pi_y}`` lies between 0 and G/lam, G being what the
leader gains by pi_y. Where the estimate p^ is certified (by two standard errors) to lie below 0 by more than that range, the
best response's error is larger than the penalty, and x is not moved.

**A best response that lags behind a moving x** is the method's weak point: the leader climbs on the lag. Against it followers
see the leader's commitment, and most copies train at x plus noise, so that they need not relearn when x moves; what answers
is an average of their weights over iterations; and the entropy bonus of followers given as a class falls slowly from a large
one, as an exact leader's temperature does, so that no action is given up before x has settled.

Where the environment is tabular, honest evaluation, and with it the choice of the best x, reads the model; with
:class:`Rollouts` the path of x (``last_x``) does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ...envs.mdp import LinearQuadraticProblem, solve_soft, suboptimality
from ...envs.mdp.checks import check_number, check_size, require
from ...envs.mdp.problem import EVALUATION_TAU
from ...wrappers import RewardMixing, set_leader
from ..common.evaluation import Evaluation, leader_return_at_best_response
from ..common.game_worlds import GameSpec, is_game
from ..common.leader import Callback, Leader, LeaderConfig
from ..common.leader_gradient import GradientEstimate, LeaderGradient, PenaltyEstimate
from ..common.model_gradient import ModelGradient
from ..common.projected_step import projected_step
from ..common.rollout_gradient import RolloutGradient, episode_returns
from ..common.rollouts import Act, collect
from ..common.side_by_side import Beside
from ..common.storage import decode, encode, read_arrays, read_leader, storable, write_leader
from ..common.tabular import check_fingerprint, fingerprint, source_of_file
from ..common.worlds import EnvSpec, Vectorisation, Worlds
from ..estimators import KnownModel, Rollouts
from ..files import reading
from ..oracles.replay import TrueReplay
from ..oracles.sb3 import FALLING_Q_TEMPERATURE, Answering, FollowerSpec, SB3Follower, follower_name, follower_of_file
from ..penalties import BellmanPenalty, NikaidoIsodaPenalty, ValuePenalty, WeightedPenalty
from ..schedules import Geometric, Linear, Schedule, as_schedule

for _cls in (Rollouts, KnownModel):
    storable(_cls)

PairOfReturns = tuple[NDArray[np.float64], NDArray[np.float64]]


@storable
@dataclass(frozen=True, eq=False)
class PBRLConfig(LeaderConfig):
    """How :class:`PBRL` learns.

    Attributes:
        learning_rate: step of x.
        n_envs: copies of the world per follower.
        follower_steps: steps that each follower trains per outer iteration (SB3 rounds up to whole rollouts).
        warmup_steps: steps that each follower trains before x first moves, at most an eighth of the budget.
        estimator: where x's gradient comes from: :class:`Rollouts`, the followers' episodes alone, or
            :class:`KnownModel`, the model of a tabular problem at the followers' policies.
        observe_commitment: whether followers see the leader's commitment.
        x_noise: standard deviation of the noise on x under which followers train; 0 without ``observe_commitment``.
        noisy_share: share of a follower's copies with that noise; the others train at x.
        q_temperature: followers with a Q-network act by ``softmax(Q / q_temperature)`` when asked for their policy; in the
            reward's unit.
        averaging: the followers that the leader sees are averages over iterations, of which the past keeps this share, in
            [0, 1); what is trained is not averaged.
        entropy: entropy bonus of followers that have a fixed one; None takes what suits an algorithm given as a class, and
            the model's own from a callable.
        evaluation_steps: steps of the freshly trained best response, where no model is known.
        vec_env: ``"native"``, the environment's own simulator of many copies; ``"dummy"``, SB3's ``DummyVecEnv``; ``"subproc"``,
            a process for each copy (2 ``n_envs``, and those of the estimator); None: native where there is one, else dummy.
        relabel: whether replay buffers are kept true when x and lam move (see ``agents.oracles.replay``). None does all that
            is valid; True also raises where rewards cannot be relabelled; False leaves SB3's buffer alone.
        side_by_side: whether the penalised follower is trained in a process of its own while the best response is trained here;
            the numbers are the same, to the bit. Scripts then need ``if __name__ == "__main__":``.
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
    entropy: float | Schedule | None = None
    evaluation_steps: int = 50_000
    vec_env: Vectorisation | None = None
    relabel: bool | None = None
    side_by_side: bool = False

    @staticmethod
    def for_a_game(**changes: Any) -> PBRLConfig:
        """The settings that suit four on-policy followers over a zero-sum game, with these changes."""
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
        for name in ("n_envs", "follower_steps", "evaluation_steps"):
            check_size(getattr(self, name), name)
        require(isinstance(self.side_by_side, bool), "side_by_side", "True or False", repr(self.side_by_side))
        nested = self.side_by_side and self.vec_env == "subproc"
        require(
            not nested,
            "side_by_side",
            "False with vec_env='subproc', which has processes of its own",
            self.side_by_side,
        )
        check_number(self.warmup_steps, "warmup_steps", low=0)
        known = isinstance(self.estimator, (Rollouts, KnownModel))
        require(known, "estimator", "Rollouts() or KnownModel()", repr(self.estimator))
        check_number(self.x_noise, "x_noise", low=0.0)
        check_number(self.noisy_share, "noisy_share", low=0.0, high=1.0)
        as_schedule(self.q_temperature, "q_temperature", positive=True)
        check_number(self.averaging, "averaging", low=0.0, high=1.0, open_high=True)
        known = self.vec_env in (None, *get_args(Vectorisation))
        require(known, "vec_env", f"None or one of {get_args(Vectorisation)}", repr(self.vec_env))
        require(
            self.relabel is None or isinstance(self.relabel, bool), "relabel", "None, True or False", repr(self.relabel)
        )
        if self.entropy is not None:
            as_schedule(self.entropy, "entropy", positive=False)


class PBRL(Leader):
    """The penalty method over any Stable-Baselines3 algorithm.

    Args:
        env: a leader environment: its id, an environment (it is copied), or a callable that makes one. A PettingZoo game
            likewise, for four on-policy followers (a callable that makes one with the penalty given).
        follower: an SB3 class, built with settings that suit a moving x, or a callable ``VecEnv -> BaseAlgorithm``
            (its discount has to be the environment's).
        penalty: a :class:`ValuePenalty`, by default lam 2 to 8; a :class:`BellmanPenalty` for followers with a Q-network over
            discrete actions; over a game a :class:`NikaidoIsodaPenalty`.
        config: steps, copies, bounds; over a game by default :meth:`PBRLConfig.for_a_game`.
        seed: of the followers, their worlds, and the leader's episodes.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default the environment's own.

    Attributes:
        best_response: the follower that stands for pihat; its ``model`` is the SB3 model.
        penalised: the follower that stands for pi_y.
        penalty_estimate: the last p^.
        oracle_failures: iterations in which p^ was certified negative and x was not moved.
        num_timesteps: environment steps of both followers and of the leader's episodes.

    Raises:
        ValueError: an unknown id, an environment without a leader, an x0 outside X, a follower that cannot act in the
            environment or has another discount, a penalty that is not the lower level's, a leader whose objective is
            no return.

    Example:
        >>> from stable_baselines3 import A2C
        >>> from bilevel_gym.agents import PBRL, PBRLConfig
        >>> config = PBRLConfig(warmup_steps=256, follower_steps=256)
        >>> leader = PBRL("bilevel_gym/StackelbergGame-v0", A2C, config=config, env_kwargs={"n_states": 5})
        >>> leader.learn(10_000).evaluate().steps >= 10_000 or leader.num_timesteps >= 10_000
        True
    """

    config: PBRLConfig
    _unit = "step"

    def __new__(cls, env: Any = None, follower: Any = None, penalty: Any = None, *_: Any, **__: Any) -> PBRL:
        """Over a game, or with its penalty, the same method with four followers; with the Bellman penalty two soft ones."""
        if cls is PBRL and (is_game(env) or isinstance(penalty, NikaidoIsodaPenalty)):
            from .game_pbrl import GamePBRL

            return object.__new__(GamePBRL)
        if cls is PBRL and isinstance(penalty, BellmanPenalty):
            from .bellman_pbrl import BellmanPBRL

            return object.__new__(BellmanPBRL)
        return object.__new__(cls)

    def __init__(
        self,
        env: EnvSpec | GameSpec,
        follower: FollowerSpec,
        penalty: WeightedPenalty | None = None,
        config: PBRLConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        config = self._default_config() if config is None else config
        require(isinstance(config, PBRLConfig), "config", "a PBRLConfig", repr(config))
        self.penalty = self._checked(penalty)
        self.worlds = self._made_worlds(env, env_kwargs, config)
        super().__init__(self.worlds.leader_set, self.worlds.start_x(), config, x0, seed)
        self.follower_spec = follower
        self.lam = self.penalty.lam_at(1.0)
        seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(4)]
        self._entropy = seeds[2:]
        self.rng = np.random.default_rng(seeds[3])
        self._make_followers(seeds[:2])
        self.optimizer = config.optimizer_class([self._x], lr=self._rate(1.0), **config.optimizer_kwargs)  # type: ignore[call-arg]
        self.penalty_estimate: PenaltyEstimate | None = None
        self._beside: Beside | None = None
        self.oracle_failures = 0
        self._warm = False

    # --- the value penalty; `GamePBRL` and `BellmanPBRL` have their own of these -----------------------------------------

    def _default_config(self) -> PBRLConfig:
        return PBRLConfig()

    def _checked(self, penalty: WeightedPenalty | None) -> WeightedPenalty:
        """The penalty, or the default one; raises ``ValueError`` where it is another kind of level's."""
        chosen = ValuePenalty(lam=Geometric(2.0, 8.0)) if penalty is None else penalty
        name = type(chosen).__name__
        require(isinstance(chosen, ValuePenalty), "penalty", "a ValuePenalty or a BellmanPenalty", name)
        return chosen

    def _made_worlds(self, env: Any, env_kwargs: dict[str, Any] | None, config: PBRLConfig) -> Worlds:
        return Worlds(env, env_kwargs, config.observe_commitment, config.vec_env)

    def _make_followers(self, seeds: list[int]) -> None:
        """The followers, on worlds at the start x, and the estimator of x's gradient."""
        self.worlds.require_sampled_return(self._x.detach())
        if self.worlds.problem is not None and self.worlds.problem.tau > EVALUATION_TAU:
            warnings.warn(
                f"the environment's follower is regularised at tau={self.worlds.problem.tau:g}, sampled followers "
                "are not: PBRL learns for tau = 0, its records are at the environment's own tau",
                stacklevel=3,
            )
        self.best_response = self._new_follower(seeds[0] % 2**31, leader_weight=0.0)
        self.penalised = self._new_follower(seeds[1] % 2**31, leader_weight=1.0 / self.lam)
        self.worlds.require_every_action(self._x.detach(), self.best_response)
        self.gradient = self._estimator()

    def _new_follower(self, seed: int, leader_weight: float, own_weight: float = 1.0) -> SB3Follower:
        venv = RewardMixing(self.worlds.make(self.config.n_envs), leader_weight, own_weight)
        set_leader(venv, self.last_x)
        w, c = self.worlds, self.config
        entropy = None if c.entropy is None else as_schedule(c.entropy, "entropy", positive=False)
        answering = Answering(as_schedule(c.q_temperature, "q_temperature", positive=True), c.averaging, entropy)
        follower = self._built(venv, seed, answering)
        if c.relabel is not False:
            follower.replay = TrueReplay.in_place_of(
                follower.model, venv, w.base_space if c.observe_commitment else None
            )
        if c.relabel:
            expected = "None or False where x is the leader's policy or moves the dynamics"
            require(w.only_rewards_move, "relabel", expected, c.relabel)
            name = type(follower.model).__name__
            require(
                follower.replay is not None,
                "relabel",
                f"None or False for {name}, which has no plain replay",
                c.relabel,
            )
        return follower

    def _built(self, venv: RewardMixing, seed: int, answering: Answering) -> SB3Follower:
        w = self.worlds
        return SB3Follower(self.follower_spec, venv, w.gamma, seed, w.linear, answering)

    _estimators: ClassVar[tuple[type[RolloutGradient], type[ModelGradient]]] = (RolloutGradient, ModelGradient)

    def _estimator(self) -> LeaderGradient:
        estimator, (from_rollouts, through_the_model) = self.config.estimator, self._estimators
        if isinstance(estimator, Rollouts):
            return from_rollouts(self.worlds, estimator, self.rng)
        require(
            self.worlds.problem is not None, "estimator", "Rollouts() where the environment has no model", estimator
        )
        remembers = self.best_response.recurrent
        require(not remembers, "estimator", "Rollouts() for a recurrent follower, which has no policy table", estimator)
        return through_the_model(self.worlds)

    @property
    def follower(self) -> SB3Follower:
        """The trained best response; ``follower.save(path)`` writes a plain SB3 model."""
        return self.best_response

    def get_env(self) -> VecEnv:
        """The best response's copies of the world, for SB3's callbacks."""
        return self.follower.venv

    def follower_env(self, x: Any = None, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """The world that followers live in, under x: what a saved follower is evaluated, watched and trained on in.

        Args:
            x: the leader's parameter, ``[dim]``; None takes :attr:`x`.
            render_mode: of an environment that was given as an id.

        Raises:
            ValueError: an x outside X, a ``render_mode`` for an environment that is already made.
        """
        point = self.leader_set.check(self.x if x is None else x, "x")
        return self.worlds.alone(point.detach().numpy(), render_mode)

    # --- learning ------------------------------------------------------------------------------------------------

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> PBRL:
        """Learn x until the followers have spent this many environment steps, all counted.

        Args:
            total_timesteps: steps of both followers and of the leader's episodes together; the last iteration is
                finished.
            callback: called with the leader after every iteration; False stops.
            progress_bar: show one.
            reset_num_timesteps: False goes on counting; schedules then run over the sum, as SB3's do.
        """
        total = check_size(total_timesteps, "total_timesteps")
        if reset_num_timesteps:
            self.oracle_failures = self.iteration = 0
        failures, iterations = self.oracle_failures, self.iteration
        self._learn(total, callback, progress_bar, reset_num_timesteps)
        failures, iterations = self.oracle_failures - failures, self.iteration - iterations
        if 2 * failures > iterations:
            warnings.warn(
                f"the best response was certified worse than the penalised follower in {failures} of {iterations} "
                "iterations, and x was not moved in them: give the followers more steps (PBRLConfig.follower_steps)",
                stacklevel=2,
            )
        return self

    def _iterate(self, progress_remaining: float) -> dict[str, float]:
        self.lam = self.penalty.lam_at(progress_remaining)
        self.optimizer.param_groups[0]["lr"] = self._rate(progress_remaining)
        self._train_followers()
        found = self._look()
        self.num_timesteps += found.steps
        ascent, estimate = found.ascent, found.penalty
        self.penalty_estimate = estimate
        if estimate.failed:
            self.oracle_failures += 1
        else:
            self._x.grad = -ascent
            projected_step(self.optimizer, [self.leader_set.project])
        return {
            "penalty_estimate": estimate.mean,
            "penalty_estimate_stderr": estimate.stderr,
            "oracle_failures": float(self.oracle_failures),
            "gradient_norm": float(ascent.norm()),
        }

    def _look(self) -> GradientEstimate:
        """x's gradient and p^ at the followers as they are."""
        return self.gradient(self._x, self.best_response, self.penalised, self.lam)

    def _asked_and_planned(self, followers: int, leader_steps: int) -> tuple[int, int]:
        """Steps asked of each follower now, the warm-up's at first, and those it will be asked for in all."""
        config = self.config
        warmup = min(int(config.warmup_steps), self._total // 8)
        asked = config.follower_steps + (0 if self._warm else warmup)
        self._warm = True
        per_iteration = followers * config.follower_steps + leader_steps
        return asked, int(self._total * config.follower_steps / per_iteration) + int(config.warmup_steps)

    def _train_followers(self) -> None:
        config, points = self.config, self._neighbourhood()
        asked, planned = self._asked_and_planned(2, self.gradient.planned_steps)
        if config.side_by_side:
            beside = self._process_beside()
            beside.start((self.lam, points, asked, planned))
            each = [self._train(self.best_response, points, asked, planned), beside.result()]
        else:
            each = [self._train(follower, points, asked, planned) for follower in (self.best_response, self.penalised)]
        for follower, spent in zip((self.best_response, self.penalised), each, strict=True):
            self.num_timesteps += spent
            if spent >= 4 * asked:
                warnings.warn(
                    f"follower: expected rollouts of about follower_steps={config.follower_steps} steps, got {spent} for "
                    f"{asked} asked: a rollout of {follower.model.__class__.__name__} counts for each of {config.n_envs} copies",
                    stacklevel=4,
                )

    def _train(self, follower: SB3Follower, points: NDArray[np.float64], asked: int, planned: int) -> int:
        """Train one follower at ``points``, ``[n_envs, dim]``; the steps spent."""
        venv = follower.venv
        assert isinstance(venv, RewardMixing)
        if follower is self.penalised:
            self._tell_lam()
        set_leader(venv, points)
        if follower.replay is not None:
            relabel = self.worlds.relabelled if self.worlds.only_rewards_move else None
            follower.replay.renew(points, venv.weight, relabel, self.config.observe_commitment, venv.own_weight)
        return follower.train(asked, planned)

    def _process_beside(self) -> Beside:
        """The penalised follower's process, begun at its first use; it builds a twin of this leader."""
        if self._beside is None:
            config = replace(self.config, side_by_side=False)
            own = (
                self.worlds.spec,
                self.follower_spec,
                self.penalty,
                config,
                self.seed,
                self.worlds.source.env_kwargs or None,
            )
            self._beside = Beside(partial(_twin, type(self), own), self.penalised)
        return self._beside

    def _tell_lam(self) -> None:
        """Make the current lam that of the penalised follower."""
        assert isinstance(self.penalised.venv, RewardMixing)
        self.penalised.venv.weight = 1.0 / self.lam

    def _neighbourhood(self) -> NDArray[np.float64]:
        """x for every copy, ``[n_envs, dim]``: x itself, and x plus noise, projected on X."""
        n = self.config.n_envs
        points = np.repeat(self.last_x[None], n, axis=0)
        noisy = round(self.config.noisy_share * n) if self.config.observe_commitment else 0
        points[:noisy] += self.config.x_noise * self.rng.standard_normal((noisy, points.shape[1]))
        return self.leader_set.project(torch.from_numpy(points)).numpy()

    # --- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self) -> Evaluation:
        """The record of :attr:`x`. Where it is sampled, by a best response trained afresh: not the one x was chosen by."""
        if self.worlds.model is not None or self.kept is None:
            return super().evaluate()
        return self._evaluate_by_sampling(self.kept.x)

    def _evaluate(self, x: Tensor) -> Evaluation:
        if self.worlds.problem is not None:
            return self._evaluate_exactly(x)
        linear = self.worlds.linear_quadratic
        return self._evaluate_by_sampling(x) if linear is None else self._evaluate_by_riccati(linear, x)

    @torch.no_grad()
    def _evaluate_exactly(self, x: Tensor) -> Evaluation:
        problem = self.worlds.problem
        assert problem is not None
        mdp = problem.follower_mdp(x)
        if self.penalised.recurrent:
            table = solve_soft(mdp, 0.0).pi.reshape(-1, mdp.n_actions).numpy()
            best = float(leader_return_at_best_response(problem, x))
            return self._evaluate_in_pairs(x, best, lambda obs: table[self.worlds.base_observation(obs)].argmax(-1))
        pi_y = self.worlds.policy(self.penalised, x).reshape(mdp.r.shape)
        gap = float(problem.over_contexts(suboptimality(mdp, pi_y, 0.0, solve_soft(mdp, 0.0))))
        return self._evaluation(
            leader_return_at_best_response(problem, x), 0.0, float(problem.leader_return(x, pi_y)), gap, gap
        )

    @torch.no_grad()
    def _evaluate_by_riccati(self, problem: LinearQuadraticProblem, x: Tensor) -> Evaluation:
        F = problem.best_response(x).F

        def best_response(obs: NDArray[Any]) -> NDArray[Any]:
            s = torch.from_numpy(self.worlds.base_observation(obs)).double()
            return (-(s @ F.T) / problem.action_bound).clamp(-1.0, 1.0).numpy()

        return self._evaluate_in_pairs(x, float(problem.leader_return(x, F)), best_response)

    def _evaluate_in_pairs(self, x: Tensor, best: float, best_response: Act) -> Evaluation:
        """Exact at the best response; pi_y by what sets it apart in paired episodes, whose steps count."""
        rng = np.random.default_rng([*self._entropy, self.iteration])
        (follower, leader), (follower_y, leader_y) = self._paired_returns(x, best_response, int(rng.integers(2**31)))
        gap = float((follower - follower_y).mean())
        return self._evaluation(best, 0.0, best + float((leader_y - leader).mean()), gap, self._estimated_penalty())

    def _evaluate_by_sampling(self, x: Tensor) -> Evaluation:
        """By a best response trained afresh; it disturbs no generator of training, and its steps count."""
        rng = np.random.default_rng([*self._entropy, self.iteration])
        fresh = self._new_follower(int(rng.integers(2**31)), leader_weight=0.0)
        set_leader(fresh.venv, x.numpy())
        steps = self.config.evaluation_steps
        self.num_timesteps += fresh.train_alone(steps)
        assert isinstance(self.gradient, RolloutGradient)
        act = fresh.player(self.gradient.venv, greedily=self.worlds.continuous_actions)
        (follower, leader), (follower_y, leader_y) = self._paired_returns(x, act, int(rng.integers(2**31)))
        fresh.venv.close()
        stderr = float(leader.std(ddof=1) / np.sqrt(len(leader))) if len(leader) > 1 else float("nan")
        gap = float((follower - follower_y).mean())
        return self._evaluation(float(leader.mean()), stderr, float(leader_y.mean()), gap, self._estimated_penalty())

    def _paired_returns(self, x: Tensor, best_response: Act, seed: int) -> tuple[PairOfReturns, PairOfReturns]:
        """The follower's and the leader's return of each episode under a best response and under pi_y, at x."""
        assert isinstance(self.gradient, RolloutGradient)
        w, venv, held = self.worlds, self.gradient.venv, self.penalised.generators.state
        set_leader(venv, x.numpy())
        acts = (best_response, self.penalised.player(venv))
        best, pi_y = (collect(venv, act, w.horizon(0.01), seed) for act in acts)
        self.penalised.generators.state = held
        self.num_timesteps += best.steps + pi_y.steps
        returns = [episode_returns(rollout, w.base_space, w.gamma) for rollout in (best, pi_y)]
        return returns[0], returns[1]

    def _estimated_penalty(self) -> float | None:
        return None if self.penalty_estimate is None else self.penalty_estimate.mean

    def _evaluation(self, best: float, stderr: float, at_pi_y: float, gap: float, penalty: float | None) -> Evaluation:
        return Evaluation(
            leader_return=best,
            leader_return_at_pi_y=at_pi_y,
            gap=gap,
            penalty=penalty,
            lam=self.lam,
            tau=0.0,
            steps=self.num_timesteps,
            iteration=self.iteration,
            leader_return_stderr=stderr,
        )

    def close(self) -> None:
        """Close the followers' worlds and the leader's own: with ``vec_env="subproc"``, this ends their processes."""
        if self._beside is not None:
            self._beside.close()
            self._beside = None
        venvs = [self.best_response.venv, self.penalised.venv]
        if isinstance(self.gradient, RolloutGradient):
            venvs.append(self.gradient.venv)
        for venv in venvs:
            venv.close()

    # --- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, replay: bool = False) -> Path:
        """Write the leader to a zip, whole or not at all: x, its optimiser, the best x, followers, generators, records.

        A follower given as a class is named in the file; a callable is not stored and has to be given again.

        Args:
            path: the file, ``.zip`` where it has no suffix.
            replay: whether replay buffers go in; without them, learning on with off-policy followers is not to the bit.

        Returns:
            The path written.

        Raises:
            OSError: a file that cannot be written; what was there before still is.
            TypeError: a config that no file can hold.
        """
        header = {
            "leader": PBRL.__name__,
            "source": {"env_id": self.worlds.source.env_id, "env_kwargs": encode(self.worlds.source.env_kwargs)},
            "fingerprint": self._fingerprint(),
            "follower": follower_name(self.follower_spec),
            "penalty": encode(self.penalty),
            "lam": self.lam,
            "penalty_estimate": None if self.penalty_estimate is None else vars(self.penalty_estimate),
            "entropy": self._entropy,
            "rng": self.rng.bit_generator.state,
            **self._header(),
        }
        if replay and self._beside is not None:
            self._beside.fetch_replay()
        arrays = {
            f"{name}/{key}": array
            for name, follower in (self.followers.items() if replay else ())
            for key, array in follower.replay_arrays().items()
        }
        return write_leader(path, header, {**self._tensors(), **self._states(), "replay": replay}, arrays)

    @property
    def followers(self) -> dict[str, SB3Follower]:
        """The followers by name; the ``model`` of each is the SB3 model."""
        return {"best_response": self.best_response, "penalised": self.penalised}

    def _states(self) -> dict[str, Any]:
        """What a file holds of the followers and of the estimator."""
        return {
            "best_response": self.best_response.state(),
            "penalised": self.penalised.state(),
            "critics": self.gradient.state(),
        }

    def _restore(self, tensors: dict[str, Any]) -> None:
        """Take back what :meth:`_states` gave."""
        self.best_response.restore(tensors["best_response"])
        self.penalised.restore(tensors["penalised"])
        self.gradient.restore(tensors["critics"])

    def _fingerprint(self) -> list[float]:
        model = self.worlds.model
        return [float(self.leader_set.dim), self.worlds.gamma] if model is None else fingerprint(model)

    @classmethod
    def load(
        cls, path: str | Path, follower: FollowerSpec | None = None, env: EnvSpec | GameSpec | None = None
    ) -> PBRL:
        """Read a leader back, ready to evaluate, to :meth:`resume`, or to learn on with ``reset_num_timesteps=False``.

        Args:
            path: the file.
            follower: needed where it was a callable; else the class named in the file is taken.
            env: needed where the environment was given as an object and not as an id.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a truncated file, that of another leader or environment, a follower that is missing or another.
        """
        header, tensors = read_leader(path, PBRL.__name__)
        with reading(path):
            env, kwargs = source_of_file(header, env, "env")
            spec = follower_of_file(header["follower"], follower, path)
            penalty, config = decode(header["penalty"]), decode(header["config"])
            assert env is not None
            leader = cls(env, spec, penalty, config, header["seed"], kwargs)
            if leader.worlds.model is not None:
                check_fingerprint(header["fingerprint"], leader.worlds.model, path)
            else:
                require(
                    leader._fingerprint() == header["fingerprint"], "env", f"the environment of {path}", "another one"
                )
            leader._take_back(header, tensors)
            leader._take_back_followers(tensors, path)
        return leader

    def _take_back(self, header: dict[str, Any], tensors: dict[str, Any]) -> None:
        super()._take_back(header, tensors)
        self.lam = check_number(header["lam"], "lam", low=0.0, open_low=True)
        estimate = header["penalty_estimate"]
        if estimate is not None:
            self.penalty_estimate = PenaltyEstimate(**{key: float(value) for key, value in estimate.items()})
        self._entropy = [int(word) for word in header["entropy"]]
        self.rng.bit_generator.state = header["rng"]

    def _take_back_followers(self, tensors: dict[str, Any], path: str | Path) -> None:
        try:
            self._restore(tensors)
            if tensors["replay"]:
                for name, follower in self.followers.items():
                    into = follower.replay_arrays(whole=True)
                    read_arrays(path, {f"{name}/{key}": array for key, array in into.items()})
            else:
                for follower in self.followers.values():
                    follower.forget_replay()
        except (ValueError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"follower: expected the algorithm that {path} was trained with, got another ({error})"
            ) from error

    _counters = (*Leader._counters, "oracle_failures", "_warm")


def _twin(cls: type[PBRL], arguments: tuple[Any, ...]) -> tuple[SB3Follower, Callable[[Any], int]]:
    """In the penalised follower's process: it, and what trains it by ``(lam, points, asked, planned)``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said by the leader
        leader = cls(*arguments)

    def train(task: tuple[float, NDArray[np.float64], int, int]) -> int:
        leader.lam, *how = task
        return leader._train(leader.penalised, *how)  # type: ignore[arg-type]

    return leader.penalised, train
