"""A leader environment at a fixed x."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym

from ...envs.mdp.checks import as_float64, require, require_imported
from .. import ForSB3, ObserveCommitment

KEYS = ("env_id", "env_kwargs", "x", "observe_commitment")


class UnderLeaderEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A leader environment at a fixed x, to show, evaluate or continue training a trained follower.

    ## Description
    It makes another environment and sets x in it. The tools of Stable-Baselines3 and rl-baselines3-zoo, which make environments
    by id, can thus run a follower that was trained here. Spaces, rewards and episodes are those of the other environment.

    ## Arguments
    - ``world``: the path of a JSON file with the other arguments, e.g. the ``world.json`` of a model card folder.
    - ``env_id``: the other environment (``"bilevel_gym/TwoState-v0"``).
    - ``env_kwargs``: arguments of the other environment.
    - ``x``: the leader's parameter; None leaves the initial x.
    - ``observe_commitment``: whether the follower sees the leader context, as followers of ``PBRL`` do by default.
    - ``render_mode``: render mode of the other environment.

    ## Version History
    - v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # type: ignore[misc]

    def __init__(
        self,
        world: str | None = None,
        env_id: str = "bilevel_gym/TwoState-v0",
        env_kwargs: dict[str, Any] | None = None,
        x: Any = None,
        observe_commitment: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if world is not None:  # the other arguments stand in the file
            require(isinstance(world, (str, Path)), "world", "the path of a JSON file", repr(world))
            require(Path(world).is_file(), "world", "a JSON file", repr(world))
            try:
                found = json.loads(Path(world).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"world: expected a JSON file, got {world} ({error})") from error
            fits = isinstance(found, dict) and set(found) == set(KEYS)
            require(fits, "world", f"a JSON object with {', '.join(KEYS)}", f"another in {world}")
            require_imported(found, "world", "an environment of this library")
            env_id, env_kwargs, x, observe_commitment = (found[key] for key in KEYS)
        expected = "the id of an environment with a leader"
        require(isinstance(env_id, str), "env_id", expected, repr(env_id))
        named = env_kwargs is None or (isinstance(env_kwargs, dict) and all(isinstance(key, str) for key in env_kwargs))
        require(named, "env_kwargs", "None or a dict of arguments by name", repr(env_kwargs))
        require(isinstance(observe_commitment, bool), "observe_commitment", "True or False", repr(observe_commitment))
        kwargs = {**(env_kwargs or {}), **({} if render_mode is None else {"render_mode": render_mode})}
        try:
            env = gym.make(env_id, **kwargs)
        except (gym.error.Error, ModuleNotFoundError) as error:  # the second: an id with the module that registers it
            raise ValueError(f"env_id: expected {expected}, got {env_id!r} ({error})") from error
        except TypeError as error:
            raise ValueError(f"env_kwargs: expected arguments of {env_id}, got {env_kwargs!r} ({error})") from error
        require(env.has_wrapper_attr("set_leader"), "env_id", expected, repr(env_id))
        if x is not None:
            env.get_wrapper_attr("set_leader")(as_float64(x, "x").numpy())
        env = ForSB3(env)
        super().__init__(ObserveCommitment(env) if observe_commitment else env)
