r"""x's gradient from episodes of a zero-sum game's four followers, and the leader's linearised return, paid to two of them.

    grad_x J_L(x, pi1, pi2) - lam ( grad_x V(pi1*, pi2) - grad_x V(pi1, pi2*) ),     p^ = V(pi1*, pi2) - V(pi1, pi2*)

**From rollouts.** Episodes of (pi1*, pi2) and (pi1, pi2*) are played in the players' environment, those of (pi1, pi2) in the
leader's. The followers' policies are known in every state. So with d^ the discounted count of visits

    grad_x V(pi1, pi2) ~ sum_s d^(s) sum_{a1,a2} pi1(a1|s) pi2(a2|s) grad_x r_x(s,a1,a2)

has no noise from the actions. States beyond the last step are assumed to be visited as those before it. The leader's advantages
are means of temporal differences of a least-squares critic. Counts and sums fade, so that an iteration uses earlier episodes too.
This holds where x affects rewards only; where it moves transitions, use :class:`KnownModel`.

**The check on the best responses.** At the penalised optimum psi is worth no more to the leader than R, its gain if the players
obeyed it; to first order ``R = sum_s d_L(s) [ max_a1 A_L1 + max_a2 A_L2 ]``. With exact best responses psi >= 0. So where the
estimate lies below -R/lam, with certainty, the error of the best responses is larger than all that is at stake.

**The linearised return** is the leader's return as a reward in another environment, linearised in the occupancy at the current
policy.

A follower that ascends ``J_L(pi) / lam + V(pi)`` may be paid ``r + r_l / lam`` where both returns belong to one environment. If
the leader's environment has transitions of its own, the sum of rewards is an objective of neither. With ``d_L, A_L`` the
leader's discounted visitation and advantage of pi, and ``d`` the follower's visitation in its own environment,

    r_L(s,a) = d_L(s) / d(s) * A_L(s,a),        sum_a pi(a|s) A_L(s,a) = 0

is added to its own reward. At pi the values of r_L are 0 in every state, so its Q is r_L itself. By the policy gradient theorem
in either environment

    d/dpi(a|s) E_pi[ sum_t gamma^t r_L(s_t,a_t) ]  =  d(s) r_L(s,a)  =  d_L(s) A_L(s,a)  =  dJ_L/dpi(a|s)

up to a constant in each row, which makes no difference on the simplex. This is exact at pi only, so it suits short on-policy
steps; a method that solves for the reward (Q-learning) solves another problem. A state weight other than d, such as the
undiscounted one of SB3's on-policy algorithms, multiplies the whole row and so leaves the stationary points where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp import TabularMDP, ZeroSumGame, action_value, player_mdp, policy_value, visitation
from ...envs.mdp.checks import require
from ...envs.player import PlayerVectorEnv
from ...envs.tabular import InverseCdfSampler
from ..penalties import Term
from .base import Estimator, GradientEstimate, PenaltyEstimate
from .rollouts import Floats, LinearCritic, Rollouts, mean_and_error

Pair = tuple[Tensor, Tensor]
LARGEST_RATIO = 20.0
"""Upper bound on d_L / d, so that a state which the follower rarely visits gets no extreme reward."""


def advantage(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """Return pi's advantage A(s,a) = Q(s,a) - V(s) at tau = 0, ``[S, A]``."""
    V = policy_value(mdp, pi, 0.0)
    return action_value(mdp, V) - V.unsqueeze(-1)


def pair_visitation(game: ZeroSumGame, pi1: Tensor, pi2: Tensor) -> Tensor:
    """Return the discounted visitation of a pair of policies from rho, ``[S]``."""
    return visitation(player_mdp(game, 1, pi2, 0.0), pi1)


def leader_advantages(game: ZeroSumGame, pi1: Tensor, pi2: Tensor) -> tuple[Tensor, Tensor]:
    """Return each player's advantage in the leader's return, ``[S, A1]`` and ``[S, A2]``, the other policy held fixed.

    Args:
        game: the leader's transitions and reward, ``problem.leader_game(x)``.
        pi1: player 1's policy, ``[S, A1]``.
        pi2: player 2's policy, ``[S, A2]``.
    """
    for_2 = player_mdp(game, 2, pi1, 0.0)  # it pays -r, but the leader's reward has the same sign for both
    return advantage(player_mdp(game, 1, pi2, 0.0), pi1), -advantage(for_2, pi2)


