"""Monte Carlo gradients compared with exact ones: bias from cut episodes, noise of a batch, time saved by batching games.

The gradients are those of F_lam with settings that stand for those of arXiv 2402.06886, section 6.1, but were not checked
against it (tau 0.001, the value penalty with lam 2, the Bellman penalty with lam 7). The problem stacks ten random Stackelberg
games of 100 states (seeds 0 to 9), and the best response is exact. Gradients are taken at two points: the start, with x = 0 and a
uniform follower, and after 100 iterations of Adam with exact gradients and the value penalty.

An estimate from episodes of T steps is unbiased for the gradient of returns that are cut at T. The rest is bias, which is
computed here and not sampled. In these games the next state hardly depends on the current one. For comparison, in the *certain*
games each state and pair of actions leads to its likeliest next state; and in Four Rooms the goal is far away (gamma 0.99, tau
0.005, value penalty with lam 2, trained for 200 iterations).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.agents import BellmanPenalty, MonteCarlo, TabularPBRL, TabularPBRLConfig, ValuePenalty
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.agents.monte_carlo import Sampler
from bilevel_gym.envs.four_rooms import FourRoomsProblem
from bilevel_gym.envs.mdp import (
    StackelbergProblem,
    TabularMDP,
    TabularProblem,
    action_value,
    kernel_world,
    negative_entropy,
    policy_return,
    policy_value,
    random_stackelberg,
    solve_soft,
    stack_problems,
    truncated_return,
    truncated_value,
)

from .figures import panels
from .runs import Data, Runs

SEEDS = tuple(range(10))
STATES, GAMMA, TAU = 100, 0.9, 0.001
LAM = {"value": 2.0, "Bellman": 7.0}
PENALTIES = {"value": ValuePenalty(), "Bellman": BellmanPenalty()}
LENGTHS, ROOMS_LENGTHS, PUBLISHED = (2, 5, 10, 20, 40), (5, 20, 80, 320), 5
BATCHES = (16, 64, 256)
WORLDS, POINTS = ("random", "certain"), ("start", "trained")


def games(n: int, world: str) -> list[StackelbergProblem]:
    """The first n games, as they are or with certain transitions."""
    found = [random_stackelberg(STATES, gamma=GAMMA, tau=TAU, seed=seed, reward_unit=1.0) for seed in SEEDS[:n]]
    if world == "random":
        return found
    identity = torch.eye(STATES, dtype=torch.float64)
    return [dataclasses.replace(game, P=identity[game.P.argmax(-1)]) for game in found]


def trained(problem: TabularProblem, tau: float, iterations: int) -> tuple[Tensor, Tensor]:
    """x and the follower's logits after some iterations with exact gradients."""
    config = TabularPBRLConfig(follower=Softmax(), learning_rate=0.05, tau=tau, keep_best=False, eval_every=10**9)
    leader = TabularPBRL(problem, penalty=ValuePenalty(LAM["value"]), config=config).learn(iterations)
    return torch.from_numpy(leader.last_x), leader.policies()[0].log()


# --- gradients --------------------------------------------------------------------------------------------------------


def exact(
    problem: TabularProblem, star: Tensor, kind: str, length: int | None, tau: float = TAU
) -> Callable[[Tensor, Tensor], Tensor]:
    """The objective -F_lam of each game, ``[N]``, at x and pi_y; returns are cut at ``length`` steps, or whole (None)."""

    def value(mdp: TabularMDP, pi: Tensor, tau: float) -> Tensor:
        return policy_return(mdp, pi, tau) if length is None else truncated_return(mdp, pi, length, tau)

    def function(x: Tensor, pi: Tensor) -> Tensor:
        mdp = problem.follower_mdp(x)
        if kind == "value":
            slack = value(mdp, star, tau) - value(mdp, pi, tau)
        else:
            V = policy_value(mdp, star, tau) if length is None else truncated_value(mdp, star, length - 1, tau)
            gained = ((star - pi) * action_value(mdp, V)).sum(-1)
            slack = (gained + tau * (negative_entropy(pi) - negative_entropy(star))).mean(-1)
        reward = problem.leader_reward(x)
        assert reward is not None
        return value(mdp.with_reward(reward), pi, 0.0) - LAM[kind] * slack

    return function


