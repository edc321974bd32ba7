"""Four Rooms against its own description, cell by cell, and its two goals through every leader that takes it."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from torch import Tensor

from bilevel_gym.agents import (
    PBRL,
    BellmanPenalty,
    Hypergradient,
    HypergradientConfig,
    PBRLConfig,
    Rollouts,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.leaders.hypergradient import hypergradient
from bilevel_gym.envs.four_rooms import MAP, FourRoomsEnv, FourRoomsProblem
from bilevel_gym.envs.mdp import policy_value, solve_soft
from tests.problems import F64, assert_gradient, generator, numerical_gradient, residual

UP, RIGHT, DOWN, LEFT = range(4)
START, GOALS, LEADER_CELL = (4, 1), ((1, 9), (11, 11)), (8, 4)


def random_logits(problem: FourRoomsProblem, seed: int = 0, spread: float = 2.0) -> Tensor:
    return problem.project(spread * torch.randn(105, generator=generator(seed), dtype=F64))


def test_the_map() -> None:
    problem = FourRoomsProblem()
    assert problem.grid.n_cells == 104
    assert problem.leader_dim == 105
    free = {(row, column) for row, line in enumerate(MAP) for column, mark in enumerate(line) if mark == " "}
    assert {(int(row), int(column)) for row, column in problem.grid.cells} == free


@pytest.mark.parametrize(
    ("here", "action", "ends"),
    [
        ((3, 3), UP, {(2, 3): 0.56, (3, 4): 0.44 / 3, (4, 3): 0.44 / 3, (3, 2): 0.44 / 3}),
        ((4, 1), LEFT, {(4, 1): 0.56, (3, 1): 0.44 / 3, (4, 2): 0.44 / 3, (5, 1): 0.44 / 3}),
        ((1, 1), RIGHT, {(1, 2): 0.56, (1, 1): 0.88 / 3, (2, 1): 0.44 / 3}),
        ((6, 2), DOWN, {(7, 2): 0.56, (6, 2): 0.88 / 3, (5, 2): 0.44 / 3}),
    ],
    ids=["open", "into a wall", "corner", "door"],
)
def test_a_move_slips(here: tuple[int, int], action: int, ends: dict[tuple[int, int], float]) -> None:
    problem = FourRoomsProblem()
    row = problem.follower_mdp(problem.start_x()).P[problem.grid.index(*here), action]
    expected = torch.zeros(104, dtype=F64)
    for cell, probability in ends.items():
        expected[problem.grid.index(*cell)] += probability
    torch.testing.assert_close(row, expected, rtol=0.0, atol=1e-15)


def test_rewards_cell_by_cell() -> None:
    problem = FourRoomsProblem(beta=3.0)
    x = random_logits(problem)
    weights = np.exp(x.numpy() - x.numpy().max())
    penalty = -0.2 * weights[:104] / weights.sum()
    mdp, leader = problem.follower_mdp(x), problem.leader_reward(x)
    assert mdp.r.shape == leader.shape == (2, 104, 4)
    for c, goal in enumerate(GOALS):
        for s, (row, column) in enumerate(problem.grid.cells.tolist()):
            follower = 1.0 if (row, column) == goal else penalty[s]
            own = 1.0 if (row, column) == LEADER_CELL else -3.0 * abs(penalty).sum() if (row, column) == goal else 0.0
            np.testing.assert_allclose(mdp.r[c, s].numpy(), follower, rtol=1e-13)
            np.testing.assert_allclose(leader[c, s].numpy(), own, rtol=1e-13)
            assert mdp.terminal is not None
            assert bool(mdp.terminal[c, s]) == ((row, column) == goal)
    assert mdp.rho[problem.grid.index(*START)] == mdp.rho.sum() == 1.0
    assert mdp.gamma == 0.99
    assert problem.context_probs is not None
    assert problem.context_probs.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("tau", [1e-3, 5e-3, 0.1])
def test_the_goal_is_worth_one_and_its_entropy(tau: float) -> None:
    problem = FourRoomsProblem(tau)
    mdp = problem.follower_mdp(random_logits(problem))
    answer = solve_soft(mdp, tau)
    for c, goal in enumerate(GOALS):
        s = problem.grid.index(*goal)
        assert answer.V[c, s].item() == pytest.approx(1.0 + tau * math.log(4.0), rel=1e-12)
        assert answer.pi[c, s].tolist() == pytest.approx([0.25] * 4)
    contexts = [  # numpy, state by state
        type(mdp)(mdp.P, mdp.r[c], mdp.rho, mdp.gamma, mdp.terminal[c], terminal_entropy=True)  # type: ignore[index]
        for c in range(2)
    ]
    assert max(residual(one, answer.V[c], tau) for c, one in enumerate(contexts)) < 1e-10


def test_it_takes_many_x() -> None:
    problem = FourRoomsProblem(beta=2.0)
    xs = torch.stack([random_logits(problem, seed) for seed in range(6)]).view(2, 3, 105)
    r, own = problem.follower_mdp(xs).r, problem.leader_reward(xs)
    assert r.shape == own.shape == (2, 3, 2, 104, 4)
    for i, j in np.ndindex(2, 3):
        torch.testing.assert_close(r[i, j], problem.follower_mdp(xs[i, j]).r)
        torch.testing.assert_close(own[i, j], problem.leader_reward(xs[i, j]))


@pytest.mark.parametrize(("tau", "beta"), [(0.05, 1.0), (0.003, 5.0)])
def test_the_hypergradient(tau: float, beta: float) -> None:
    problem = FourRoomsProblem(tau, beta)
    x = random_logits(problem, spread=1.0)

    def solved_anew(z: Tensor) -> Tensor:
        return problem.leader_return(z, solve_soft(problem.follower_mdp(z), tau, tol=1e-13).pi)

    numerical = numerical_gradient(solved_anew, x, h=3e-3)
    assert_gradient(hypergradient(problem, x, tau)[1], numerical)


def test_it_ends_where_a_second_implementation_did() -> None:
    """Exact ascent from x = 0 at fixed tau: a script written apart from this code came to 1.347 at beta 1."""
    config = HypergradientConfig(learning_rate=0.2, tau=0.005, eval_every=1000, keep_best=False)
    leader = Hypergradient("bilevel_gym/FourRooms-v0", config=config, env_kwargs={"tau": 0.005, "beta": 1.0}).learn(450)
    assert leader.evaluate().leader_return == pytest.approx(1.347, abs=0.002)


def test_the_default_passes_the_published_figure_where_others_fell_short() -> None:
    """(.003, 3): .73 by HPGD, under .41 by the exact methods it was compared with; from a random start."""
    x0 = torch.randn(105, generator=generator(7), dtype=F64)
    leader = Hypergradient("bilevel_gym/FourRooms-v0", env_kwargs={"tau": 0.003, "beta": 3.0}, x0=x0).learn(500)
    assert leader.history[-1].leader_return > 0.73


# --- contexts: the two goals through simulators and leaders -----------------------------------------------------------


def test_an_episode_ends_in_its_goal() -> None:
    env, problem = FourRoomsEnv(0.005, 2.0), FourRoomsProblem(0.005, 2.0)
    assert env.leader_space is not None
    x = env.leader_space.sample()
    env.set_leader(x)
    penalty = problem.penalty(torch.from_numpy(x))
    env.action_space.seed(0)
    seen = set()
    for seed in range(8):
        z = int(env.reset(seed=seed)[0])
        c, s = divmod(z, 104)
        assert s == problem.grid.index(*START)
        seen.add(c)
        for _ in range(20_000):
            following, reward, terminated, _, info = env.step(env.action_space.sample())
            if terminated:
                assert s == problem.goals[c]
                assert reward == 1.0
                assert info["leader_reward"] == pytest.approx(2.0 * float(penalty.sum()))
                break
            assert s != problem.goals[c]
            assert reward == pytest.approx(float(penalty[s]))
            assert info["leader_reward"] == float(s == problem.leader_cell)
            c, s = divmod(int(following), 104)
            assert c == z // 104
        else:
            pytest.fail("no goal in 20000 steps")
    assert seen == {0, 1}


def test_sampled_returns_are_the_exact_ones() -> None:
    """Both players' mean return over contexts, for the follower's best response to some x."""
    tau, n = 0.005, 4000
    problem = FourRoomsProblem(tau, 3.0)
    x = random_logits(problem)
    mdp = problem.follower_mdp(x)
    pi = solve_soft(mdp, tau).pi
    envs = FourRoomsEnv.vector(n, tau, 3.0)
    envs.set_leader(x.numpy())
    z, _ = envs.reset(seed=0)
    cdf, rng = np.cumsum(pi.reshape(208, 4).numpy(), -1), np.random.default_rng(1)
    returns, discount, live = np.zeros((2, n)), 1.0, np.ones(n, dtype=bool)
    while live.any():
        actions = np.minimum((rng.random((n, 1)) > cdf[z]).sum(-1), 3)
        z, reward, terminated, _, infos = envs.step(actions)
        returns += discount * live * np.stack([reward, infos["leader_reward"]])
        live &= ~terminated
        discount *= 0.99
    exact = [
        float(problem.over_contexts((mdp.rho * policy_value(mdp, pi)).sum(-1))),
        float(problem.leader_return(x, pi)),
    ]
    for sample, expected in zip(returns, exact, strict=True):
        assert abs(sample.mean() - expected) < 4.0 * sample.std() / math.sqrt(n)
    assert leader_return_at_best_response(problem, x) == pytest.approx(exact[1], rel=1e-9)


@pytest.mark.parametrize("penalty", [ValuePenalty(lam=20.0), BellmanPenalty(lam=20.0)], ids=["value", "Bellman"])
def test_penalties_meet_it_as_it_is(penalty: Any) -> None:
    problem = FourRoomsProblem(0.005, 1.0)
    start = leader_return_at_best_response(problem, problem.start_x())
    leader = TabularPBRL(problem, penalty=penalty, config=TabularPBRLConfig(tau=0.005, eval_every=100)).learn(30)
    record = leader.evaluate()
    assert record.gap is not None
    assert record.gap >= -1e-12
    assert record.penalty is not None
    assert record.penalty >= -1e-12
    assert record.leader_return > start


@pytest.mark.filterwarnings("ignore:the environment's follower is regularised")
def test_a_sampled_leader_meets_both_goals() -> None:
    config = PBRLConfig(n_envs=8, follower_steps=256, warmup_steps=256, estimator=Rollouts(8))
    leader = PBRL("bilevel_gym/FourRooms-v0", A2C, config=config, env_kwargs={"tau": 0.005}, seed=0).learn(6000)
    moved = leader.last_x
    assert moved.shape == (105,)
    assert bool(np.all(np.isfinite(moved)))
    assert np.ptp(moved) > 0.0
    exact = leader_return_at_best_response(FourRoomsProblem(), torch.from_numpy(leader.x))
    assert leader.evaluate().leader_return == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value"), [("tau", 0.0), ("tau", float("nan")), ("beta", -1.0), ("beta", math.inf), ("beta", "one")]
)
def test_wrong_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        FourRoomsProblem(**{name: value})


def test_the_picture_marks_the_goal_of_the_episode() -> None:
    env = gym.make("bilevel_gym/FourRooms-v0", render_mode="rgb_array")
    images: list[tuple[int, Any]] = []
    for seed in range(4):
        z, _ = env.reset(seed=seed)
        images.append((int(z) // 104, np.asarray(env.render())))
    for c, image in images:
        for d, other in images:
            assert np.array_equal(image, other) == (c == d)
