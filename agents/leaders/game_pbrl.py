r"""PBRL over zero-sum games: four followers of an on-policy algorithm and the Nikaido-Isoda penalty, sampled.

    x += alpha [ grad_x J_L(x, pi1, pi2) - lam ( grad_x V(pi1*, pi2) - grad_x V(pi1, pi2*) ) ]

``PBRL(game, follower)`` makes one of these. What the four train on, and why pi1 and pi2 are paid the leader's *linearised*
return and not ``r + r_L / lam``, is said in :mod:`..common.four_followers` and :mod:`..common.linearised`; where x's gradient
comes from, and how the oracle is watched, in :mod:`..common.game_gradient`. The players are regularised at the game's own tau,
and so are all records: the leader's return at the Nash equilibrium of x, the Nikaido-Isoda gap of pi1 and pi2, both exact.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ...envs.mdp import nikaido_isoda_gap
from ...envs.mdp.checks import require
from ..common.evaluation import Evaluation, leader_return_at_best_response
from ..common.four_followers import NAMES, FourFollowers
from ..common.game_gradient import GameGradient, GameModelGradient, GameRolloutGradient, LeaderGain
from ..common.game_worlds import GameWorlds, is_game
from ..common.leader_gradient import GradientEstimate
from ..common.linearised import linearised_reward
from ..estimators import Rollouts
from ..followers.sb3 import SB3Follower
from ..followers.spec import Answering
from ..penalties import NikaidoIsodaPenalty, WeightedPenalty
from ..schedules import as_schedule
from .pbrl import PBRL, PBRLConfig

NIMBLE = 0.7
"""Averaging of the best responses, at most: they follow pi1 and pi2 more closely than these follow their own training."""


class GamePBRL(PBRL):
    """The penalty method over a zero-sum game; see :class:`PBRL`, which makes it, for the arguments.

    Attributes:
        followers: the four by name: ``best_response_1``, ``best_response_2``, ``player_1``, ``player_2``.

    Raises:
        ValueError: an environment that is no PettingZoo game with a leader, an off-policy follower, another penalty.
    """

    worlds: GameWorlds  # type: ignore[assignment]
    gradient: GameGradient  # type: ignore[assignment]

    def _default_config(self) -> PBRLConfig:
        return PBRLConfig.for_a_game()

    def _checked(self, penalty: WeightedPenalty | None) -> WeightedPenalty:
        chosen = NikaidoIsodaPenalty() if penalty is None else penalty
        fits, name = isinstance(chosen, NikaidoIsodaPenalty), type(chosen).__name__
        require(fits, "penalty", "a NikaidoIsodaPenalty over a zero-sum game", name)
        return chosen

    def _made_worlds(self, env: Any, env_kwargs: dict[str, Any] | None, config: PBRLConfig) -> GameWorlds:  # type: ignore[override]
        made = env() if callable(env) and not is_game(env) and not isinstance(env, gym.Env) else env
        require(is_game(made), "env", "a PettingZoo game for a NikaidoIsodaPenalty", repr(env))
        native = config.vec_env in (None, "native")
        require(native, "vec_env", "None or 'native' over a game, whose worlds are simulated", repr(config.vec_env))
        require(
            not config.relabel, "relabel", "None or False over a game, whose followers have no replay", config.relabel
        )
        return GameWorlds(made, env_kwargs, config.observe_commitment)

    def _make_followers(self, seeds: list[int]) -> None:
        require(not self.config.side_by_side, "side_by_side", "False over a game", self.config.side_by_side)
        c, four = self.config, [int(s) for s in np.random.SeedSequence(seeds).generate_state(4)]
        entropy = as_schedule(0.0 if c.entropy is None else c.entropy, "entropy", positive=False)
        answer = [Answering(averaging=share, entropy=entropy) for share in (min(c.averaging, NIMBLE), c.averaging)]
        answering = (answer[0], answer[0], answer[1], answer[1])
        self.four = FourFollowers(self.follower_spec, self.worlds, c.n_envs, answering, [s % 2**31 for s in four])
        self.gradient = (
            GameRolloutGradient(self.worlds, c.estimator, self.rng)
            if isinstance(c.estimator, Rollouts)
            else GameModelGradient(self.worlds)
        )
        self._gain: LeaderGain | None = None

    @property
    def followers(self) -> dict[str, SB3Follower]:
        """The four followers by name; the ``model`` of each is the SB3 model."""
        return dict(zip(NAMES, self.four.followers, strict=True))

    def close(self) -> None:
        """Close the followers' worlds."""
        for follower in self.followers.values():
            follower.venv.close()

    def _train_followers(self) -> None:
        asked, planned = self._asked_and_planned(4, self.gradient.planned_steps)
        self.num_timesteps += self.four.train(
            self._neighbourhood(), self._leaders_pay(), asked, planned, self.worlds.problem.tau
        )

    def _leaders_pay(self) -> list[Any]:
        """The linearised return over lam of pi1 and pi2, as they are trained at x; nothing before the first look."""
        if self._gain is None:
            return [0.0, 0.0]
        gain, x = self._gain, self.last_x[None]
        pi = [torch.from_numpy(self.four.trained(k, x)[0]) for k in (2, 3)]
        rewards = [linearised_reward(gain.advantages[i], pi[i], gain.d_leader, gain.d[i]) for i in (0, 1)]
        return [(reward / self.lam).numpy() for reward in rewards]

    def _look(self) -> GradientEstimate:
        found, self._gain = self.gradient(self._x, *self.four.policies(self._x), self.lam)
        return found

    @torch.no_grad()
    def _evaluate(self, x: Tensor) -> Evaluation:
        problem = self.worlds.problem
        pi, _ = self.four.policies(x)
        return Evaluation(
            leader_return=leader_return_at_best_response(problem, x),
            leader_return_at_pi_y=float(problem.leader_return(x, pi)),
            gap=float(nikaido_isoda_gap(problem.game(x), *pi, problem.tau)),
            penalty=self._estimated_penalty(),
            lam=self.lam,
            tau=problem.tau,
            steps=self.num_timesteps,
            iteration=self.iteration,
        )

    def _states(self) -> dict[str, Any]:
        g = self._gain
        gain = None if g is None else (*g.advantages, g.d_leader, *g.d)
        states = {name: follower.state_dict() for name, follower in self.followers.items()}
        return {**states, "estimator": self.gradient.state(), "gain": gain}

    def _restore(self, tensors: dict[str, Any]) -> None:
        for name, follower in self.followers.items():
            follower.load_state_dict(tensors[name])
        if tensors["estimator"] is not None:
            self.gradient.restore(tensors["estimator"])
        if tensors["gain"] is not None:
            A1, A2, d_leader, d1, d2 = tensors["gain"]
            self._gain = LeaderGain((A1, A2), d_leader, (d1, d2))
