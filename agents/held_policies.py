r"""How a tabular leader holds the follower's answer pi_y.

softmax: pi_y = softmax(y), no projection. direct: pi_y = y, each row projected on the simplex. solved: for the value penalty
min_y F_lam is itself an MDP with reward r_f + r_l/lam, and pi_y is its soft optimum: y has no step of its own. The players
of a game are held alike, a y each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..envs.mdp import TabularMDP, solve_soft
from ..envs.mdp.checks import check_number, plain_fields, require
from ..envs.mdp.simplex import project_simplex
from .leader import Projection
from .records import storable


def _check_rate(rate: float | None) -> None:
    if rate is not None:
        check_number(rate, "learning_rate", low=0.0, open_low=True, open_high=True)


@storable
@dataclass(frozen=True)
class Softmax:
    """pi_y = softmax(y), y ``[..., S, A]``, by the leader's optimiser with this step.

    Attributes:
        learning_rate: step of y; None takes the step of x.
    """

    learning_rate: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        _check_rate(self.learning_rate)

    def start(self, mdp: TabularMDP) -> Tensor:
        """y of the uniform policy."""
        return torch.zeros((*mdp.batch_shape, *mdp.r.shape[-2:]), dtype=mdp.r.dtype)

    def policy(self, y: Tensor, mdp: TabularMDP) -> Tensor:
        """pi_y, ``[..., S, A]``."""
        return torch.softmax(y if mdp.mask is None else y.masked_fill(~mdp.mask, -math.inf), -1)

    def project(self, y: Tensor, mdp: TabularMDP) -> Tensor:
        """y as it is: the softmax needs no projection."""
        return y


@storable
@dataclass(frozen=True)
class Direct:
    """pi_y = y, rows of the simplex, by projected steps.

    Attributes:
        learning_rate: step of y; None takes the step of x.
        floor: least probability of an action that exists; keeps the entropy's slope finite.
    """

    learning_rate: float | None = None
    floor: float = 1e-6

    def __post_init__(self) -> None:
        plain_fields(self)
        _check_rate(self.learning_rate)
        check_number(self.floor, "floor", low=0.0, high=0.01)

    def start(self, mdp: TabularMDP) -> Tensor:
        """The uniform policy."""
        require(
            self.floor * mdp.n_actions <= 1.0, "floor", f"at most 1/{mdp.n_actions}, for as many actions", self.floor
        )
        return self.project(torch.zeros((*mdp.batch_shape, *mdp.r.shape[-2:]), dtype=mdp.r.dtype), mdp)

    def policy(self, y: Tensor, mdp: TabularMDP) -> Tensor:
        """y itself."""
        return y

    def project(self, y: Tensor, mdp: TabularMDP) -> Tensor:
        """Each row on the simplex."""
        return project_simplex(y, mdp.mask, self.floor)


@storable
@dataclass(frozen=True)
class Solved:
    """pi_y = argmin_y F_lam(x, .), solved for every x: the soft optimum under ``r_f + r_l / lam``. Value penalty only."""

    def solve(
        self, mdp: TabularMDP, leader_reward: Tensor, lam: float, tau: float, V: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """pi_y and its values (the next warm start)."""
        optimum = solve_soft(mdp.with_reward(mdp.r + leader_reward.detach() / lam), tau, V)
        return optimum.pi, optimum.V


class HeldPolicies:
    """The players' policies pi_y, by parameters y that the leader's optimiser moves.

    Args:
        how: softmax or direct.
        views: an MDP of each player, for its sizes and mask.

    Attributes:
        ys: y of each player, ``[..., S, A_i]``; they require gradients.
    """

    def __init__(self, how: Softmax | Direct, views: Sequence[TabularMDP]) -> None:
        self.how, self.views = how, views
        self.ys = [how.start(view).requires_grad_() for view in views]

    def policies(self) -> tuple[Tensor, ...]:
        """pi_y of each player, carrying y's graph."""
        return tuple(self.how.policy(y, view) for y, view in zip(self.ys, self.views, strict=True))

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser, one a player."""
        rate = self.how.learning_rate
        return [{"params": [y]} if rate is None else {"params": [y], "lr": rate} for y in self.ys]

    def projections(self) -> list[Projection]:
        """The projection of each group."""
        return [partial(self.how.project, mdp=view) for view in self.views]

    def set_rate(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Give their groups, which follow x's, the leader's step, where they have none of their own."""
        if self.how.learning_rate is None:
            for group in optimizer.param_groups[1:]:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """What a file keeps."""
        return {"ys": [y.detach() for y in self.ys]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave; raises ``ValueError`` where it is that of other policies."""
        for y, held in zip(self.ys, state["ys"], strict=True):
            fits = held.shape == y.shape and held.dtype == y.dtype and bool(torch.isfinite(held).all())
            require(fits, "ys", f"finite numbers of shape {tuple(y.shape)}", f"{held.dtype} of {tuple(held.shape)}")
            with torch.no_grad():
                y.copy_(held)
