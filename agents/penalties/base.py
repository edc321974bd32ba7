r"""A penalty is data: which policies are learned and what each is paid, and which signed returns make up x's gradient.

    value             roles    best_response paid r_f;  penalised paid r_f + r_l/lam
                      terms    - lam follower(best_response)   + lam follower(penalised)   + leader(penalised)
    Nikaido-Isoda     roles    a best response to the others' policies, and a policy paid r_L/lam beside its own, a player
                      terms    - lam sum_i V_i(b_i, pi_-i)     + lam sum_i V_i(pi)         + leader(pi)
    Bellman           the value penalty's, weighted by the occupancy of pi_y: at tau, the penalised follower held near the
                      best response by a relative entropy

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
"""One policy a player, ``[..., S, A_i]``."""


@dataclass(frozen=True)
class Role:
    """A policy that is learned.

    Attributes:
        name: of the role.
        player: whose policy it is, counted from 0.
        own: weight of the player's own reward.
        share: weight of the leader's reward, divided by lam.
        against: the roles that hold the other players' policies, in their order.
        prior: the role that it is kept near by a relative entropy; None for none.
    """

    name: str
    player: int = 0
    own: float = 1.0
    share: float = 0.0
    against: tuple[str, ...] = ()
    prior: str | None = None


@dataclass(frozen=True)
class Term:
    """A signed return in what x ascends.

    Attributes:
        sign: +1 or -1; a player's return counts lam times.
        player: whose return, counted from 0; None for the leader's.
        policies: the roles that play, one a player.
    """

    sign: float
    player: int | None
    policies: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Penalty(ABC):
    """A penalty p(x, y) >= 0, zero where y is the lower level's answer, and its coefficient.

    Attributes:
        lam: coefficient of the penalty, positive; a number or a schedule.

    Raises:
        ValueError: lam not positive or not finite.
    """

    lam: float | Schedule = 5.0

    needs_positive_tau: ClassVar[bool] = False
    """Whether the penalty is defined for tau > 0 only."""
    several: ClassVar[bool] = False
    """Whether it is one of several players, or of one follower."""
    soft: ClassVar[bool] = False
    """Whether learned followers are regularised, and the returns of its terms too."""
    solvable: ClassVar[bool] = False
    """Whether min_y F_lam is the follower's MDP under the reward r_f + r_l/lam."""

    def __post_init__(self) -> None:
        plain_fields(self)
        as_schedule(self.lam, "lam", positive=True)

    def lam_at(self, progress_remaining: float) -> float:
        """lam at the remaining progress, 1 at the start and 0 at the end."""
        return as_schedule(self.lam, "lam", positive=True)(progress_remaining)

    def check(self, n_players: int, n_states: int | None = None) -> None:
        """Raise ``ValueError`` where the penalty is not one of so many players (and states, where they are counted)."""
        one, game = "a ValuePenalty or a BellmanPenalty over one follower", "a NikaidoIsodaPenalty over a zero-sum game"
        fits = self.several == (n_players > 1)
        require(fits, "penalty", game if n_players > 1 else one, type(self).__name__)

    def roles(self, n_players: int) -> tuple[Role, ...]:
        """The policies that are learned: by default those over one follower.

        Where the penalty is ``soft``, the penalised one is paid r_l alone and kept near the best response.
        """
        own, prior = (0.0, "best_response") if self.soft else (1.0, None)
        return Role("best_response"), Role("penalised", own=own, share=1.0, prior=prior)

    def terms(self, n_players: int, zero_sum: bool = True) -> tuple[Term, ...]:
        """What x ascends, by default over one follower. In a zero-sum game the players' own returns cancel, and are left out."""
        own, best = ("penalised",), ("best_response",)
        return Term(-1.0, 0, best), Term(1.0, 0, own), Term(1.0, None, own)

    def value(self, level: Any, model: Any, pi: Policies, best: Policies, tau: float) -> Tensor:
        """p(x, y), ``[...]``, with the best responses held, whose autograd is the penalty's gradient; see :meth:`shortfall`."""
        return self.shortfall(level, model, pi, best, tau)

    def shortfall(self, level: Any, model: Any, pi: Policies, best: Policies, tau: float) -> Tensor:
        """The players' returns in the terms, less their signs: what pi falls short of the best responses by, ``[...]``.

        Args:
            level: the lower level (see ``agents.lower_levels``).
            model: it at x, carrying x's graph.
            pi: the players' policies pi_y, carrying y's graph.
            best: a best response of each.
            tau: temperature.
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
        """The estimate of p(x, y) and, by autograd, of its gradient, ``[...]``.

        Args:
            model: the follower's world, or the players' game, carrying x's graph.
            pi: one policy a player, carrying y's graph.
            best: one best response a player; held.
            tau: temperature.
            sampler: plays.
            played: the follower's episodes in its world, where they were drawn before.
        """
