"""A shaping learned for Mountain Car: how soon a new follower reaches the goal.

The leader adds differences of a potential to a sparse reward (``ShapedMountainCar-v0``, three coordinates). This does not change
the optimal policies, so the return at the exact best response has no gradient in x; a good x makes the follower learn faster. The
leader therefore maximises, by CMA-ES, the true discounted return of a DQN follower that trains from scratch for a few thousand
steps. Then five new followers train on the learned shaping and five on the plain reward, all by DQN with the settings that
rl-baselines3-zoo tuned for MountainCar-v0.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from bilevel_gym.agents import CMAES, CMAESConfig

from .figures import draw_band, panels
from .runs import Data, Runs, grid, run_all

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
"""Settings of rl-baselines3-zoo for MountainCar-v0."""
BUDGET = 120_000
"""Maximal steps of a run, which are the zoo's."""
CHECK, AFTER, TESTS = 1_000, 10_000, 20
"""Steps between tests; steps after the goal was reached; episodes per test, of at most 200 steps each."""
TRIAL_STEPS, POPULATION, GENERATIONS = 4_000, 6, 5
RATIO, GAP = 0.5, 10.0
"""Targets: share of the plain algorithm's steps; how many steps longer the shaped follower's way may be."""
WAYS = {"plain": "plain reward", "shaped": "learned shaping"}


def tuned_dqn(venv: VecEnv) -> DQN:
    """The tuned follower, on a VecEnv with one environment."""
    return DQN("MlpPolicy", venv, **TUNED)


def search(quick: bool) -> Data:
    """Search for x: returns x, its cost, and the returns by generation."""
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
    leader = CMAES(
        "bilevel_gym/ShapedMountainCar-v0", tuned_dqn, config=config, seed=SEARCH_SEED, env_kwargs={"gamma": GAMMA}
    )
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
    """Returns of the greedy test episodes on plain Mountain Car, from fixed starts, ``[TESTS]``: minus their steps."""
    tests.seed(7)
    obs, alive, returns = tests.reset(), np.ones(TESTS), np.zeros(TESTS)
    while alive.any():
        action, _ = model.predict(obs, deterministic=True)  # type: ignore[arg-type]
        obs, reward, done, _ = tests.step(action)
        returns += reward * alive
        alive *= 1.0 - done
    return returns


def follow(x: list[float], seed: int, quick: bool) -> Data:
    """Train a new follower: its tests, and the steps until it first reached the goal in every episode of a test."""
    env = gym.make("bilevel_gym/ShapedMountainCar-v0", gamma=GAMMA)
    env.get_wrapper_attr("set_leader")(x)
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
    return {"steps": steps, "returns": returns, "goal": next(iter(reached), None), "cpu_seconds": seconds}


def part(way: str, seed: int, x: list[float], quick: bool) -> Data:
    """Run the search, or train one follower."""
    return search(quick) if way == "search" else follow(x, seed, quick)


def run(quick: bool, jobs: int) -> Data:
    """Run the search and the plain followers, then the shaped ones."""
    seeds = SEEDS[:1] if quick else SEEDS
    first = [{"way": "search", "seed": SEARCH_SEED}, *grid(way=["plain"], seed=seeds)]
    leader, *runs = run_all(part, first, jobs, "search, plain followers", x=[0.0, 0.0, 0.0], quick=quick)
    runs += run_all(part, grid(way=["shaped"], seed=seeds), jobs, "shaped followers", x=leader["x"], quick=quick)
    return {"leader": leader, "runs": runs}


def steps_to_goal(runs: Runs) -> list[float]:
    """Steps to the goal of each run; the whole budget if it never reached the goal."""
    return [float(BUDGET if goal is None else goal) for goal in runs["goal"]]


def final_returns(runs: Runs) -> list[float]:
    """Mean return of the tests in the last ``AFTER`` steps of each run."""
    return [float(np.mean(returns[-(AFTER // CHECK) :])) for returns in runs["returns"]]


@panels(1, 1, 7.0, 4.2)
def picture(data: Data, panel: Any) -> None:
    """Draw test returns against steps."""
    for way, colour in (("plain", "tab:gray"), ("shaped", "tab:blue")):
        runs = Runs(data["runs"])(way=way)
        longest = max(len(r["steps"]) for r in runs)
        # a run that was stopped stands on at the mean of its last tests
        ends = final_returns(runs)
        curves = [r["returns"] + [end] * (longest - len(r["returns"])) for r, end in zip(runs, ends, strict=True)]
        draw_band(panel, CHECK * np.arange(1, longest + 1), curves, colour, WAYS[way])
    panel.set(xlabel="environment steps of a fresh follower", ylabel="return on plain Mountain Car")
    panel.legend(frameon=False)
