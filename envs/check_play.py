"""Play Gymnasium environments and PettingZoo games through one interface, with a record of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel

from .actions import draw_action
from .mdp.checks import one_number, require

Floats = NDArray[np.float64]

RTOL = 1e-4
"""Relative tolerance between a step's reward and the leader model's, which allows for float32 rewards."""


@dataclass(frozen=True)
class Played:
    """The record of one step.

    Attributes:
        obs: the observation before the step.
        action: the action, or all players' actions in a game, ``[players]``.
        draw: ``info["leader_draw"]``.
        next_obs: the observation after the step, before any reset.
        reward: the follower's reward, a number; in a game one for each player, ``[players]``.
        leader_reward: ``info["leader_reward"]``.
        ended: whether the episode ended with the step.
        terminated: whether the environment, and not a time limit, ended the episode.
        first: whether the step was the episode's first.
        mask: which actions were available, according to ``action_masks``; None if the environment has no such method.
    """

    obs: Any
    action: Any
    draw: Any
    next_obs: Any
    reward: Floats
    leader_reward: float
    ended: bool
    terminated: bool
    first: bool
    mask: Any = None


class World:
    """An environment under check.

    Args:
        env: a Gymnasium environment, or a PettingZoo game in its parallel or its turn-by-turn (AEC) interface.

    Attributes:
        env: the environment, unchanged.
        game: whether it is a PettingZoo game.
        unchecked: properties that could not be checked, with the reasons.
        box: the leader space; None if x is not a vector.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.game = env, isinstance(env, (ParallelEnv, AECEnv))
        known = self.game or isinstance(env, gym.Env)
        require(
            known,
            "env",
            "a Gymnasium environment or a PettingZoo game, its id, or a callable that makes one",
            repr(env),
        )
        self._player: Any = aec_to_parallel(env) if isinstance(env, AECEnv) else env
        self.unchecked: list[str] = []
        self._obs: Any = None
        self._first = True

    # --- the leader's side ---------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Return whether the environment, or one that it wraps, has an attribute."""
        return hasattr(self.env, name) if self.game else bool(self.env.has_wrapper_attr(name))

    def get(self, name: str) -> Any:
        """Return an attribute of the environment or of one that it wraps."""
        return getattr(self.env, name) if self.game else self.env.get_wrapper_attr(name)

    def find(self, name: str) -> Any:
        """Return an attribute, or None if there is none."""
        return self.get(name) if self.has(name) else None

    @property
    def box(self) -> gym.spaces.Box | None:
        return self.get("leader_space")  # type: ignore[no-any-return]

    @property
    def x(self) -> Floats:
        """The leader's current parameter, ``[dim]``."""
        return np.array(self.get("leader_x"), dtype=np.float64)

    def set_leader(self, x: Floats) -> None:
        """Set the leader's parameter to a copy of x."""
        self.get("set_leader")(x.copy())

    @property
    def problem(self) -> Any:
        """The environment's own problem; None if there is none, or if it belongs to an inner environment with another leader."""
        found, inner = self.find("problem"), self.env.unwrapped
        own = found is not None and (getattr(inner, "problem", None) is found or not hasattr(inner, "leader_space"))
        return found if own else None

    # --- the followers' side -------------------------------------------------------------------------------------

    def seed_actions(self, seed: int) -> None:
        """Seed the random actions."""
        for i, space in enumerate(self._action_spaces()):
            space.seed(seed + i)

    def _action_spaces(self) -> list[gym.Space[Any]]:
        if self.game:
            return [self._player.action_space(agent) for agent in self._player.possible_agents]
        return [self.env.action_space]

    def mask(self) -> Any:
        """Return which actions are available now; None if the environment has no ``action_masks``."""
        return (
            np.asarray(self.get("action_masks")(), dtype=np.int8)
            if not self.game and self.has("action_masks")
            else None
        )

    def sample(self, mask: Any) -> Any:
        """Draw a random available action; in a game one for each player, ``[players]``."""
        if self.game:
            return np.array([space.sample() for space in self._action_spaces()])
        return draw_action(self.env.action_space, mask)

    def base(self, obs: Any) -> Any:
        """Return the environment's own observation, without the leader context that a wrapper adds."""
        return self.get("base_observation")(obs) if self.has("base_observation") else obs

    def reset(self, seed: int | None = None) -> Any:
        """Begin an episode; return its first observation."""
        obs = (self._player if self.game else self.env).reset(seed=seed)[0]
        self._obs, self._first = self._joint(obs), True
        return self._obs

    def _joint(self, obs: Any) -> Any:
        """Return the players' observations: a single one if all are equal, else one for each player."""
        if not self.game:
            return obs
        seen = [obs[agent] for agent in self._player.possible_agents if agent in obs]
        return seen[0] if all(same(seen[0], other) for other in seen) else np.stack(seen)

    def step(self, action: Any = None) -> Played:
        """Take a step, by default with a random action.

        Raises:
            ValueError: a reward is not a finite number, or ``info`` lacks a key that the leader needs.
        """
        mask = self.mask() if action is None else None
        action = self.sample(mask) if action is None else action
        if self.game:
            agents = list(self._player.possible_agents)
            after, rewards, ended, cut, infos = self._player.step(dict(zip(agents, action, strict=True)))
            reward: Any = [rewards.get(agent, 0.0) for agent in agents]
            terminated, truncated, info = all(ended.values()), all(cut.values()), infos[agents[0]]
        else:
            after, reward, terminated, truncated, info = self.env.step(action)
        for key in ("leader_reward", "leader_draw"):
            require(key in info, "info", f"the key {key!r} after every step", list(info))
        draw, paid_leader = info["leader_draw"], one_number(info["leader_reward"], "info['leader_reward']")
        paid = np.array(reward if self.game else one_number(reward, "reward"), dtype=np.float64)
        if not np.isfinite(paid).all():
            raise ValueError(f"reward: expected finite numbers in every step, got {paid}")
        if not math.isfinite(paid_leader):
            raise ValueError(f"info['leader_reward']: expected one finite number in every step, got {paid_leader}")
        if not isinstance(draw, (dict, tuple)) and np.asarray(draw).dtype.kind not in "fiub":
            told = "numbers: the random values whose distribution depends on x, 0 if there are none"
            raise ValueError(f"info['leader_draw']: expected {told}, got {draw!r}")
        after = self._joint(after)
        if isinstance(after, np.ndarray) and after.dtype.kind == "f" and np.isnan(after).any():
            raise ValueError(f"observation: expected numbers in every step, got {after}")
        played = Played(
            self._obs, action, draw, after, paid, paid_leader,
            bool(terminated or truncated), bool(terminated), self._first, mask,
        )  # fmt: skip
        self._obs, self._first = after, False
        return played


