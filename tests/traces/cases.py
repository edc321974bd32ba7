"""The table of seeded short runs: every leader and baseline on each kind of environment it accepts, and the environments.

A case is a name and a function that returns its trace. Names say leader, lower level, follower, what is special.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import ARS, QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from scipy.sparse import csr_array
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import VecNormalize

from tests.traces.names import (
    CMAES,
    DRLHF,
    HPGD,
    PBRL,
    ActiveFragmenter,
    ArrayProblem,
    BellmanPenalty,
    CMAESConfig,
    Direct,
    FiniteDifferences,
    FiniteDifferencesConfig,
    Geometric,
    HPGDConfig,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    IndependentPolicyGradientConfig,
    KnownModel,
    LeaderSet,
    Linear,
    LinearReward,
    MetaGradient,
    MetaGradientConfig,
    MirrorDescent,
    MonteCarlo,
    NestedLoopConfig,
    NikaidoIsodaPenalty,
    PartialSGD,
    PBRLConfig,
    Planner,
    PolicyGradient,
    PreferenceConfig,
    PreferencePBRL,
    Quench,
    Rollouts,
    ShapedReward,
    SingleLoop,
    SingleLoopConfig,
    SoBiRL,
    SoBiRLConfig,
    Softmax,
    SoftPolicyIteration,
    Solved,
    SparseMDP,
    TabularCMAES,
    TabularCMAESConfig,
    TabularPBRL,
    TabularPBRLConfig,
    Tracked,
    TrueReturnLabeller,
    TrueReward,
    ValuePenalty,
    WholeEpisodes,
    WordsReward,
    ZeroOrder,
    ZeroOrderConfig,
    robustness,
    writer,
)
from tests.traces.recording import Trace, learned, plain, played, resumed, stepped, stepped_together

B = "bilevel_gym/"
TWO, GAME, ROOMS, RANDOM = B + "TwoState-v0", B + "StackelbergGame-v0", B + "FourRooms-v0", B + "RandomMDP-v0"
GOAL, TOLL, LQ, GRID = B + "GoalPlacement-v0", B + "TollDesign-v0", B + "LQStackelberg-v0", B + "RewardGrid-v0"
INCENTIVE, TEXT = B + "incentive_design_v0", B + "HappyText-v0"
SMALL_GAME: dict[str, Any] = {"n_states": 4}
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "TwoState": (TWO, {}),
    "StackelbergGame": (GAME, {"n_states": 10}),
    "FourRooms": (ROOMS, {}),
    "RandomMDP": (RANDOM, {"dim": 20}),
    "GoalPlacement": (GOAL, {"size": 4}),
    "TollDesign": (TOLL, {"n_nodes": 9}),
    "RewardGrid": (GRID, {"size": 3}),
}
PLAYERS: dict[str, Any] = {"n_states": 4, "n_actions_1": 3, "n_actions_2": 3}
CASES: dict[str, Callable[[], Trace]] = {}


def sparse_problem() -> Any:
    """A random walk with a sparse P, whose rewards x moves."""
    rng = np.random.default_rng(0)
    S, A, dim = 9, 3, 4
    P = rng.random((S * A, S)) * (rng.random((S * A, S)) < 0.4) + 0.1 * np.eye(S).repeat(A, 0)
    tables = [torch.from_numpy(rng.standard_normal((S, A, dim))) for _ in range(2)]
    r = torch.from_numpy(rng.random((S, A)))
    base = SparseMDP(csr_array(P / P.sum(1, keepdims=True)), r, torch.full((S,), 1 / S, dtype=torch.float64), 0.8)
    rewards = [lambda x, t=t: r + t @ torch.sin(x) for t in tables]
    return ArrayProblem(base, LeaderSet.box(dim, -2.0, 2.0), *rewards)


# --- exact leaders over one follower ----------------------------------------------------------------------------------

SOURCES: dict[str, Callable[[], tuple[Any, dict[str, Any] | None]]] = {
    **{name: partial(lambda env, kwargs: (env, kwargs), *world) for name, world in WORLDS.items()},
    "sparse": lambda: (sparse_problem(), None),
}


def exact(cls: Any, source: str, *arguments: Any, total: int = 12, iterations: int = 4, **options: Any) -> Trace:
    """A leader that knows the model, for a few iterations."""

    def make() -> Any:
        problem, kwargs = SOURCES[source]()
        return cls(problem, *arguments, env_kwargs=kwargs, **options)

    return learned(make, total, iterations)


def tabular(**changes: Any) -> TabularPBRLConfig:
    return TabularPBRLConfig(**({"eval_every": 2} | changes))


NARROW: dict[str, Any] = {"low": -0.5, "high": 0.4, "budget": 1.0, "learning_rate": Linear(0.3, 0.1)}
for world in SOURCES:
    for name, penalty in (("value", ValuePenalty()), ("Bellman", BellmanPenalty(lam=Geometric(1.0, 5.0)))):
        CASES[f"PBRL exact, {world}, {name}"] = partial(exact, TabularPBRL, world, penalty, config=tabular())
    CASES[f"PBRL exact, {world}, by default"] = partial(exact, TabularPBRL, world)
    CASES[f"hypergradient, {world}"] = partial(exact, Hypergradient, world)
    CASES[f"SoBiRL, {world}"] = partial(exact, SoBiRL, world)
    CASES[f"independent, {world}"] = partial(exact, IndependentPolicyGradient, world)
    CASES[f"zero order, {world}"] = partial(exact, ZeroOrder, world, ZeroOrderConfig(directions=3), iterations=3)
for name, how in (("softmax", Softmax(0.2)), ("direct", Direct()), ("solved", Solved())):
    for world in ("TwoState", "StackelbergGame", "GoalPlacement", "sparse"):
        for title, penalty in (("value", ValuePenalty(lam=3.0)), ("Bellman", BellmanPenalty(lam=3.0))):
            if name == "solved" and (title == "Bellman" or world == "GoalPlacement"):
                continue  # of a value penalty alone, and of a leader whose objective is a return
            CASES[f"PBRL exact, {world}, {title}, {name}"] = partial(
                exact, TabularPBRL, world, penalty, config=tabular(follower=how, tau=Quench(0.5, 0.1, 0.6))
            )
for oracle in (SoftPolicyIteration(), MirrorDescent(eta=0.5, iterations=3), PolicyGradient()):
    for world in ("TwoState", "StackelbergGame", "FourRooms"):
        title = f"PBRL exact, {world}, {type(oracle).__name__}"
        CASES[title] = partial(exact, TabularPBRL, world, ValuePenalty(lam=3.0), oracle, tabular(tau=0.2), iterations=3)
for world in ("TwoState", "StackelbergGame", "FourRooms"):
    CASES[f"HPGD, {world}"] = partial(exact, HPGD, world, HPGDConfig(episodes=4, points=2))
    for title, penalty in (("value", ValuePenalty()), ("Bellman", BellmanPenalty())):
        CASES[f"PBRL exact, {world}, {title}, Monte Carlo"] = partial(
            exact, TabularPBRL, world, penalty, config=tabular(estimator=MonteCarlo(), follower=Softmax(0.2))
        )
    CASES[f"independent, {world}, Monte Carlo"] = partial(
        exact, IndependentPolicyGradient, world, IndependentPolicyGradientConfig(estimator=MonteCarlo())
    )
    CASES[f"meta-gradient, {world}"] = partial(exact, MetaGradient, world, MetaGradientConfig(inner_steps=2))
CASES |= {
    "PBRL exact, StackelbergGame, narrow": partial(
        exact, TabularPBRL, "StackelbergGame", config=tabular(**NARROW, follower=Softmax())
    ),
    "PBRL exact, StackelbergGame, unpaired": partial(
        exact,
        TabularPBRL,
        "StackelbergGame",
        config=tabular(estimator=MonteCarlo(baseline=False, paired=False), follower=Direct()),
        seed=5,
    ),
    "PBRL exact, StackelbergGame, SGD, the last x": partial(
        exact,
        TabularPBRL,
        "StackelbergGame",
        config=tabular(
            optimizer_class=torch.optim.SGD, optimizer_kwargs={"momentum": 0.9}, keep_best=False, learning_rate=0.2
        ),
    ),
    "PBRL exact, TwoState, x0": partial(exact, TabularPBRL, "TwoState", x0=[0.5]),
    "PBRL exact, TollDesign, x0": partial(
        exact, TabularPBRL, "TollDesign", BellmanPenalty(lam=3.0), x0=np.linspace(1.0, 3.0, 28)
    ),
    "hypergradient, StackelbergGame, narrow": partial(
        exact, Hypergradient, "StackelbergGame", HypergradientConfig(**NARROW, tau=Quench(0.5, 0.1, 0.6))
    ),
    "SoBiRL, StackelbergGame, more steps": partial(
        exact, SoBiRL, "StackelbergGame", SoBiRLConfig(sweeps=3, adjoint_steps=2, tau=0.2)
    ),
    "independent, StackelbergGame, direct": partial(
        exact, IndependentPolicyGradient, "StackelbergGame", IndependentPolicyGradientConfig(follower=Direct())
    ),
    "CMA-ES exact, StackelbergGame": partial(
        exact, TabularCMAES, "StackelbergGame", TabularCMAESConfig(population=4, eval_every=2)
    ),
    "CMA-ES exact, FourRooms": partial(
        exact, TabularCMAES, "FourRooms", TabularCMAESConfig(population=3), iterations=2
    ),
    "CMA-ES exact, TwoState": partial(exact, TabularCMAES, "TwoState"),
}
LOOP: dict[str, Any] = {"tau": 0.3}
SINGLE: dict[str, tuple[Any, Any]] = {
    "single loop": (SingleLoop, SingleLoopConfig(**LOOP)),
    "nested loop": (SingleLoop, NestedLoopConfig(**LOOP, block=100, burn_in=40)),
    "partial SGD": (PartialSGD, NestedLoopConfig(**LOOP, block=100, burn_in=40)),
    "partial SGD, own config": (PartialSGD, None),
    "finite differences": (FiniteDifferences, FiniteDifferencesConfig(**LOOP, block=60, burn_in=20)),
}
for name, (cls, config) in SINGLE.items():
    for world, (env, kwargs) in {
        "TwoState": (TWO, {"tau": 0.3}),
        "GoalPlacement": (GOAL, {"size": 3, "tau": 0.3}),
    }.items():
        CASES[f"{name}, {world}"] = partial(
            learned, partial(cls, env, config, seed=2, env_kwargs=kwargs), 2000 if config else 20_000, 4
        )

# --- exact leaders over games of two players and over linear-quadratic games ------------------------------------------


def over_players(cls: Any, *arguments: Any, **options: Any) -> Callable[[], Trace]:
    return partial(learned, partial(cls, INCENTIVE, *arguments, env_kwargs=PLAYERS, **options), 12, 4)


CASES |= {
    "PBRL exact, game": over_players(TabularPBRL, NikaidoIsodaPenalty(lam=Linear(1.0, 5.0)), config=tabular()),
    "PBRL exact, game, by default": over_players(TabularPBRL),
    "PBRL exact, game, softmax": over_players(TabularPBRL, config=tabular(follower=Softmax(0.2), tau=0.3)),
    "PBRL exact, game, direct": over_players(TabularPBRL, config=tabular(follower=Direct())),
    "PBRL exact, game, Monte Carlo": over_players(TabularPBRL, config=tabular(estimator=MonteCarlo(batch=8))),
    "PBRL exact, game, mirror descent": over_players(TabularPBRL, None, MirrorDescent(iterations=3), tabular()),
    "hypergradient, game": over_players(Hypergradient),
    "independent, game": over_players(IndependentPolicyGradient),
    "independent, game, Monte Carlo": over_players(
        IndependentPolicyGradient, IndependentPolicyGradientConfig(estimator=MonteCarlo(batch=8))
    ),
    "meta-gradient, game": over_players(MetaGradient),
    "hypergradient, LQ": partial(learned, partial(Hypergradient, LQ), 12, 4),
    "hypergradient, LQ, far-sighted": partial(
        learned, partial(Hypergradient, LQ, HypergradientConfig(learning_rate=0.02), env_kwargs={"gamma": 0.97}), 12, 4
    ),
}

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
        return PBRL(env, follower, penalty, config, 1, kwargs, x0)

    return partial(learned, make, max(total, 8 * int(config.warmup_steps)), iterations)


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
            learned, partial(PBRL, INCENTIVE, spec, None, config, 1, PLAYERS), 4000, 3
        )
CASES["PBRL, game, entropy, lam falls"] = partial(
    learned,
    partial(
        PBRL,
        INCENTIVE,
        A2C,
        NikaidoIsodaPenalty(lam=Linear(5.0, 1.0)),
        PBRLConfig.for_a_game(**FOUR, entropy=Linear(0.2, 0.0), averaging=0.5, **NARROW),
        env_kwargs=PLAYERS,
    ),
    4000,
    3,
)
BOX: dict[str, Any] = {"follower_steps": 200, "n_envs": 4, "rollout_envs": 4, "population": 3, "eval_every": 2}
CASES |= {
    "CMA-ES, TwoState, A2C": partial(learned, partial(CMAES, TWO, A2C, CMAESConfig(**BOX)), 6000, 2),
    "CMA-ES, LQ, PPO": partial(
        learned,
        partial(
            CMAES, LQ, built(PPO, gamma=0.95, **ON), CMAESConfig(**BOX, evaluation_steps=64), env_kwargs={"gamma": 0.95}
        ),
        9000,
        2,
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
            CMAESConfig(**BOX | {"rollout_envs": 2, "rollout_tail": 0.5}, evaluation_steps=64),
            env_kwargs=SHORT,
        ),
        9000,
        1,
    ),
}

# --- preferences ------------------------------------------------------------------------------------------------------

ASKED = PreferenceConfig(
    labels=24,
    first_labels=6,
    length=5,
    first_steps=64,
    follower_steps=64,
    n_envs=4,
    epochs=2,
    first_epochs=5,
    ensemble=2,
    evaluation_episodes=2,
    device="cpu",
)
FOLLOWERS: dict[str, Any] = {
    "A2C": A2C,
    "PPO": built(PPO, **ON),
    "DQN": built(DQN, **OFF),
    "VecNormalize": lambda venv: built(A2C, policy_kwargs=NET)(VecNormalize(venv, norm_obs=False, gamma=0.9)),
}
PLAN = partial(Planner, "MlpPolicy", tau=0.3, n_steps=16)
SLOW = partial(Planner, "MlpPolicy", tau=0.3, n_steps=16, oracle=MirrorDescent(eta=0.5, iterations=1))


def asked(
    cls: Any, env: Any, follower: Any, total: int = 1300, iterations: int = 4, **changes: Any
) -> Callable[[], Trace]:
    options = {name: changes.pop(name) for name in ("penalty", "labeller", "env_kwargs", "seed") if name in changes}
    config = replace(ASKED, **changes)
    return partial(learned, partial(cls, env, follower, config=config, **options), total, iterations)


for title, spec in FOLLOWERS.items():
    for name, cls in {"preferences": PreferencePBRL, "DRLHF": DRLHF, "true reward": TrueReward}.items():
        CASES[f"{name}, RewardGrid, {title}"] = asked(cls, GRID, spec)
CASES |= {
    "preferences, RewardGrid, planner": asked(PreferencePBRL, GRID, PLAN, penalty=ValuePenalty(lam=Linear(0.5, 2.0))),
    "preferences, RewardGrid, tracked": asked(PreferencePBRL, GRID, Tracked(PLAN, SLOW), penalty=ValuePenalty(lam=2.0)),
    "DRLHF, RewardGrid, planner": asked(DRLHF, GRID, PLAN),
    "preferences, RewardGrid, noisy, by disagreement": asked(
        PreferencePBRL,
        GRID,
        built(DQN, **OFF),
        labeller=TrueReturnLabeller(noise=0.2),
        fragmenter=ActiveFragmenter(3),
        memory=40,
        seed=3,
    ),
    "preferences, RewardGrid, short rollouts": asked(PreferencePBRL, GRID, built(A2C, n_steps=3), early=0.0),
    "preferences, RewardGrid, a fresh judge": asked(DRLHF, GRID, A2C, evaluation_steps=64, env_kwargs={"size": 3}),
    "preferences, CartPole, PPO": asked(PreferencePBRL, "CartPole-v1", built(PPO, gamma=0.99, **ON)),
    "preferences, CartPole, subproc": asked(
        PreferencePBRL, "CartPole-v1", A2C, vec_env="subproc", n_envs=2, iterations=2
    ),
    "preferences, CartPole, recurrent": asked(PreferencePBRL, "CartPole-v1", RECURRENT, gamma=0.9),
    "DRLHF, CartPole, PPO": asked(DRLHF, "CartPole-v1", built(PPO, gamma=0.99, **ON), evaluation_steps=64),
    "true reward, CartPole, PPO": asked(TrueReward, "CartPole-v1", built(PPO, gamma=0.99, **ON)),
    "preferences, Pendulum, SAC": asked(
        PreferencePBRL, "Pendulum-v1", built(SAC, gamma=0.99, **OFF), discounted=False, iterations=3
    ),
    "DRLHF, Pendulum, SAC": asked(DRLHF, "Pendulum-v1", built(SAC, gamma=0.99, **OFF), iterations=3),
    "preferences, ShapedCartPole, PPO": asked(PreferencePBRL, CART, built(PPO, gamma=0.99, **ON), iterations=3),
}
TOLD: dict[str, Any] = {
    "labels": 16,
    "first_labels": 8,
    "first_steps": 320,
    "follower_plays_first": True,
    "length": 24,
    "n_envs": 16,
    "follower_steps": 128,
    "epochs": 2,
    "first_epochs": 3,
    "ensemble": 1,
    "net": WordsReward,
    "fragmenter": WholeEpisodes(),
    "seed": 1,
}


def writes(venv: Any) -> Any:
    return writer(kl=0.5, n_steps=8)(venv)


CASES |= {
    "preferences, text": asked(PreferencePBRL, TEXT, writes, 320 + 256 * 2, 2, **TOLD),
    "DRLHF, text": asked(DRLHF, TEXT, writes, 320 + 128 * 2, 2, **TOLD),
}

# --- files ------------------------------------------------------------------------------------------------------------


def file(
    make: Callable[[], Any], total: int, cls: Any = None, at: int = 2, further: int = 2, **options: Any
) -> Callable[[], Trace]:
    load = partial((cls or make.func).load, **options)  # type: ignore[attr-defined]
    return partial(resumed, make, load, total, at, further)


DQN_BUILT, SAC_BUILT = built(DQN, target_update_interval=70, **OFF), built(SAC, gamma=0.95, **OFF)
CASES |= {
    "file, PBRL exact": file(partial(TabularPBRL, GAME, env_kwargs=SMALL_GAME), 12),
    "file, PBRL exact, Monte Carlo": file(
        partial(TabularPBRL, TWO, config=tabular(estimator=MonteCarlo(), follower=Softmax(0.2))), 12
    ),
    "file, PBRL exact, game": file(partial(TabularPBRL, INCENTIVE, env_kwargs=PLAYERS), 12),
    "file, hypergradient": file(partial(Hypergradient, TWO, HypergradientConfig(tau=Quench(0.5, 0.1, 0.6))), 12),
    "file, hypergradient, LQ": file(partial(Hypergradient, LQ), 12),
    "file, SoBiRL": file(partial(SoBiRL, GAME, env_kwargs=SMALL_GAME), 12),
    "file, independent": file(partial(IndependentPolicyGradient, TWO), 12),
    "file, meta-gradient": file(partial(MetaGradient, INCENTIVE, env_kwargs=PLAYERS), 12),
    "file, HPGD": file(partial(HPGD, TWO, HPGDConfig(learning_rate=0.1)), 12),
    "file, zero order": file(partial(ZeroOrder, TWO), 12),
    "file, CMA-ES exact": file(partial(TabularCMAES, GAME, env_kwargs={"n_states": 3}), 12),
    "file, single loop": file(partial(SingleLoop, TWO, SingleLoopConfig(**LOOP), env_kwargs=LOOP), 2000),
    "file, finite differences": file(
        partial(FiniteDifferences, TWO, FiniteDifferencesConfig(block=50, burn_in=10, **LOOP), env_kwargs=LOOP), 2000
    ),
    "file, CMA-ES": file(partial(CMAES, TWO, A2C, CMAESConfig(**BOX)), 6000, at=1, further=1),
    "file, PBRL, A2C": file(partial(PBRL, GAME, A2C, None, SMALL, 1, SMALL_GAME), 6000),
    "file, PBRL, DQN with replay": file(
        partial(PBRL, GAME, DQN_BUILT, None, SMALL, 1, SMALL_GAME), 4000, follower=DQN_BUILT
    ),
    "file, PBRL, DQN with replay, x unseen": file(
        partial(PBRL, TWO, DQN_BUILT, None, replace(SMALL, **UNSEEN), 1), 4000, follower=DQN_BUILT
    ),
    "file, PBRL, Bellman": file(
        partial(PBRL, GAME, QUANTILES, BellmanPenalty(), SMALL, 1, SMALL_GAME), 4000, follower=QUANTILES
    ),
    "file, PBRL, LQ, SAC": file(
        partial(PBRL, LQ, SAC_BUILT, None, SMALL, 1, {"gamma": 0.95}), 6000, follower=SAC_BUILT, further=1
    ),
    "file, PBRL, game": file(partial(PBRL, INCENTIVE, A2C, None, PBRLConfig.for_a_game(**FOUR), 1, PLAYERS), 4000),
    "file, PBRL, VecNormalize": file(partial(PBRL, GAME, scaled, None, SMALL, 1, SMALL_GAME), 4000, follower=scaled),
    "file, preferences": file(partial(PreferencePBRL, GRID, A2C, config=ASKED), 1300),
    "file, preferences, DQN": file(
        partial(PreferencePBRL, GRID, DQN_BUILT, None, ASKED, TrueReturnLabeller(noise=0.2)),
        1300,
        follower=DQN_BUILT,
        labeller=TrueReturnLabeller(noise=0.2),
    ),
    "file, preferences, tracked": file(
        partial(PreferencePBRL, GRID, Tracked(PLAN, SLOW), ValuePenalty(lam=2.0), ASKED),
        1300,
        follower=Tracked(PLAN, SLOW),
    ),
    "file, DRLHF": file(partial(DRLHF, GRID, A2C, replace(ASKED, fragmenter=ActiveFragmenter(3), memory=40)), 1300),
    "file, true reward": file(partial(TrueReward, GRID, A2C, ASKED), 1300),
}

# --- what other followers make of an x --------------------------------------------------------------------------------


def responses(env: str, x: Any, followers: dict[str, Any], **options: Any) -> Trace:
    return {"responses": plain(list(robustness(env, x, followers, steps=300, n_envs=4, **options)))}


CASES |= {
    "robustness, TwoState": partial(
        responses, TWO, [0.5], {"A2C": A2C, "PPO": PPO, "DQN": built(DQN, **OFF)}, seeds=[0, 1]
    ),
    "robustness, LQ": partial(
        responses, LQ, [-0.6, 0.3], {"PPO": PPO, "SAC": SAC_BUILT}, seeds=[0], env_kwargs={"gamma": 0.95}
    ),
    "robustness, ShapedCartPole": partial(
        responses, CART, [0.2, -0.1], {"PPO": built(PPO, gamma=0.99, **ON)}, seeds=[0], env_kwargs=SHORT
    ),
}

# --- environments -----------------------------------------------------------------------------------------------------

DEFAULTS: dict[str, dict[str, Any]] = {B + "StackelbergGame-v0": {"n_states": 10}, B + "RandomMDP-v0": {"dim": 20}}
for name, spec in sorted(gym.registry.items()):
    if name.startswith(B):
        own = DEFAULTS.get(name, {})
        CASES[f"environment, {name}"] = partial(stepped, name, **own)
        if spec.vector_entry_point is not None:
            CASES[f"environment, {name}, vector"] = partial(stepped_together, name, **own)
CASES["environment, incentive_design_v0"] = partial(played, **PLAYERS)
