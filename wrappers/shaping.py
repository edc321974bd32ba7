r"""A leader pays the follower phi_x(s,a,s') in addition to the reward r of any environment.

    LinearReward       x . f(s,a,s')                        with your features f
    EventPayments      sum_k x_k 1[event k at (s,a,s')]     a fee or an incentive on events
    RewardModule       m_x(s,a,s')                          x: the flattened parameters of a torch module
    LinearPotential    gamma Phi_x(s') - Phi_x(s),          Phi_x(s) = x . f(s)
    PotentialModule    the same,                            Phi_x a torch module

Potentials are 0 where an episode terminates. Their payments telescope: every policy's return is changed by the same
-E Phi_x(s_0), so that the optimal policies are the same for every x (Ng, Harada and Russell, ICML 1999). x then only affects how
fast a follower learns; the return at the exact best response has no gradient in x.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..envs.actions import legal_action
from ..envs.mdp import LeaderSet
from ..envs.mdp.checks import as_float64, check_gamma, check_number, check_size, one_number, require
from .leader_wrapper import Floats, LeaderReward, LeaderWrapper, Step, check_base, finite_vector
from .vec_env import require_tame_step

_TRIED = 8  # steps on which a payment is tried
Space = gym.spaces.Space[Any]


class Shaping(ABC):
    """Base class of payments phi_x, which are functions of x and of measurements of a step.

    Attributes:
        dim: number of entries of x.
    """

    dim: int

    def prepare(self, observation_space: Space, action_space: Space, gamma: float) -> None:
        """Store the spaces and the discount; called once, before the first step."""
        self._spaces = {"obs": observation_space, "action": action_space, "next_obs": observation_space}
        self._gamma = gamma

    @property
    def start(self) -> Tensor:
        """The leader's initial x, ``[dim]``."""
        return torch.zeros(self.dim, dtype=torch.float64)

    @abstractmethod
    def measure(self, step: Step) -> Floats:
        """Return the measurements of a step that phi_x needs, ``[m]``; raise ``ValueError`` if one is not finite."""

    @abstractmethod
    def paid(self, x: Tensor, measured: Tensor) -> Tensor:
        """Return phi_x, ``[...]``, for x ``[dim]`` and measurements ``[..., m]``; differentiable in x."""

    def paid_once(self, x: Floats, measured: Floats) -> float:
        """Return phi_x of one step."""
        with torch.no_grad():
            return float(self.paid(torch.from_numpy(x), torch.from_numpy(measured)[None])[0])

    def check(self, measured: Tensor) -> None:  # noqa: B027
        """Raise ``ValueError`` if phi_x on these steps, ``[n, m]``, is not finite or does not depend on x."""


class _Linear(Shaping):
    """phi_x = x . c, where c are the measurements."""

    def paid(self, x: Tensor, measured: Tensor) -> Tensor:
        return measured @ x

    def paid_once(self, x: Floats, measured: Floats) -> float:
        return float(measured @ x)


class LinearReward(_Linear):
    """A payment linear in features: phi_x(s,a,s') = x . f(s,a,s').

    Args:
        features: a function ``f(obs, action, next_obs) -> [size]``.
        size: number of features, at least 1.

    Raises:
        ValueError: ``features`` is not callable, or ``size`` is below 1; in a step, the features have another length or are not
            finite.
    """

    def __init__(self, features: Callable[[Any, Any, Any], Any], size: int) -> None:
        require(callable(features), "features", "a callable (obs, action, next_obs) -> [size]", repr(features))
        self._features, self.dim = features, check_size(size, "size")

    def measure(self, step: Step) -> Floats:
        return finite_vector(self._features(step.obs, step.action, step.next_obs), self.dim, "features")


class EventPayments(_Linear):
    """A payment of x_k whenever the k-th event happens; a negative x_k is a fee.

    Args:
        events: functions ``(obs, action, next_obs) -> bool``, at least one.

    Raises:
        ValueError: there are no events, or one is not callable; in a step, an event returns neither True nor False.
    """

    def __init__(self, events: Sequence[Callable[[Any, Any, Any], bool]]) -> None:
        fits = isinstance(events, Sequence) and len(events) > 0 and all(callable(event) for event in events)
        require(fits, "events", "callables (obs, action, next_obs) -> bool, at least one", repr(events))
        self._events, self.dim = tuple(events), len(events)

    def measure(self, step: Step) -> Floats:
        happened = [event(step.obs, step.action, step.next_obs) for event in self._events]
        for k, answer in enumerate(happened):
            require(isinstance(answer, (bool, np.bool_)), f"events[{k}]", "True or False", repr(answer))
        return np.array(happened, dtype=np.float64)


