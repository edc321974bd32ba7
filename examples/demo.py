"""What a leader gains by anticipating its follower: one random Stackelberg game of 20 states, five leaders, one picture.

`make demo` runs this, and `python examples/demo.py --help` shows its arguments. It writes `demo.png`, `demo.json` and the
best trained leader, `leader.zip`, to `runs/demo/`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from tqdm import tqdm

import bilevel_gym
from bilevel_gym.agents import (
    PBRL,
    Hypergradient,
    IndependentPolicyGradient,
    TabularPBRL,
    leader_return_at_best_response,
)
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.cli.processes import WorkerError, run_all
from bilevel_gym.cli.statistics import interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ENV_ID = "bilevel_gym/StackelbergGame-v0"
SAMPLED = "PBRL, PPO follower"
COLOURS = {
    "untrained": "#9aa0a6",
    "independent gradient": "#d98f3d",
    SAMPLED: "#2a6fdb",
    "PBRL, exact": "#1b998b",
    "hypergradient, exact": "#5b5f97",
}


def train_sampled(seed: int, env_kwargs: dict[str, Any], timesteps: int, folder: Path) -> dict[str, Any]:
    """Train one leader over PPO followers, save it, and return its records."""
    leader = PBRL(ENV_ID, PPO, seed=seed, env_kwargs=env_kwargs).learn(timesteps)
    path = leader.save(folder / f"leader-{seed}.zip")
    records = [evaluation.as_dict() for evaluation in leader.history]
    return {
        "seed": seed,
        "best": leader.evaluate().as_dict(),
        "history": records,
        "file": str(path),
        "steps": leader.num_timesteps,
    }


def as_row(method: str, value: float, at_pi_y: float | None = None, penalty: float | None = None) -> dict[str, Any]:
    """A row for an exact leader, which has no interval and takes no steps."""
    return {
        "method": method,
        "leader_return": value,
        "interval": None,
        "leader_return_at_pi_y": at_pi_y,
        "penalty": penalty,
        "steps": 0,
    }


def exact_row(name: str, leader: ExactLeader) -> dict[str, Any]:
    """The row of a leader that knows the game."""
    record = leader.learn(300).evaluate()
    return as_row(name, record.leader_return, record.leader_return_at_pi_y, record.penalty)


def sampled_row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the sampled leader: the mean over seeds with a 95% t-interval."""
    returns, at_pi_y, penalties = (
        [run["best"][key] for run in runs] for key in ("leader_return", "leader_return_at_pi_y", "penalty")
    )
    mean, *ends = interval(returns).ends
    steps = int(np.mean([run["steps"] for run in runs]))
    return as_row(SAMPLED, mean, float(np.mean(at_pi_y)), float(np.mean(penalties))) | {
        "interval": ends or None,
        "steps": steps,
    }


def show_table(rows: list[dict[str, Any]], n_seeds: int) -> None:
    """Print all rows as a table."""
    table = Table(title=f"Leader's return at the follower's best response ({n_seeds} seeds where sampled)")
    for name in ("method", "at best response", "95% interval", "at pi_y", "penalty", "steps"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name == "method")
    for row in rows:
        interval = "exact" if row["interval"] is None else "{:.2f}-{:.2f}".format(*row["interval"])
        rest = [
            "-" if row[key] is None else f"{round(row[key], 3) + 0.0:.3f}"
            for key in ("leader_return_at_pi_y", "penalty")
        ]
        table.add_row(row["method"], f"{row['leader_return']:.3f}", interval, *rest, f"{row['steps']:,}")
    Console().print(table)


