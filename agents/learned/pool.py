r"""A pool of responses: policies with stored episodes, which give their returns at every x.

Where x enters rewards only, the distribution of a policy's episodes does not depend on x. So its stored episodes give both of its
returns at any x, without a step:

    V_f^k(x) = E sum_t gamma^t r_f(s_t, a_t; x),        V_l^k(x) likewise.

    envelope   V^(x) = max_k V_f^k(x) <= V_f*(x)
    belief     F^(x) = min { V_l^k(x) : V^(x) - V_f^k(x) <= m stderr_k(x) }

The envelope is a lower bound of the follower's optimal value, convex in x where r_f is affine in x: each policy is a supporting
plane, as in cutting-plane methods. The belief fears every policy that is as good as the best within the noise, so that it keeps
away from thresholds. All policies play with common random numbers, and ``stderr_k`` is that of the paired difference.

In terms of the penalty method, ``p^(x, k) = V^(x) - V_f^k(x) >= 0`` is the value penalty whose best response is taken over the
pool. A gain over the pool refutes a best response; that nothing was found does not prove one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from ...envs.mdp import LeaderSet
from ...wrappers.vec_env import leader_model
from ..estimators.rollouts import Rollout, discounts
from .worlds import Worlds

AFFINE = 1e-9
"""Relative error below which returns count as affine in x, and two returns as equal."""
MANY = 3
"""Number of parameters up to which points that fill X suffice; beyond, gradients and penalised challengers help."""
CAUTION = 2.0
"""Margins by which an answer's policy must be better than others: twice those by which points are proposed."""
PROBES = 4
"""Number of random points at which that is tested."""


@dataclass(frozen=True, eq=False)
class Episodes:
    """The returns of one policy's episodes as functions of x.

    Attributes:
        follower: where affine in x, the follower's returns at x = 0 and their slopes, ``[N, 1 + dim]``; else None.
        leader: the leader's, likewise.
        steps: where not affine, base observations, actions, draws and next base observations, ``[T * N, ...]`` each.
        weights: ``gamma^t`` while the episode runs, ``[T, N]``; empty where affine.
    """

    follower: Tensor | None
    leader: Tensor | None
    steps: list[Tensor] = field(default_factory=list)
    weights: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def returns(self, x: Tensor, model: torch.nn.Module) -> tuple[Tensor, Tensor]:
        """Return both players' returns of each episode at points of X, ``[m, N]`` each, differentiable in x.

        Args:
            x: ``[m, dim]``.
            model: the environment's leader model; read only where the returns are not affine in x.
        """
        if self.follower is not None and self.leader is not None:
            f, l = (table[:, 0] + x @ table[:, 1:].T for table in (self.follower, self.leader))  # noqa: E741
            return f, l
        pairs = [priced(model, self.steps, self.weights, point) for point in x]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


