"""The exact penalty method: one step against Algorithm 1, rates in lam, and that it learns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from stable_baselines3.common.logger import configure
from torch import Tensor

from bilevel_gym.agents import (
    BellmanPenalty,
    Geometric,
    MirrorDescent,
    PolicyGradient,
    SoftPolicyIteration,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.followers import Oracle
from bilevel_gym.agents.held_policies import Direct, Softmax, Solved
from bilevel_gym.agents.penalties import Penalty
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    LeaderSet,
    TabularMDP,
    TabularProblem,
    policy_return,
    random_stackelberg,
    solve_soft,
    start_value,
    suboptimality,
)
from bilevel_gym.envs.mdp.simplex import project_simplex
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import (
    F64,
    PROBLEMS,
    assert_gradient,
    autograd,
    live_weights,
    numerical_gradient,
    random_mdp,
    random_x,
    relative_error,
    slope,
    true_bellman_penalty,
    true_value_penalty,
)

TAU, LAM = 0.3, 4.0


def one_step(problem: TabularProblem, penalty: Penalty, follower: Any, alpha: float, x0: Tensor) -> TabularPBRL:
    config = TabularPBRLConfig(
        follower=follower, learning_rate=alpha, tau=TAU, optimizer_class=torch.optim.SGD, keep_best=False
    )
    return TabularPBRL(problem, penalty=penalty, config=config, x0=x0.numpy()).learn(1)


@pytest.mark.parametrize("kind", ["value", "Bellman"])
@pytest.mark.parametrize("follower", [Softmax(), Direct()])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_step_is_algorithm_1(name: str, follower: Softmax | Direct, kind: str) -> None:
    """z_1 = Proj[z_0 - alpha grad F_lam(z_0)], F_lam differentiated numerically with the best response solved anew."""
    problem = PROBLEMS[name](1)
    x_0 = random_x(problem, 1)
    mdp_0 = problem.follower_mdp(x_0)
    y_0 = follower.start(mdp_0)
    penalty = ValuePenalty(LAM) if kind == "value" else BellmanPenalty(LAM)

    def objective(x: Tensor, y: Tensor) -> Tensor:
        mdp = problem.follower_mdp(x)
        pi = follower.policy(y, mdp)
        true = (
            true_value_penalty(mdp, pi, TAU)
            if kind == "value"
            else true_bellman_penalty(mdp, pi, TAU, live_weights(mdp))
        )
        return LAM * problem.over_contexts(true) - problem.leader_return(x, pi)

    alpha = 1e-3
    leader = one_step(problem, penalty, follower, alpha, x_0)
    assert_gradient(
        (x_0 - torch.from_numpy(leader.last_x)) / alpha, numerical_gradient(lambda x: objective(x, y_0), x_0)
    )

    assert leader.held is not None
    (y_1,) = leader.held.ys
    g_y = numerical_gradient(lambda y: objective(x_0, y), y_0)
    if isinstance(follower, Softmax):
        assert_gradient((y_0 - y_1.detach()) / alpha, g_y)
    else:  # the projection forgets a constant in each row, and with it the mistake of Bellman's formula in that direction
        expected = project_simplex(y_0 - alpha * g_y, mdp_0.mask, follower.floor)
        assert_gradient((y_0 - y_1.detach()) / alpha, (y_0 - expected) / alpha)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_step_with_a_solved_follower_descends_the_minimum_over_y(name: str) -> None:
    """min_y F_lam(x, y) = lam V*(rho; r_f) - lam V*(rho; r_f + r_l/lam): each maximum solved anew."""
    problem = PROBLEMS[name](2)
    x_0 = random_x(problem, 2)

    def minimum(x: Tensor) -> Tensor:
        mdp, reward = problem.follower_mdp(x), problem.leader_reward(x)
        assert reward is not None
        both = mdp.with_reward(mdp.r + reward / LAM)
        best, joint = (start_value(m, solve_soft(m, TAU, tol=1e-13).V) for m in (mdp, both))
        return LAM * problem.over_contexts(best - joint)

    leader = one_step(problem, ValuePenalty(LAM), Solved(), 1e-3, x_0)
    assert_gradient((x_0 - torch.from_numpy(leader.last_x)) / 1e-3, numerical_gradient(minimum, x_0))

    def without_the_best_response(x: Tensor) -> Tensor:
        mdp = problem.follower_mdp(x)
        pi = Solved().solve(mdp, problem.leader_reward(x), LAM, TAU, None)[0].detach()  # type: ignore[arg-type]
        return -problem.leader_return(x, pi) - LAM * problem.over_contexts(policy_return(mdp, pi, TAU))

    assert relative_error(autograd(without_the_best_response, x_0), numerical_gradient(minimum, x_0)) > 0.1


def test_logged_stationarity_is_the_projected_gradient(tmp_path: Path) -> None:
    problem = PROBLEMS["terminal, masked"](3)
    config = TabularPBRLConfig(
        follower=Direct(learning_rate=0.02), learning_rate=0.05, tau=TAU, optimizer_class=torch.optim.SGD, eval_every=1
    )
    x_0 = np.array([2.0, -2.0, 2.0, 0.5])  # on the boundary: some of the gradient is projected away
    leader = TabularPBRL(problem, penalty=ValuePenalty(LAM), config=config, x0=x_0)
    leader.set_logger(configure(str(tmp_path), ["csv"]))
    y_0 = Direct().start(problem.follower_mdp(torch.from_numpy(x_0)))
    leader.learn(1)
    assert leader.held is not None
    (y_1,) = leader.held.ys
    moved = np.linalg.norm(
        np.concatenate([(x_0 - leader.last_x) / 0.05, ((y_0 - y_1.detach()) / 0.02).numpy().ravel()])
    )
    rows = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True, deletechars="")
    assert rows["leader/stationarity"][-1] == pytest.approx(moved, rel=1e-9)


@pytest.mark.parametrize("tau", [0.3, 0.1])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_solved_follower_s_gap_falls_as_lam_to_minus_two(name: str, tau: float) -> None:
    problem = PROBLEMS[name](4)
    x = random_x(problem, 4)
    mdp, reward = problem.follower_mdp(x), problem.leader_reward(x)
    assert reward is not None
    optimum, lams = solve_soft(mdp, tau, tol=1e-14, max_iterations=20), np.geomspace(30.0, 1000.0, 8) / tau
    gaps = [
        float(problem.over_contexts(suboptimality(mdp, Solved().solve(mdp, reward, lam, tau, None)[0], tau, optimum)))
        for lam in lams
    ]
    assert slope(np.log(lams), np.log(gaps)) == pytest.approx(-2.0, abs=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_without_entropy_the_gap_is_zero_beyond_a_finite_lam(seed: int) -> None:
    problem = random_stackelberg(5, 3, 3, sparsity=0.2, seed=seed)
    x = random_x(problem, seed)
    mdp, reward = problem.follower_mdp(x), problem.leader_reward(x)
    optimum = solve_soft(mdp, 0.0)
    gaps = [
        float(suboptimality(mdp, Solved().solve(mdp, reward, float(lam), 0.0, None)[0], 0.0, optimum))
        for lam in np.geomspace(0.1, 1e4, 40)
    ]
    assert gaps[0] > 1e-3
    assert max(gaps[-5:]) < 1e-12
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(gaps))


def test_the_penalised_optimum_nears_the_optimum_as_one_over_lam() -> None:
    problem, tau = TwoStateProblem(gamma=0.9), 0.1
    x_star, errors, lams = float(problem.optimum(tau).x), [], [20.0, 60.0, 180.0]
    for lam in lams:
        config = TabularPBRLConfig(tau=tau, learning_rate=Geometric(0.1, 1e-4), keep_best=False, eval_every=1000)
        leader = TabularPBRL(problem, penalty=ValuePenalty(lam), config=config).learn(250)
        errors.append(abs(float(leader.last_x[0]) - x_star))
    assert errors[-1] < 0.02
    assert slope(np.log(lams), np.log(errors)) == pytest.approx(-1.0, abs=0.1)


@pytest.mark.parametrize(
    ("penalty", "follower"),
    [
        pytest.param(ValuePenalty(20.0), Direct(), marks=pytest.mark.long),
        (ValuePenalty(20.0), Solved()),
        (BellmanPenalty(100.0), Softmax()),
    ],
)
def test_the_fixed_point_is_the_penalised_optimum(penalty: Penalty, follower: Softmax | Direct | Solved) -> None:
    """min over x and y of F_lam in closed form, by scipy; Adam must stop there and nowhere else, on the simplex too."""
    problem, tau, lam = TwoStateProblem(gamma=0.9), 0.1, penalty.lam_at(1.0)
    closed = problem.value_penalty if isinstance(penalty, ValuePenalty) else problem.bellman_penalty

    def objective(z: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        x, y = torch.tensor([z[0]]), torch.sigmoid(torch.tensor(z[1:]))
        pi = torch.stack([1 - y, y], -1)
        return float(lam * closed(x, pi, tau) - problem.leader_return(x, pi))

    best = minimize(objective, np.array([0.5, 0.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    config = TabularPBRLConfig(
        follower=follower, tau=tau, learning_rate=Geometric(0.1, 0.01), keep_best=False, eval_every=1000
    )
    leader = TabularPBRL(problem, penalty=penalty, config=config).learn(800)
    assert leader.last_x[0] == pytest.approx(best.x[0], abs=1e-5)
    (pi_y,) = leader.method.policies(leader.state, problem.follower_mdp(leader.state.x.detach()))
    torch.testing.assert_close(pi_y.detach()[:, 1], torch.sigmoid(torch.tensor(best.x[1:])), rtol=0.0, atol=1e-5)


METHODS: dict[str, tuple[Penalty, Oracle, Softmax | Direct | Solved]] = {
    "value, softmax": (ValuePenalty(5.0), SoftPolicyIteration(), Softmax()),
    "value, direct": (ValuePenalty(5.0), SoftPolicyIteration(), Direct(0.01)),
    "value, solved": (ValuePenalty(Geometric(2.0, 20.0)), SoftPolicyIteration(), Solved()),
    "Bellman, softmax": (BellmanPenalty(50.0), SoftPolicyIteration(), Softmax()),
    "Bellman, direct": (BellmanPenalty(50.0), SoftPolicyIteration(), Direct(0.01)),
    "mirror descent": (ValuePenalty(5.0), MirrorDescent(), Solved()),
    "policy gradient": (ValuePenalty(5.0), PolicyGradient(step=1.0, iterations=20), Solved()),
}


LONGER = ("value, direct", "Bellman, direct", "mirror descent", "policy gradient")
"""Of these, those whose parts other tests have too: ``make long`` runs them."""


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.long] if name in LONGER else []) for name in METHODS]
)
def test_the_leader_learns(method: str) -> None:
    """Paired with the untrained leader and with what was learned on another game; the last x counts, not the best."""
    penalty, oracle, follower = METHODS[method]
    games = [random_stackelberg(5, 3, 3, gamma=0.8, sparsity=0.3, seed=seed) for seed in range(3)]
    config = TabularPBRLConfig(follower=follower, keep_best=False, eval_every=1000)
    xs = [
        torch.from_numpy(TabularPBRL(game, penalty=penalty, oracle=oracle, config=config).learn(80).last_x)
        for game in games
    ]
    learned = np.array([leader_return_at_best_response(game, x) for game, x in zip(games, xs, strict=True)])
    start = np.array([leader_return_at_best_response(game, game.start_x()) for game in games])
    others = np.array([leader_return_at_best_response(game, xs[k - 1]) for k, game in enumerate(games)])
    assert bool((learned > start).all())
    assert (learned / start).mean() > 1.1
    assert bool((learned > others).all())


@pytest.mark.parametrize("floor", [1e-6, 0.01])
def test_a_direct_follower_stays_on_the_simplex(floor: float) -> None:
    problem = PROBLEMS["terminal, masked"](5)
    mask = problem.follower_mdp(problem.start_x()).mask
    assert mask is not None
    config = TabularPBRLConfig(follower=Direct(0.5, floor), tau=0.01)

    def on_the_simplex(leader: Any) -> None:
        y = leader.held.ys[0].detach()
        assert float(y[mask].min()) >= floor
        assert float(y[~mask].abs().max()) == 0.0
        torch.testing.assert_close(y.sum(-1), torch.ones(5, dtype=F64), rtol=0.0, atol=1e-12)

    TabularPBRL(problem, penalty=ValuePenalty(2.0), config=config).learn(30, callback=on_the_simplex)


def test_contexts_have_a_follower_s_policy_each() -> None:
    """Also where only the transitions tell the contexts apart."""
    one = random_mdp(6, n_states=4)
    many = random_mdp(6, batch=(2,), n_states=4)
    for base in (TabularMDP(many.P, one.r, one.rho, 0.9), TabularMDP(one.P, one.r, many.rho, 0.9)):
        for follower in (Softmax(), Direct()):
            assert follower.start(base).shape == (2, 4, 3)
            assert follower.policy(follower.start(base), base).shape == (2, 4, 3)


def test_a_value_penalty_needs_no_entropy() -> None:
    game = random_stackelberg(4, 3, 3, gamma=0.8, sparsity=0.3)
    for follower in (Softmax(), Direct(), Solved()):
        leader = TabularPBRL(
            game, penalty=ValuePenalty(5.0), config=TabularPBRLConfig(follower=follower, tau=0.0)
        ).learn(20)
        record = leader.evaluate()
        assert record.tau == 0.0
        assert record.penalty is not None
        assert record.penalty >= -1e-12
        assert bool(np.isfinite(leader.x).all())


class NoReturn(TwoStateProblem):
    """J_L is not a return of the follower's MDP."""

    def leader_reward(self, x: Tensor) -> None:  # type: ignore[override]
        return None

    def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
        return -(x.square().sum()) * pi[..., 1].mean()


