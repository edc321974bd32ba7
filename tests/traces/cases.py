"""The table of seeded short runs: every leader and baseline on each kind of environment it accepts, and the environments.

A case is a name and a function that returns its trace. Names say leader, lower level, follower, what is special.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecNormalize

from tests.traces import exact_leaders, sampled_leaders
from tests.traces.exact_leaders import (
    GAME,
    GRID,
    INCENTIVE,
    LOOP,
    LQ,
    PLAYERS,
    SMALL_GAME,
    TEXT,
    TWO,
    B,
    tabular,
)
from tests.traces.names import (
    CMAES,
    DRLHF,
    HPGD,
    PBRL,
    ActiveFragmenter,
    BellmanPenalty,
    CMAESConfig,
    FiniteDifferences,
    FiniteDifferencesConfig,
    HPGDConfig,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    Linear,
    MetaGradient,
    MirrorDescent,
    MonteCarlo,
    PBRLConfig,
    Planner,
    PreferenceConfig,
    PreferencePBRL,
    Quench,
    SingleLoop,
    SingleLoopConfig,
    SoBiRL,
    Softmax,
    TabularCMAES,
    TabularPBRL,
    Tracked,
    TrueReturnLabeller,
    TrueReward,
    ValuePenalty,
    WholeEpisodes,
    WordsReward,
    ZeroOrder,
    robustness,
    writer,
)
from tests.traces.recording import Trace, learned, plain, played, resumed, stepped, stepped_together
from tests.traces.sampled_leaders import (
    BOX,
    CART,
    FOUR,
    NET,
    OFF,
    ON,
    QUANTILES,
    RECURRENT,
    SHORT,
    SMALL,
    UNSEEN,
    built,
    scaled,
)

CASES: dict[str, Callable[[], Trace]] = {**exact_leaders.CASES, **sampled_leaders.CASES}

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
    return partial(learned, partial(cls, env, follower, config=config, **options), total, iterations=iterations)


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
    "file, hypergradient": file(partial(Hypergradient, TWO, config=HypergradientConfig(tau=Quench(0.5, 0.1, 0.6))), 12),
    "file, hypergradient, LQ": file(partial(Hypergradient, LQ), 12),
    "file, SoBiRL": file(partial(SoBiRL, GAME, env_kwargs=SMALL_GAME), 12),
    "file, independent": file(partial(IndependentPolicyGradient, TWO), 12),
    "file, meta-gradient": file(partial(MetaGradient, INCENTIVE, env_kwargs=PLAYERS), 12),
    "file, HPGD": file(partial(HPGD, TWO, config=HPGDConfig(learning_rate=0.1)), 12),
    "file, zero order": file(partial(ZeroOrder, TWO), 12),
    "file, CMA-ES exact": file(partial(TabularCMAES, GAME, env_kwargs={"n_states": 3}), 12),
    "file, single loop": file(partial(SingleLoop, TWO, config=SingleLoopConfig(**LOOP), env_kwargs=LOOP), 2000),
    "file, finite differences": file(
        partial(FiniteDifferences, TWO, config=FiniteDifferencesConfig(block=50, burn_in=10, **LOOP), env_kwargs=LOOP),
        2000,
    ),
    "file, CMA-ES": file(partial(CMAES, TWO, A2C, config=CMAESConfig(**BOX)), 6000, at=1, further=1),
    "file, PBRL, A2C": file(partial(PBRL, GAME, A2C, penalty=None, config=SMALL, seed=1, env_kwargs=SMALL_GAME), 6000),
    "file, PBRL, DQN with replay": file(
        partial(PBRL, GAME, DQN_BUILT, penalty=None, config=SMALL, seed=1, env_kwargs=SMALL_GAME),
        4000,
        follower=DQN_BUILT,
    ),
    "file, PBRL, DQN with replay, x unseen": file(
        partial(PBRL, TWO, DQN_BUILT, penalty=None, config=replace(SMALL, **UNSEEN), seed=1), 4000, follower=DQN_BUILT
    ),
    "file, PBRL, Bellman": file(
        partial(PBRL, GAME, QUANTILES, penalty=BellmanPenalty(), config=SMALL, seed=1, env_kwargs=SMALL_GAME),
        4000,
        follower=QUANTILES,
    ),
    "file, PBRL, LQ, SAC": file(
        partial(PBRL, LQ, SAC_BUILT, penalty=None, config=SMALL, seed=1, env_kwargs={"gamma": 0.95}),
        6000,
        follower=SAC_BUILT,
        further=1,
    ),
    "file, PBRL, game": file(
        partial(PBRL, INCENTIVE, A2C, penalty=None, config=PBRLConfig.for_a_game(**FOUR), seed=1, env_kwargs=PLAYERS),
        4000,
    ),
    "file, PBRL, VecNormalize": file(
        partial(PBRL, GAME, scaled, penalty=None, config=SMALL, seed=1, env_kwargs=SMALL_GAME), 4000, follower=scaled
    ),
    "file, preferences": file(partial(PreferencePBRL, GRID, A2C, config=ASKED), 1300),
    "file, preferences, DQN": file(
        partial(PreferencePBRL, GRID, DQN_BUILT, penalty=None, config=ASKED, labeller=TrueReturnLabeller(noise=0.2)),
        1300,
        follower=DQN_BUILT,
        labeller=TrueReturnLabeller(noise=0.2),
    ),
    "file, preferences, tracked": file(
        partial(PreferencePBRL, GRID, Tracked(PLAN, SLOW), penalty=ValuePenalty(lam=2.0), config=ASKED),
        1300,
        follower=Tracked(PLAN, SLOW),
    ),
    "file, DRLHF": file(
        partial(DRLHF, GRID, A2C, config=replace(ASKED, fragmenter=ActiveFragmenter(3), memory=40)), 1300
    ),
    "file, true reward": file(partial(TrueReward, GRID, A2C, config=ASKED), 1300),
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