def linearised_reward(leader_advantage: Tensor, pi: Tensor, d_leader: Tensor, d: Tensor) -> Tensor:
    """Return r_L, ``[S, A]``, centred under pi in each state, since the mean of an estimated advantage is not exactly 0.

    Args:
        leader_advantage: A_L, ``[S, A]``.
        pi: the policy at which the return is linearised, ``[S, A]``.
        d_leader: d_L, ``[S]``.
        d: the follower's visitation, ``[S]``.
    """
    ratio = (d_leader / d.clamp_min(1e-12)).clamp_max(LARGEST_RATIO)
    centred = leader_advantage - (pi * leader_advantage).sum(-1, keepdim=True)
    return ratio.unsqueeze(-1) * centred


@dataclass(frozen=True, eq=False)
class LeaderGain:
    """The quantities that make up the linearised return.

    Attributes:
        advantages: the leader's advantages of pi1 and of pi2, ``[S, A1]`` and ``[S, A2]``.
        d_leader: the leader's visitation of (pi1, pi2), ``[S]``.
        d: the players' visitations of (pi1, pi2*) and of (pi1*, pi2), each ``[S]``.
    """

    advantages: tuple[Tensor, Tensor]
    d_leader: Tensor
    d: tuple[Tensor, Tensor]

    @property
    def at_stake(self) -> float:
        """R: the leader's gain, to first order, if the players obeyed it."""
        return float(sum((self.d_leader * A.amax(-1)).sum() for A in self.advantages))


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes of a pair of policies; arrays of shape ``[T, N]``."""

    state: NDArray[np.int64]
    following: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    r_leader: Floats


def play(simulator: PlayerVectorEnv, pi1: Tensor, pi2: Tensor, horizon: int, seed: int) -> Episodes:
    """Play ``horizon`` steps of the pair in each parallel environment of player 1, at most one episode each."""
    simulator.hold(pi2.numpy())
    own, rng = InverseCdfSampler(pi1.numpy()), np.random.default_rng([seed, 1])  # a stream other than the simulator's
    state, _ = simulator.reset(seed=seed)
    columns = []
    for _ in range(horizon):
        action = own.draw(state, rng.random(len(state)))
        following, _, _, _, infos = simulator.step(action)
        after = following
        if "final_obs" in infos:
            after = np.where(infos["_final_obs"], infos["final_obs"], following).astype(np.int64)
        columns.append((state, after, action, infos["leader_draw"], infos["leader_reward"]))
        state = following
    return Episodes(*(np.stack(column) for column in zip(*columns, strict=True)))


class _Fading:
    """A running sum in which older values fade."""

    def __init__(self, memory: float) -> None:
        self.memory, self.total, self.weight = memory, np.zeros(0), 0.0

    def add(self, value: Floats) -> Floats:
        """Add a value, and return the weighted mean of all."""
        old = self.memory * self.total if len(self.total) else 0.0
        self.total, self.weight = old + value, self.memory * self.weight + 1.0
        return self.total / self.weight


class GameRolloutEstimator(Estimator):
    """The estimator for zero-sum games that uses episodes only.

    Args:
        learned: the players (see ``learned.players``); x must not move their transitions.
        rollouts: number and length of the episodes, and how fast the past fades.
        rng: source of the episodes' seed, drawn once per call.

    Raises:
        ValueError: x moves the players' or the leader's transitions.
    """

    def __init__(self, learned: Any, rollouts: Rollouts, rng: np.random.Generator) -> None:
        worlds = learned.worlds
        self.learned, self.worlds, self.rng, problem = learned, worlds, rng, worlds.problem
        x = problem.start_x().requires_grad_()
        leaders = problem.leader_game(x)
        moved = problem.game(x).P.requires_grad or (leaders is not None and leaders.P.requires_grad)
        require(not moved, "estimator", "KnownModel() where x moves the transitions of a game", rollouts)
        n_envs, tail = rollouts.sizes(worlds.base_space)
        self.horizon = worlds.horizon(tail)
        self.players, self.leaders = (worlds.simulator(1, n_envs, world) for world in (False, True))
        self.planned_steps = 3 * n_envs * self.horizon
        self.S, gamma, memory = int(worlds.base_space.n), worlds.gamma, rollouts.critic_memory
        self.discounts = gamma ** np.arange(self.horizon)[:, None]
        beyond = 1.0 / (1.0 - gamma**self.horizon)
        self.weights: Floats = self.discounts * beyond / n_envs
        hot = np.eye(self.S)
        self.critic = LinearCritic(lambda obs: hot[obs], gamma, memory)
        self.sums = {name: _Fading(memory) for name in ("against_2", "against_1", "leader", "errors_1", "errors_2")}

    def __call__(self, x: Tensor, terms: Sequence[Term], followers: Mapping[str, Any], lam: float) -> GradientEstimate:
        pi, best = self.learned.policies(followers, x)
        seed = int(self.rng.integers(2**31))
        self.players.set_leader(x.detach().numpy())
        self.leaders.set_leader(x.detach().numpy())
        against_2 = play(self.players, best[0], pi[1], self.horizon, seed)
        against_1 = play(self.players, pi[0], best[1], self.horizon, seed)
        own = play(self.leaders, pi[0], pi[1], self.horizon, seed)

        d_2, d_1 = (self._visits(name, e) for name, e in (("against_2", against_2), ("against_1", against_1)))
        d_leader = self._visits("leader", own)
        model = self.players.leader_model()
        payoff, leader_reward = self._rewards(model)
        above = _expected(payoff, best[0], pi[1])
        below = _expected(payoff, pi[0], best[1])
        surrogate = (d_leader * _expected(leader_reward, *pi)).sum() - lam * (d_2 * above - d_1 * below).sum()
        (ascent,) = torch.autograd.grad(surrogate, [model.x])

        tau = self.worlds.problem.tau
        psi = self._returns(against_2, above.detach() + tau * (_h(pi[1]) - _h(best[0])))
        psi = psi - self._returns(against_1, below.detach() + tau * (_h(best[1]) - _h(pi[0])))
        found, (mean, stderr) = LeaderGain(self._advantages(own, pi), d_leader, (d_1, d_2)), mean_and_error(psi)
        estimate = PenaltyEstimate(mean, stderr, mean + found.at_stake / lam, stderr)
        return GradientEstimate(ascent, estimate, self.planned_steps, found)

    def _visits(self, name: str, episodes: Episodes) -> Tensor:
        """Return the discounted count of visits d^, ``[S]``."""
        weights = np.broadcast_to(self.weights, episodes.state.shape)
        counts = np.bincount(episodes.state.ravel(), weights.ravel(), self.S).astype(np.float64)
        return torch.from_numpy(self.sums[name].add(counts))

    def _rewards(self, model: torch.nn.Module) -> tuple[Tensor, Tensor]:
        """Return r_x and r_L for every state and pair of actions, ``[S, A1, A2]``, from the environment's leader model."""
        A1, A2 = (int(space.n) for space in self.worlds.action_spaces)
        s, a1, a2 = torch.meshgrid(torch.arange(self.S), torch.arange(A1), torch.arange(A2), indexing="ij")
        r_follower, r_leader, _ = model(s, torch.stack([a1, a2], -1), torch.zeros_like(s), s)
        return r_follower[..., 0], r_leader

    def _returns(self, episodes: Episodes, reward: Tensor) -> Floats:
        """Return the discounted returns of a reward that depends on the state, ``[N]``."""
        returns: Floats = (self.weights * len(episodes.state[0]) * reward.numpy()[episodes.state]).sum(0)
        return returns

    def _advantages(self, episodes: Episodes, pi: Pair) -> Pair:
        """Estimate the leader's advantages: mean temporal differences at each state and action of a player."""
        s, after = episodes.state.ravel(), episodes.following.ravel()
        alive = np.ones(len(s))
        self.critic.update(s, after, episodes.r_leader.reshape(-1, 1), alive, np.zeros(len(s)))
        error = episodes.r_leader.ravel() + (self.critic.gamma * self.critic(after) - self.critic(s))[:, 0]
        answer = []
        for i, action in enumerate((episodes.first, episodes.second)):
            A = pi[i].shape[1]
            cell = s * A + action.ravel()
            sums = np.stack([np.bincount(cell, w, self.S * A) for w in (error, alive)]).astype(np.float64)
            total, count = self.sums[f"errors_{i + 1}"].add(sums)
            answer.append(torch.from_numpy((total / np.maximum(count, 1e-9)).reshape(self.S, A)))
        return answer[0], answer[1]

    def state_dict(self) -> dict[str, Any]:
        sums = {name: {"total": f.total, "weight": f.weight} for name, f in self.sums.items()}
        return {"critic": self.critic.state_dict(), "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        for name, held in state["sums"].items():
            one = self.sums[name]
            one.total, one.weight = torch.as_tensor(held["total"]).numpy(), float(held["weight"])


def _expected(r: Tensor, pi1: Tensor, pi2: Tensor) -> Tensor:
    """Return the mean of r, ``[S, A1, A2]``, under a pair of policies, ``[S]``."""
    mean: Tensor = torch.einsum("sab,sa,sb->s", r, pi1, pi2)
    return mean


def _h(pi: Tensor) -> Tensor:
    """Return the negative entropy, sum pi log pi, ``[S]``."""
    h: Tensor = torch.special.xlogy(pi, pi).sum(-1)
    return h
