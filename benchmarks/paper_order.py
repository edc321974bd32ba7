"""The paper's ordering with its own inner solver: value above Bellman above the independent gradient.

Four random Stackelberg games (seeds 10 to 13, on which nothing was chosen; 100 states, 5 actions each, gamma 0.9), Monte Carlo
gradients of 16 episodes of five steps, plain steps on x and y, tau 0.001, the value penalty with lam 2 and one inner step,
the Bellman penalty with lam 7 and ten (after arXiv 2402.06886, section 6.1, not checked against it). The inner solver is the
policy gradient with the step size of x and y, as in the paper; the page also has mirror descent, which ``monte_carlo`` uses.
The step size is 0.4 for 1,000 iterations, or 0.1 for 2,000.
"""

from __future__ import annotations

from typing import Any

import torch

from bilevel_gym.agents import (
    BellmanPenalty,
    IndependentPolicyGradient,
    MirrorDescent,
    MonteCarlo,
    PolicyGradient,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
)
from bilevel_gym.agents.baselines.independent_policy_gradient import IndependentPolicyGradientConfig
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.envs.mdp import random_stackelberg, stack_problems

from .monte_carlo import game_records
from .runs import Data, Runs, grid, run_all
from .statistics import paired_difference

SEEDS = (10, 11, 12, 13)
STATES, TAU, LENGTH, BATCH = 100, 0.001, 5, 16
RATES = {0.4: 1000, 0.1: 2000}
"""Step sizes of x and y, and the number of iterations with each."""
METHODS = {
    "value": ("PBRL, value, lam 2, T 1", ValuePenalty(lam=2.0), 1),
    "bellman": ("PBRL, Bellman, lam 7, T 10", BellmanPenalty(lam=7.0), 10),
    "independent": ("independent gradient", None, 0),
}
"""Label, penalty and number of inner steps."""
SOLVERS = {"policy_gradient": "policy gradient, the paper's", "mirror_descent": "mirror descent"}
ORDER = (("value", "bellman"), ("bellman", "independent"))
KEYS = {"at_pi_y": "J_L(x, pi_y)", "leader_return": "F_0"}


def leader(method: str, solver: str, rate: float, problem: Any) -> ExactLeader:
    """A leader of the stacked games, with the step size times their number, because the objective of a stack is their mean."""
    _, penalty, steps = METHODS[method]
    shared: dict[str, Any] = {
        "learning_rate": rate * len(problem.P),
        "optimizer_class": torch.optim.SGD,
        "tau": TAU,
        "follower": Softmax(),
        "estimator": MonteCarlo(LENGTH, BATCH),
        "keep_best": False,
        "eval_every": 10**9,
    }
    if penalty is None:
        return IndependentPolicyGradient(problem, config=IndependentPolicyGradientConfig(**shared))
    oracle = (
        MirrorDescent(iterations=steps) if solver == "mirror_descent" else PolicyGradient(step=rate, iterations=steps)
    )
    return TabularPBRL(problem, penalty=penalty, oracle=oracle, config=TabularPBRLConfig(**shared))


def run_one(method: str, solver: str, rate: float, n: int, quick: bool) -> Data:
    """Run one method on all games at once; returns its exact records at the end."""
    problem = stack_problems(
        [random_stackelberg(STATES, gamma=0.9, tau=TAU, seed=seed) for seed in SEEDS[:n]]
    ).in_units(1.0)
    made = leader(method, solver, rate, problem)
    made.learn(20 if quick else RATES[rate])
    return game_records(problem, torch.from_numpy(made.last_x), made.policies())


def run(quick: bool, jobs: int) -> Data:
    """Run every method with every inner solver at every rate; the independent gradient has no inner solver."""
    n = 2 if quick else len(SEEDS)
    cells = [
        cell
        for cell in grid(rate=RATES, solver=SOLVERS, method=METHODS)
        if cell["method"] != "independent" or cell["solver"] == "policy_gradient"
    ]
    return {"seeds": list(SEEDS[:n]), "runs": run_all(run_one, cells, jobs, "methods", n=n, quick=quick)}


# --- reading ----------------------------------------------------------------------------------------------------------


def values(runs: Runs, method: str, solver: str, rate: float, key: str) -> list[float]:
    """One number for every game."""
    found = runs(method=method, rate=rate) if method == "independent" else runs(method=method, solver=solver, rate=rate)
    return [float(value) for value in found.one[key]]


def differences(runs: Runs, solver: str, rate: float, key: str) -> list[Any]:
    """The difference between each method and the next in the published order, paired by game."""
    pairs = [[values(runs, name, solver, rate, key) for name in pair] for pair in ORDER]
    return [paired_difference(above, below) for above, below in pairs]
