"""Text that pleases: a small language model learns from comparisons of its own messages which messages are preferred.

The follower writes short messages (``HappyText-v0``). It starts from a language model that was pretrained on happy, neutral and
sad messages; PPO trains it with a KL penalty to the pretrained model. A sentiment rule, which only the labeller sees, compares
whole messages. PBRL and DRLHF are compared with the pretrained model and with the same PPO on the true sentiment, which needs no
labels.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np

from bilevel_gym.agents import DRLHF, PreferenceConfig, PreferencePBRL, TrueReward, ValuePenalty
from bilevel_gym.agents.preferences.fragmenters import WholeEpisodes
from bilevel_gym.agents.preferences.training import FitConfig
from bilevel_gym.agents.text.language_model import load_word_model
from bilevel_gym.agents.text.policy import writer
from bilevel_gym.agents.text.quality import assess, text_env, write
from bilevel_gym.agents.text.reward_net import WordsReward

from .figures import draw_band, panels
from .pages import verdict
from .runs import Data, Runs, grid, run_all
from .statistics import mean_interval, paired_difference, paired_ratio

WORLD = "bilevel_gym/HappyText-v0"
SEEDS = tuple(range(1, 6))
LABELS, FIRST_LABELS, FIRST_STEPS = 400, 150, 4096
STEPS, ITERATION, CURVE = 30_720, 1024, 5
"""Steps that each follower trains; steps per iteration; iterations between points of a curve."""
MESSAGES, MESSAGE_SEED = 512, 1000
"""Number of messages behind every figure, which begin alike for all methods of a seed; and their seed."""
KL_LEARNED, KL_TRUE = 0.6, 0.06
"""Cost of a nat, in the unit of the learned reward (root mean square 1 a step) and of the true one (below 1 a message)."""
LAM = 1.0
METHODS = {"pretrained": "pretrained model", "drlhf": "DRLHF", "pbrl": "PBRL", "true": "PPO on the true sentiment"}
GAIN, LOSS, VARIETY, DIFFERENT = 0.5, 0.75, 0.33, 0.9
"""Targets: sentiment gained; nats lost per token; distinct-2 relative to the pretrained model; share of different messages."""
FIGURES = {"sentiment": 2, "log_likelihood": 2, "grammatical": 2, "distinct_1": 3, "distinct_2": 3}
FIGURES |= {"distinct_messages": 3, "tokens": 1}
"""What is told of messages, with its digits."""


def config(quick: bool) -> PreferenceConfig:
    """Settings that PBRL and DRLHF share."""
    return PreferenceConfig(
        labels=30 if quick else LABELS,
        first_labels=20 if quick else FIRST_LABELS,
        first_steps=1024 if quick else FIRST_STEPS,
        follower_plays_first=True,
        length=24,
        n_envs=32,
        follower_steps=ITERATION,
        epochs=3,
        first_epochs=40,
        ensemble=1,
        net=WordsReward,
        fit=FitConfig(learning_rate=3e-3, weight_decay=0.1),
        fragmenter=WholeEpisodes(),
        max_pending=LABELS,
        device="cpu",
    )


def learner(method: str, seed: int, quick: bool) -> Any:
    """One of the methods, with the same follower."""
    if method == "pbrl":
        return PreferencePBRL(WORLD, writer(KL_LEARNED), penalty=ValuePenalty(lam=LAM), config=config(quick), seed=seed)
    if method == "drlhf":
        return DRLHF(WORLD, writer(KL_LEARNED), config=config(quick), seed=seed)
    return TrueReward(WORLD, writer(KL_TRUE), config=config(quick), seed=seed)


def one(method: str, seed: int, quick: bool) -> Data:
    """Run one method: its quality curve against the follower's steps, its last messages, its cost."""
    env, pretrained = text_env(gym.make(WORLD)), load_word_model()
    found = learner(method, seed, quick)
    follower = found.best_response.follower
    curve: list[Data] = []
    last: list[str] = []

    def note(_: Any) -> None:
        trained = follower.num_timesteps
        if trained % ((1 if quick else CURVE) * ITERATION) == 0:
            n = 20 if quick else MESSAGES
            written = write(lambda obs: follower.policy.predict(obs)[0], env, n, MESSAGE_SEED + seed)
            curve.append({"steps": trained, "labels": found.buffer.seen, **asdict(assess(written, pretrained))})
            last[:] = written.messages[:6]

    start = time.process_time()
    note(found)
    if method != "pretrained":
        played = 0 if method == "true" else found.config.first_steps
        steps = 2 * ITERATION if quick else STEPS
        found.learn(played + len(found.followers) * steps, callback=note)
    seconds = time.process_time() - start
    found.close()
    return {"curve": curve, "messages": last, "cpu_seconds": seconds}


