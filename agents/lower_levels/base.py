r"""Interface of the lower level: the players who respond to x.

Each player has a policy. While the other policies are held fixed, a player with a tabular policy faces an MDP. The leader is
judged at the solution of the lower level at temperature tau.

    level           player i faces                            solution                       gap, summed over players
    one follower    M(x)                                      the soft optimum pi*_tau(x)    V*(rho) - V^pi(rho)
    two players     the game with the other's policy held     the Nash equilibrium           psi, Nikaido-Isoda (5.6)
        a regulator     no table; its policy is u_f = -F s        Riccati's F, at tau = 0        J_F(x,F*) - J_F(x,F)

For your own lower level, subclass :class:`TabularLevel` and set it as the ``lower_level`` of your problem.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...envs.mdp import SoftOptimum, TabularMDP, action_value, policy_return, solve_soft, suboptimality
from ...envs.mdp.checks import require
from ..followers.oracles import softmax_policy
from ..monte_carlo import Sampler
from ..penalties.base import Penalty
from ..sources import waves

Policies = tuple[Tensor, ...]
"""One policy per player, ``[..., S, A_i]``; for a regulator F, ``[m_f, n]``."""


class LowerLevel(ABC):
    """The followers of one problem, seen as players.

    Args:
        problem: the problem.

    Attributes:
        takes_tau: whether the players can be regularised; if not, tau is 0.
        rate: default learning rate of policies that a leader updates with x; None takes x's.
        n_players: number of players.
        zero_sum: whether their returns sum to 0.
    """

    takes_tau: ClassVar[bool] = True
    rate: ClassVar[float | None] = None
    n_players: ClassVar[int] = 1
    zero_sum: ClassVar[bool] = False

    def __init__(self, problem: Any) -> None:
        self.problem = problem

    @property
    def views(self) -> tuple[TabularMDP, ...]:
        """For each player, an MDP with its policy's sizes and action mask, which do not depend on x; empty without tables."""
        return ()

    @abstractmethod
    def model(self, x: Tensor) -> Any:
        """Return the model at x, ``[dim]``, differentiable in x; it has a method ``detach``."""

    @abstractmethod
    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        """Return J_L(x, pi), a scalar."""

    @abstractmethod
    def solve(self, model: Any, tau: float, V: Tensor | None = None) -> Any:
        """Solve at temperature tau, starting from the values V of a nearby x; the solution has ``V`` and ``residual``."""

    @abstractmethod
    def attach(self, model: Any, tau: float, solution: Any) -> Any:
        """Attach the first derivative in the model to the solution, by the implicit function theorem; a table needs tau > 0."""

    @abstractmethod
    def policies(self, solution: Any) -> Policies:
        """Return the policies of a solution."""

    @abstractmethod
    def best_responses(self, model: Any, pi: Policies, tau: float, near: Any) -> tuple[Any, ...]:
        """Return each player's best response to the others, starting from a nearby solution."""

    @abstractmethod
    def gap(self, model: Any, pi: Policies, tau: float, best: tuple[Any, ...]) -> Tensor:
        """Return the sum of what each player would gain by its best response, ``[...]``."""

    def at_best_response(self, x: Tensor, tau0: float, tie: float = 0.0) -> float:
        """Return F_0(x) = J_L at the solution at temperature tau0; for ``tie`` see ``leader_return_at_best_response``."""
        require(tie == 0.0, "tie", "0 for this lower level", tie)
        return float(self.leader_return(x, self.policies(self.solve(self.model(x), tau0))))

    def leader_reward(self, x: Tensor) -> Tensor | None:
        """Return r_l, ``[..., S, A]``, where J_L is a return in the single follower's MDP; else None."""
        return None

    def tables(self, x: Tensor) -> tuple[TabularMDP, Tensor] | None:
        """Return M(x) and r_l at x where F is a return in a single follower's dense model, else None."""
        return None

    def default_penalty(self, lam: Any) -> Penalty:
        """Return the penalty to use where a leader is given none."""
        raise ValueError(f"problem: expected one with a penalty, got a {type(self.problem).__name__}")

    @property
    def probe(self) -> Tensor:
        """Return the point of X at which :meth:`fingerprint` evaluates the problem, ``[dim]``."""
        x: Tensor = self.problem.project(torch.linspace(-1.0, 1.0, self.problem.leader_dim, dtype=torch.float64))
        return x

    @abstractmethod
    def fingerprint(self) -> list[float]:
        """Return a few numbers that differ between problems, up to rounding."""


