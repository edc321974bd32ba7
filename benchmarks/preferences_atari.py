"""Preferences on Atari: PBRL, DRLHF and the true reward, 100,000 steps of three games on a CPU: scores, memory, speed.

The settings are those of arXiv 2402.06886 (6.2) as remembered, but for what a CPU has no time for: 100,000 environment steps,
20 epochs over the first 576 pairs where the paper takes 500, and one seed. This shows that everything runs from end to end, what
it needs, and what it costs. In so few steps A2C hardly learns to play, whatever it is paid: the scores do not order the methods.

A follower is A2C with the paper's net, in 16 copies; PBRL's two share the steps. Labels go by the true score of segments of 25
steps. Each run has a process of its own, so that its peak memory is its own, and is stored when it ends: a benchmark that was
interrupted goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv
from tqdm.auto import tqdm

import bilevel_gym
from bilevel_gym.agents import (
    DRLHF,
    AtariCNN,
    FitConfig,
    PreferenceConfig,
    PreferencePBRL,
    TrueReward,
    ValuePenalty,
    atari_copies,
)
from bilevel_gym.agents.schedules import Geometric

from .common import Data, Standing, markdown_table, new_figure, save_figure, verdict

assert bilevel_gym.__version__
RATES = {"Seaquest": 3e-4, "BeamRider": 7e-5, "MsPacman": 3e-4}
"""The follower's learning rate by game."""
NAMES = {"pbrl": "PBRL", "pbrl10": "PBRL, lam = 10", "drlhf": "DRLHF", "true": "true reward", "random": "random play"}
COLOURS = {"pbrl": "tab:blue", "pbrl10": "tab:cyan", "drlhf": "tab:orange", "true": "tab:gray"}
STEPS, RANDOM_STEPS, ITERATION, N_ENVS, EPISODES = 100_000, 13_600, 8_640, 16, 16
FIRST_LABELS, LABELS_EACH = 576, 16
LAM = Geometric(1e3, 1e4)
"""The paper's coefficient of the upper level, 0.001 and falling, is 1/lam; the unit of the reward is ours."""
LAMS: dict[str, float | Geometric] = {"pbrl": LAM, "pbrl10": 10.0}
"""The second is that of the other benchmarks of preferences."""
UNIT = 0.05
"""The learned reward has mean 0 and this deviation: what public code of DRLHF pays an A2C, as remembered, unverified."""
MEMORY = 6.0
"""Gibibytes that a run may take."""
FULL_STEPS, FULL_EPOCHS, FULL_WARM_UP, FULL_PAIRS = 10_000_000, 400, 500, 3000
"""What a full run is taken to be: steps, reward epochs, epochs over the first pairs, pairs held."""
GPU = 20.0
"""Assumed, not measured: how many times faster than one core of a CPU a GPU fits the reward, copies to it included."""
CORES = 8
"""Assumed: how many cores step the emulator beside it."""
STORE = Path("runs/preferences_atari")


def follower(venv: VecEnv, rate: float) -> A2C:
    """A2C with the paper's net, rate and entropy bonus; all games' scores are kept."""
    kwargs: dict[str, Any] = {"features_extractor_class": AtariCNN, "net_arch": []}
    return A2C(
        "CnnPolicy", venv, rate, ent_coef=0.01, policy_kwargs=kwargs, stats_window_size=10**6, seed=0, device="cpu"
    )


def config(followers: int, quick: bool) -> PreferenceConfig:
    """The same questions and fits, whoever shares the steps."""
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
    """Seconds of CPU time spent in functions, and what they answered last, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last: dict[str, Any] = {}

    def on(self, owner: Any, method: str, name: str) -> None:
        """Time a method of this object from now on."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                self.last[name] = inner(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
            return self.last[name]

        setattr(owner, method, timed)


def settings(method: str, game: str, quick: bool) -> Data:
    """What a stored run has to agree with to be taken."""
    lam = repr(LAMS.get(method, LAM))
    found = {"config": repr(config(2 if method in LAMS else 1, quick)), "rate": RATES[game], "lam": lam}
    return found | {"method": method, "game": game, "steps": STEPS, "version": bilevel_gym.__version__}


