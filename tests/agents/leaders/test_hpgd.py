"""HPGD: its estimate of the implicit hypergradient is unbiased, and x climbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_gym.agents import HPGD, HPGDConfig, Linear, leader_return_at_best_response
from bilevel_gym.agents.leaders.hpgd import in_context, sampled_advantage_return
from bilevel_gym.agents.leaders.hypergradient import soft_leader_return
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularProblem, random_stackelberg, solve_soft
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import (
    F64,
    array_problem,
    autograd,
    random_mdp,
    random_x,
    relative_error,
)

SHORT: dict[str, TabularProblem] = {
    "dynamics": array_problem(random_mdp(3, n_states=3, n_actions=2, gamma=0.5), 3, True),
    "terminal, masked": array_problem(random_mdp(4, n_states=4, gamma=0.6, terminal=True, masked=True), 4, True),
    "terminal entropy": array_problem(random_mdp(5, n_states=3, gamma=0.6, terminal=True, terminal_entropy=True), 5, True),
    "contexts": array_problem(
        random_mdp(6, batch=(2,), n_states=3, gamma=0.5, masked=True), 6, True, torch.tensor([0.3, 0.7], dtype=F64)
    ),
    "Stackelberg": random_stackelberg(3, 2, 2, gamma=0.5, sparsity=0.3, seed=7),
}  # fmt: skip


REPEATS, CONFIG = 40, HPGDConfig(episodes=200, points=3)


def estimates(problem: TabularProblem, x: Tensor, tau: float, told_tau: float | None = None) -> Tensor:
    """Independent estimates, ``[n, 1 + dim]``: of the return, then of its gradient. The last argument makes it wrong."""
    generator, length = torch.Generator().manual_seed(0), 18
    pis = solve_soft(problem.follower_mdp(x), tau).pi
    told = tau if told_tau is None else told_tau
    rows = []
    for _ in range(REPEATS):
        z = x.clone().requires_grad_()
        mdp, reward = problem.follower_mdp(z), problem.leader_reward(z)
        assert reward is not None
        of_contexts = []
        for c in range(1 if problem.context_probs is None else len(problem.context_probs)):
            r, pi = (part if part.ndim == 2 else part[c] for part in (reward, pis))
            one, _ = sampled_advantage_return(in_context(mdp, c), r, pi, told, length, CONFIG, generator)
            of_contexts.append(one)
        value = of_contexts[0] if problem.context_probs is None else problem.over_contexts(torch.stack(of_contexts))
        (gradient,) = torch.autograd.grad(value, z)
        rows.append(torch.cat([value.detach().view(1), gradient]))
    return torch.stack(rows)


def standard_scores(rows: Tensor, expected: Tensor) -> Tensor:
    error: Tensor = rows.std(0) / REPEATS**0.5
    return (rows.mean(0) - expected) / error


@pytest.mark.parametrize("name", SHORT)
def test_the_estimate_is_unbiased(name: str) -> None:
    """Within four standard errors in every coordinate (the tail cut off is worth 1e-4); without A_F's part far out."""
    problem, tau = SHORT[name], 0.3
    x = random_x(problem, 1)
    rows = estimates(problem, x, tau)
    value, _ = soft_leader_return(problem, x, tau)
    gradient = autograd(lambda z: soft_leader_return(problem, z, tau)[0], x)
    assert float(standard_scores(rows, torch.cat([value.view(1), gradient])).abs().max()) < 4.0
    pi = solve_soft(problem.follower_mdp(x), tau).pi
    direct = autograd(lambda z: problem.leader_return(z, pi), x)
    assert float(standard_scores(rows[:, 1:], direct).abs().max()) > 8.0


def test_a_wrong_temperature_is_found() -> None:
    problem, tau = SHORT["dynamics"], 0.3
    x = random_x(problem, 1)
    gradient = autograd(lambda z: soft_leader_return(problem, z, tau)[0], x)
    assert float(standard_scores(estimates(problem, x, tau, told_tau=0.6)[:, 1:], gradient).abs().max()) > 8.0


def test_it_arrives_near_the_two_state_optimum() -> None:
    problem = TwoStateProblem(gamma=0.5, tau=0.5)
    best = problem.optimum(0.5)
    config = HPGDConfig(learning_rate=Linear(0.5, 0.0125), eval_every=1000)
    ends = [float(HPGD(problem, config=config, seed=seed, x0=[-0.5]).learn(60).x[0]) for seed in range(2)]
    np.testing.assert_allclose(ends, float(best.x), atol=0.15)


