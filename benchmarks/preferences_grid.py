"""Preferences on a grid world with a hidden reward: exact regret of PBRL and DRLHF against the number of labels.

Ten 5 x 5 worlds (``RewardGrid-v0``, seeds 0 to 9), the same for every method and every number of labels; answers by the true
return of segments of ten steps, without error. All methods use the same environment steps, random play included, and ask as
many questions at the same times; PBRL's two followers share the steps. The regret of a learned reward is the loss of its exact
best response compared with the true optimum, V*(rho) - V^{pi*(r)}(rho).

Followers are planners in the known model: the exact soft best response in both methods, and for PBRL's pi_y one step of policy
mirror descent per iteration, as in arXiv 2402.06886's algorithm. DRLHF asks about its best response, or about a follower that
takes the same slow steps, which separates the effect of such questions from that of the penalty. Both methods also run with A2C.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import DRLHF, MirrorDescent, PreferenceConfig, PreferencePBRL, ValuePenalty
from bilevel_gym.agents.leaders.preference_pbrl import Tracked
from bilevel_gym.agents.preferences.planner import Planner
from bilevel_gym.agents.preferences.training import FitConfig
from bilevel_gym.agents.preferences.worlds import regret
from bilevel_gym.cli.statistics import Interval
from bilevel_gym.envs.reward_grid import RewardGridProblem

from .figures import draw_band, panels
from .runs import Data, Runs, grid, run_all
from .statistics import paired_difference

SEEDS = tuple(range(10))
DRAWS = 4
"""Runs of planners in each world, with different questions, whose mean regret counts."""
SIZE, GAMMA = 5, 0.9
LABELS = (6, 12, 25, 50, 100)
FEW = 12
"""At most this many labels count as few."""
LAM = 1.0
LAMS = (0.01, 0.1, 1.0, 10.0, 100.0)
SWEPT = 25
"""Number of labels in the runs with other values of lam."""
STEPS, PER_ITERATION, COPIES = 102_400, 4096, 64
TAU, SLOW = 0.3, 0.1
"""The planners' temperature; and the share of its logits that a slow planner takes from the newest Q."""
NAMES = {"pbrl": "PBRL", "drlhf": "DRLHF", "drlhf_slow": "DRLHF, slow follower"}
NAMES |= {"pbrl_a2c": "PBRL, A2C", "drlhf_a2c": "DRLHF, A2C"}
COLOURS = dict(zip(NAMES, ("tab:blue", "tab:orange", "tab:green", "tab:blue", "tab:orange"), strict=True))
PAIRS = {"planners": ("pbrl", "drlhf"), "A2C": ("pbrl_a2c", "drlhf_a2c")}
"""Methods that are compared, by kind of follower."""


def a2c(venv: VecEnv) -> A2C:
    """A2C with one-hot states and a linear policy."""
    settings: dict[str, Any] = {"n_steps": 8, "gae_lambda": 0.95, "learning_rate": 0.03, "ent_coef": 0.05}
    return A2C("MlpPolicy", venv, gamma=GAMMA, policy_kwargs={"net_arch": []}, **settings)


