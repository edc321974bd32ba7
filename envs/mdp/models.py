r"""Models of a follower's world: what is given, before anyone solves anything.

A parameterised MDP at one x is the tuple :math:`M_\tau(x) = (S, A, r_x, P_x, \tau h)` with start distribution rho. The
temperature tau belongs to the method, not to the model. Leading axes ``...`` are batch axes (instances, contexts).
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from .checks import as_float64, check_distribution, check_finite, check_gamma, require

Model = TypeVar("Model", bound="TabularMDP")


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A finite discounted MDP, or a batch of them.

    Attributes:
        P: transition probabilities ``P(s'|s,a)``, ``[..., S, A, S]``.
        r: rewards, ``[..., S, A]``.
        rho: start distribution, ``[..., S]``.
        gamma: discount in [0, 1).
        terminal: states that pay their reward once and then end the episode, bool ``[..., S]``; None for none.
        mask: True where an action exists, bool ``[..., S, A]``; None where all exist.
        terminal_entropy: whether the step taken in a terminal state earns its entropy.
        validate: False skips the checks of the entries (for models made from a checked one).

    Raises:
        ValueError: shapes that do not fit, rows of P or a rho that are no distribution, gamma outside [0, 1), a reward
            that is not finite, a state whose mask excludes every action.
    """

    P: Tensor
    r: Tensor
    rho: Tensor
    gamma: float
    terminal: Tensor | None = None
    mask: Tensor | None = None
    terminal_entropy: bool = False
    validate: InitVar[bool] = True
    sparse: ClassVar[bool] = False

    def __post_init__(self, validate: bool) -> None:
        if not validate:
            return
        for name in ("r", "rho"):
            object.__setattr__(self, name, as_float64(getattr(self, name), name))
        object.__setattr__(self, "gamma", check_gamma(self.gamma))
        r, rho = self.r, self.rho
        require(r.ndim >= 2 and min(r.shape) >= 1, "r", "shape [..., S, A] with sizes >= 1", f"shape {tuple(r.shape)}")
        S, A = r.shape[-2:]
        require(rho.shape[-1:] == (S,), "rho", f"shape [..., {S}], as r has", f"shape {tuple(rho.shape)}")
        check_distribution(rho, "rho")
        check_finite(r, "r")
        for name, shape in (("terminal", (S,)), ("mask", (S, A))):
            flags = getattr(self, name)
            if flags is None:
                continue
            flags = torch.as_tensor(flags)
            require(flags.dtype == torch.bool, name, "booleans", str(flags.dtype))
            require(flags.shape[-len(shape) :] == shape, name, f"shape [..., {shape}]", f"shape {tuple(flags.shape)}")
            object.__setattr__(self, name, flags)
        self._check_transitions()
        try:
            _ = self.batch_shape
        except RuntimeError as error:
            raise ValueError(
                f"P: expected batch axes that broadcast with those of the other fields ({error})"
            ) from error
        if self.mask is not None and not bool(self.mask.any(-1).all()):
            where = tuple(int(i) for i in (~self.mask.any(-1)).nonzero()[0])
            raise ValueError(f"mask: expected at least one action in every state, got none in state {where}")

    def _check_transitions(self) -> None:
        """Check P and keep it as float64."""
        S, A = self.n_states, self.n_actions
        P = as_float64(self.P, "P")
        require(P.shape[-3:] == (S, A, S), "P", f"shape [..., {S}, {A}, {S}], as r has", f"shape {tuple(P.shape)}")
        check_distribution(P, "P")
        object.__setattr__(self, "P", P)

    @property
    def n_states(self) -> int:
        """S."""
        return int(self.r.shape[-2])

    @property
    def n_actions(self) -> int:
        """A."""
        return int(self.r.shape[-1])

    @property
    def batch_shape(self) -> torch.Size:
        """The leading batch axes, broadcast over the fields."""
        flags = [f.shape[:-n] for f, n in ((self.terminal, 1), (self.mask, 2)) if f is not None]
        shape: torch.Size = torch.broadcast_shapes(self.P.shape[:-3], self.r.shape[:-2], self.rho.shape[:-1], *flags)
        return shape

    def detach(self) -> TabularMDP:
        """The same model without its graph."""
        return TabularMDP(
            self.P.detach(),
            self.r.detach(),
            self.rho.detach(),
            self.gamma,
            self.terminal,
            self.mask,
            self.terminal_entropy,
            validate=False,
        )

    def with_reward(self: Model, r: Tensor) -> Model:
        """The same dynamics under another reward, ``[..., S, A]``."""
        return replace(self, r=r, validate=False)


@dataclass(frozen=True, eq=False)
class TabularKernel:
    """What a simulator of the follower's MDP at one x draws: ``w ~ p_x(w|s,a)``, then ``s' ~ P_x(s'|s,a,w)``.

    w is the leader's own draw (its action in a Stackelberg game); a problem without one has W = 1. An axis A of size one
    means "the same for every follower action". ``draw``, ``r_follower`` and ``r_leader`` may carry a leading axis, one
    row a copy of the environment.

    Attributes:
        draw: ``p_x(w|s,a)``, ``[..., S, A or 1, W]``.
        P: ``P_x(s'|s,a,w)``, ``[..., S, A, W, S]``.
        r_follower: ``[..., S, A, W]``.
        r_leader: ``[..., S, A, W]``, undiscounted.
    """

    draw: Tensor
    P: Tensor
    r_follower: Tensor
    r_leader: Tensor
