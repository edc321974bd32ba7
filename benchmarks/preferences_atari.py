"""Preferences on Atari: PBRL, DRLHF and the true reward, 100,000 steps of three games on a CPU: scores, memory, speed.

The settings stand for those of arXiv 2402.06886 (6.2), which we could not check, except where a CPU is too slow: 100,000
environment steps, 20 epochs over the first 576 pairs instead of 500, and one seed. The benchmark shows that everything runs from
end to end, what it needs and what it costs. In so few steps A2C hardly learns to play with any reward, so the scores do not
order the methods.

A follower is A2C with the paper's network in 16 parallel environments; PBRL's two followers share the steps. Labels compare the
true scores of segments of 25 steps. Each run has its own process, so that its peak memory is measured, and is stored when it
ends: an interrupted benchmark continues.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import DRLHF, PreferenceConfig, PreferencePBRL, TrueReward, ValuePenalty
from bilevel_gym.agents.preferences.atari import AtariCNN, atari_copies
from bilevel_gym.agents.preferences.training import FitConfig
from bilevel_gym.agents.schedules import Geometric

from .figures import panels
from .runs import Data, grid, run_all

RATES = {"Seaquest": 3e-4, "BeamRider": 7e-5, "MsPacman": 3e-4}
"""The follower's learning rate by game."""
NAMES = {"pbrl": "PBRL", "pbrl10": "PBRL, lam = 10", "drlhf": "DRLHF", "true": "true reward", "random": "random play"}
COLOURS = {"pbrl": "tab:blue", "pbrl10": "tab:cyan", "drlhf": "tab:orange", "true": "tab:gray"}
STEPS, RANDOM_STEPS, ITERATION, N_ENVS, EPISODES = 100_000, 13_600, 8_640, 16, 16
FIRST_LABELS, LABELS_EACH = 576, 16
LAM = Geometric(1e3, 1e4)
"""The paper's coefficient of the upper level, which starts at 0.001 and falls, is 1/lam; the reward's unit is our choice."""
LAMS: dict[str, float | Geometric] = {"pbrl": LAM, "pbrl10": 10.0}
"""Values of lam; the second is that of the other preference benchmarks."""
UNIT = 0.05
"""Standard deviation of the learned reward, which has mean 0; our default, not checked against public DRLHF code."""
MEMORY = 6.0
"""Limit on the memory of a run in GiB."""
FULL_STEPS, FULL_EPOCHS, FULL_WARM_UP, FULL_PAIRS = 10_000_000, 400, 500, 3000
"""Assumptions on a full run: steps, reward epochs, epochs over the first pairs, stored pairs."""
GPU = 20.0
"""Assumed, not measured: how many times faster a GPU fits the reward than one CPU core, transfers included."""
CORES = 8
"""Assumed number of cores that step the emulator beside the GPU."""


def follower(venv: VecEnv, rate: float) -> A2C:
    """A2C with the paper's network, rate and entropy bonus; the scores of all games are recorded."""
    kwargs: dict[str, Any] = {"features_extractor_class": AtariCNN, "net_arch": []}
    return A2C(
        "CnnPolicy", venv, rate, ent_coef=0.01, policy_kwargs=kwargs, stats_window_size=10**6, seed=0, device="cpu"
    )


def config(followers: int, quick: bool) -> PreferenceConfig:
    """Settings with the same questions and fits for all methods."""
    steps, iteration, random = (1_600, 480, 640) if quick else (STEPS, ITERATION, RANDOM_STEPS)
    first, each = (20, 4) if quick else (FIRST_LABELS, LABELS_EACH)
    return PreferenceConfig(
        labels=first + each * steps // iteration,
        first_labels=first,
        first_steps=random,
        early=0.0,
        length=25,
        n_envs=N_ENVS,
        follower_steps=iteration // followers,
        epochs=1,
        first_epochs=1 if quick else 20,
        ensemble=1,
        fit=FitConfig(learning_rate=3e-4, batch_size=16, assessed=256),
        capacity=3000,
        memory=1024,
        centre=True,
        unit=UNIT,
        discounted=False,
        penalty_steps=256,
        evaluation_episodes=2 if quick else EPISODES,
        max_pending=first,
        device="cpu",
        frame_stack=4,
    )


class Watch:
    """CPU seconds spent in functions, and the latest result of each, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last: dict[str, Any] = {}

    def on(self, owner: Any, method: str, name: str) -> None:
        """Start timing a method of an object."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                self.last[name] = inner(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
            return self.last[name]

        setattr(owner, method, timed)


def random_play(game: str, quick: bool) -> Data:
    """Scores of whole games with uniformly random actions."""
    learner = DRLHF(atari_copies(game), partial(follower, rate=RATES[game]), config=config(1, quick))
    space = learner.worlds.action_space
    space.seed(0)
    n = learner.config.evaluation_episodes
    scores, _ = learner.worlds.true_returns(lambda _: lambda _: np.stack([space.sample() for _ in range(n)]), n, 0)
    return {"final": scores.tolist()}


