r"""The leader's return as a reward in another world: linearised in the occupancy at the policy in hand.

A follower that is to ascend ``J_L(pi) / lam + V(pi)`` may be paid ``r + r_l / lam`` where both returns are of one world. A
designer lives under transitions of its own, and a sum of rewards is no objective of either world. With ``d_L, A_L`` the leader's
discounted visitation and advantage of pi, ``d`` the follower's visitation in its own world,

    r_L(s,a) = d_L(s) / d(s) * A_L(s,a),        sum_a pi(a|s) A_L(s,a) = 0

is paid beside its own reward. At pi the values of r_L are 0 in every state, so its Q is r_L itself, and by the policy gradient
theorem in either world

    d/dpi(a|s) E_pi[ sum_t gamma^t r_L(s_t,a_t) ]  =  d(s) r_L(s,a)  =  d_L(s) A_L(s,a)  =  dJ_L/dpi(a|s)

up to a constant in each row, which no direction of the simplex sees: exact at pi, and at pi alone. So it is for short on-policy
steps; a method that solves for the reward (Q-learning) solves another problem. A state weight other than d, such as the
undiscounted one of SB3's on-policy algorithms, leaves the stationary points where they are, for it multiplies the whole row.
"""

from __future__ import annotations

from torch import Tensor

from ...envs.mdp import TabularMDP, ZeroSumGame, action_value, player_mdp, policy_value, visitation

LARGEST_RATIO = 20.0
"""Bound on d_L / d: a state that the follower hardly meets is not worth any price."""


def advantage(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """A(s,a) = Q(s,a) - V(s) of pi at tau = 0, ``[S, A]``."""
    V = policy_value(mdp, pi, 0.0)
    return action_value(mdp, V) - V.unsqueeze(-1)


def pair_visitation(game: ZeroSumGame, pi1: Tensor, pi2: Tensor) -> Tensor:
    """Discounted visitation of a pair of policies from rho, ``[S]``."""
    return visitation(player_mdp(game, 1, pi2, 0.0), pi1)


def leader_advantages(game: ZeroSumGame, pi1: Tensor, pi2: Tensor) -> tuple[Tensor, Tensor]:
    """Each player's advantage in the leader's return, ``[S, A1]`` and ``[S, A2]``, the other's policy held.

    Args:
        game: the leader's world and reward, ``problem.leader_game(x)``.
        pi1: player 1's policy, ``[S, A1]``.
        pi2: player 2's policy, ``[S, A2]``.
    """
    for_2 = player_mdp(game, 2, pi1, 0.0)  # it pays -r: the leader's reward has one sign for both
    return advantage(player_mdp(game, 1, pi2, 0.0), pi1), -advantage(for_2, pi2)


def linearised_reward(leader_advantage: Tensor, pi: Tensor, d_leader: Tensor, d: Tensor) -> Tensor:
    """r_L, ``[S, A]``, its mean under pi taken off in each state: what an estimated advantage has left of it.

    Args:
        leader_advantage: A_L, ``[S, A]``.
        pi: the policy at which the return is linearised, ``[S, A]``.
        d_leader: d_L, ``[S]``.
        d: the follower's visitation, ``[S]``.
    """
    ratio = (d_leader / d.clamp_min(1e-12)).clamp_max(LARGEST_RATIO)
    centred = leader_advantage - (pi * leader_advantage).sum(-1, keepdim=True)
    return ratio.unsqueeze(-1) * centred
