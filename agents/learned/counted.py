r"""A tabular model of an environment at one x, counted from transitions; it needs discrete observations.

    P^(s'|s,a) = n(s,a,s') / n(s,a),     r^ the means,     pi^ the best policy among the actions tried

An algorithm may miss the best response for lack of exploration. A planner in the counted table does not, once :func:`seek` has
tried every action that could matter (optimism for actions tried fewer than m times, as in R-max). To first order the error of a
return in the table is a sum of the errors of its rows,

    V^{pi}(P^, r^) - V^{pi}  ~  sum_{s,a} d^pi(s,a) e(s,a),       Var e(s,a) = Var( r + gamma V^pi(s') | s,a ) / n(s,a),

which gives its standard error. Where the follower is nearly indifferent, rewards perturbed by e have other best policies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import spsolve
from stable_baselines3.common.vec_env import VecEnv

from ...wrappers.segments import StepWrapper
from ...wrappers.vec_env import info_column

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LARGEST = 20_000
"""Largest number of state-action pairs for which a table is counted."""
STAGES = 20
"""Number of policies that the exploration plays, one after the other."""
DRAWN = 8
"""Number of policies that its environments play at once, in the second half of the exploration."""
FLOOR = 1e-6
"""Smallest relative standard error of a sampled return, since rewards are float32."""
RESAMPLES = 16
"""Number of tables with perturbed rewards that are solved for the error of the best policy."""


class Counts:
    """Counts of transitions at one x, by state, action and next state.

    Args:
        n_states: number of states S.
        n_actions: number of actions A.
        gamma: the discount.
    """

    def __init__(self, n_states: int, n_actions: int, gamma: float) -> None:
        self.S, self.A, self.gamma = n_states, n_actions, gamma
        self.starts, self.allowed = np.zeros(n_states), np.ones((n_states, n_actions), dtype=bool)
        self._rows: list[Floats] = []  # [n, 6]: key, count, sums of r_f, r_l, and of their squares

    def begin(self, s: Integers) -> None:
        """Count start states, ``[n]``."""
        self.starts += np.bincount(s, minlength=self.S)

    def add(
        self, s: Integers, a: Integers, after: Integers, r_f: Floats, r_l: Floats, ended: NDArray[np.bool_]
    ) -> None:
        """Count transitions, ``[n]`` each; ``ended`` is True where the episode terminated."""
        key = (s * self.A + a) * (self.S + 1) + np.where(ended, self.S, after)
        self._rows.append(np.stack([key, np.ones(len(key)), r_f, r_l, r_f**2, r_l**2], axis=1).astype(np.float64))
        if len(self._rows) >= 256:
            self._rows = [self._merged()]

    def _merged(self) -> Floats:
        rows = np.concatenate(self._rows)
        keys, which = np.unique(rows[:, 0], return_inverse=True)
        sums = [np.bincount(which, weights=column) for column in rows[:, 1:].T]
        return np.stack([keys, *sums], axis=1)

    def table(self) -> Table:
        """Return the table of all counts so far."""
        rows = self._merged()
        self._rows = [rows]
        key, (count, *sums) = rows[:, 0].astype(np.int64), rows[:, 1:].T
        pair, after = np.divmod(key, self.S + 1)
        n = np.bincount(pair, weights=count, minlength=self.S * self.A)
        N = sp.csr_matrix((count, (pair, after)), shape=(self.S * self.A, self.S + 1))
        r_f, r_l, q_f, q_l = (sp.csr_matrix((each, (pair, after)), shape=N.shape) for each in sums)
        visits = n.astype(float).reshape(self.S, self.A)
        return Table(visits, N, (r_f, r_l), (q_f, q_l), self.starts, self.allowed, self.gamma)


@dataclass(frozen=True, eq=False)
class Table:
    """A counted model. The last column of next states stands for the end of an episode.

    Attributes:
        n: visits, ``[S, A]``.
        N: visits by next state, sparse ``[S * A, S + 1]``.
        sums: sums of r_f and of r_l by next state, likewise sparse.
        squares: sums of their squares, likewise.
        starts: number of episodes that started in each state, ``[S]``.
        allowed: False where an action is known to be unavailable, ``[S, A]``.
        gamma: the discount.
    """

    n: Floats
    N: Any
    sums: tuple[Any, Any]
    squares: tuple[Any, Any]
    starts: Floats
    allowed: NDArray[np.bool_]
    gamma: float

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Whether each action was tried in each state, bool ``[S, A]``."""
        return self.n > 0.0

    @property
    def rho(self) -> Floats:
        """Return the distribution of start states, ``[S]``."""
        share: Floats = self.starts / self.starts.sum()
        return share

    def rewards(self, player: int) -> Floats:
        """Return the mean rewards of the follower (0) or the leader (1), ``[S, A]``; 0 for actions not tried."""
        total = np.asarray(self.sums[player].sum(1)).reshape(self.n.shape)
        mean: Floats = total / np.maximum(self.n, 1.0)
        return mean

    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the follower's values, whether episodes end or not."""
        r_f = self.rewards(0)[self.seen]
        return min(float(r_f.min()), 0.0) / (1.0 - self.gamma), max(float(r_f.max()), 0.0) / (1.0 - self.gamma)

    @property
    def P(self) -> Any:
        """Return transition probabilities, sparse ``[S * A, S]``; rows sum to less than 1 where episodes end."""
        return sp.diags(1.0 / np.maximum(self.n.ravel(), 1.0)) @ self.N[:, :-1]

    def value(self, pi: Floats, reward: Floats) -> Floats:
        """Return ``V^pi``, ``[S]``, of rewards ``[S, A]``; pi, ``[S, A]``, must use actions that were tried."""
        P_pi, r_pi = self._under(pi, reward)
        return np.asarray(spsolve((sp.identity(len(r_pi)) - self.gamma * P_pi).tocsc(), r_pi))

    def occupancy(self, pi: Floats) -> Floats:
        """Return discounted visits ``sum_t gamma^t P(s_t = s, a_t = a)``, ``[S, A]``."""
        P_pi, _ = self._under(pi, self.n)
        d = spsolve((sp.identity(len(self.rho)) - self.gamma * P_pi.T).tocsc(), self.rho)
        return np.asarray(d)[:, None] * self._known(pi)

    def _known(self, pi: Floats) -> Floats:
        kept = np.where(self.seen, pi, 0.0)
        total = kept.sum(1, keepdims=True)
        even = self.seen / np.maximum(self.seen.sum(1, keepdims=True), 1)
        share: Floats = np.where(total > 1e-12, kept / np.maximum(total, 1e-12), even)
        return share

    def _under(self, pi: Floats, reward: Floats) -> tuple[Any, Floats]:
        S, A = self.n.shape
        pi = self._known(pi)
        choose = sp.csr_matrix((pi.ravel(), (np.repeat(np.arange(S), A), np.arange(S * A))), shape=(S, S * A))
        return choose @ self.P, (pi * reward).sum(1)

    def best(self, reward: Floats, without: NDArray[np.bool_], worth: Any, start: Integers | None = None) -> Integers:
        """Find the best action in every state by policy iteration, ``[S]``.

        Args:
            reward: rewards, ``[S, A]``.
            without: pairs whose counts are not used, bool ``[S, A]``.
            worth: value of these pairs, a number or ``[S, A]``. Unavailable actions get the lowest value.
            start: initial policy, ``[S]``. Default: None.
        """
        S, A = self.n.shape
        low, high = self.bounds()
        without = without | ~self.allowed
        reward = np.where(without, np.where(self.allowed, worth, low - 2.0 * ((high - low) or 1.0)), reward)
        P = (sp.diags((~without).ravel().astype(float)) @ self.P).tocsr()
        pi, rows = (reward.argmax(1) if start is None else start), np.arange(S)
        for _ in range(100):
            chosen = rows * A + pi
            V = spsolve((sp.identity(S) - self.gamma * P[chosen]).tocsc(), reward.ravel()[chosen])
            Q = reward + self.gamma * (P @ V).reshape(S, A)
            better = Q.max(1) > Q[rows, pi] + 1e-10 * np.abs(Q).max()
            if not better.any():
                break
            pi = np.where(better, Q.argmax(1), pi)
        return pi

    def spread(self, V: Floats, player: int) -> Floats:
        """Return standard errors of the rows' means of ``r + gamma V(s')``, ``[S, A]``; 0 for actions not tried."""
        V, n = np.append(V, 0.0), np.maximum(self.n, 1.0).ravel()
        cross = self.sums[player] @ (self.gamma * V)
        second = np.asarray(self.squares[player].sum(1)).ravel() + 2.0 * cross + self.N @ (self.gamma * V) ** 2
        mean = (np.asarray(self.sums[player].sum(1)).ravel() + self.N @ (self.gamma * V)) / n
        variance = np.maximum(second / n - mean**2, 0.0)
        variance[variance < 1e-12 * np.maximum(mean**2, 1e-300)] = 0.0  # rounding
        # A pair that was tried once shows no variance: it gets the mean of the others.
        often = self.n.ravel() > 1.0
        pooled = float(np.average(variance[often], weights=self.n.ravel()[often])) if often.any() else 0.0
        variance = np.where(often, variance * n / np.maximum(n - 1.0, 1.0), pooled)
        return np.sqrt(variance / n).reshape(self.n.shape) * self.seen


