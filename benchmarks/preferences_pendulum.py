"""Preferences on Pendulum: 200 comparisons, the true return of a new agent on the learned reward, and the speed.

PBRL and DRLHF learn a reward for ``Pendulum-v1`` from 200 comparisons by the true return of segments in 124,928 agent steps
(PBRL's two followers share them), as in the tutorial of imitation 1.0.1. Then a new PPO is trained on the fixed learned reward
for as many steps and judged by 100 episodes with the true reward. The upper bound is the same PPO on the true reward, shifted
and scaled like a learned one. Steps per second are those of a whole run of learning, with questions, answers and reward fits, per
second of CPU time on one core; wall time is also given.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import DRLHF, PreferenceConfig, PreferencePBRL, TrueReward, ValuePenalty
from bilevel_gym.agents.preferences.training import FitConfig

from .figures import panels
from .runs import Data, Runs, grid, run_all

SEEDS = tuple(range(5))
SWEPT = SEEDS[:3]
"""Seeds of the runs with other values of lam."""
GAMMA = 0.98
STEPS, COMPARISONS, EPISODES = 124_928, 200, 100
LAM = 10.0
LAMS = (0.1, 1.0, 10.0, 100.0, 1000.0)
RETURN, RATE = -173.0, 1_233.0
"""imitation 1.0.1 in its tutorial: true return (s.d. 106 over episodes) and agent steps per second."""
FASTER = 2.5
NAMES = {"pbrl": "PBRL", "drlhf": "DRLHF", "true": "true reward"}
COLOURS = {"pbrl": "tab:blue", "drlhf": "tab:orange", "true": "tab:gray"}
LEVEL, UNIT, HORIZON = -6.0, 4.0, 200
"""Approximate mean and deviation of the true reward in random play; steps per episode."""


def falling(progress_remaining: float) -> float:
    """The falling learning rate of PPO."""
    return 2e-3 * progress_remaining + 1e-5


def follower(venv: VecEnv) -> PPO:
    """PPO with state-dependent exploration, much as rl-baselines3-zoo tuned it for Pendulum, in larger batches.

    gamma is 0.98, not 0.9 as there: a swing-up takes some 50 steps, and on a learned reward of which the height of the top is
    uncertain an agent that looks 20 steps ahead may settle for holding the pendulum half way up.
    """
    settings: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "gae_lambda": 0.95}
    settings |= {"learning_rate": falling, "use_sde": True, "sde_sample_freq": 4}
    return PPO("MlpPolicy", venv, gamma=GAMMA, **settings)


def scaled_pendulum() -> gym.Env[Any, Any]:
    """Pendulum with its true reward scaled like a learned one."""
    return TransformReward(gym.make("Pendulum-v1"), lambda reward: (float(reward) - LEVEL) / UNIT)


def config(followers: int, quick: bool) -> PreferenceConfig:
    """Settings with the same questions and fits for all methods."""
    return PreferenceConfig(
        labels=10 if quick else COMPARISONS,
        first_labels=5 if quick else 40,
        length=5,
        first_steps=2048,
        n_envs=16,
        follower_steps=4096 // followers,
        epochs=1 if quick else 10,
        first_epochs=5 if quick else 60,
        ensemble=3,
        fit=FitConfig(learning_rate=2e-3, batch_size=64),
        gamma=GAMMA,
        evaluation_steps=4096 if quick else STEPS,
        evaluation_followers=1,  # seeds are what varies here
        evaluation_episodes=5 if quick else EPISODES,
        device="cpu",
    )


def learn(method: str, lam: float, seed: int, quick: bool) -> Data:
    """Run one method: speed, and the true returns of the new agent."""
    found: Data = {}
    if method == "true":
        returns = TrueReward(scaled_pendulum, follower, config=config(1, quick), seed=seed).true_returns()
        returns = UNIT * returns + LEVEL * HORIZON
    else:
        learner: PreferencePBRL | DRLHF
        if method == "pbrl":
            learner = PreferencePBRL(
                "Pendulum-v1", follower, penalty=ValuePenalty(lam), config=config(2, quick), seed=seed
            )
        else:
            learner = DRLHF("Pendulum-v1", follower, config=config(1, quick), seed=seed)
        cpu, wall = time.process_time(), time.perf_counter()
        learner.learn(6_000 if quick else STEPS)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        returns = learner.true_returns()
        steps = learner.num_timesteps
        found |= {"labels": learner.buffer.seen, "steps": steps, "cpu_seconds": cpu, "wall_seconds": wall}
        found |= {"rate": steps / cpu, "wall_rate": steps / wall, "scale": float(learner.model.scale)}
    return found | {"return": float(returns.mean()), "deviation": float(returns.std(ddof=1))}


def run(quick: bool, jobs: int) -> Data:
    """Run all methods over the seeds, and PBRL with other values of lam on some of them."""
    seeds = SEEDS[:1] if quick else SEEDS
    cells = grid(seed=seeds, lam=[LAM], method=NAMES)
    if not quick:
        cells += grid(seed=SWEPT, lam=[lam for lam in LAMS if lam != LAM], method=["pbrl"])
    return {"runs": run_all(learn, cells, jobs, "runs", quick=quick)}


def of(data: Data, method: str, name: str, lam: float = LAM) -> list[float]:
    """One number for each seed."""
    return Runs(data["runs"])(method=method, lam=lam)[name]


def swept(data: Data) -> list[float]:
    """All values of lam that were run."""
    return sorted(set(Runs(data["runs"])(method="pbrl")["lam"]))


@panels(1, 3, 12.0, 3.8)
def picture(data: Data, by_method: Any, by_lam: Any, speed: Any) -> None:
    """Draw true returns by method and by lam, and steps per second."""
    for at, method in enumerate(NAMES):
        found = of(data, method, "return")
        by_method.plot([at] * len(found), found, "o", color=COLOURS[method], alpha=0.7)
        by_method.plot([at - 0.2, at + 0.2], [np.mean(found)] * 2, color=COLOURS[method], linewidth=2)
    by_method.set_xticks(range(len(NAMES)), list(NAMES.values()))
    by_method.set_xlim(-0.5, len(NAMES) - 0.5)
    lams = swept(data)
    for lam in lams:
        found = of(data, "pbrl", "return", lam)
        by_lam.plot([lam] * len(found), found, "o", color=COLOURS["pbrl"], alpha=0.7)
    means = [
        np.mean([r["return"] for r in Runs(data["runs"])(lam=lam, method="pbrl") if r["seed"] in SWEPT]) for lam in lams
    ]
    by_lam.plot(lams, means, color=COLOURS["pbrl"], label=f"PBRL, mean of seeds {', '.join(map(str, SWEPT))}")
    by_lam.axhline(float(np.mean(of(data, "drlhf", "return"))), color=COLOURS["drlhf"], label="DRLHF, all seeds")
    by_lam.set(xscale="log", xlabel="lam")
    for panel in (by_method, by_lam):
        panel.axhline(RETURN, color="black", linestyle=":", label="imitation 1.0.1")
        panel.set_ylabel("true return of a fresh agent")
        panel.legend(frameon=False)
    bars = {"imitation 1.0.1": RATE} | {NAMES[m]: float(np.mean(of(data, m, "rate"))) for m in ("pbrl", "drlhf")}
    speed.bar(list(bars), list(bars.values()), color=["black", COLOURS["pbrl"], COLOURS["drlhf"]], alpha=0.7)
    speed.axhline(FASTER * RATE, color="black", linestyle=":", label=f"target: {FASTER:g} times imitation")
    speed.set_ylim(top=1.25 * max(bars.values()))
    speed.set_ylabel("agent steps a CPU second")
    speed.legend(frameon=False)
