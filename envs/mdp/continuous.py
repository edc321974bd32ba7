r"""Bilevel problems with continuous states and actions; the follower's best response is found on a grid.

    s' = step(s, a, e),   e drawn from ``noise``         r_f, r_l = rewards(x, obs, a, obs'),   obs = observe(s)

x enters the rewards alone. States have at most three dimensions, each an interval or a circle.

**Best response.** Dynamic programming with multilinear interpolation of V between the points g of a grid, over a grid of actions:

    Q(g, a) = E_e[ r_f + gamma V(s') ],     V(s') = sum_k w_k(s') V(g_k),     V(g) = max_a Q(g, a)

solved by modified policy iteration until V moves by less than 1e-7 of its range. The weights w do not depend on x: they are one
sparse matrix for each grid, and a further x starts from the V of the last one. The response is the stationary policy of the
infinite horizon, greedy at every state, on the grid or off it: argmax_a E_e[ r_f + gamma V(s') ].

**What is reported.** Both players' discounted returns over the environment's own horizon, from starts by quadrature. Points are
doubled in each dimension, then actions, until the leader's return moves by ``tolerance`` at most; ``moved`` says by how much it
moved at last. It is no bound: near a threshold of x a finer grid may decide otherwise.
"""

from __future__ import annotations

import itertools
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from .checks import require
from .problem import BilevelProblem

Floats = NDArray[np.float64]
Act = Callable[[NDArray[Any]], Any]
"""A policy: from observations ``[n, ...]``, as the environment shows them, to actions ``[n, m]``."""

MOST_DIMENSIONS = 3
MOST_WEIGHTS = 2**25
"""Interpolation weights of the finest grid: 0.4 GiB."""
_SWEEPS = 50
_KEPT = 16


@dataclass(frozen=True, eq=False)
class GridResponse:
    """The follower's best response to one x, as found on the finest grid.

    Attributes:
        leader_return: the leader's discounted return over the horizon.
        follower_return: the follower's.
        moved: by how much the leader's return moved in the last refinement, of states or of actions.
        shape: points of the grid in each dimension.
        n_actions: actions in each dimension.
        act: the policy, from observations ``[n, ...]`` to actions ``[n, m]``.
    """

    leader_return: float
    follower_return: float
    moved: float
    shape: tuple[int, ...]
    n_actions: int
    act: Callable[[Any], Floats]


