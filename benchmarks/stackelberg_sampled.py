"""Random Stackelberg games, learned followers: PBRL with PPO, A2C and DQN under a million steps.

Five random games (seeds 5 to 9) of 20 states. PBRL sees rollouts alone: the follower's algorithm trains the best response
and the penalised follower, x moves by sampled gradients. All steps count, those of both followers and of the leader's own
episodes. Beside it, on the same games, exact methods that know the model.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch

from bilevel_gym.agents import (
    PBRL,
    Geometric,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    IndependentPolicyGradientConfig,
    TabularPBRL,
    leader_return_at_best_response,
)
from bilevel_gym.agents.common.leader import Leader
from bilevel_gym.agents.common.tabular import TabularLeader
from bilevel_gym.envs.mdp import random_stackelberg
from bilevel_gym.envs.mdp.stackelberg import StackelbergProblem

from .common import (
    Data,
    Standing,
    draw_band,
    map_tasks,
    markdown_table,
    mean_interval,
    new_figure,
    paired_difference,
    paired_ratio,
    save_figure,
    share_limits,
    verdict,
)

SEEDS = tuple(range(5, 10))  # games 0 to 2 served to tune the defaults: these were not looked at
SIZE = 20
BUDGET = 1_000_000
ASKED = 990_000
"""Steps asked for: the last iteration is finished, and the sum stays within the budget."""
LEADER_SEEDS = (0, 1, 2)
"""Runs on one game differ as much as games do: a game's numbers are means over these."""
EXACT_ITERATIONS = 300
ANNEALED = HypergradientConfig(tau=Geometric(0.3, 0.003))
LONG_ITERATIONS = 3000
TAU0 = 0.002
ALGORITHMS = {"PPO": "#1f77b4", "A2C": "#ff7f0e", "DQN": "#2ca02c"}
EXACT = {
    "independent": "independent gradient, exact",
    "independent_long": "the same, ten times as long",
    "pbrl": "PBRL, exact",
    "hypergradient": "hypergradient, exact",
}


def exact_leader(name: str, problem: StackelbergProblem) -> TabularLeader:
    """A method that knows the model; tau is annealed."""
    if name.startswith("independent"):  # keeping the best x seen leaves its path as it is
        return IndependentPolicyGradient(problem, IndependentPolicyGradientConfig(keep_best=True))
    return TabularPBRL(problem) if name == "pbrl" else Hypergradient(problem, ANNEALED)


def record(leader: Leader, problem: StackelbergProblem, method: str, seed: int, seconds: float) -> Data:
    """What is reported of one run."""
    assert leader.kept is not None
    best, last = leader.kept.evaluation, leader.history[-1]
    answer = {
        "method": method,
        "seed": seed,
        "seconds": round(seconds, 2),
        "iterations": leader.iteration,
        "best": leader_return_at_best_response(problem, torch.from_numpy(leader.x), TAU0),
        "last": leader_return_at_best_response(problem, torch.from_numpy(leader.last_x), TAU0),
        "at_pi_y_best": best.leader_return_at_pi_y,
        "at_pi_y": last.leader_return_at_pi_y,
        "gap_best": best.gap,
        "gap": last.gap,
    }
    return answer


def run_exact(method: str, seed: int, iterations: int) -> Data:
    """An exact method on one game."""
    problem = random_stackelberg(SIZE, seed=seed)
    leader = exact_leader(method, problem)
    start = time.perf_counter()
    leader.learn(LONG_ITERATIONS if method == "independent_long" else iterations)
    return record(leader, problem, method, seed, time.perf_counter() - start)


def run_sampled(method: str, seed: int, leader_seed: int, steps: int) -> Data:
    """PBRL with one algorithm and one seed on one game."""
    start = time.perf_counter()
    follower = getattr(stable_baselines3, method)
    leader = PBRL(
        "bilevel_gym/StackelbergGame-v0", follower, seed=leader_seed, env_kwargs={"n_states": SIZE, "seed": seed}
    )
    leader.learn(steps)
    seconds = time.perf_counter() - start
    assert leader.num_timesteps <= BUDGET, f"{method}: {leader.num_timesteps} steps"
    problem = leader.worlds.problem
    assert isinstance(problem, StackelbergProblem)
    history = {
        "steps": [e.steps for e in leader.history],
        "leader_return": [round(e.leader_return, 5) for e in leader.history],
        "at_pi_y": [round(float(e.leader_return_at_pi_y or 0.0), 5) for e in leader.history],
        "gap": [round(float(e.gap or 0.0), 6) for e in leader.history],
    }
    return record(leader, problem, method, seed, seconds) | {
        "steps": leader.num_timesteps,
        "oracle_failures": leader.oracle_failures,
        "lam": leader.lam,
        "history": history,
    }


