"""Linear-quadratic Stackelberg games: the exact hypergradient, and PBRL with SAC, TD3 and PPO on rollouts alone.

Exact: `LQStackelberg-v0` and ten random games (three states, a leader of two inputs and a follower of three, X the box
[-1, 1]^6), Adam on the hypergradient through Riccati's equation from the start, beside quasi-Newton ascent from nine points.
Sampled: `LQStackelberg-v0` under 100 000 steps, three seeds an algorithm. All steps count, those of both followers, of the
leader's episodes and of the records. Neither follower nor leader sees the model; the records do.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import stable_baselines3
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from bilevel_gym.agents import PBRL, Hypergradient, HypergradientConfig, Linear, PBRLConfig, Rollouts, ValuePenalty
from bilevel_gym.agents.leader import Leader
from bilevel_gym.envs.mdp import LinearQuadraticProblem, random_linear_quadratic, steering_game

from .figures import draw_band, on_grid, panels
from .runs import Data, Runs, cpu_seconds, grid, history, outcome, run_all, spent

STEERING = "LQStackelberg-v0"
GAMES = (STEERING, *(f"random {seed}" for seed in range(10)))
ITERATIONS = 400
RATE = Linear(0.1, 1e-6)
STARTS = 9
STATIONARY = 1e-8
"""Target for the norm of ``x - Proj(x + gradient)`` at the end."""
TARGETS = {"SAC": 0.9, "TD3": 0.9}
"""Targets for the share of the exact improvement over the start, at the last x."""
ALGORITHMS = {"SAC": "#d62728", "TD3": "#9467bd", "PPO": "#1f77b4"}
LEADER_SEEDS = (10, 11, 12)
ASKED = {"SAC": 94_000, "TD3": 188_000, "PPO": 94_000}
"""Environment steps: TD3's followers need twice as many to keep up with x."""
BUDGET = 200_000
LAM = 3.0
UNIT = 0.75
"""Unit of x in this game, half of X's width: steps from 0.1 to 0.02 and noise of 1, in x itself."""
CONFIG = PBRLConfig(
    n_envs=16,
    follower_steps=512,
    estimator=Rollouts(12),
    learning_rate=Linear(0.1 / UNIT, 0.02 / UNIT),
    x_noise=1.0 / UNIT,
    averaging=0.6,
    eval_every=5,
)

Floats = NDArray[np.float64]


def game_of(name: str) -> LinearQuadraticProblem:
    """The game with this name."""
    return (
        steering_game().in_units(1.0)
        if name == STEERING
        else random_linear_quadratic(3, 2, seed=int(name.split()[1])).in_units(1.0)
    )


def stationarity(problem: LinearQuadraticProblem, x: torch.Tensor) -> float:
    """The norm of ``x - Proj(x + dF_0/dx)``."""
    return float((x - problem.project(x + problem.leader_return_gradient(x))).norm())


def penalised_value(problem: LinearQuadraticProblem, x: torch.Tensor, lam: float) -> torch.Tensor:
    """The value max_F J_L(x, F) - lam ( J_F(x, F*) - J_F(x, F) ), whose gradient follows from the envelope theorem."""
    F, best = problem.best_response(x, 1.0 / lam).F, problem.best_response(x).F
    slack = problem.follower_return(x, best) - problem.follower_return(x, F)
    return problem.leader_return(x, F) - lam * slack