class TabularLevel(LowerLevel):
    """A lower level whose policies are tables."""

    @property
    @abstractmethod
    def views(self) -> tuple[TabularMDP, ...]: ...

    @property
    def value_shapes(self) -> set[tuple[int, ...]]:
        """Return the shapes that a solution's values can have."""
        return {(*self.views[0].batch_shape, self.views[0].n_states), (1, self.views[0].n_states)}

    @abstractmethod
    def faced(self, model: Any, pi: Policies, tau: float) -> tuple[TabularMDP, ...]:
        """Return the MDP of each player while the others hold their policies, differentiable in the model and the policies."""

    @abstractmethod
    def values(self, solution: Any) -> tuple[Tensor, ...]:
        """Return each player's values at the solution, ``[..., S]``."""

    def value(self, model: Any, player: int, pi: Policies, tau: float) -> Tensor:
        """Return V_i(pi), ``[...]``: the player's return, differentiable in the model and in all policies."""
        return policy_return(self.faced(model, pi, tau)[player], pi[player], tau)

    @torch.no_grad()
    def best_responses(self, model: Any, pi: Policies, tau: float, near: Any) -> tuple[SoftOptimum, ...]:
        pairs = zip(self.faced(model, pi, tau), self.values(near), strict=True)
        return tuple(solve_soft(mdp, tau, V) for mdp, V in pairs)

    @torch.no_grad()
    def gap(self, model: Any, pi: Policies, tau: float, best: tuple[SoftOptimum, ...]) -> Tensor:
        players = zip(self.faced(model, pi, tau), pi, best, strict=True)
        return torch.stack([suboptimality(mdp, own, tau, optimum) for mdp, own, optimum in players]).sum(0)

    def require_return(self) -> None:
        """Raise ``ValueError`` where Monte Carlo gradients are not possible, since J_L is not a return."""
        name = type(self.problem).__name__
        raise ValueError(f"estimator: expected None, exact gradients, for the lower level of a {name}, got MonteCarlo")

    def sampled(
        self, x: Tensor, model: Any, penalty: Penalty, pi: Policies, best: Policies, tau: float, sampler: Sampler
    ) -> tuple[Tensor, Tensor]:
        """Estimate p(x, y) and J_L(x, pi) from episodes, with best responses held; scalars, unbiased for truncated returns."""
        raise NotImplementedError

    def sampled_independent(self, x: Tensor, model: Any, pi: Policies, tau: float, sampler: Sampler) -> Tensor:
        """Estimate the independent objective from episodes, a scalar: J_L(., pi) in x, plus each player's value in its policy."""
        raise NotImplementedError

    def fingerprint(self) -> list[float]:
        """Return the sizes, and checksums of each player's Q of some values, of its flags, and of the leader's reward."""
        views, x, parts = self.views, self.probe, []
        logits = [torch.cos(torch.arange(view.r.numel(), dtype=torch.float64)).view(view.r.shape) for view in views]
        pi = tuple(softmax_policy(view, y) for view, y in zip(views, logits, strict=True))
        for mdp in self.faced(self.model(x).detach(), pi, 0.0):
            V = torch.cos(torch.arange(mdp.n_states, dtype=torch.float64)).expand(*mdp.batch_shape, -1)
            parts += [action_value(mdp, V), mdp.rho, *(flag for flag in (mdp.terminal, mdp.mask) if flag is not None)]
        reward, probs = self.leader_reward(x), self.problem.context_probs
        parts += [self.leader_return(x, pi) if reward is None else reward, *([] if probs is None else [probs])]
        sizes = [float(n) for view in views for n in (view.n_states, view.n_actions, view.gamma, view.terminal_entropy)]
        return [float(len(x)), *sizes, float(self.problem.tau), *waves(parts)]
