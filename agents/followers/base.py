"""What leaders ask of followers: of one that is trained, and of an oracle that answers exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp import TabularMDP, action_value, policy_value, soft_maximum


class Follower(Protocol):
    """A policy that is trained in parallel environments of its own, whose reward and x the leader sets."""

    @property
    def num_timesteps(self) -> int:
        """Environment steps spent by training."""
        ...

    def train(self, steps: int, planned_total: int) -> int:
        """Train for at least ``steps`` environment steps of about ``planned_total`` in all; return the steps really spent."""
        ...

    def act(self, obs: Any) -> NDArray[Any]:
        """Actions of the policy at observations ``[n, ...]``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, as tensors and numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        ...


@dataclass(frozen=True, eq=False)
class OracleAnswer:
    """An oracle's last iterate.

    Attributes:
        pi: the policy that stands for the best response, ``[..., S, A]``.
        V: its values, ``[..., S]``; with pi, the next warm start.
        residual: ``max |T V - V|``; the best response is worth at most ``residual / (1 - gamma)`` more in any state.
        iterations: linear solves spent.
    """

    pi: Tensor
    V: Tensor
    residual: float
    iterations: int


class Oracle(Protocol):
    """Answers an MDP with a policy near its soft optimum."""

    def solve(self, mdp: TabularMDP, tau: float, warm: OracleAnswer | None = None) -> OracleAnswer:
        """The answer to ``mdp`` at temperature ``tau``, started from an earlier answer if there is one."""
        ...


def uniform_policy(mdp: TabularMDP) -> Tensor:
    """The uniform policy over the actions that exist, ``[..., S, A]``."""
    allowed = torch.ones((*mdp.batch_shape, *mdp.r.shape[-2:]), dtype=mdp.r.dtype)
    allowed = allowed if mdp.mask is None else allowed * mdp.mask
    return allowed / allowed.sum(-1, keepdim=True)


def softmax_policy(mdp: TabularMDP, logits: Tensor) -> Tensor:
    """softmax of the logits over the actions that exist, ``[..., S, A]``."""
    return torch.softmax(logits if mdp.mask is None else logits.masked_fill(~mdp.mask, -torch.inf), -1)


def evaluated(mdp: TabularMDP, pi: Tensor, tau: float) -> tuple[Tensor, Tensor, float]:
    """V and Q of pi, and the soft-optimality residual ``max |T V - V|`` of V."""
    V = policy_value(mdp, pi, tau)
    Q = action_value(mdp, V)
    return V, Q, float((soft_maximum(mdp, Q, tau) - V).abs().max())