def random_play(game: str, quick: bool) -> Data:
    """Scores of whole games, every action as likely as any other."""
    learner = DRLHF(atari_copies(game), partial(follower, rate=RATES[game]), config(1, quick))
    space = learner.worlds.action_space
    space.seed(0)
    n = learner.config.evaluation_episodes
    scores, _ = learner.worlds.true_returns(lambda _: lambda _: np.stack([space.sample() for _ in range(n)]), n, 0)
    return {"final": scores.tolist()}


def learn(game: str, method: str, quick: bool) -> Data:
    """One run: curves of the scores of games that ended, final scores, memory, time by part."""
    world, build = atari_copies(game), partial(follower, rate=RATES[game])
    learner: PreferencePBRL | DRLHF
    if method in LAMS:
        learner = PreferencePBRL(world, build, ValuePenalty(LAMS[method]), config(2, quick), seed=0)
    else:
        learner = (TrueReward if method == "true" else DRLHF)(world, build, config(1, quick), seed=0)
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
    peak = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )  # before the evaluation; Linux counts in kibibytes
    final = learner.true_returns()
    return {
        "steps": learner.num_timesteps,
        "labels": learner.buffer.seen,
        "cpu_seconds": seconds,
        "wall_seconds": wall,
        "parts": watch.seconds,
        "peak_gib": peak,
        "curve": curve,
        "final": final.tolist(),
    }


def stored(task: tuple[str, str, bool]) -> Data:
    """One run, or what is stored of it."""
    game, method, quick = task
    torch.set_num_threads(1)
    path = STORE / ("quick" if quick else "full") / f"{game}-{method}.json"
    asked = settings(method, game, quick)
    if path.is_file():
        held: Data = json.loads(path.read_text(encoding="utf-8"))
        if held["settings"] == asked:
            return held
    found = random_play(game, quick) if method == "random" else learn(game, method, quick)
    found = {"game": game, "method": method, "settings": asked, **found}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(path)
    return found


def run(quick: bool, jobs: int) -> Data:
    """All methods on all games, each in a fresh process."""
    games = list(RATES)[:1] if quick else list(RATES)
    tasks = [(game, method, quick) for game in games for method in ("pbrl", "drlhf")]
    tasks += [(game, method, quick) for method in ("random", "true", "pbrl10") for game in games]
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        runs = list(tqdm(pool.imap(stored, tasks, chunksize=1), total=len(tasks), desc="runs"))
    return {"runs": runs}


# --- what is said of it -----------------------------------------------------------------------------------------------


def of(data: Data, game: str, method: str) -> Data | None:
    """The run, or None where it was not made."""
    return next((r for r in data["runs"] if (r["game"], r["method"]) == (game, method)), None)


def learned(data: Data) -> list[Data]:
    """The runs that learned a reward."""
    return [r for r in data["runs"] if r["method"] in (*LAMS, "drlhf")]


def missing(data: Data) -> list[str]:
    """Runs that were not made."""
    return [f"{NAMES[m]} on {g}" for g in RATES for m in NAMES if of(data, g, m) is None]


def late_games(run: Data) -> list[float]:
    """Scores of the games that the judged follower ended in the last quarter of training."""
    return [score for at in run["curve"] if at["steps"] > 0.75 * run["steps"] for score in at["games"][0]]


def config_of(run: Data) -> PreferenceConfig:
    """The config of a run that learned a reward."""
    return config(2 if run["method"] in LAMS else 1, quick=run["steps"] < STEPS)


def passes(run: Data) -> int:
    """Passes over labelled pairs in all fits of a run."""
    c = config_of(run)
    later: int = sum(at["labels"] for at in run["curve"])
    return c.first_epochs * c.first_labels + c.epochs * later


def full_passes() -> int:
    """The same of a full run."""
    held = FIRST_LABELS + LABELS_EACH * np.arange(1, FULL_EPOCHS + 1)
    return FULL_WARM_UP * FIRST_LABELS + int(np.minimum(FULL_PAIRS, held).sum())


def full_hours(run: Data) -> dict[str, float]:
    """Hours of a full run by part at this run's rates, on one core of a CPU."""
    parts, scale = run["parts"], FULL_STEPS / run["steps"] / 3600.0
    steps = run["cpu_seconds"] - parts["emulator"] - parts["reward"] - parts["fit"]
    fits = parts["fit"] / passes(run) * full_passes() / 3600.0
    return {
        "emulator": parts["emulator"] * scale,
        "rewards": parts["reward"] * scale,
        "A2C": steps * scale,
        "fits": fits,
    }


