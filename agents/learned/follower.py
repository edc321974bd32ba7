r"""A lower level with one learned follower: each role of a penalty is an SB3 model with its own parallel environments.

    best response          trained on r_f under the current x              stands for  pihat ~ pi*(x)
    penalised follower     trained on r_f + r_l/lam under the current x    stands for  pi_y

With the Bellman penalty, which needs a Q-network over discrete actions, both are soft at tau, the current value of
``PBRLConfig.q_temperature``. The follower's problem is regularised at that tau, and so are the check on the best response and,
where a model is known, the records' follower regret. States are weighted by the occupancy d_y of pi_y:

    p(x,y) = tau sum_s d_y(s) KL( pi_y(.|s) || pi*_x(.|s) ) = V_tau*(rho) - V_tau^{pi_y}(rho)

(the terms of an episode of pi_y telescope by ``Q* = r_x + gamma E V*``), so the terms are those of the value penalty for the
regularised problem. The difference is how pi_y is found: by reinforcement learning on the leader's reward alone, kept near pi*
by a relative entropy (:mod:`..followers.soft_q`). So pi_y shares the best response's errors, adds none of that kind, and tends to
pihat as lam grows; ``lam grad_x p`` is then the second term of HPGD, negated. SAC and TQC cannot be used, since over continuous
actions the normaliser of pi_y is an integral.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp import TabularMDP, solve_soft, suboptimality
from ...envs.mdp.checks import require
from ...envs.mdp.problem import EVALUATION_TAU
from ...wrappers import RewardMixing, set_leader
from ..estimators.base import Estimator
from ..estimators.known_model import ModelEstimator
from ..estimators.rollouts import Act, RolloutEstimator, Rollouts, collect, episode_returns, require_linear_critic
from ..evaluation import Evaluation
from ..followers.product_features import ProductRollouts
from ..followers.replay import TrueReplay
from ..followers.sb3 import SB3Follower
from ..followers.soft_q import SoftQFollower
from ..followers.spec import Answering, FollowerSpec
from ..lower_levels import lower_level
from ..penalties import Penalty, Role, ValuePenalty
from ..plan import RecordCost
from ..schedules import Geometric, as_schedule
from .answers import TAIL, Evaluating, Judged, judge, judge_steps
from .worlds import Worlds

Floats = NDArray[np.float64]


EPISODES = 64
"""Number of episodes by which a record compares policies, unless the estimator's ``n_envs`` says otherwise."""


