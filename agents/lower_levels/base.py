r"""The lower level as leaders see it: players who answer x.

Each player has a policy. In a table, while the others' are held, it faces an MDP of its own, in which it ascends. The leader is
judged at the level's solution at temperature tau.

    level           player i faces                            solution                       gap, summed over players
    one follower    M(x)                                      the soft optimum pi*_tau(x)    V*(rho) - V^pi(rho)
    two players     the game with the other's policy held     the Nash equilibrium           psi, Nikaido-Isoda (5.6)
    a regulator     no table: its policy is u_f = -F s        Riccati's F, at tau = 0        J_F(x,F*) - J_F(x,F)

A level of one's own is a subclass of :class:`TabularLevel`, and a problem whose ``lower_level`` it is.
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
"""One policy a player, ``[..., S, A_i]``; a regulator's is F, ``[m_f, n]``."""


class LowerLevel(ABC):
    """The players of one problem.

    Args:
        problem: the problem.

    Attributes:
        takes_tau: whether the players can be regularised; tau is 0 where not.
        rate: the step of policies that a leader moves beside x, where its config names none; None takes x's.
        n_players: how many there are.
        zero_sum: whether their returns add up to 0.
    """

    takes_tau: ClassVar[bool] = True
    rate: ClassVar[float | None] = None
    n_players: ClassVar[int] = 1
    zero_sum: ClassVar[bool] = False

    def __init__(self, problem: Any) -> None:
        self.problem = problem

    @property
    def views(self) -> tuple[TabularMDP, ...]:
        """For each player an MDP with the sizes and the mask of its policies, which x does not change; none without tables."""
        return ()

    @abstractmethod
    def model(self, x: Tensor) -> Any:
        """The lower level at x, differentiable in x, ``[dim]``; it has ``detach``."""

    @abstractmethod
    def leader_return(self, x: Tensor, pi: Policies) -> Tensor:
        """J_L(x, pi), a scalar."""

    @abstractmethod
    def solve(self, model: Any, tau: float, V: Tensor | None = None) -> Any:
        """The solution at temperature tau, from the values V of a nearby x; it has ``V`` and ``residual``."""

    @abstractmethod
    def attach(self, model: Any, tau: float, solution: Any) -> Any:
        """The solution with its first derivative in the model (implicit function theorem); tau > 0 in a table."""

    @abstractmethod
    def policies(self, solution: Any) -> Policies:
        """The solution's policies."""

    @abstractmethod
    def best_responses(self, model: Any, pi: Policies, tau: float, near: Any) -> tuple[Any, ...]:
        """Each player's best response to the others; a nearby solution is the warm start."""

    @abstractmethod
    def gap(self, model: Any, pi: Policies, tau: float, best: tuple[Any, ...]) -> Tensor:
        """What the players would gain, added, by their best responses, ``[...]``."""

    def at_best_response(self, x: Tensor, tau0: float, tie: float = 0.0) -> float:
        """F_0(x) = J_L at the solution of temperature tau0; ``tie``: see ``leader_return_at_best_response``."""
        require(tie == 0.0, "tie", "0 over this lower level", tie)
        return float(self.leader_return(x, self.policies(self.solve(self.model(x), tau0))))

    def leader_reward(self, x: Tensor) -> Tensor | None:
        """r_l, ``[..., S, A]``, where J_L is a return in the one follower's MDP; else None."""
        return None

    def tables(self, x: Tensor) -> tuple[TabularMDP, Tensor] | None:
        """M(x) and r_l at x where F is a return in one follower's dense model, else None."""
        return None

    def default_penalty(self, lam: Any) -> Penalty:
        """The penalty where a leader is given none."""
        raise ValueError(f"problem: expected one with a penalty, got a {type(self.problem).__name__}")

    @property
    def probe(self) -> Tensor:
        """A point of X at which :meth:`fingerprint` looks, ``[dim]``."""
        x: Tensor = self.problem.project(torch.linspace(-1.0, 1.0, self.problem.leader_dim, dtype=torch.float64))
        return x

    @abstractmethod
    def fingerprint(self) -> list[float]:
        """A few numbers by which two problems can be told apart, up to rounding."""


class TabularLevel(LowerLevel):
    """Players whose policies are tables."""

    @property
    @abstractmethod
    def views(self) -> tuple[TabularMDP, ...]: ...

    @property
    def value_shapes(self) -> set[tuple[int, ...]]:
        """Shapes that values of a solution may have."""
        return {(*self.views[0].batch_shape, self.views[0].n_states), (1, self.views[0].n_states)}

    @abstractmethod
    def faced(self, model: Any, pi: Policies, tau: float) -> tuple[TabularMDP, ...]:
        """The MDP of each player while the others hold their policies, differentiable in both."""

    @abstractmethod
    def values(self, solution: Any) -> tuple[Tensor, ...]:
        """Each player's values at the solution, ``[..., S]``."""

    def value(self, model: Any, player: int, pi: Policies, tau: float) -> Tensor:
        """V_i(pi), ``[...]``: the player's return, differentiable in the model and in all policies."""
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
        """Raise ``ValueError`` where Monte Carlo gradients are asked for and J_L is no return."""
        name = type(self.problem).__name__
        raise ValueError(f"estimator: expected None, exact gradients, over the lower level of a {name}, got MonteCarlo")

    def sampled(
        self, x: Tensor, model: Any, penalty: Penalty, pi: Policies, best: Policies, tau: float, sampler: Sampler
    ) -> tuple[Tensor, Tensor]:
        """p(x, y) and J_L(x, pi) from episodes, scalars, with the best responses held; unbiased for truncated returns."""
        raise NotImplementedError

    def sampled_independent(self, x: Tensor, model: Any, pi: Policies, tau: float, sampler: Sampler) -> Tensor:
        """J_L(x, .) with pi held, plus each player's own value with x and the others held: a scalar, from episodes."""
        raise NotImplementedError

    def fingerprint(self) -> list[float]:
        """Sizes, and a number for each player's Q of some values, for its flags, and for what the leader is paid."""
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
