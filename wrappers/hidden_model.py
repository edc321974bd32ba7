"""An environment without its model, so that a leader learns from steps alone while the model judges it."""

from __future__ import annotations

from typing import Any, NoReturn

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from numpy.typing import NDArray
from torch import nn

from ..envs.core import LeaderEnv, LeaderVectorEnv
from ..envs.mdp import LeaderSet
from ..envs.mdp.checks import require


class HiddenModel(LeaderEnv[Any, Any]):
    """A leader environment that has everything of another one but its ``problem``, its native simulator included.

    It states its ``leader_set`` itself. ``env.unwrapped`` is this environment, not the one inside.

    Args:
        env: an environment that is a ``LeaderEnv``, without wrappers.

    Raises:
        ValueError: another environment.
        AttributeError: whenever ``problem`` is read.
    """

    def __init__(self, env: Any) -> None:
        require(isinstance(env, LeaderEnv), "env", "a LeaderEnv without wrappers", repr(env))
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata, self.render_mode = env.metadata, env.render_mode
        self.gamma, self.leader_space, self.draws_once = env.gamma, env.leader_space, env.draws_once
        self.commitment_size, self.commitment_is_distribution = env.commitment_size, env.commitment_is_distribution
        known = getattr(env, "leader_set", None) or getattr(getattr(env, "problem", None), "leader_set", None)
        if known is not None:
            self.leader_set: LeaderSet = known
        if hasattr(env, "action_masks"):
            self.action_masks = env.action_masks

    @property
    def problem(self) -> NoReturn:
        """Hidden."""
        raise AttributeError(
            "the problem of this environment is hidden: it judges leaders, and none of them may read it"
        )

    @property
    def leader_x(self) -> Any:
        return self.env.leader_x

    def set_leader(self, x: Any) -> None:
        self.env.set_leader(x)

    def leader_model(self) -> nn.Module:
        model: nn.Module = self.env.leader_model()
        return model

    def commitment(self, obs: Any) -> NDArray[Any]:
        shown: NDArray[Any] = self.env.commitment(obs)
        return shown

    def vectorised(self, num_envs: int, max_episode_steps: int | None) -> LeaderVectorEnv | None:
        return self.env.vectorised(num_envs, max_episode_steps)  # type: ignore[no-any-return]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options=options)  # type: ignore[no-any-return]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self.env.step(action)  # type: ignore[no-any-return]

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def hide_model(env: gym.Env[Any, Any], max_episode_steps: int | None = None) -> gym.Env[Any, Any]:
    """Return an environment with its ``problem`` hidden: reading it raises ``AttributeError``, through any wrappers.

    Args:
        env: a leader environment of its own class, or what ``gym.make`` returns of it.
        max_episode_steps: steps after which an episode is truncated. Default: None, as ``env`` says.

    Raises:
        ValueError: an environment inside a wrapper other than Gymnasium's that change nothing.
    """
    limit, inner = max_episode_steps, env
    while isinstance(inner, gym.Wrapper):
        fits = type(inner) in (TimeLimit, OrderEnforcing, PassiveEnvChecker)
        require(fits, "env", "an environment without wrappers that change it", repr(env))
        if isinstance(inner, TimeLimit) and limit is None:
            limit = inner._max_episode_steps
        inner = inner.env
    hidden = HiddenModel(inner)
    return hidden if limit is None else TimeLimit(hidden, limit)