def best(venv: VecEnv, followers: int) -> Planner:
    """A planner that plays the soft best response, with one rollout per iteration."""
    return Planner("MlpPolicy", venv, tau=TAU, n_steps=PER_ITERATION // followers // COPIES)


def slow(venv: VecEnv, followers: int) -> Planner:
    """A planner that takes one mirror descent step towards the best response per iteration: 1/(1 + eta tau) = 1 - SLOW."""
    oracle = MirrorDescent(eta=SLOW / (1.0 - SLOW) / TAU, iterations=1)
    return Planner("MlpPolicy", venv, oracle, TAU, n_steps=PER_ITERATION // followers // COPIES)


def config(labels: int, followers: int, quick: bool) -> PreferenceConfig:
    """Settings with the same questions and fits for all methods."""
    return PreferenceConfig(
        labels=labels,
        first_labels=max(3, labels // 4),
        length=10,
        first_steps=640,
        n_envs=COPIES,
        follower_steps=PER_ITERATION // followers,
        epochs=2 if quick else 8,
        first_epochs=5 if quick else 40,
        ensemble=1,
        fit=FitConfig(learning_rate=3e-3),
        device="cpu",
    )


def learn(method: str, asked: int, lam: float, seed: int, draw: int, quick: bool) -> Data:
    """Run one method; returns its exact record."""
    kwargs: dict[str, Any] = {"seed": seed + 1000 * draw, "env_kwargs": {"seed": seed, "size": SIZE, "gamma": GAMMA}}
    start, world = time.process_time(), "bilevel_gym/RewardGrid-v0"
    learner: PreferencePBRL | DRLHF
    if method.startswith("pbrl"):
        followers = a2c if method == "pbrl_a2c" else Tracked(partial(best, followers=2), partial(slow, followers=2))
        learner = PreferencePBRL(world, followers, penalty=ValuePenalty(lam), config=config(asked, 2, quick), **kwargs)
    else:
        follower = {"drlhf": partial(best, followers=1), "drlhf_slow": partial(slow, followers=1)}.get(method, a2c)
        learner = DRLHF(world, follower, config=config(asked, 1, quick), **kwargs)
    record = learner.learn(12_000 if quick else STEPS).evaluate()
    return record.as_dict() | {"cpu_seconds": time.process_time() - start}


def run(quick: bool, jobs: int) -> Data:
    """Run every method in every world with every number of labels, and PBRL with other values of lam."""
    seeds, counts = (SEEDS[:2], LABELS[:2]) if quick else (SEEDS, LABELS)
    draws = {method: 1 if quick or method.endswith("a2c") else DRAWS for method in NAMES}
    swept = counts[-1] if quick else SWEPT
    lams = LAMS[:2] if quick else LAMS
    cells = grid(asked=counts, method=NAMES, lam=[LAM], seed=seeds, draw=range(DRAWS))
    cells += grid(
        asked=[swept], method=["pbrl"], lam=[lam for lam in lams if lam != LAM], seed=seeds, draw=range(DRAWS)
    )
    cells = [cell for cell in cells if cell["draw"] < draws[cell["method"]]]
    random = []
    for seed in seeds:  # a reward that says nothing
        mdp = RewardGridProblem(SIZE, GAMMA, seed=seed)
        true = mdp.follower_mdp(mdp.true_reward)
        random.append(regret(true, 0.0 * true.r + 0.25))
    return {"runs": run_all(learn, cells, jobs, "runs", quick=quick), "random": random, "swept": swept}


def regrets(data: Data, method: str, labels: int, lam: float = LAM) -> list[float]:
    """The mean regret of the runs in each world."""
    found = Runs(data["runs"])(method=method, asked=labels, lam=lam)
    return [float(np.mean(found(seed=world)["regret"])) for world in sorted(set(found["seed"]))]


def difference(data: Data, labels: int, lam: float = LAM, method: str = "pbrl", other: str = "drlhf") -> Interval:
    """The regret of PBRL minus that of DRLHF in the same worlds; negative if PBRL is better."""
    return paired_difference(regrets(data, method, labels, lam), regrets(data, other, labels))


def lams_of(data: Data) -> list[float]:
    """All values of lam in the sweep."""
    return sorted(set(Runs(data["runs"])(method="pbrl", asked=data["swept"])["lam"]))


def counts_of(data: Data) -> list[int]:
    """All numbers of labels."""
    return sorted({r["asked"] for r in data["runs"]})


@panels(1, 2, 10.0, 4.0)
def picture(data: Data, by_labels: Any, by_lam: Any) -> None:
    """Draw regret against the number of labels and against lam."""
    counts, swept, lams = counts_of(data), data["swept"], lams_of(data)
    for method, colour in COLOURS.items():
        curves = np.array([regrets(data, method, n) for n in counts]).T
        if method.endswith("a2c"):
            by_labels.plot(counts, curves.mean(0), ":", color=colour, label=NAMES[method])
        else:
            draw_band(by_labels, counts, curves, colour, NAMES[method])
    curves = np.array([regrets(data, "pbrl", swept, lam) for lam in lams]).T
    draw_band(by_lam, lams, curves, COLOURS["pbrl"], f"PBRL, {swept} labels")
    level = float(np.mean(regrets(data, "drlhf", swept)))
    by_lam.axhline(level, color=COLOURS["drlhf"], label=f"DRLHF, {swept} labels")
    for panel, label in ((by_labels, "labels"), (by_lam, "lam")):
        panel.set(xscale="log", xlabel=label, ylabel="exact regret")
        panel.set_ylim(bottom=0.0)
        panel.legend(frameon=False)
