"""Checks of the leader's side of an environment: X, ``set_leader``, the leader context, and when x takes effect."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.random import Generator

from .check_play import Floats, Trace, World, held, same, trace
from .mdp.checks import check_gamma, check_size, require

NAMES = ("leader_space", "set_leader", "leader_x", "leader_model", "gamma", "commitment", "commitment_size")
"""Attributes that a leader environment must have."""

PAIRS = 8
"""Number of points drawn from X; points between two of them must lie in X, too."""

SHORT = 20
"""Number of steps of an episode that is replayed several times."""

SEED = 5

# --- X and set_leader -------------------------------------------------------------------------------------------------


def check_names(world: World) -> None:
    """Check that the leader's attributes exist, and that discount, space and x have valid values."""
    for name in NAMES:
        expected = (
            f"a leader environment, with the attribute {name} (see bilevel_gym.envs.core.LeaderEnv, or use a wrapper)"
        )
        require(world.has(name), "env", expected, repr(world.env))
    check_gamma(world.get("gamma"))
    size, box, x = world.get("commitment_size"), world.box, np.asarray(world.get("leader_x"))
    require(
        isinstance(size, (int, np.integer)) and bool(size >= 0), "commitment_size", "a whole number >= 0", repr(size)
    )
    require(
        bool(x.dtype == np.float64) and x.ndim == 1, "leader_x", "a float64 vector", f"{x.dtype} of shape {x.shape}"
    )
    if box is None:  # x is a module's parameters
        world.unchecked.append("membership in X, for leader_space is None")
        return
    fits = isinstance(box, gym.spaces.Box) and len(box.shape) == 1 and box.dtype == np.float64
    require(fits, "leader_space", "a Box of one axis, float64 (gym.spaces.Box(low, high, dtype=np.float64))", repr(box))
    finite = bool(np.isfinite(box.low).all() and np.isfinite(box.high).all())
    require(finite, "leader_space", "finite bounds, for X must be compact", f"low {box.low}, high {box.high}")
    require(bool((box.low <= box.high).all()), "leader_space", "low <= high", f"low {box.low}, high {box.high}")
    require(x.shape == box.shape, "leader_x", f"shape {box.shape}, as leader_space has", f"shape {x.shape}")
    check_size(x.size, "leader_x")


def leader_set(world: World) -> Any:
    """Return the ``LeaderSet`` of the environment or of its problem; None if neither has one."""
    found = world.find("leader_set")
    return getattr(world.problem, "leader_set", None) if found is None else found


def drawn_points(world: World, rng: Generator, n: int) -> list[Floats]:
    """Draw points of X that the environment accepts.

    Raises:
        ValueError: the environment refuses points of its leader space, and has no ``leader_set`` that excludes them.
    """
    start, box, X, points = world.x, world.box, leader_set(world), []
    low, high = (start - 0.1, start + 0.1) if box is None else (box.low, box.high)
    for _ in range(n):
        drawn, share, refused = rng.uniform(low, high), 1.0, ""
        if X is not None:
            drawn = X.project(_tensor(drawn)).numpy()
        # In a regulator's X the follower has a best response; near the initial x it has one.
        while share > 1e-3:
            point = start + share * (drawn - start)
            try:
                world.set_leader(point)
                break
            except ValueError as error:
                share, refused = 0.5 * share, str(error)
                way_out = "every point of leader_space accepted, or a leader_set (a LeaderSet) that says which points belong to X"
                require(X is not None or box is None, "set_leader", way_out, f"{point} refused: {refused}")
        require(share > 1e-3, "set_leader", "points of leader_space near the initial x accepted", refused)
        points.append(point)
    # The two points that lie farthest apart come first: most checks compare these two.
    apart = [[float(np.abs(one - two).sum()) for two in points] for one in points]
    i, j = np.unravel_index(int(np.argmax(apart)), (n, n))
    return [points[i], points[j], *(point for k, point in enumerate(points) if k not in (i, j))]


def _tensor(x: Floats) -> Any:
    import torch

    return torch.from_numpy(np.array(x, dtype=np.float64))