@dataclass(frozen=True, eq=False)
class Planned:
    """The best answer in a counted table, and the leader's return at it.

    Attributes:
        pi: the best answer's action in every state, ``[S]``.
        table: the table.
        leader_return: the leader's mean return over tables with perturbed rewards.
        leader_return_stderr: its standard error, from rows, start states and the choice of pi.
        V_f: the follower's values, ``[S]``.
        V_l: the leader's values, ``[S]``.
    """

    pi: Integers
    table: Table
    leader_return: float
    leader_return_stderr: float
    V_f: Floats
    V_l: Floats

    def returns(self, pi: Floats) -> tuple[float, float]:
        """Return the follower's and the leader's return of a policy ``[S, A]`` in the table."""
        t = self.table
        return float(t.rho @ t.value(pi, t.rewards(0))), float(t.rho @ t.value(pi, t.rewards(1)))

    def regret(self, pi: Floats) -> tuple[float, float]:
        """Return the regret of a policy ``[S, A]`` against the best answer, with its standard error."""
        t = self.table
        short = float(t.rho @ self.V_f) - self.returns(pi)[0]
        apart = t.occupancy(np.eye(t.n.shape[1])[self.pi]) - t.occupancy(pi)
        return max(short, 0.0), float(np.sqrt(((apart * t.spread(self.V_f, 0)) ** 2).sum()))


