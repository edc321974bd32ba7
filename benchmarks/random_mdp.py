"""Random MDP: how fast the hypergradient vanishes, exact and tracked.

The published problem (Yang, Gao and Yuan, arXiv 2405.19697): 10 states, 5 actions, gamma 0.5, tau 1, x in R^100, start standard
normal, ten instances (seeds 0 to 9). Every method runs until the hypergradient's norm is under 1e-9, 3000 iterations at most.
Published are the figures of that paper's own code: step 8e-3, one adjoint step and ten sweeps an iteration.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from bilevel_gym.agents import Hypergradient, HypergradientConfig, SoBiRL, SoBiRLConfig
from bilevel_gym.agents.leaders.hypergradient import soft_leader_return
from bilevel_gym.envs.mdp import SoftOptimum
from bilevel_gym.envs.random_mdp import RandomMDPProblem

from .figures import panels
from .runs import Data, Runs, grid, run_all

SEEDS = tuple(range(10))
ITERATIONS, NORM, CPU_SECONDS = 3000, 1e-9, 2.0
STEPS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0)
PUBLISHED = {0: 75.7, 500: 0.18, 3000: 3.4e-10}
"""Norms of the published code's estimate on one of its instances, by iteration; at 0 its adjoint is a random draw."""
PUBLISHED_CPU = 88.0


@dataclass(frozen=True)
class Method:
    """A method: the leader (None for L-BFGS on the exact hypergradient), its step size, and its colour in the picture."""

    label: str
    leader: type[Hypergradient] | type[SoBiRL] | None
    step: float | None
    colour: str


METHODS = {
    "exact_published": Method("exact hypergradient, step 8e-3 (published)", Hypergradient, 8e-3, "tab:blue"),
    "exact": Method("exact hypergradient, step 0.2", Hypergradient, 0.2, "tab:cyan"),
    "sobirl_published": Method("SoBiRL, step 8e-3, 1 + 10 inner (published)", SoBiRL, 8e-3, "tab:red"),
    "sobirl": Method("SoBiRL, step 0.2, 1 + 10 inner", SoBiRL, 0.2, "tab:orange"),
    "lbfgs": Method("exact hypergradient, L-BFGS (scipy)", None, None, "black"),
}


def exact_gradient(
    problem: RandomMDPProblem, x: NDArray[np.float64], warm: SoftOptimum | None = None
) -> tuple[float, NDArray[np.float64], SoftOptimum]:
    """F(x), dF/dx from one follower solve and one adjoint solve, and the follower."""
    z = torch.tensor(x, requires_grad=True)
    value, follower = soft_leader_return(problem, z, problem.tau, warm)
    (gradient,) = torch.autograd.grad(value, z)
    return float(value.detach()), gradient.numpy(), follower


def descend(problem: RandomMDPProblem, method: Method) -> tuple[list[float], list[float], NDArray[np.float64]]:
    """Plain gradient steps: the norms of the method's hypergradient, CPU seconds at each, and the last x."""
    assert method.leader is not None
    settings: dict[str, Any] = {"optimizer_class": torch.optim.SGD, "eval_every": 10**9, "keep_best": False}
    config = HypergradientConfig if method.leader is Hypergradient else SoBiRLConfig
    leader = method.leader(problem, config=config(learning_rate=method.step, tau=problem.tau, **settings))  # type: ignore[arg-type]
    norms, seconds, x, start = [], [], leader.last_x, time.process_time()

    def note(_: Any) -> bool:
        nonlocal x
        before, x = x, leader.last_x
        norms.append(float(np.linalg.norm(x - before)) / float(method.step or 1.0))
        seconds.append(time.process_time() - start)
        return norms[-1] > NORM

    leader.learn(ITERATIONS, note)
    return norms, seconds, x


def quasi_newton(problem: RandomMDPProblem) -> tuple[list[float], list[float], NDArray[np.float64]]:
    """scipy's L-BFGS-B: the norms, CPU seconds and the last x; one gradient counts as one iteration."""
    norms, seconds, start = [], [], time.process_time()
    follower: SoftOptimum | None = None

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal follower
        value, gradient, follower = exact_gradient(problem, x, follower)
        norms.append(float(np.linalg.norm(gradient)))
        seconds.append(time.process_time() - start)
        return -value, -gradient

    options = {"gtol": NORM / 10.0, "ftol": 0.0, "maxiter": ITERATIONS}
    found = minimize(objective, problem.start_x().numpy(), jac=True, method="L-BFGS-B", options=options)
    return norms, seconds, np.asarray(found.x)


