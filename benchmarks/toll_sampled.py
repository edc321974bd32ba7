"""Tolls for drivers that learn: PBRL with PPO and DQN in five cities, one run per city.

Five random cities of 12 nodes (seeds 10 to 14) and all trips between their nodes; drivers choose by a recursive logit of
tau0 = 0.1 minutes. PBRL's two followers are SB3's algorithms on the streets of the city; x's gradient goes through the known
model at their policies. Exact methods run on the same cities with the same tau0. Every F_0 is exact, at the drivers' regularised
best response. Shares are relative to the best exact improvement over no tolls (``references``).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import (
    PBRL,
    Geometric,
    Hypergradient,
    HypergradientConfig,
    KnownModel,
    Linear,
    PBRLConfig,
    TabularPBRL,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.followers.spec import FollowerSpec
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.mdp import TollDesignProblem, random_city

from . import references
from .figures import draw_band, on_grid, panels
from .runs import Data, Runs, grid, history, outcome, run_all, spent
from .statistics import paired_ratio

SEEDS = tuple(range(10, 15))  # settings were chosen in cities 0 to 2: these were not looked at
NODES, TAU, GAMMA = 12, 0.1, 0.999
LEADER_SEEDS = (0,)
ITERATIONS = 300
HOT_TAU = 1.0
"""Temperature in minutes from which exact drivers (in one row) and learned drivers cool to tau0."""
TARGET = 0.95
ALGORITHMS = {"PPO": "#1f77b4", "DQN": "#2ca02c"}
STEPS = {"PPO": 1_000_000, "DQN": 500_000}
EXACT = {
    "hypergradient": "hypergradient, exact",
    "pbrl": "PBRL, exact",
    "annealed": "hypergradient, exact, tau from 1 minute",
}
SHARED: dict[str, Any] = {"observe_commitment": False, "averaging": 0.5, "learning_rate": Linear(0.1, 0.01)}
CONFIGS = {
    "PPO": PBRLConfig(entropy=Geometric(1.0, 0.1), estimator=KnownModel(), eval_every=5, **SHARED),
    "DQN": PBRLConfig(
        q_temperature=Geometric(HOT_TAU, TAU), follower_steps=512, estimator=KnownModel(), eval_every=15, **SHARED
    ),
}


def city(seed: int) -> TollDesignProblem:
    """A city of the benchmark."""
    return TollDesignProblem(random_city(NODES, seed), GAMMA, TAU).in_units(1.0)


def ppo(venv: VecEnv) -> PPO:
    """PPO with one-hot states and a linear policy; its rate is large because x moves and the drivers do not see it."""
    settings: dict[str, Any] = {"gamma": GAMMA, "n_steps": 32, "n_epochs": 8, "gae_lambda": 0.95, "learning_rate": 0.03}
    return PPO(
        "MlpPolicy", venv, batch_size=16 * venv.num_envs, policy_kwargs={"net_arch": []}, device="cpu", **settings
    )


FOLLOWERS: dict[str, FollowerSpec] = {"PPO": ppo, "DQN": DQN}


def run_exact(seed: int, iterations: int) -> Data:
    """The leader's return without tolls and under the tolls of each exact method."""
    problem = city(seed)
    hot = HypergradientConfig(tau=Geometric(HOT_TAU, TAU))
    leaders = (
        Hypergradient(problem, tau=TAU),
        TabularPBRL(
            problem, penalty=ValuePenalty(lam=Geometric(2.0, 20.0)), tau=Geometric(0.2, TAU), learning_rate=0.05
        ),
        Hypergradient(problem, config=hot),
    )
    tolls = {name: torch.from_numpy(leader.learn(iterations).x) for name, leader in zip(EXACT, leaders, strict=True)}
    tolls["none"] = problem.start_x()
    returns = {name: leader_return_at_best_response(problem, x) for name, x in tolls.items()}
    return {"links": problem.leader_dim, **returns}