def plausible(table: Table, n: int, rng: np.random.Generator) -> list[Integers]:
    """Return the best policy in a table, and ``n`` others that may be best within the counts' uncertainty.

    Rewards are perturbed within their standard errors. Actions that were never tried may have any value, and a tiny noise
    breaks exact ties at random.
    """
    r_f, never, (low, high) = table.rewards(0), ~table.seen, table.bounds()
    pi = table.best(r_f, never, low)
    e_f = table.spread(table.value(np.eye(r_f.shape[1])[pi], r_f), 0) + 1e-9 * (float(np.abs(r_f).max()) + 1e-300)
    found = [pi]
    for _ in range(n):
        worth = rng.uniform(low, high, size=r_f.shape)
        found.append(table.best(r_f + e_f * rng.standard_normal(r_f.shape), never, worth, pi))
    return found


def plan(table: Table, rng: np.random.Generator) -> Planned:
    """Find the best answer in a counted table."""
    r_f, r_l, one_hot = table.rewards(0), table.rewards(1), np.eye(table.n.shape[1])
    pi, *others = plausible(table, RESAMPLES, rng)
    V_f, V_l = table.value(one_hot[pi], r_f), table.value(one_hot[pi], r_l)
    found = [float(table.rho @ V_l), *(float(table.rho @ table.value(one_hot[other], r_l)) for other in others)]

    # The leader's return at it, within the counts' uncertainty.
    rows = float(((table.occupancy(one_hot[pi]) * table.spread(V_l, 1)) ** 2).sum())
    began = float(table.rho @ (V_l - table.rho @ V_l) ** 2) / float(table.starts.sum())
    mean = float(np.mean(found))
    stderr = float(np.sqrt(rows + began + np.var(found, ddof=1) + (FLOOR * mean) ** 2))
    return Planned(pi, table, mean, stderr, V_f, V_l)