class LinearPotential(_Linear):
    """A payment of gamma Phi_x(s') - Phi_x(s) with a potential linear in features: Phi_x(s) = x . f(s), and 0 at a terminal s'.

    Args:
        features: a function ``f(obs) -> [size]``.
        size: number of features, at least 1.

    Raises:
        ValueError: in the same cases as for :class:`LinearReward`.
    """

    def __init__(self, features: Callable[[Any], Any], size: int) -> None:
        require(callable(features), "features", "a callable obs -> [size]", repr(features))
        self._features, self.dim = features, check_size(size, "size")

    def measure(self, step: Step) -> Floats:
        before = finite_vector(self._features(step.obs), self.dim, "features")
        if step.terminated:
            return -before
        return self._gamma * finite_vector(self._features(step.next_obs), self.dim, "features") - before


class _Module(Shaping):
    """A payment by a torch module; x is its parameters, flattened in their order, float64."""

    def __init__(self, module: nn.Module) -> None:
        require(isinstance(module, nn.Module), "module", "a torch module", repr(module))
        self._module = copy.deepcopy(module).double().eval()
        self._shapes = {name: p.shape for name, p in self._module.named_parameters()}
        self.dim = sum(shape.numel() for shape in self._shapes.values())
        require(self.dim > 0, "module", "a module with parameters, which become x", repr(module))

    @property
    def start(self) -> Tensor:
        """The module's own parameters."""
        return torch.cat([p.detach().reshape(-1) for p in self._module.parameters()])

    def _measure(self, step: Step, *names: str) -> list[Floats]:
        return [np.asarray(getattr(step, name), dtype=np.float64).reshape(-1) for name in names]

    def _parts(self, measured: Tensor, *names: str) -> list[Tensor]:
        """Return observations and actions as inputs of the module: Box float64 ``[n, ...]``, others int64, Discrete ``[n]``."""
        spaces: list[Any] = [self._spaces[name] for name in names]
        pieces = measured.split([int(np.prod(space.shape, dtype=np.int64)) for space in spaces], dim=1)
        parts = [(space, piece.reshape(-1, *space.shape)) for space, piece in zip(spaces, pieces, strict=True)]
        return [part if isinstance(space, gym.spaces.Box) else part.long() for space, part in parts]

    def _call(self, x: Tensor, *inputs: Tensor) -> Tensor:
        pieces = x.split([shape.numel() for shape in self._shapes.values()])
        shaped = [piece.reshape(shape) for shape, piece in zip(self._shapes.values(), pieces, strict=True)]
        out = functional_call(self._module, dict(zip(self._shapes, shaped, strict=True)), inputs)
        n = inputs[0].shape[0]
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else repr(out)
        require(
            isinstance(out, Tensor) and out.shape == (n,),
            "module",
            f"an output of shape ({n},), one number for each step",
            got,
        )
        return out  # type: ignore[no-any-return]

    def paid(self, x: Tensor, measured: Tensor) -> Tensor:
        flat = self._paid(x, measured.reshape(-1, measured.shape[-1]))
        return flat.reshape(measured.shape[:-1])

    @abstractmethod
    def _paid(self, x: Tensor, measured: Tensor) -> Tensor:
        """Return phi_x, ``[n]``, of measurements ``[n, m]``."""

    def check(self, measured: Tensor) -> None:
        x = self.start.requires_grad_()
        out = self.paid(x, measured)
        require(bool(torch.isfinite(out).all()), "module", "finite rewards", out.detach().tolist())
        depends = out.requires_grad and bool(torch.autograd.grad(out.square().sum() + out.sum(), x)[0].any())
        expected = "a reward that depends on its parameters x"
        require(depends, "module", expected, "a gradient in x of 0 at every step tried")


class RewardModule(_Module):
    """A payment by a torch module: phi_x(s,a,s') = m_x(s,a,s').

    Args:
        module: a torch module ``m(obs, action, next_obs) -> [n]`` on batches: Box as float64 ``[n, ...]``, others as int64,
            Discrete as ``[n]``. It is copied and evaluated in float64. After training,
            ``torch.nn.utils.vector_to_parameters(x, module)`` writes the learned x into your module.

    Raises:
        ValueError: ``module`` is not a torch module or has no parameters; in trial steps, its output has another shape, is not
            finite, or does not depend on its parameters.
    """

    def measure(self, step: Step) -> Floats:
        return np.concatenate(self._measure(step, "obs", "action", "next_obs"))

    def _paid(self, x: Tensor, measured: Tensor) -> Tensor:
        return self._call(x, *self._parts(measured, "obs", "action", "next_obs"))


