r"""A step of an optimiser that stays in a convex set and stops only where it should.

An optimiser that rescales coordinates (Adam) and a projection that couples them (a simplex, a budget) do not get along: where
all gradients point out of the set, Adam's steps are all alike, the projection takes them back, and z stays at a point that is
not stationary. So the optimiser is given the projected gradient (arXiv 2402.06886, eq. 4.6) at the step alpha,

    G = ( z - Proj(z - alpha g) ) / alpha,

which is 0 exactly at stationary points, and equal to g where the projection does nothing. Plain gradient descent steps as before:
z - alpha G = Proj(z - alpha g).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Projection = Callable[[Tensor], Tensor]


@torch.no_grad()
def projected_gradient(z: Tensor, alpha: float, project: Projection) -> Tensor:
    """G, the shape of z, whose gradient g is at ``z.grad``.

    Raises:
        FloatingPointError: a gradient that is not finite.
    """
    assert z.grad is not None
    if not bool(torch.isfinite(z.grad).all()):
        raise FloatingPointError(
            "gradient: expected finite numbers, got NaN or infinity; look at the rewards at this x"
        )
    stepped = z - alpha * z.grad
    projected = project(stepped)
    return z.grad if torch.equal(projected, stepped) else (z - projected) / alpha


@torch.no_grad()
def projected_step(optimizer: torch.optim.Optimizer, projections: Sequence[Projection]) -> None:
    """One step of the optimiser; each of its groups holds one tensor, and ``projections`` one projection for each.

    Raises:
        FloatingPointError: a gradient that is not finite, before anything is moved.
    """
    pairs = [(group["params"][0], group["lr"], p) for group, p in zip(optimizer.param_groups, projections, strict=True)]
    for z, alpha, project in pairs:
        if z.grad is not None:
            z.grad = projected_gradient(z, alpha, project)
    optimizer.step()
    for z, _, project in pairs:
        z.copy_(project(z))
