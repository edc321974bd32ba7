r"""Four followers over a zero-sum game: the lower variables pi1, pi2 and each player's best response to the other.

    best response of 1      trained on V(., pi2)                                stands for  pi1*
    best response of 2      trained on -V(pi1, .)                               stands for  pi2*
    own policy of 1         trained on V(., pi2*) + r_L1 / lam                  stands for  pi1
    own policy of 2         trained on -V(pi1*, .) + r_L2 / lam                 stands for  pi2

    x += alpha [ grad_x J_L(x, pi1, pi2) - lam ( grad_x V(pi1*, pi2) - grad_x V(pi1, pi2*) ) ]

The leader may live in another world than the players, so what pi1 and pi2 owe to it is its linearised return
(:mod:`.linearised`), the equivalence with a sum of rewards being lost. The players are regularised at the game's own tau. Theirs
is a soft policy gradient: each is paid -tau log pi(a|s) of the policy that it plays, beside tau h of the other's, which is the
game's. An algorithm's own entropy bonus comes on top: a small one keeps every action in play, at the price of policies
a little softer than the game's. An opponent is held as its average over iterations.

All four take short steps, for fully solved alternating answers cycle: pi1 and pi2 first, each against the other's best response
as it was, then both best responses, which so answer the policies that the leader is shown.

Only on-policy algorithms are taken: the linearised reward is right at the policy in hand, and no bootstrapped Q.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from ...envs.mdp.checks import require
from ...wrappers import set_leader
from ..followers.sb3 import SB3Follower
from ..followers.spec import Answering, FollowerSpec
from .game_worlds import Floats, GameWorlds

NAMES = ("best_response_1", "best_response_2", "player_1", "player_2")


def entropy(pi: NDArray[Any]) -> Floats:
    """h(pi) = sum pi log pi, ``[...]``."""
    h: Floats = (pi * np.log(np.maximum(pi, 1e-300))).sum(-1)
    return h


class FourFollowers:
    """One best response and one own policy a player, each an SB3 model on copies of its player's world.

    Args:
        spec: the user's algorithm, on-policy.
        worlds: the game.
        n_envs: copies a follower.
        answering: how each of the four answers.
        seeds: four, one a follower.

    Raises:
        ValueError: an off-policy algorithm, and as :class:`SB3Follower`.
    """

    def __init__(
        self, spec: FollowerSpec, worlds: GameWorlds, n_envs: int, answering: Sequence[Answering], seeds: Sequence[int]
    ) -> None:
        self.worlds = worlds
        self.simulators = [worlds.simulator(player, n_envs) for player in (1, 2, 1, 2)]
        self.followers = [
            SB3Follower(spec, worlds.for_sb3(sim), worlds.gamma, seed, worlds.linear, answer)
            for sim, seed, answer in zip(self.simulators, seeds, answering, strict=True)
        ]
        model = self.followers[0].model
        require(
            isinstance(model, OnPolicyAlgorithm),
            "follower",
            "an on-policy algorithm over a game (its linearised reward is right at the policy in hand only)",
            type(model).__name__,
        )

    def tables(self, points: Floats) -> list[Floats]:
        """Every follower's policy under each x, ``[k, S, A]``."""
        obs, S = self.worlds.every_observation(points), int(self.worlds.base_space.n)
        shape = (len(points) if self.worlds.observe_commitment else 1, S, -1)
        obs = obs if self.worlds.observe_commitment else obs[:S]
        return [_rows(follower.probabilities(obs)).reshape(shape) for follower in self.followers]

    def policies(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(pi1, pi2) and (pi1*, pi2*) at x, each ``[S, A]``."""
        best_1, best_2, own_1, own_2 = (torch.from_numpy(t[0]) for t in self.tables(x.detach().numpy()[None]))
        return (own_1, own_2), (best_1, best_2)

    def trained(self, k: int, points: Floats) -> Floats:
        """The policy that follower k plays in training, under each x, ``[k, S, A]``."""
        obs, S = self.worlds.every_observation(points), int(self.worlds.base_space.n)
        if not self.worlds.observe_commitment:
            return _rows(self.followers[k].trained_probabilities(obs[:S])).reshape(1, S, -1)
        return _rows(self.followers[k].trained_probabilities(obs)).reshape(len(points), S, -1)

    def train(self, points: Floats, rewards: Sequence[Floats | float], steps: int, planned: int, tau: float) -> int:
        """Train all four for at least ``steps`` steps each, in turns of one rollout; return the steps really spent.

        Args:
            points: x of each copy, ``[n_envs, dim]``.
            rewards: the linearised rewards over lam of pi1 and pi2, ``[S, A1]`` and ``[S, A2]``.
            steps: asked of each.
            planned: steps over which the models' own schedules run.
            tau: the players' temperature.
        """
        spent = 0
        for turn in ((2, 3), (0, 1)):
            held = self.tables(points)
            for k in turn:
                follower, other, done = self.followers[k], held[(3, 2, 1, 0)[k]], 0
                set_leader(follower.venv, points)
                paid = tau * entropy(other)[..., None] + (rewards[k - 2] if k >= 2 else 0.0)
                while done < steps:
                    own = self.trained(k, points)
                    self.simulators[k].hold(other, paid - tau * np.log(np.maximum(own, 1e-12)))
                    done += follower.train(1, planned)
                spent += done
        return spent


def _rows(probabilities: Floats) -> Floats:
    rows: Floats = probabilities / probabilities.sum(-1, keepdims=True)
    return rows