def same(one: Any, two: Any, rtol: float = 1e-6) -> bool:
    """Return whether two observations, draws or rewards are equal, up to rounding."""
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[k], two[k], rtol) for k in one)
    if isinstance(one, tuple):
        return isinstance(two, tuple) and len(one) == len(two) and all(map(same, one, two))
    a, b = np.asarray(one), np.asarray(two)
    if a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub" or a.size == 0 or a.shape != b.shape:
        return a.shape == b.shape and bool((a == b).all())
    small = (
        0.01 * rtol * float(np.abs(np.nan_to_num(a, posinf=0.0, neginf=0.0)).max())
    )  # relative, since rewards can have any unit
    return bool(np.allclose(a, b, rtol=rtol, atol=small, equal_nan=True))


def apart(modelled: Any, paid: Any) -> Floats:
    """Return relative differences of rewards, by the larger of each two, or by a hundredth of the largest of all."""
    modelled, paid = np.asarray(modelled, dtype=np.float64), np.asarray(paid, dtype=np.float64)
    larger = np.maximum(np.abs(modelled), np.abs(paid))
    distance: Floats = np.abs(modelled - paid) / np.maximum(larger, max(0.01 * float(larger.max()), 1e-300))
    return np.where(np.isnan(distance), np.inf, distance)


def stacked(parts: Sequence[Any]) -> Any:
    """Stack observations, actions or draws of several steps into tensors."""
    if isinstance(parts[0], dict):
        return {key: stacked([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(stacked(column) for column in zip(*parts, strict=True))
    return torch.as_tensor(np.stack([np.asarray(part) for part in parts]))


def batch(steps: Sequence[Played]) -> tuple[Any, Any, Any, Any]:
    """Return ``(obs, action, draw, next_obs)`` of several steps, the input of a leader model."""
    return tuple(stacked([getattr(step, name) for step in steps]) for name in ("obs", "action", "draw", "next_obs"))


@dataclass
class Trace:
    """An episode, or several, from one seed that also determines the actions.

    Attributes:
        start: the first observation.
        steps: the steps.
    """

    start: Any
    steps: list[Played] = field(default_factory=list)

    def differs(self, other: Trace, base: Callable[[Any], Any], *names: str) -> str | None:
        """Return which of the fields ``names`` differs first between two traces; None if all are equal."""
        if "obs" in names and not same(base(self.start), base(other.start)):
            return "first observation"
        for one, two in zip(self.steps, other.steps, strict=False):
            for name in names:
                a, b = (
                    getattr(one, "next_obs" if name == "obs" else name),
                    getattr(two, "next_obs" if name == "obs" else name),
                )
                if not (same(base(a), base(b)) if name == "obs" else same(a, b)):
                    return {"obs": "observation", "draw": "leader_draw", "leader_reward": "leader_reward"}.get(
                        name, name
                    )
        return None


def trace(
    world: World,
    x: Floats | None,
    seed: int,
    steps: int,
    then: Floats | None = None,
    at: int = 0,
    one_episode: bool = False,
) -> Trace:
    """Play steps from a seed.

    Args:
        world: the environment.
        x: the leader's parameter to set before the reset; None leaves it unchanged.
        seed: seed of the reset and of the random actions.
        steps: number of steps.
        then: another x, which is set after ``at`` steps; None (default) for none.
        at: the step before which ``then`` is set. Default: 0.
        one_episode: whether to stop at the end of the first episode. Default: False.
    """
    if x is not None:
        world.set_leader(x)
    world.seed_actions(seed)
    played = Trace(held(world.reset(seed)))
    for t in range(steps):
        if then is not None and t == at:
            world.set_leader(then)
        step = world.step()
        played.steps.append(step)
        if step.ended and one_episode:
            break
        if step.ended:
            world.reset()
    return played


def held(value: Any) -> Any:
    """Return a copy of an observation or a draw."""
    if isinstance(value, dict):
        return {key: held(part) for key, part in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value
