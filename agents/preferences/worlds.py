"""Make parallel environments whose reward is learned, from the environment that a user gives.

The *true reward*, which labels and results are based on, is the environment's reward. In a leader environment it is the leader's
reward, since that is what the leader wants, and the learned reward replaces the follower's. :class:`Copies` may name the info key
of the true reward, and pay another reward that makes learning easier, e.g. its sign.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from ...envs.actions import legal_action
from ...envs.mdp import TabularMDP, TabularProblem, policy_return, solve_soft
from ...envs.mdp.checks import check_gamma, check_size, require
from ...envs.mdp.problem import EVALUATION_TAU
from ...wrappers import FiniteSteps, ForSB3, WorkerVecEnv, make_copy
from ...wrappers.vec_env import info_column, require_tame_step
from ..learned.worlds import EnvSpec, Vectorisation, Worlds, episode_limit
from ..sources import Source, as_env, make_env
from .files import Signature

Play = Callable[[Any], NDArray[Any]]
_TRIED = 5_000  # random steps within which an episode must end where there is no time limit
_TOO_LONG = 30_000  # longest episode that we wait for, in steps; without a time limit _TRIED


@dataclass(frozen=True)
class Copies:
    """An environment that makes its own VecEnv, e.g. preprocessed Atari games, or one that is stepped in batches.

    Attributes:
        make: makes a VecEnv from the number of parallel environments.
        name: name for people and preference files.
        true_reward: key of ``info`` with the true reward; None if that is the reward itself.
        whole: like ``make``, with whole episodes for evaluations, where ``make`` cuts them; None takes ``make``.
    """

    make: Callable[[int], VecEnv]
    name: str = "environment"
    true_reward: str | None = None
    whole: Callable[[int], VecEnv] | None = None


class PreferenceWorlds:
    """The environment whose reward is learned; it makes parallel environments.

    Args:
        env: an id, an environment (copied), a callable that makes one, or :class:`Copies`.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        vec_env: how parallel environments are stepped (see ``agents.learned.worlds``).
        gamma: the discount; None takes that of a leader environment, else 0.99.

    Attributes:
        name: name of the environment.
        source: id and arguments, stored in leader files.
        gamma: the discount.
        problem: the tabular problem, or None.
        true_reward: key of ``info`` with the true reward, or None if that is the reward itself.
        has_leader: whether it is a leader environment, whose true reward is the leader's.
        observation_space: observation space of one environment.
        action_space: action space of one environment.

    Raises:
        ValueError: ``env`` is no environment, or ``gamma`` is outside [0, 1) or differs from the leader environment's.
    """

    def __init__(
        self,
        env: EnvSpec | Copies,
        env_kwargs: dict[str, Any] | None = None,
        vec_env: Vectorisation | None = None,
        gamma: float | None = None,
    ) -> None:
        self.source, env = Source.of(env, env_kwargs), as_env(env)
        self._env, self._vec_env = env, vec_env
        self.problem: TabularProblem | None = None
        self.true_reward: str | None = None
        self._worlds: Worlds | None = None
        if isinstance(env, Copies):
            self.name, self.true_reward = env.name, env.true_reward
            probe: Any = env.make(1)
            require(isinstance(probe, VecEnv), "env", "Copies whose make returns a VecEnv", repr(probe))
        else:
            if isinstance(env, str):
                probe = make_env(env, env_kwargs)
            else:
                require(not env_kwargs, "env_kwargs", "none for an environment that is already made", env_kwargs)
                probe = env if isinstance(env, gym.Env) else env() if callable(env) else None
                expected = "an environment, its id, a problem, a callable that makes an environment, or Copies"
                require(isinstance(probe, gym.Env), "env", expected, repr(env))
            self.name = env if isinstance(env, str) else str(getattr(probe.spec, "id", None) or type(probe).__name__)
            if probe.has_wrapper_attr("leader_space") and probe.get_wrapper_attr("leader_space") is not None:
                self._worlds = Worlds(env, env_kwargs, observe_commitment=False, vec_env=vec_env)
                self.problem = self._worlds.problem
                self.true_reward = "leader_reward"
        self.has_leader = self._worlds is not None
        self._longest = _TOO_LONG
        if isinstance(probe, gym.Env):
            self._longest = _TRIED if episode_limit(probe) is None else _TOO_LONG
            probe = ForSB3(copy.deepcopy(probe) if isinstance(env, gym.Env) else probe)
            if self.true_mdp() is None:
                _try_an_episode(probe, self.name, self.true_reward)
        self.observation_space, self.action_space = probe.observation_space, probe.action_space
        probe.close()
        own = None if self._worlds is None else self._worlds.gamma
        self.gamma = check_gamma(gamma if gamma is not None else 0.99 if own is None else own)
        require(own is None or self.gamma == own, "gamma", f"None or {own}, the environment's", gamma)

    @property
    def linear(self) -> bool:
        """Whether observations are one-hot, for which a linear policy is exact."""
        return isinstance(self.observation_space, gym.spaces.Discrete)

    def signature(self, length: int) -> Signature:
        """Return the signature of its preference files."""
        return Signature.of(self.name, self.observation_space, self.action_space, length)

    def make(self, n_envs: int) -> VecEnv:
        """Make ``n_envs`` parallel environments."""
        if isinstance(self._env, Copies):
            return FiniteSteps(self._env.make(n_envs), self.name)
        if self._worlds is not None:
            return self._worlds.make(n_envs)
        spec: Any = gym.spec(self._env) if isinstance(self._env, str) else self._env
        makers: list[Any] = [partial(make_copy, spec, self.source.env_kwargs, False)] * n_envs
        return FiniteSteps(WorkerVecEnv(makers) if self._vec_env == "subproc" else DummyVecEnv(makers), self.name)

    def true_returns(self, play: Callable[[VecEnv], Play], episodes: int, seed: int) -> tuple[NDArray[np.float64], int]:
        """Return the undiscounted true return of an episode in each of ``episodes`` environments, and the steps spent.

        Args:
            play: makes the player of a VecEnv, from its reset on.
            episodes: number of episodes.
            seed: seed of the environments.

        Raises:
            ValueError: an episode does not end within 30,000 steps; within 5,000 where the environment has no time limit.
        """
        whole = self._env.whole if isinstance(self._env, Copies) else None
        venv = (self.make if whole is None else whole)(check_size(episodes, "episodes"))
        venv.seed(seed)
        obs, act = venv.reset(), play(venv)
        alive, total, steps = np.ones(episodes), np.zeros(episodes), 0
        while alive.any():
            expected = f"episodes that end within {self._longest} steps (add a TimeLimit: gymnasium.wrappers.TimeLimit)"
            require(steps < self._longest, "env", expected, f"{self.name}, where one was longer")
            obs, rewards, dones, infos = venv.step(act(obs))
            paid = rewards if self.true_reward is None else info_column(venv, infos, self.true_reward)
            total += alive * paid
            alive *= 1.0 - dones
            steps += 1
        venv.close()
        return total, steps * episodes

    # --- where the model is known -------------------------------------------------------------------------------------

    def true_mdp(self) -> TabularMDP | None:
        """Return the MDP of the true reward where the environment is tabular, without contexts; else None."""
        problem = self.problem
        if problem is None or problem.context_probs is not None:
            return None
        x = problem.start_x()
        reward = problem.leader_reward(x)
        return None if reward is None else problem.follower_mdp(x).detach().with_reward(reward.detach())


def _try_an_episode(env: gym.Env[Any, Any], name: str, true_reward: str | None) -> None:
    """Take a step and, where there is no time limit, play until an episode ends, since whole episodes are evaluated.

    Raises:
        ValueError: a reward is not a single finite number, an observation is not finite, or episodes do not end.
    """
    obs, _ = env.reset(seed=0)
    ended, steps = False, 0
    while not ended and (steps == 0 or episode_limit(env) is None):
        expected = (
            "episodes that end, since whole episodes are evaluated (add a TimeLimit: gymnasium.wrappers.TimeLimit)"
        )
        require(steps < _TRIED, "env", expected, f"{name}, where none ended in {steps} random steps")
        obs, reward, terminated, truncated, info = env.step(legal_action(env))
        paid = reward if true_reward is None else info[true_reward]
        require_tame_step(obs, float(paid), f"from {name} in trial step {steps + 1}")
        ended, steps = terminated or truncated, steps + 1


def regret(mdp: TabularMDP, pi: torch.Tensor) -> float:
    """Return the regret V*(rho) - V^pi(rho) >= 0 in the MDP of the true reward, for pi ``[S, A]``."""
    return float(mdp.rho @ solve_soft(mdp, 0.0).V - policy_return(mdp, pi))


def best_policy(mdp: TabularMDP, r: torch.Tensor) -> torch.Tensor:
    """Return the best response to a learned reward ``[S, A]`` of standard deviation about 1; ties are broken evenly."""
    return solve_soft(mdp.with_reward(r), EVALUATION_TAU).pi