class ContinuousProblem(BilevelProblem):
    """A leader's parameter x of the rewards, and a follower in continuous states.

    Functions take and return numpy arrays whose leading axes broadcast; ``rewards`` uses arithmetic alone, so that it takes torch
    tensors too.

    Attributes:
        leader_set: X.
        gamma: the discount of both players.
        horizon: steps of an episode, over which both returns are counted.
        state_low, state_high: bounds of the grid, ``[d]``; beyond them V is held constant.
        periodic: which dimensions are circles, of circumference ``state_high - state_low``.
        action_low, action_high: bounds of actions, ``[m]``; what lies beyond is clipped.
        obs_low, obs_high: bounds of observations, ``[o]``.
        noise: points ``[K, k]`` and weights ``[K]`` of e; one point of weight 1 where there is none.
        points: of the coarsest grid, in each dimension.
        actions: of the coarsest grid, in each dimension.
        tolerance: in units of the leader's return; a grid is refined until that moves by no more; infinity for one grid.
    """

    lower_level: ClassVar[Any] = "continuous"
    gamma: float
    horizon: int
    state_low: Floats
    state_high: Floats
    periodic: tuple[bool, ...]
    action_low: Floats
    action_high: Floats
    obs_low: Floats
    obs_high: Floats
    noise: tuple[Floats, Floats] = (np.zeros((1, 1)), np.ones(1))
    points: int = 41
    actions: int = 15
    tolerance: float = 0.1
    _solver: GridSolver | None = None

    @abstractmethod
    def step(self, s: Floats, a: Floats, e: Floats) -> Floats:
        """The next state ``[..., d]`` of states ``[..., d]``, actions ``[..., m]`` inside their bounds, noise ``[..., k]``."""

    @abstractmethod
    def rewards(self, x: Any, obs: Any, a: Any, next_obs: Any) -> tuple[Any, Any]:
        """r_f and r_l, ``[...]``, at x ``[dim]`` or ``[..., dim]``; numpy or torch, differentiable in x."""

    @abstractmethod
    def observe(self, s: Floats) -> Floats:
        """Observations ``[..., o]`` of states ``[..., d]``, in float64."""

    @abstractmethod
    def state_of(self, obs: Any) -> Floats:
        """States ``[..., d]`` of observations ``[..., o]``."""

    @abstractmethod
    def starts(self) -> tuple[Floats, Floats]:
        """Start states ``[n, d]`` and their weights ``[n]``, a quadrature of the start's distribution."""

    @abstractmethod
    def draw_starts(self, rng: np.random.Generator, n: int) -> Floats:
        """Start states ``[n, d]``, drawn at random."""

    def draw_noise(self, rng: np.random.Generator, n: int) -> Floats:
        """Noise ``[n, k]``; here its points by their weights, and no random number where there is one point."""
        values, weights = self.noise
        if len(weights) == 1:
            return np.broadcast_to(values, (n, values.shape[1]))
        return values[rng.choice(len(weights), size=n, p=weights)]

    # --- the reference ----------------------------------------------------------------------------------------------------

    def best_response(self, x: Any) -> GridResponse:
        """The follower's best response at x, ``[dim]``, refined until the leader's return moves by ``tolerance`` at most.

        Raises:
            ValueError: an x outside X; more than three dimensions of state, with the number of points that it would take.

        Warns:
            UserWarning: the finest grid that is allowed was reached before.
        """
        if self._solver is None:
            self._solver = GridSolver(self)
        return self._solver.best_response(self.leader_set.check(x).detach().numpy())

    def at_best_response(self, x: Any) -> float:
        """F_0(x): the leader's return at the follower's best response."""
        return self.best_response(x).leader_return

    def follower_value(self, x: Any) -> float:
        """V_f*(x): the follower's return at its best response."""
        return self.best_response(x).follower_return

    def returns(self, x: Any, act: Act) -> tuple[float, float]:
        """The follower's and the leader's return at x of any policy, over the horizon, from the same starts.

        Args:
            x: a point of X, ``[dim]``.
            act: from observations ``[n, o]``, float32, to actions ``[n, m]``; what lies beyond the bounds is clipped.

        Raises:
            ValueError: an x outside X, actions of another shape.
        """
        point = self.leader_set.check(x).detach().numpy()
        return _simulate(self, point, lambda s: act(self.observe(s).astype(np.float32)))

    def leader_return(self, x: Any, act: Act) -> float:
        """J_L(x, act): the leader's return of any policy."""
        return self.returns(x, act)[1]

    def follower_regret(self, x: Any, act: Act) -> float:
        """V_f*(x) - V_f(x, act), below 0 by what the grid's own policy lacks."""
        return self.follower_value(x) - self.returns(x, act)[0]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_solver"}


def _simulate(problem: ContinuousProblem, x: Floats, act: Callable[[Floats], Any]) -> tuple[float, float]:
    """Both returns over the horizon of a policy from states to actions; noise is drawn with a fixed seed."""
    s, weights = problem.starts()
    shape, rng, discount, paid = (len(s), len(problem.action_low)), np.random.default_rng(0), 1.0, np.zeros(2)
    for _ in range(problem.horizon):
        a = np.asarray(act(s), dtype=np.float64)
        require(a.shape == shape, "act", f"actions of shape {shape}", f"shape {a.shape}")
        a = a.clip(problem.action_low, problem.action_high)
        after = problem.step(s, a, problem.draw_noise(rng, len(s)))
        both = problem.rewards(x, problem.observe(s), a, problem.observe(after))
        paid += discount * np.array([np.dot(weights, np.broadcast_to(r, len(s))) for r in both])
        s, discount = after, discount * problem.gamma
    return float(paid[0]), float(paid[1])


