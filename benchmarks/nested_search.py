"""Nested search with ten times the steps: CMA-ES, which trains a PPO follower for every trial, and PBRL, one run per instance.

This is the obvious method without this library: a black-box optimiser proposes x, a new SB3 follower trains under it, the
leader's return is measured, and so on. All steps of training and evaluation are counted for both methods, and CMA-ES gets ten
times as many.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import CMAES, PBRL, CMAESConfig, KnownModel, PBRLConfig, Rollouts
from bilevel_gym.agents.leader import Leader

from .figures import panels
from .runs import Data, Runs, grid, history, outcome, run_all

SEEDS = (5, 6, 7)
TIMES = 10
METHODS = {"pbrl": "PBRL", "cma_es": "CMA-ES, follower retrained"}
COLOURS = {"pbrl": "tab:blue", "cma_es": "tab:red"}


def ppo(gamma: float, n_steps: int, gae_lambda: float) -> Callable[[VecEnv], PPO]:
    """The follower of a trial: a linear policy, with settings that learn fast at a fixed x."""
    settings: dict[str, Any] = {"gamma": gamma, "n_steps": n_steps, "gae_lambda": gae_lambda, "n_epochs": 8}
    settings |= {"learning_rate": 0.03, "ent_coef": 0.01, "policy_kwargs": {"net_arch": []}, "device": "cpu"}
    return lambda venv: PPO("MlpPolicy", venv, batch_size=16 * venv.num_envs, **settings)


GAME, NEAR = "StackelbergGame-v0", ppo(0.9, 16, 0.5)
CITY, FAR = {"n_nodes": 12, "tau": 0.1}, ppo(0.999, 32, 0.95)


@dataclass(frozen=True)
class Problem:
    """A problem, PBRL's budget and estimator, and the training of a trial's follower."""

    label: str
    env: str
    env_kwargs: dict[str, Any]
    budget: int
    estimator: Rollouts | KnownModel
    trial_steps: int
    trial_follower: Callable[[VecEnv], PPO]


PROBLEMS = {
    f"game_{n}": Problem(
        f"Stackelberg games of {n} states",
        GAME,
        {"n_states": n, "reward_unit": 1.0},
        1_000_000,
        Rollouts(),
        steps,
        NEAR,
    )
    for n, steps in ((20, 10_000), (100, 20_000))
} | {"toll": Problem("Tolls in cities of 12 nodes", "TollDesign-v0", CITY, 800_000, KnownModel(), 40_000, FAR)}


def run_one(method: str, problem: str, seed: int, quick: bool) -> Data:
    """Run one method on one instance of a problem."""
    chosen, start = PROBLEMS[problem], time.process_time()
    env, kwargs = f"bilevel_gym/{chosen.env}", chosen.env_kwargs | {"seed": seed}
    steps = 50_000 if quick else chosen.budget
    leader: Leader
    if method == "pbrl":
        leader = PBRL(env, PPO, config=PBRLConfig(estimator=chosen.estimator), seed=seed, env_kwargs=kwargs)
        leader.learn(steps)
    else:
        config = CMAESConfig(follower_steps=chosen.trial_steps, eval_every=1)
        leader = CMAES(env, chosen.trial_follower, config=config, seed=seed, env_kwargs=kwargs)
        leader.learn(TIMES * steps)
    about = {"dim": len(leader.x), "cpu_seconds": round(time.process_time() - start, 1)}
    return outcome(leader) | about | history(leader, "steps", "leader_return", digits=5)


def run(quick: bool, jobs: int) -> Data:
    """Run both methods on every instance."""
    seeds = SEEDS[:2] if quick else SEEDS
    cells = grid(method=reversed(METHODS), problem=PROBLEMS, seed=seeds)
    return {"seeds": list(seeds), "runs": run_all(run_one, cells, jobs, "runs", quick=quick)}


# --- reading ----------------------------------------------------------------------------------------------------------


def bests(runs: Runs, name: str) -> list[list[float]]:
    """The best returns of PBRL and of CMA-ES on a problem, by instance."""
    return [runs(problem=name, method=method)["best"] for method in METHODS]


@panels(1, len(PROBLEMS), 14.0, 4.4)
def picture(data: Data, *axes: Any) -> None:
    """Draw F_0 against steps, with one panel per problem and one curve per run."""
    for panel, (name, problem) in zip(axes, PROBLEMS.items(), strict=True):
        for method, label in METHODS.items():
            for k, run in enumerate(Runs(data["runs"])(problem=name, method=method)):
                style = {"color": COLOURS[method], "linewidth": 1.2, "alpha": 0.85, "label": None if k else label}
                panel.plot(run["steps"][1:], run["leader_return"][1:], **style)
        panel.set_title(problem.label, fontsize=10)
        panel.set(xscale="log", xlabel="environment steps, all counted")
    axes[0].set_ylabel("leader return at the best response")
    axes[0].legend(fontsize=8, frameon=False)
