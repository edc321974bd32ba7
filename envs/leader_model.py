"""The leader's view of a step of a tabular problem or of a game, differentiable in x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .mdp import GameProblem, TabularProblem
from .mdp.checks import require


def moves_transitions(problem: TabularProblem) -> bool:
    """Whether P depends on x."""
    with torch.enable_grad():
        return bool(problem.kernel(problem.start_x().requires_grad_()).P.requires_grad)


class TabularLeaderModel(nn.Module):
    r"""Rewards and log-probability of steps of a tabular problem, as functions of x.

    .. math:: \log p_x = \log p_x(w|s,a) + \log P_x(s'|s,a,w), the second term only where P depends on x.

    Args:
        problem: the problem.
        x: where the parameter starts, ``[dim]``.
    """

    def __init__(self, problem: TabularProblem, x: Tensor) -> None:
        super().__init__()
        self.problem = problem
        self._moves_transitions = moves_transitions(problem)
        self.x = nn.Parameter(x.detach().to(torch.float64).clone())

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate a batch of steps.

        Args:
            obs: states, ``[...]``, whole numbers.
            action: the follower's actions, ``[...]``.
            draw: the leader's draws, ``info["leader_draw"]``, ``[...]``.
            next_obs: states after the step (before a reset), ``[...]``.

        Returns:
            r_follower, r_leader, log_p, each ``[...]``, float64. Where x does not enter, the gradient is zero.
        """
        s, a, w, s_next = (torch.as_tensor(part).long() for part in (obs, action, draw, next_obs))
        kernel = self.problem.kernel(self.x)
        S = kernel.P.shape[-1]
        c = None if self.problem.context_probs is None else torch.div(s, S, rounding_mode="floor")
        s, s_next = s % S, s_next % S

        def at(field: Tensor, rank: int, *index: Tensor) -> Tensor:
            actions = index[1] if field.shape[field.ndim - rank + 1] > 1 else torch.zeros_like(index[1])
            index = (index[0], actions, *index[2:])
            return field[index] if c is None or field.ndim == rank else field[(c, *index)]

        log_p = at(kernel.draw, 3, s, a, w).log()
        if self._moves_transitions:
            log_p = log_p + at(kernel.P, 4, s, a, w, s_next).log()
        attached = 0.0 * self.x.sum()
        r_follower, r_leader = at(kernel.r_follower, 3, s, a, w), at(kernel.r_leader, 3, s, a, w)
        return r_follower + attached, r_leader + attached, log_p + attached


class GameLeaderModel(nn.Module):
    """Rewards and log-probability of steps of a zero-sum game, as functions of x.

    Args:
        problem: the problem, not a stack; its leader's objective is a return.
        x: where the parameter starts, ``[dim]``.

    Raises:
        ValueError: a problem whose leader is paid no reward a step.
    """

    def __init__(self, problem: GameProblem, x: Tensor) -> None:
        super().__init__()
        self.problem = problem
        self.x = nn.Parameter(x.detach().to(torch.float64).clone())
        paid = problem.leader_game(self.x) is not None
        require(paid, "problem", "a leader whose objective is a return", type(problem).__name__)

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate a batch of steps.

        Args:
            obs: states, ``[...]``, whole numbers.
            action: the players' actions, ``[..., 2]``.
            draw: the leader's draws, ``[...]``; here it draws nothing.
            next_obs: states after the step, ``[...]``.

        Returns:
            r_follower, ``[..., 2]``, one a player, which add up to 0; r_leader and log_p, ``[...]``; all float64. log_p is 0
            where x does not move the players' transitions. Where x does not enter, the gradient is zero.
        """
        s, joint, s_next = (torch.as_tensor(part).long() for part in (obs, action, next_obs))
        a1, a2 = joint.unbind(-1)
        game, leader_game = self.problem.game(self.x), self.problem.leader_game(self.x)
        assert leader_game is not None
        attached = 0.0 * self.x.sum()
        payoff = game.r[s, a1, a2] + attached
        log_p = game.P[s, a1, a2, s_next].log() if game.P.requires_grad else torch.zeros_like(payoff)
        return torch.stack([payoff, -payoff], -1), leader_game.r[s, a1, a2] + attached, log_p + attached