class GridSolver:
    """Best responses of one problem, with the grids that it needs made once.

    Args:
        problem: the problem.

    Raises:
        ValueError: more than three dimensions of state.
    """

    def __init__(self, problem: ContinuousProblem) -> None:
        self.problem, d = problem, len(problem.state_low)
        n_points = problem.points**d * problem.actions ** len(problem.action_low)
        got = f"{d}, which would take {n_points:,} points at {problem.points} a dimension"
        require(d <= MOST_DIMENSIONS, "problem", f"at most {MOST_DIMENSIONS} dimensions of state for a grid", got)
        self._grids: dict[tuple[tuple[int, ...], int], _Grid] = {}
        self._answers: dict[bytes, GridResponse] = {}

    def best_response(self, x: Floats) -> GridResponse:
        """See ``ContinuousProblem.best_response``; the last answers are kept."""
        key = x.tobytes()
        if key not in self._answers:
            self._answers = dict(list(self._answers.items())[1 - _KEPT :]) | {key: self._refined(x)}
        return self._answers[key]

    def _refined(self, x: Floats) -> GridResponse:
        """Refine states first, then actions, as far as is needed and allowed."""
        problem = self.problem
        shape, n_actions, moved = (problem.points,) * len(problem.state_low), problem.actions, [math.inf, math.inf]
        response, V = self._grid(shape, n_actions).respond(x, None)
        for axis in (0, 1):
            while not moved[axis] <= problem.tolerance:
                finer, more = shape, n_actions
                if axis == 0:
                    finer = tuple(
                        2 * n if circle else 2 * n - 1 for n, circle in zip(shape, problem.periodic, strict=True)
                    )
                else:
                    more = 2 * n_actions - 1
                if self._weights(finer, more) > MOST_WEIGHTS:
                    break
                before, coarse = response, self._grid(shape, n_actions)
                grid = self._grid(finer, more)
                response, V = grid.respond(x, coarse.interpolated(V, grid.nodes))
                moved[axis] = abs(response.leader_return - before.leader_return)
                shape, n_actions = finer, more
        last = max(moved)
        if last > problem.tolerance:
            warnings.warn(
                f"the leader's return on a grid of {shape} states and {n_actions} actions a dimension still moved by "
                f"{last:.3g}, more than the tolerance of {problem.tolerance:g}; a finer one would be too large",
                stacklevel=4,
            )
        return replace(response, moved=last)

    def _weights(self, shape: tuple[int, ...], n_actions: int) -> int:
        """The number of interpolation weights of a grid."""
        problem = self.problem
        rows = math.prod(shape) * n_actions ** len(problem.action_low) * len(problem.noise[1])
        return int(rows) << len(shape)

    def _grid(self, shape: tuple[int, ...], n_actions: int) -> _Grid:
        if (shape, n_actions) not in self._grids:
            self._grids[shape, n_actions] = _Grid(self.problem, shape, n_actions)
        return self._grids[shape, n_actions]


