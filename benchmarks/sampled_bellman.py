"""The Bellman penalty from samples, beside the value penalty: DQN followers, rollouts alone.

Two kinds of problem: random Stackelberg games of 20 states, where x is the leader's policy; and tolls in small cities, where x
enters the reward alone and drivers are regularised at 0.5 minutes. Both penalties have the same follower, lam, steps of x and
environment steps, all counted. Weighted by the occupancy of pi_y the Bellman penalty is the value penalty of the regularised
problem, so that what is compared is how pi_y is found: kept near the best response, or trained on ``r_f + r_l/lam`` beside it.
The exact answer is the hypergradient's, which knows the model. The settings of tolls were chosen after runs on
city 0, `PBRL`'s defaults on games 0 to 2.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3 import DQN

from bilevel_gym.agents import (
    PBRL,
    BellmanPenalty,
    Geometric,
    Hypergradient,
    HypergradientConfig,
    Linear,
    PBRLConfig,
    Rollouts,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.penalties import Penalty

from .figures import draw_band, new_figure, on_grid, save_figure
from .runs import Data, Runs, history, run_all

LAM = Geometric(2.0, 8.0)
PENALTIES: dict[str, Penalty] = {"value": ValuePenalty(lam=LAM), "Bellman": BellmanPenalty(lam=LAM)}
COLOURS = {"value": "tab:orange", "Bellman": "tab:blue"}
DRIVER_TAU = 0.5
PROBLEMS: dict[str, Data] = {
    "games": {
        "title": "Stackelberg games, 20 states",
        "id": "bilevel_gym/StackelbergGame-v0",
        "kwargs": {"n_states": 20},
        "seeds": (5, 6, 7),
        "steps": 500_000,
        "config": PBRLConfig(eval_every=5),
        "exact": HypergradientConfig(tau=Geometric(0.3, 0.003)),
    },
    "cities": {
        "title": "tolls, cities of 9 nodes",
        "id": "bilevel_gym/TollDesign-v0",
        "kwargs": {"n_nodes": 9, "tau": DRIVER_TAU},
        "seeds": (1, 2, 3),
        "steps": 250_000,
        "config": PBRLConfig(
            learning_rate=Linear(0.5, 0.1),
            follower_steps=1024,
            estimator=Rollouts(n_envs=32, tail=0.98),
            observe_commitment=False,
            q_temperature=DRIVER_TAU,
            eval_every=5,
        ),
        "exact": HypergradientConfig(),
    },
}
QUICK_STEPS = 30_000


def problem_kwargs(kind: str, seed: int) -> Data:
    """Arguments of one instance."""
    kwargs: Data = PROBLEMS[kind]["kwargs"]
    return kwargs | {"seed": seed}


def run_exact(kind: str, seed: int) -> Data:
    """The untrained leader and the hypergradient's, on one instance."""
    chosen = PROBLEMS[kind]
    problem: Any = gym.make(chosen["id"], **problem_kwargs(kind, seed)).get_wrapper_attr("problem")
    start = time.process_time()
    leader = Hypergradient(problem, chosen["exact"]).learn(300)
    seconds = round(time.process_time() - start, 1)
    untrained = leader_return_at_best_response(problem, problem.start_x())
    return {
        "kind": kind,
        "seed": seed,
        "start": untrained,
        "exact": leader.evaluate().leader_return,
        "seconds": seconds,
    }


def run_sampled(kind: str, seed: int, penalty: str, steps: int) -> Data:
    """PBRL with one penalty on one instance."""
    chosen = PROBLEMS[kind]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*regularised at tau")  # of the value penalty: said on the page
        leader = PBRL(
            chosen["id"], DQN, PENALTIES[penalty], chosen["config"], seed=seed, env_kwargs=problem_kwargs(kind, seed)
        )
    start = time.process_time()
    leader.learn(steps)
    seconds, last = time.process_time() - start, leader.history[-1]
    return {
        "kind": kind,
        "seed": seed,
        "penalty": penalty,
        "last": last.leader_return,
        "best": leader.evaluate().leader_return,
        "at_pi_y": last.leader_return_at_pi_y,
        "gap": last.gap,
        "tau": last.tau,
        "steps": leader.num_timesteps,
        "iterations": leader.iteration,
        "oracle_failures": leader.oracle_failures,
        "seconds": round(seconds, 1),
        "history": history(leader, "steps", "leader_return", "leader_return_at_pi_y"),
    }


def run(quick: bool, jobs: int) -> Data:
    """Both penalties and the exact answer on all instances."""
    instances = [(kind, s) for kind, chosen in PROBLEMS.items() for s in chosen["seeds"][: 2 if quick else None]]
    exact = run_all(run_exact, instances, jobs, "exact references")
    steps = {kind: QUICK_STEPS if quick else chosen["steps"] for kind, chosen in PROBLEMS.items()}
    tasks = [(kind, s, name, steps[kind]) for kind, s in instances for name in PENALTIES]
    return {"runs": run_all(run_sampled, tasks, jobs, "sampled"), "exact": exact, "lam": [LAM.start, LAM.end]}


def share(data: Data, r: Data, value: float) -> float:
    """The part of the exact improvement over the untrained leader that a return is."""
    e = Runs(data["exact"])(kind=r["kind"], seed=r["seed"]).one
    return float((value - e["start"]) / (e["exact"] - e["start"]))


def shares(data: Data, kind: str, penalty: str, key: str) -> list[float]:
    """The share of every instance."""
    return [share(data, r, r[key]) for r in Runs(data["runs"])(kind=kind, penalty=penalty)]


def picture(data: Data, path: Path) -> None:
    """Share of the exact improvement against steps, a panel a kind of problem."""
    figure, axes = new_figure(1, 2, 11.0, 4.2)
    for panel, (kind, chosen) in zip(axes[0], PROBLEMS.items(), strict=True):
        for name in PENALTIES:
            runs = list(Runs(data["runs"])(kind=kind, penalty=name))
            shared = [
                {**r["history"], "share": [share(data, r, v) for v in r["history"]["leader_return"]]} for r in runs
            ]
            grid, (curves,) = on_grid(shared, 60, "share")
            draw_band(panel, grid / 1e6, curves, COLOURS[name], f"{name} penalty, sampled")
        panel.axhline(1.0, color="black", linewidth=1.0, linestyle=":", label="exact (hypergradient)")
        panel.set_ylim(-0.1, 1.1)
        panel.set_title(chosen["title"], fontsize=10)
        panel.set_xlabel("environment steps, all counted (millions)")
    axes[0, 0].set_ylabel("share of the exact improvement\n(leader's return at best response)")
    axes[0, 0].legend(fontsize=8, frameon=False, loc="lower right")
    save_figure(figure, path)