def sampled(
    problem: StackelbergProblem, mdp: TabularMDP, star: Tensor, kind: str, sampler: Sampler
) -> Callable[[Tensor, Tensor], Tensor]:
    """The objective estimated from episodes; ``mdp`` is M(x) without its graph."""

    def function(x: Tensor, pi: Tensor) -> Tensor:
        kernel = problem.kernel(x)
        world = kernel_world(kernel, mdp)
        played = sampler.play(world, pi)
        slack = PENALTIES[kind].sampled(world, (pi,), (star,), TAU, sampler, played)
        return sampler.policy_return(world.with_reward(kernel.r_leader), pi, played) - LAM[kind] * slack

    return function


def gradients(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, rows: int) -> list[Tensor]:
    """The gradients in x and in y, ``[rows, ...]``, with one row per game."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    found = torch.autograd.grad(function(x, torch.softmax(y, -1)).sum(), [x, y])
    return [g.reshape(rows, -1) for g in found]


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of rows, averaged."""
    return float(torch.nn.functional.cosine_similarity(a, b, -1).mean())


def relative_error(a: Tensor, b: Tensor) -> float:
    """The relative error |a - b| / |b| of rows, averaged."""
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).mean())


def truncation(
    problem: TabularProblem, x: Tensor, y: Tensor, kind: str, tau: float, lengths: tuple[int, ...], n: int
) -> list[Data]:
    """Compare the expected gradient of each episode length with the gradient of whole returns."""
    star = solve_soft(problem.follower_mdp(x), tau).pi
    whole, rows = gradients(exact(problem, star, kind, None, tau), x, y, n), []
    for length in lengths:
        row: Data = {"length": length}
        cut_short = gradients(exact(problem, star, kind, length, tau), x, y, n)
        for name, cut, all_ in zip("xy", cut_short, whole, strict=True):
            row |= {f"cosine_{name}": cosine(cut, all_), f"error_{name}": relative_error(cut, all_)}
        rows.append(row)
    return rows


def noise(problem: StackelbergProblem, x: Tensor, y: Tensor, kind: str, estimator: MonteCarlo, repeats: int) -> Data:
    """The spread of estimates relative to the exact gradient's norm, and the direction of one estimate."""
    mdp = problem.follower_mdp(x)
    star = solve_soft(mdp, TAU).pi
    whole = gradients(exact(problem, star, kind, None), x, y, len(y))
    function = sampled(problem, mdp, star, kind, Sampler(estimator, torch.Generator().manual_seed(0)))
    drawn = [gradients(function, x, y, len(y)) for _ in range(repeats)]
    row: Data = {"length": estimator.length, "batch": estimator.batch, "reduced": estimator.baseline}
    for i, name in enumerate("xy"):
        each = torch.stack([d[i] for d in drawn])
        spread = each.var(0).sum(-1).sqrt() / whole[i].norm(dim=-1)
        row |= {f"noise_{name}": float(spread.mean()), f"cosine_{name}": cosine(each, whole[i].expand_as(each))}
    return row