def draw(rows: list[dict[str, Any]], runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the five leaders (left) and the learning curves of the sampled one (right)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(1, 1.25), layout="constrained")
    names = [row["method"] for row in rows]
    values = np.array([row["leader_return"] for row in rows])
    whisker = np.array([0.0 if row["interval"] is None else row["interval"][1] - row["leader_return"] for row in rows])
    left.barh(
        names, values, color=[COLOURS[name] for name in names], xerr=np.where(whisker > 0, whisker, np.nan), capsize=4
    )
    for i, value in enumerate(values):
        left.text(0.15, i, f"{value:.2f}", va="center", color="white", fontweight="bold")
    left.invert_yaxis()
    left.set_xlabel("leader's return at the follower's best response")
    left.spines[["top", "right"]].set_visible(False)
    for k, run in enumerate(runs):
        steps = np.array([record["steps"] for record in run["history"]]) / 1e6
        honest = [record["leader_return"] for record in run["history"]]
        hoped = [record["leader_return_at_pi_y"] for record in run["history"]]
        right.plot(
            steps, honest, color=COLOURS[SAMPLED], lw=1.6, label="PBRL, PPO: at the best response" if k == 0 else None
        )
        label = "PBRL, PPO: at its own pi_y (counts slack)" if k == 0 else None
        right.plot(steps, hoped, color=COLOURS[SAMPLED], lw=0.8, ls=":", alpha=0.7, label=label)
    for row in rows:
        if row["method"] != SAMPLED:
            right.axhline(row["leader_return"], color=COLOURS[row["method"]], ls="--", lw=1.3, label=row["method"])
    right.set_xlabel("follower steps, all counted (millions)")
    right.set_ylabel("leader's return")
    right.set_ylim(bottom=min(values) - 0.4, top=max(values) + 0.4)
    right.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def sampled_runs(arguments: argparse.Namespace, env_kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """Train the sampled leaders in parallel, one for each seed."""
    tasks = [(seed, env_kwargs, arguments.timesteps, arguments.out) for seed in range(arguments.seeds)]
    runs: dict[int, dict[str, Any]] = {}
    with tqdm(total=len(tasks), desc="PBRL over PPO followers, seeds") as bar:

        def note(seed: int, answer: Any) -> None:
            if isinstance(answer, WorkerError):
                raise answer
            runs[seed] = answer
            bar.update()

        run_all(train_sampled, tasks, arguments.jobs, note)
    return [runs[seed] for seed in sorted(runs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="seeds of the sampled leader")
    parser.add_argument("--timesteps", type=int, default=1_000_000, help="follower steps per seed, all counted")
    parser.add_argument(
        "--game-seed", type=int, default=5, help="which random game; 0 to 2 served to tune the defaults"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    arguments = parser.parse_args()
    begun = time.perf_counter()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    env_kwargs = {"n_states": 20, "seed": arguments.game_seed}
    print(f"{ENV_ID} with 20 states: the leader commits to a policy, the follower answers with its best response.")
    runs = sampled_runs(arguments, env_kwargs)
    exact = TabularPBRL(ENV_ID, env_kwargs=env_kwargs)
    rows = [
        as_row("untrained", leader_return_at_best_response(exact.problem, exact.problem.start_x())),
        exact_row("independent gradient", IndependentPolicyGradient(ENV_ID, env_kwargs=env_kwargs)),
        sampled_row(runs),
        exact_row("PBRL, exact", exact),
        exact_row("hypergradient, exact", Hypergradient(ENV_ID, env_kwargs=env_kwargs)),
    ]
    show_table(rows, len(runs))
    draw(rows, runs, arguments.out / "demo.png")
    best = max(runs, key=lambda run: float(run["best"]["leader_return"]))
    for run in runs:
        kept = Path(run.pop("file"))
        kept.replace(arguments.out / "leader.zip") if run is best else kept.unlink()
    data = {
        "environment": {"id": ENV_ID, **env_kwargs},
        "version": bilevel_gym.__version__,
        "rows": rows,
        "runs": runs,
        "leader_seed": best["seed"],
        "seconds": round(time.perf_counter() - begun, 1),
    }
    (arguments.out / "demo.json").write_text(json.dumps(data, indent=1))
    print(
        f"Done in {data['seconds']} s. Look at {arguments.out / 'demo.png'}; numbers in demo.json, the leader in leader.zip."
    )


if __name__ == "__main__":
    main()
