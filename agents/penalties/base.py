r"""Penalties as data: the policies to learn with their rewards (roles), and the signed returns in x's gradient (terms).

    value             roles    best_response paid r_f;  penalised paid r_f + r_l/lam
                      terms    - lam follower(best_response)   + lam follower(penalised)   + leader(penalised)
        Nikaido-Isoda     roles    for each player, a best response to the others, and a policy that is also paid r_L/lam
                      terms    - lam sum_i V_i(b_i, pi_-i)     + lam sum_i V_i(pi)         + leader(pi)
        Bellman           the value penalty's, weighted by the occupancy of pi_y, at tau > 0; a relative entropy keeps the
                          penalised follower near the best response

A leader moves x along the gradient of the sum of its penalty's terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...envs.mdp import Trajectories
from ...envs.mdp.checks import plain_fields, require
from ..monte_carlo import Sampler
from ..schedules import Schedule, as_schedule

Policies = tuple[Tensor, ...]
"""One policy per player, ``[..., S, A_i]``."""


@dataclass(frozen=True)
class Role:
    """A policy to be learned, and its reward.

    Attributes:
        name: name of the role.
        player: index of the player whose policy it is, from 0.
        own: weight of the player's own reward.
        share: weight of the leader's reward; it is divided by lam.
        against: roles of the other players' policies, in order.
        prior: role that a relative entropy keeps it near; None for none.
    """

    name: str
    player: int = 0
    own: float = 1.0
    share: float = 0.0
    against: tuple[str, ...] = ()
    prior: str | None = None


@dataclass(frozen=True)
class Term:
    """A signed return in the objective of x.

    Attributes:
        sign: +1 or -1; a player's return is also multiplied by lam.
        player: index of the player whose return it is, from 0; None for the leader's.
        policies: roles of the policies that play, one per player.
    """

    sign: float
    player: int | None
    policies: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Penalty(ABC):
    """A penalty p(x, y) >= 0, zero where y solves the lower level, with its coefficient lam.

    Attributes:
        lam: coefficient of the penalty, positive; a number or a schedule over progress.

    Raises:
        ValueError: lam is not positive or not finite.
    """

    lam: float | Schedule = 5.0

    needs_positive_tau: ClassVar[bool] = False
    """Whether the penalty is defined for tau > 0 only."""
    several: ClassVar[bool] = False
    """Whether the penalty is for several players, or for one follower."""
    soft: ClassVar[bool] = False
    """Whether learned followers, and the returns of the terms, are regularised."""
    solvable: ClassVar[bool] = False
    """Whether minimising F_lam over y is an MDP with reward r_f + r_l/lam."""

    def __post_init__(self) -> None:
        plain_fields(self)
        as_schedule(self.lam, "lam", positive=True)

    def lam_at(self, progress_remaining: float) -> float:
        """Return lam at a remaining progress, which falls from 1 to 0."""
        return as_schedule(self.lam, "lam", positive=True)(progress_remaining)

    def check(self, n_players: int, n_states: int | None = None) -> None:
        """Raise ``ValueError`` where the penalty does not fit the number of players, or of states where given."""
        one, game = "a ValuePenalty or a BellmanPenalty for one follower", "a NikaidoIsodaPenalty for a zero-sum game"
        fits = self.several == (n_players > 1)
        require(fits, "penalty", game if n_players > 1 else one, type(self).__name__)

    def roles(self, n_players: int) -> tuple[Role, ...]:
        """Return the policies to be learned; by default those for one follower.

        Where the penalty is ``soft``, the penalised follower is paid r_l alone and kept near the best response.
        """
        own, prior = (0.0, "best_response") if self.soft else (1.0, None)
        return Role("best_response"), Role("penalised", own=own, share=1.0, prior=prior)

    def terms(self, n_players: int, zero_sum: bool = True) -> tuple[Term, ...]:
        """Return x's objective, by default for one follower. In a zero-sum game the terms of the players' own returns cancel."""
        own, best = ("penalised",), ("best_response",)
        return Term(-1.0, 0, best), Term(1.0, 0, own), Term(1.0, None, own)

    def value(self, level: Any, model: Any, pi: Policies, best: Policies, tau: float) -> Tensor:
        """Return p(x, y), ``[...]``; its autograd gradient is the penalty's, with best responses held (:meth:`shortfall`)."""
        return self.shortfall(level, model, pi, best, tau)

    def shortfall(self, level: Any, model: Any, pi: Policies, best: Policies, tau: float) -> Tensor:
        """Return the signed sum of the players' returns in the terms: how much pi falls short of best responses, ``[...]``.

        Args:
            level: the lower level (see ``agents.lower_levels``).
            model: its model at x, in x's graph.
            pi: the players' policies pi_y, in y's graph.
            best: a best response of each player.
            tau: temperature, in units of reward.
        """
        n = level.n_players
        own = [role.name for role in self.roles(n) if role.share]
        others = [role.name for role in self.roles(n) if not role.share]
        policies = dict(zip(own, pi, strict=True)) | {name: b.detach() for name, b in zip(others, best, strict=True)}
        returns = [
            -term.sign * level.value(model, term.player, tuple(policies[name] for name in term.policies), tau)
            for term in self.terms(n, level.zero_sum)
            if term.player is not None
        ]
        total: Tensor = sum(returns[1:], returns[0])
        return total

    @abstractmethod
    def sampled(
        self, model: Any, pi: Policies, best: Policies, tau: float, sampler: Sampler, played: Trajectories | None = None
    ) -> Tensor:
        """Return an estimate of p(x, y), ``[...]``, whose autograd gradient estimates the penalty's.

        Args:
            model: the follower's model, or the players' game, in x's graph.
            pi: one policy per player, in y's graph.
            best: one best response per player, held fixed.
            tau: temperature, in units of reward.
            sampler: plays the episodes.
            played: the follower's episodes, if already drawn. Default: None.
        """
