"""Preferences on Pendulum: 200 comparisons, the true return of a fresh agent on the learned reward, and the speed.

PBRL and DRLHF learn a reward for ``Pendulum-v1`` from 200 comparisons by the true return of segments in 124,928 agent steps
(PBRL's two followers share them), as many as the tutorial of imitation 1.0.1 takes. Then a fresh PPO is trained on the learned
reward, held, for as many steps again, and judged by 100 episodes of the true one. The same PPO on the true reward is the upper
bound. Steps per second are those of a whole run of learning, questions, answers and reward fits included, per second of CPU time
on one core.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

import bilevel_gym
from bilevel_gym.agents import DRLHF, FitConfig, PreferenceConfig, PreferencePBRL, TrueReward, ValuePenalty

from .common import (
    Data,
    Standing,
    map_tasks,
    markdown_table,
    mean_interval,
    new_figure,
    save_figure,
    verdict,
)

assert bilevel_gym.__version__
SEEDS = tuple(range(5))
GAMMA = 0.95
STEPS, COMPARISONS, EPISODES = 124_928, 200, 100
LAM = 10.0
LAMS = (0.1, 1.0, 10.0, 100.0, 1000.0)
RETURN, RATE = -173.0, 1_233.0
"""imitation 1.0.1 in its tutorial, s.d. 106 over episodes; its agent steps per second."""
FASTER = 2.5
NAMES = {"pbrl": "PBRL", "drlhf": "DRLHF", "true": "true reward"}
COLOURS = {"pbrl": "tab:blue", "drlhf": "tab:orange", "true": "tab:gray"}


def falling(progress_remaining: float) -> float:
    """The learning rate."""
    return 2e-3 * progress_remaining + 1e-5


def follower(venv: VecEnv) -> PPO:
    """PPO with state-dependent exploration, much as rl-baselines3-zoo tuned it for Pendulum, in larger batches."""
    settings: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "gae_lambda": 0.95}
    settings |= {"learning_rate": falling, "use_sde": True, "sde_sample_freq": 4}
    return PPO("MlpPolicy", venv, gamma=GAMMA, **settings)


def config(followers: int, quick: bool) -> PreferenceConfig:
    """The same questions and fits, whoever shares the steps."""
    return PreferenceConfig(
        labels=10 if quick else COMPARISONS,
        first_labels=5 if quick else 40,
        length=10,
        first_steps=4096,
        n_envs=16,
        follower_steps=4096 // followers,
        epochs=1 if quick else 10,
        first_epochs=5 if quick else 60,
        ensemble=3,
        fit=FitConfig(learning_rate=2e-3, batch_size=64),
        gamma=GAMMA,
        evaluation_steps=4096 if quick else STEPS,
        evaluation_episodes=5 if quick else EPISODES,
        device="cpu",
    )


def learn(method: str, lam: float, seed: int, quick: bool) -> Data:
    """One run: speed, true returns of the fresh agent."""
    learner: PreferencePBRL | DRLHF
    if method == "pbrl":
        learner = PreferencePBRL("Pendulum-v1", follower, ValuePenalty(lam), config(2, quick), seed=seed)
    else:
        kind = TrueReward if method == "true" else DRLHF
        learner = kind("Pendulum-v1", follower, config(1, quick), seed=seed)
    start = time.process_time()
    learner.learn(9_000 if quick else STEPS)
    seconds = time.process_time() - start
    returns = learner.true_returns()
    return {
        "method": method,
        "lam": lam,
        "seed": seed,
        "labels": learner.buffer.seen,
        "steps": learner.num_timesteps,
        "cpu_seconds": seconds,
        "rate": learner.num_timesteps / seconds,
        "return": float(returns.mean()),
        "deviation": float(returns.std(ddof=1)),
    }


def run(quick: bool, jobs: int) -> Data:
    """All methods over the seeds; PBRL with other lam on the first three."""
    seeds = SEEDS[:1] if quick else SEEDS
    tasks = [(method, LAM, seed, quick) for seed in seeds for method in NAMES]
    if not quick:
        tasks += [("pbrl", lam, seed, quick) for lam in LAMS if lam != LAM for seed in SEEDS[:3]]
    return {"runs": map_tasks(learn, tasks, jobs, "runs")}


def of(data: Data, method: str, name: str, lam: float = LAM) -> list[float]:
    """A number by seed."""
    return [float(r[name]) for r in data["runs"] if (r["method"], r["lam"]) == (method, lam)]


def table(data: Data) -> str:
    """Targets, methods, sensitivity to lam."""
    mean, rate = (float(np.mean(of(data, "pbrl", name))) for name in ("return", "rate"))
    claims = [
        [
            "true return of a fresh agent, PBRL",
            f"above {RETURN:g} (imitation 1.0.1)",
            mean_interval(of(data, "pbrl", "return")).text(0),
            verdict(mean > RETURN),
        ],
        [
            "agent steps a second, PBRL",
            f"at least {FASTER * RATE:,.0f} ({FASTER:g} times imitation's)",
            f"{rate:,.0f}",
            verdict(rate >= FASTER * RATE),
        ],
    ]
    rows = [
        [
            name,
            mean_interval(of(data, method, "return")).text(0),
            ", ".join(f"{value:.0f}" for value in of(data, method, "return")),
            f"{np.mean(of(data, method, 'deviation')):.0f}",
            f"{np.mean(of(data, method, 'rate')):,.0f}",
        ]
        for method, name in NAMES.items()
    ]
    lams = sorted({r["lam"] for r in data["runs"] if r["method"] == "pbrl"})
    sensitivity = [
        [f"{lam:g}", mean_interval(of(data, "pbrl", "return", lam)).text(0), f"{len(of(data, 'pbrl', 'return', lam))}"]
        for lam in lams
    ]
    notes = (
        f"95% bootstrap intervals over seeds; *deviation* is that between the {EPISODES} episodes of a fresh agent, mean over "
        f"seeds. {COMPARISONS} comparisons without error, segments of ten steps, {STEPS:,} agent steps. PBRL at lam = {LAM:g} "
        "unless said. "
        "imitation's figures were measured in wall seconds on the same machine with nothing else running, ours in CPU seconds."
    )
    parts = [
        markdown_table(["claim", "target", "measured", ""], claims),
        markdown_table(["method", "true return", "by seed", "deviation", "steps a second"], rows),
        markdown_table(["lam", "true return, PBRL", "seeds"], sensitivity),
        notes,
    ]
    return "\n\n".join(parts)


def standing(data: Data) -> list[Standing]:
    """Beside imitation."""
    mean, rate = (float(np.mean(of(data, "pbrl", name))) for name in ("return", "rate"))
    return [
        Standing(
            "Pendulum, 200 comparisons: true return of a fresh agent",
            f"{RETURN:g}, s.d. 106 over episodes, by imitation 1.0.1 (its tutorial, run here)",
            mean_interval(of(data, "pbrl", "return")).text(0),
            verdict(mean > RETURN),
        ),
        Standing(
            "the same: agent steps a second",
            f"{RATE:,.0f} by imitation 1.0.1; target {FASTER:g} times that",
            f"{rate:,.0f}",
            verdict(rate >= FASTER * RATE),
        ),
    ]


def picture(data: Data, path: Path) -> None:
    """True returns by method, and by lam."""
    figure, axes = new_figure(1, 2, 9.0, 3.8)
    for at, method in enumerate(NAMES):
        found = of(data, method, "return")
        axes[0, 0].plot([at] * len(found), found, "o", color=COLOURS[method], alpha=0.7)
        axes[0, 0].plot([at - 0.2, at + 0.2], [np.mean(found)] * 2, color=COLOURS[method], linewidth=2)
    axes[0, 0].set_xticks(range(len(NAMES)), list(NAMES.values()))
    lams = sorted({r["lam"] for r in data["runs"] if r["method"] == "pbrl"})
    for lam in lams:
        found = of(data, "pbrl", "return", lam)
        axes[0, 1].plot([lam] * len(found), found, "o", color=COLOURS["pbrl"], alpha=0.7)
    axes[0, 1].plot(lams, [np.mean(of(data, "pbrl", "return", lam)) for lam in lams], color=COLOURS["pbrl"])
    axes[0, 1].set_xscale("log")
    axes[0, 1].set_xlabel("lam")
    for panel in axes[0]:
        panel.axhline(RETURN, color="black", linestyle=":", label="imitation 1.0.1")
        panel.set_ylabel("true return of a fresh agent")
    axes[0, 0].legend(frameon=False)
    save_figure(figure, path)