def test_the_leader_learns() -> None:
    games = [random_stackelberg(4, 2, 3, gamma=0.6, sparsity=0.3, tau=0.1, seed=seed) for seed in range(4)]
    config = HPGDConfig(eval_every=1000)
    xs = [torch.from_numpy(HPGD(game, config=config).learn(30).x) for game in games]
    learned = np.array([leader_return_at_best_response(game, x) for game, x in zip(games, xs, strict=True)])
    start = np.array([leader_return_at_best_response(game, game.start_x()) for game in games])
    others = np.array([leader_return_at_best_response(game, xs[k - 1]) for k, game in enumerate(games)])
    assert bool((learned > start).all())
    assert bool((learned > others).all())


def test_gradients_are_cut_and_steps_counted() -> None:
    problem = SHORT["terminal, masked"]
    config = HPGDConfig(tau=0.1, learning_rate=0.25, max_gradient_norm=0.5, episodes=3, tail=0.1)
    leader, x = HPGD(problem, config=config), random_x(problem, 0)
    leader = HPGD(problem, config=config, x0=x.numpy()).learn(1)
    assert float(np.linalg.norm(leader.last_x - x.numpy())) == pytest.approx(0.125, rel=1e-5)
    assert leader.length == 5  # 0.6^5 < 0.1 < 0.6^4
    assert 5 * 3 <= leader.evaluate().steps <= 5 * 3 * 5  # fifteen episodes of one to five steps
    never_ends = HPGD(SHORT["dynamics"], config=HPGDConfig(tau=0.1, episodes=3, tail=0.1)).learn(2)
    assert never_ends.evaluate().steps == 2 * 5 * 3 * never_ends.length


def test_the_contexts_drawn_have_their_probabilities() -> None:
    problem = SHORT["contexts"]
    leader = HPGD(problem, config=HPGDConfig(tau=0.5, episodes=1, tail=0.9, eval_every=1000), seed=1)
    drawn = []

    def watch(one: Any) -> None:
        drawn.append(one.V.abs().sum(-1) > 0)
        one.V.zero_()

    leader.learn(200, watch)
    counts = torch.stack(drawn).double()
    assert bool((counts.sum(-1) == 1.0).all())
    assert float(counts[:, 1].mean()) == pytest.approx(0.7, abs=4 * (0.21 / 200) ** 0.5)


def test_seeds_and_files(tmp_path: Path) -> None:
    problem = SHORT["contexts"]

    def made(seed: int | None) -> HPGD:
        return HPGD(problem, config=HPGDConfig(tau=0.3, episodes=4, eval_every=2), seed=seed)

    whole, again, other = made(3).learn(6), made(3).learn(6), made(4).learn(6)
    np.testing.assert_array_equal(whole.x, again.x)
    assert bool((whole.x != other.x).any())
    path = made(3).learn(4).save(tmp_path / "hpgd")
    resumed = HPGD.load(path, problem).learn(2, reset_num_timesteps=False)
    np.testing.assert_array_equal(resumed.x, whole.x)
    assert resumed.evaluate() == whole.evaluate()
    assert made(None).learn(1).iteration == 1


@pytest.mark.parametrize("tau", [0.0, -0.1, float("nan")])
def test_it_needs_entropy(tau: float) -> None:
    with pytest.raises(ValueError, match=r"^tau: expected a number in "):
        HPGD(TwoStateProblem(), config=HPGDConfig(tau=tau))


@pytest.mark.parametrize("tau", [0.3, 0.0])
def test_the_default_temperature_is_the_problem_s(tau: float) -> None:
    """Where it states none, 0.002 units of the reward."""
    problem = TwoStateProblem(tau=tau)
    assert HPGD(problem).tau == (tau or pytest.approx(0.002 * problem.reward_unit))


def test_it_needs_a_return() -> None:
    class NoReturn(TwoStateProblem):
        def leader_reward(self, x: Tensor) -> Any:
            return None

    with pytest.raises(ValueError, match=r"^problem: expected a leader whose objective is a return"):
        HPGD(NoReturn())


@pytest.mark.parametrize(
    "kwargs",
    [{"max_gradient_norm": 0.0}, {"episodes": 0}, {"episodes": 1.5}, {"points": 0}, {"tail": 0.0}, {"tail": 1.0}],
)
def test_bad_configs_are_named(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(kwargs))}: expected "):
        HPGDConfig(**kwargs)


def test_one_step_problems() -> None:
    """gamma = 0: the leader's bandit, one step an episode."""
    base = random_mdp(2, n_states=2, gamma=0.0)
    problem = ArrayProblem(base, LeaderSet.box(2, -1.0, 1.0), lambda x: base.r + x[0], lambda x: base.r * x[1])
    leader = HPGD(problem, config=HPGDConfig(tau=0.2)).learn(3)
    assert leader.length == 1
    assert relative_error(torch.from_numpy(leader.last_x), torch.tensor([0.0, 1.0], dtype=F64)) < 1.0
