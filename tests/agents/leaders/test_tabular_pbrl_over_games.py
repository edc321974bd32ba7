"""The exact penalty method over a zero-sum game: one step against Algorithm 1, that it learns, files, refusals."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pettingzoo
import pytest
import torch
from torch import Tensor

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import (
    HPGD,
    BellmanPenalty,
    Geometric,
    MirrorDescent,
    NikaidoIsodaPenalty,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.held_policies import Direct, Softmax, Solved
from bilevel_gym.envs.mdp import (
    IncentiveDesignProblem,
    best_responses,
    joint_return,
    nikaido_isoda_gap,
    random_incentive_design,
    random_stackelberg,
    solve_nash,
)
from bilevel_gym.envs.mdp.simplex import project_simplex
from tests.problems import F64, assert_gradient, generator, numerical_gradient

ID = "bilevel_gym/incentive_design_v0"
SMALL: dict[str, Any] = {"n_states": 3, "n_actions_1": 2, "n_actions_2": 3}
TAU, LAM = 0.3, 4.0


def small(seed: int = 0) -> IncentiveDesignProblem:
    return random_incentive_design(**SMALL, gamma=0.8, seed=seed)


@pytest.mark.parametrize("follower", [Softmax(), Direct()])
def test_a_step_is_algorithm_1(follower: Softmax | Direct) -> None:
    """z_1 = Proj[z_0 - alpha grad F_lam(z_0)], psi differentiated numerically with both best responses solved anew."""
    problem, alpha = small(1), 1e-3
    x_0 = torch.randn(problem.leader_dim, generator=generator(1), dtype=F64)
    config = TabularPBRLConfig(
        follower=follower, learning_rate=alpha, tau=TAU, optimizer_class=torch.optim.SGD, keep_best=False
    )
    leader = TabularPBRL(problem, penalty=NikaidoIsodaPenalty(lam=LAM), config=config, x0=x_0.numpy())
    assert leader.held is not None
    ys = [torch.randn(y.shape, generator=generator(2 + i), dtype=F64) for i, y in enumerate(leader.held.ys)]
    if isinstance(follower, Direct):
        ys = [project_simplex(0.1 * y, None, 0.05) for y in ys]
    with torch.no_grad():
        for y, start in zip(leader.held.ys, ys, strict=True):
            y.copy_(start)

    def objective(x: Tensor, y1: Tensor, y2: Tensor) -> Tensor:
        pair = (torch.softmax(y1, -1), torch.softmax(y2, -1)) if isinstance(follower, Softmax) else (y1, y2)
        game = problem.game(x)
        first, second = best_responses(game, *pair, TAU)
        psi = joint_return(game, first.pi, pair[1], TAU) - joint_return(game, pair[0], second.pi, TAU)
        return LAM * psi - problem.leader_return(x, pair)

    leader.learn(1)
    in_x = numerical_gradient(lambda x: objective(x, ys[0], ys[1]), x_0)
    assert_gradient((x_0 - torch.from_numpy(leader.last_x)) / alpha, in_x)
    in_y = (
        numerical_gradient(lambda y: objective(x_0, y, ys[1]), ys[0]),
        numerical_gradient(lambda y: objective(x_0, ys[0], y), ys[1]),
    )
    for y_0, y_1, gradient in zip(ys, leader.held.ys, in_y, strict=True):
        moved = y_0 - alpha * gradient
        expected = moved if isinstance(follower, Softmax) else project_simplex(moved, None, follower.floor)
        assert_gradient((y_0 - y_1.detach()) / alpha, (y_0 - expected) / alpha)


@pytest.mark.long
def test_it_learns_on_every_instance_and_a_larger_lam_leaves_a_smaller_gap() -> None:
    """The defaults, lam 2 to 20, end above lam 4 and 10, with a gap below both."""
    returns = []
    for seed in range(3):
        problem = random_incentive_design(seed=seed)
        nash = solve_nash(problem.game(problem.start_x()), problem.tau)
        start = float(problem.leader_return(problem.start_x(), (nash.pi1, nash.pi2)))
        lams = (NikaidoIsodaPenalty(4.0), NikaidoIsodaPenalty(10.0), None)
        at_4, at_10, by_default = (TabularPBRL(problem, penalty=lam).learn(200).evaluate() for lam in lams)
        returns.append([record.leader_return - start for record in (at_4, at_10, by_default)])
        assert min(returns[-1]) > 1.5
        assert at_4.penalty is not None
        assert at_10.penalty is not None
        assert by_default.penalty is not None
        assert 0.0 < at_10.penalty < 0.5 * at_4.penalty
        assert by_default.penalty < min(0.01, at_10.penalty)
        assert at_4.leader_return_at_pi_y is not None
        assert at_4.leader_return_at_pi_y > at_4.leader_return  # the players' slack counted as the designer's gain
    of_4, of_10, of_default = np.mean(returns, axis=0)
    assert of_default > of_4 > of_10


def test_the_record_is_the_problem_s() -> None:
    problem = small()
    config = TabularPBRLConfig(eval_every=5, keep_best=False, tau=problem.tau)
    leader = TabularPBRL(problem, penalty=NikaidoIsodaPenalty(4.0), config=config).learn(20)
    record, game = leader.evaluate(), problem.game(torch.from_numpy(leader.x))
    assert (record.lam, record.tau, record.steps, record.iteration) == (4.0, problem.tau, 0, 20)
    assert [entry.iteration for entry in leader.history] == [0, 5, 10, 15, 20]
    nash, (pi1, pi2) = solve_nash(game, problem.tau), leader.method.policies(leader.state, game)
    pair = (pi1.detach(), pi2.detach())
    x = torch.from_numpy(leader.x)
    assert record.leader_return == pytest.approx(float(problem.leader_return(x, (nash.pi1, nash.pi2))), rel=1e-9)
    assert record.leader_return == pytest.approx(leader_return_at_best_response(problem, x), rel=1e-9)
    colder = solve_nash(game, 0.01)
    expected = float(problem.leader_return(x, (colder.pi1, colder.pi2)))
    assert leader_return_at_best_response(problem, x, tau0=0.01) == pytest.approx(expected, rel=1e-12)
    assert abs(expected - record.leader_return) > 1e-3
    with pytest.raises(ValueError, match=r"^tie: expected 0 for this lower level"):
        leader_return_at_best_response(problem, x, tie=0.01)
    assert record.leader_return_at_pi_y == pytest.approx(float(problem.leader_return(x, pair)), rel=1e-12)
    for gap in (record.gap, record.penalty):
        assert gap == pytest.approx(float(nikaido_isoda_gap(game, *pair, problem.tau)), abs=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        TabularPBRLConfig(follower=Softmax(0.2), optimizer_kwargs={"betas": (0.8, 0.99)}),
        TabularPBRLConfig(follower=Direct(), tau=Geometric(0.3, 0.1), high=1.5, eval_every=3),
    ],
)
def test_learning_on_from_a_file_is_learning_on(config: TabularPBRLConfig, tmp_path: Path) -> None:
    """Bit for bit as an unbroken twin that made the same calls of learn."""
    penalty, oracle = NikaidoIsodaPenalty(Geometric(2.0, 8.0)), MirrorDescent(5.0, 4)
    twin, broken = (TabularPBRL(small(), penalty=penalty, oracle=oracle, config=config).learn(7) for _ in range(2))
    loaded = TabularPBRL.load(broken.save(tmp_path / "leader"), small())
    assert loaded.evaluate() == broken.evaluate()
    assert loaded.lam == broken.lam
    for leader in (twin, loaded):
        leader.learn(8, reset_num_timesteps=False)
    np.testing.assert_array_equal(loaded.last_x, twin.last_x)
    assert loaded.evaluate() == twin.evaluate()
    with pytest.raises(ValueError, match=r"^problem: expected the problem of"):
        TabularPBRL.load(tmp_path / "leader.zip", small(1))
    with pytest.raises(ValueError, match=r"^problem: expected"):
        TabularPBRL.load(tmp_path / "leader.zip")


def test_an_id_is_made_again_and_an_environment_brings_its_problem(tmp_path: Path) -> None:
    leader = TabularPBRL(ID, env_kwargs={**SMALL, "seed": 3}).learn(3)
    loaded = TabularPBRL.load(leader.save(tmp_path / "leader.zip"))
    np.testing.assert_array_equal(loaded.x, leader.x)
    env = pettingzoo.make("parallel", ID, **SMALL, seed=3)
    np.testing.assert_array_equal(TabularPBRL(env).learn(3).x, leader.x)
    np.testing.assert_array_equal(TabularPBRL(problem=env).learn(3).x, leader.x)  # by its keyword


@pytest.mark.parametrize("how", [copy.deepcopy, lambda leader: pickle.loads(pickle.dumps(leader))])
def test_a_copy_is_a_leader(how: Any) -> None:
    leader = TabularPBRL(small()).learn(2)
    twin = how(leader)
    np.testing.assert_array_equal(twin.x, leader.x)
    np.testing.assert_array_equal(
        twin.learn(2, reset_num_timesteps=False).x, leader.learn(2, reset_num_timesteps=False).x
    )


def test_what_does_not_fit_is_refused() -> None:
    problem = small()
    for penalty in (ValuePenalty(), BellmanPenalty()):
        with pytest.raises(ValueError, match=r"^penalty: expected"):
            TabularPBRL(problem, penalty=penalty)
    with pytest.raises(ValueError, match=r"^penalty: expected"):
        TabularPBRL(random_stackelberg(3, 2, 2), penalty=NikaidoIsodaPenalty())
    with pytest.raises(ValueError, match=r"^config.follower: expected"):
        TabularPBRL(problem, config=TabularPBRLConfig(follower=Solved()))
    with pytest.raises(ValueError, match=r"^problem: expected a TabularProblem"):
        HPGD(problem)
    with pytest.raises(ValueError, match=r"^env_kwargs: expected"):
        TabularPBRL(problem, env_kwargs={"seed": 1})
