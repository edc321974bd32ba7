"""Leaders over learned followers: tabular, a game of players, linear-quadratic, wrapped environments."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from sb3_contrib import ARS, QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import VecNormalize

from tests.traces.exact_leaders import (
    GAME,
    GRID,
    INCENTIVE,
    LQ,
    NARROW,
    PLAYERS,
    ROOMS,
    SMALL_GAME,
    TOLL,
    TWO,
    B,
    ending_problem,
)
from tests.traces.names import (
    CMAES,
    PBRL,
    BellmanPenalty,
    CMAESConfig,
    KnownModel,
    Linear,
    LinearReward,
    NikaidoIsodaPenalty,
    OptunaSearch,
    PBRLConfig,
    ResponsePool,
    Rollouts,
    ShapedReward,
    Sweep,
    TabularEnv,
    ValuePenalty,
)
from tests.traces.recording import Trace, learned

spec: Any
changes: Any  # of many kinds below
CASES: dict[str, Callable[[], Trace]] = {}

# --- sampled leaders --------------------------------------------------------------------------------------------------

SMALL = PBRLConfig(n_envs=4, follower_steps=64, warmup_steps=512, estimator=Rollouts(n_envs=4), eval_every=2)
NET: dict[str, Any] = {"net_arch": [8]}
OFF: dict[str, Any] = {"learning_starts": 32, "batch_size": 16, "buffer_size": 400, "policy_kwargs": NET}
ON: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "policy_kwargs": NET}


def built(algorithm: Any, policy: str = "MlpPolicy", gamma: float = 0.9, **settings: Any) -> Callable[[Any], Any]:
    """A callable with small settings."""
    discount = {} if algorithm is ARS else {"gamma": gamma}
    return lambda venv: algorithm(policy, venv, device="cpu", seed=3, **discount, **deepcopy(settings))


def scaled(venv: Any) -> Any:
    return A2C("MlpPolicy", VecNormalize(venv, gamma=0.9), gamma=0.9, device="cpu", policy_kwargs=dict(NET))


def scaled_dqn(venv: Any) -> Any:
    return built(DQN, **OFF)(VecNormalize(venv, gamma=0.9, norm_obs=False))


def lives() -> Any:
    """The environment of a problem of ours, from an x that is not 0."""
    world = TabularEnv(ending_problem())
    world.set_leader([0.3, 0.6, 0.9])
    return world


TOLLS: dict[str, Any] = {"n_nodes": 8, "gamma": 0.9, "max_episode_steps": 20}
RECURRENT = built(
    RecurrentPPO, "MlpLstmPolicy", n_steps=16, batch_size=64, n_epochs=1, policy_kwargs={**NET, "lstm_hidden_size": 4}
)
QUANTILES = built(QRDQN, **{**OFF, "policy_kwargs": {**NET, "n_quantiles": 5}})


def sampled(
    env: Any,
    follower: Any,
    penalty: Any = None,
    kwargs: Any = None,
    total: int = 6000,
    iterations: int = 3,
    start: float | None = None,
    **changes: Any,
) -> Callable[[], Trace]:
    """PBRL over learned followers; ``start`` is the largest entry of where x starts; None takes the environment's start."""
    config = replace(SMALL, **changes)

    def make() -> Any:
        space = gym.make(env, **(kwargs or {})).unwrapped.leader_space if start is not None else None  # type: ignore[attr-defined]
        x0 = None if space is None else start * np.linspace(0.2, 1.0, *space.shape)
        return PBRL(env, follower, penalty=penalty, config=config, seed=1, env_kwargs=kwargs, x0=x0)

    return partial(learned, make, max(total, 8 * int(config.warmup_steps)), iterations=iterations)


KNOWN: dict[str, Any] = {"estimator": KnownModel(), "warmup_steps": 1024}
LATE: dict[str, Any] = {"warmup_steps": 1100}  # DQN, SAC and TD3 as the library sets them up begin to learn after 1,000
UNSEEN: dict[str, Any] = {"observe_commitment": False}
RARE: dict[str, Any] = {"evaluation_steps": 64, "eval_every": 3}
for title, spec in {"PPO": PPO, "A2C": A2C, "DQN": DQN}.items():
    for name, changes in {
        "": {},
        ", known model": KNOWN,
        ", x unseen": UNSEEN,
        ", known, unseen": KNOWN | UNSEEN,
    }.items():
        CASES[f"PBRL, StackelbergGame, {title}{name}"] = sampled(GAME, spec, kwargs=SMALL_GAME, **(LATE | changes))
