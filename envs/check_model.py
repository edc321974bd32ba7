"""Checks of the leader model: it returns the rewards of the steps, and its gradients agree with central differences.

For weights u, and a direction v of x, the derivative of ``f(x) = sum_i u_i r_i(x)`` along v is compared with

    ( 8 [f(x + hv) - f(x - hv)] - [f(x + 2hv) - f(x - 2hv)] ) / 12h,

whose error is of order h^4; the same for log p.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from .check_play import RTOL, Floats, Played, World, apart, batch
from .mdp.checks import require

AXES = 8
"""Number of coordinates of x along which gradients are compared; as many random directions are added."""

GRADIENT_RTOL = 1e-5
"""Tolerance between a derivative and its central difference, as a share of the largest derivative."""

NAMES = ("r_follower", "r_leader", "log_p")


class Model:
    """A leader model with a batch of steps as its input.

    Args:
        world: the environment; the model starts at its current x.
        steps: the steps, taken under any x.
    """

    def __init__(self, world: World, steps: list[Played]) -> None:
        self.steps, self.given, x = steps, batch(steps), world.x
        self.module = world.get("leader_model")()
        module = self.module
        found = dict(module.named_parameters()).get("x") if isinstance(module, torch.nn.Module) else None
        require(found is not None, "leader_model", "a torch module with a Parameter x", repr(module))
        assert found is not None
        self.x: Tensor = found
        require(found.dtype == torch.float64, "leader_model", "a Parameter x in float64", found.dtype)
        held = found.numel() == x.size and np.allclose(found.detach().numpy().ravel(), x, rtol=0.0, atol=1e-9)
        require(held, "leader_model", f"its Parameter x at the leader's x, {x}", found.detach().numpy())

    def __call__(self, draw: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(r_follower, r_leader, log_p)`` of the steps; ``draw``, if given, replaces their draws."""
        obs, action, drawn, after = self.given
        paid, n = (len(self.steps), *self.steps[0].reward.shape), len(self.steps)
        form = f"(r_follower, r_leader, log_p) of shapes {paid}, ({n},) and ({n},) for a batch of {n} steps"
        try:
            answer = self.module(obs, action, drawn if draw is None else draw, after)
        except Exception as error:  # whatever a module of a user's may raise
            raise ValueError(f"leader_model: expected {form}, got {type(error).__name__}: {error}") from error
        three = isinstance(answer, tuple) and len(answer) == 3 and all(isinstance(a, Tensor) for a in answer)
        require(three, "leader_model", form, None if three else repr(answer))
        shapes = tuple(tuple(a.shape) for a in answer)
        require(shapes == (paid, (n,), (n,)), "leader_model", form, f"shapes {shapes}")
        return answer  # type: ignore[no-any-return]

    def at(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the model's output at another x, without a graph."""
        own = self.x.detach().clone()
        with torch.no_grad():
            try:
                self.x.copy_(x.reshape(own.shape))
                return tuple(a.clone() for a in self())  # type: ignore[return-value]
            finally:
                self.x.copy_(own)

    def slope(self, value: Tensor) -> Tensor:
        """Return the gradient of a scalar in x, ``[dim]``; 0 if the scalar does not depend on x."""
        if not value.requires_grad:
            return torch.zeros(self.x.numel(), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(value, [self.x], allow_unused=True, retain_graph=True)
        return torch.zeros(self.x.numel(), dtype=torch.float64) if gradient is None else gradient.reshape(-1)


def check_rewards(model: Model, before: Floats, expected: str) -> None:
    """Check that the model returns the rewards that the steps paid.

    Args:
        model: the model, at the x under which its steps were taken.
        before: the x that was set earlier; an environment that ignores x, or uses it too late, pays the rewards at this x.
        expected: the error message for such an environment.
    """
    r_follower, r_leader, log_p = (part.detach().numpy() for part in model())
    stale = model.at(torch.from_numpy(before))
    for k, (whose, modelled, name) in enumerate(
        (("follower", r_follower, "reward"), ("leader", r_leader, "leader_reward"))
    ):
        paid = np.array([getattr(step, name) for step in model.steps])
        distance = apart(modelled, paid)
        i = np.unravel_index(int(distance.argmax()), distance.shape)
        if distance[i] > RTOL:
            late = bool(apart(stale[k].numpy(), paid).max() <= RTOL)
            require(not late, "set_leader", expected, f"the {whose}'s rewards at x = {before}, which was set earlier")
        same = f"the {whose}'s reward in a step, {paid[i]:g} (step and model must agree)"
        require(bool(distance[i] <= RTOL), "leader_model", same, f"{modelled[i]:g}")
    require(bool(np.isfinite(log_p).all()), "leader_model", "a finite log_p of what was drawn", log_p)


def check_own_parameter(model: Model, world: World, x: Floats) -> None:
    """Check that the model reads x from its own Parameter only."""
    world.set_leader(x)
    elsewhere = Model(world, model.steps)
    for name, moved, made in zip(NAMES, model.at(torch.from_numpy(x)), elsewhere(), strict=True):
        near = bool(torch.isclose(moved, made.detach(), rtol=1e-6, atol=1e-8, equal_nan=True).all())
        expected = f"{name} to be a function of its own Parameter x (use self.x of the module alone)"
        require(
            near,
            "leader_model",
            expected,
            f"different values if the Parameter is set to {x} than if set_leader is called with it",
        )


def check_gradients(model: Model, rng: Generator, width: Floats) -> None:
    """Check that the model's gradients agree with central differences.

    Args:
        model: the model, at a point inside X.
        rng: random generator for weights and directions.
        width: width of X along each coordinate, ``[dim]``.
    """
    x = model.x.detach().reshape(-1).clone()
    scale = torch.from_numpy(np.clip(width, 1e-3, 1.0))
    axes = rng.choice(x.numel(), min(AXES, x.numel()), replace=False)
    directions = [torch.eye(x.numel(), dtype=torch.float64)[i] * scale[i] for i in axes]
    directions += [torch.from_numpy(rng.standard_normal(x.numel())) * scale / x.numel() ** 0.5 for _ in axes]
    answer, h = model(), 1e-3
    weights = [torch.from_numpy(rng.uniform(0.5, 1.5, part.shape)) for part in answer]

    def totals(at: Tensor) -> list[float]:
        return [float((w * part).sum()) for w, part in zip(weights, model.at(at), strict=True)]

    slopes = [model.slope((w * part).sum()) for w, part in zip(weights, answer, strict=True)]
    for name, slope in zip(NAMES, slopes, strict=True):
        finite = bool(torch.isfinite(slope).all())
        require(finite, "leader_model", f"a finite gradient of {name} in x", slope.numpy())
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in NAMES}
    for v in directions:
        near, far = (
            [(a - b) for a, b in zip(totals(x + k * h * v), totals(x - k * h * v), strict=True)] for k in (1.0, 2.0)
        )
        own = totals(x)
        for name, slope, one, two, value in zip(NAMES, slopes, near, far, own, strict=True):
            found[name].append((float(slope @ v), (8.0 * one - two) / (12.0 * h), value))
    for name, pairs in found.items():
        largest = max(max(abs(a), abs(b)) for a, b, _ in pairs)
        noise = 1e-12 * max(abs(value) for *_, value in pairs) / h
        autograd, difference, _ = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
        close = abs(autograd - difference) <= GRADIENT_RTOL * largest + noise + 1e-300
        way_out = "(keep x in the graph: no detach, no numpy)"
        expected = f"a gradient of {name} equal to the central difference, {difference:.6g} {way_out}"
        require(bool(np.isnan(difference)) or close, "leader_model", expected, f"{autograd:.6g} along a direction of x")


def check_dependence(models: list[Model]) -> bool:
    """Check that the model depends on x; return whether log_p has no gradient in x at any step."""
    attached = [part for model in models for part in model() if part.requires_grad]
    require(len(attached) > 0, "leader_model", "outputs that are differentiable in x", "three that are not")
    return not any(bool(model.slope(model()[2].square().sum() + model()[2].sum()).any()) for model in models)