def quasi_newton(problem: LinearQuadraticProblem, lam: float | None) -> list[Floats]:
    """L-BFGS-B ascent on F_0, or on the penalised value, from the start and from random points; the best comes first."""

    def objective(z: Floats) -> tuple[float, Floats]:
        x = torch.tensor(z, requires_grad=True)
        value = problem.return_at_best_response(x) if lam is None else penalised_value(problem, x, lam)
        (gradient,) = torch.autograd.grad(-value, [x])
        return -float(value.detach()), gradient.numpy()

    low, high = problem.leader_set.low.numpy(), problem.leader_set.high.numpy()
    starts = [problem.start_x().numpy(), *np.random.default_rng(1).uniform(low, high, (STARTS - 1, len(low)))]
    bounds = list(zip(low.tolist(), high.tolist(), strict=True))
    options = {"ftol": 0.0, "gtol": 1e-10}
    found = [minimize(objective, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for x in starts]
    return [answer.x for answer in sorted(found, key=lambda answer: float(answer.fun))]


def run_exact(game: str, iterations: int) -> Data:
    """Run the hypergradient and quasi-Newton ascent on one game."""
    problem, norms, values = game_of(game), [], []

    def follow(leader: Leader) -> None:
        x = torch.from_numpy(leader.last_x)
        values.append(float(problem.return_at_best_response(x)))
        norms.append(stationarity(problem, x))

    config = HypergradientConfig(learning_rate=RATE, eval_every=iterations, keep_best=False)
    Hypergradient(problem, config=config).learn(1)  # loads what is loaded lazily
    seconds = cpu_seconds(Hypergradient(problem, config=config).learn, iterations)
    leader = Hypergradient(problem, config=config).learn(iterations, callback=follow)
    others = [float(problem.return_at_best_response(torch.from_numpy(x))) for x in quasi_newton(problem, None)]
    x, start = torch.from_numpy(leader.last_x), problem.start_x()
    return {
        "start": float(problem.return_at_best_response(start)),
        "end": values[-1],
        "optimum": others[0],
        "quasi_newton": others,
        "stationarity_start": stationarity(problem, start),
        "stationarity": norms[-1],
        "residual": problem.best_response(x).residual,
        "seconds": seconds,
        "values": values,
        "norms": norms,
        "x": x.tolist(),
    }


def run_sampled(method: str, seed: int, quick: bool) -> Data:
    """Run PBRL with one algorithm and one seed."""
    follower, problem = getattr(stable_baselines3, method), steering_game()
    start = time.process_time()
    leader = PBRL(f"bilevel_gym/{STEERING}", follower, penalty=ValuePenalty(lam=LAM), config=CONFIG, seed=seed)
    leader.learn(8_000 if quick else ASKED[method])
    seconds = time.process_time() - start
    assert leader.num_timesteps <= BUDGET, f"{method}: {leader.num_timesteps} steps"
    curves = history(leader, "steps", "leader_return")
    curves["steps"].insert(0, 0.0)
    curves["leader_return"].insert(0, float(problem.return_at_best_response(problem.start_x())))
    about = {"seconds": seconds, "x": leader.last_x.tolist(), "history": curves}
    return outcome(leader) | spent(leader) | about


def run(quick: bool, jobs: int) -> Data:
    """Run every game and every algorithm."""
    names, iterations = (GAMES[:3], 100) if quick else (GAMES, ITERATIONS)
    seeds = (0,) if quick else LEADER_SEEDS
    exact = run_all(run_exact, grid(game=names), jobs, "exact games", iterations=iterations)
    sampled = run_all(run_sampled, grid(method=ALGORITHMS, seed=seeds), jobs, "sampled runs", quick=quick)
    problem = steering_game()
    x = torch.from_numpy(quasi_newton(problem, LAM)[0])
    penalised = {"x": x.tolist(), "leader_return": float(problem.return_at_best_response(x))}
    return {"lam": LAM, "exact": exact, "sampled": sampled, "penalised": penalised}


# --- reading ----------------------------------------------------------------------------------------------------------


def share(data: Data, value: float) -> float:
    """The share of the way from the start to the optimum."""
    first = data["exact"][0]
    return (value - float(first["start"])) / (float(first["optimum"]) - float(first["start"]))


def shortfall(data: Data) -> float:
    """The hypergradient's distance to the best quasi-Newton ascent, on the worst game."""
    return max(float(r["optimum"] - r["end"]) for r in data["exact"])


def shares(data: Data, method: str, key: str = "last") -> list[float]:
    """The share of the way to the optimum for each run of an algorithm."""
    return [share(data, value) for value in Runs(data["sampled"])(method=method)[key]]


@panels(1, 2, 11.5, 4.2)
def picture(data: Data, exact: Any, sampled: Any) -> None:
    """Draw how far the hypergradient is from stationarity (left) and F_0 of the sampled leaders against steps (right)."""
    for r in data["exact"]:
        own = r["game"] == STEERING
        label = STEERING if own else ("random games" if r["game"] == GAMES[1] else None)
        look: dict[str, Any] = {"color": "black" if own else "#1f77b4", "alpha": 1.0 if own else 0.4}
        exact.semilogy(range(1, len(r["norms"]) + 1), r["norms"], linewidth=1.2, label=label, **look)
    exact.set(xlabel="iteration", ylabel=r"$\|x - Proj(x + dF_0/dx)\|$", title="hypergradient, exact")
    exact.legend(fontsize=8, frameon=False)
    for method, colour in ALGORITHMS.items():
        steps, (curves,) = on_grid(Runs(data["sampled"])(method=method)["history"], 60, "leader_return")
        draw_band(sampled, steps / 1e3, curves, colour, method)
    sampled.axhline(data["exact"][0]["optimum"], color="black", linestyle="-.", linewidth=1.0, label="optimum")
    sampled.axhline(data["penalised"]["leader_return"], color="0.5", linestyle=":", label="penalised optimum")
    title = f"PBRL on {STEERING}, lam = {data['lam']:g}"
    sampled.set(xlabel="environment steps, all counted (thousands)", ylabel=r"$F_0(x)$", title=title)
    sampled.legend(fontsize=8, frameon=False, loc="lower right")