def priced(model: torch.nn.Module, steps: Sequence[Tensor], weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both players' returns of each episode at x, ``[N]`` each, differentiable in x."""
    parameter = model.get_parameter("x")
    name = next(name for name, other in model.named_parameters() if other is parameter)
    moved = x.reshape(parameter.shape).to(parameter.dtype)
    r_f, r_l, _ = torch.func.functional_call(model, {name: moved}, tuple(steps))
    f, l = ((weights * r.double().reshape(weights.shape)).sum(0) for r in (r_f, r_l))  # noqa: E741
    return f, l


def episodes_of(worlds: Worlds, rollout: Rollout, rng: np.random.Generator) -> Episodes:
    """Return a policy's episodes as functions of x, given its rollout.

    Whether the returns are affine in x is tested at random points of X's box.
    """
    low, high = worlds.leader_set.low, worlds.leader_set.high
    model = leader_model(worlds.env, worlds.start_x().numpy())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    names = ("base_obs", "action", "draw", "base_next_obs")
    steps = [torch.as_tensor(rollout.flat(name)) for name in names]
    weights = torch.as_tensor(discounts(rollout, worlds.gamma))

    # Differences along each coordinate give the slopes where the returns are affine in x.
    base = priced(model, steps, weights, low)
    width = high - low
    slopes: tuple[list[Tensor], list[Tensor]] = ([], [])
    for i in range(len(low)):
        moved = low.clone()
        moved[i] = high[i] if width[i] > 0 else low[i] + 1.0
        apart = float(moved[i] - low[i])
        for column, there, here in zip(slopes, priced(model, steps, weights, moved), base, strict=True):
            column.append((there - here) / apart)
    tables = []
    for value, column in zip(base, slopes, strict=True):
        J = torch.stack(column, dim=1)
        tables.append(torch.cat([(value - J @ low)[:, None], J], dim=1))
    affine = Episodes(tables[0], tables[1])
    points = low + width * torch.as_tensor(rng.random((PROBES, len(low))))
    for point in points:
        expected = affine.returns(point[None], model)
        got = priced(model, steps, weights, point)
        for e, g in zip(expected, got, strict=True):
            if float((e[0] - g).abs().max()) > AFFINE * (1.0 + float(g.abs().max())):
                return Episodes(None, None, steps, weights)
    return affine


@dataclass(frozen=True, eq=False)
class Response:
    """One policy of the pool.

    Attributes:
        kind: how it came about: ``"untrained"``, ``"fresh"``, ``"warm"`` or ``"penalised"``.
        x: the point that it was trained at, ``[dim]``.
        weights: its weights, for :meth:`SB3Follower.take_policy`.
        episodes: its episodes.
    """

    kind: str
    x: Tensor
    weights: dict[str, Any]
    episodes: Episodes


@dataclass(frozen=True, eq=False)
class Belief:
    """What the pool says about m points of X.

    Attributes:
        best: index of the best response in the pool, ``[m]``.
        envelope: V^, the follower's return at it, ``[m]``.
        leader_return: the leader's return at it, ``[m]``.
        feared: F^, the leader's smallest return at a policy that is as good within the noise, ``[m]``.
    """

    best: Tensor
    envelope: Tensor
    leader_return: Tensor
    feared: Tensor


class Pool:
    """Policies with their episodes.

    Args:
        responses: the policies, in the order in which they were trained.
        model: the environment's leader model; read only for returns that are not affine in x.
        margin: number of standard errors within which a policy counts as good as the best.
    """

    def __init__(self, responses: Sequence[Response], model: torch.nn.Module, margin: float = 3.0) -> None:
        self.responses, self.model, self.margin = responses, model, margin
        tables = [response.episodes.follower for response in responses if response.episodes.follower is not None]
        self._rounding = AFFINE * max((float(table.abs().mean()) for table in tables), default=0.0)

    def returns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the follower's and the leader's return of each policy's episodes at points ``[m, dim]``, ``[K, m, N]`` each."""
        pairs = [response.episodes.returns(x, self.model) for response in self.responses]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])

    def believe(self, x: Tensor) -> Belief:
        """Return the belief at points of X, ``[m, dim]``."""
        parts = [self._believe(part) for part in x.split(1024)]
        return Belief(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def _believe(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        F, L = self.returns(x)
        J, rows = L.mean(-1), torch.arange(x.shape[0])  # [K, m]
        best, near = self._as_good(F)
        feared = torch.where(near, J, torch.inf).amin(0)
        return best, F.mean(-1)[best, rows], J[best, rows], feared

    def _as_good(self, F: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best policy at each point, ``[m]``, and which are as good within the noise, ``[K, m]``; F: ``[K, m, N]``."""
        V = F.mean(-1)
        best = V.argmax(0)
        apart = F[best, torch.arange(F.shape[1])] - F  # paired by episode
        noise = apart.std(-1, correction=1) / apart.shape[-1] ** 0.5
        return best, apart.mean(-1) <= self.margin * noise + self._rounding

    @torch.no_grad()
    def doubt(self, x: Tensor) -> float:
        """Return by how much the leader's return at x, ``[dim]``, may differ at a policy as good as the best within the noise."""
        F, L = self.returns(x[None])
        J, (best, near) = L.mean(-1)[:, 0], self._as_good(F)
        return float((J - J[best]).abs()[near[:, 0]].max())

    @torch.no_grad()
    def exchange(self, x: Tensor) -> float:
        """Return the follower's spread of returns over the policies at x, ``[dim]``, in units of the leader's."""
        spreads = [float(V.amax() - V.amin()) for V in (values.mean(-1)[:, 0] for values in self.returns(x[None]))]
        return spreads[0] / spreads[1] if spreads[1] > 0.0 else 0.0

    def gain(self, x: Tensor) -> tuple[float, float]:
        """Return by how much the newest policy's follower return at x, ``[dim]``, exceeds the best other, with its stderr."""
        F = self.returns(x[None])[0][:, 0]  # [K, N]
        others = F[:-1]
        apart = F[-1] - others[int(others.mean(-1).argmax())]
        return float(apart.mean()), float(apart.std(correction=1)) / len(apart) ** 0.5


def propose(
    pool: Pool, leader_set: LeaderSet, points: Tensor, trained: Tensor, rng: np.random.Generator, radius: float
) -> Tensor:
    """Return the point of X with the largest belief F^, ``[dim]``.

    Candidates are fixed points of X, normal neighbours of the latest points trained at and of the best candidates, those points
    themselves and, in more than three dimensions, the solutions of :func:`best_for_each` or, where returns are not affine in x,
    what ascent on a smooth belief finds.

    Args:
        pool: the pool.
        leader_set: X.
        points: the fixed points, ``[n, dim]``.
        trained: points trained at, latest last, ``[k, dim]``.
        rng: source of the neighbours.
        radius: standard deviation of the neighbours, as a share of X's width.
    """
    width = leader_set.high - leader_set.low
    candidates = torch.cat([points, trained])
    first = pool.believe(candidates).feared
    centres = torch.cat([trained[-6:], candidates[first.topk(min(4, len(first))).indices]])
    noise = torch.as_tensor(rng.standard_normal((len(centres), 128, leader_set.dim)))
    near = leader_set.project((centres[:, None] + radius * width * noise).flatten(0, 1))
    candidates = torch.cat([candidates, near])
    affine = all(response.episodes.follower is not None for response in pool.responses)
    if leader_set.dim > MANY and affine and len(pool.responses) > 1:
        candidates = torch.cat([candidates, best_for_each(pool, leader_set)])
    elif leader_set.dim > MANY:
        starts = torch.cat([candidates[first.topk(min(8, len(first))).indices], trained[-4:]])
        candidates = torch.cat([candidates, ascend(pool, leader_set, starts)])
    return candidates[int(pool.believe(candidates).feared.argmax())].clone()


@torch.no_grad()
def best_for_each(pool: Pool, leader_set: LeaderSet, rounds: int = 3) -> Tensor:
    r"""Return for each policy k the point of X that is best for the leader among those at which k is the follower's answer.

    Where returns are affine in x this is a linear programme,

        max_x V_l^k(x)   such that   V_f^k(x) - V_f^j(x) >= c m stderr_j   for all other policies j,

    with the standard errors of the paired differences at the last round's x. Its solutions lie on the edge of what is known of k;
    so they keep a distance of c = ``CAUTION`` margins. Programmes without a feasible point are left out.

    Args:
        pool: a pool whose returns are all affine in x.
        leader_set: X.
        rounds: number of programmes for each policy.

    Returns:
        Points of X, ``[n, dim]`` with n at most the number of policies.
    """
    stored = [response.episodes for response in pool.responses]
    F = torch.stack([e.follower for e in stored if e.follower is not None]).numpy()  # [K, N, 1 + dim]
    L = torch.stack([e.leader for e in stored if e.leader is not None]).numpy()
    low, high, dim = leader_set.low.numpy(), leader_set.high.numpy(), leader_set.dim
    bounds, found = [*zip(low, high, strict=True)], []
    spends = np.isfinite(leader_set.budget)
    if spends:  # further variables u >= |x| with sum u <= budget
        bounds += [(0.0, None)] * dim
        eye, zero = np.eye(dim), np.zeros((1, dim))
        budget = np.block([[eye, -eye], [-eye, -eye], [zero, np.ones((1, dim))]])
    for k in range(len(F)):
        apart = np.delete(F[k] - F, k, axis=0)  # [K - 1, N, 1 + dim]
        mean, x = apart.mean(1), 0.5 * (low + high)
        for _ in range(rounds):
            at_x = apart[..., 0] + apart[..., 1:] @ x
            noise = at_x.std(1, ddof=1) / np.sqrt(at_x.shape[1])
            size = np.abs(mean).max(1)
            A, b, c = -mean[:, 1:], mean[:, 0] - CAUTION * pool.margin * noise - 1e-9 * size, -L[k].mean(0)[1:]
            if spends:
                A = np.vstack([np.hstack([A, np.zeros_like(A)]), budget])
                b = np.concatenate([b, np.zeros(2 * dim), [leader_set.budget]])
                c = np.concatenate([c, np.zeros(dim)])
            solved = linprog(c, A_ub=A, b_ub=b, bounds=bounds, method="highs")
            if solved.x is None:
                break
            x = solved.x[:dim]
        else:
            found.append(leader_set.project(torch.from_numpy(x)))
    return torch.stack(found) if found else leader_set.low.new_zeros(0, dim)


@torch.enable_grad()
def ascend(pool: Pool, leader_set: LeaderSet, starts: Tensor, steps: int = 200) -> Tensor:
    """Ascend ``sum_k softmax_k(beta V_f^k(x)) V_l^k(x)`` from several starts, beta rising; return every twentieth point.

    Args:
        pool: the pool.
        leader_set: X.
        starts: ``[n, dim]``.
        steps: number of steps of Adam.

    Returns:
        Points of X, ``[n * steps // 20, dim]``.
    """
    width, low = leader_set.high - leader_set.low, leader_set.low
    with torch.no_grad():
        V = pool.returns(starts)[0].mean(-1)
        unit = float((V.amax(0) - V.amin(0)).mean().clamp_min(1e-12))
    z = ((starts - low) / width.clamp_min(1e-12)).clone().requires_grad_()
    optimiser, found = torch.optim.Adam([z], lr=0.03), []
    for t in range(steps):
        beta = 20.0 * 20.0 ** (t / steps) / unit
        F, L = pool.returns(low + width * z)
        smooth = (torch.softmax(beta * F.mean(-1), 0) * L.mean(-1)).sum()
        optimiser.zero_grad()
        (-smooth).backward()
        optimiser.step()
        with torch.no_grad():
            inside = leader_set.project(low + width * z)
            z.copy_((inside - low) / width.clamp_min(1e-12))
        if (t + 1) % 20 == 0:
            found.append(inside.clone())
    return torch.cat(found)


def fixed_points(leader_set: LeaderSet, n: int) -> Tensor:
    """Return points that fill X: a grid in one dimension, else scrambled Sobol points, projected onto X, ``[n, dim]``."""
    if leader_set.dim == 1:
        unit = torch.linspace(0.0, 1.0, min(n, 401), dtype=torch.float64)[:, None]
    else:
        unit = torch.quasirandom.SobolEngine(leader_set.dim, scramble=True, seed=0).draw(n).double()
    return leader_set.project(leader_set.low + (leader_set.high - leader_set.low) * unit)


def far_corner(leader_set: LeaderSet, x: Tensor) -> Tensor:
    """Return the corner of X's box that is farthest from x, projected onto X, ``[dim]``."""
    return leader_set.project(torch.where(leader_set.high - x >= x - leader_set.low, leader_set.high, leader_set.low))
