"""Soft policy iteration as the follower: Newton's method, one linear solve a step, quadratic."""

from __future__ import annotations

from dataclasses import dataclass

from ...envs.mdp import TabularMDP, solve_soft
from ...envs.mdp.checks import check_number, check_size, plain_fields
from ..records import storable
from .base import OracleAnswer


@storable
@dataclass(frozen=True)
class SoftPolicyIteration:
    """The exact oracle.

    Attributes:
        tol: residual at which to stop, relative to ``max(1, max |V|)``.
        max_iterations: most linear solves per answer.
    """

    tol: float = 1e-11
    max_iterations: int = 200

    def __post_init__(self) -> None:
        plain_fields(self)
        check_number(self.tol, "tol", low=0.0)
        check_size(self.max_iterations, "max_iterations")

    def solve(self, mdp: TabularMDP, tau: float, warm: OracleAnswer | None = None) -> OracleAnswer:
        optimum = solve_soft(mdp, tau, None if warm is None else warm.V, self.tol, self.max_iterations)
        return OracleAnswer(optimum.pi, optimum.V, optimum.residual, optimum.iterations)