def cost(n: int, repeats: int) -> Data:
    """CPU milliseconds for one estimate of the value penalty's gradients of n games, in one call and in n calls."""
    sampler = Sampler(MonteCarlo(PUBLISHED, 16), torch.Generator().manual_seed(0))

    def ready(problem: StackelbergProblem, y: Tensor) -> Callable[[], Any]:
        x = problem.start_x()
        mdp = problem.follower_mdp(x)
        star = solve_soft(mdp, TAU).pi
        return lambda: gradients(sampled(problem, mdp, star, "value", sampler), x, y, y[..., 0, 0].numel())

    alone, uniform = games(n, "random"), torch.zeros(STATES, 5, dtype=torch.float64)
    calls = {
        "together": [ready(stack_problems(alone).in_units(1.0), uniform.expand(n, -1, -1))],
        "apart": [ready(game, uniform) for game in alone],
    }
    took = {}
    for name, each in calls.items():
        for call in each:
            call()
        start = time.process_time()
        for call in each * repeats:
            call()
        took[name] = (time.process_time() - start) / repeats * 1e3
    return took


def run(quick: bool, jobs: int) -> Data:
    """Measure truncation in both kinds of games, noise in the random ones, and cost."""
    n, repeats = (2, 5) if quick else (len(SEEDS), 40)
    cut, spread = [], []
    for world in WORLDS:
        problem = stack_problems(games(n, world)).in_units(1.0)
        uniform = torch.zeros(n, STATES, 5, dtype=torch.float64)
        points = {"start": (problem.start_x(), uniform), "trained": trained(problem, 0.02, 20 if quick else 100)}
        for kind in LAM:
            for where, (x, y) in points.items():
                about = {"world": world, "penalty": kind, "at": where}
                cut += [about | row for row in truncation(problem, x, y, kind, TAU, LENGTHS, n)]
                if world == "random":
                    plain = MonteCarlo(PUBLISHED, 16, baseline=False, paired=False)
                    tried = [plain, *(MonteCarlo(PUBLISHED, batch) for batch in BATCHES), MonteCarlo(20, 16)]
                    spread += [about | noise(problem, x, y, kind, estimator, repeats) for estimator in tried]
    rooms = FourRoomsProblem().in_units(1.0)
    points = {
        "start": (rooms.start_x(), torch.zeros(2, rooms.grid.n_cells, 4, dtype=torch.float64)),
        "trained": trained(rooms, rooms.tau, 20 if quick else 200),
    }
    for where, (x, y) in points.items():
        about = {"world": "Four Rooms", "penalty": "value", "at": where}
        cut += [about | row for row in truncation(rooms, x, y, "value", rooms.tau, ROOMS_LENGTHS, 1)]
    return {"seeds": list(SEEDS[:n]), "truncation": cut, "noise": spread, "cost": cost(n, 5 if quick else 100)}


# --- reading ----------------------------------------------------------------------------------------------------------


@panels(1, 2, 9.5, 3.8)
def picture(data: Data, truncated: Any, noisy: Any) -> None:
    """Draw truncation (left) and noise (right) at the trained point."""
    cut, noises = Runs(data["truncation"]), Runs(data["noise"])
    colours = {"value": "#1f77b4", "Bellman": "#d62728"}
    for kind, colour in colours.items():
        for world, style in zip(WORLDS, ("-", "--"), strict=True):
            rows = cut(world=world, penalty=kind, at="trained")
            xs, label = rows["length"], f"{kind}, {world} transitions"
            truncated.plot(xs, rows["cosine_x"], "o" + style, color=colour, label=label, ms=3)
        for name, style in zip("xy", ("-", "--"), strict=True):
            rows = noises(penalty=kind, at="trained", length=PUBLISHED, reduced=True)
            xs, label = rows["batch"], f"{kind}, in {name}"
            noisy.loglog(xs, rows[f"noise_{name}"], "o" + style, color=colour, label=label, ms=3)
    truncated.set(xlabel="steps of an episode", ylabel="cosine with the whole gradient, in x")
    noisy.set(xlabel="episodes a batch, of five steps", ylabel="noise / whole gradient")
    noisy.set_xticks(BATCHES, labels=[str(batch) for batch in BATCHES])
    noisy.minorticks_off()
    for panel in (truncated, noisy):
        panel.legend(fontsize=8, frameon=False)
