"""Fresh episodes of a policy and what is computed from them: returns, advantages, the leader's surrogate.

For any discounted return ``V = E sum_t gamma^t r_x(s_t,a_t,w_t)``, w_t being what the environment draws under x,

    grad_x V = E sum_t gamma^t [ grad_x r_x + A_t grad_x log p_x(w_t|s_t,a_t) ]

with A_t the return to go less a baseline of the state (arXiv 2402.06886, Lemma 7, in sampled form). A_t is the
generalised advantage of a critic: at ``gae_lambda`` = 1 the unbiased return less a baseline, at 0 the one-step TD error,
exact in expectation where the critic is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ...wrappers.vec_env import info_column

Floats = NDArray[np.float64]
Act = Callable[[Any], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Rollout:
    """The first ``T`` steps of one episode in each of ``N`` copies; what follows an episode's end is masked.

    Attributes:
        obs: observations as the follower sees them, ``[T, N, ...]``.
        base_obs: the environment's own observations, ``[T, N, ...]``: without what the follower is shown of x.
        base_next_obs: the same after the step, before a reset, ``[T, N, ...]``.
        action: the follower's actions, ``[T, N, ...]``.
        draw: the leader's draws, ``[T, N, ...]``.
        r_follower: ``[T, N]``.
        r_leader: ``[T, N]``.
        alive: 1.0 while the episode runs, ``[T, N]``.
        terminated: 1.0 where the episode ended by itself, ``[T, N]``.
    """

    obs: NDArray[Any]
    base_obs: NDArray[Any]
    base_next_obs: NDArray[Any]
    action: NDArray[Any]
    draw: NDArray[Any]
    r_follower: Floats
    r_leader: Floats
    alive: Floats
    terminated: Floats

    @property
    def steps(self) -> int:
        """Environment steps spent."""
        return int(self.alive.size)


def collect(venv: VecEnv, act: Act, horizon: int, seed: int) -> Rollout:
    """Reset every environment with ``seed`` (common random numbers between policies) and take ``horizon`` steps."""
    venv.seed(seed)
    obs = np.asarray(venv.reset())
    alive, shown = np.ones(venv.num_envs), False
    columns: list[list[Any]] = [[] for _ in range(9)]
    for _ in range(horizon):
        action = act(obs)
        following, reward, done, infos = venv.step(action)
        base, after = (info_column(venv, infos, name, optional=True) for name in ("base_obs", "base_next_obs"))
        shown, terminated = base is not None, done.copy()
        if not shown:  # the follower sees what the environment observes
            base, after = obs, np.array(following)
        for i in np.flatnonzero(done):
            terminated[i] = not infos[i].get("TimeLimit.truncated", False)
            if not shown:
                after[i] = infos[i]["terminal_observation"]
        draw = info_column(venv, infos, "leader_draw", optional=True)
        step = (
            obs,
            base,
            after,
            action,
            np.zeros(venv.num_envs, dtype=np.int64) if draw is None else draw,
            np.asarray(reward, dtype=np.float64),
            info_column(venv, infos, "leader_reward").astype(np.float64),
            alive,
            terminated.astype(np.float64),
        )
        for column, value in zip(columns, step, strict=True):
            column.append(value)
        alive = alive * (1.0 - done)
        obs = np.asarray(following)
    seen, base_obs, *others = (np.stack(column) for column in columns)
    return Rollout(seen, base_obs if shown else seen, *others)


def discounts(rollout: Rollout, gamma: float) -> Floats:
    """gamma^t while the episode runs, 0 after it, ``[T, N]``."""
    powers: Floats = gamma ** np.arange(rollout.alive.shape[0])[:, None] * rollout.alive
    return powers


def advantages(
    reward: Floats, values: Floats, next_values: Floats, rollout: Rollout, gamma: float, gae_lambda: float
) -> Floats:
    """Generalised advantages, ``[T, N]``; a cut episode is continued by its critic, a terminated one by nothing."""
    delta = reward + gamma * next_values * (1.0 - rollout.terminated) - values
    result = np.zeros_like(delta)
    carried = np.zeros(delta.shape[1])
    for t in range(delta.shape[0] - 1, -1, -1):
        going = rollout.alive[t + 1] if t + 1 < delta.shape[0] else 0.0
        carried = delta[t] + gamma * gae_lambda * going * carried
        result[t] = carried
    return result


def start_values(reward: Floats, next_values: Floats, rollout: Rollout, gamma: float) -> Floats:
    """Discounted return of each copy, the critic's value standing for what lies beyond its last step, ``[N]``."""
    weight = discounts(rollout, gamma)
    last = np.append(rollout.alive[1:] == 0.0, np.ones((1, rollout.alive.shape[1]), dtype=bool), axis=0) & (
        rollout.alive == 1.0
    )
    beyond = gamma * weight * last * (1.0 - rollout.terminated) * next_values
    returns: Floats = (weight * reward + beyond).sum(0)
    return returns


def surrogate(
    model: torch.nn.Module, rollout: Rollout, base: tuple[Any, Any], weight: Floats, advantage: tuple[Floats, Floats]
) -> tuple[Tensor, Tensor]:
    """Scalars whose gradients in x are those of the follower's and the leader's return under the rollout's policy.

    Args:
        model: the environment's leader model.
        rollout: fresh episodes at x.
        base: observations and next observations as the environment gives them, ``[T * N, ...]``.
        weight: ``gamma^t`` while alive, ``[T, N]``.
        advantage: the follower's and the leader's advantages, each ``[T, N]``.
    """
    T, N = rollout.alive.shape
    flat = [torch.as_tensor(part.reshape(T * N, *part.shape[2:])) for part in (rollout.action, rollout.draw)]
    r_follower, r_leader, log_p = model(torch.as_tensor(base[0]), flat[0], flat[1], torch.as_tensor(base[1]))
    w = torch.as_tensor(weight.reshape(-1) / N)
    A_follower, A_leader = (torch.as_tensor(a.reshape(-1)) for a in advantage)
    live = w > 0
    follower = w * (r_follower + A_follower * log_p)
    leader = w * (r_leader + A_leader * log_p)
    return follower[live].sum(), leader[live].sum()
