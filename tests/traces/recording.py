"""What a trace holds of a leader and of an environment, as plain numbers that JSON keeps to the bit."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.logger import KVWriter, Logger

from tests.traces.names import followers_of, incentive_design_v0, labels_of, last_x, variables_of

Trace = dict[str, Any]
SHOWN = 256
"""Numbers of an array that a trace holds beside its checksum."""


def plain(value: Any) -> Any:
    """Numbers, arrays and records as JSON: of an array its shape, its first numbers and a checksum of all."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object and value.ndim:
        flat, kept = value.ravel(), np.ascontiguousarray(value)
        return {
            "shape": list(value.shape),
            "type": str(value.dtype),
            "sum": hashlib.sha256(kept.tobytes()).hexdigest(),
            "first": [item.item() for item in flat[:SHOWN]],
        }
    if isinstance(value, (np.generic, np.ndarray)) and not isinstance(value, np.ndarray):
        return value.item()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value


def checksum(tensors: dict[str, Any]) -> str:
    """Of named tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(torch.as_tensor(tensors[name]).detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def differences(one: Any, two: Any, at: str = "") -> Iterator[str]:
    """Where two traces differ, first things first."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in [*one, *(key for key in two if key not in one)]:
            if key not in one or key not in two:
                yield f"{at}/{key}: only in the {'first' if key in one else 'second'}"
            else:
                yield from differences(one[key], two[key], f"{at}/{key}")
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from differences(a, b, f"{at}/{i}")
    elif repr(one) != repr(two):  # tells 0.0 from -0.0 and 1 from 1.0, and takes nan for itself
        yield f"{at}: {str(one)[:80]} and {str(two)[:80]}"


# --- leaders ----------------------------------------------------------------------------------------------------------


