"""A shaping learned for Mountain Car: how soon a fresh follower reaches the goal.

The leader adds a potential's differences to a reward that says nothing on the way (``ShapedMountainCar-v0``, three
coordinates). They leave the optimal policies what they are, so the return at the exact best response has no gradient in x; what
x is worth is what a follower has learned from few steps. That is what the leader maximises, by CMA-ES: the true discounted return
of a DQN follower trained from scratch for a few thousand steps. Then five fresh followers are trained on the learned shaping and
five on the plain reward, all by DQN with the settings that rl-baselines3-zoo tuned for MountainCar-v0.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import bilevel_gym
from bilevel_gym.agents import CMAES, CMAESConfig

from .common import (
    Data,
    Standing,
    draw_band,
    map_tasks,
    markdown_table,
    mean_interval,
    new_figure,
    paired_ratio,
    save_figure,
    verdict,
)

assert bilevel_gym.__version__
SEEDS = tuple(range(1, 6))
SEARCH_SEED = 0
GAMMA = 0.98
TUNED: dict[str, Any] = {
    "learning_rate": 4e-3,
    "batch_size": 128,
    "buffer_size": 10_000,
    "learning_starts": 1_000,
    "gamma": GAMMA,
    "target_update_interval": 600,
    "train_freq": 16,
    "gradient_steps": 8,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.07,
    "policy_kwargs": {"net_arch": [256, 256]},
}
"""rl-baselines3-zoo's for MountainCar-v0."""
BUDGET = 120_000
"""Steps of a run at most: the zoo's."""
CHECK, AFTER, TESTS = 1_000, 10_000, 20
"""Steps between tests; steps that a run goes on after it has reached the goal; episodes of a test, of 200 steps at most."""
TRIAL_STEPS, POPULATION, GENERATIONS = 4_000, 6, 5
RATIO, GAP = 0.5, 10.0
"""Targets: share of the plain algorithm's steps; steps by which the shaped follower's way may be longer."""
WAYS = {"plain": "plain reward", "shaped": "learned shaping"}


def tuned_dqn(venv: VecEnv) -> DQN:
    """The tuned follower, on a VecEnv of one copy."""
    return DQN("MlpPolicy", venv, **TUNED)


def search(quick: bool) -> Data:
    """The leader: x, what it spent, its returns by generation."""
    population, generations = (4, 1) if quick else (POPULATION, GENERATIONS)
    config = CMAESConfig(
        sigma=0.25,
        population=population,
        follower_steps=TRIAL_STEPS,
        n_envs=1,
        rollout_envs=10,
        rollout_tail=0.01,
        evaluation_steps=TRIAL_STEPS,
        eval_every=10**6,
        keep_best=False,
    )
    leader = CMAES("bilevel_gym/ShapedMountainCar-v0", tuned_dqn, config, SEARCH_SEED, {"gamma": GAMMA})
    path: list[list[float]] = []

    def note(_: Any) -> bool:
        path.append(leader.last_x.tolist())
        return len(path) < generations

    start = time.process_time()
    leader.learn(10**9, callback=note)
    return {
        "x": leader.last_x.tolist(),
        "path": path,
        "trials": leader.trials,
        "steps": leader.num_timesteps,
        "start_return": leader.history[0].leader_return,
        "return": leader.history[-1].leader_return,
        "cpu_seconds": time.process_time() - start,
    }


def ways(model: DQN, tests: VecEnv) -> NDArray[np.float64]:
    """Return of each greedy test episode on plain Mountain Car, from the same starts: minus its steps, ``[TESTS]``."""
    tests.seed(7)
    obs, alive, returns = tests.reset(), np.ones(TESTS), np.zeros(TESTS)
    while alive.any():
        action, _ = model.predict(obs, deterministic=True)  # type: ignore[arg-type]
        obs, reward, done, _ = tests.step(action)
        returns += reward * alive
        alive *= 1.0 - done
    return returns


def follow(way: str, x: list[float], seed: int, quick: bool) -> Data:
    """One fresh follower: its tests, and the steps after which it first reached the goal in every episode of a test."""
    env = gym.make("bilevel_gym/ShapedMountainCar-v0", gamma=GAMMA)
    leader: Any = env.unwrapped
    leader.set_leader(x)
    venv = DummyVecEnv([lambda: env])
    model = DQN("MlpPolicy", venv, seed=seed, **TUNED)
    tests = DummyVecEnv([lambda: gym.make("MountainCar-v0") for _ in range(TESTS)])
    steps: list[int] = []
    returns: list[float] = []
    reached: list[int] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        done = int(model.num_timesteps)
        if done % CHECK == 0:
            found = ways(model, tests)
            steps.append(done)
            returns.append(float(found.mean()))
            if not reached and found.min() > -200.0:
                reached.append(done)
        return not reached or done < reached[0] + AFTER

    start = time.process_time()
    # exploration falls over a fifth of the zoo's budget, however soon a run is stopped
    model.learn(3_000 if quick else BUDGET, callback=note)
    seconds = time.process_time() - start
    goal = reached[0] if reached else None
    return {"way": way, "seed": seed, "steps": steps, "returns": returns, "goal": goal, "cpu_seconds": seconds}


def _part(what: str, x: list[float], seed: int, quick: bool) -> Data:
    return search(quick) if what == "search" else follow(what, x, seed, quick)