class LearnedFollower:
    """One learned follower, of any SB3 algorithm, in the roles of a penalty.

    Args:
        env: an id, an environment, or a callable that makes one.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        config: a :class:`PBRLConfig`.
        penalty: the penalty that defines the roles.

    Attributes:
        worlds: the environment.
        exact: the exact lower level, where a tabular problem is known; else None.
    """

    n_players: ClassVar[int] = 1

    @staticmethod
    def default_penalty() -> Penalty:
        """Return the value penalty with lam from 2 to 8."""
        return ValuePenalty(lam=Geometric(2.0, 8.0))

    def __init__(self, env: Any, env_kwargs: dict[str, Any] | None, config: Any, penalty: Penalty) -> None:
        expected = "None for learned followers, whose states are weighted by pi_y's visits"
        require(getattr(penalty, "mu", None) is None, "mu", expected, getattr(penalty, "mu", None))
        waits = "False for a BellmanPenalty, whose penalised follower waits for the best response"
        require(not (penalty.soft and config.side_by_side), "side_by_side", waits, config.side_by_side)
        self.config, self.penalty, self.soft = config, penalty, penalty.soft
        self.roles = {role.name: role for role in penalty.roles(1)}
        self.worlds = Worlds(env, env_kwargs, config.observe_commitment, config.vec_env)
        if self.worlds.problem is None or isinstance(config.estimator, Rollouts):
            require_linear_critic(self.worlds.base_space)
        self.exact: Any = None if self.worlds.problem is None else lower_level(self.worlds.problem)
        self.every_observation = (self.worlds.native or self.worlds).every_observation

    # --- followers ------------------------------------------------------------------------------------------------------

    def make_followers(self, spec: FollowerSpec, x: Tensor, seeds: Sequence[int], lam: float) -> dict[str, SB3Follower]:
        """Make one follower per role, on environments at x.

        Raises:
            ValueError: the leader's objective is not a return, or the follower does not fit the environment.
        """
        self.worlds.require_sampled_return(x)
        self._say_tau()
        made: dict[str, SB3Follower] = {}
        for (name, role), seed in zip(self.roles.items(), seeds, strict=True):
            made[name] = self.new(spec, x, seed % 2**31, role, lam, made.get(role.prior or ""))
        self.worlds.require_every_action(x, made["best_response"])
        return made

    def _say_tau(self) -> None:
        """Warn where the environment regularises its follower at another temperature than learned followers have."""
        problem, last = self.worlds.problem, as_schedule(self.config.q_temperature, "q_temperature", positive=True)(0.0)
        if problem is None or problem.tau <= EVALUATION_TAU or (self.soft and last == problem.tau):
            return
        told = "but PBRL's sampled followers are not: it learns for tau = 0, and its records use the environment's tau"
        if self.soft:
            told = f"as is the records' leader return; PBRL's followers end at PBRLConfig.q_temperature={last:g}"
        warnings.warn(f"the environment's follower is regularised at tau={problem.tau:g}, {told}", stacklevel=6)

    def new(
        self, spec: FollowerSpec, x: Tensor, seed: int, role: Role, lam: float = 1.0, prior: Any = None
    ) -> SB3Follower:
        """Make the follower of a role, on environments at x; a relative entropy keeps it near ``prior``."""
        w, c = self.worlds, self.config
        weight = role.share if role.prior else role.share / lam
        venv = RewardMixing(w.make(c.n_envs), weight, role.own)
        set_leader(venv, x.numpy())
        entropy = None if c.entropy is None else as_schedule(c.entropy, "entropy", positive=False)
        answering = Answering(as_schedule(c.q_temperature, "q_temperature", positive=True), c.averaging, entropy)
        arguments = (spec, venv, w.gamma, seed, w.linear, answering)
        follower = SoftQFollower(*arguments, prior=prior) if self.soft else SB3Follower(*arguments)
        if role.prior:
            follower.lam = lam  # type: ignore[attr-defined]
        # Use a replay buffer that is updated as x and lam move, in place of a plain one, and buffers that store large features
        # by their blocks.
        shown = w.base_space if c.observe_commitment else None
        ProductRollouts.in_place_of(follower.model, venv, shown)
        if c.relabel is not False:
            follower.replay = TrueReplay.in_place_of(follower.model, venv, shown)
        if c.relabel:
            expected = "None or False where x is the leader's policy or affects the dynamics"
            require(w.only_rewards_move, "relabel", expected, c.relabel)
            plain = f"None or False for {type(follower.model).__name__}, which has no plain replay buffer"
            require(follower.replay is not None, "relabel", plain, c.relabel)
        return follower

    def train(self, state: Any, points: Floats, asked: int, planned: int, names: Sequence[str]) -> dict[str, int]:
        """Train followers at ``points``, ``[n_envs, dim]``; return the steps of each."""
        spent = {}
        for name in names:
            role, follower = self.roles[name], state.followers[name]
            venv = follower.venv
            if role.prior:
                follower.lam = state.lam
            else:
                venv.weight = role.share / state.lam
            set_leader(venv, points)
            if follower.replay is not None:
                relabel = self.worlds.relabelled if self.worlds.only_rewards_move else None
                follower.replay.renew(points, venv.weight, relabel, self.config.observe_commitment, venv.own_weight)
            spent[name] = follower.train(asked, planned)
        return spent

    def by_player(self, followers: Mapping[str, SB3Follower], kind: str) -> SB3Follower:
        """Return the follower of a kind, ``best_response`` or ``penalised``."""
        return followers[kind]

    def alone(self, followers: Mapping[str, SB3Follower], x: Floats, render_mode: str | None) -> gym.Env[Any, Any]:
        """Make one environment under x, as followers see it."""
        return self.worlds.alone(x, render_mode)

    # --- x's gradient ---------------------------------------------------------------------------------------------------

    def estimator(self, followers: Mapping[str, SB3Follower], rng: np.random.Generator) -> Estimator:
        """Make the estimator that the config names: rollouts or the known model.

        Raises:
            ValueError: :class:`KnownModel` without a model, or with a recurrent follower.
        """
        how = self.config.estimator
        if isinstance(how, Rollouts):
            return RolloutEstimator(self.worlds, how, rng, self.soft, len(followers) * self.config.follower_steps)
        require(self.exact is not None, "estimator", "Rollouts() where the environment has no model", how)
        remembers = followers["best_response"].recurrent
        require(not remembers, "estimator", "Rollouts() for a recurrent follower, which has no policy table", how)
        return ModelEstimator(self, self.penalty)

    def lived(self, x: Tensor) -> TabularMDP:
        """Return M(x) as learned followers experience it: soft ones earn entropy in an episode's last step, too."""
        problem = self.worlds.problem
        assert problem is not None
        mdp = problem.follower_mdp(x)
        if not self.soft:
            return mdp
        mask = None if problem.takes_missing_actions else mdp.mask
        return replace(mdp, mask=mask, terminal_entropy=True, validate=False)

    def temperature(self, followers: Mapping[str, Any]) -> float:
        """Return the weight of entropy in the follower's returns."""
        return float(followers["best_response"].temperature) if self.soft else 0.0

    def policies(self, followers: Mapping[str, SB3Follower], x: Tensor) -> tuple[tuple[Tensor], tuple[Tensor]]:
        """Return pi_y and pihat at x in every state of a tabular problem, ``[..., S, A]``."""
        best, own = (self.table(followers[name], x) for name in ("best_response", "penalised"))
        return (own,), (best,)

    def table(self, follower: SB3Follower, x: Tensor) -> Tensor:
        """Return a follower's policy in every state of a tabular problem under x, ``[..., S, A]``."""
        assert self.worlds.problem is not None
        mdp = self.worlds.problem.follower_mdp(x)
        return follower.table(mdp, self.every_observation(x.numpy())).reshape(mdp.r.shape)

    def at_stake(
        self, x: Tensor, model: Any, own: tuple[Tensor, ...], best: tuple[Tensor, ...], earned: Tensor
    ) -> tuple[float, None]:
        """Return the leader's gain from pi_y over pihat."""
        return float(earned - self.exact.leader_return(x, best)), None

    def record_steps(self, state: Any) -> RecordCost:
        """Return the environment steps of :meth:`evaluate` with one follower; with a model, those of paired episodes only."""
        hat, pi_y = state.followers["best_response"], state.followers["penalised"]
        if self.worlds.model is None:
            return judge_steps(self.worlds, self._sizes(state, 1), hat, len(state.followers), bool(state.earlier))
        if self.worlds.problem is not None and not pi_y.recurrent:
            return RecordCost()
        played = 3 * state.estimator.venv.num_envs * self.worlds.horizon(TAIL)
        return RecordCost(played, played)

    def _sizes(self, state: Any, n_followers: int) -> Evaluating:
        c = self.config
        return Evaluating(n_followers, c.evaluation_steps, c.n_envs, c.estimator.n_envs or EPISODES)

    # --- evaluation -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, state: Any, x: Tensor, iteration: int, spec: FollowerSpec, n_followers: int) -> Evaluation:
        """Evaluate x: exactly where a model is known, by Riccati for linear-quadratic problems, else by the best answer found."""
        seeds = np.random.SeedSequence([*state.words, state.evaluations])
        state.evaluations += 1
        tau, before = self.temperature(state.followers), state.num_timesteps
        common: dict[str, Any] = {"lam": state.lam, "tau": tau, "iteration": iteration}
        problem, linear = self.worlds.problem, self.worlds.linear_quadratic
        hat, pi_y = state.followers["best_response"], state.followers["penalised"]
        if problem is None and linear is None:
            found = self._by_answers(state, x, spec, n_followers, seeds)
            state.num_timesteps += found.steps
            return Evaluation(
                leader_return=found.leader_return[0],
                leader_return_stderr=found.leader_return[1],
                leader_return_at_pi_y=found.leader_returns["penalised"],
                follower_regret=found.regrets["best_response"][0],
                follower_regret_stderr=found.regrets["best_response"][1],
                penalty=found.regrets["penalised"][0],
                evaluation_followers=found.followers,
                evaluation_steps=found.steps,
                best_answer=found.best_answer,
                steps=state.num_timesteps,
                **common,
            )
        if problem is not None:
            mdp = self.lived(x)
            best = float(problem.leader_return(x, solve_soft(problem.follower_mdp(x).detach(), problem.tau0).pi))
            if not pi_y.recurrent:
                optimum = solve_soft(mdp, tau)
                tables = [self.table(follower, x) for follower in (hat, pi_y)]
                short = [float(problem.over_contexts(suboptimality(mdp, pi, tau, optimum))) for pi in tables]
                at_pi_y = float(problem.leader_return(x, tables[1]))
                return Evaluation(best, at_pi_y, short[0], short[1], steps=before, **common)
            table = solve_soft(mdp, 0.0).pi.reshape(-1, mdp.n_actions).numpy()
            act: Act = lambda obs: table[self.worlds.base_observation(obs)].argmax(-1)  # noqa: E731
        else:
            F = linear.best_response(x).F  # type: ignore[union-attr]
            best = float(linear.leader_return(x, F))  # type: ignore[union-attr]
            bound = linear.action_bound  # type: ignore[union-attr]

            def act(obs: NDArray[Any]) -> NDArray[Any]:
                s = torch.from_numpy(self.worlds.base_observation(obs)).double()
                return (-(s @ F.T) / bound).clamp(-1.0, 1.0).numpy()

        # A follower without a policy table plays the same episodes as the exact best response.
        (follower, leader), (follower_hat, _), (follower_y, leader_y) = self._played(state, x, (act, hat, pi_y), seeds)
        apart = follower - follower_hat
        return Evaluation(
            leader_return=best,
            leader_return_at_pi_y=best + float((leader_y - leader).mean()),
            follower_regret=float(apart.mean()),
            follower_regret_stderr=float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else float("nan"),
            penalty=float((follower - follower_y).mean()),
            evaluation_steps=state.num_timesteps - before,
            steps=state.num_timesteps,
            **common,
        )

    def _by_answers(self, state: Any, x: Tensor, spec: FollowerSpec, n: int, seeds: np.random.SeedSequence) -> Judged:
        """Evaluate x at the best answer found, without touching the random generators of training."""
        known = [("best_response", state.followers["best_response"].policy_state())] if state.warm else []
        known += [("the best answer of an earlier record", state.earlier)] if state.earlier else []
        found = judge(self.worlds, spec, x.numpy(), dict(state.followers), known, self._sizes(state, n), seeds)
        state.earlier = found.policy
        return found

    def _played(
        self, state: Any, x: Tensor, policies: Sequence[Act | SB3Follower], seeds: np.random.SeedSequence
    ) -> list[tuple[Floats, Floats]]:
        """Return both returns of each episode under each policy at x, and count the steps."""
        w, venv, seed = self.worlds, state.estimator.venv, int(np.random.default_rng(seeds).integers(2**31))
        set_leader(venv, x.numpy())
        returns = []
        for policy in policies:
            follower = policy if isinstance(policy, SB3Follower) else None
            held = None if follower is None else follower.generators.state
            rollout = collect(venv, policy if follower is None else follower.player(venv), w.horizon(TAIL), seed)  # type: ignore[arg-type]
            if follower is not None and held is not None:
                follower.generators.state = held
            state.num_timesteps += rollout.steps
            returns.append(episode_returns(rollout, w.base_space, w.gamma))
        return returns