def check_set_leader(world: World, points: list[Floats]) -> None:
    """Check that ``set_leader`` copies x, keeps it, and refuses points outside X."""
    box, x = world.box, points[0]
    given = x.copy()
    world.get("set_leader")(given)
    require(np.allclose(world.x, x, rtol=0.0, atol=1e-9), "set_leader", f"leader_x = {x} after it (keep x)", world.x)
    given += 1.0
    kept = np.allclose(world.x, x, rtol=0.0, atol=1e-9)
    require(kept, "set_leader", f"leader_x = {x} even if the caller changes its array later (copy x)", world.x)
    shown: Any = world.get("leader_x")
    with contextlib.suppress(TypeError, ValueError):  # a read-only array is as good
        shown += 1.0
    kept = np.allclose(world.x, x, rtol=0.0, atol=1e-9)
    require(kept, "leader_x", "a copy of x, which a caller may change", "the environment's own array")
    # What is no point of X.
    wrong = [(np.append(x, x[-1]), f"x of shape {(x.size + 1,)}"), (x[:-1], f"x of shape {(x.size - 1,)}")]
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[-1] = value
        wrong.append((bad, f"x with an entry {value}"))
    if box is not None:
        for i in (0, x.size - 1):
            for edge, sign in ((box.high, 1.0), (box.low, -1.0)):
                bad = x.copy()
                bad[i] = edge[i] + sign * max(1.0, box.high[i] - box.low[i])
                wrong.append((bad, f"x with the entry {bad[i]:g} at {i}, outside leader_space"))
        X = leader_set(world)
        corner = np.where(np.abs(box.high) >= np.abs(box.low), box.high, box.low)
        if X is not None and not X.contains(_tensor(corner)):
            wrong.append((corner, f"x = {corner}, outside leader_set"))
    for bad, what in wrong:
        try:
            world.set_leader(bad)
        except ValueError:
            pass
        except Exception as error:  # whatever an environment of a user's may raise
            raise ValueError(f"set_leader: expected a ValueError for {what}, got {error!r}") from error
        else:
            raise ValueError(f"set_leader: expected a ValueError for {what} (check x), got none")
        same_x = np.array_equal(world.x, x)
        require(same_x, "set_leader", f"x to stay at {x} after {what} is refused (check before you store x)", world.x)
    # X is convex: points between two of its points must be accepted, too.
    for one, two in itertools.pairwise(points):
        for share in (0.25, 0.5, 0.75):
            point = one + share * (two - one)
            try:
                world.set_leader(point)
            except ValueError as error:
                between = f"{point} accepted, which lies between {one} and {two}, since X must be convex"
                raise ValueError(f"set_leader: expected {between}, got {error}") from error


# --- steps ------------------------------------------------------------------------------------------------------------


def check_steps(world: World, x: Floats) -> None:
    """Check that steps have the leader's keys in ``info``, share no memory, and are reproducible from the seed."""
    world.set_leader(x)
    world.seed_actions(SEED)
    for seed in (SEED, None):
        world.reset(seed)
        kept_x = np.allclose(world.x, x, rtol=0.0, atol=1e-9)
        require(kept_x, "reset", f"x to stay at {x}, as set_leader set it", world.x)
    steps, kept = [], []
    for _ in range(SHORT):
        step = world.step()
        steps.append(step)
        kept.append((held(step.next_obs), held(step.draw)))
        if step.ended:
            world.reset()
    for step, (obs, draw) in zip(steps, kept, strict=True):
        for name, now, then in (("observation", step.next_obs, obs), ("info['leader_draw']", step.draw, draw)):
            require(
                same(now, then),
                name,
                "an object that later steps do not change (return a copy)",
                "one that they change",
            )
    one, two = trace(world, x, SEED, SHORT), trace(world, x, SEED, SHORT)
    differs = one.differs(two, lambda obs: obs, "obs", "reward", "leader_reward", "draw", "ended")
    expected = f"the same episode from the same seed twice (draw from self.np_random, which reset(seed={SEED}) seeds)"
    require(differs is None, "reset", expected, f"another {differs}")


