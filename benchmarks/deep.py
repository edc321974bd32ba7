"""Worlds without a model: ours with its defaults, and what a user would do today, judged by references.

Every leader gets the environment alone: the model is hidden, and asking for it is an error. ``leader_for`` chooses the leader and
gets no options. References judge afterwards: dynamic programming on a grid for the pendulum, on the table for the fishery, and
Riccati's equation for the linear-quadratic game.

The share of a run is ``(F(x) - F(start)) / (F* - F(start))``, where F is the leader's return at the follower's best response by
the reference, and F* is the best one known. All environment steps count: of followers, of episodes and of trials.
"""

from __future__ import annotations

import time
import warnings
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN, PPO, SAC

from bilevel_gym.agents import OptunaSearch, ResponsePool, Sweep, leader_for
from bilevel_gym.agents.followers.spec import AlgorithmSpec
from bilevel_gym.agents.followers.tuned import tuned_settings
from bilevel_gym.agents.leader import Leader

from .figures import panels
from .runs import Data, Runs, grid, run_all
from .worlds import World, deep_worlds

Floats = NDArray[np.float64]
FOLLOWERS = {"PPO": PPO, "DQN": DQN, "SAC": SAC}
SEEDS = (20, 21, 22)
"""Seeds that nobody had looked at when the rules of the pool were settled: three on the pendulum and the fishery with three
taxes, two or one elsewhere, since a run takes one to three minutes."""
ASKED = 0.92
"""Share of a world's budget that is asked for: the last iteration is completed, and may end beyond what was asked."""
LABELS = {
    "pendulum_0": "subsidised pendulum, from x = 0",
    "pendulum_50": "subsidised pendulum, from x = 0.5",
    "pendulum_100": "subsidised pendulum, from x = 1",
    "fishery_1": "fishery (0.1, 0.2, 0.3), three taxes",
    "fishery_2": "fishery (0.12, 0.3, 0.3), three taxes",
    "fishery_3": "fishery (0.1, 0, 0.4), three taxes",
    "fishery_40": "fishery (0.1, 0.2, 0.3), 40 taxes",
    "lq_1": "linear-quadratic game, 2 parameters",
    "lq_2": "two of them side by side, 8 parameters",
    "lq_4": "four of them side by side, 32 parameters",
}
TARGETS = {name: 0.95 if name.startswith(("pendulum", "fishery")) and name != "fishery_40" else 0.85 for name in LABELS}
"""Share of the gain that is asked for, on the mean over seeds."""
OTHERS = {"DQN": "fishery_1", "SAC": "pendulum_0"}
"""Worlds of other followers than PPO, whose share is to be 0.9."""
CURVES = ("pendulum_0", "fishery_1", "fishery_40")
"""Worlds on which searches run too."""


@cache
def worlds() -> dict[str, World]:
    """All worlds by name."""
    return deep_worlds()


def _trials(sampler: str | None, steps: int, warm: bool, world: World, seed: int) -> Leader:
    """A search whose every trial trains a follower with the settings that ours has at a fixed x."""
    n_inputs = 1 if world.box_actions else 0
    settings = tuned_settings("PPO", 32, False, world.gamma, n_inputs, fixed=True)
    options: dict[str, Any] = {
        "follower_steps": steps,
        "warm_start": warm,
        "n_envs": 32,
        "seed": seed,
        "x0": world.start,
    }
    follower = AlgorithmSpec(PPO, settings)
    if sampler is None:
        return Sweep(world.make, follower, **options)
    return OptunaSearch(world.make, follower, sampler=sampler, **options)


KINDS = {"sweep": None, "Gaussian process": "gp", "CMA-ES": "cmaes"}
TRIALS = {
    f"{kind}, {steps // 1000}k{' warm' if warm else ''}": partial(_trials, sampler, steps, warm)
    for kind, sampler in KINDS.items()
    for steps, warm in ((60_000, False), (30_000, True))
}
"""Searches by label: each trial's follower trains afresh for 60,000 steps, or for 30,000 from the best trial's weights."""
COLOURS = {"ours": "tab:blue", "sweep": "tab:orange", "Gaussian process": "tab:green", "CMA-ES": "tab:red"}


