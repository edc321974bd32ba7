"""The players' environments of a zero-sum game, as single-agent environments for SB3."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pettingzoo
import torch
from numpy.typing import NDArray
from pettingzoo import AECEnv, ParallelEnv
from stable_baselines3.common.vec_env import VecEnv

from ...envs.mdp import GameProblem
from ...envs.mdp.checks import check_gamma, require
from ...envs.player import PlayerVectorEnv
from ...wrappers import VectorEnvAdapter
from ..lower_levels import lower_level
from ..sources import Source, problem_of
from .worlds import steps_to

Game = ParallelEnv[Any, Any, Any] | AECEnv[Any, Any, Any]
GameSpec = str | Game | GameProblem | Callable[[], Game]
"""How a user gives a game: an id of PettingZoo's registry, a PettingZoo environment, a problem, or a callable."""

Floats = NDArray[np.float64]


class GameWorlds:
    """A leader's two-player zero-sum game, which makes parallel environments for each player.

    Args:
        env: an id, a PettingZoo environment, a callable that makes one, or the problem of a game.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        observe_commitment: whether the players observe the leader context.

    Attributes:
        env: the environment.
        source: id and arguments, stored in leader files.
        problem: the problem, with the game and its leader.
        model: the same problem, which computes the leader's return at the equilibrium.
        linear: True: observations are one-hot or product features, so linear policies can be any policy.
        gamma: the discount.
        leader_set: the leader's set X.
        base_space: space of the players' observations, which are the states.
        action_spaces: action spaces of players 1 and 2.

    Raises:
        ValueError: the game has no ``problem``, is a stack of games, or its leader's objective is not a return.
    """

    linear: ClassVar[bool] = True

    def __init__(self, env: GameSpec, env_kwargs: dict[str, Any] | None, observe_commitment: bool) -> None:
        self.source = Source.of(env, env_kwargs)
        if isinstance(env, str):
            self.env: Any = pettingzoo.make("parallel", env, **(env_kwargs or {}))
        else:
            require(not env_kwargs, "env_kwargs", "none for an environment that is already made", env_kwargs)
            self.env = env
        inner = getattr(self.env, "unwrapped", self.env)
        problem: Any = problem_of(inner)
        single = isinstance(problem, GameProblem) and problem.context_probs is None
        expected = "a game with a leader, whose `problem` is a single GameProblem (from which it is simulated)"
        require(single, "env", expected, repr(env))
        paid = problem.leader_game(problem.start_x()) is not None
        require(paid, "env", "a leader whose objective is a return", type(problem).__name__)
        self.problem: GameProblem = problem
        self.model = self.problem
        self.gamma = check_gamma(problem.game(problem.start_x()).gamma)
        self.leader_set, self.observe_commitment = problem.leader_set, observe_commitment
        self.max_episode_steps = int(getattr(inner, "max_cycles", 100))
        self._start = np.array(getattr(inner, "leader_x", problem.start_x().numpy()), dtype=np.float64)
        sizes = problem.game(problem.start_x()).r.shape
        self.base_space, *self.action_spaces = (gym.spaces.Discrete(int(n)) for n in sizes)

    def fingerprint(self) -> list[float]:
        """Return a few numbers that differ between games, up to rounding."""
        return lower_level(self.problem).fingerprint()

    def start_x(self) -> torch.Tensor:
        """Return the initial x."""
        return torch.from_numpy(self._start.copy())

    def simulator(self, player: int, n_envs: int, leaders_world: bool = False) -> PlayerVectorEnv:
        """Make ``n_envs`` parallel environments of a player; ``leaders_world`` uses the leader's transitions."""
        return PlayerVectorEnv(self.problem, player, n_envs, self.max_episode_steps, leaders_world)

    def for_sb3(self, simulator: PlayerVectorEnv) -> VecEnv:
        """Wrap a simulator as an SB3 VecEnv with the player's observations."""
        return VectorEnvAdapter(simulator, self.observe_commitment, infos=False)

    def every_observation(self, points: Floats) -> NDArray[Any]:
        """Return a player's observation of each state under each x of ``[k, dim]``, as ``[k * S, ...]``."""
        return self._view.every_observation(points)

    @cached_property
    def _view(self) -> VectorEnvAdapter:
        """A simulator from which players' observations are computed."""
        return VectorEnvAdapter(self.simulator(1, 1), self.observe_commitment)

    def horizon(self, tail: float) -> int:
        """Return the number of steps until the discount falls to ``tail``, at most an episode's limit."""
        return steps_to(tail, self.gamma, self.max_episode_steps)


class PlayerEnv(gym.Env[Any, np.int64]):
    """One player's environment in Gymnasium's form, with the other player's policy and x fixed.

    Args:
        simulator: a simulator with a single environment.
        worlds: the game.
    """

    def __init__(self, simulator: PlayerVectorEnv, worlds: GameWorlds) -> None:
        self.simulator, self._venv = simulator, worlds.for_sb3(simulator)
        self.observation_space, self.action_space = self._venv.observation_space, self._venv.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._venv.seed(seed)
        return np.asarray(self._venv.reset())[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, rewards, dones, infos = self._venv.step(np.array([action]))
        after = infos[0].get("terminal_observation", np.asarray(obs)[0])
        return after, float(rewards[0]), False, bool(dones[0]), infos[0]