for title, spec in {"DQN built": built(DQN, target_update_interval=70, **OFF), "PPO built": built(PPO, **ON)}.items():
    for name, changes in {"": {}, ", x unseen": UNSEEN, ", not relabelled": {"relabel": False}}.items():
        CASES[f"PBRL, StackelbergGame, {title}{name}"] = sampled(GAME, spec, kwargs=SMALL_GAME, **changes)
        CASES[f"PBRL, RewardGrid, {title}{name}"] = sampled(GRID, spec, kwargs={"size": 3}, start=0.5, **changes)
for title, spec in {"DQN": DQN, "DQN built": built(DQN, **OFF), "QRDQN built": QUANTILES}.items():
    for name, changes in {"": {}, ", known model": KNOWN, ", x unseen": UNSEEN}.items():
        CASES[f"PBRL, StackelbergGame, Bellman, {title}{name}"] = sampled(
            GAME, spec, BellmanPenalty(), SMALL_GAME, **(LATE | changes)
        )
CASES |= {
    "PBRL, StackelbergGame, Bellman, QRDQN": sampled(GAME, QRDQN, BellmanPenalty(lam=3.0), SMALL_GAME, **LATE),
    "PBRL, RewardGrid, Bellman, DQN built": sampled(GRID, built(DQN, **OFF), BellmanPenalty(), {"size": 3}, start=0.5),
    "PBRL, TwoState, Bellman, DQN": sampled(TWO, DQN, BellmanPenalty(), **LATE),
    "PBRL, StackelbergGame, lam falls": sampled(GAME, A2C, ValuePenalty(lam=Linear(5.0, 1.0)), SMALL_GAME),
    "PBRL, StackelbergGame, dummy": sampled(GAME, PPO, None, SMALL_GAME, vec_env="dummy", averaging=0.0),
    "PBRL, StackelbergGame, subproc": sampled(
        GAME, A2C, None, SMALL_GAME, vec_env="subproc", n_envs=2, iterations=2, estimator=Rollouts(2)
    ),
    "PBRL, StackelbergGame, side by side, PPO": sampled(GAME, PPO, None, SMALL_GAME, side_by_side=True),
    "PBRL, StackelbergGame, side by side, DQN": sampled(GAME, DQN, None, SMALL_GAME, side_by_side=True, **LATE),
    "PBRL, RewardGrid, relabelled": sampled(GRID, built(DQN, **OFF), None, {"size": 3}, start=0.5, relabel=True),
    "PBRL, StackelbergGame, VecNormalize": sampled(GAME, scaled, None, SMALL_GAME),
    "PBRL, StackelbergGame, VecNormalize, DQN": sampled(GAME, scaled_dqn, None, SMALL_GAME),
    "PBRL, StackelbergGame, TRPO": sampled(
        GAME, built(TRPO, n_steps=16, batch_size=16, policy_kwargs=NET), None, SMALL_GAME
    ),
    "PBRL, StackelbergGame, recurrent": sampled(GAME, RECURRENT, None, SMALL_GAME | {"max_episode_steps": 20}),
    "PBRL, StackelbergGame, RecurrentPPO": sampled(GAME, RecurrentPPO, None, SMALL_GAME, total=6000, iterations=2),
    "PBRL, StackelbergGame, ARS": sampled(
        GAME,
        built(ARS, "LinearPolicy", n_delta=1, n_eval_episodes=4),
        None,
        SMALL_GAME | {"max_episode_steps": 20},
        total=6000,
    ),
    "PBRL, StackelbergGame, entropy, rates, narrow": sampled(
        GAME, A2C, None, SMALL_GAME, **NARROW, entropy=Linear(0.2, 0.0), noisy_share=0.5, x_noise=0.3
    ),
    "PBRL, StackelbergGame, traces of advantages": sampled(
        GAME, A2C, None, SMALL_GAME, estimator=Rollouts(8, 0.2, 0.7, 0.5)
    ),
    "PBRL, TwoState, PPO": sampled(TWO, PPO),
    "PBRL, ends, A2C": sampled(lives, built(A2C, gamma=0.8), **UNSEEN),
    "PBRL, ends, A2C, traces of advantages": sampled(
        lives, built(A2C, gamma=0.8), estimator=Rollouts(16, 0.05, 0.7), **UNSEEN
    ),
    "PBRL, ends, PPO by class": sampled(lives, PPO),
    "PBRL, ends, Bellman, DQN built": sampled(lives, built(DQN, gamma=0.8, **OFF), BellmanPenalty()),
    "PBRL, TollDesign, MaskablePPO": sampled(TOLL, MaskablePPO, None, TOLLS, total=8000),
    "PBRL, TollDesign, MaskablePPO, known model": sampled(TOLL, built(MaskablePPO, **ON), None, TOLLS, **KNOWN),
    "PBRL, FourRooms, A2C": sampled(ROOMS, A2C, None, {"max_episode_steps": 40}, total=6000, iterations=2, **UNSEEN),
    "PBRL, TollDesign, DQN": sampled(TOLL, built(DQN, **OFF), None, TOLLS, start=2.0, **UNSEEN),
    "PBRL, RewardGrid, A2C": sampled(GRID, A2C, None, {"size": 3}, start=0.5),
}
for title, spec in {
    "PPO": PPO,
    "PPO built": built(PPO, gamma=0.95, **ON),
    "PPO, gSDE": built(PPO, gamma=0.95, use_sde=True, **ON),
    "A2C": A2C,
    "SAC built": built(SAC, gamma=0.95, **OFF),
    "SAC, gSDE": built(SAC, gamma=0.95, use_sde=True, **OFF),
    "TD3 built": built(TD3, gamma=0.95, **OFF),
    "DDPG built": built(DDPG, gamma=0.95, **OFF),
    "TQC built": built(TQC, gamma=0.95, **OFF),
}.items():
    CASES[f"PBRL, LQ, {title}"] = sampled(LQ, spec, None, {"gamma": 0.95})
