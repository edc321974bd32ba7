"""Choose the leader that the docs recommend for an environment."""

from __future__ import annotations

from typing import Any

import pettingzoo

from ..envs.mdp import ContinuousProblem
from .leader import Leader
from .leaders.hypergradient import Hypergradient
from .leaders.pbrl import PBRL, PBRLConfig
from .leaders.response_pool import ResponsePool
from .leaders.tabular_pbrl import TabularPBRL
from .learned.worlds import Worlds
from .lower_levels import lower_level
from .sources import is_game, make_env, makes_one, problem_of


def leader_for(env: Any, follower: Any = None, *, env_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Leader:
    """Make the leader that the docs recommend, given what is known of an environment.

    ==============================  ===============  =====================================================================
    known of ``env``                ``follower``     leader
    ==============================  ===============  =====================================================================
    a model of one follower         None             ``Hypergradient``: exact gradients
    a model of several players      None             ``TabularPBRL``
    x enters rewards only           given, or PPO    ``ResponsePool``: sees F over all of X, beyond plateaus and thresholds
    x enters the dynamics           given, or PPO    ``PBRL``: x's gradient from rollouts
    a game, or a ``penalty``        given, or PPO    ``PBRL`` with that penalty; for a game by default Nikaido-Isoda
    ==============================  ===============  =====================================================================

    A ``ContinuousProblem`` counts as no model: its grid judges, and gives no gradient. Whether x enters rewards only is read from
    a table, or tried in some random steps of ``env``. PPO takes any actions.

    Args:
        env: an id, a Gymnasium or PettingZoo environment, a problem, or a callable that makes one.
        follower: an SB3 class or a callable ``VecEnv -> BaseAlgorithm``; None, the default, chooses as in the table.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        kwargs: further arguments of the leader, e.g. ``seed``, and fields of its config, e.g. ``learning_rate``.

    Raises:
        ValueError: the leader cannot be made, e.g. the id is unknown or the environment has no leader.

    Example:
        >>> type(leader_for("bilevel_gym/TwoState-v0")).__name__
        'Hypergradient'
    """
    made = env
    if isinstance(env, str):
        game = is_game(env)
        made = pettingzoo.make("parallel", env, **(env_kwargs or {})) if game else make_env(env, env_kwargs)
    elif makes_one(env):
        made = env()
    problem = problem_of(made)
    if follower is None and problem is not None and problem.lower_level != ContinuousProblem.lower_level:
        leader: Any = Hypergradient if lower_level(problem).n_players == 1 else TabularPBRL
        return leader(env if isinstance(env, str) else problem, env_kwargs=env_kwargs, **kwargs)  # type: ignore[no-any-return]
    if follower is None:
        from stable_baselines3 import PPO

        follower = PPO
    penalised = "penalty" in kwargs or isinstance(kwargs.get("config"), PBRLConfig)
    if is_game(made) or penalised or not Worlds(env, env_kwargs, observe_commitment=False).only_rewards_move:
        return PBRL(env, follower, env_kwargs=env_kwargs, **kwargs)
    return ResponsePool(env, follower, env_kwargs=env_kwargs, **kwargs)
