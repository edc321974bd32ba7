r"""How robust a leader's x is: its return when it meets followers trained by other algorithms.

At a fixed x each follower is trained from scratch, without further tuning. We compare

    J_L(x, pi_k)  with  F_0(x) = J_L(x, pi*(x)),        regret_k = V_f^*(x) - V_f^{pi_k}(x)

A leader that relies on an exactly optimal follower is exposed: a small regret of the follower costs it much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm.auto import tqdm

from ..envs.mdp import policy_return, solve_soft, suboptimality
from ..envs.mdp.checks import check_count, check_size, require
from ..wrappers import set_leader
from .estimators.rollouts import collect, episode_returns
from .evaluation import leader_return_at_best_response
from .followers.spec import FollowerSpec
from .learned.answers import TAIL, fresh_follower
from .learned.worlds import EnvSpec, Worlds

EPISODES = 256
"""Number of evaluation episodes."""


@dataclass(frozen=True)
class Response:
    """The leader's return with one follower that was trained at its x.

    Attributes:
        follower: the follower's name.
        seed: seed of the follower, its environment and the evaluation episodes.
        leader_return: ``F_0(x)``, at the best response; None where no model is known.
        leader_return_at_follower: ``J_L(x, pi)``; exact where the environment is tabular.
        leader_return_at_follower_stderr: its standard error; 0 where exact.
        follower_return: ``V_f^pi``, unregularised, exact or estimated likewise.
        follower_regret: ``V_f^* - V_f^pi``; None where no model is known.
        steps: environment steps that the follower was trained.
    """

    follower: str
    seed: int
    leader_return: float | None
    leader_return_at_follower: float
    leader_return_at_follower_stderr: float
    follower_return: float
    follower_regret: float | None
    steps: int


def robustness(
    env: EnvSpec,
    x: ArrayLike,
    followers: Mapping[str, FollowerSpec],
    steps: int = 100_000,
    seeds: Sequence[int] = (0, 1, 2),
    env_kwargs: dict[str, Any] | None = None,
    n_envs: int = 16,
    progress_bar: bool = False,
) -> tuple[Response, ...]:
    """Train followers from scratch at x and report the leader's return with each.

    Args:
        env: a leader environment: an id, an environment (it is copied), or a callable that makes one.
        x: the leader's parameter, ``[dim]``.
        followers: by name, SB3 classes (built with the library's settings) or callables ``VecEnv -> BaseAlgorithm`` (with your
            own settings). They do not observe x.
        steps: environment steps to train each follower; SB3 rounds up to whole rollouts.
        seeds: one training run per seed.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        n_envs: number of parallel environments.
        progress_bar: whether to show a progress bar.

    Returns:
        A record per follower and seed, in that order. A follower is evaluated with its own policy; in continuous actions, without
        its exploration noise.

    Raises:
        ValueError: x is outside X, no followers or seeds are given, or a follower does not fit the environment.

    Example:
        >>> from stable_baselines3 import A2C
        >>> from bilevel_gym.agents import robustness
        >>> reports = robustness("bilevel_gym/TwoState-v0", [0.5], {"A2C": A2C}, steps=2_000, seeds=[0])
        >>> reports[0].follower_regret < 0.5
        True
    """
    steps, n_envs = check_size(steps, "steps"), check_size(n_envs, "n_envs")
    require(len(followers) > 0, "followers", "at least one follower by name", dict(followers))
    require(len(seeds) > 0, "seeds", "at least one", seeds)
    worlds = Worlds(env, env_kwargs, observe_commitment=False)
    point = worlds.leader_set.check(torch.as_tensor(np.asarray(x, dtype=np.float64)))
    tasks = [(name, spec, check_count(seed, "seeds")) for name, spec in followers.items() for seed in seeds]
    return tuple(
        _response(worlds, point, name, spec, seed, steps, n_envs)
        for name, spec, seed in tqdm(tasks, disable=not progress_bar)
    )


def _response(worlds: Worlds, x: Tensor, name: str, spec: FollowerSpec, seed: int, steps: int, n_envs: int) -> Response:
    venv, problem, linear = worlds.make(n_envs), worlds.problem, worlds.linear_quadratic
    set_leader(venv, x.numpy())
    follower = fresh_follower(worlds, spec, venv, seed)
    worlds.require_every_action(x, follower)
    spent = follower.train_alone(steps)
    venv.close()
    # Tabular: J_L, V_f, F_0 and the regret are exact, from the follower's policy table.
    if problem is not None and not follower.recurrent:
        with torch.no_grad():
            mdp = problem.follower_mdp(x)
            pi = follower.table(mdp, worlds.every_observation(x.numpy())).reshape(mdp.r.shape)
            regret = float(problem.over_contexts(suboptimality(mdp, pi, 0.0, solve_soft(mdp, 0.0))))
            theirs, ours = float(problem.over_contexts(policy_return(mdp, pi))), float(problem.leader_return(x, pi))
            best = leader_return_at_best_response(problem, x)
        return Response(name, seed, best, ours, 0.0, theirs, regret, spent)
    # Otherwise: from fresh episodes; F_0 is known for a linear-quadratic problem, by the Riccati equation.
    venv = worlds.make(EPISODES)
    set_leader(venv, x.numpy())
    with follower.generators.active(), torch.no_grad():
        player = follower.player(venv, greedily=worlds.continuous_actions)
        episodes = collect(venv, player, worlds.horizon(TAIL), seed)
        F_0 = None if linear is None else float(linear.leader_return(x, linear.best_response(x).F))
    venv.close()
    paid, earned = episode_returns(episodes, worlds.base_space, worlds.gamma)
    stderr = float(earned.std(ddof=1) / np.sqrt(len(earned)))
    return Response(name, seed, F_0, float(earned.mean()), stderr, float(paid.mean()), None, spent)
