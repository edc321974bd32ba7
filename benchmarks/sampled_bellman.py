"""The Bellman penalty from samples, beside the value penalty: DQN followers, rollouts alone, one run per instance.

Two kinds of problem: random Stackelberg games of 20 states, where x is the leader's policy; and tolls in small cities, where x
enters the reward alone and drivers are regularised at 0.5 minutes. Both penalties have the same follower, lam, steps of x and
environment steps, all counted. Weighted by the occupancy of pi_y, the Bellman penalty is the value penalty of the regularised
problem. The benchmark thus compares two ways to find pi_y: near the best response, or trained separately on ``r_f + r_l/lam``.
Shares are of the improvement of the best exact answer known (``references``). The settings of tolls were chosen after runs on
city 0, `PBRL`'s defaults on games 0 to 2.
"""

from __future__ import annotations

import warnings
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

from . import references
from .figures import draw_band, on_grid, panels
from .runs import Data, Runs, cpu_seconds, grid, history, outcome, run_all, spent

LAM = Geometric(2.0, 8.0)
PENALTIES: dict[str, Penalty] = {"value": ValuePenalty(lam=LAM), "Bellman": BellmanPenalty(lam=LAM)}
COLOURS = {"value": "tab:orange", "Bellman": "tab:blue"}
DRIVER_TAU = 0.5
PROBLEMS: dict[str, Data] = {
    "games": {
        "title": "Stackelberg games, 20 states",
        "id": "bilevel_gym/StackelbergGame-v0",
        "kwargs": {"n_states": 20, "reward_unit": 1.0},
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
        "exact": HypergradientConfig(tau=DRIVER_TAU),
    },
}
QUICK_STEPS = 30_000


def run_exact(kind: str, seed: int) -> Data:
    """The returns of the untrained leader and of the hypergradient on one instance."""
    chosen = PROBLEMS[kind]
    problem: Any = gym.make(chosen["id"], seed=seed, **chosen["kwargs"]).get_wrapper_attr("problem")
    leader = Hypergradient(problem, config=chosen["exact"])
    seconds = round(cpu_seconds(leader.learn, 300), 1)
    untrained = leader_return_at_best_response(problem, problem.start_x())
    return {"start": untrained, "exact": leader.evaluate().leader_return, "seconds": seconds}


def run_sampled(kind: str, seed: int, penalty: str, quick: bool) -> Data:
    """Run PBRL with one penalty on one instance."""
    chosen = PROBLEMS[kind]
    kwargs = chosen["kwargs"] | {"seed": seed}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*regularised at tau")  # of the value penalty: said on the page
        leader = PBRL(
            chosen["id"], DQN, penalty=PENALTIES[penalty], config=chosen["config"], seed=seed, env_kwargs=kwargs
        )
    seconds = round(cpu_seconds(leader.learn, QUICK_STEPS if quick else chosen["steps"]), 1)
    curves = history(leader, "steps", "leader_return", "leader_return_at_pi_y")
    took = spent(leader) | {"seconds": seconds, "tau": leader.history[-1].tau}
    return outcome(leader) | took | {"history": curves}


def run(quick: bool, jobs: int) -> Data:
    """Run both penalties and the exact methods on all instances."""
    seeds = {kind: chosen["seeds"][: 2 if quick else None] for kind, chosen in PROBLEMS.items()}
    instances = [cell for kind in PROBLEMS for cell in grid(kind=[kind], seed=seeds[kind])]
    exact = run_all(run_exact, instances, jobs, "exact references")
    cells = [cell for kind in PROBLEMS for cell in grid(kind=[kind], seed=seeds[kind], penalty=PENALTIES)]
    runs = run_all(run_sampled, cells, jobs, "sampled", quick=quick)
    return {"runs": runs, "exact": exact, "lam": [LAM.start, LAM.end]}


KNOWN = {"games": "game_20", "cities": "city_9"}


def reference(data: Data, kind: str, seed: int) -> float:
    """The best return known for an instance."""
    found = [value for r in Runs(data["runs"])(kind=kind, seed=seed) for value in (r["last"], r["best"])]
    return references.reference(KNOWN[kind], seed, *found, Runs(data["exact"])(kind=kind, seed=seed).one["exact"])


def share(data: Data, r: Data, value: float) -> float:
    """A return as a share of the best exact improvement over the untrained leader."""
    start = Runs(data["exact"])(kind=r["kind"], seed=r["seed"]).one["start"]
    return float((value - start) / (reference(data, r["kind"], r["seed"]) - start))


def shares(data: Data, kind: str, penalty: str, key: str) -> list[float]:
    """The share of every instance."""
    return [share(data, r, r[key]) for r in Runs(data["runs"])(kind=kind, penalty=penalty)]


@panels(1, 2, 11.0, 4.2)
def picture(data: Data, *axes: Any) -> None:
    """Draw the share of the exact improvement against steps, with one panel per kind of problem."""
    for panel, (kind, chosen) in zip(axes, PROBLEMS.items(), strict=True):
        for name in PENALTIES:
            runs = list(Runs(data["runs"])(kind=kind, penalty=name))
            shared = [
                r["history"] | {"share": [share(data, r, value) for value in r["history"]["leader_return"]]}
                for r in runs
            ]
            steps, (curves,) = on_grid(shared, 60, "share")
            draw_band(panel, steps / 1e6, curves, COLOURS[name], f"{name} penalty, sampled")
        panel.axhline(1.0, color="black", linewidth=1.0, linestyle=":", label="best exact answer known")
        panel.set_title(chosen["title"], fontsize=10)
        panel.set(xlabel="environment steps, all counted (millions)", ylim=(-0.1, 1.1))
    axes[0].set_ylabel("share of the best exact improvement\n(leader's return at best response)")
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