def fitted_rate(norms: list[float]) -> float:
    """The convergence factor per iteration, from a line fitted to the log norm between 0.1 and 1e-9."""
    values = np.asarray(norms)
    tail = np.flatnonzero((values < 0.1) & (values > NORM))
    return float(np.exp(np.polyfit(tail, np.log(values[tail]), 1)[0])) if len(tail) > 2 else float("nan")


def run_cell(seed: int, method: str) -> Data:
    """Run one method on one instance; its curve has at most 120 points."""
    problem, chosen = RandomMDPProblem(seed=seed).in_units(1.0), METHODS[method]
    norms, seconds, x = quasi_newton(problem) if chosen.leader is None else descend(problem, chosen)
    shown = np.unique(np.linspace(0, len(norms) - 1, 120).astype(int))
    return {
        "iterations": len(norms),
        "cpu_seconds": seconds[-1],
        "first_norm": norms[0],
        "last_norm": norms[-1],
        "exact_norm_at_last_x": float(np.linalg.norm(exact_gradient(problem, x)[1])),
        "distance_to_optimum": float(np.linalg.norm(x - problem.optimum().x.numpy())),
        "rate": fitted_rate(norms) if chosen.step is not None else None,
        "curve": {
            "iteration": shown.tolist(),
            "norm": [norms[i] for i in shown],
            "cpu_seconds": [seconds[i] for i in shown],
        },
    }


def try_step(seed: int, step: float) -> Data:
    """Iterations of the exact hypergradient with this step size; None if it did not reach the target."""
    norms, _, _ = descend(RandomMDPProblem(seed=seed).in_units(1.0), Method("", Hypergradient, step, ""))
    return {"iterations": len(norms) if norms[-1] <= NORM else None}


def run(quick: bool, jobs: int) -> Data:
    """Run every method on every instance, and the exact hypergradient with every step size."""
    seeds = SEEDS[:2] if quick else SEEDS
    runs = run_all(run_cell, grid(seed=seeds, method=METHODS), jobs, "random_mdp")
    steps = run_all(try_step, grid(seed=seeds, step=STEPS), jobs, "steps")
    return {"seeds": list(seeds), "runs": runs, "steps": steps}


def reached(runs: Runs) -> bool:
    """Whether a method meets the target on every instance."""
    quick = max(runs["cpu_seconds"]) < CPU_SECONDS and max(runs["iterations"]) <= ITERATIONS
    return bool(quick and max(runs["exact_norm_at_last_x"]) < NORM)


@panels(1, 2, 11.0, 4.2)
def picture(data: Data, by_iteration: Any, by_second: Any) -> None:
    """Draw the norm over iterations and over CPU seconds, with a thin line per instance."""
    for run in data["runs"]:
        method = METHODS[run["method"]]
        label = method.label if run["seed"] == data["seeds"][0] else None
        style: dict[str, Any] = {"color": method.colour, "linewidth": 0.8, "alpha": 0.7}
        curve = run["curve"]
        by_iteration.plot(np.asarray(curve["iteration"]) + 1, curve["norm"], label=label, **style)
        by_second.plot(curve["cpu_seconds"], curve["norm"], **style)
    points = {"marker": "x", "linestyle": "none", "color": "0.3"}
    by_iteration.plot([max(k, 1) for k in PUBLISHED], list(PUBLISHED.values()), label="published code", **points)
    by_second.plot([PUBLISHED_CPU], [PUBLISHED[3000]], **points)
    for panel, label in ((by_iteration, "iteration"), (by_second, "CPU seconds")):
        panel.set(xscale="log", yscale="log", xlabel=label)
        panel.axhline(NORM, color="0.6", linestyle=":", linewidth=1.0)
    by_iteration.set_ylabel("norm of the hypergradient")
    by_iteration.legend(fontsize=7, frameon=False, loc="lower left")
