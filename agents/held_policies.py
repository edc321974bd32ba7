r"""How a tabular leader stores the followers' policies pi_y.

softmax: pi_y = softmax(y), without projection. direct: pi_y = y, each row projected onto the simplex. solved: for the value
penalty, min_y F_lam is itself an MDP with reward r_f + r_l/lam, and pi_y is its soft optimum, so y is not stepped. In a game each
player has its own y, stored in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..envs.mdp import TabularMDP, solve_soft
from ..envs.mdp.checks import check_number, plain_fields, require
from ..envs.mdp.simplex import project_simplex
from .exact import ExactConfig, ExactMethod, ExactState, generator
from .followers.oracles import softmax_policy
from .leader import Projection
from .lower_levels import Policies
from .monte_carlo import MonteCarlo, Sampler
from .records import storable


@dataclass(frozen=True)
class _Stepped:
    """Parameters y ``[..., S, A]`` that the leader's optimiser moves, with this learning rate; None takes x's."""

    learning_rate: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.learning_rate is not None:
            check_number(self.learning_rate, "learning_rate", low=0.0, open_low=True, open_high=True)


@storable
@dataclass(frozen=True)
class Softmax(_Stepped):
    """pi_y = softmax(y), stepped by the leader's optimiser.

    Attributes:
        learning_rate: learning rate of y; None takes x's.
    """

    def start(self, mdp: TabularMDP) -> Tensor:
        """Return y of the uniform policy."""
        return torch.zeros((*mdp.batch_shape, *mdp.r.shape[-2:]), dtype=mdp.r.dtype)

    def policy(self, y: Tensor, mdp: TabularMDP) -> Tensor:
        """Return pi_y, ``[..., S, A]``."""
        return softmax_policy(mdp, y)

    def project(self, y: Tensor, mdp: TabularMDP) -> Tensor:
        """Return y unchanged: the softmax needs no projection."""
        return y


@storable
@dataclass(frozen=True)
class Direct(_Stepped):
    """pi_y = y, with rows on the simplex, moved by projected gradient steps.

    Attributes:
        learning_rate: learning rate of y; None takes x's.
        floor: minimum probability of an available action; keeps the entropy's gradient finite.
    """

    floor: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.floor, "floor", low=0.0, high=0.01)

    def start(self, mdp: TabularMDP) -> Tensor:
        """Return the uniform policy."""
        most = f"at most 1/{mdp.n_actions}, for as many actions"
        require(self.floor * mdp.n_actions <= 1.0, "floor", most, self.floor)
        return self.project(torch.zeros((*mdp.batch_shape, *mdp.r.shape[-2:]), dtype=mdp.r.dtype), mdp)

    def policy(self, y: Tensor, mdp: TabularMDP) -> Tensor:
        """Return pi_y, which is y itself."""
        return y

    def project(self, y: Tensor, mdp: TabularMDP) -> Tensor:
        """Project each row onto the simplex."""
        return project_simplex(y, mdp.mask, self.floor)


@storable
@dataclass(frozen=True)
class Solved:
    """pi_y = argmin_y F_lam(x, .), solved at every x: the soft optimum under ``r_f + r_l / lam``. Value penalty only."""

    def solve(
        self, mdp: TabularMDP, leader_reward: Tensor, lam: float, tau: float, V: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return pi_y and its values (the next warm start)."""
        optimum = solve_soft(mdp.with_reward(mdp.r + leader_reward.detach() / lam), tau, V)
        return optimum.pi, optimum.V


@dataclass
class HeldPolicies:
    """The players' policies pi_y, with parameters y that the leader's optimiser moves.

    Attributes:
        how: :class:`Softmax` or :class:`Direct`.
        views: an MDP per player, for its sizes and action mask.
        ys: y of each player, ``[..., S, A_i]``; they require gradients.
    """

    how: Softmax | Direct = field(metadata={"kept": False})
    views: Sequence[TabularMDP] = field(metadata={"kept": False})
    ys: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.ys = tuple(self.how.start(view).requires_grad_() for view in self.views)

    def policies(self) -> tuple[Tensor, ...]:
        """Return each player's pi_y, in y's graph."""
        return tuple(self.how.policy(y, view) for y, view in zip(self.ys, self.views, strict=True))

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups, one per player."""
        rate = self.how.learning_rate
        return [{"params": [y]} if rate is None else {"params": [y], "lr": rate} for y in self.ys]

    def projections(self) -> list[Projection]:
        """Return the projection of each group."""
        return [partial(self.how.project, mdp=view) for view in self.views]

    def set_rate(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Set the learning rate of these groups, which come after x's, to the leader's, unless they have their own."""
        if self.how.learning_rate is None:
            for group in optimizer.param_groups[1:]:
                group["lr"] = rate


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldConfig(ExactConfig):
    """Options of methods that update the players' policies together with x.

    Attributes:
        follower: how pi_y is parametrised; None takes :class:`Softmax` with the lower level's learning rate.
        estimator: ``MonteCarlo(...)`` estimates gradients from episodes; None, the default, computes exact ones.
    """

    follower: Any = None
    estimator: MonteCarlo | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        exact = self.estimator is None or isinstance(self.estimator, MonteCarlo)
        require(exact, "config.estimator", "MonteCarlo(...) or None (exact gradients)", repr(self.estimator))


@dataclass
class HeldState(ExactState):
    """The state that training continues from.

    Attributes:
        held: the players' policies pi_y and their parameters y; None where pi_y is solved for every x.
        sampler: the sampler of a Monte Carlo estimator, or None.
    """

    held: HeldPolicies | None = None
    sampler: Sampler | None = None


class HeldMethod(ExactMethod):
    """A method that updates the players' policies together with x, by exact or sampled gradients."""

    levels = None
    solves = False

    def __init__(self, problem: Any, config: Any = None, env_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(problem, config, env_kwargs)
        if self.config.estimator is not None:
            self.level.require_return()

    @property
    def estimates(self) -> bool:  # type: ignore[override]
        """Whether x's gradient comes from episodes."""
        return self.config.estimator is not None

    def prepare(self, state: Any, seed: int | None) -> None:
        if not self.solves:
            state.held = HeldPolicies(self.config.follower or Softmax(self.level.rate), self.level.views)
        if self.config.estimator is not None:
            state.sampler = Sampler(self.config.estimator, generator(seed))

    def parameters(self, state: Any) -> list[dict[str, Any]]:
        return [*super().parameters(state), *(() if state.held is None else state.held.groups())]

    def projections(self, state: Any) -> list[Projection]:
        return [*super().projections(state), *(() if state.held is None else state.held.projections())]

    def policies(self, state: Any, model: Any) -> Policies:
        return state.held.policies()  # type: ignore[no-any-return]

    def sampled_steps(self, state: Any) -> int:
        return 0 if state.sampler is None else int(state.sampler.steps)
