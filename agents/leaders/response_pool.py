r"""Search over x with a pool of responses: see the whole of F instead of its gradient.

Where x enters rewards only, the stored episodes of a policy give its returns at every x (:mod:`..learned.pool`). So the leader
keeps all policies that it ever trained and repeats:

    1. x' maximises the belief F^(x) = min { V_l^k(x) : V_f^k(x) as good as the best within the noise }
    2. a challenger is trained at x': warm from the pool's best policy there, its exploration restored; where that has found
       nothing near x' since the last find, penalised (in more than three dimensions), then fresh from new weights
    3. the challenger joins the pool; it is a find if its follower return exceeds the pool's best by two standard errors

until all kinds of challenger at the maximiser have found nothing, and the belief there hardly exceeds what is sure at the
leader's x. The maximiser lies where the belief is most wrong, and the next policy corrects it there. There is no learning rate,
and neither plateaus nor thresholds stop the search. A penalised challenger is paid r_f + r_l/lam: it is nearly best for the
follower and better for the leader, who may make it the best by another x.

The leader's x is the point trained at with the largest belief at twice the margin. The pool begins with an untrained policy, a
fresh one at the corner of X farthest from the start, and one at the start. Large stakes teach what small stakes do not: a policy
learned in the corner is a challenger everywhere.

Related: double oracle and policy-space response oracles; cutting planes; generalised policy improvement.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from ...envs.mdp.checks import check_number, check_size, require
from ...wrappers import RewardMixing, set_leader
from ...wrappers.vec_env import leader_model
from ..checkpoint import size_of
from ..config import LeaderConfig, configured, require_unused
from ..estimators.rollouts import collect
from ..evaluation import Evaluation, leader_return_at_best_response
from ..followers.sb3 import SB3Follower
from ..followers.spec import Answering, FollowerSpec, at_fixed_x
from ..leader import Leader, Method, Progress, State
from ..learned.answers import Answer, Evaluating, best_answer, judge, judge_steps
from ..learned.pool import CAUTION, MANY, Pool, Response, episodes_of, far_corner, fixed_points, propose
from ..learned.pool_picture import draw_belief
from ..learned.worlds import EnvSpec, Vectorisation, Worlds
from ..plan import Cost, RecordCost
from ..records import snapshot, storable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAM = (2.0, 8.0, 0.5)
"""Penalty coefficients of the penalised challengers, with both players' returns in units of their spread over the pool."""
GAP = 0.05
"""How far the hope may exceed what is sure when the search ends, as a share of the range of beliefs at the points trained at."""
FIND = 2.0
"""Standard errors by which a challenger's gain must exceed 0 to count as a find."""


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class ResponsePoolConfig(LeaderConfig):
    """Options of :class:`ResponsePool`; it takes no gradient steps, so that other leaders' optimiser settings are not used.

    Attributes:
        n_envs: number of parallel environments in which a policy is trained.
        fresh_steps: training steps of a policy that starts untrained (SB3 rounds up to whole rollouts).
        warm_steps: training steps of a policy that starts from another one.
        episodes: number of stored episodes of each policy.
        tail: discount at which these are cut, in (0, 1), at the latest at the environment's time limit.
        margin: number of standard errors within which a policy counts as good as the best.
        points: number of fixed points of X at which the belief is computed.
        near: distance, as a share of X's width in each coordinate, within which a point counts as searched.
        evaluation_followers: number of followers that ``evaluate()`` newly trains, where no model is known.
        evaluation_steps: training steps of each of them.
        vec_env: as in ``PBRLConfig``.
    """

    n_envs: int = 32
    fresh_steps: int = 80_000
    warm_steps: int = 30_000
    episodes: int = 64
    tail: float = 0.005
    margin: float = 3.0
    points: int = 4096
    near: float = 0.05
    evaluation_followers: int = 3
    evaluation_steps: int = 50_000
    vec_env: Vectorisation | None = None
    eval_every: int | None = 1
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (
            "n_envs",
            "fresh_steps",
            "warm_steps",
            "episodes",
            "points",
            "evaluation_followers",
            "evaluation_steps",
        )
        for name in sizes:
            check_size(getattr(self, name), name)
        require(self.episodes > 1, "episodes", "at least 2", self.episodes)
        check_number(self.tail, "tail", low=0.0, high=1.0, open_low=True, open_high=True)
        check_number(self.margin, "margin", low=0.0)
        check_number(self.near, "near", low=0.0, high=1.0)
        known = self.vec_env in (None, *get_args(Vectorisation))
        require(known, "vec_env", f"None or one of {get_args(Vectorisation)}", repr(self.vec_env))
        latest = "False: earlier records are beliefs that later policies have corrected"
        require(not self.keep_best, "keep_best", latest, self.keep_best)
        require_unused(
            self, ("learning_rate", "optimizer_class", "optimizer_kwargs"), "the pool takes no gradient steps"
        )


