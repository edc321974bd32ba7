r"""Evaluation of a leader at the follower's *best response*.

    F_0(x) = J_L(x, pi*_{tau0}(x)),      in a zero-sum game pi* = (pi1, pi2) is the Nash equilibrium,

in contrast to ``J_L(x, pi_y)``, which at finite lam counts the penalised follower's shortfall as the leader's gain. Where the
follower is nearly indifferent, ties matter: a small tau0 breaks them evenly, ``tie`` > 0 for the leader, ``tie`` < 0 against it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..envs.mdp import BilevelProblem
from ..envs.mdp.checks import check_tau


@dataclass(frozen=True)
class Evaluation:
    """The record of a leader at one x.

    Attributes:
        leader_return: ``F_0(x)``, the leader's return at the follower's best response; in a game at the Nash equilibrium.
            Without a known model, at the best answer found.
        leader_return_at_pi_y: ``J_L(x, pi_y)`` at the method's own follower; None where it has none.
        follower_regret: ``V_f`` of the best known answer at x minus ``V_f`` of the method's best response pihat, at temperature
            tau; None where the method has no pihat. For a method without a penalty, the regret of its follower; in a game the
            Nikaido-Isoda gap of its players.
        penalty: shortfall of pi_y, ``V*(rho) - V^{pi_y}(rho)`` at temperature tau, without lam; in a game the Nikaido-Isoda gap
            of the method's own policies; None where the method has no penalty.
        lam: penalty coefficient; None where the method has none.
        tau: the method's temperature, in units of reward.
        steps: environment steps spent so far, including this record's; 0 for exact methods.
        iteration: number of outer iterations so far.
        leader_return_stderr: standard error of ``leader_return`` where sampled; 0 where exact.
        follower_regret_stderr: standard error of ``follower_regret``, likewise.
        evaluation_followers: number of followers newly trained for this record; 0 where the best response is exact.
        evaluation_steps: environment steps spent on this record.
        best_answer: name of the best answer; ``"exact"`` where a model is known.
    """

    leader_return: float
    leader_return_at_pi_y: float | None
    follower_regret: float | None
    penalty: float | None
    lam: float | None
    tau: float
    steps: int
    iteration: int
    leader_return_stderr: float = 0.0
    follower_regret_stderr: float = 0.0
    evaluation_followers: int = 0
    evaluation_steps: int = 0
    best_answer: str = "exact"

    @property
    def gap(self) -> float | None:
        """Alias of ``follower_regret``; in a game with a penalty, of ``penalty``."""
        return self.penalty if self.follower_regret is None else self.follower_regret

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the record as plain numbers."""
        return dataclasses.asdict(self)


@torch.no_grad()
def leader_return_at_best_response(
    problem: BilevelProblem, x: Tensor, tau0: float | None = None, tie: float = 0.0
) -> float:
    """Return F_0(x), exactly.

    Args:
        problem: the bilevel problem.
        x: a point of X, ``[dim]``.
        tau0: temperature of the best response; None takes the problem's own ``tau0``.
        tie: weight of the leader's reward added to the follower's, to break ties for (+) or against (-) the leader; must be 0
            in a game, where at tau0 = 0 the equilibrium is the one that the linear programs find. Default: 0.

    Raises:
        ValueError: x is outside X, tau0 is negative, or a tie is given for a game or without a leader reward.
    """
    from .lower_levels import lower_level

    x = problem.leader_set.check(x)
    tau0 = problem.tau0 if tau0 is None else check_tau(tau0, name="tau0")
    return lower_level(problem).at_best_response(x, tau0, tie)