def bad() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"config": TabularPBRLConfig(follower=Solved()), "penalty": BellmanPenalty()}, r"^config.follower: expected"
    yield {"config": TabularPBRLConfig(follower=Solved()), "problem": NoReturn()}, r"^config.follower: expected"
    yield {"config": TabularPBRLConfig(tau=-0.1)}, r"^tau: expected a number in \[0, inf\)"
    yield {"config": TabularPBRLConfig(tau=math.nan)}, r"^tau: "
    yield {"config": TabularPBRLConfig(tau=0.0), "penalty": BellmanPenalty()}, r"^tau: expected a number in \(0, inf\)"
    yield (
        {"config": TabularPBRLConfig(tau=0.0), "problem": TwoStateProblem(tau=0.0), "penalty": BellmanPenalty()},
        r"^tau",
    )
    yield {"penalty": BellmanPenalty(mu=[0.2, 0.3, 0.5])}, r"^mu: expected 2 weights"
    yield {"problem": "bilevel_gym/Nope-v0"}, r"^problem: expected a registered environment id .*Nope-v0"
    yield {"problem": "Nope"}, r"^problem: expected a registered"
    yield {"problem": "no such name!"}, r"^problem: expected a registered"
    yield {"problem": "bilevel_gym/TwoState-v9"}, r"^problem: expected a registered"
    yield {"problem": "CartPole-v1"}, r"^problem: expected a TabularProblem"
    yield {"problem": 3}, r"^problem: expected a TabularProblem"
    yield {"env_kwargs": {"gamma": 0.5}}, r"^env_kwargs: expected none"
    yield {"problem": "bilevel_gym/TwoState-v0", "env_kwargs": {"gamma": 1.0}}, r"^gamma: "
    yield {"x0": [0.0, 0.0]}, r"^x0: expected shape \(1,\)"
    yield {"x0": [math.nan]}, r"^x0: expected finite"
    yield {"x0": [4.0]}, r"^x0: expected a point of X, within \[-1, 3\]"
    yield {"config": TabularPBRLConfig(high=0.5), "x0": [1.0]}, r"^x0: expected a point of X, within \[-1, 0.5\]"
    yield {"config": TabularPBRLConfig(low=4.0)}, r"^low: expected low <= high"
    yield {"config": TabularPBRLConfig(low=2.0, high=1.0)}, r"^low: expected low <= high"
    yield {"config": TabularPBRLConfig(low=[0.0, 0.0])}, r"^low: expected a number or shape"
    yield {"config": TabularPBRLConfig(low=1.0, budget=0.5)}, r"^budget: expected at least 1"


