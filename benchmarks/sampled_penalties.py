"""Penalties from samples: the Nikaido-Isoda penalty over zero-sum games, four PPO followers, one run per instance.

Random instances of incentive design (10 states, 5 x 5 actions, gamma 0.9, tau 0.1) under three million steps, those of the four
followers and of the leader's own episodes. Beside it, on the same instances, exact PBRL and the hypergradient through the
equilibrium, which know the model. Shares are of the improvement of the best exact answer known (``references``). The settings
were tuned on instance 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3 import PPO

from bilevel_gym.agents import (
    PBRL,
    Geometric,
    Hypergradient,
    HypergradientConfig,
    NikaidoIsodaPenalty,
    TabularPBRL,
    TabularPBRLConfig,
)
from bilevel_gym.envs.incentive_design_v0 import IncentiveDesignEnv
from bilevel_gym.envs.mdp import random_incentive_design

from . import references
from .figures import draw_band, on_grid, panels
from .runs import Data, Runs, cpu_seconds, grid, history, outcome, run_all, shortfall, spent

SEEDS = (1, 2, 3)  # instance 0 served to tune the defaults
BUDGET = 3_000_000
ITERATIONS = 600
SHARE, GAP = 0.8, 0.5
EXACT = {"pbrl": "PBRL, exact, lam 2 to 20", "hypergradient": "hypergradient through the equilibrium"}


def run_method(seed: int, method: str, steps: int, iterations: int) -> Data:
    """Run four PPO followers with default settings, or a method that knows the model, on one instance."""
    problem = random_incentive_design(seed=seed).in_units(1.0)
    leader: Any
    if method == "sampled":
        leader = PBRL(IncentiveDesignEnv(problem), PPO, penalty=NikaidoIsodaPenalty(), seed=seed)
    elif method == "pbrl":
        config = TabularPBRLConfig(tau=0.1, learning_rate=0.05, eval_every=50, keep_best=False)
        leader = TabularPBRL(problem, penalty=NikaidoIsodaPenalty(lam=Geometric(2.0, 20.0)), config=config)
    else:
        leader = Hypergradient(problem, config=HypergradientConfig(eval_every=50, keep_best=False))
    seconds = cpu_seconds(leader.learn, steps if method == "sampled" else iterations)
    last = leader.history[-1]
    row: Data = {"leader_return": last.leader_return, "at_pi_y": last.leader_return_at_pi_y, "gap": shortfall(last)}
    if method == "sampled":
        curves = history(leader, "steps", "leader_return", "leader_return_at_pi_y", "gap")
        row |= outcome(leader) | spent(leader) | {"history": curves}
    return row | {"seconds": round(seconds, 1)}


def run(quick: bool, jobs: int) -> Data:
    """Run all methods on all instances."""
    seeds, steps, iterations = (SEEDS[:2], 60_000, 30) if quick else (SEEDS, BUDGET, ITERATIONS)
    cells = grid(seed=seeds, method=["sampled"]) + grid(seed=seeds, method=EXACT)
    runs = run_all(run_method, cells, jobs, "instances", steps=steps, iterations=iterations)
    return {"seeds": list(seeds), "budget": steps, "runs": runs}


def shares(runs: Runs, key: str = "leader_return") -> list[float]:
    """The sampled leader's share of the best exact improvement over the start line, per instance."""
    return [(r[key] - r["start"]) / (reference(runs, r["seed"]) - r["start"]) for r in runs(method="sampled")]


def reference(runs: Runs, seed: int) -> float:
    """The best designer's return known for an instance."""
    own = runs(seed=seed)
    found = [value for r in own(method="sampled") for value in (r["leader_return"], r["best"])]
    return references.reference("design", seed, *found, *(own(method=name).one["leader_return"] for name in EXACT))


@panels(1, 2, 11.0, 4.4)
def picture(data: Data, returns: Any, gap: Any) -> None:
    """Draw the return at Nash and at the method's own policies, and the gap, against steps."""
    every = Runs(data["runs"])
    runs = every(method="sampled")["history"]
    steps, (at_nash, at_pi_y, gaps) = on_grid(runs, 80, "leader_return", "leader_return_at_pi_y", "gap")
    draw_band(returns, steps / 1e6, at_nash, "tab:blue", "at the Nash equilibrium of x")
    draw_band(returns, steps / 1e6, at_pi_y, "tab:blue", "at its own policies", "--")
    for (name, text), look in zip(EXACT.items(), (":", "-."), strict=True):
        level = float(np.mean(every(method=name)["leader_return"]))
        returns.axhline(level, color="black", linestyle=look, linewidth=1.0, label=text)
    returns.set_title("designer's return", fontsize=10)
    returns.legend(fontsize=8, frameon=False)
    draw_band(gap, steps / 1e6, np.maximum(gaps, 1e-4), "tab:blue", None)
    gap.axhline(GAP, color="black", linewidth=0.8, linestyle=":")
    gap.set_title(f"Nikaido-Isoda gap of its own policies (dotted: {GAP})", fontsize=10)
    returns.set(xlabel="environment steps, all counted (millions)")
    gap.set(xlabel="environment steps, all counted (millions)", yscale="log")