def run_sampled(method: str, seed: int, leader_seed: int, quick: bool) -> Data:
    """Run PBRL with one algorithm and one seed in one city."""
    before = time.process_time()
    kwargs = {"n_nodes": NODES, "seed": seed, "gamma": GAMMA, "tau": TAU}
    follower, config = FOLLOWERS[method], CONFIGS[method]
    leader = PBRL("bilevel_gym/TollDesign-v0", follower, config=config, seed=leader_seed, env_kwargs=kwargs)
    leader.learn(40_000 if quick else STEPS[method])  # its first record is of no tolls
    about = {"seconds": round(time.process_time() - before, 2)}
    return outcome(leader) | spent(leader) | about | {"history": history(leader, "steps", "leader_return", digits=5)}


def run(quick: bool, jobs: int) -> Data:
    """Run both algorithms and the exact methods in every city."""
    seeds, leader_seeds = (SEEDS[:2], LEADER_SEEDS[:1]) if quick else (SEEDS, LEADER_SEEDS)
    exact = run_all(run_exact, grid(seed=seeds), jobs, "exact", iterations=30 if quick else ITERATIONS)
    cells = grid(method=ALGORITHMS, seed=seeds, leader_seed=leader_seeds)
    runs = run_all(run_sampled, cells, jobs, "learned drivers", quick=quick)
    return {"seeds": list(seeds), "leader_seeds": list(leader_seeds), "exact": exact, "runs": runs}


# --- reading ----------------------------------------------------------------------------------------------------------


def reference(data: Data, e: Data) -> float:
    """The best return known for a city."""
    found = [e[name] for name in EXACT] + [
        r[key] for r in Runs(data["runs"])(seed=e["seed"]) for key in ("last", "best")
    ]
    return references.reference("city_12", e["seed"], *found)


def improvements(data: Data, method: str, key: str) -> list[float]:
    """The leader's gain over no tolls, by city: the mean over seeds for learned drivers; "reference" is the best known."""
    if method in ALGORITHMS:
        runs = Runs(data["runs"])(method=method)
        return [float(np.mean(runs(seed=e["seed"])[key]) - e["none"]) for e in data["exact"]]
    return [float((reference(data, e) if method == "reference" else e[method]) - e["none"]) for e in data["exact"]]


def share(data: Data, method: str, key: str = "last", of: str = "reference") -> Interval:
    """The mean improvement relative to that of the reference or of an exact method, paired by city."""
    return paired_ratio(improvements(data, method, key), improvements(data, of, ""))


@panels(1, len(ALGORITHMS), 10.5, 4.2)
def picture(data: Data, *axes: Any) -> None:
    """Draw the share against steps, with one panel per algorithm and exact methods as lines."""
    scale = float(np.mean(improvements(data, "reference", "")))
    for panel, (method, colour) in zip(axes, ALGORITHMS.items(), strict=True):
        runs = Runs(data["runs"])(method=method)
        steps, (returns,) = on_grid(runs["history"], 80, "leader_return")
        curves = []
        for e in data["exact"]:
            own = [curve for curve, seed in zip(returns, runs["seed"], strict=True) if seed == e["seed"]]
            curves.append((np.mean(own, axis=0) - e["none"]) / scale)
        draw_band(panel, steps / 1e6, curves, colour, f"PBRL, {method}")
        for name, look, label in (("reference", "-.", "best answer known"), ("annealed", ":", EXACT["annealed"])):
            level = float(np.mean(improvements(data, name, ""))) / scale
            panel.axhline(level, color="black", linestyle=look, linewidth=1.0, label=label)
        panel.axhline(TARGET, color="#d62728", linestyle="--", linewidth=0.8, label="target")
        panel.set(xlabel="environment steps, all counted (millions)", title=f"{method} drivers")
        panel.legend(fontsize=8, frameon=False, loc="lower right")
    axes[0].set_ylabel("gain over no tolls, share of the best answer's known")
