"""Incentive design over zero-sum games: PBRL, the meta-gradient, the hypergradient through the Nash equilibrium.

Ten random instances (seeds 0 to 9; 10 states, 5 x 5 actions, gamma 0.9, tau 0.1, rho uniform, all entries uniform on [0, 1]), the
same for every method, exact gradients, 600 iterations, the last x. The designer's return is that at the Nash equilibrium of x;
beside it the return at the method's own policies, and their Nikaido-Isoda gap, which is their exploitability. The published
experiment's sizes and coefficients are recollections (arXiv 2402.06886, section 6.3; unverified).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_gym.agents import (
    Geometric,
    Hypergradient,
    HypergradientConfig,
    MetaGradient,
    MetaGradientConfig,
    NikaidoIsodaPenalty,
    TabularPBRL,
    TabularPBRLConfig,
)
from bilevel_gym.agents.common.tabular import TabularLeader
from bilevel_gym.envs.mdp import GameProblem, random_incentive_design

from .common import (
    Data,
    Standing,
    draw_band,
    map_tasks,
    markdown_table,
    mean_interval,
    new_figure,
    paired_difference,
    save_figure,
    verdict,
)

SEEDS = tuple(range(10))
ITERATIONS = 600
EVERY = 20
GAP = 0.01


def pbrl(lam: Any) -> Callable[[GameProblem], TabularLeader]:
    """Joint steps with the Nikaido-Isoda penalty at the problem's own temperature."""
    config = TabularPBRLConfig(tau=0.1, eval_every=EVERY, keep_best=False)
    return lambda problem: TabularPBRL(problem, NikaidoIsodaPenalty(lam=lam), config=config)


METHODS: dict[str, tuple[str, str, Callable[[GameProblem], TabularLeader]]] = {
    "meta": ("meta-gradient", "tab:green", lambda p: MetaGradient(p, MetaGradientConfig(eval_every=EVERY))),
    "pbrl_1": ("PBRL, lam 1", "0.6", pbrl(1.0)),
    "pbrl_4": ("PBRL, lam 4 (as published)", "tab:blue", pbrl(4.0)),
    "pbrl_10": ("PBRL, lam 10", "tab:cyan", pbrl(10.0)),
    "pbrl_30": ("PBRL, lam 30", "tab:purple", pbrl(30.0)),
    "pbrl_rising": ("PBRL, lam 2 to 20 (default)", "tab:olive", pbrl(Geometric(2.0, 20.0))),
    "hypergradient": (
        "hypergradient through the equilibrium",
        "tab:red",
        lambda p: Hypergradient(p, HypergradientConfig(eval_every=EVERY, keep_best=False)),
    ),
}
"""Label, colour, and how to make the leader."""


def run_method(name: str, seed: int, iterations: int) -> Data:
    """One method on one instance."""
    problem = random_incentive_design(10, 5, 5, 0.9, 0.1, seed)
    leader = METHODS[name][2](problem)
    start = time.process_time()
    leader.learn(iterations)
    ms = 1e3 * (time.process_time() - start) / iterations
    last, keys = leader.history[-1], ("iteration", "leader_return", "gap")
    history = {key: [float(getattr(e, key) or 0.0) for e in leader.history] for key in keys}
    return {
        "method": name,
        "seed": seed,
        "start": leader.history[0].leader_return,
        "leader_return": last.leader_return,
        "at_pi_y": last.leader_return_at_pi_y,
        "gap": last.gap,
        "ms": ms,
        "history": history,
    }


def run(quick: bool, jobs: int) -> Data:
    """All methods on all instances."""
    seeds, iterations = (SEEDS[:2], 60) if quick else (SEEDS, ITERATIONS)
    tasks = [(name, seed, iterations) for seed in seeds for name in METHODS]
    return {"seeds": list(seeds), "iterations": iterations, "runs": map_tasks(run_method, tasks, jobs, "instances")}


def column(data: Data, method: str, key: str) -> list[float]:
    """One number of every instance; of the method "start", the untrained designer's return."""
    name = "meta" if method == "start" else method
    return [float(r["start" if method == "start" else key]) for r in data["runs"] if r["method"] == name]


CLAIMS = (
    ("pbrl_4", "meta"),
    ("pbrl_10", "meta"),
    ("meta", "start"),
    ("hypergradient", "pbrl_4"),
    ("hypergradient", "pbrl_10"),
    ("pbrl_rising", "pbrl_10"),
)


