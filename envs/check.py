"""A check of one's own leader environment, before training is paid for."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from .mdp.checks import check_gamma, require

STEPS = 20
"""Steps that are taken at each x, with random actions."""

RTOL = 1e-4
"""How far the leader model may be from what a step paid, per unit of ``max(1, |paid|)``: float32 rewards are close enough."""


def check_leader_env(env: gym.Env[Any, Any]) -> None:
    """Check that an environment keeps the contract of ``LeaderEnv``: that x arrives, and that the leader model is the step.

    The environment is reset, stepped with random actions and given other x; afterwards it stands at the x that it had.
    Gymnasium's and Stable-Baselines3's own checks are apart: call them too.

    Args:
        env: the environment, wrapped or not; its ``leader_space`` is a Box.

    Raises:
        ValueError: what is missing or wrong, and what to do about it.

    Example:
        >>> import gymnasium as gym
        >>> from bilevel_gym.envs import check_leader_env
        >>> check_leader_env(gym.make("bilevel_gym/TwoState-v0"))
    """
    require(isinstance(env, gym.Env), "env", "a Gymnasium environment", repr(env))
    for name in ("leader_space", "set_leader", "leader_x", "leader_model", "gamma", "commitment", "commitment_size"):
        require(env.has_wrapper_attr(name), "env", f"a leader environment, with the attribute {name}", repr(env))
    check_gamma(env.get_wrapper_attr("gamma"))
    space = env.get_wrapper_attr("leader_space")
    fits = isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.dtype == np.float64
    require(fits, "leader_space", "a Box of one axis, float64", repr(space))
    twin, start = copy.deepcopy(env), _leader_x(env, space)
    for point in _points(env, space, start):
        _check_point(env, space, point)
        # The twin was copied before x was set: what is held in a class or a module would show here.
        leaked = not np.array_equal(_leader_x(twin, space), start)
        require(not leaked, "set_leader", "the x of other copies of the environment left alone", "an x that they share")
    env.get_wrapper_attr("set_leader")(start)


def _leader_x(env: gym.Env[Any, Any], space: gym.spaces.Box) -> Any:
    x = np.asarray(env.get_wrapper_attr("leader_x"))
    require(x.shape == space.shape, "leader_x", f"shape {space.shape}, as leader_space has", f"shape {x.shape}")
    return x


def _points(env: gym.Env[Any, Any], space: gym.spaces.Box, start: Any) -> list[Any]:
    """The start and two points drawn from X; from the Box around it, and towards the start where X is less than its Box."""
    rng, points = np.random.default_rng(0), [start]
    low, high = np.maximum(space.low, -1e3), np.minimum(space.high, 1e3)
    for _ in range(2):
        share, drawn, refused = 1.0, rng.uniform(low, high), ""
        while share > 1e-3:
            point = start + share * (drawn - start)
            try:
                env.get_wrapper_attr("set_leader")(point)
                break
            except ValueError as error:
                share, refused = 0.5 * share, str(error)
        require(share > 1e-3, "set_leader", "points near the start taken, which lie in leader_space", refused)
        points.append(point)
    return points


def _check_point(env: gym.Env[Any, Any], space: gym.spaces.Box, x: Any) -> None:
    """Set x, and hold some steps against the leader model."""
    given = x.copy()
    env.get_wrapper_attr("set_leader")(given)
    given += 1.0
    kept = np.allclose(_leader_x(env, space), x, rtol=0.0, atol=1e-9)
    require(kept, "set_leader", f"leader_x = {x} after it (copy x)", env.get_wrapper_attr("leader_x"))
    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    size = env.get_wrapper_attr("commitment_size")
    steps: list[tuple[Any, ...]] = []
    for _ in range(STEPS):
        shown = np.asarray(env.get_wrapper_attr("commitment")(obs))
        require(shown.shape == (size,), "commitment", f"shape ({size},), its commitment_size", f"shape {shown.shape}")
        action = env.action_space.sample(mask=_mask(env))
        after, reward, terminated, truncated, info = env.step(action)
        for key in ("leader_reward", "leader_draw"):
            require(key in info, "info", f"the key {key!r} after every step", sorted(info))
        steps.append((obs, action, info["leader_draw"], after, reward, info["leader_reward"]))
        obs = env.reset()[0] if terminated or truncated else after
    *batch, paid, paid_leader = (np.stack([np.asarray(part) for part in column]) for column in zip(*steps, strict=True))
    model = env.get_wrapper_attr("leader_model")()
    parameter = dict(model.named_parameters()).get("x") if isinstance(model, torch.nn.Module) else None
    require(parameter is not None, "leader_model", "a torch module with a Parameter x", repr(model))
    assert parameter is not None
    held = np.allclose(parameter.detach().numpy().ravel(), x, rtol=0.0, atol=1e-9)
    require(held, "leader_model", "its Parameter x at the leader's x", parameter)
    answer = model(*(torch.as_tensor(part) for part in batch))
    form = f"(r_follower, r_leader, log_p), each of shape ({STEPS},), for a batch of {STEPS} steps"
    fits = isinstance(answer, tuple) and len(answer) == 3 and all(getattr(a, "shape", None) == (STEPS,) for a in answer)
    require(fits, "leader_model", form, repr(answer))
    for whose, modelled, value in (("follower", answer[0], paid), ("leader", answer[1], paid_leader)):
        apart = np.abs(modelled.detach().numpy() - value) / np.maximum(1.0, np.abs(value))
        i = int(apart.argmax())
        same = f"the {whose}'s reward that a step pays, {value[i]:g} (let step pay what the model says)"
        require(bool(apart[i] <= RTOL), "leader_model", same, f"{float(modelled[i].detach()):g}")
    finite, log_p = bool(torch.isfinite(answer[2]).all()), answer[2].tolist()
    require(finite, "leader_model", "a finite log_p of what was drawn", log_p)
    attached = [a.sum() for a in answer if a.requires_grad]
    require(len(attached) > 0, "leader_model", "an answer that is differentiable in x", "three that are not")
    (slope,) = torch.autograd.grad(torch.stack(attached).sum(), [parameter])
    require(bool(torch.isfinite(slope).all()), "leader_model", "a finite gradient in x", slope.tolist())


def _mask(env: gym.Env[Any, Any]) -> Any:
    """Which actions exist, as ``Discrete.sample`` takes it; None where all do, or the environment does not tell."""
    if not env.has_wrapper_attr("action_masks"):
        return None
    return np.asarray(env.get_wrapper_attr("action_masks")(), dtype=np.int8)
