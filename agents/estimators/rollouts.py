r"""x's gradient from episodes only, of one follower in each role.

For any discounted return ``V = E sum_t gamma^t r_x(s_t,a_t,w_t)``, where w_t is what the environment draws under x,

    grad_x V = E sum_t gamma^t [ grad_x r_x + A_t grad_x log p_x(w_t|s_t,a_t) ]

where A_t is the return to go minus a baseline of the state (arXiv 2402.06886, Lemma 7, in sampled form). We use the generalised
advantage of a critic: at ``gae_lambda`` = 1 it is the unbiased return minus a baseline; at 0 it is the one-step TD error, which
is exact in expectation where the critic is.

Each return of the penalty's terms is estimated from fresh episodes of its policy at x, with a least-squares critic of its own,
fitted on earlier episodes (the first call fits it on its own). The critic stands for the rewards after the end of a cut episode,
but not for their gradient, so the cut shrinks the gradient by about the discount at that step.

**Soft followers** (the Bellman penalty's): each follower's return is regularised, ``r_f - tau h(pi)`` a step. The entropy has no
gradient in x while the policies are held fixed. Where x moves the draws, the return to go that multiplies ``grad_x log p_x``
includes the entropy of later steps. A learned follower does not know which step is an episode's last: all earn their entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ...envs.mdp import negative_entropy
from ...envs.mdp.checks import check_number, check_size, plain_fields, require
from ...wrappers.vec_env import info_column, leader_model, set_leader
from ..penalties import Term
from ..records import storable
from .base import Estimator, GradientEstimate, PenaltyEstimate

Floats = NDArray[np.float64]
Act = Callable[[Any], NDArray[Any]]


@storable
@dataclass(frozen=True)
class Rollouts:
    """Estimate x's gradient from fresh episodes of the followers at x, and from nothing else.

    Without ``n_envs``, observations decide. For discrete ones, followers and critics are linear and learn fast, and noise is what
    limits: 64 long episodes. For others the followers' training is what limits: 16 episodes, cut early, and more where their
    gradients disagree.

    Attributes:
        n_envs: number of episodes of each policy in a batch. None: 64, or 16 for observations that are not discrete.
        tail: discount at which an episode is cut, in (0, 1); a critic estimates the rest. None: 0.05, or 0.2 for observations
            that are not discrete without ``n_envs``.
        gae_lambda: lambda of the leader's generalised advantages, in [0, 1]. None takes 0 for discrete observations, where the
            linear critic is exact; 0.95 for others; 1 where the leader draws once an episode, which critics do not observe.
        critic_memory: weight that a critic gives to earlier batches' statistics, in [0, 1).
        batches: largest number of batches in an iteration: another one is played while two halves of the episodes agree on less
            than half of the squared gradient. None: 1, or as many as take no more steps than the followers' training for
            observations that are not discrete without ``n_envs``.

    Raises:
        ValueError: a number is out of range.
    """

    n_envs: int | None = None
    tail: float | None = None
    gae_lambda: float | None = None
    critic_memory: float = 0.8
    batches: int | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("n_envs", "batches"):
            if getattr(self, name) is not None:
                check_size(getattr(self, name), name)
        alone = "None or 1 where a batch is one episode, which has no halves"
        require(self.n_envs != 1 or self.batches in (None, 1), "batches", alone, self.batches)
        if self.tail is not None:
            check_number(self.tail, "tail", low=0.0, high=1.0, open_low=True, open_high=True)
        check_number(self.critic_memory, "critic_memory", low=0.0, high=1.0, open_high=True)
        if self.gae_lambda is not None:
            check_number(self.gae_lambda, "gae_lambda", low=0.0, high=1.0)

    def grows(self, space: gym.spaces.Space[Any]) -> bool:
        """Whether episodes are few and short by default, and more where their gradients disagree."""
        return self.n_envs is None and not isinstance(space, gym.spaces.Discrete)

    def sizes(self, space: gym.spaces.Space[Any]) -> tuple[int, float]:
        """Return the number of episodes in a batch and the discount at which they are cut, given the observations."""
        n_envs, tail = (16, 0.2) if self.grows(space) else (64, 0.05)
        return self.n_envs or n_envs, self.tail or tail


@dataclass(frozen=True, eq=False)
class Rollout:
    """The first ``T`` steps of one episode in each of ``N`` parallel environments; steps after an episode's end are masked.

    Attributes:
        obs: observations as the follower sees them, ``[T, N, ...]``; None where they were not asked for.
        base_obs: the environment's own observations, ``[T, N, ...]``: without the leader context.
        base_next_obs: observations after the step, before a reset, ``[T, N, ...]``.
        action: the follower's actions, ``[T, N, ...]``.
        draw: the leader's draws, ``[T, N, ...]``.
        r_follower: the follower's rewards, ``[T, N]``.
        r_leader: the leader's rewards, ``[T, N]``.
        alive: 1.0 while the episode runs, ``[T, N]``.
        terminated: 1.0 where the episode ended by termination, ``[T, N]``.
    """

    obs: NDArray[Any] | None
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

    def flat(self, name: str) -> NDArray[Any]:
        """Return a field with the steps in one row, ``[T * N, ...]``."""
        column: NDArray[Any] = getattr(self, name)
        return column.reshape(-1, *column.shape[2:])


def collect(venv: VecEnv, act: Act, horizon: int, seed: int, seen: bool = False) -> Rollout:
    """Reset every environment with ``seed`` (common random numbers across policies) and play ``horizon`` steps.

    Args:
        venv: the parallel environments.
        act: the policy, from observations to actions.
        horizon: number of steps.
        seed: seed of the environments.
        seen: whether to keep the follower's observations too, where they hold more than the environment's. Default: False.
    """
    venv.seed(seed)
    obs = np.asarray(venv.reset())
    alive = np.ones(venv.num_envs)
    columns: list[list[Any]] = [[] for _ in range(9)]
    for _ in range(horizon):
        action = act(obs)
        following, reward, done, infos = venv.step(action)
        base, after = (info_column(venv, infos, name, optional=True) for name in ("base_obs", "base_next_obs"))
        shown, terminated = base is not None, done.copy()
        if not shown:  # the follower sees the environment's own observation
            base, after = obs, np.array(following)
        for i in np.flatnonzero(done):
            terminated[i] = not infos[i].get("TimeLimit.truncated", False)
            if not shown:
                after[i] = infos[i]["terminal_observation"]
        draw = info_column(venv, infos, "leader_draw", optional=True)
        draw = np.zeros(venv.num_envs, dtype=np.int64) if draw is None else draw
        paid = (np.asarray(reward, dtype=np.float64), info_column(venv, infos, "leader_reward").astype(np.float64))
        step = (obs if seen else None, base, after, action, draw, *paid, alive, terminated.astype(np.float64))
        for column, value in zip(columns, step, strict=True):
            column.append(value)
        alive = alive * (1.0 - done)
        obs = np.asarray(following)
    return Rollout(np.stack(columns[0]) if seen else None, *(np.stack(column) for column in columns[1:]))


def discounts(rollout: Rollout, gamma: float) -> Floats:
    """Return gamma^t while the episode runs and 0 after it, ``[T, N]``."""
    powers: Floats = gamma ** np.arange(rollout.alive.shape[0])[:, None] * rollout.alive
    return powers


def advantages(
    reward: Floats, values: Floats, next_values: Floats, rollout: Rollout, gamma: float, gae_lambda: float
) -> Floats:
    """Return generalised advantages, ``[T, N]``; a cut episode continues with its critic's value, a terminated one with 0."""
    delta = reward + gamma * next_values * (1.0 - rollout.terminated) - values
    result = np.zeros_like(delta)
    carried = np.zeros(delta.shape[1])
    for t in range(delta.shape[0] - 1, -1, -1):
        going = rollout.alive[t + 1] if t + 1 < delta.shape[0] else 0.0
        carried = delta[t] + gamma * gae_lambda * going * carried
        result[t] = carried
    return result


