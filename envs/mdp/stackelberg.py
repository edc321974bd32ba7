r"""Stackelberg Markov game: the leader commits to a policy pi_x(a_l|s), and the follower responds to it.

x holds the leader's logits, ``[S, A_l]`` flattened; x = 0 is the uniform policy. The follower's MDP is the
leader-averaged one (arXiv 2402.06886, Lemma 16):

    r_x(s,a_f) = E_{a_l ~ pi_x(s)} r_f(s,a_l,a_f),      P_x(.|s,a_f) = E_{a_l ~ pi_x(s)} P(.|s,a_l,a_f)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .checks import check_distribution, check_gamma, check_number, check_seed, check_size, check_tau, keep, require
from .problem import EVALUATION_TAU, LOGIT_SCALE, LeaderSet, TabularProblem
from .tabular import TabularKernel, TabularMDP

LOGIT_BOUND = 10.0
"""X is the box [-10, 10]: the least likely of five actions keeps a probability of 2e-9, as good as none."""


@dataclass(frozen=True, eq=False)
class StackelbergProblem(TabularProblem):
    """A Stackelberg Markov game given by arrays; with a leading axis N, a stack of N games (:mod:`.stack`).

    Attributes:
        P: transition probabilities ``P(s'|s,a_l,a_f)``, ``[(N,) S, A_l, A_f, S]``.
        r_leader: the leader's reward, ``[(N,) S, A_l, A_f]``.
        r_follower: the follower's reward, ``[(N,) S, A_l, A_f]``.
        rho: start distribution, ``[(N,) S]``.
        gamma: discount factor of both players, in [0, 1).
        tau: default temperature of the follower.

    Raises:
        ValueError: shapes do not fit together, rows are not distributions, gamma lies outside [0, 1), or tau is negative.
    """

    P: Tensor
    r_leader: Tensor
    r_follower: Tensor
    rho: Tensor
    gamma: float
    tau: float = 0.0
    batched_kernel: ClassVar[bool] = True
    commitment_is_distribution: ClassVar[bool] = True

    def __post_init__(self) -> None:
        keep(self, "P", "r_leader", "r_follower", "rho")
        P = self.P
        sized = P.ndim in (4, 5) and P.shape[-4] == P.shape[-1] and min(P.shape) >= 1
        expected = "shape [S, A_l, A_f, S] or [N, S, A_l, A_f, S] with sizes >= 1"
        require(sized, "P", expected, f"shape {tuple(P.shape)}")
        stack, (S, A_l, A_f) = P.shape[:-4], P.shape[-4:-1]
        for name, shape in (("r_leader", P.shape[:-1]), ("r_follower", P.shape[:-1]), ("rho", P.shape[:-3])):
            found = getattr(self, name)
            require(found.shape == shape, name, f"shape {tuple(shape)}", f"shape {tuple(found.shape)}")
        check_distribution(self.P, "P")
        check_distribution(self.rho, "rho")
        check_gamma(self.gamma, endless=True)
        check_tau(self.tau)
        object.__setattr__(
            self, "leader_set", LeaderSet.box(stack.numel() * S * A_l, -LOGIT_BOUND, LOGIT_BOUND, LOGIT_SCALE)
        )
        if stack:
            object.__setattr__(self, "context_probs", torch.full(stack, 1.0 / stack[0], dtype=torch.float64))
        # P in the simulator's axis order [S, A_f, A_l, ...], and as S matrices [A_l, A_f * S] for one batched product.
        object.__setattr__(self, "_kernel_P", self.P.transpose(-3, -2))
        object.__setattr__(self, "_flat_P", self.P.reshape(*stack, S, A_l, A_f * S))

    @property
    def tau0(self) -> float:
        """Temperature of evaluation, always 0.002 reward units, because tau smooths the method and is not part of the game."""
        return EVALUATION_TAU * self.reward_unit

    def leader_policy(self, x: Tensor) -> Tensor:
        """Return pi_x(a_l|s), the softmax of the logits, ``[..., (N,) S, A_l]`` for x ``[..., (N *) S * A_l]``."""
        logits = torch.as_tensor(x, dtype=torch.float64).unflatten(-1, tuple(self.P.shape[:-2]))
        if logits.ndim == 2:
            return torch.softmax(logits, -1)
        # Many x at once: over short rows torch's softmax is six times faster down columns.
        return torch.softmax(logits.movedim(-1, 0).contiguous(), 0).movedim(0, -1)

    def commitment(self, x: Tensor) -> Tensor:
        """Return the leader context of each state: the leader's policy there."""
        return self.leader_policy(x)

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        pi_x = self.leader_policy(x).unsqueeze(-2)
        P_x = (pi_x @ self._flat_P).squeeze(-2).unflatten(-1, tuple(self.P.shape[-2:]))  # type: ignore[attr-defined]
        return TabularMDP(P_x, (pi_x @ self.r_follower).squeeze(-2), self.rho, self.gamma, validate=False)

    def leader_reward(self, x: Tensor) -> Tensor:
        return (self.leader_policy(x).unsqueeze(-2) @ self.r_leader).squeeze(-2)

    def kernel(self, x: Tensor) -> TabularKernel:
        """Return the kernel at x, whose draw w is the leader's action; x may be ``[n, S * A_l]``, a row per environment."""
        draw = self.leader_policy(x).unsqueeze(-2)
        r_follower, r_leader = self.r_follower.transpose(-2, -1), self.r_leader.transpose(-2, -1)
        return TabularKernel(draw, self._kernel_P, r_follower, r_leader)  # type: ignore[attr-defined]


def random_stackelberg(
    n_states: int = 100,
    n_leader_actions: int = 5,
    n_follower_actions: int = 5,
    gamma: float = 0.9,
    tau: float = 0.001,
    sparsity: float = 0.7,
    seed: int | None = 0,
    reward_unit: float | None = None,
    branching: int | None = None,
) -> StackelbergProblem:
    """Make a random game as in the paper (section 6.1).

    Rewards are U[0,1], and those below ``sparsity`` are set to 0. Transitions are U[0,1], normalised; rho is uniform.

    With ``branching`` only that many random states can follow a state and pair of actions. Without it, each row of P is nearly
    uniform over many states, and the transitions hardly matter.

    ``reward_unit`` is the unit of both players' rewards; ``tau0`` and default temperatures are multiples of it. None measures it.

    The sizes, ``sparsity`` and ``tau`` are our defaults; the published experiment may use others.

    Raises:
        ValueError: a size is below 1, gamma lies outside [0, 1), tau is negative, ``sparsity`` lies outside [0, 1], or
            ``branching`` is not between 1 and ``n_states``.
    """
    S = check_size(n_states, "n_states")
    A_l, A_f = check_size(n_leader_actions, "n_leader_actions"), check_size(n_follower_actions, "n_follower_actions")
    sparsity = check_number(sparsity, "sparsity", low=0.0, high=1.0)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    rewards = rng.uniform(size=(2, S, A_l, A_f))
    rewards[rewards < sparsity] = 0.0
    if branching is None:
        P = rng.uniform(size=(S, A_l, A_f, S))
    else:
        require(check_size(branching, "branching") <= S, "branching", f"at most n_states = {S}", branching)
        P = np.zeros((S, A_l, A_f, S))
        for row in P:  # one state at a time: what its successors are drawn by is as large as its part of P
            successors = rng.random(row.shape).argpartition(branching - 1, axis=-1)[..., :branching]
            np.put_along_axis(row, successors, 1.0 - rng.random(successors.shape), -1)
    P /= P.sum(-1, keepdims=True)
    r_leader, r_follower = torch.from_numpy(rewards)
    rho = torch.full((S,), 1.0 / S, dtype=torch.float64)
    game = StackelbergProblem(torch.from_numpy(P), r_leader, r_follower, rho, check_gamma(gamma), check_tau(tau))
    return game if reward_unit is None else game.in_units(reward_unit)
