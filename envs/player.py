"""One player's world in a zero-sum game, the other player's policy held: many copies, stepped together in numpy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from .core import LeaderVectorEnv
from .leader_model import GameLeaderModel
from .mdp import GameProblem, ZeroSumGame
from .mdp.checks import as_float64, check_size, require
from .sampling import AliasSampler, Floats, Integers, InverseCdfSampler, Sampler


class PlayerVectorEnv(LeaderVectorEnv):
    """What one player of a game meets while the other holds a policy: a single-agent world, ``num_envs`` copies of it.

    In state s the player chooses an action, the other's is drawn from the held policy, and the state moves by the game's P.
    The reward is the player's own payoff, that of player 2 the negative of player 1's, plus ``bonus(s, a)`` where one is
    held. ``infos["leader_reward"]`` is the leader's reward of the step, ``infos["leader_draw"]`` the other player's action.
    A step takes three random numbers a copy, whatever the actions: equal seeds give common random numbers.

    Args:
        problem: the game and its leader, not a stack.
        player: whose world, 1 or 2.
        num_envs: number of copies.
        max_episode_steps: steps after which an episode is truncated; None for never.
        leaders_world: whether the state moves by the leader's transitions, ``problem.leader_game(x).P``.

    Raises:
        ValueError: a player other than 1 and 2, a size under one, a problem whose leader is paid no reward a step; in ``step``,
            actions of the wrong shape or that do not exist.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(
        self,
        problem: GameProblem,
        player: int,
        num_envs: int,
        max_episode_steps: int | None = None,
        leaders_world: bool = False,
    ) -> None:
        require(player in (1, 2), "player", "1 or 2", repr(player))
        self.problem, self.player, self.leaders_world = problem, player, leaders_world
        self.num_envs = check_size(num_envs, "num_envs")
        self.max_episode_steps = (
            None if max_episode_steps is None else check_size(max_episode_steps, "max_episode_steps")
        )
        low, high = problem.leader_set.low.numpy(), problem.leader_set.high.numpy()
        self.leader_space = gym.spaces.Box(low, high, dtype=np.float64)
        game, self._sampled_P = problem.game(problem.start_x()), (torch.empty(0), 0)
        paid = problem.leader_game(problem.start_x()) is not None
        require(paid, "problem", "a leader whose objective is a return", type(problem).__name__)
        self.gamma, self._S, self._A = game.gamma, game.n_states, game.n_actions
        self.commitment_size = int(problem.commitment(problem.start_x()).shape[-1])
        self.single_observation_space = gym.spaces.Discrete(self._S)
        self.single_action_space = gym.spaces.Discrete(self._A[player - 1])
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._start = InverseCdfSampler(game.rho.numpy()[None])
        self._zeros, self._copies = np.zeros(self.num_envs, dtype=np.int64), np.arange(self.num_envs)
        self._everyone = np.ones(self.num_envs, dtype=np.bool_)
        self._everyone.flags.writeable = False
        self._state: Integers | None = None
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self.set_leader(problem.start_x())
        other = self._A[2 - player]
        self.hold(np.full((self._S, other), 1.0 / other))

    # --- the leader's side -------------------------------------------------------------------------------------------

    @property
    def leader_x(self) -> NDArray[np.float64]:
        """A copy of the leader's parameter, ``[dim]``, or ``[num_envs, dim]`` where each copy has its own."""
        return np.array(self._x.numpy())

    def set_leader(self, x: Any) -> None:
        """Set the leader's parameter, ``[dim]`` or ``[num_envs, dim]``, from the next step on; x is copied.

        Raises:
            ValueError: wrong shape, an entry that is not finite, or a point outside X.
        """
        point, leader_set = as_float64(x, "x").detach(), self.problem.leader_set
        many = point.ndim == 2
        self._x = (leader_set.check_rows(point, self.num_envs) if many else leader_set.check(point)).clone()
        rows = [self.problem.game(row) for row in (self._x if many else self._x[None])]
        self._payoffs = torch.stack([game.r for game in rows]).reshape(len(rows), -1).numpy()
        leaders = [self._leader_game(row) for row in (self._x if many else self._x[None])]
        self._leader_payoffs = torch.stack([game.r for game in leaders]).reshape(len(rows), -1).numpy()
        self._load_transitions([game.P for game in (leaders if self.leaders_world else rows)])
        self._shown: NDArray[np.float32] | None = None

    def _leader_game(self, x: Tensor) -> ZeroSumGame:
        game = self.problem.leader_game(x)
        assert game is not None
        return game

    def _load_transitions(self, P: list[Tensor]) -> None:
        seen, version = self._sampled_P
        if all(rows is seen for rows in P) and seen._version == version:
            return
        shared = all(rows is P[0] for rows in P)
        table = (P[0] if shared else torch.stack(P)).reshape(-1, self._S).numpy()
        self._next: Sampler = AliasSampler(table) if shared else InverseCdfSampler(table)
        self._next_offset = self._zeros if shared else self._copies * (len(table) // self.num_envs)
        self._sampled_P = (P[0], P[0]._version) if shared else (torch.empty(0), 0)

    def leader_model(self) -> GameLeaderModel:
        """The joint step as a function of x: see ``GameLeaderModel``.

        Raises:
            ValueError: if the copies have different x.
        """
        require(self._x.ndim == 1, "x", "one x for all copies", f"shape {tuple(self._x.shape)}")
        return GameLeaderModel(self.problem, self._x)

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """What each copy's player may be shown of x, ``[num_envs, commitment_size]`` for obs ``[num_envs]``."""
        if self._shown is None:
            rows = self._x if self._x.ndim == 2 else self._x[None]
            self._shown = torch.stack([self.problem.commitment(row) for row in rows]).to(torch.float32).numpy()
        shown: NDArray[np.float32] = self._shown[self._copies if len(self._shown) > 1 else 0, np.asarray(obs)]
        return shown

    # --- the other player --------------------------------------------------------------------------------------------

    def hold(self, policy: Any, bonus: Any = None) -> None:
        """Hold the other player's policy, and what the player is paid beside its payoff, from the next step on.

        Args:
            policy: ``[S, A]`` of the other player, or ``[num_envs, S, A]``, one a copy.
            bonus: ``[S, A]`` of the player, or ``[num_envs, S, A]``; None for nothing.

        Raises:
            ValueError: another shape, a policy whose rows are no distribution.
        """
        own, other = self._A[self.player - 1], self._A[2 - self.player]
        held = self._table(policy, other, "policy")
        fits = bool((held >= 0.0).all()) and bool(np.allclose(held.sum(-1), 1.0, atol=1e-6))
        require(fits, "policy", "rows that are distributions", "others")
        self._other = InverseCdfSampler(held.reshape(-1, other))
        self._other_offset = self._zeros if len(held) == 1 else self._copies * self._S
        self._bonus = None if bonus is None else self._table(bonus, own, "bonus")

    def _table(self, values: Any, actions: int, name: str) -> Floats:
        table = np.asarray(values, dtype=np.float64)
        table = table[None] if table.ndim == 2 else table
        fits = table.shape in ((1, self._S, actions), (self.num_envs, self._S, actions))
        expected = f"shape ({self._S}, {actions}) or ({self.num_envs}, {self._S}, {actions})"
        require(fits, name, expected, f"shape {np.shape(values)}")
        require(bool(np.isfinite(table).all()), name, "finite numbers", "others")
        return table

    # --- playing -----------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Integers, dict[str, Any]]:
        """Start every copy anew; ``options`` are not used."""
        super().reset(seed=seed)
        self._elapsed[:] = 0
        self._state = self._start.draw(self._zeros, self.np_random.random(self.num_envs))
        return self._state.copy(), {}

    def step(self, actions: Any) -> tuple[Integers, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One step of every copy; see the class."""
        z, own = self._state, np.asarray(actions)
        if z is None:
            raise gym.error.ResetNeeded("step was called before reset")
        whole = own.shape == (self.num_envs,) and own.dtype.kind in "iu"
        require(whole, "actions", f"{self.num_envs} whole numbers", f"{own.dtype} of shape {own.shape}")
        exist = bool(((own >= 0) & (own < self._A[self.player - 1])).all())
        require(exist, "actions", f"whole numbers in [0, {self._A[self.player - 1]})", own)
        u = self.np_random.random((3, self.num_envs))
        other = self._other.draw(z + self._other_offset, u[0])
        first, second = (own, other) if self.player == 1 else (other, own)
        row = (z * self._A[0] + first) * self._A[1] + second
        following = self._next.draw(row + self._next_offset, u[1])
        copies = self._copies if len(self._payoffs) > 1 else self._zeros
        payoff, leader_reward = self._payoffs[copies, row], self._leader_payoffs[copies, row]
        rewards = payoff if self.player == 1 else -payoff
        if self._bonus is not None:
            rewards = rewards + self._bonus[self._copies if len(self._bonus) > 1 else self._zeros, z, own]
        infos: dict[str, Any] = {
            "leader_reward": leader_reward,
            "_leader_reward": self._everyone,
            "leader_draw": other,
            "_leader_draw": self._everyone,
        }
        self._elapsed += 1
        limit = self.max_episode_steps
        truncated = np.zeros(self.num_envs, np.bool_) if limit is None else self._elapsed >= limit
        if truncated.any():
            final = np.full(self.num_envs, None, dtype=object)
            final[truncated] = following[truncated]
            infos |= {"final_obs": final, "_final_obs": truncated.copy()}
            following = np.where(truncated, self._start.draw(self._zeros, u[2]), following)
            self._elapsed[truncated] = 0
        self._state = following
        return following.copy(), rewards, np.zeros(self.num_envs, np.bool_), truncated, infos