def _score(values: list[float]) -> str:
    deviation = f", s.d. {np.std(values, ddof=1):,.0f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.0f}{deviation}" if values else "no game ended"


def _claims(data: Data) -> str:
    both = [g for g in RATES if of(data, g, "pbrl") is not None and of(data, g, "drlhf") is not None]
    runs = learned(data)
    peak, minutes = max(r["peak_gib"] for r in runs), max(r["cpu_seconds"] for r in runs) / 60.0
    ended = all(r["steps"] >= STEPS for r in runs)
    rows = [
        [
            f"PBRL and DRLHF end to end, {STEPS:,} steps, {config_of(runs[0]).first_epochs} warm-up epochs",
            "three games",
            ", ".join(both) or "none",
            verdict(len(both) == len(RATES) and ended),
        ],
        ["peak memory of a run, the largest", f"under {MEMORY:g} GiB", f"{peak:.2f} GiB", verdict(peak < MEMORY)],
        ["CPU time of a run, the longest", "under 10 minutes", f"{minutes:.1f} minutes", verdict(minutes < 10.0)],
    ]
    return markdown_table(["claim", "target", "measured", ""], rows)


def _scores(data: Data) -> str:
    rows = []
    for game in RATES:
        for method, name in NAMES.items():
            r = of(data, game, method)
            if r is None:
                continue
            row = [game, name, _score(r["final"])]
            if method == "random":
                rows.append([*row, *[""] * 6])
                continue
            fit = r["curve"][-1]["fit"]
            right = "" if fit is None or np.isnan(fit["accuracy"]) else f"{fit['accuracy']:.0%}"
            speed = [f"{r['steps'] / r['cpu_seconds']:,.0f}", f"{r['cpu_seconds'] / 60:.1f}", f"{r['peak_gib']:.2f}"]
            rows.append([*row, _score(late_games(r)), str(r["labels"]), right, *speed])
    head = ["game", "method", f"score of {EPISODES} whole games", "score in the last quarter of training", "labels"]
    return markdown_table([*head, "pairs ordered rightly", "steps a CPU second", "CPU minutes", "peak GiB"], rows)


def _parts(data: Data) -> str:
    rows = []
    for r in data["runs"]:
        if r["method"] == "random":
            continue
        seconds = {"reward": 0.0, "fit": 0.0, **r["parts"]}
        rest = r["cpu_seconds"] - seconds["emulator"] - seconds["reward"] - seconds["fit"]
        shares = [seconds["emulator"], seconds["reward"], rest, seconds["fit"]]
        rows.append([r["game"], NAMES[r["method"]], *[f"{s:.0f}" for s in shares]])
    return markdown_table(
        ["game", "method", "emulator, s", "rewards, s", "A2C, recording, questions, s", "fits, s"], rows
    )


def _penalty(data: Data) -> str:
    rows = []
    for game in RATES:
        for method in LAMS:
            r = of(data, game, method)
            if r is not None:
                counted = float(np.mean([a["counted"] for a in r["curve"]]))
                p = [f"{a['penalty']:.3f}" for a in r["curve"]]
                right = [f"{100 * a['fit']['accuracy']:.0f}{'*' * (a['counted'] > 0)}" for a in r["curve"]]
                rows.append([game, NAMES[method], f"{counted:.1%}", " ".join(p), " ".join(right)])
    head = ["game", "method", "gradient steps that counted it", "p^ by iteration", "pairs ordered rightly, %"]
    return markdown_table(head, rows)


def _full(data: Data) -> str:
    rows = []
    for r in learned(data):
        hours = full_hours(r)
        on_gpu = hours["emulator"] / CORES + hours["rewards"] + hours["A2C"] + hours["fits"] / GPU
        rows.append(
            [r["game"], NAMES[r["method"]], *[f"{h:.1f}" for h in (*hours.values(), sum(hours.values()), on_gpu)]]
        )
    head = ["game", "method", "emulator, h", "rewards, h", "A2C, h", "fits, h", "one core, h", "one GPU, h (estimate)"]
    return markdown_table(head, rows)