CASES |= {
    "PBRL, LQ, SAC": sampled(LQ, SAC, None, {"gamma": 0.95}, **LATE),
    "PBRL, LQ, TD3": sampled(LQ, TD3, None, {"gamma": 0.95}, **LATE),
    "PBRL, LQ, SAC built, x unseen, dummy": sampled(
        LQ, built(SAC, gamma=0.95, **OFF), None, {"gamma": 0.95}, vec_env="dummy", **UNSEEN
    ),
}
FOUR: dict[str, Any] = {
    "n_envs": 4,
    "follower_steps": 32,
    "warmup_steps": 32,
    "estimator": Rollouts(8),
    "eval_every": 2,
}
for title, spec in {"PPO": PPO, "A2C": A2C, "PPO built": built(PPO, **ON)}.items():
    for name, changes in {
        "": {},
        ", known model": {"estimator": KnownModel()},
        ", observed": {"observe_commitment": True},
        ", known, observed": {"estimator": KnownModel(), "observe_commitment": True},
    }.items():
        config = PBRLConfig.for_a_game(**(FOUR | changes))
        CASES[f"PBRL, game, {title}{name}"] = partial(
            learned,
            partial(PBRL, INCENTIVE, spec, penalty=None, config=config, seed=1, env_kwargs=PLAYERS),
            4000,
            iterations=3,
        )