class _Kept(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        left_out = ("time/", "leader/moved", "leader/gradient_signal")  # of the log alone
        self.rows.append({key: key_values[key] for key in sorted(key_values) if not key.startswith(left_out)})

    def close(self) -> None: ...


def follower_trace(follower: Any) -> Trace:
    """Checksums of all that is trained: what is trained, what answers, moments, and what is replayed."""
    model = follower.model
    found = {"model": checksum(model.policy.state_dict()), "steps": model.num_timesteps}
    if getattr(follower, "policy", model.policy) is not model.policy:
        found["average"] = checksum(follower.policy.state_dict())
    variables = variables_of(model)
    if variables:
        found["variables"] = checksum(variables)
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        n = buffer.size()
        names = ("observations", "actions", "rewards", "dones")
        found |= {"replay size": n, **{f"replay {name}": plain(getattr(buffer, name)[:n])["sum"] for name in names}}
    scaling = model.get_vec_normalize_env()
    if scaling is not None:
        found["moments"] = [plain(np.asarray(part)) for part in (scaling.ret_rms.mean, scaling.ret_rms.var)]
    return found


def state_of(leader: Any) -> Trace:
    """What a leader is after an iteration."""
    return {
        "iteration": leader.iteration,
        "num_timesteps": leader.num_timesteps,
        "last_x": plain(np.asarray(last_x(leader))),
        "x": plain(np.asarray(leader.x)),
        "followers": {name: follower_trace(one) for name, one in followers_of(leader).items()},
        "labels": plain(labels_of(leader)),
    }


def _watched(
    leader: Any, iterations: int, found: Trace, then: Callable[[Any], Any] | None = None
) -> Callable[..., bool]:
    """A callback that keeps the state after each of so many iterations, and then stops."""

    def watch(leader: Any) -> bool:
        found["iterations"].append(state_of(leader))
        if len(found["iterations"]) < iterations:
            return True
        if then is not None:
            then(leader)
        return False

    return watch


def _ended(leader: Any, found: Trace, rows: list[dict[str, Any]]) -> Trace:
    found["logged"] = plain(rows)
    if not labels_of(leader):  # a learned reward has no history in every version
        found["history"] = plain(list(getattr(leader, "history", [])))
    found["evaluation"] = plain(leader.evaluate())
    found["end"] = state_of(leader)
    if hasattr(leader, "close"):
        leader.close()
    return found


def learned(make: Callable[[], Any], total: int, iterations: int = 3) -> Trace:
    """A run of so many iterations of ``learn(total)``."""
    leader, kept = make(), _Kept()
    leader.set_logger(Logger(None, [kept]))
    found: Trace = {"start": state_of(leader), "iterations": []}
    leader.learn(total, _watched(leader, iterations, found))
    return _ended(leader, found, kept.rows)


def resumed(make: Callable[[], Any], load: Callable[[Path], Any], total: int, at: int = 2, further: int = 2) -> Trace:
    """Stop after ``at`` iterations, save, load, resume for some more."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "leader.zip"
        before: Trace = {"iterations": []}
        first = make()
        first.learn(total, _watched(first, at, before, lambda leader: leader.save(path, replay=True)))
        leader, kept = load(path), _Kept()
        if hasattr(first, "close"):
            first.close()
        leader.set_logger(Logger(None, [kept]))
        found: Trace = {"before": before, "loaded": state_of(leader), "iterations": []}
        leader.resume(_watched(leader, further, found))
        return _ended(leader, found, kept.rows)


# --- environments -----------------------------------------------------------------------------------------------------


def _points(base: Any) -> list[Any]:
    """Where the leader is set: the start, and a point of X; None where x is no vector."""
    space = getattr(base, "leader_space", None)
    if space is None:
        return [None]
    space.seed(3)
    drawn = space.sample()
    problem = getattr(base, "problem", None)
    if problem is not None:
        drawn = problem.project(torch.as_tensor(drawn)).numpy()
    return [np.array(base.leader_x), 0.5 * drawn + 0.5 * np.array(base.leader_x)]


def _through_the_model(base: Any, columns: list[list[Any]]) -> Trace:
    """The leader model's answers on steps, and their gradients in x."""
    model = base.leader_model()
    obs, action, draw, after = (torch.as_tensor(np.stack([np.asarray(part) for part in c])) for c in columns)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found: Trace = {}
    for name, value in zip(("r_follower", "r_leader", "log_p"), model(obs, action, draw, after), strict=True):
        weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
        slopes = torch.autograd.grad((weights * value).sum(), parameters, allow_unused=True, retain_graph=True)
        found[name] = {"value": plain(value), "gradients": [None if s is None else plain(s) for s in slopes]}
    return found


def stepped(name: str, steps: int = 50, **kwargs: Any) -> Trace:
    """Steps of a registered environment at random actions, under two points of the leader's."""
    env = gym.make(name, **kwargs)
    base: Any = env.unwrapped
    found: Trace = {}
    for k, x in enumerate(_points(base)):
        if x is not None:
            base.set_leader(x)
        env.action_space.seed(7)
        obs, info = env.reset(seed=11)
        taken: list[Any] = [(obs, info)]
        columns: list[list[Any]] = [[], [], [], []]
        for _ in range(steps):
            action = env.action_space.sample()
            after, reward, terminated, truncated, info = env.step(action)
            taken.append((action, after, reward, terminated, truncated, info))
            for column, part in zip(columns, (obs, action, info.get("leader_draw", 0), after), strict=True):
                column.append(part)
            obs = env.reset()[0] if terminated or truncated else after
        found[f"point {k}"] = {"x": plain(x), "steps": plain(taken)}
        if hasattr(base, "leader_model"):
            found[f"point {k}"] |= {
                "commitment": plain([base.commitment(o) for o in columns[0]]),
                "model": _through_the_model(base, columns),
            }
    env.close()
    return found


def stepped_together(name: str, steps: int = 50, num_envs: int = 3, **kwargs: Any) -> Trace:
    """The same of the natively vectorised environment: one x for all copies, then one for each."""
    venv: Any = gym.make_vec(name, num_envs=num_envs, **kwargs)
    found: Trace = {}
    points = _points(gym.make(name, **kwargs).unwrapped)
    each = [] if points[0] is None else [np.stack([points[i % 2] for i in range(num_envs)])]
    for k, x in enumerate([*points, *each]):
        if x is not None:
            venv.set_leader(x)
        venv.action_space.seed(7)
        taken: list[Any] = [venv.reset(seed=11)]
        for _ in range(steps):
            actions = venv.action_space.sample()
            obs, *rest = venv.step(actions)
            taken.append((actions, np.array(obs), *rest, venv.commitment(obs)))
        found[f"point {k}"] = {"x": plain(x), "steps": plain(taken)}
    venv.close()
    return found


def played(steps: int = 50, **kwargs: Any) -> Trace:
    """Steps of both players of the incentive game, in both worlds."""
    env: Any = incentive_design_v0.parallel_env(**kwargs)
    sizes = {agent: int(env.action_space(agent).n) for agent in env.possible_agents}
    found: Trace = {}
    for k, x in enumerate(_points(env)):
        env.set_leader(x)
        for world in (False, True):
            rng = np.random.default_rng(5)
            obs, _ = env.reset(seed=11, options={"designer_world": world})
            taken: list[Any] = [obs]
            columns: list[list[Any]] = [[], [], [], []]
            for _ in range(steps):
                actions = {agent: int(rng.integers(sizes[agent])) for agent in env.possible_agents}
                s = next(iter(obs.values()))
                obs, *rest = env.step(actions)
                taken.append((actions, obs, *rest))
                for column, part in zip(columns, (s, list(actions.values()), 0, next(iter(obs.values()))), strict=True):
                    column.append(part)
            found[f"point {k}, {world}"] = {
                "x": plain(x),
                "steps": plain(taken),
                "commitment": plain([env.commitment(o) for o in columns[0]]),
                "model": _through_the_model(env, columns),
            }
    return found