def mean_over_seeds(runs: list[Data]) -> Data:
    """One game's record from those of its leader seeds: means, and every run's returns beside them."""
    first = runs[0]
    numbers = ("seconds", "best", "last", "at_pi_y_best", "at_pi_y", "gap_best", "gap", "oracle_failures")
    mean = {key: float(np.mean([run[key] for run in runs])) for key in numbers}
    lines = ("leader_return", "at_pi_y", "gap")
    history = {key: np.mean([run["history"][key] for run in runs], axis=0).tolist() for key in lines}
    every = {"best_runs": [run["best"] for run in runs], "last_runs": [run["last"] for run in runs]}
    return first | mean | every | {"history": first["history"] | history, "steps": max(run["steps"] for run in runs)}


def run(quick: bool, jobs: int) -> Data:
    """Every algorithm and every exact method on every game."""
    seeds = SEEDS[:2] if quick else SEEDS
    asked, iterations = (60_000, 30) if quick else (ASKED, EXACT_ITERATIONS)
    leader_seeds = LEADER_SEEDS[:2] if quick else LEADER_SEEDS
    tasks = [(name, s, k, asked) for name in ALGORITHMS for s in seeds for k in leader_seeds]
    runs = map_tasks(run_sampled, tasks, jobs, "sampled games")
    n = len(leader_seeds)
    sampled = [mean_over_seeds(runs[i : i + n]) for i in range(0, len(runs), n)]
    exact = map_tasks(run_exact, [(name, s, iterations) for name in EXACT for s in seeds], jobs, "exact references")
    return {"seeds": list(seeds), "size": SIZE, "budget": BUDGET, "asked": asked, "runs": sampled + exact}


# --- reading ----------------------------------------------------------------------------------------------------------


def select(data: Data, method: str) -> list[Data]:
    """Runs of one method, by seed."""
    return sorted((r for r in data["runs"] if r["method"] == method), key=lambda r: int(r["seed"]))


def column(data: Data, method: str, key: str) -> list[float]:
    """One number a game, by seed."""
    return [float(r[key]) for r in select(data, method)]


def returns_table(data: Data) -> str:
    """Returns of every method."""
    headers = ["method", "F_0, best x", "F_0, last x", "J_L(x, pi_y), last", "follower gap, last", "seconds a game"]
    rows = []
    for method in (*ALGORITHMS, *EXACT):
        best, last = (mean_interval(column(data, method, key)).text() for key in ("best", "last"))
        at_pi_y, gap = (float(np.mean(column(data, method, key))) for key in ("at_pi_y", "gap"))
        seconds = float(np.median(column(data, method, "seconds")))
        label = EXACT.get(method, f"PBRL, {method}")
        rows.append([label, best, last, f"{at_pi_y:.2f}", f"{abs(gap):.3f}", f"{seconds:.1f}"])
    return markdown_table(headers, rows)


def compared_table(data: Data) -> str:
    """Each algorithm against the exact methods, paired."""
    headers = [
        "PBRL with",
        "x",
        "games won over the independent gradient",
        "single runs won",
        "difference from it",
        "share of the hypergradient",
        "share of exact PBRL",
    ]
    rows = []
    for method in ALGORITHMS:
        for key in ("best", "last"):
            own = column(data, method, key)
            independent, exact, hyper = (column(data, name, key) for name in ("independent", "pbrl", "hypergradient"))
            wins = sum(a > b for a, b in zip(own, independent, strict=True))
            runs = [
                float(v) - b for r, b in zip(select(data, method), independent, strict=True) for v in r[f"{key}_runs"]
            ]
            shares = [paired_ratio(own, other).text() for other in (hyper, exact)]
            difference = paired_difference(own, independent).text()
            single = f"{sum(d > 0 for d in runs)} of {len(runs)}"
            rows.append([method, key, f"{wins} of {len(own)}", single, difference, *shares])
    return markdown_table(headers, rows)