def run_one(method: str, world: str, follower: str, seed: int, times: float, quick: bool) -> Data:
    """Run one method on one world: x by steps, what was believed at it, and the truth."""
    chosen, start = worlds()[world], time.process_time()
    budget = int((0.3 if quick else times) * ASKED * chosen.budget)
    if method == "ours":
        leader = leader_for(chosen.make, FOLLOWERS[follower], seed=seed, x0=chosen.start)
    else:
        leader = TRIALS[method](chosen, seed)
    path: list[tuple[int, list[float]]] = []

    def follow(leader: Leader) -> None:
        path.append((leader.num_timesteps, leader.x.tolist()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the budget: the page reports it
        leader.learn(budget, callback=follow)
    seconds, steps = time.process_time() - start, leader.num_timesteps
    believed = believed_return(leader)
    leader.close()
    points = [chosen.start.tolist(), *[x for _, x in path]]
    returns: dict[str, float] = {}
    for x in points:
        if str(x) not in returns:
            returns[str(x)] = chosen.truth(np.array(x))
    return {
        "leader": type(leader).__name__,
        "x": leader.x.tolist(),
        "truth": returns[str(points[-1])],
        "believed": believed[0],
        "believed_stderr": believed[1],
        "start": returns[str(points[0])],
        "best": chosen.best,
        "steps": steps,
        "finished": bool(getattr(leader.state, "finished", False)),
        "curve_steps": [0, *[n for n, _ in path]],
        "curve": [round(returns[str(x)], 4) for x in points],
        "cpu_seconds": round(seconds, 1),
        **belief_curve(leader, chosen),
    }


def belief_curve(leader: Any, world: World) -> Data:
    """What a pool believes of F over X, where x is one number."""
    if not isinstance(leader, ResponsePool) or len(world.start) > 1:
        return {}
    points = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)[:, None]
    belief = leader.method.pool(leader.state).believe(points)
    return {"belief": [round(float(value), 3) for value in belief.feared]}


def truth_curve(world: str, quick: bool) -> Data:
    """F over X, where x is one number."""
    points = np.linspace(0.0, 1.0, 5 if quick else 26)
    return {"points": points.tolist(), "truth": [round(worlds()[world].truth(np.array([x])), 3) for x in points]}


def believed_return(leader: Any) -> tuple[float, float]:
    """What a leader believed its return to be at its answer, with its standard error; no steps are spent."""
    if isinstance(leader, (Sweep, OptunaSearch)):
        trial = leader.best_trial
        return float(trial.leader_return), float(trial.stderr)
    last = leader.history[-1]
    return float(last.leader_return), float(last.leader_return_stderr)


def run(quick: bool, jobs: int) -> Data:
    """Run ours on every world, and the searches on some."""
    ours, first = partial(grid, method=["ours"], times=[1.0]), SEEDS[:1]
    searches = partial(grid, follower=["PPO"], seed=first, times=[1.0])
    if quick:
        cells = [*ours(world=[*LABELS][::3], follower=["PPO"], seed=first), *searches(method=TRIALS, world=CURVES[:2])]
    else:
        cells = [
            *(cell for seed in SEEDS for cell in ours(world=[*LABELS][:6], follower=["PPO"], seed=[seed])),
            *ours(world=["fishery_1"], follower=["DQN"], seed=SEEDS[:2]),
            *ours(world=["fishery_40"], follower=["PPO"], seed=SEEDS[:2]),
            *searches(method=TRIALS, world=CURVES[:2]),
            *ours(world=["pendulum_0"], follower=["SAC"], seed=first),
            *ours(world=[*LABELS][7:], follower=["PPO"], seed=SEEDS[:2]),
            *searches(method=[*TRIALS][::2], world=CURVES[2:]),
        ]
    runs = run_all(run_one, cells, jobs, "runs", quick=quick)
    return {"runs": runs, "curves": run_all(truth_curve, grid(world=["pendulum_0"]), jobs, "truth", quick=quick)}


# --- reading ----------------------------------------------------------------------------------------------------------


def shares(rows: Runs, of: str = "truth") -> list[float]:
    """The share of each run: what it gained of what can be gained."""
    return [(r[of] - r["start"]) / (r["best"] - r["start"]) for r in rows]


def until(row: Data, share: float = 0.8) -> float:
    """Steps after which a run stays above a share; its whole budget if it never does."""
    values = (np.array(row["curve"]) - row["start"]) / (row["best"] - row["start"])
    below = np.flatnonzero(values < share)
    last = int(below[-1]) if len(below) else -1
    steps = row["curve_steps"]
    return float(steps[last + 1]) if last + 1 < len(steps) else float("inf")


def unseen(rows: Runs) -> Runs:
    """The runs of ``SEEDS``; a page may also hold runs of an earlier version, with seeds that were looked at."""
    return Runs(rows.frame[rows.frame["seed"].isin(SEEDS)])


def not_run(runs: Runs) -> list[str]:
    """Searches without runs on a world."""
    return [f"{kind} ({LABELS[world]})" for world in CURVES for kind in KINDS if not settings_of(runs, kind, world)]


def arrival(rows: Runs) -> str:
    """Mean steps after which runs stay above a share of 0.8, in thousands, and how many never do."""
    steps = [until(row) for row in rows]
    never = sum(np.isinf(value) for value in steps)
    counted = [row["steps"] if np.isinf(value) else value for value, row in zip(steps, rows, strict=True)]
    return f"{np.mean(counted) / 1000.0:.0f}" + (f" ({never} never)" if never else "")


def within(rows: Runs) -> list[bool]:
    """Whether the truth lies within two standard errors of each belief."""
    return [abs(r["believed"] - r["truth"]) <= 2.0 * r["believed_stderr"] for r in rows]


def error(rows: Runs) -> list[float]:
    """The standard error of each belief, as a share of the gain."""
    return [r["believed_stderr"] / (r["best"] - r["start"]) for r in rows]


def settings_of(runs: Runs, kind: str, world: str) -> str:
    """The label of a search's setting that is the better one on the pendulum and the fishery; "" if none ran on this world."""
    labels = [label for label in TRIALS if label.startswith(f"{kind},") and len(runs(method=label, world=world))]

    def both(label: str) -> float:
        return float(np.mean([value for name in CURVES[:2] for value in shares(runs(method=label, world=name))]))

    return max(labels, key=both, default="")


@panels(1, len(CURVES) + 1, 17.0, 4.2)
def picture(data: Data, *axes: Any) -> None:
    """Draw the share against steps on three worlds, then F over X of the pendulum: the truth, and what was believed."""
    runs = Runs(data["runs"])
    for panel, world in zip(axes, CURVES, strict=False):
        for kind, colour in COLOURS.items():
            label = "ours" if kind == "ours" else settings_of(runs, kind, world)
            for k, row in enumerate(runs(method=label, world=world, follower="PPO")):
                values = (np.array(row["curve"]) - row["start"]) / (row["best"] - row["start"])
                style = {"color": colour, "linewidth": 1.4, "alpha": 0.8, "where": "post"}
                panel.step(np.array(row["curve_steps"]) / 1000.0, values, label=None if k else label, **style)
        panel.set(title=LABELS[world], xlabel="thousand environment steps", ylim=(-0.3, 1.05))
    axes[0].set_ylabel("share of the gain")
    axes[0].legend(fontsize=8, frameon=False)
    panel, curve = axes[-1], data["curves"][0]
    panel.plot(curve["points"], curve["truth"], color="black", linewidth=1.6, label="truth")
    for kind, colour in COLOURS.items():
        label = "ours" if kind == "ours" else settings_of(runs, kind, "pendulum_0")
        for k, row in enumerate(runs(method=label, world="pendulum_0", follower="PPO")):
            if isinstance(row.get("belief"), list) and not k:
                panel.plot(np.linspace(0.0, 1.0, 101), row["belief"], color=colour, linewidth=1.0, linestyle="--")
            panel.plot(row["x"], [row["believed"]], "o", color=colour, markersize=5, label=None if k else label)
    panel.set(title="F over X of the pendulum; dots: beliefs", xlabel="x", ylim=(0.0, 25.0))
    panel.legend(fontsize=8, frameon=False)