def start_values(reward: Floats, next_values: Floats, rollout: Rollout, gamma: float) -> Floats:
    """Return each episode's discounted return, ``[N]``, with the critic's value for what comes after a cut."""
    weight = discounts(rollout, gamma)
    after = np.append(rollout.alive[1:], np.zeros((1, rollout.alive.shape[1])), axis=0)  # 1 where another step follows
    last = (after == 0.0) & (rollout.alive == 1.0)
    beyond = gamma * weight * last * (1.0 - rollout.terminated) * next_values
    returns: Floats = (weight * reward + beyond).sum(0)
    return returns


def surrogate(
    model: torch.nn.Module, rollout: Rollout, weight: Floats, advantage: tuple[Floats, Floats], parts: int = 1
) -> tuple[list[Tensor], list[Tensor]]:
    """Return scalars whose gradients in x are those of the follower's and the leader's return under the rollout's policy.

    Args:
        model: the environment's leader model.
        rollout: fresh episodes at x.
        weight: ``gamma^t`` while alive, ``[T, N]``.
        advantage: the follower's and the leader's advantages, each ``[T, N]``.
        parts: number of estimates of each, from as many parts of the episodes. Default: 1.
    """
    steps = (torch.as_tensor(rollout.flat(name)) for name in ("base_obs", "action", "draw", "base_next_obs"))
    r_follower, r_leader, log_p = model(*steps)
    (T, N), step = rollout.alive.shape, torch.arange(rollout.alive.size)
    w = torch.as_tensor(weight.reshape(-1) / N)
    A_follower, A_leader = (torch.as_tensor(a.reshape(-1)) for a in advantage)
    live = w > 0
    follower = w * (r_follower + A_follower * log_p)
    leader = w * (r_leader + A_leader * log_p)
    # Part k has the episodes k, k + parts, ...
    inside = [step % N % parts == k for k in range(parts)]
    pairs = [(N * T / int(part.sum()), live & part) for part in inside]
    return [u * follower[part].sum() for u, part in pairs], [u * leader[part].sum() for u, part in pairs]


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of ``[N]`` values and its standard error, infinite for a single value."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