def run(quick: bool, jobs: int) -> Data:
    """The search and the plain followers, then the shaped ones."""
    seeds, zero = SEEDS[:1] if quick else SEEDS, [0.0, 0.0, 0.0]
    tasks = [("search", zero, SEARCH_SEED, quick), *(("plain", zero, seed, quick) for seed in seeds)]
    leader, *runs = map_tasks(_part, tasks, jobs, "search, plain followers")
    shaped = [("shaped", leader["x"], seed, quick) for seed in seeds]
    return {"leader": leader, "runs": runs + map_tasks(_part, shaped, jobs, "shaped followers")}


def of_way(data: Data, way: str) -> list[Data]:
    """Its runs."""
    return [r for r in data["runs"] if r["way"] == way]


def steps_to_goal(data: Data, way: str) -> list[float]:
    """One number a run; the whole budget where it never was there."""
    return [float(BUDGET if r["goal"] is None else r["goal"]) for r in of_way(data, way)]


def final_returns(data: Data, way: str) -> list[float]:
    """Mean return of the tests in the last ``AFTER`` steps of each run."""
    last = AFTER // CHECK
    return [float(np.mean(r["returns"][-last:])) for r in of_way(data, way)]


def best_returns(data: Data, way: str) -> list[float]:
    """The best test of each run."""
    return [max(r["returns"]) for r in of_way(data, way)]


def table(data: Data) -> str:
    """Targets, runs, what the leader spent."""
    steps = {way: steps_to_goal(data, way) for way in WAYS}
    final = {way: float(np.mean(final_returns(data, way))) for way in WAYS}
    ratio = paired_ratio(steps["shaped"], steps["plain"])
    gap = final["plain"] - final["shaped"]
    claims = [
        ["steps to the goal, shaped over plain", f"at most {RATIO:g}", ratio.text(3), verdict(ratio.estimate <= RATIO)],
        ["true return, plain less shaped", f"at most {GAP:g} steps", f"{gap:.1f}", verdict(gap <= GAP)],
    ]
    rows = []
    for way, label in WAYS.items():
        runs = of_way(data, way)
        never = sum(r["goal"] is None for r in runs)
        rows.append(
            [
                label,
                mean_interval(steps[way]).text(0),
                ", ".join("never" if r["goal"] is None else f"{r['goal']:,}" for r in runs),
                f"{never} of {len(runs)}",
                mean_interval(final_returns(data, way)).text(1),
                mean_interval(best_returns(data, way)).text(1),
                f"{np.mean([r['cpu_seconds'] for r in runs]):.0f}",
            ]
        )
    headers = ["follower", "steps to the goal", "by seed", "never", "return, end", "return, best test", "CPU s a run"]
    leader = data["leader"]
    x = ", ".join(f"{value:.1f}" for value in leader["x"])
    saved = float(np.mean(steps["plain"]) - np.mean(steps["shaped"]))
    spent = (
        f"**What the leader spent**: {leader['trials']} followers trained from scratch, {leader['steps']:,} environment steps, "
        f"{leader['cpu_seconds']:.0f} CPU s, for x = ({x}). A fresh follower saves {saved:,.0f} steps by it: the search pays for "
        f"itself after {leader['steps'] / max(saved, 1.0):.0f} followers. The leader's discounted return at a follower of "
        f"{TRIAL_STEPS:,} steps was {leader['start_return']:.1f} at x = 0 and {leader['return']:.1f} at the end."
    )
    notes = (
        f"*Steps to the goal*: until a test first has all of its {TESTS} greedy episodes on plain Mountain Car reach the goal "
        f"within 200 steps; a test every {CHECK:,} steps, its episodes not counted; a run that never does counts as the zoo's "
        f"whole budget of {BUDGET:,}. A run goes on for {AFTER:,} steps after that; *return, end* is the mean of the tests in "
        f"the last {AFTER:,} steps, undiscounted, -1 a step. Means over {len(of_way(data, 'plain'))} seeds, 95% bootstrap "
        "intervals. The search used another seed. The algorithm is the same in all runs."
    )
    parts = [markdown_table(["claim", "target", "measured", ""], claims), markdown_table(headers, rows), spent, notes]
    return "\n\n".join(parts)


def standing(data: Data) -> list[Standing]:
    """Beside the plain tuned algorithm."""
    steps = {way: steps_to_goal(data, way) for way in WAYS}
    ratio = paired_ratio(steps["shaped"], steps["plain"])
    return [
        Standing(
            "Mountain Car, steps until every test episode reaches the goal, tuned DQN",
            f"{np.mean(steps['plain']):,.0f} on the plain reward (our run, rl-baselines3-zoo's settings)",
            f"{np.mean(steps['shaped']):,.0f} on the learned shaping, which cost {data['leader']['steps']:,}",
            f"{verdict(ratio.estimate <= RATIO)}: {ratio.text(3)} of the steps, target {RATIO:g}",
        )
    ]


def picture(data: Data, path: Path) -> None:
    """Test returns against steps."""
    figure, axes = new_figure(1, 1, 7.0, 4.2)
    panel = axes[0, 0]
    for way, colour in (("plain", "tab:gray"), ("shaped", "tab:blue")):
        runs = of_way(data, way)
        longest = max(len(r["steps"]) for r in runs)
        grid = CHECK * np.arange(1, longest + 1)
        # a run that was stopped stands on at the mean of its last tests
        ends = final_returns(data, way)
        curves = [r["returns"] + [end] * (longest - len(r["returns"])) for r, end in zip(runs, ends, strict=True)]
        draw_band(panel, grid, curves, colour, WAYS[way])
    panel.set_xlabel("environment steps of a fresh follower")
    panel.set_ylabel("return on plain Mountain Car")
    panel.legend(frameon=False)
    save_figure(figure, path)