class PotentialModule(_Module):
    """A payment of gamma Phi_x(s') - Phi_x(s), where the potential Phi_x is a torch module, and 0 at a terminal s'.

    Args:
        module: a torch module ``Phi(obs) -> [n]`` on batches, with inputs as for :class:`RewardModule`.

    Raises:
        ValueError: in the same cases as for :class:`RewardModule`.
    """

    def measure(self, step: Step) -> Floats:
        return np.concatenate([[not step.terminated], *self._measure(step, "obs", "next_obs")])

    def _paid(self, x: Tensor, measured: Tensor) -> Tensor:
        obs, next_obs = self._parts(measured[:, 1:], "obs", "next_obs")
        return self._gamma * measured[:, 0] * self._call(x, next_obs) - self._call(x, obs)


class ShapedReward(LeaderWrapper):
    """A leader environment in which the follower is paid ``r + phi_x`` and the leader ``r_l - leader_pays * phi_x``.

    The leader context is x. ``info["leader_draw"]`` is (r, r_l, the measurements of the step that phi_x needs). The constructor
    resets the environment and takes a few trial steps to check phi_x.

    Args:
        env: the base environment, with Box, Discrete, MultiDiscrete or MultiBinary observations and actions.
        shaping: the payment phi_x.
        gamma: discount factor of both players, and of potentials, in [0, 1). Default: 0.99.
        low: lower bound on x, a number or ``[dim]``. Default: -1.
        high: upper bound on x, a number or ``[dim]``. Default: 1.
        leader_reward: the leader's reward r_l before any payment, a function of a :class:`Step`. Default: the base environment's
            reward.
        leader_pays: the leader's cost per unit that the follower is paid. Default: 0.

    Raises:
        ValueError: ``env`` is not a Gymnasium environment or has other spaces; the bounds cross or exclude the initial x; in
            trial steps, features have another length, or phi_x is not finite or does not depend on x; in ``step``, a payment is
            not finite.

    Example:
        >>> import gymnasium as gym
        >>> from bilevel_gym.wrappers import LinearPotential, ShapedReward
        >>> height = LinearPotential(lambda obs: [np.sin(3.0 * obs[0])], size=1)
        >>> env = ShapedReward(gym.make("MountainCar-v0"), height, low=0.0, high=10.0)
        >>> env.set_leader([2.0])
        >>> _ = env.reset(seed=0)
        >>> _, reward, _, _, info = env.step(2)
        >>> reward != info["leader_reward"] == -1.0
        True
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        shaping: Shaping,
        gamma: float = 0.99,
        low: Any = -1.0,
        high: Any = 1.0,
        leader_reward: LeaderReward | None = None,
        leader_pays: float = 0.0,
    ) -> None:
        check_base(env)
        require(isinstance(shaping, Shaping), "shaping", "a Shaping, e.g. LinearReward(features, size)", repr(shaping))
        shaping = copy.copy(shaping)
        shaping.prepare(env.observation_space, env.action_space, check_gamma(gamma))
        bounds = []
        for name, value in (("low", low), ("high", high)):
            bound = as_float64(value, name)
            fits, got = tuple(bound.shape) in ((), (shaping.dim,)), f"shape {tuple(bound.shape)}"
            require(fits, name, f"a number or shape ({shaping.dim},)", got)
            bounds.append(bound.expand(shaping.dim).clone())
        leader_set = LeaderSet(bounds[0], bounds[1])
        own = shaping.start
        start = leader_set.check(own, "the module's parameters") if bool(own.any()) else leader_set.project(own)
        self.shaping = shaping
        self._share = check_number(leader_pays, "leader_pays", low=-math.inf, open_high=True, open_low=True)
        super().__init__(env, leader_set, start, gamma, leader_reward)
        # Check the payment on a few steps before anything learns from it.
        measured, done = [], True
        for _ in range(_TRIED):
            if done:
                before, _ = env.reset()
            action = legal_action(env)
            after, reward, terminated, truncated, info = env.step(action)
            paid = one_number(reward, "reward")
            require_tame_step(after, paid, f"from {env} in a trial step")
            measured.append(shaping.measure(Step(before, action, paid, after, bool(terminated), info)))
            before, done = after, terminated or truncated
        shaping.check(torch.from_numpy(np.stack(measured)))

    def _carried(self, step: Step) -> Floats:
        return self.shaping.measure(step)

    def _rewards(self, r: float, r_l: float, c: Floats) -> tuple[float, float]:
        paid = self.shaping.paid_once(self._x, c)
        if not math.isfinite(paid):  # formatting an array takes longer than a step
            require(False, "shaping", "a finite payment in every step", f"{paid} at x = {self._x}")
        return r + paid, r_l - self._share * paid

    def _answer(self, x: Tensor, r: Tensor, r_l: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        paid = self.shaping.paid(x, c)
        return r + paid, r_l - self._share * paid, torch.zeros_like(r)