CASES["PBRL, game, entropy, lam falls"] = partial(
    learned,
    partial(
        PBRL,
        INCENTIVE,
        A2C,
        penalty=NikaidoIsodaPenalty(lam=Linear(5.0, 1.0)),
        config=PBRLConfig.for_a_game(**FOUR, entropy=Linear(0.2, 0.0), averaging=0.5, **NARROW),
        env_kwargs=PLAYERS,
    ),
    4000,
    iterations=3,
)
BOX: dict[str, Any] = {"follower_steps": 200, "n_envs": 4, "rollout_envs": 4, "population": 3, "eval_every": 2}
CASES |= {
    "CMA-ES, TwoState, A2C": partial(learned, partial(CMAES, TWO, A2C, config=CMAESConfig(**BOX)), 6000, iterations=2),
    "CMA-ES, LQ, PPO": partial(
        learned,
        partial(
            CMAES,
            LQ,
            built(PPO, gamma=0.95, **ON),
            config=CMAESConfig(**BOX, evaluation_steps=64),
            env_kwargs={"gamma": 0.95},
        ),
        9000,
        iterations=2,
    ),
}
POOL: dict[str, Any] = {"n_envs": 4, "fresh_steps": 200, "warm_steps": 100, "episodes": 4, "points": 64}
CASES |= {
    "pool, TwoState, A2C": partial(learned, partial(ResponsePool, TWO, A2C, **POOL), 6000, iterations=4),
    "pool, TollDesign, DQN": partial(
        learned,
        partial(
            ResponsePool,
            "bilevel_gym/TollDesign-v0",
            built(DQN, **OFF | {"gamma": 0.999}),
            **POOL,
            env_kwargs={"n_nodes": 8},
        ),
        9000,
        iterations=4,
    ),
}
TRIALS: dict[str, Any] = {"follower_steps": 200, "n_envs": 4, "rollout_envs": 4}
CASES |= {
    "sweep, TwoState, A2C": partial(learned, partial(Sweep, TWO, A2C, **TRIALS), 6000, iterations=3),
    "sweep, LQ, PPO, warm starts": partial(
        learned,
        partial(Sweep, LQ, built(PPO, gamma=0.95, **ON), **TRIALS, warm_start=True, env_kwargs={"gamma": 0.95}),
        9000,
        iterations=3,
    ),
    "Optuna, TwoState, A2C": partial(
        learned, partial(OptunaSearch, TWO, A2C, **TRIALS, startup_trials=2), 6000, iterations=4
    ),
    "Optuna's CMA-ES, StackelbergGame, DQN": partial(
        learned,
        partial(OptunaSearch, GAME, built(DQN, **OFF), **TRIALS, sampler="cmaes", env_kwargs=SMALL_GAME),
        9000,
        iterations=4,
    ),
}

# --- wrapped environments ---------------------------------------------------------------------------------------------


def near_the_middle(obs: Any, action: Any, next_obs: Any) -> list[float]:
    return [float(next_obs[0]), float(next_obs[0]) ** 2]


def paid_cart_pole() -> gym.Env[Any, Any]:
    """Cart Pole with a payment of ours; nobody can look into it."""
    world = gym.make("CartPole-v1", max_episode_steps=40)
    world.action_space.seed(0)  # the wrapper tries a few steps
    return ShapedReward(world, LinearReward(near_the_middle, 2), gamma=0.9, leader_pays=0.3)


CART, PENDULUM = B + "ShapedCartPole-v0", B + "DesignedPendulum-v0"
WRAPPED: dict[str, Any] = {"n_envs": 2, "estimator": Rollouts(2, 0.3), **RARE}
SHORT: dict[str, Any] = {"max_episode_steps": 30}
CASES |= {
    "PBRL, ShapedCartPole, PPO": sampled(CART, built(PPO, gamma=0.99, **ON), None, SHORT, iterations=3, **WRAPPED),
    "PBRL, ShapedCartPole, DQN": sampled(CART, built(DQN, gamma=0.99, **OFF), None, SHORT, iterations=3, **WRAPPED),
    "PBRL, ShapedCartPole, DQN, relabelled": sampled(
        CART, built(DQN, gamma=0.99, **OFF), None, SHORT, iterations=3, relabel=True, **UNSEEN, **WRAPPED
    ),
    "PBRL, ShapedCartPole, PPO by class": sampled(CART, PPO, None, SHORT, iterations=2, **WRAPPED),
    "PBRL, DesignedPendulum, SAC": sampled(
        PENDULUM, built(SAC, gamma=0.98, **OFF), None, SHORT, iterations=2, **WRAPPED
    ),
    "PBRL, DesignedPendulum, PPO": sampled(
        PENDULUM, built(PPO, gamma=0.98, **ON), None, SHORT, iterations=2, **WRAPPED
    ),
    "PBRL, ShapedMountainCar, A2C": sampled(
        B + "ShapedMountainCar-v0",
        built(A2C, gamma=0.99, policy_kwargs=NET),
        None,
        SHORT,
        iterations=2,
        start=9.0,
        **WRAPPED,
    ),
    "PBRL, a callable, PPO": sampled(paid_cart_pole, built(PPO, **ON), None, None, iterations=3, **WRAPPED),
    "PBRL, a callable, DQN": sampled(paid_cart_pole, built(DQN, **OFF), None, None, **WRAPPED),
    "CMA-ES, ShapedCartPole, PPO": partial(
        learned,
        partial(
            CMAES,
            CART,
            built(PPO, gamma=0.99, **ON),
            config=CMAESConfig(**BOX | {"rollout_envs": 2, "rollout_tail": 0.5}, evaluation_steps=64),
            env_kwargs=SHORT,
        ),
        9000,
        iterations=1,
    ),
}