def label(method: str) -> str:
    """A method's name on the page."""
    return "start line" if method == "start" else METHODS[method][0]


def claims(data: Data) -> str:
    """Orderings, paired and by intervals that do not cross, and the gap."""
    rows = []
    for above, below in CLAIMS:
        one, two = (column(data, name, "leader_return") for name in (above, below))
        difference, (high, low) = paired_difference(one, two), (mean_interval(one), mean_interval(two))
        apart = high.low is not None and low.high is not None and high.low > low.high
        wins = f"{sum(a > b for a, b in zip(one, two, strict=True))} of {len(one)}"
        met = verdict(difference.low is not None and difference.low > 0.0)
        rows.append([f"{label(above)} > {label(below)}", difference.text(3), wins, "yes" if apart else "no", met])
    return markdown_table(["designer's return at Nash", "difference", "instances", "means' intervals apart", ""], rows)


def table(data: Data) -> str:
    """The page's tables."""
    rows = [["start line", mean_interval(column(data, "start", "")).text(), "", "", "", ""]]
    for name, (text, _, _) in METHODS.items():
        nash, own = (mean_interval(column(data, name, key)).text() for key in ("leader_return", "at_pi_y"))
        gaps = column(data, name, "gap")
        gap = f"{np.mean(gaps):.4f}, at most {max(gaps):.4f}"
        ms = f"{np.median(column(data, name, 'ms')):.1f}"
        rows.append([text, nash, own, gap, verdict(max(gaps) < GAP), ms])
    headers = [
        "method", "designer's return at Nash", "at the method's own policies", "NI gap", f"gap under {GAP}", "ms / iteration",
    ]  # fmt: skip
    return "\n\n".join([claims(data), markdown_table(headers, rows), NOTES])


NOTES = """\
Means over instances with 95% bootstrap intervals, differences paired. The hypergradient's and the meta-gradient's own policies
are what they train or solve; of the hypergradient these are the equilibrium, and the gap is rounding. Milliseconds are CPU
time of one thread, an evaluation every 20 iterations (a Nash solve) included. Second-hand figures of the published instance,
which is not known to be ours (Zheng, King, Lu 2026): PANDA 2.55, PBRL 2.35, DA 2.3, meta-gradient 2.2: only their order can be
compared."""


def standing(data: Data) -> list[Standing]:
    """The published order, and the prototype's figures of three instances."""
    means = {name: float(np.mean(column(data, name, "leader_return"))) for name in ("pbrl_4", "meta", "start")}
    text = "PBRL {pbrl_4:.2f}, meta-gradient {meta:.2f}, start {start:.2f}".format(**means)
    order = means["pbrl_4"] > means["meta"] > means["start"]
    quantity = "designer's return at Nash, lam 4 (unverified)"
    best = mean_interval(column(data, "hypergradient", "leader_return"))
    beats = best.estimate > means["pbrl_4"]
    return [
        Standing(
            quantity, "published: PBRL > meta-gradient > start line", text, "same order" if order else "**another**"
        ),
        Standing("the same, hypergradient through the equilibrium", "above PBRL's", best.text(), verdict(beats)),
    ]


def picture(data: Data, path: Path) -> None:
    """Designer's return at Nash, and the gap, over iterations."""
    figure, axes = new_figure(1, 2, 11.0, 4.4)
    for name, (text, colour, _) in METHODS.items():
        histories = [r["history"] for r in data["runs"] if r["method"] == name]
        steps = histories[0]["iteration"]
        draw_band(axes[0, 0], steps, [h["leader_return"] for h in histories], colour, text)
        if name != "hypergradient":
            draw_band(axes[0, 1], steps, np.maximum([h["gap"] for h in histories], 1e-6), colour, None)
    axes[0, 0].set_title("designer's return at the Nash equilibrium of x", fontsize=10)
    axes[0, 1].set_title("Nikaido-Isoda gap of the method's own policies (dotted: 0.01)", fontsize=10)
    axes[0, 1].set_yscale("log")
    axes[0, 1].axhline(GAP, color="black", linewidth=0.8, linestyle=":")
    for panel in axes[0]:
        panel.set_xlabel("iterations")
    axes[0, 0].legend(fontsize=8, frameon=False)
    save_figure(figure, path)