def table(data: Data) -> str:
    """Targets, scores, costs, where the time goes, the penalty, the estimate of a full run."""
    absent = missing(data)
    parts = [_claims(data)]
    if absent:
        parts.append(f"**Not run yet:** {', '.join(absent)}.")
    parts += [
        _scores(data),
        "One seed a cell: scores differ by luck, and no method is better than another here. Whole games are played by the "
        "follower that a result is judged by (PBRL's best response, which has trained for half of the steps), "
        "the true score unclipped. Pairs ordered rightly: of up to 256 of those fitted to, ties left out. On Seaquest the "
        "followers of PBRL and of DRLHF score less in these games than in the last ones of training, which is not explained; the "
        "one on the true reward does not.",
        _parts(data),
        "CPU seconds on one thread; random play and warm-up epochs included. The runs were made on a busy machine, two side by "
        "side at times; the seconds at the end of this page are the sum of theirs by the clock.",
        "**The penalty.** 1/lam, the coefficient of the upper level, falls from 0.001 to 0.0001, which bounds the penalty by "
        "f/lam, 0.0007 and less: far below what 256 steps of each follower can resolve. Its gradient counts in the gradient "
        "steps where the estimate p^ lies within [0, f/lam], and else is left out, as the error would be all of it. So at this "
        "coefficient it counts by luck alone, and is then lam times as large as is good for Adam: in the fits marked * and "
        "after them the reward model unlearns what it knew. With lam = 10, as in the other benchmarks of preferences, the "
        "bound is 0.07. The paper's coefficient is remembered, not verified, and so is the unit that its reward has.",
        _penalty(data),
        f"**What a full run costs** ({FULL_STEPS:,} steps, {FULL_WARM_UP} warm-up epochs, {FULL_EPOCHS} reward epochs over at "
        f"most {FULL_PAIRS} pairs): rates of the runs above, scaled. No GPU was to be had: the last column is an *estimate*, in "
        f"which fits are taken to run {GPU:g} times as fast as on one core and the emulator on {CORES} cores, while A2C and the "
        "rewards, in batches of 16 and 80, gain nothing; none of it was measured.",
        _full(data),
    ]
    return "\n\n".join(parts)


def standing(data: Data) -> list[Standing]:
    """What the targets say."""
    runs = learned(data)
    both = [g for g in RATES if of(data, g, "pbrl") is not None and of(data, g, "drlhf") is not None]
    peak = max(r["peak_gib"] for r in runs)
    return [
        Standing(
            f"Atari on a CPU, {STEPS:,} steps: games on which PBRL and DRLHF run end to end",
            "target: Seaquest, BeamRider, MsPacman",
            ", ".join(both) or "none",
            verdict(len(both) == len(RATES)),
        ),
        Standing(
            "the same: peak memory of a run", f"target: under {MEMORY:g} GiB", f"{peak:.2f} GiB", verdict(peak < MEMORY)
        ),
    ]


def picture(data: Data, path: Path) -> None:
    """Scores of games that ended, against steps."""
    figure, axes = new_figure(1, len(RATES), 4.0 * len(RATES), 3.6)
    for panel, game in zip(axes[0], RATES, strict=True):
        for method, name in NAMES.items():
            r = of(data, game, method)
            if r is None:
                continue
            if method == "random":
                panel.axhline(np.mean(r["final"]), color="black", linestyle=":", label=name)
                continue
            for i, style in enumerate(("-", "--")[: len(r["curve"][0]["games"])]):
                at = [
                    (a["steps"], [s for b in r["curve"][max(0, k - 1) : k + 1] for s in b["games"][i]])
                    for k, a in enumerate(r["curve"])
                ]
                drawn = [(steps, float(np.mean(scores))) for steps, scores in at if scores]
                label = name if i == 0 else f"{name}, penalised follower"
                panel.plot(*np.array(drawn).T, style, color=COLOURS[method], label=label)
        panel.set_title(game)
        panel.set_xlabel("steps")
    axes[0, 0].set_ylabel("score of games that ended, two iterations")
    axes[0, 0].legend(frameon=False, fontsize="small")
    save_figure(figure, path)
