"""Environments that simulate a linear-quadratic Stackelberg game, single and parallel.

Observations are states. Actions a are clipped to [-1, 1] and give the follower's inputs ``u_f = action_bound * a``. In each step
the leader's input ``u_l ~ N(-K s, sigma^2 I)`` is drawn first, then the noise of the dynamics.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .core import Flags, LeaderVectorEnv, OfProblem, ProblemEnv
from .mdp.checks import as_float64, check_size, require
from .mdp.linear_quadratic import LinearQuadraticProblem, QuadraticCost
from .render import FOLLOWER, draw_heat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]


def _root(covariance: Tensor) -> Floats:
    """Return a matrix L with L L^T = covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Floats = (vectors * values.clamp_min(0.0).sqrt()).numpy()
    return root


def _quadratic(v: Any, matrix: Any) -> Any:
    """v^T M v of each row, ``[...]`` for v ``[..., k]``; numpy or torch."""
    return ((v @ matrix) * v).sum(-1)


class _Plant:
    """The game's matrices as numpy arrays, and the step of parallel environments."""

    def __init__(self, problem: LinearQuadraticProblem) -> None:
        d = problem.dynamics
        self.n, self.m_l, self.m_f = problem.sizes
        self.A_T, self.B_l_T, self.B_f_T = (B.T.numpy() for B in (d.A, d.B_leader, d.B_follower))
        self.noise_T, self.start_T = _root(d.noise).T, _root(d.start).T
        self.sigma, self.bound = problem.sigma, problem.action_bound.numpy()
        self.costs = [
            tuple(part.numpy() for part in (cost.Q, cost.R_leader, cost.R_follower))
            for cost in (problem.follower_cost, problem.leader_cost)
        ]

    def step(self, s: Floats, K: Floats, action: Floats, normal: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return u_l, the follower's reward, the leader's reward and s', with one row for each environment.

        Args:
            s: states, ``[N, n]``.
            K: gains, ``[m_l, n]`` for all, or ``[N, m_l, n]``.
            action: the follower's actions, ``[N, m_f]``.
            normal: standard normal numbers, ``[N, m_l + n]``.
        """
        mean = s @ K.T if K.ndim == 2 else np.einsum("Nij,Nj->Ni", K, s)
        u_l = self.sigma * normal[:, : self.m_l] - mean
        u_f = self.bound * np.clip(action, -1.0, 1.0)
        r_f, r_l = (-(_quadratic(s, Q) + _quadratic(u_l, R_l) + _quadratic(u_f, R_f)) for Q, R_l, R_f in self.costs)
        following = s @ self.A_T + u_l @ self.B_l_T + u_f @ self.B_f_T + normal[:, self.m_l :] @ self.noise_T
        return u_l, r_f, r_l, following


class LinearQuadraticLeaderModel(nn.Module):
    r"""Rewards and log-probability of steps, as functions of x: :math:`\log p_x = \log N(u_l; -K s, \sigma^2 I)`.

    Args:
        problem: the game.
        x: the initial value of the parameter, ``[dim]``.
    """

    def __init__(self, problem: LinearQuadraticProblem, x: Tensor) -> None:
        super().__init__()
        self.problem = problem
        self.x = nn.Parameter(x.detach().to(torch.float64).clone())

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate a batch of steps.

        Args:
            obs: states, ``[..., n]``.
            action: the follower's actions, ``[..., m_f]``, clipped to [-1, 1].
            draw: the leader's inputs u_l, ``info["leader_draw"]``, ``[..., m_l]``.
            next_obs: not used, because its distribution given s, u_l and u_f does not depend on x.

        Returns:
            r_follower, r_leader, log_p, each ``[...]``, float64.
        """
        p = self.problem
        s, a, u_l = (torch.as_tensor(part).to(torch.float64) for part in (obs, action, draw))
        u_f = p.action_bound * a.clamp(-1.0, 1.0)
        attached = 0.0 * self.x.sum()

        def reward(cost: QuadraticCost) -> Tensor:
            paid = _quadratic(s, cost.Q) + _quadratic(u_l, cost.R_leader) + _quadratic(u_f, cost.R_follower)
            return attached - torch.as_tensor(paid)

        z = (u_l + s @ p.gain(self.x).T) / p.sigma
        log_p = -0.5 * z.square().sum(-1) - u_l.shape[-1] * math.log(p.sigma * math.sqrt(2.0 * math.pi))
        return reward(p.follower_cost), reward(p.leader_cost), log_p


class _LinearLeader(OfProblem):
    """Base class of both environments: the plant and the leader's interface."""

    problem: LinearQuadraticProblem

    def _set_up(self, problem: LinearQuadraticProblem, n_envs: int) -> None:
        super()._set_up(problem, n_envs)
        self._plant, self.gamma, self.commitment_size = _Plant(problem), problem.gamma, problem.leader_dim
        observations = gym.spaces.Box(-np.inf, np.inf, (self._plant.n,), np.float64)
        self._spaces = observations, gym.spaces.Box(-1.0, 1.0, (self._plant.m_f,), np.float32)

    def _load(self, x: Tensor) -> None:
        self._x = x
        self._K: Floats = self.problem.gain(x).numpy()

    def set_leader(self, x: Any) -> None:
        """Set x (copied), which takes effect at the next step.

        Args:
            x: a point of X, ``[dim]``; parallel environments also take ``[num_envs, dim]``, one row for each.

        Raises:
            ValueError: x has the wrong shape, has an entry that is not finite, lies outside X, or has no best response of finite
                cost (the message names the eigenvalue).
        """
        point, leader_set = as_float64(x, "x").detach(), self.problem.leader_set
        many = point.ndim == 2 and isinstance(self, LeaderVectorEnv)
        point = leader_set.check_rows(point, self._n_envs) if many else leader_set.check(point)
        self.problem.check_stable(point)
        self._load(point.clone())

    def leader_model(self) -> LinearQuadraticLeaderModel:
        """Return the leader model of a step.

        Raises:
            ValueError: the environments have different x.
        """
        require(self._x.ndim == 1, "x", "one x for all environments", f"shape {tuple(self._x.shape)}")
        return LinearQuadraticLeaderModel(self.problem, self._x)


def _numbers(values: Floats) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"


def _check_actions(actions: Any, shape: tuple[int, ...], name: str) -> Floats:
    """Return the actions as finite float64 numbers of this shape."""
    a = np.asarray(actions, dtype=np.float64)
    if a.shape != shape or not np.isfinite(a).all():
        got = f"shape {a.shape}" if a.shape != shape else "NaN or infinity"
        raise ValueError(f"{name}: expected finite numbers of shape {shape}, got {got}")
    return a


class LinearQuadraticVectorEnv(_LinearLeader, LeaderVectorEnv):
    """Parallel ``LinearQuadraticEnv``, stepped together in numpy.

    All environments start and are truncated together, and are reset in the same step. Each step draws m_l + n normal numbers for
    each environment from one generator, for any actions, so that two simulators with the same seed have common random numbers.

    Args:
        problem: the game.
        num_envs: number of parallel environments.
        max_episode_steps: number of steps after which an episode is truncated; None for never.

    Raises:
        ValueError: a size is below 1; in ``step``, actions have the wrong shape or are not finite.
    """

    def __init__(self, problem: LinearQuadraticProblem, num_envs: int, max_episode_steps: int | None = None) -> None:
        self._set_up(problem, check_size(num_envs, "num_envs"))
        super().__init__(num_envs, max_episode_steps, *self._spaces)

    def _start(self) -> Floats:
        start: Floats = self.np_random.standard_normal((self.num_envs, self._plant.n)) @ self._plant.start_T
        return start

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start every environment anew; ``options`` are not used."""
        super().reset(seed=seed)
        self._elapsed[:] = 0
        self._state = self._start()
        return self._state.copy(), {}

    def step(self, actions: Any) -> tuple[Floats, Floats, Flags, Flags, dict[str, Any]]:
        """Step every environment; see the class."""
        plant, N = self._plant, self.num_envs
        if self._state is None:
            raise gym.error.ResetNeeded("step was called before reset")
        a = _check_actions(actions, (N, plant.m_f), "actions")
        normal = self.np_random.standard_normal((N, plant.m_l + plant.n))
        u_l, r_f, r_l, following = plant.step(self._state, self._K, a, normal)
        infos: dict[str, Any] = {
            "leader_reward": r_l,
            "_leader_reward": self._everyone,
            "leader_draw": u_l,
            "_leader_draw": self._everyone,
        }
        self._elapsed += 1
        truncated = self._elapsed >= self._limit
        if truncated.any():
            following = self._restart(infos, truncated, following, self._start())
        self._state = following
        return following.copy(), r_f, np.zeros(N, dtype=np.bool_), truncated, infos

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """Return the leader context of each environment, its x, ``[num_envs, commitment_size]``."""
        shown: NDArray[np.float32] = np.broadcast_to(self._x.numpy(), (self.num_envs, self.commitment_size))
        return shown.astype(np.float32)


class LinearQuadraticEnv(_LinearLeader, ProblemEnv):
    """The follower's side of a linear-quadratic Stackelberg game, under the leader's current K.

    ``step`` returns the follower's reward; ``info`` has ``leader_reward`` and ``leader_draw`` (u_l). Episodes do not end: use
    ``gymnasium.wrappers.TimeLimit``.

    Args:
        problem: the game.
        render_mode: ``"ansi"`` renders one line of text, ``"rgb_array"`` a picture; None (default) and other modes nothing.

    Raises:
        ValueError: in ``step``, the action has the wrong shape or is not finite.
    """

    vector_class: ClassVar[type[Any]] = LinearQuadraticVectorEnv
    size: ClassVar[tuple[float, float]] = (10.0, 3.2)

    def __init__(self, problem: LinearQuadraticProblem, render_mode: str | None = None) -> None:
        super().__init__(problem, render_mode)
        self._path: list[Floats] = []
        self._inputs: list[Floats] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Draw a start state; ``options`` are not used."""
        super().reset(seed=seed)
        self._state = self.np_random.standard_normal((1, self._plant.n)) @ self._plant.start_T
        self._path, self._inputs, self._last = [self._state[0]], [], ""
        return self._state[0].copy(), {}

    def step(self, action: Any) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Take one step; it draws m_l + n normal numbers, for any action."""
        plant, s = self._plant, self._state
        if s is None:
            raise gym.error.ResetNeeded("step was called before reset")
        a = _check_actions(action, (plant.m_f,), "action")
        normal = self.np_random.standard_normal((1, plant.m_l + plant.n))
        u_l, r_f, r_l, self._state = plant.step(s, self._K, a[None], normal)
        reward, leader_reward = r_f.item(), r_l.item()
        if self.render_mode is not None:
            u_f = plant.bound * np.clip(a, -1.0, 1.0)
            self._path.append(self._state[0])
            self._inputs.append(u_f)
            inputs = f"follower's input {_numbers(u_f)}, leader's {_numbers(u_l[0])}"
            self._last = f"{inputs}: follower {reward:.3g}, leader {leader_reward:.3g}; "
        info = {"leader_reward": leader_reward, "leader_draw": u_l[0]}
        return self._state[0].copy(), reward, False, False, info

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """Return the leader context, which is x in every state, ``[commitment_size]``."""
        return self._x.numpy().astype(np.float32)

    def _text(self) -> str:
        return self._last + ("" if self._state is None else f"state {_numbers(self._state[0])}")

    def _draw(self, panel: Axes) -> None:
        """Draw the path of the state's first two coordinates, K as a heat map, and the follower's inputs so far."""
        figure = panel.get_figure(root=True)
        assert figure is not None
        figure.clear()
        path_panel, gain_panel, input_panel = figure.subplots(1, 3)
        path = np.reshape(self._path, (-1, self._plant.n))
        across, along = (np.arange(len(path)), path[:, 0]) if self._plant.n == 1 else (path[:, 0], path[:, 1])
        path_panel.plot(across, along, color="0.6", linewidth=1.0, marker=".", markersize=3.0)
        path_panel.plot(across[-1:], along[-1:], "o", color=FOLLOWER, markersize=8.0, markeredgecolor="white")
        path_panel.axhline(0.0, color="0.85", zorder=0)
        if self._plant.n > 1:
            path_panel.axvline(0.0, color="0.85", zorder=0)
        names = ("step", "state 0") if self._plant.n == 1 else ("state 0", "state 1")
        path_panel.set(xlabel=names[0], ylabel=names[1], title="path of the state")
        largest = max(abs(self.problem.leader_set.low).max(), abs(self.problem.leader_set.high).max())
        limits = {"vmin": -float(largest), "vmax": float(largest)}
        draw_heat(gain_panel, self._K, "K", cmap="RdBu", aspect="auto", **limits)
        gain_panel.set(xlabel="state", ylabel="leader's input", title="the leader's feedback")
        gain_panel.set_xticks(range(self._plant.n))
        gain_panel.set_yticks(range(self._plant.m_l))
        for i, line in enumerate(np.reshape(self._inputs, (-1, self._plant.m_f)).T):
            input_panel.step(np.arange(len(line)), line, where="post", label=f"input {i}")
        input_panel.set(xlabel="step", ylabel="u_f", title="the follower's inputs")
        if self._inputs and self._plant.m_f > 1:
            input_panel.legend(fontsize=8, frameon=False)