DENSE = 128
"""Up to this many states, sums of one-hot features are products of matrices; above, transitions are counted."""


class OneHot:
    """The one-hot features of Discrete observations, a function from ``[n]`` to ``[n, states]``."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, obs: NDArray[Any]) -> Floats:
        """Return the features, ``[n, states]``."""
        index = np.asarray(obs, dtype=np.int64)
        hot = np.zeros((*index.shape, self.n))
        np.put_along_axis(hot, index[..., None], 1.0, axis=-1)
        return hot


class LinearCritic:
    """A linear critic of several rewards at once, fitted by least-squares temporal differences (LSTD).

    ``A = sum phi (phi - gamma phi')^T``, ``b = sum phi r``, ``theta = A^{-1} b``; older rollouts fade by ``memory`` per call.

    Args:
        features: function from base observations ``[n, ...]`` to ``[n, F]``.
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
        """Add steps, flattened to ``[n, ...]``, with rewards ``[n, R]``, and solve."""
        goes_on = (1.0 - terminated) * alive
        if isinstance(self.features, OneHot) and self.features.n > DENSE:
            A, b = self._counted(obs, next_obs, rewards, alive, goes_on)
        else:
            phi, phi_next = self.features(obs) * alive[:, None], self.features(next_obs)
            A = phi.T @ (phi - self.gamma * phi_next * goes_on[:, None])
            b = phi.T @ rewards
        self.A = A if self.A is None else self.memory * self.A + A
        self.b = b if self.b is None else self.memory * self.b + b
        self.solve()

    def _counted(
        self, obs: NDArray[Any], next_obs: NDArray[Any], rewards: Floats, alive: Floats, goes_on: Floats
    ) -> tuple[Floats, Floats]:
        """Return the sums A and b of one-hot features, in time linear in the steps."""
        assert isinstance(self.features, OneHot)
        n = self.features.n
        s, after = (np.asarray(o, dtype=np.int64).reshape(-1) for o in (obs, next_obs))
        moves = np.bincount(s * n + after, weights=alive * goes_on, minlength=n * n).reshape(n, n)
        A = np.asarray(-self.gamma * moves, dtype=np.float64)
        A[np.diag_indices(n)] += np.bincount(s, weights=alive**2, minlength=n)
        b: Floats = np.stack([np.bincount(s, weights=alive * paid, minlength=n) for paid in rewards.T], axis=1)
        return A, b

    def state_dict(self) -> dict[str, Any] | None:
        """Return its statistics; None before the first update."""
        return None if self.A is None or self.b is None else {"A": self.A, "b": self.b}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Load what :meth:`state_dict` returned."""
        if state is not None:
            A, b = (torch.as_tensor(state[name]).numpy() for name in ("A", "b"))
            n = self.features.n if isinstance(self.features, OneHot) else len(A)
            fits = A.shape == (n, n) and b.ndim == 2 and len(b) == n
            require(fits, "critic", f"statistics of {n} features", f"shapes {A.shape} and {b.shape}")
            self.A, self.b = A, b
            self.solve()

    def solve(self) -> None:
        """Solve for theta, given the current statistics."""
        assert self.A is not None
        assert self.b is not None
        ridge = 1e-6 * max(float(np.trace(self.A)) / len(self.A), 1e-12) * np.eye(len(self.A))
        self.theta = np.linalg.solve(self.A + ridge, self.b)

    def __call__(self, obs: NDArray[Any]) -> Floats:
        """Return the values of observations ``[n, ...]``, as ``[n, R]``."""
        if isinstance(self.features, OneHot):  # a product with one 1 picks a row
            return np.asarray(self.theta[np.asarray(obs, dtype=np.int64).reshape(-1)], dtype=np.float64)
        values: Floats = self.features(obs) @ self.theta
        return values


MOST_FEATURES = 2048
"""Maximum number of features of a linear critic, whose cost grows with its square."""


def require_linear_critic(space: gym.spaces.Space[Any]) -> None:
    """Raise ``ValueError`` if a linear critic on these observations needs more than ``MOST_FEATURES`` features."""
    shape = tuple(space.shape or ())
    n = (
        int(space.n)
        if isinstance(space, gym.spaces.Discrete)
        else state_features(space)(np.zeros((1, *shape))).shape[1]
    )
    expected = f"observations that give the leader's linear critic at most {MOST_FEATURES} features (make them smaller)"
    require(n <= MOST_FEATURES, "env", expected, f"{n} features of {space}")


def state_features(space: gym.spaces.Space[Any]) -> Callable[[NDArray[Any]], Floats]:
    """Return the features of a linear critic, a function from base observations ``[n, ...]`` to ``[n, F]``.

    Discrete observations are one-hot; others give 1, o and all products o_i o_j, so that a quadratic value is exact, or, for
    more than 16 numbers, the squares only.
    """
    if isinstance(space, gym.spaces.Discrete):
        return OneHot(int(space.n))

    size = int(np.prod(space.shape or ()))
    i, j = np.triu_indices(size) if size <= 16 else (np.arange(size), np.arange(size))

    def features(obs: NDArray[Any]) -> Floats:
        flat = np.asarray(obs, dtype=np.float64).reshape(len(obs), -1)
        return np.concatenate([np.ones((len(flat), 1)), flat, flat[:, i] * flat[:, j]], axis=1)

    return features


def critic_steps(rollout: Rollout, paid: Floats) -> tuple[NDArray[Any], NDArray[Any], Floats, Floats, Floats]:
    """Return the arguments of :meth:`LinearCritic.update`, given the follower's pay in each step, ``[T, N]``."""
    rewards = np.stack([paid.ravel(), rollout.r_leader.ravel()], axis=1)
    base, after = rollout.flat("base_obs"), rollout.flat("base_next_obs")
    return base, after, rewards, rollout.flat("alive"), rollout.flat("terminated")


def episode_returns(rollout: Rollout, space: gym.spaces.Space[Any], gamma: float) -> tuple[Floats, Floats]:
    """Return the follower's and the leader's return of each episode, ``[N]``; where one is cut, a critic adds the rest."""
    critic = LinearCritic(state_features(space), gamma, memory=0.0)
    critic.update(*critic_steps(rollout, rollout.r_follower))
    V_next = critic(rollout.flat("base_next_obs")).reshape(*rollout.alive.shape, 2)
    follower = start_values(rollout.r_follower, V_next[..., 0], rollout, gamma)
    return follower, start_values(rollout.r_leader, V_next[..., 1], rollout, gamma)


AGREED = 0.5
"""Share of the squared gradient on which two halves of the episodes must agree for no further batch to be played."""


class _Batch(NamedTuple):
    """What one batch of episodes gives.

    Attributes:
        gradients: x's gradient from each part of the episodes, ``[parts, dim]``.
        apart: by how much pihat's returns exceed pi_y's in each episode, the follower's and the leader's, ``[N, 2]``.
        steps: environment steps spent.
    """

    gradients: Tensor
    apart: Floats
    steps: int


class RolloutEstimator(Estimator):
    """The estimator that :class:`Rollouts` configures, with a critic for each role.

    Args:
        worlds: the environment.
        rollouts: number and length of the episodes, and the critics' settings.
        rng: source of the episodes' seeds.
        soft: whether followers are soft: regularised returns, actions drawn with common random numbers.
        training: the followers' training steps in an iteration.
    """

    def __init__(
        self, worlds: Any, rollouts: Rollouts, rng: np.random.Generator, soft: bool = False, training: int = 0
    ) -> None:
        self.worlds, self.rng, self.soft = worlds, rng, soft
        n_envs, tail = rollouts.sizes(worlds.base_space)
        self.venv, self.horizon = worlds.make(n_envs), worlds.horizon(tail)
        batch = 2 * n_envs * self.horizon
        exact = isinstance(worlds.base_space, gym.spaces.Discrete)
        most = max(1, training // batch) if rollouts.grows(worlds.base_space) else 1
        self.most = rollouts.batches or most
        self.planned_steps, self.certain = batch * (1 + self.most) // 2, self.most == 1
        self.parts = 2 if self.most > 1 else 1
        suits = 1.0 if worlds.draws_once else 0.0 if exact else 0.95
        self.gae_lambda = suits if rollouts.gae_lambda is None else rollouts.gae_lambda
        critic = (state_features(worlds.base_space), worlds.gamma, rollouts.critic_memory)
        self.critics = {name: LinearCritic(*critic) for name in ("best_response", "penalised")}

    def __call__(self, x: Tensor, terms: Sequence[Term], followers: Mapping[str, Any], lam: float) -> GradientEstimate:
        # Play batches of fresh episodes until their two halves agree on the gradient, in units of x.
        unit, played, agreement = self.worlds.leader_set.unit, list[_Batch](), 1.0
        while not played or (len(played) < self.most and agreement < AGREED):
            played.append(self._batch(x, terms, followers, lam))
            parts = torch.stack([batch.gradients for batch in played]).mean(0)  # [parts, dim]
            if self.parts == 2:
                # In expectation, the product of the halves is the squared length of the expected gradient.
                one, other = parts * unit
                size = float(((one + other) / 2.0).square().sum())
                agreement = max(float(one @ other) / size, 0.0) if size > 0.0 else float(not one.any())
        # The penalty p^, and its margin p^ + G/lam, where G is the leader's gain from pi_y.
        gap, lost = np.concatenate([batch.apart for batch in played]).T
        estimate = PenaltyEstimate(*mean_and_error(gap), *mean_and_error(gap - lost / lam))
        steps = sum(batch.steps for batch in played)
        return GradientEstimate(parts.mean(0), estimate, steps, agreement=agreement)

    def _batch(self, x: Tensor, terms: Sequence[Term], followers: Mapping[str, Any], lam: float) -> _Batch:
        """Play a batch of episodes of each role at x, with common random numbers, and estimate the gradient in each part."""
        set_leader(self.venv, x.detach().numpy())
        seed, played = int(self.rng.integers(2**31)), {}
        for name, follower in followers.items():
            act = follower.coupled_player(seed) if self.soft else follower.player(self.venv)
            with follower.generators.active():  # swapped once, not at every step
                played[name] = collect(self.venv, act, self.horizon, seed, seen=self.soft)
        # The signed sum of the surrogates of both returns in each role.
        model = leader_model(self.worlds.env, x.detach().numpy())
        surrogates, returns = {}, {}
        for name, rollout in played.items():
            paid = self._paid(rollout, followers[name])
            surrogates[name], returns[name] = self._surrogates(model, rollout, paid, self.critics[name])
        gradients = list[Tensor]()
        for part in range(self.parts):
            ascent: Any = 0.0
            for term in terms:
                weight = term.sign * (1.0 if term.player is None else lam)
                ascent = ascent + weight * surrogates[term.policies[0]][term.player is None][part]
            gradients += torch.autograd.grad(ascent, [model.get_parameter("x")], retain_graph=part + 1 < self.parts)
        steps = sum(rollout.steps for rollout in played.values())
        return _Batch(torch.stack(gradients), returns["best_response"] - returns["penalised"], steps)

    def _paid(self, rollout: Rollout, follower: Any) -> Floats:
        """Return each step's contribution to the follower's return, ``[T, N]``."""
        if not self.soft:
            return rollout.r_follower
        pi = torch.from_numpy(follower.probabilities(rollout.flat("obs")))
        bonus: Floats = -follower.temperature * negative_entropy(pi).numpy().reshape(rollout.alive.shape)
        return rollout.r_follower + bonus

    def _surrogates(
        self, model: torch.nn.Module, rollout: Rollout, paid: Floats, critic: LinearCritic
    ) -> tuple[tuple[list[Tensor], list[Tensor]], Floats]:
        """Return the surrogates of both players' returns by part, and both returns of each episode, ``[N, 2]``."""
        steps = critic_steps(rollout, paid)
        # The critic of earlier episodes, if any, is the baseline; then the new episodes are added to it.
        fitted_before = critic.A is not None
        if not fitted_before:
            critic.update(*steps)
        V, V_next = (critic(obs).reshape(*rollout.alive.shape, 2) for obs in steps[:2])
        if fitted_before:
            critic.update(*steps)
        gamma, kinds = self.worlds.gamma, (paid, rollout.r_leader)
        how = (rollout, gamma, self.gae_lambda)
        A_f, A_l = (advantages(reward, V[..., i], V_next[..., i], *how) for i, reward in enumerate(kinds))
        both = surrogate(model, rollout, discounts(rollout, gamma), (A_f, A_l), self.parts)
        returns = [start_values(reward, V_next[..., i], rollout, gamma) for i, reward in enumerate(kinds)]
        return both, np.stack(returns, axis=1)

    def state_dict(self) -> dict[str, Any]:
        return {name: critic.state_dict() for name, critic in self.critics.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, critic in self.critics.items():
            critic.load_state_dict(state[name])

    def close(self) -> None:
        self.venv.close()