@pytest.mark.parametrize(("kwargs", "message"), list(bad()))
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TabularPBRL(**({"problem": TwoStateProblem()} | kwargs))


def test_a_problem_without_a_leader_reward_has_a_softmax_follower_by_default() -> None:
    leader = TabularPBRL(NoReturn(), x0=[2.0]).learn(30)
    assert leader.held is not None
    assert isinstance(leader.held.how, Softmax)
    assert abs(leader.last_x[0]) < 2.0


def test_rewards_that_break_are_reported_and_nothing_is_moved() -> None:
    base = random_mdp(0)

    def breaks(x: Tensor) -> Tensor:
        return base.r * (float("nan") if float(x.detach()[0]) > 0.2 else 1.0) + x[0]

    problem = ArrayProblem(base, LeaderSet.box(1, -1.0, 1.0), breaks, lambda x: base.r + 5 * x[0])
    leader = TabularPBRL(problem, config=TabularPBRLConfig(follower=Softmax()))
    with pytest.raises(FloatingPointError, match="gradient: expected finite numbers"):
        leader.learn(50)
    assert np.isfinite(leader.last_x).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"penalty": 5.0}, r"penalty: expected a penalty such as ValuePenalty\(\), got 5.0"),
        ({"penalty": BellmanPenalty}, r"penalty: expected a penalty such as ValuePenalty\(\), got <class"),
        ({"oracle": "spi"}, "oracle: expected an oracle such as.*got 'spi'"),
        ({"oracle": MirrorDescent}, "oracle: expected an oracle such as"),
        ({"config": {"tau": 1.0}}, "config: expected a TabularPBRLConfig"),
    ],
)
def test_arguments_of_another_type_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TabularPBRL(TwoStateProblem(), **kwargs)


def test_a_follower_held_in_an_unknown_way_is_named() -> None:
    with pytest.raises(ValueError, match=r"^config.follower: expected Softmax"):
        TabularPBRLConfig(follower="softmax")  # type: ignore[arg-type]