class _Grid:
    """One grid of states and actions, and the expected interpolation from each pair of them as a sparse matrix.

    Args:
        problem: the problem.
        shape: points in each dimension of state.
        n_actions: actions in each dimension.

    Attributes:
        nodes: the grid's states, ``[G, d]``.
        actions: ``[A, m]``.
    """

    def __init__(self, problem: ContinuousProblem, shape: tuple[int, ...], n_actions: int) -> None:
        self.problem, self.shape, self.n_actions = problem, shape, n_actions
        self._circle = np.array(problem.periodic)
        # A circle's last point is the one before its first.
        self._h = (problem.state_high - problem.state_low) / (np.array(shape) - ~self._circle)
        axes = [low + h * np.arange(n) for low, h, n in zip(problem.state_low, self._h, shape, strict=True)]
        self.nodes = _product(axes)
        ends = zip(problem.action_low, problem.action_high, strict=True)
        self.actions = _product([np.linspace(low, high, n_actions) for low, high in ends])
        self._values, self._odds = problem.noise
        self._V: Floats | None = None
        # Where each pair leads, and what it is worth there: K points of noise are averaged.
        after = self._after(self.nodes)
        require(bool(np.isfinite(after).all()), "step", "finite states from every point of the grid", "NaN or infinity")
        n, width = after[..., 0, 0].size, len(self._odds) << len(shape)
        corners = list(self._corners(after))
        index = np.stack([where for where, _ in corners], axis=-1)
        weight = np.stack([share for _, share in corners], axis=-1) * self._odds[:, None]
        row_ends = np.arange(0, n * width + 1, width)
        self._W = csr_matrix((weight.reshape(-1), index.reshape(-1), row_ends), shape=(n, len(self.nodes)))

    def _after(self, s: Floats) -> Floats:
        """Next states of states ``[n, d]`` after each action and each point of noise, ``[n, A, K, d]``."""
        after = self.problem.step(s[:, None, None], self.actions[:, None], self._values)
        return np.broadcast_to(after, (len(s), len(self.actions), *self._values.shape[:1], s.shape[1]))

    def _corners(self, s: Floats) -> Iterator[tuple[NDArray[np.intp], Floats]]:
        """Each of the 2^d points around states ``[..., d]``: its index and its weight, ``[...]``."""
        sides = []
        for i, n in enumerate(self.shape):
            z = (s[..., i] - self.problem.state_low[i]) / self._h[i]
            if self._circle[i]:
                z -= n * np.floor(z / n)  # in [0, n], and n itself is 0
                below = z.astype(np.intp)
                share = z - below
                below = np.where(below >= n, 0, below)
                above = np.where(below == n - 1, 0, below + 1)
            else:
                np.clip(z, 0.0, n - 1.0, out=z)
                below = np.minimum(z.astype(np.intp), n - 2)
                share, above = z - below, below + 1
            sides.append(((below, 1.0 - share), (above, share)))
        for corner in itertools.product(*sides):
            index, weight = corner[0]
            for n, (where, share) in zip(self.shape[1:], corner[1:], strict=True):
                index, weight = index * n + where, weight * share
            yield index, weight

    def interpolated(self, V: Floats, s: Floats) -> Floats:
        """V, ``[G]``, at states ``[..., d]``."""
        return sum(weight * V.take(index) for index, weight in self._corners(s))  # type: ignore[return-value]

    def paid(self, x: Floats, s: Floats, after: Floats) -> Floats:
        """The follower's expected reward of each action, ``[n, A]``, for states ``[n, d]`` and what follows them."""
        observe = self.problem.observe
        r_f, _ = self.problem.rewards(x, observe(s)[:, None, None], self.actions[:, None], observe(after))
        return np.broadcast_to(r_f, after.shape[:-1]) @ self._odds

    def greedy(self, x: Floats, V: Floats, s: Floats) -> Floats:
        """The best action, ``[n, m]``, at states ``[n, d]``, with what follows worth V."""
        after = self._after(s)
        Q = self.paid(x, s, after) + self.problem.gamma * (self.interpolated(V, after) @ self._odds)
        best: Floats = self.actions[Q.argmax(1)]
        return best

    def solve(self, x: Floats, V: Floats) -> Floats:
        """V*, ``[G]``, from a first guess, by modified policy iteration."""
        gamma, A, W = self.problem.gamma, len(self.actions), self._W
        r = self.paid(x, self.nodes, self._after(self.nodes)).reshape(-1)
        require(bool(np.isfinite(r).all()), "rewards", f"finite numbers at x = {x.tolist()}", "NaN or infinity")
        first = np.arange(len(self.nodes)) * A
        while True:
            Q = (r + gamma * (W @ V)).reshape(-1, A)
            best = Q.argmax(1)
            following = Q[np.arange(len(Q)), best]
            moved, V = np.abs(following - V).max(), following
            if moved <= 1e-7 * max(float(np.ptp(V)), 1e-300) or moved <= 1e-12 * np.abs(V).max():
                return V
            rows = first + best
            W_pi, r_pi = W[rows], r[rows]
            for _ in range(_SWEEPS):
                V = r_pi + gamma * (W_pi @ V)

    def respond(self, x: Floats, V: Floats | None) -> tuple[GridResponse, Floats]:
        """The best response on this grid, and V*; started from the last x's V, else from the one that is given."""
        first = next((known for known in (self._V, V) if known is not None), np.zeros(len(self.nodes)))
        V = self._V = self.solve(x, first)
        problem, x = self.problem, x.copy()
        act = partial(self.greedy, x, V)
        paid = _simulate(problem, x, act)
        by_observation: Callable[[Any], Floats] = lambda obs: act(problem.state_of(obs))  # noqa: E731
        return GridResponse(paid[1], paid[0], math.inf, self.shape, self.n_actions, by_observation), V


def _product(axes: list[Floats]) -> Floats:
    """Every combination of one number from each axis, ``[n, len(axes)]``."""
    return np.stack([part.reshape(-1) for part in np.meshgrid(*axes, indexing="ij")], axis=-1)