def learn(game: str, method: str, quick: bool) -> Data:
    """Run one method: score curves, final scores, memory, and time by part."""
    world, build = atari_copies(game), partial(follower, rate=RATES[game])
    learner: PreferencePBRL | DRLHF
    if method in LAMS:
        learner = PreferencePBRL(world, build, penalty=ValuePenalty(LAMS[method]), config=config(2, quick), seed=0)
    else:
        learner = (TrueReward if method == "true" else DRLHF)(world, build, config=config(1, quick), seed=0)
    watch = Watch()
    watch.on(learner.method, "begin", "begin")
    watch.on(learner.trainer, "fit", "fit")
    watch.on(learner.trainer, "assess", "assess")
    for f in learner.followers.values():
        watch.on(f.follower, "train", "followers")
        watch.on(f.recorder.venv, "step_wait", "emulator")
        if method != "true":
            watch.on(f.follower.venv, "reward", "reward")
    curve: list[Data] = []
    taken = [0] * len(learner.followers)

    def note(found: Any) -> None:
        games = []
        for i, f in enumerate(found.followers.values()):
            ended = [float(info["r"]) for info in f.follower.model.ep_info_buffer or ()]
            games.append(ended[taken[i] :])
            taken[i] = len(ended)
        fit = None if method == "true" else asdict(watch.last["fit"])
        curve.append({"steps": found.num_timesteps, "labels": found.buffer.seen, "games": games, "fit": fit})
        if isinstance(found, PreferencePBRL):
            record = {"penalty": found.penalty_estimate, "counted": found.penalty_share, "lam": found.lam}
            curve[-1] |= record | {"loss": found.loss_estimate}

    start, wall = time.process_time(), time.perf_counter()
    learner.learn(1_600 if quick else STEPS, callback=note)
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    # Before the evaluation; Linux counts in kibibytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    final = learner.true_returns()
    return {
        "steps": learner.num_timesteps,
        "labels": learner.buffer.seen,
        "cpu_seconds": seconds,
        "wall_seconds": wall,
        "parts": watch.seconds,
        "peak_gib": peak,
        "curve": curve,
        "final": final[0].tolist(),
    }


def one(game: str, method: str, quick: bool) -> Data:
    """Run one method, or random play."""
    return random_play(game, quick) if method == "random" else learn(game, method, quick)


def run(quick: bool, jobs: int) -> Data:
    """Run all methods on all games."""
    games = list(RATES)[:1] if quick else list(RATES)
    cells = grid(game=games, method=["pbrl", "drlhf"]) + grid(method=["random", "true", "pbrl10"], game=games)
    return {"runs": run_all(one, cells, jobs, "runs", quick=quick)}


# --- what is said of it -----------------------------------------------------------------------------------------------


def late_games(run: Data) -> list[float]:
    """Scores of the judged follower's games in the last quarter of training."""
    return [score for at in run["curve"] if at["steps"] > 0.75 * run["steps"] for score in at["games"][0]]


def score(values: list[float]) -> str:
    """Mean and standard deviation of scores."""
    deviation = f", s.d. {np.std(values, ddof=1):,.0f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.0f}{deviation}" if values else "no game ended"


def seconds_of(run: Data) -> dict[str, float]:
    """CPU seconds by part."""
    parts = {"reward": 0.0, "fit": 0.0, **run["parts"]}
    rest = run["cpu_seconds"] - parts["emulator"] - parts["reward"] - parts["fit"]
    return {"emulator": parts["emulator"], "rewards": parts["reward"], "A2C": rest, "fits": parts["fit"]}


def runs_of(data: Data, *methods: str) -> list[Data]:
    """The runs of these methods, by game."""
    return [
        r for game in RATES for method in methods for r in data["runs"] if (r["game"], r["method"]) == (game, method)
    ]


def missing(data: Data) -> list[str]:
    """The runs that were not made."""
    made = {(r["game"], r["method"]) for r in data["runs"]}
    return [f"{name} on {game}" for game in RATES for method, name in NAMES.items() if (game, method) not in made]


def both_of(data: Data) -> list[str]:
    """Games on which both methods were run."""
    return [game for game in RATES if {"pbrl", "drlhf"} <= {r["method"] for r in data["runs"] if r["game"] == game}]


def config_of(run: Data) -> PreferenceConfig:
    """The config of a run that learned a reward."""
    return config(2 if run["method"] in LAMS else 1, quick=run["steps"] < STEPS)


def passes(run: Data) -> int:
    """Number of passes over labelled pairs in all fits of a run."""
    c = config_of(run)
    later: int = sum(at["labels"] for at in run["curve"])
    return c.first_epochs * c.first_labels + c.epochs * later


def full_passes() -> int:
    """Number of passes over labelled pairs in a full run."""
    held = FIRST_LABELS + LABELS_EACH * np.arange(1, FULL_EPOCHS + 1)
    return FULL_WARM_UP * FIRST_LABELS + int(np.minimum(FULL_PAIRS, held).sum())


def full_hours(run: Data) -> dict[str, float]:
    """Estimated hours of a full run by part, at this run's rates on one CPU core."""
    hours = {part: seconds * FULL_STEPS / run["steps"] / 3600.0 for part, seconds in seconds_of(run).items()}
    return hours | {"fits": run["parts"]["fit"] / passes(run) * full_passes() / 3600.0}


@panels(1, len(RATES), 4.0 * len(RATES), 3.6)
def picture(data: Data, *axes: Any) -> None:
    """Draw the scores of finished games against steps."""
    for panel, game in zip(axes, RATES, strict=True):
        for r in (r for r in runs_of(data, *NAMES) if r["game"] == game):
            method, name = r["method"], NAMES[r["method"]]
            if method == "random":
                panel.axhline(np.mean(r["final"]), color="black", linestyle=":", label=name)
                continue
            for i, style in enumerate(("-", "--")[: len(r["curve"][0]["games"])]):
                drawn = []
                for before, at in zip([{"games": [[], []]}, *r["curve"]], r["curve"], strict=False):
                    if scores := before["games"][i] + at["games"][i]:
                        drawn.append((at["steps"], float(np.mean(scores))))
                label = name if i == 0 else f"{name}, penalised follower"
                panel.plot(*np.array(drawn).T, style, color=COLOURS[method], label=label)
        panel.set(title=game, xlabel="steps")
    axes[0].set_ylabel("score of games that ended, two iterations")
    axes[0].legend(frameon=False, fontsize="small")
