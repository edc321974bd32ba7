r"""A lower level with the two learned players of a zero-sum game: a best response and a policy for each, as four SB3 models.

    best response of 1      trained on V(., pi2)                                stands for  pi1*
    best response of 2      trained on -V(pi1, .)                               stands for  pi2*
    own policy of 1         trained on V(., pi2*) + r_L1 / lam                  stands for  pi1
    own policy of 2         trained on -V(pi1*, .) + r_L2 / lam                 stands for  pi2

The leader's transitions may differ from the players', and a sum of rewards is then not equivalent. So pi1 and pi2 are paid the
leader's linearised return (see ``estimators.game_rollouts``). The players are regularised at the game's own tau by a soft policy
gradient: each is paid -tau log pi(a|s) of its own policy, and tau h of the other's, as the game defines. An algorithm's own
entropy bonus comes on top; a small one keeps every action in use, at the price of policies slightly softer than the game's. An
opponent is represented by its average over iterations.

All four take short steps, since fully solved alternating responses cycle: first pi1 and pi2, each against the other's previous
best response, then both best responses, which thus respond to the policies that the leader sees.

Only on-policy algorithms can be used, since the linearised reward is exact at the current policy only, with no Q.

Records are exact, at the game's own tau: the leader's return at the Nash equilibrium of x, and the Nikaido-Isoda gap of pi1 and
pi2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from ...envs.mdp import ZeroSumGame, nikaido_isoda_gap
from ...envs.mdp.checks import require
from ...wrappers import set_leader
from ..estimators.base import Estimator
from ..estimators.game_rollouts import (
    GameRolloutEstimator,
    LeaderGain,
    leader_advantages,
    linearised_reward,
    pair_visitation,
)
from ..estimators.known_model import ModelEstimator
from ..estimators.rollouts import Rollouts
from ..evaluation import Evaluation
from ..followers.sb3 import SB3Follower
from ..followers.spec import Answering, FollowerSpec
from ..lower_levels import lower_level
from ..penalties import NikaidoIsodaPenalty, Penalty
from ..plan import RecordCost
from ..schedules import as_schedule
from ..sources import is_game, makes_one
from .game_worlds import Floats, GameWorlds, PlayerEnv

NIMBLE = 0.7
"""Upper bound on the averaging of best responses: they follow pi1 and pi2 faster than those follow their own training."""


class LearnedPlayers:
    """The two players of a zero-sum game, learned by an on-policy algorithm, in the roles of a penalty.

    Args:
        env: a PettingZoo game with a leader, its id, or a callable that makes one.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        config: a :class:`PBRLConfig`.
        penalty: the penalty that defines the roles.

    Raises:
        ValueError: the environment is no PettingZoo game with a leader, or a setting does not apply to games.
    """

    n_players: ClassVar[int] = 2

    @staticmethod
    def default_penalty() -> Penalty:
        """lam 4."""
        return NikaidoIsodaPenalty()

    def __init__(self, env: Any, env_kwargs: dict[str, Any] | None, config: Any, penalty: Penalty) -> None:
        made = env() if makes_one(env) else env
        require(is_game(made), "env", "a PettingZoo game for a NikaidoIsodaPenalty", repr(env))
        native = config.vec_env in (None, "native")
        require(native, "vec_env", "None or 'native' for a game, which has its own simulator", repr(config.vec_env))
        expected = "None or False for a game, whose followers have no replay buffer"
        require(not config.relabel, "relabel", expected, config.relabel)
        require(not config.side_by_side, "side_by_side", "False for a game", config.side_by_side)
        self.config, self.penalty = config, penalty
        self.roles = {role.name: role for role in penalty.roles(2)}
        self.worlds = GameWorlds(made, env_kwargs, config.observe_commitment)
        self.exact: Any = lower_level(self.worlds.problem)

    # --- followers ------------------------------------------------------------------------------------------------------

    def make_followers(self, spec: FollowerSpec, x: Tensor, seeds: Sequence[int], lam: float) -> dict[str, SB3Follower]:
        """Make one follower per role, each on environments of its player.

        Raises:
            ValueError: the algorithm is off-policy, or see :class:`SB3Follower`.
        """
        c, w = self.config, self.worlds
        bonus = as_schedule(0.0 if c.entropy is None else c.entropy, "entropy", positive=False)
        self.simulators = {name: w.simulator(role.player + 1, c.n_envs) for name, role in self.roles.items()}
        made: dict[str, SB3Follower] = {}
        for (name, role), seed in zip(self.roles.items(), np.random.SeedSequence(seeds).generate_state(4), strict=True):
            answering = Answering(averaging=c.averaging if role.share else min(c.averaging, NIMBLE), entropy=bonus)
            venv = w.for_sb3(self.simulators[name])
            made[name] = SB3Follower(spec, venv, w.gamma, int(seed) % 2**31, w.linear, answering)
        model = next(iter(made.values())).model
        expected = "an on-policy algorithm for a game (its linearised reward is exact at the current policy only)"
        require(isinstance(model, OnPolicyAlgorithm), "follower", expected, type(model).__name__)
        return made

    def tables(self, follower: SB3Follower, points: Floats, trained: bool = False) -> Floats:
        """Return a follower's policy under each x, ``[k, S, A]``; with ``trained`` the policy in training, not its average."""
        shown, S = self.worlds.observe_commitment, int(self.worlds.base_space.n)
        obs = self.worlds.every_observation(points)
        ask = follower.trained_probabilities if trained else follower.probabilities
        rows = ask(obs if shown else obs[:S])
        table: Floats = (rows / rows.sum(-1, keepdims=True)).reshape(len(points) if shown else 1, S, -1)
        return table

    def policies(
        self, followers: Mapping[str, SB3Follower], x: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return (pi1, pi2) and (pi1*, pi2*) at x, each ``[S, A]``."""
        at = {name: torch.from_numpy(self.tables(f, x.detach().numpy()[None])[0]) for name, f in followers.items()}
        own, best = ([name for name, role in self.roles.items() if bool(role.share) == kept] for kept in (True, False))
        return tuple(at[name] for name in own), tuple(at[name] for name in best)

    def train(self, state: Any, points: Floats, asked: int, planned: int, names: Sequence[str]) -> dict[str, int]:
        """Train all four for at least ``asked`` steps each, alternating after every rollout; return the steps spent.

        First pi1 and pi2, each against the other's previous best response, then both best responses, which thus respond to
        the policies that the leader sees.
        """
        followers, tau, spent = state.followers, self.worlds.problem.tau, {}
        owed = self._owed(state)
        for kept in (True, False):
            held = {name: self.tables(follower, points) for name, follower in followers.items()}
            for name, role in self.roles.items():
                if bool(role.share) != kept:
                    continue
                follower, other, done = followers[name], held[role.against[0]], 0
                set_leader(follower.venv, points)
                h = (other * np.log(np.maximum(other, 1e-300))).sum(-1, keepdims=True)
                paid = tau * h + owed.get(name, 0.0)
                while done < asked:
                    own = self.tables(follower, points, trained=True)
                    self.simulators[name].hold(other, paid - tau * np.log(np.maximum(own, 1e-12)))
                    done += follower.train(1, planned)
                spent[name] = done
        return spent

    def _owed(self, state: Any) -> dict[str, Any]:
        """Return what the leader's linearised return over lam pays pi1 and pi2 at x; 0 before the first estimate."""
        own = [name for name, role in self.roles.items() if role.share]
        if state.gain is None:
            return dict.fromkeys(own, 0.0)
        gain, x = state.gain, state.x.detach().numpy()[None].copy()
        pi = [torch.from_numpy(self.tables(state.followers[name], x, trained=True)[0]) for name in own]
        paid = [linearised_reward(gain.advantages[i], pi[i], gain.d_leader, gain.d[i]) for i in range(2)]
        return {
            name: self.roles[name].share * (reward / state.lam).numpy() for name, reward in zip(own, paid, strict=True)
        }

    def by_player(self, followers: Mapping[str, SB3Follower], kind: str) -> dict[str, SB3Follower]:
        """Return the followers of a kind, ``best_response`` or ``penalised``, by player."""
        shares = kind == "penalised"
        named = {name: role for name, role in self.roles.items() if bool(role.share) == shares}
        return {f"player_{role.player + 1}": followers[name] for name, role in named.items()}

    def alone(self, followers: Mapping[str, SB3Follower], x: Floats, render_mode: str | None) -> gym.Env[Any, Any]:
        """Make the first player's environment under x, with the second playing its own policy."""
        require(render_mode is None, "render_mode", "None for a game", repr(render_mode))
        role = next(iter(self.roles.values()))
        simulator = self.worlds.simulator(role.player + 1, 1)
        simulator.set_leader(x)
        simulator.hold(self.tables(followers[role.against[0]], x[None])[0])
        return PlayerEnv(simulator, self.worlds)

    # --- x's gradient ---------------------------------------------------------------------------------------------------

    def estimator(self, followers: Mapping[str, SB3Follower], rng: np.random.Generator) -> Estimator:
        """Make the estimator that the config names: rollouts or the known model."""
        how = self.config.estimator
        return GameRolloutEstimator(self, how, rng) if isinstance(how, Rollouts) else ModelEstimator(self, self.penalty)

    def lived(self, x: Tensor) -> ZeroSumGame:
        """Return the players' game at x."""
        return self.worlds.problem.game(x)

    def temperature(self, followers: Mapping[str, Any]) -> float:
        """Return the temperature of the game."""
        return float(self.worlds.problem.tau)

    def at_stake(
        self, x: Tensor, model: Any, own: tuple[Tensor, ...], best: tuple[Tensor, ...], earned: Tensor
    ) -> tuple[float, LeaderGain]:
        """Return the leader's gain, to first order, if the players obeyed it."""
        leaders = self.worlds.problem.leader_game(x)
        assert leaders is not None
        d = pair_visitation(model, own[0], best[1]), pair_visitation(model, best[0], own[1])
        gain = LeaderGain(leader_advantages(leaders, *own), pair_visitation(leaders, *own), d)
        return gain.at_stake, gain

    def record_steps(self, state: Any) -> RecordCost:
        """Return the environment steps of :meth:`evaluate`: none, since the model is known."""
        return RecordCost()

    # --- evaluation -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, state: Any, x: Tensor, iteration: int, spec: FollowerSpec, n_followers: int) -> Evaluation:
        """Evaluate x exactly."""
        problem = self.worlds.problem
        pi, _ = self.policies(state.followers, x)
        return Evaluation(
            leader_return=self.exact.at_best_response(x, problem.tau0),
            leader_return_at_pi_y=float(self.exact.leader_return(x, pi)),
            follower_regret=None,
            penalty=float(nikaido_isoda_gap(problem.game(x), pi[0], pi[1], problem.tau)),
            lam=state.lam,
            tau=problem.tau,
            steps=state.num_timesteps,
            iteration=iteration,
        )
