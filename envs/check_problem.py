"""Checks that an environment's steps agree with the tables, or the linear dynamics, of its problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi2, norm
from torch import Tensor

from .check_contract import SEED
from .check_draws import ALPHA, check_table, rate, steps_at
from .check_play import RTOL, Floats, Played, World, apart
from .mdp import GameProblem, TabularProblem
from .mdp.building import BuildingProblem
from .mdp.checks import require
from .mdp.continuous import ContinuousProblem
from .mdp.linear_quadratic import LinearQuadraticProblem

STARTS = 400
"""Number of resets whose first states are compared with rho."""

ROWS = 200
"""Number of steps at which a problem's tables are compared with its kernel."""


@torch.no_grad()
def check_problem(world: World, x: Floats, before: Floats, steps: int) -> None:
    """Check that the environment behaves as its problem says.

    Args:
        world: the environment; one without a problem passes.
        x: the x at which both are compared.
        before: an x that is set before x is.
        steps: number of steps to play.
    """
    problem = world.problem
    if problem is None:
        return
    kinds: dict[type[Any], Callable[..., None]] = {
        TabularProblem: _check_tabular,
        GameProblem: _check_game,
        LinearQuadraticProblem: _check_plant,
        ContinuousProblem: _check_continuous,
        BuildingProblem: _check_building,
    }
    check = next((check for kind, check in kinds.items() if isinstance(problem, kind)), None)
    if check is None:
        told = "only tabular, zero-sum, linear-quadratic and continuous ones are checked"
        world.unchecked.append(f"the problem, a {type(problem).__name__}: {told}")
        return
    box, X = world.box, problem.leader_set
    fits = box is not None and box.shape == (X.dim,)
    if box is not None and fits:
        fits = np.allclose(box.low, X.low.numpy()) and np.allclose(box.high, X.high.numpy())
    require(fits, "problem", f"a leader_set with the bounds of leader_space, {box}", f"{X.low} to {X.high}")
    played = steps_at(world, x, before, steps)
    starts = [world.base(world.reset(SEED if k == 0 else None)) for k in range(min(STARTS, steps))]
    check(world, problem, (torch.from_numpy(x), torch.from_numpy(before)), played, starts)


def _agree(name: str, whose: str, modelled: Any, paid: Any) -> None:
    """Check that rewards of the problem equal the rewards that the steps paid."""
    modelled, paid = np.asarray(modelled), np.asarray(paid)
    distance = apart(modelled, paid)
    i = int(distance.argmax())
    expected = f"{whose} of a step to be {modelled[i]:g} (step and problem must agree)"
    require(bool(distance[i] <= RTOL), name, expected, f"{paid[i]:g}")


def _check_gamma(world: World, gamma: float) -> None:
    same = math.isclose(float(world.get("gamma")), float(gamma), rel_tol=1e-12)
    require(same, "gamma", f"that of the problem, {float(gamma):g}", world.get("gamma"))


# --- tables -----------------------------------------------------------------------------------------------------------