class Counting(StepWrapper):
    """A VecEnv wrapper that counts transitions; rewards are unchanged.

    Args:
        venv: parallel environments that pay r_f.
        counts: the counts to update.
        base: maps the follower's observations to the environment's own, ``[n]``.
    """

    def __init__(self, venv: VecEnv, counts: Counts, base: Callable[[Any], NDArray[Any]]) -> None:
        super().__init__(venv)
        self.counts, self._base = counts, base

    def base(self, obs: Any) -> Integers:
        """Return the states that the followers' observations show, ``[n]``."""
        return np.asarray(self._base(obs)).astype(np.int64).reshape(-1)

    def reset(self) -> Any:
        obs = super().reset()
        self.counts.begin(self.base(obs))
        return obs

    def step_wait(self) -> Any:
        before, now = self.base(self.now), None
        obs, rewards, dones, infos = super().step_wait()
        now = self.base(obs)
        after, ended = now.copy(), np.zeros(len(now), dtype=bool)
        for i in np.flatnonzero(dones):
            after[i] = self.base(np.asarray(infos[i]["terminal_observation"])[None])[0]
            ended[i] = not infos[i].get("TimeLimit.truncated", False)
        if dones.any():
            self.counts.begin(now[dones])
        earned = np.asarray(info_column(self.venv, infos, "leader_reward"), dtype=np.float64).reshape(-1)
        paid = np.asarray(rewards, dtype=np.float64)
        self.counts.add(before, np.asarray(self.taken, dtype=np.int64).reshape(-1), after, paid, earned, ended)
        return obs, rewards, dones, infos

    def paid(self, rewards: NDArray[Any], dones: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[Any]:
        return rewards


def seek_steps(n_envs: int, steps: int) -> int:
    """Return the environment steps of :func:`seek` when asked for about ``steps``."""
    return STAGES * n_envs * max(1, -(-steps // (STAGES * n_envs)))


def seek(venv: Counting, steps: int, rng: np.random.Generator) -> int:
    """Explore for about ``steps`` steps: first the least tried actions, then policies that may be best; return the steps spent.

    In the first half of the stages an action tried fewer than m times gets the highest possible value, with m growing. In the
    second half the environments play policies drawn from those that may be best (posterior sampling), so that the remaining
    uncertainty is explored.
    """
    counts, n, masked = venv.counts, venv.num_envs, venv.has_attr("action_masks")
    length = max(1, -(-steps // (STAGES * n)))
    venv.seed(int(rng.integers(2**31)))  # copies of one environment would draw the same numbers
    obs, spent = venv.reset(), 0
    policies = rng.integers(counts.A, size=(n, counts.S))
    for stage in range(STAGES):
        for _ in range(length):
            s = venv.base(obs)
            if masked:
                counts.allowed[s] = np.stack(venv.env_method("action_masks"))
            drawn = (rng.random((n, counts.A)) * counts.allowed[s]).argmax(1)
            played = policies[np.arange(n), s]
            played = np.where(counts.allowed[s, played], played, drawn)
            obs, *_ = venv.step(drawn if stage == 0 else played)
            spent += n
        table = counts.table()
        if stage < STAGES // 2:
            low, high = table.bounds()
            rarely = (table.n < 2 ** (stage // 2)) & table.allowed
            # Among the actions tried too rarely in a state, take the rarest.
            pi = table.best(table.rewards(0), rarely, high + ((high - low) or 1.0))
            pi = np.where(rarely.any(1), np.where(table.allowed, table.n, np.inf).argmin(1), pi)
            policies = np.broadcast_to(pi, policies.shape)
        else:
            policies = np.stack(plausible(table, min(n, DRAWN) - 1, rng))[np.arange(n) % min(n, DRAWN)]
    return spent