@dataclass
class ResponsePoolState(State):
    """The state that the search continues from.

    Attributes:
        start: x at first, ``[dim]``.
        responses: the policies, in the order in which they were trained.
        trained: points trained at, ``[k, dim]``, latest last.
        misses: points near which challengers have found nothing since the last find, with the challengers' kinds.
        finds: for each challenger, its gain over the pool at its point, the gain's standard error, and 1 where it was a find.
        finished: whether all kinds of challenger at the maximiser have found nothing.
        total: count at which the latest call of ``learn`` ends.
        rng: source of candidates and seeds.
        words: numbers that seed evaluations.
        episode_seed: seed of all stored episodes.
        evaluations: number of evaluations with new followers so far.
    """

    start: Any = None
    responses: list[Response] = field(default_factory=list)
    trained: list[Tensor] = field(default_factory=list)
    misses: list[tuple[Tensor, str]] = field(default_factory=list)
    finds: list[tuple[float, float, float]] = field(default_factory=list)
    finished: bool = False
    total: int = 0
    rng: Any = None
    words: list[int] = field(default_factory=list)
    episode_seed: int = 0
    evaluations: int = 0


class ResponsePoolMethod(Method):
    """Search with a pool of responses; see :class:`ResponsePool`."""

    counts = "total_timesteps"

    def __init__(self, env: EnvSpec, follower: FollowerSpec, config: ResponsePoolConfig, env_kwargs: Any) -> None:
        self.config, self.follower_spec = config, follower
        self.worlds = Worlds(env, env_kwargs, False, config.vec_env)
        self.source, self.leader_set = self.worlds.source, config.cut(self.worlds.leader_set)
        expected = "an environment whose x enters rewards only; take PBRL where x enters the dynamics"
        require(self.worlds.only_rewards_move, "env", expected, "one where the log-probability of a step depends on x")

    def start_x(self) -> Tensor:
        return self.worlds.start_x()

    def init(self, x: Tensor, seed: int | None) -> ResponsePoolState:
        self.worlds.require_sampled_return(x.detach())
        words = [int(s) for s in np.random.SeedSequence(seed).generate_state(4)]
        state = ResponsePoolState(x, start=x.detach().clone(), words=words[2:], episode_seed=words[1] % 2**31)
        state.rng = np.random.default_rng(words[0])
        self.training = RewardMixing(self.worlds.make(self.config.n_envs), 0.0)
        self._stage = self.worlds.make(self.config.episodes)
        self._spec = at_fixed_x(self.follower_spec, self.training)
        self._model = leader_model(self.worlds.env, x.detach().numpy())
        self._points = fixed_points(self.leader_set, self.config.points)
        self._example = self._untrained(0)
        self.worlds.require_every_action(x.detach(), self._example)  # errors show before any work
        return state

    def _untrained(self, seed: int) -> SB3Follower:
        return SB3Follower(self._spec, self.training, self.worlds.gamma, seed, False, Answering())

    def pool(self, state: ResponsePoolState, caution: float = 1.0) -> Pool:
        """Return the pool, with what it believes of F over X; ``caution`` multiplies the margin."""
        return Pool(state.responses, self._model, caution * self.config.margin)

    # --- learning -------------------------------------------------------------------------------------------------------

    def begin(self, state: ResponsePoolState, progress: Progress, afresh: bool) -> None:
        if not state.responses:
            self._add(state, self._untrained(self._seed(state)), "untrained", state.x.detach())
        if (
            state.finished and progress.total != state.total
        ):  # another call of learn goes on; a resumed one stays finished
            state.finished, state.misses = False, []
        state.total = progress.total

    def first_steps(self, state: ResponsePoolState) -> int:
        return 0 if state.responses else self.config.episodes * self.worlds.horizon(self.config.tail)

    def ended(self, state: ResponsePoolState) -> bool:
        return state.finished

    def step(self, state: ResponsePoolState, progress: Progress) -> tuple[ResponsePoolState, dict[str, float]]:
        x, kind = self._next(state)
        left = progress.total - state.num_timesteps
        if kind == "fresh" and state.trained and left < self._example.cost_alone(self.config.fresh_steps).followers:
            kind = "warm"  # a fresh challenger does not fit into the budget

        # Train a challenger at x: fresh, or from the pool's best policy there, perhaps with a share in the leader's reward.
        set_leader(self.training, x.numpy())
        challenger = self._untrained(self._seed(state))
        if kind != "fresh":
            best = int(self.pool(state).believe(x[None]).best)
            challenger.take_policy(state.responses[best].weights)
            challenger.explore_again()
        if kind.startswith("penalised"):
            self.training.weight = self.pool(state).exchange(x) / float(kind.partition(" ")[2])
        steps = self.config.fresh_steps if kind == "fresh" else self.config.warm_steps
        state.num_timesteps += challenger.train_alone(steps)
        self.training.weight = 0.0
        self._add(state, challenger, kind, x)
        state.trained.append(x)

        # A find begins the search anew; without one, the next challenger near x is of another kind, and at last there is none.
        gain, stderr = self.pool(state).gain(x)
        found = gain > FIND * stderr
        state.finds.append((gain, stderr, float(found)))
        state.misses = [] if found else [*state.misses, (x, kind)]
        trained = torch.stack(state.trained)
        with torch.no_grad():
            proposal, _ = self._next(state)
            searched = all(self._tried(state, proposal).values())
            answers = torch.cat([trained, proposal[None]]) if searched else trained
            belief = self.pool(state, CAUTION).believe(answers)
            state.x.copy_(answers[int(belief.feared.argmax())])
            # What is hoped at the proposal bounds what a search among these policies can add to what is sure at x.
            hoped, sure = self.pool(state).believe(proposal[None]).feared, belief.feared.max()
            state.finished = searched and bool(hoped - sure <= GAP * (sure - belief.feared.min()))
        return state, {
            "belief": float(belief.feared.max()),
            "gain_found": gain,
            "gain_found_stderr": stderr,
            "policies": float(len(state.responses)),
            "fresh": float(kind == "fresh"),
        }

    def _next(self, state: ResponsePoolState) -> tuple[Tensor, str]:
        """Return the next point to train at, and the kind of challenger."""
        if not state.trained:
            return far_corner(self.leader_set, state.start), "fresh"
        if len(state.trained) == 1:
            return state.start.clone(), "warm"
        trained = torch.stack(state.trained)
        rng = np.random.default_rng(
            [state.episode_seed, len(state.responses)]
        )  # the same proposal whenever it is asked for
        x = propose(self.pool(state), self.leader_set, self._points, trained, rng, self.config.near)
        tried = self._tried(state, x)
        return x, min(tried, key=tried.__getitem__)

    @property
    def _kinds(self) -> tuple[str, ...]:
        """Kinds of challenger, in the order in which they are tried near a point."""
        if self.leader_set.dim <= MANY:
            return ("warm", "fresh")
        return ("warm", *(f"penalised {lam:g}" for lam in LAM), "fresh")

    def _tried(self, state: ResponsePoolState, x: Tensor) -> dict[str, int]:
        """Return, for each kind of challenger, how many near x have found nothing since the last find."""
        near = self._near([point for point, _ in state.misses], x)
        tried = Counter(kind for (_, kind), close in zip(state.misses, near, strict=True) if close)
        return {kind: tried[kind] for kind in self._kinds}

    def _near(self, points: Sequence[Tensor], x: Tensor) -> list[bool]:
        """Return whether each point lies within ``near`` of x."""
        width = (self.leader_set.high - self.leader_set.low).clamp_min(1e-12)
        return [float(((point - x).abs() / width).max()) <= self.config.near for point in points]

    def _seed(self, state: ResponsePoolState) -> int:
        return int(state.rng.integers(2**31))

    def _add(self, state: ResponsePoolState, follower: SB3Follower, kind: str, x: Tensor) -> None:
        """Play a follower's episodes and add it to the pool."""
        set_leader(self._stage, x.numpy())
        with follower.generators.active():
            player = follower.player(self._stage, greedily=True)
            rollout = collect(self._stage, player, self.worlds.horizon(self.config.tail), state.episode_seed)
        state.num_timesteps += rollout.steps
        episodes = episodes_of(self.worlds, rollout, np.random.default_rng(state.episode_seed))
        state.responses.append(Response(kind, x.clone(), follower.policy_state(), episodes))

    def iteration_steps(self, state: ResponsePoolState, total: int, first: bool, left: float = math.inf) -> Cost:
        played = self.config.episodes * self.worlds.horizon(self.config.tail)
        if first and not state.trained:
            return self._example.cost_alone(self.config.fresh_steps)._replace(leader=played)
        # Most challengers are warm; how many are fresh is known only at the end.
        return self._example.cost_alone(self.config.warm_steps)._replace(leader=played, certain=False)

    def end(self, state: ResponsePoolState, iterations: int) -> None:
        if state.finds and not any(found for *_, found in state.finds):
            warnings.warn(
                f"follower: none of {len(state.finds)} trained policies earns significantly more than an untrained one, so "
                "that the belief is about followers that do nothing much: give them more steps (fresh_steps, warm_steps)",
                stacklevel=4,
            )
        elif iterations and not state.finished:
            warnings.warn(
                "the budget ended before all kinds of challenger had found nothing at the best x: the belief there is "
                f"that of {len(state.responses)} policies; learn on with reset_num_timesteps=False",
                stacklevel=4,
            )

    # --- evaluation -----------------------------------------------------------------------------------------------------

    def evaluate(self, state: ResponsePoolState, x: Tensor, iteration: int) -> Evaluation:
        """Return the record of x by the pool's best policy there; it spends no steps.

        Its standard error counts the answers that twice the margin does not rule out, better and worse ones for the leader.

        The follower's regret is that of the best policy which was not trained near x, the one that the belief rested on before:
        None where no policy, or every policy, was trained near x.
        """
        with torch.no_grad():
            F, L = self.pool(state).returns(x[None])
        answers = [
            Answer(f"{response.kind} follower {k}", str(k), F[k, 0].numpy(), L[k, 0].numpy())
            for k, response in enumerate(state.responses)
        ]
        doubt = self.pool(state, CAUTION).doubt(x)
        found = best_answer(answers, np.random.default_rng([*state.words, iteration]), doubt)
        near = self._near([response.x for response in state.responses], x)
        far = [answer for answer, close in zip(answers, near, strict=True) if not close]
        regret, regret_stderr = None, 0.0
        if far and any(near):
            regret, regret_stderr = found.regret(max(far, key=lambda answer: answer.follower.mean()))
        return Evaluation(
            found.leader_return,
            None,
            regret,
            None,
            None,
            0.0,
            state.num_timesteps,
            iteration,
            found.leader_return_stderr,
            regret_stderr,
            best_answer=found.best.name,
        )

    def final(self, state: ResponsePoolState, x: Tensor, record: Evaluation, iteration: int) -> Evaluation:
        """Evaluate x exactly where a model is known, else at the best of newly trained followers and the pool's policies."""
        known = self.worlds.model
        if known is not None:
            value = leader_return_at_best_response(known, x)
            return Evaluation(value, None, None, None, None, 0.0, state.num_timesteps, iteration)
        seeds = np.random.SeedSequence([*state.words, state.evaluations])
        state.evaluations += 1
        held = {}
        if state.responses:
            held["the pool's best policy"] = self._untrained(0)
            best = state.responses[int(self.pool(state).believe(x[None]).best)]
            held["the pool's best policy"].take_policy(best.weights)
        known_weights = [("the pool's best policy", best.weights)] if state.responses else []
        c = self.config
        sizes = Evaluating(c.evaluation_followers, c.evaluation_steps, c.n_envs, c.episodes)
        found = judge(self.worlds, self._spec, x.numpy(), held, known_weights, sizes, seeds)
        state.num_timesteps += found.steps
        regret = next(iter(found.regrets.values()), (None, 0.0))
        return Evaluation(
            found.leader_return[0],
            None,
            regret[0],
            None,
            None,
            0.0,
            state.num_timesteps,
            iteration,
            found.leader_return[1],
            regret[1],
            found.followers,
            found.steps,
            found.best_answer,
        )

    def record_steps(self, state: ResponsePoolState) -> RecordCost:
        return RecordCost()

    def evaluation_cost(self, state: ResponsePoolState) -> RecordCost:
        """Return the environment steps of ``evaluate()``."""
        c = self.config
        sizes = Evaluating(c.evaluation_followers, c.evaluation_steps, c.n_envs, c.episodes)
        return judge_steps(self.worlds, sizes, self._example, 1, False)

    def close(self, state: ResponsePoolState) -> None:
        self.training.close()
        self._stage.close()

    # --- files ----------------------------------------------------------------------------------------------------------

    def fingerprint(self) -> list[float]:
        return self.worlds.fingerprint()

    def loaded(self, state: ResponsePoolState, replay: bool, path: Path) -> None:
        """Check the policies and points that were read."""
        points = {"start": [state.start], "trained": state.trained, "misses": [point for point, _ in state.misses]}
        points["responses"] = [response.x for response in state.responses]
        for name, several in points.items():
            for point in several:
                self.leader_set.check(point, name)
        n, kinds = len(state.trained), {"untrained", *self._kinds}
        for name, found in (("finds", len(state.finds)), ("responses", max(len(state.responses) - 1, 0))):
            require(found == n, name, f"{n}, one for each point trained at", found)
        named = {kind for _, kind in state.misses} | {response.kind for response in state.responses}
        require(named <= kinds, "kind", f"one of {sorted(kinds)}", sorted(named - kinds))
        shape = (self.config.episodes, 1 + self.leader_set.dim)
        for response in state.responses:
            self._example.take_policy(response.weights)
            for table in (response.episodes.follower, response.episodes.leader):
                fits = bool(response.episodes.steps) if table is None else tuple(table.shape) == shape
                require(fits, "episodes", f"tables of shape {shape}, or steps", None if table is None else table.shape)

    def room(self, state: ResponsePoolState) -> int:
        """Return the size in bytes of as many policies as a run may hold."""
        return 1000 * size_of(snapshot(self._example.policy_state()))