def _check_tabular(
    world: World, problem: TabularProblem, at: tuple[Tensor, Tensor], played: list[Played], starts: list[Any]
) -> None:
    """Check r, P, rho, mask, terminal and gamma of a tabular problem."""
    x, before = at
    mdp, n_contexts = problem.follower_mdp(x), 1 if problem.context_probs is None else len(problem.context_probs)
    _check_gamma(world, mdp.gamma)
    S, A = mdp.n_states, mdp.n_actions
    action_space: Any = world.env.action_space
    fits = isinstance(action_space, gym.spaces.Discrete) and int(action_space.n) == A
    require(fits, "problem", f"as many actions as action_space, {action_space}, has", A)
    z, z_next = (np.array([int(world.base(getattr(step, name))) for step in played]) for name in ("obs", "next_obs"))
    inside = bool(((z >= 0) & (z < n_contexts * S)).all())
    require(inside, "problem", f"states 0 to {n_contexts * S - 1}", f"the observation {z.max()}")
    a = np.array([int(step.action) for step in played])
    kernel = problem.kernel(x)
    W = int(kernel.P.shape[-2])
    w = np.array([int(step.draw) for step in played]) if W > 1 else np.zeros_like(a)
    require(
        bool(((w >= 0) & (w < W)).all()), "info['leader_draw']", f"a whole number in [0, {W}), as the problem draws", w
    )
    index: list[Any] = [z // S, z % S, a, w]

    def rows(field: Tensor, rank: int, depth: int) -> NDArray[Any]:
        """Index a table by context and state, and by action and draw up to ``depth``, of each step: ``[n, ...]``."""
        if rank > 1 and field.shape[field.ndim - rank + 1] == 1:
            field = field.expand(*field.shape[: field.ndim - rank + 1], A, *field.shape[field.ndim - rank + 2 :])
        where = tuple(torch.from_numpy(i) for i in index[1 : 1 + depth])
        return field[where if field.ndim == rank else (torch.from_numpy(index[0]), *where)].numpy()

    # What a step pays.
    _agree("problem", "the follower's reward", rows(kernel.r_follower, 3, 3), [float(step.reward) for step in played])
    told = problem.leader_reward(x) is not None or type(problem).kernel is not TabularProblem.kernel
    if told:
        _agree("problem", "the leader's reward", rows(kernel.r_leader, 3, 3), [step.leader_reward for step in played])
    # Which actions exist, and where an episode ends.
    if mdp.mask is not None:
        require(played[0].mask is not None, "action_masks", "a method that returns the problem's mask", "none")
        shown, mask = np.stack([step.mask for step in played]).astype(bool), rows(mdp.mask, 2, 1)
        i = int((shown != mask).any(-1).argmax())
        require(bool((shown == mask).all()), "action_masks", f"{mask[i]} in state {z[i]}, the problem's mask", shown[i])
    final = np.zeros(len(z), dtype=bool) if mdp.terminal is None else rows(mdp.terminal, 1, 1)
    ended = np.array([step.terminated for step in played])
    i = int((ended != final).argmax())
    expected = f"terminated = {bool(final[i])} after a step in state {z[i]}, as the problem's terminal says"
    require(bool((ended == final).all()), "problem", expected, bool(ended[i]))
    # What is drawn, where the state moves, and where episodes begin.
    earlier, on = problem.kernel(before), ~final
    if W > 1:
        others = [rows(k.draw, 3, 2) for k in (kernel, earlier)]
        check_table("problem", list(zip(z.tolist(), a.tolist(), strict=True)), others[0], w, "leader_draw", others[1:])
    if on.any():
        expected = "transitions that stay in their context"
        require(bool((z_next // S == z // S)[on].all()), "problem", expected, "others")
        tables = [rows(k.P, 4, 3)[on] for k in (kernel, earlier)]
        row = list(zip(z[on].tolist(), a[on].tolist(), w[on].tolist(), strict=True))
        check_table("problem", row, tables[0], (z_next % S)[on], "next state", tables[1:])
    weights = torch.ones(1, dtype=torch.float64) if problem.context_probs is None else problem.context_probs
    rho = (weights[:, None] * mdp.rho.expand(n_contexts, S)).reshape(-1).numpy()
    first = np.array([int(start) for start in starts])
    check_table("problem", ["rho"] * len(first), np.tile(rho, (len(first), 1)), first, "first state")
    # The model that exact methods solve is the mean of what a simulator draws.
    index = [part[:ROWS] for part in index]
    p = rows(kernel.draw, 3, 2)
    pairs = [
        ("r", rows(mdp.r, 2, 2), (p * rows(kernel.r_follower, 3, 2)).sum(-1)),
        ("P", rows(mdp.dense_P, 3, 2), (p[..., None] * rows(kernel.P, 4, 2)).sum(-2)),
    ]
    reward = problem.leader_reward(x)
    pairs += (
        [] if reward is None else [("leader_reward", rows(reward, 2, 2), (p * rows(kernel.r_leader, 3, 2)).sum(-1))]
    )
    for name, one, two in pairs:
        near = bool(apart(one, two).max() <= RTOL)
        require(near, "problem", f"{name} of follower_mdp equal to the mean over the kernel's draws", "a different one")


def _check_game(
    world: World, problem: GameProblem, at: tuple[Tensor, Tensor], played: list[Played], starts: list[Any]
) -> None:
    """Check payoffs, P, rho and gamma of a zero-sum game."""
    game, leader_game = problem.game(at[0]), problem.leader_game(at[0])
    _check_gamma(world, game.gamma)
    s, s_next = (np.array([int(getattr(step, name)) for step in played]) for name in ("obs", "next_obs"))
    joint = np.stack([step.action for step in played])
    index = (torch.from_numpy(s), torch.from_numpy(joint[:, 0]), torch.from_numpy(joint[:, 1]))
    payoff, paid = game.r[index].numpy(), np.stack([step.reward for step in played])
    _agree("problem", "player 1's reward", payoff, paid[:, 0])
    _agree("problem", "player 2's reward", -payoff, paid[:, 1])
    if leader_game is not None:
        _agree("problem", "the leader's reward", leader_game.r[index].numpy(), [step.leader_reward for step in played])
    rows = [(state, *actions) for state, actions in zip(s.tolist(), joint.tolist(), strict=True)]
    others = [problem.game(at[1]).P[index].numpy()]
    check_table("problem", rows, game.P[index].numpy(), s_next, "next state", others)
    first = np.array([int(start) for start in starts])
    check_table("problem", ["rho"] * len(first), np.tile(game.rho.numpy(), (len(first), 1)), first, "first state")


# --- a plant ----------------------------------------------------------------------------------------------------------


def _check_plant(
    world: World, problem: LinearQuadraticProblem, at: tuple[Tensor, Tensor], played: list[Played], starts: list[Any]
) -> None:
    """Check costs, dynamics and start distribution of a linear-quadratic game."""
    _check_gamma(world, problem.gamma)
    d = problem.dynamics
    s, s_next = (
        np.stack([np.asarray(world.base(getattr(step, name))) for step in played]) for name in ("obs", "next_obs")
    )
    u_l = np.stack([step.draw for step in played])
    u_f = problem.action_bound.numpy() * np.clip(np.stack([step.action for step in played]), -1.0, 1.0)
    for whose, cost, name in (
        ("follower", problem.follower_cost, "reward"),
        ("leader", problem.leader_cost, "leader_reward"),
    ):
        parts = ((s, cost.Q), (u_l, cost.R_leader), (u_f, cost.R_follower))
        modelled = -sum(((v @ matrix.numpy()) * v).sum(-1) for v, matrix in parts)
        _agree("problem", f"the {whose}'s reward", modelled, [float(getattr(step, name)) for step in played])
    rest = s_next - s @ d.A.numpy().T - u_l @ d.B_leader.numpy().T - u_f @ d.B_follower.numpy().T
    _check_gaussian(rest, d.noise.numpy(), "the next state", np.concatenate([s, u_l, u_f], axis=1))
    _check_gaussian(np.stack(starts), d.start.numpy(), "the first state")


def _check_gaussian(rest: Floats, covariance: Floats, what: str, known: Floats | None = None) -> None:
    """Check that rows are drawn from N(0, covariance), independently of ``known``.

    The rows' mean and variance along the principal axes are compared with their exact distributions. A linear prediction of the
    rows from ``known``, fitted to the first half, must not explain the second half better, by its likelihood ratio.
    """
    values, axes = np.linalg.eigh(covariance)
    moved = values > 1e-12 * max(float(values.max()), 1e-300)
    along = rest @ axes
    still = np.abs(along[:, ~moved]).max(initial=0.0)
    scale = 1.0 + np.abs(rest).max()
    require(
        bool(still <= 1e-5 * scale),
        "problem",
        f"{what} to follow the dynamics exactly in directions without noise",
        f"{still:g} off it",
    )
    z = along[:, moved] / np.sqrt(values[moved])
    if z.size == 0:
        return
    mean, spread, n = z.sum(0) / math.sqrt(len(z)), (z**2).sum(0), len(z)
    share = ALPHA / (4 * z.shape[1])  # two sides of two tests an axis
    fits = bool((np.abs(mean) <= norm.isf(share)).all())
    fits = fits and bool(((spread >= chi2.ppf(share, n)) & (spread <= chi2.isf(share, n))).all())
    if known is not None:
        slope = np.linalg.lstsq(known[: n // 2], z[: n // 2], rcond=None)[0]
        predicted = known[n // 2 :] @ slope
        log_e = float((z[n // 2 :] * predicted - 0.5 * predicted**2).sum())
        fits = fits and log_e < -math.log(ALPHA)
    got = f"sum of z / sqrt(n) {mean} and sum of z^2 / n {spread / n} along its axes ({rate(n)})"
    require(fits, "problem", f"{what} drawn from the problem's Gaussian", got)


# --- continuous states ------------------------------------------------------------------------------------------------


def _check_continuous(
    world: World, problem: ContinuousProblem, at: tuple[Tensor, Tensor], played: list[Played], starts: list[Any]
) -> None:
    """Check rewards, steps and starts of a continuous problem; steps with noise are not checked."""
    _check_gamma(world, problem.gamma)
    obs, after = (
        np.stack([np.asarray(world.base(getattr(step, name)), dtype=np.float64) for step in played])
        for name in ("obs", "next_obs")
    )
    a = np.stack([np.asarray(step.action, dtype=np.float64) for step in played])
    a = a.clip(problem.action_low, problem.action_high)
    modelled = problem.rewards(at[0].numpy(), obs, a, after)
    for whose, numbers, name in zip(("follower", "leader"), modelled, ("reward", "leader_reward"), strict=True):
        paid = [float(getattr(step, name)) for step in played]
        _agree("problem", f"the {whose}'s reward", np.broadcast_to(numbers, len(paid)), paid)
    values, weights = problem.noise
    if len(weights) == 1:
        expected = problem.observe(problem.step(problem.state_of(obs), a, np.broadcast_to(values, (len(a), 1))))
        distance = apart(expected, after).max(-1)
        i = int(distance.argmax())
        told = f"the next observation {expected[i]} (step and problem must agree)"
        require(bool(distance[i] <= RTOL), "problem", told, after[i])
    else:
        world.unchecked.append("the noise of a continuous problem")
    # The mean of the first observations, within what chance allows.
    states, weights = problem.starts()
    seen, first = problem.observe(states), np.stack([np.asarray(start, dtype=np.float64) for start in starts])
    mean = weights @ seen
    spread = np.sqrt(weights @ (seen - mean) ** 2)
    off = np.abs(first.mean(0) - mean) - norm.isf(ALPHA / (2 * len(mean))) * spread / math.sqrt(len(first))
    fits = bool((off <= RTOL * (1.0 + np.abs(mean))).all())
    require(fits, "problem", f"first observations with the mean of its start states, {mean}", first.mean(0))


def _check_building(
    world: World, problem: BuildingProblem, at: tuple[Tensor, Tensor], played: list[Played], starts: list[Any]
) -> None:
    """Rewards, dynamics, noise and start of a building."""
    _check_gamma(world, problem.gamma)
    s, after = (
        np.stack([np.asarray(world.base(getattr(step, name))) for step in played]) for name in ("obs", "next_obs")
    )
    a = np.clip(np.stack([step.action for step in played]), -1.0, 1.0).astype(np.float64)
    modelled = problem.rewards(at[0].numpy(), s, a, after)
    for whose, numbers, name in zip(("follower", "leader"), modelled, ("reward", "leader_reward"), strict=True):
        _agree("problem", f"the {whose}'s reward", numbers, [float(getattr(step, name)) for step in played])
    rest = after - problem.move(problem.dynamics(at[0]).numpy(), s, a)
    eye = np.eye(s.shape[1])
    _check_gaussian(rest, problem.noise**2 * eye, "the next state", np.concatenate([s, a], axis=1))
    _check_gaussian(np.stack(starts), eye, "the first state")
