"""Make the follower's parallel environments for SB3 from the environment that a user gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from ...envs.actions import legal_action
from ...envs.core import LeaderEnv
from ...envs.mdp import BilevelProblem, LeaderSet, LinearQuadraticProblem, TabularProblem
from ...envs.mdp.checks import check_gamma, require
from ...envs.tabular import moves_transitions
from ...wrappers import (
    FiniteSteps,
    ForSB3,
    LeaderWrapper,
    ObserveCommitment,
    VectorEnvAdapter,
    WorkerVecEnv,
    make_copy,
)
from ...wrappers.leader_wrapper import check_base
from ...wrappers.vec_env import leader_model, require_tame_step
from ..followers.product_features import Blocks
from ..followers.sb3 import SB3Follower
from ..lower_levels import lower_level
from ..sources import Source, as_env, make_env

EnvSpec = str | gym.Env[Any, Any] | BilevelProblem | Callable[[], gym.Env[Any, Any]]
"""How a user gives an environment: an id, an environment (copied), a problem, or a callable that makes an environment."""

Vectorisation = Literal["native", "dummy", "subproc"]
"""How parallel environments are stepped: by the environment's own batched simulator, in turn, or in one process each."""

_ENV = "an environment, its id, a problem, or a callable that makes an environment"


class Worlds:
    """The environment that the leader shapes; it makes parallel environments for the followers.

    Args:
        env: an id, an environment, or a callable that makes one.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        observe_commitment: whether followers observe the leader context.
        vec_env: how parallel environments are stepped. None takes an environment's native simulator, if it has one and you
            have not wrapped it, and otherwise SB3's ``DummyVecEnv``.

    Attributes:
        env: a single environment, to read properties from.
        name: the environment's id or description.
        source: id and arguments, stored in leader files.
        spec: the argument ``env``; for a problem, its environment.
        gamma: the discount.
        leader_set: the leader's set X, onto which leaders project x and the points around x at which they try.
        problem: the tabular problem; None where there is none or the environment is wrapped.
        linear_quadratic: the linear-quadratic problem; None likewise.
        base_space: observation space of the environment itself.
    """

    def __init__(
        self,
        env: EnvSpec,
        env_kwargs: dict[str, Any] | None,
        observe_commitment: bool,
        vec_env: Vectorisation | None = None,
    ) -> None:
        self.source, self.spec = Source.of(env, env_kwargs), as_env(env)
        self.env: gym.Env[Any, Any]
        if isinstance(env, str):
            self.env = make_env(env, env_kwargs)
        else:
            require(not env_kwargs, "env_kwargs", "none for an environment that is already made", env_kwargs)
            require(isinstance(self.spec, gym.Env) or callable(self.spec), "env", _ENV, repr(env))
            self.env = self.spec if isinstance(self.spec, gym.Env) else self.spec()
        require(isinstance(self.env, gym.Env), "env", _ENV, repr(env))
        shown = ("commitment", "commitment_size", "commitment_is_distribution") if observe_commitment else ()
        for name in ("set_leader", "leader_model", "leader_space", "gamma", "leader_x", *shown):
            require(self.env.has_wrapper_attr(name), "env", f"a leader environment (with {name})", repr(self.env))
        self.gamma = check_gamma(self.env.get_wrapper_attr("gamma"))
        space = self.env.get_wrapper_attr("leader_space")
        require(isinstance(space, gym.spaces.Box), "env", "a leader_space that is a Box", repr(space))
        self._plain = _without_gymnasiums_wrappers(self.env)
        problem = getattr(self._plain, "problem", None)
        self.problem = problem if isinstance(problem, TabularProblem) else None
        self.linear_quadratic = problem if isinstance(problem, LinearQuadraticProblem) else None
        self.leader_set = self._stated_set(space)
        check_base(self.env)
        self.name = self.source.env_id or str(self.env)
        # From here on the environment is converted for SB3; if that changes it, its native simulator no longer fits.
        told = ForSB3(self.env)
        same = told.observation_space == self.env.observation_space and told.action_space == self.env.action_space
        self._plain = self._plain if same else None
        self.env = self.env if same and self.problem is not None else told
        self.base_space = self.env.observation_space
        self.observe_commitment, self.vec_env = observe_commitment, vec_env
        if self.problem is None:
            _try_a_step(self.env, self.name)
        self._view: gym.Env[Any, Any] = ObserveCommitment(self.env) if observe_commitment else self.env

    def _stated_set(self, space: gym.spaces.Box) -> LeaderSet:
        """Return X: the environment's ``leader_set``, else that of its problem, else the box of its ``leader_space``."""
        stated = self.env.get_wrapper_attr("leader_set") if self.env.has_wrapper_attr("leader_set") else None
        if stated is None:
            if self.problem is not None:
                return self.problem.leader_set
            finite = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
            scaled = "a leader_space with finite bounds, by which leaders scale their steps and their search"
            require(finite, "env", scaled, f"one in [{space.low.min():g}, {space.high.max():g}]")
            return LeaderSet(torch.as_tensor(space.low), torch.as_tensor(space.high))
        expected = f"a LeaderSet of {space.shape[0]} coordinates, like leader_space"
        fits = isinstance(stated, LeaderSet) and (stated.dim,) == space.shape
        require(fits, "env.leader_set", expected, repr(stated))
        return stated  # type: ignore[no-any-return]

    @property
    def linear(self) -> bool:
        """Whether followers observe one-hot or product features, for which a linear policy is exact."""
        return isinstance(self.base_space, gym.spaces.Discrete)

    @property
    def model(self) -> TabularProblem | LinearQuadraticProblem | None:
        """The problem that gives the leader's return at the follower's best response; None where unknown."""
        return self.linear_quadratic if self.problem is None else self.problem

    @property
    def continuous_actions(self) -> bool:
        """Whether actions are continuous, so that a policy's exploration noise is left out in evaluations."""
        return isinstance(self.env.action_space, gym.spaces.Box)

    @property
    def draws_once(self) -> bool:
        """Whether the leader makes one draw per episode that the base observations do not show."""
        return self.env.has_wrapper_attr("draws_once") and bool(self.env.get_wrapper_attr("draws_once"))

    def fingerprint(self) -> list[float]:
        """Return a few numbers that differ between environments, up to rounding."""
        known = self.model
        return [float(self.leader_set.dim), self.gamma] if known is None else lower_level(known).fingerprint()

    def start_x(self) -> torch.Tensor:
        """Return the initial x."""
        return torch.as_tensor(self.env.get_wrapper_attr("leader_x"), dtype=torch.float64)

    def require_sampled_return(self, x: torch.Tensor) -> None:
        """Raise ``ValueError`` where the model says that J_L is not a return."""
        paid = self.problem is None or self.problem.leader_reward(x) is not None
        require(paid, "env", "a leader whose objective is a return of the follower's MDP", repr(self.spec))

    def require_every_action(self, x: torch.Tensor, follower: SB3Follower) -> None:
        """Raise ``ValueError`` where some action is unavailable and the follower does not accept action masks."""
        if self.problem is None or self.problem.takes_missing_actions or follower.takes_masks:
            return
        mask = self.problem.follower_mdp(x).mask
        expected = "an environment without action masks (only MaskablePPO accepts them)"
        require(mask is None or bool(mask.all()), "env", expected, "a mask")

    def make(self, n_envs: int) -> VecEnv:
        """Make ``n_envs`` parallel environments as an SB3 VecEnv."""
        if self.vec_env in (None, "native"):
            native = None if self._plain is None else self._plain.vectorised(n_envs, episode_limit(self.env))
            if native is not None:
                return FiniteSteps(VectorEnvAdapter(native, self.observe_commitment, infos=False), self.name)
            where = "for an environment inside a wrapper, or without a batched simulator"
            require(self.vec_env is None, "vec_env", f"None, 'dummy' or 'subproc' {where}", repr(self.vec_env))
        spec = gym.spec(self.spec) if isinstance(self.spec, str) else self.spec  # a worker may not know the id
        make = partial(make_copy, spec, self.source.env_kwargs, self.observe_commitment)
        makers: list[Callable[[], gym.Env[Any, Any]]] = [make] * n_envs
        return FiniteSteps(WorkerVecEnv(makers) if self.vec_env == "subproc" else DummyVecEnv(makers), self.name)

    def alone(self, x: NDArray[np.float64], render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Make one environment under x, as followers see it."""
        kwargs = dict(self.source.env_kwargs)
        if render_mode is not None:
            expected = "None for an environment that is already made"
            require(isinstance(self.spec, str), "render_mode", expected, repr(render_mode))
            kwargs["render_mode"] = render_mode
        spec = gym.spec(self.spec) if isinstance(self.spec, str) else self.spec
        env = make_copy(spec, kwargs, self.observe_commitment)
        env.get_wrapper_attr("set_leader")(x)
        return env

    def base_observation(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Return the environment's own observation, given the follower's."""
        if not self.observe_commitment:
            return obs
        return np.asarray(self._view.get_wrapper_attr("base_observation")(obs))

    @cached_property
    def native(self) -> VectorEnvAdapter | None:
        """A simulator of the tabular problem that computes followers' observations under any x; None where there is none."""
        simulator = None if self._plain is None or self.problem is None else self._plain.vectorised(1, None)
        return None if simulator is None else VectorEnvAdapter(simulator, self.observe_commitment)

    def every_observation(self, x: NDArray[np.float64]) -> NDArray[Any]:
        """Return a follower's observation of each state of a tabular problem under x, ``[S, ...]``."""
        states = np.arange(self.base_space.n)  # type: ignore[attr-defined]
        return self._seen(x, states) if self.observe_commitment else states

    @cached_property
    def only_rewards_move(self) -> bool:
        """Whether x affects rewards only, so that draws and next states have the same distribution at any x.

        Read from the model of a tabular problem. For other environments: log p_x has no gradient in some random steps, at two
        points of X.
        """
        if self.problem is not None:
            with torch.enable_grad():
                kernel = self.problem.kernel(self.problem.start_x().requires_grad_())
            return not kernel.draw.requires_grad and not moves_transitions(self.problem)
        steps, model = _random_steps(self.env, 64), self.env.get_wrapper_attr("leader_model")()
        x, rng = dict(model.named_parameters())["x"], torch.Generator().manual_seed(0)
        low, high = self.leader_set.low.clamp(min=-1e3), self.leader_set.high.clamp(max=1e3)
        for point in (self.start_x(), low + (high - low) * torch.rand(len(low), generator=rng, dtype=torch.float64)):
            with torch.no_grad():
                x.copy_(self.leader_set.project(point).reshape(x.shape))
            log_p = model(*steps)[2]
            if log_p.requires_grad:
                weight = torch.rand(log_p.shape, generator=rng, dtype=log_p.dtype)
                (slope,) = torch.autograd.grad((weight * log_p).sum(), [x], allow_unused=True)
                if slope is not None and bool(slope.abs().max() > 0.0):
                    return False
        return True

    def relabelled(
        self, x: NDArray[np.float64], base: NDArray[Any], action: NDArray[Any], draw: NDArray[Any], after: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.float64]]:
        """Recompute transitions ``[n, ...]``, in the environment's own observations, at x, as :class:`TrueReplay` stores them."""
        model = leader_model(self.env, x)
        with torch.no_grad():
            r_follower, r_leader, _ = model(*(torch.as_tensor(part) for part in (base, action, draw, after)))
        if self.observe_commitment:
            base, after = self._shown(x, base), self._shown(x, after)
        return base, after, r_follower.numpy(), r_leader.double().numpy()

    def _shown(self, x: NDArray[np.float64], base: NDArray[Any]) -> NDArray[Any]:
        """Return what a replay buffer stores of followers' observations: of product features the states' blocks."""
        if not isinstance(self.base_space, gym.spaces.Discrete):
            return self._seen(x, base)
        states, which = np.unique(base, return_inverse=True)
        features, n = self._seen(x, states), int(self.base_space.n)
        return Blocks(n, features.shape[1] // n).split(features, states)[which]

    def _seen(self, x: NDArray[np.float64], base: NDArray[Any]) -> NDArray[Any]:
        """Return what followers see under x where the environment observes ``base``, ``[n, ...]``."""
        if isinstance(self.base_space, gym.spaces.Discrete) and self.native is not None:
            return self.native.every_observation(x, base)
        self.env.get_wrapper_attr("set_leader")(x)
        return np.stack([self._view.get_wrapper_attr("observation")(obs) for obs in base])

    def horizon(self, tail: float) -> int:
        """Return the number of steps until the discount falls to ``tail``, at most an episode's limit."""
        return steps_to(tail, self.gamma, episode_limit(self.env))


def steps_to(tail: float, gamma: float, limit: int | None) -> int:
    """Return the number of steps until the discount falls to ``tail``, at most an episode's limit."""
    steps = 1 if gamma == 0.0 else int(np.ceil(np.log(tail) / np.log(gamma)))
    return max(1, min(steps, limit or steps))


def _random_steps(env: gym.Env[Any, Any], n: int) -> list[torch.Tensor]:
    """Return (obs, action, draw, next_obs) of ``n`` steps with random actions."""
    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    steps: list[tuple[Any, ...]] = []
    for _ in range(n):
        action = legal_action(env)
        after, _, terminated, truncated, info = env.step(action)
        steps.append((obs, action, info.get("leader_draw", 0), after))
        obs = env.reset()[0] if terminated or truncated else after
    return [torch.as_tensor(np.stack([np.asarray(part) for part in column])) for column in zip(*steps, strict=True)]


def _try_a_step(env: gym.Env[Any, Any], name: str) -> None:
    """Take one step and compare it with the leader model, before any training.

    Raises:
        ValueError: the info lacks the leader's reward, or the leader model has another form than required.
    """
    obs, _ = env.reset(seed=0)
    action = legal_action(env)
    after, reward, _, _, info = env.step(action)
    require_tame_step(after, float(reward), f"from {name} in a trial step")
    require("leader_reward" in info, "info", "the key 'leader_reward' after every step", sorted(info))
    batch = [torch.as_tensor(np.asarray(part)[None]) for part in (obs, action, info.get("leader_draw", 0), after)]
    model = env.get_wrapper_attr("leader_model")()
    form = "a torch module with a Parameter x that returns (r_follower, r_leader, log_p), each of shape [n]"
    holds_x = isinstance(model, torch.nn.Module) and "x" in dict(model.named_parameters())
    require(holds_x, "leader_model", form, repr(model))
    answer = model(*batch)
    fits = isinstance(answer, tuple) and len(answer) == 3 and all(getattr(a, "shape", None) == (1,) for a in answer)
    require(fits, "leader_model", form, repr(answer))
    for name, modelled, paid in (("follower", answer[0], reward), ("leader", answer[1], info["leader_reward"])):
        if abs(float(modelled.detach()) - float(paid)) > 1e-4 * max(1.0, abs(float(paid))):
            warnings.warn(
                f"leader_model: in a trial step the {name}'s reward is {float(modelled.detach()):g} by the model and "
                f"{float(paid):g} by the environment; x's gradient uses the model",
                stacklevel=5,
            )


def _without_gymnasiums_wrappers(env: gym.Env[Any, Any]) -> LeaderEnv[Any, Any] | None:
    """Return the inner LeaderEnv; None where a user's wrapper may change the follower's environment."""
    while isinstance(env, gym.Wrapper):
        if type(env) not in (TimeLimit, OrderEnforcing, PassiveEnvChecker):
            return None
        env = env.env
    return env if isinstance(env, LeaderEnv) else None


def episode_limit(env: gym.Env[Any, Any]) -> int | None:
    """Return the smallest time limit among an environment's wrappers."""
    limits = []
    while isinstance(env, (gym.Wrapper, LeaderWrapper)):
        if isinstance(env, TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    return min(limits, default=None)
