"""Leaders that know the model: over one follower, over two players, over a linear-quadratic game."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from bilevel_gym.agents.config import LeaderConfig
from tests.traces.names import (
    HPGD,
    ArrayProblem,
    BellmanPenalty,
    Direct,
    FiniteDifferences,
    FiniteDifferencesConfig,
    Geometric,
    HPGDConfig,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    IndependentPolicyGradientConfig,
    LeaderSet,
    Linear,
    MetaGradient,
    MetaGradientConfig,
    MirrorDescent,
    MonteCarlo,
    NestedLoopConfig,
    NikaidoIsodaPenalty,
    PartialSGD,
    PolicyGradient,
    Quench,
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
    TabularMDP,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    ZeroOrder,
    ZeroOrderConfig,
)
from tests.traces.recording import Trace, learned

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
    rewards: list[Any] = [lambda x, t=t: r + t @ torch.sin(x) for t in tables]
    return ArrayProblem(base, LeaderSet.box(dim, -2.0, 2.0), rewards[0], rewards[1])


def ending_problem() -> Any:
    """x moves rewards and transitions of five states, two of which end the episode."""
    rng = np.random.default_rng(1)
    S, A, dim = 5, 3, 3
    logits, moved = (torch.from_numpy(rng.standard_normal((S, A, S))) for _ in range(2))
    r, g = (torch.from_numpy(rng.random((S, A, dim))) for _ in range(2))
    ends = torch.arange(S) >= 3
    base = TabularMDP(torch.softmax(logits, -1), r[..., 0], torch.full((S,), 1 / S, dtype=torch.float64), 0.8, ends)
    return ArrayProblem(
        base,
        LeaderSet.box(dim, -2.0, 2.0),
        lambda x: r @ x,
        lambda x: g @ (1.0 - x),
        lambda x: torch.softmax(logits + 2.0 * x[0] * moved, -1),
    )


# --- exact leaders over one follower ----------------------------------------------------------------------------------

SOURCES: dict[str, Callable[[], tuple[Any, dict[str, Any] | None]]] = {
    **{name: partial(lambda env, kwargs: (env, kwargs), *world) for name, world in WORLDS.items()},
    "sparse": lambda: (sparse_problem(), None),
    "ends": lambda: (ending_problem(), None),
}


def named(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """A leader's arguments by name: the config, and of others the penalty, then the oracle."""
    parts = iter(("penalty", "oracle"))
    return {"config" if isinstance(given, LeaderConfig) else next(parts): given for given in arguments}


def exact(cls: Any, source: str, *arguments: Any, total: int = 12, iterations: int = 4, **options: Any) -> Trace:
    """A leader that knows the model, for a few iterations."""

    def make() -> Any:
        problem, kwargs = SOURCES[source]()
        return cls(problem, **named(arguments), env_kwargs=kwargs, **options)

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
for world in ("TwoState", "StackelbergGame", "FourRooms", "ends"):
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
            learned, partial(cls, env, config=config, seed=2, env_kwargs=kwargs), 2000 if config else 20_000, 4
        )

# --- exact leaders over games of two players and over linear-quadratic games ------------------------------------------


def over_players(cls: Any, *arguments: Any, **options: Any) -> Callable[[], Trace]:
    return partial(learned, partial(cls, INCENTIVE, **named(arguments), env_kwargs=PLAYERS, **options), 12, 4)


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
        learned,
        partial(Hypergradient, LQ, config=HypergradientConfig(learning_rate=0.02), env_kwargs={"gamma": 0.97}),
        12,
        4,
    ),
}
