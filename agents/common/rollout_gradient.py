"""x's gradient from rollouts alone, and the watch over the oracle.

Each term from fresh episodes of one policy at x, with a least-squares critic of its own, fitted on earlier episodes;
the first call, which has none, fits it on its own. The critic stands for the rewards beyond an episode's last step, not for
their gradient: what is cut there shrinks the gradient by about the discount at the cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...wrappers import set_leader
from ..estimators import Rollouts
from ..oracles.sb3 import SB3Follower
from .leader_gradient import GradientEstimate, LeaderGradient, PenaltyEstimate, mean_and_error
from .rollouts import Act, Rollout, advantages, collect, discounts, start_values, surrogate
from .worlds import Worlds

Floats = NDArray[np.float64]


class LinearCritic:
    """Least-squares temporal differences (LSTD) of several rewards at once, on features of the state.

    ``A = sum phi (phi - gamma phi')^T``, ``b = sum phi r``, ``theta = A^{-1} b``; older rollouts fade by ``memory`` a call.

    Args:
        features: from base observations ``[n, ...]`` to ``[n, F]``.
        gamma: the discount.
        memory: weight that past statistics keep at each update, in [0, 1).
    """

    def __init__(self, features: Callable[[NDArray[Any]], Floats], gamma: float, memory: float) -> None:
        self.features, self.gamma, self.memory = features, gamma, memory
        self.A: Floats | None = None
        self.b: Floats | None = None

    def update(
        self, obs: NDArray[Any], next_obs: NDArray[Any], rewards: Floats, alive: Floats, terminated: Floats
    ) -> None:
        """Add steps (flattened to ``[n, ...]``; rewards ``[n, R]``) and solve."""
        phi, phi_next = self.features(obs) * alive[:, None], self.features(next_obs)
        A = phi.T @ (phi - self.gamma * phi_next * ((1.0 - terminated) * alive)[:, None])
        b = phi.T @ rewards
        self.A = A if self.A is None else self.memory * self.A + A
        self.b = b if self.b is None else self.memory * self.b + b
        self.solve()

    def solve(self) -> None:
        """theta from the statistics in hand."""
        assert self.A is not None
        assert self.b is not None
        ridge = 1e-6 * max(float(np.trace(self.A)) / len(self.A), 1e-12) * np.eye(len(self.A))
        self.theta = np.linalg.solve(self.A + ridge, self.b)

    def __call__(self, obs: NDArray[Any]) -> Floats:
        """Values of ``[n, ...]`` observations, ``[n, R]``."""
        values: Floats = self.features(obs) @ self.theta
        return values


def state_features(space: gym.spaces.Space[Any]) -> Callable[[NDArray[Any]], Floats]:
    """Features of base observations for a linear critic, ``[n, ...]`` to ``[n, F]``: one-hot states, or 1, o and products.

    All products o_i o_j up to 16 numbers, so that a quadratic value is exact; beyond that the squares alone.
    """
    if isinstance(space, gym.spaces.Discrete):
        hot = np.eye(int(space.n))
        return lambda obs: hot[np.asarray(obs, dtype=np.int64)]

    size = int(np.prod(space.shape or ()))
    i, j = np.triu_indices(size) if size <= 16 else (np.arange(size), np.arange(size))

    def features(obs: NDArray[Any]) -> Floats:
        flat = np.asarray(obs, dtype=np.float64).reshape(len(obs), -1)
        return np.concatenate([np.ones((len(flat), 1)), flat, flat[:, i] * flat[:, j]], axis=1)

    return features


def episode_returns(rollout: Rollout, space: gym.spaces.Space[Any], gamma: float) -> tuple[Floats, Floats]:
    """The follower's and the leader's return of each copy, ``[N]``; a critic of these episodes goes on where they are cut."""
    T, N = rollout.alive.shape
    base, after = (part.reshape(T * N, *part.shape[2:]) for part in (rollout.base_obs, rollout.base_next_obs))
    rewards = np.stack([rollout.r_follower.ravel(), rollout.r_leader.ravel()], axis=1)
    critic = LinearCritic(state_features(space), gamma, memory=0.0)
    critic.update(base, after, rewards, rollout.alive.ravel(), rollout.terminated.ravel())
    V_next = critic(after).reshape(T, N, 2)
    follower, leader = (
        start_values(reward, V_next[..., i], rollout, gamma)
        for i, reward in enumerate((rollout.r_follower, rollout.r_leader))
    )
    return follower, leader


class RolloutGradient(LeaderGradient):
    """The estimator of :class:`Rollouts`; it keeps a critic for the best response and one for the penalised follower.

    Args:
        worlds: the environment.
        rollouts: how many episodes, how long, which critics.
        rng: drawn from once a call, for the episodes' seed.
    """

    def __init__(self, worlds: Worlds, rollouts: Rollouts, rng: np.random.Generator) -> None:
        self.worlds, self.rng = worlds, rng
        self.venv = worlds.make(rollouts.n_envs)
        self.horizon = worlds.horizon(rollouts.tail)
        self.planned_steps = 2 * rollouts.n_envs * self.horizon
        exact = isinstance(worlds.base_space, gym.spaces.Discrete)
        suits = 1.0 if worlds.draws_once else 0.0 if exact else 0.95
        self.gae_lambda = suits if rollouts.gae_lambda is None else rollouts.gae_lambda
        features = state_features(worlds.base_space)
        self.critics = [LinearCritic(features, worlds.gamma, rollouts.critic_memory) for _ in range(2)]

    def __call__(self, x: Tensor, hat: SB3Follower, pi_y: SB3Follower, lam: float) -> GradientEstimate:
        played = self.episodes(x, hat, pi_y)
        model = self.worlds.leader_model(x.detach().numpy())
        paid = [self._paid(rollout, follower) for rollout, follower in zip(played, (hat, pi_y), strict=True)]
        follower_hat, _, returns_hat = self._surrogates(model, played[0], paid[0], self.critics[0])
        follower_y, leader_y, returns_y = self._surrogates(model, played[1], paid[1], self.critics[1])
        (ascent,) = torch.autograd.grad(leader_y + lam * (follower_y - follower_hat), [model.get_parameter("x")])
        gap, gain = (returns_hat - returns_y).T  # the gain with its sign turned
        estimate = PenaltyEstimate(*mean_and_error(gap), *mean_and_error(gap - gain / lam))
        return GradientEstimate(ascent, estimate, played[0].steps + played[1].steps)

    def episodes(self, x: Tensor, hat: SB3Follower, pi_y: SB3Follower) -> tuple[Rollout, Rollout]:
        """Fresh episodes at x of both followers, from the same random numbers."""
        set_leader(self.venv, x.detach().numpy())
        seed, played = int(self.rng.integers(2**31)), []
        for follower in (hat, pi_y):
            with follower.generators.active():  # once, and not at every step
                played.append(collect(self.venv, self._act(follower, seed), self.horizon, seed))
        return played[0], played[1]

    def _act(self, follower: SB3Follower, seed: int) -> Act:
        """What plays a follower's episodes."""
        return follower.player(self.venv)

    def _paid(self, rollout: Rollout, follower: SB3Follower) -> Floats:
        """What each step counts in the follower's return, ``[T, N]``."""
        return rollout.r_follower

    def _surrogates(
        self, model: torch.nn.Module, rollout: Rollout, paid: Floats, critic: LinearCritic
    ) -> tuple[Tensor, Tensor, Floats]:
        """Surrogates of the follower's and the leader's return, and both returns of each copy, ``[N, 2]``."""
        T, N = rollout.alive.shape
        base, after = (part.reshape(T * N, *part.shape[2:]) for part in (rollout.base_obs, rollout.base_next_obs))
        rewards = np.stack([paid.ravel(), rollout.r_leader.ravel()], axis=1)
        steps = (base, after, rewards, rollout.alive.ravel(), rollout.terminated.ravel())
        fitted_before = critic.A is not None
        if not fitted_before:
            critic.update(*steps)
        V, V_next = (critic(obs).reshape(T, N, 2) for obs in (base, after))
        if fitted_before:
            critic.update(*steps)
        A_f, A_l = (
            advantages(reward, V[..., i], V_next[..., i], rollout, self.worlds.gamma, self.gae_lambda)
            for i, reward in enumerate((paid, rollout.r_leader))
        )
        follower, leader = surrogate(model, rollout, (base, after), discounts(rollout, self.worlds.gamma), (A_f, A_l))
        returns = [
            start_values(reward, V_next[..., i], rollout, self.worlds.gamma)
            for i, reward in enumerate((paid, rollout.r_leader))
        ]
        return follower, leader, np.stack(returns, axis=1)

    def state(self) -> list[tuple[Tensor, Tensor] | None]:
        """The critics' statistics."""
        return [
            None if c.A is None or c.b is None else (torch.from_numpy(c.A), torch.from_numpy(c.b)) for c in self.critics
        ]

    def restore(self, state: list[tuple[Tensor, Tensor] | None]) -> None:
        """Take back what :meth:`state` gave."""
        for critic, held in zip(self.critics, state, strict=True):
            if held is not None:
                critic.A, critic.b = held[0].numpy(), held[1].numpy()
                critic.solve()