def returns(record: Data, key: str) -> str:
    """A game's mean and its runs."""
    return f"{record[key]:.2f} ({', '.join(f'{value:.2f}' for value in record[f'{key}_runs'])})"


def cost_table(data: Data) -> str:
    """Each game: steps, iterations, failures of the oracle, returns."""
    headers = [
        "PBRL with",
        "game",
        "steps",
        "iterations",
        "oracle failures",
        "F_0, best x",
        "F_0, last x",
        "independent, best",
        "hypergradient, best",
    ]
    rows = []
    for method in ALGORITHMS:
        for i, r in enumerate(select(data, method)):
            counts = [f"{r['steps']:,}", str(r["iterations"]), f"{r['oracle_failures']:.0f}"]
            others = [f"{column(data, name, 'best')[i]:.2f}" for name in ("independent", "hypergradient")]
            rows.append([method, str(r["seed"]), *counts, *(returns(r, key) for key in ("best", "last")), *others])
    return markdown_table(headers, rows)


NOTES = """\
F_0: leader return at the follower's best response, evaluated exactly from the model, which PBRL's steps never see;
*best x* is the best by that evaluation (every 10 iterations), *last x* where the method ended. The same choice, best or
last, is made on both sides of every comparison. J_L(x, pi_y) is the return at the penalised follower, the gap that
follower's own. An *oracle failure* is an iteration in which the best response was certified to be worse than the penalised
follower, and x was not moved. A game's number is the mean over three seeds of the leader, its runs in brackets; 95%
intervals by bootstrap over five games, which is few. The independent gradient has its defaults (Adam 0.1, 300 iterations).
The defaults of `PBRL` were tuned on games 0 to 2, which are not among these.

**These figures are of earlier defaults** (lam 3, no averaging, an entropy bonus of 0.05 throughout) and are to be made again."""


def table(data: Data) -> str:
    """The page's tables."""
    parts = [
        returns_table(data),
        "## Paired comparisons",
        compared_table(data),
        "## Every game",
        cost_table(data),
        NOTES,
    ]
    return "\n\n".join(parts)


def standing(data: Data) -> list[Standing]:
    """Shares of the exact hypergradient's return, beside the targets for leaders that have rollouts alone."""
    lines = []
    for method in ALGORITHMS:
        target = 0.92 if method == "DQN" else 0.80
        share = paired_ratio(column(data, method, "last"), column(data, "hypergradient", "last"))
        told = f"{data['size']} states, rollouts alone, earlier defaults"
        quantity = f"F_0, PBRL with {method}, {told}, as a share of the hypergradient's"
        lines.append(Standing(quantity, f"target {target}", share.text(), verdict(share.estimate >= target)))
    return lines


def on_grid(runs: list[Data], key: str, grid: Any) -> list[Any]:
    """Histories on common steps, ``[games, points]``."""
    return [np.interp(grid, r["history"]["steps"], r["history"][key]) for r in runs]


def picture(data: Data, path: Path) -> None:
    """Returns against steps: F_0 solid, J_L(x, pi_y) dashed; exact methods as horizontal lines."""
    figure, axes = new_figure(1, len(ALGORITHMS), 12.5, 4.4)
    panels = axes[0]
    for panel, (method, colour) in zip(panels, ALGORITHMS.items(), strict=True):
        runs = select(data, method)
        grid = np.linspace(0, min(r["history"]["steps"][-1] for r in runs), 80)
        draw_band(panel, grid / 1e6, on_grid(runs, "leader_return", grid), colour, r"$F_0(x)$, at best response")
        draw_band(panel, grid / 1e6, on_grid(runs, "at_pi_y", grid), colour, r"$J_L(x, \pi_y)$", "--")
        for name, look in (("independent", ":"), ("hypergradient", "-.")):
            level = float(np.mean(column(data, name, "best")))
            panel.axhline(level, color="black", linestyle=look, linewidth=1.0, label=EXACT[name])
        panel.set_title(f"PBRL with {method}", fontsize=10)
        panel.set_xlabel("environment steps, all counted (millions)")
    share_limits(panels)
    panels[0].set_ylabel("leader return")
    panels[-1].legend(fontsize=8, loc="lower right", frameon=False)
    heading = f"{len(data['seeds'])} random Stackelberg games of {data['size']} states: mean and its 95% band"
    figure.suptitle(heading, fontsize=11)
    save_figure(figure, path)