class ResponsePool(Leader):
    """Search over x with a pool of responses: for x in rewards, with any number of parameters.

    Args:
        env: a leader environment whose x enters rewards only: an id, an environment (it is copied), a callable that makes one,
            or a problem.
        follower: an SB3 class, built with settings that suit a fixed x, or a callable ``VecEnv -> BaseAlgorithm``.
        config: a :class:`ResponsePoolConfig`: steps, episodes and bounds.
        seed: seed of the followers, their environments and the search.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        x0: initial x, ``[dim]``; by default the environment's own.
        settings: fields of the config by name, e.g. ``warm_steps=20_000``; not allowed with ``config``.

    Attributes:
        responses: the policies of the pool.
        finds: for each challenger, its gain over the pool, with its standard error, and 1 where it was a find.
        finished: whether all kinds of challenger at the best x have found nothing.
        num_timesteps: environment steps of all followers and of the stored episodes.

    Raises:
        ValueError: x enters the dynamics; otherwise see :class:`PBRL`.
    """

    given = ("follower", "env")

    def __init__(
        self,
        env: EnvSpec,
        follower: FollowerSpec,
        *,
        config: ResponsePoolConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
        **settings: Any,
    ) -> None:
        config = configured(type(self), ResponsePoolConfig, config, settings)
        super().__init__(ResponsePoolMethod(env, follower, config, env_kwargs), seed, x0)

    def draw(self, path: str | Path | None = None) -> Figure:
        """Draw what the pool believes of F over X, where policies were trained, and what refuted the belief.

        Along one parameter it is the curve; along several, slices through :attr:`x`.

        Args:
            path: a file to write, e.g. ``belief.png``; None writes none.

        Returns:
            The figure, of matplotlib.

        Raises:
            ValueError: nothing was trained yet.
            gymnasium.error.DependencyNotInstalled: matplotlib is missing.
        """
        state, method = self.state, self.method
        require(bool(state.responses), "draw", "a leader that has learned; call learn first", "one without policies")
        finds = [found > 0.0 for *_, found in state.finds]
        x, trained = torch.as_tensor(self.x), torch.stack([state.start, *state.trained])[1:]
        figure = draw_belief(method.pool(state), self.leader_set, x, trained, finds)
        if path is not None:
            figure.savefig(path)
        return figure