def run(quick: bool, jobs: int) -> Data:
    """Run every method with every seed."""
    cells = grid(seed=SEEDS[:1] if quick else SEEDS, method=METHODS)
    return {"runs": run_all(one, cells, jobs, "writers", quick=quick)}


def final(runs: Runs, method: str, figure: str) -> list[float]:
    """A figure at the end of each run."""
    return [float(curve[-1][figure]) for curve in runs(method=method)["curve"]]


def gained(runs: Runs, method: str) -> float:
    """A method's gain in true sentiment, relative to that of PPO on the true sentiment."""
    before, true, own = (np.mean(final(runs, name, "sentiment")) for name in ("pretrained", "true", method))
    return float((own - before) / (true - before))


def targets(runs: Runs, method: str) -> list[tuple[str, str, str, str]]:
    """The targets of a method, its results, and the verdicts."""
    gain = paired_difference(final(runs, method, "sentiment"), final(runs, "pretrained", "sentiment"))
    loss = paired_difference(final(runs, "pretrained", "log_likelihood"), final(runs, method, "log_likelihood"))
    variety = paired_ratio(final(runs, method, "distinct_2"), final(runs, "pretrained", "distinct_2"))
    different = mean_interval(final(runs, method, "distinct_messages"))
    return [
        ("sentiment gained", f"at least {GAIN:g}", gain.text(), verdict(gain, GAIN)),
        ("nats a token lost", f"at most {LOSS:g}", loss.text(), verdict(loss, LOSS, below=True)),
        ("distinct-2, of the pretrained model's", f"at least {VARIETY:g}", variety.text(), verdict(variety, VARIETY)),
        ("share of different messages", f"at least {DIFFERENT:g}", different.text(3), verdict(different, DIFFERENT)),
    ]


@panels(1, 2, 9.0, 3.8)
def picture(data: Data, by_steps: Any, by_likelihood: Any) -> None:
    """Draw sentiment against steps and against likelihood."""
    colours = {"pretrained": "tab:gray", "drlhf": "tab:orange", "pbrl": "tab:blue", "true": "tab:green"}
    for method, colour in colours.items():
        runs = Runs(data["runs"])(method=method)["curve"]
        steps = [point["steps"] for point in runs[0]]
        curves = [[point["sentiment"] for point in curve] for curve in runs]
        if method == "pretrained":
            by_steps.axhline(float(np.mean(curves)), color=colour, linestyle=":", label=METHODS[method])
        else:
            draw_band(by_steps, steps, curves, colour, METHODS[method])
        ends = [curve[-1] for curve in runs]
        xs, ys = ([end[name] for end in ends] for name in ("log_likelihood", "sentiment"))
        by_likelihood.scatter(xs, ys, color=colour, s=18)
    by_steps.set(xlabel="steps (tokens) of the follower", ylabel="mean sentiment of its messages")
    by_steps.legend(frameon=False, fontsize=8)
    by_likelihood.set_xlabel("log-likelihood a token, pretrained model")