def check_context(world: World, points: list[Floats]) -> None:
    """Check that the leader context has the size ``commitment_size`` and depends on x."""
    size, seen = int(world.get("commitment_size")), []
    observed = [step.obs for step in trace(world, points[0], SEED, SHORT).steps]
    for x in points[:3]:
        world.set_leader(x)
        rows = []
        for obs in map(world.base, observed):
            shown = np.asarray(world.get("commitment")(obs))
            require(
                shown.shape == (size,), "commitment", f"shape ({size},), its commitment_size", f"shape {shown.shape}"
            )
            numbers = shown.dtype.kind in "fiu" and bool(np.isfinite(shown).all())
            require(numbers, "commitment", "finite numbers", shown)
            rows.append(shown.astype(np.float64))
        seen.append(np.stack(rows))
    if world.find("commitment_is_distribution"):
        fits = all(bool((rows >= 0.0).all()) and np.allclose(rows.sum(-1), 1.0, atol=1e-4) for rows in seen)
        require(fits, "commitment", "rows that are distributions, as commitment_is_distribution says", seen[0][0])
    moved = size == 0 or any(not np.array_equal(rows, seen[0]) for rows in seen[1:])
    expected = "entries that depend on x as soon as set_leader was called (or commitment_size = 0 if followers see nothing of x)"
    require(moved, "commitment", expected, f"{seen[0][0]} under each x tried")


def check_timing(world: World, a: Floats, b: Floats) -> Trace:
    """Check that x takes effect at the next step, affects draws once per episode from the next reset, and survives resets.

    Returns:
        The steps of an episode after x was set from a to b in its middle.
    """
    at = SHORT // 4
    before = trace(world, a, SEED, SHORT, one_episode=True)
    at = min(at, len(before.steps) - 1)
    moved = trace(world, a, SEED, SHORT, then=b, at=at, one_episode=True)
    if world.find("draws_once"):
        differs = before.differs(moved, world.base, "obs", "draw")
        way_out = "an episode that keeps its draw until the next reset (draws_once is True)"
        require(
            differs is None,
            "set_leader",
            way_out,
            f"a different {differs} after it was called in the middle of the episode",
        )
    after, fresh = trace(world, None, SEED, SHORT), trace(world, b, SEED, SHORT)
    differs = after.differs(fresh, lambda obs: obs, "obs", "reward", "leader_reward", "draw", "ended")
    expected = "an episode under the x that was set before it (keep x, and use it for the draws of each reset)"
    require(differs is None, "reset", expected, f"a different {differs} than after x is set a second time")
    return Trace(moved.start, moved.steps[at:])


def check_arrival(world: World, points: list[Floats], silent: bool, steps: int) -> None:
    """Check that x affects the follower, and that nothing random depends on x if ``log_p`` does not.

    Args:
        world: the environment.
        points: at least two points of X.
        silent: whether the leader model's log_p has no gradient in x.
        steps: the number of steps within which x must have an effect.
    """
    a, b = points[:2]
    length = min(steps, 5 * SHORT)
    one, two = trace(world, a, SEED, length), trace(world, b, SEED, length)
    differs = one.differs(two, world.base, "obs", "draw", "terminated") if silent else None
    way_out = (
        "a log_p that depends on x, as the environment does (the log-probability of draws and transitions that depend on x; "
        "observations must not show x, which is the task of commitment)"
    )
    told = f"a different {differs} at another x, from the same seed and actions, but a log_p without a gradient"
    require(differs is None, "leader_model", way_out, told)
    while one.differs(two, world.base, "obs", "reward", "draw") is None:
        expected = "a follower's reward, an observation or a draw that depends on x (use x in step or in reset)"
        require(length < steps, "set_leader", expected, f"the same {length} steps at x = {a} and at x = {b}")
        length = min(5 * length, steps)
        one, two = trace(world, a, SEED, length), trace(world, b, SEED, length)
