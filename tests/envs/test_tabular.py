"""The simulators of tabular problems against the problems' own numbers."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from bilevel_gym.envs.mdp import (
    ArrayProblem,
    LeaderSet,
    TabularKernel,
    TabularMDP,
    TabularProblem,
    policy_return,
    random_stackelberg,
)
from bilevel_gym.envs.stackelberg_game import StackelbergGameEnv
from bilevel_gym.envs.tabular import TabularEnv, TabularVectorEnv
from bilevel_gym.envs.two_state import TwoStateProblem

GAME: dict[str, Any] = {"n_states": 4, "n_leader_actions": 3, "n_follower_actions": 2, "seed": 1}


class MovingProblem(TabularProblem):
    """x enters everything, the draw depends on (s, a), and two contexts have different rewards and dynamics."""

    S, A, W = 3, 2, 2
    batched_kernel: ClassVar[bool] = False

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.leader_set = LeaderSet.box(4, -2, 2)
        self.context_probs = torch.tensor([0.3, 0.7], dtype=torch.float64)
        self.arrays = [
            torch.randn(2, self.S, self.A, self.W, *tail, generator=g, dtype=torch.float64)
            for tail in ((), (self.S,), (), ())
        ]
        self.rho = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def kernel(self, x: Tensor) -> TabularKernel:
        draw, P, r_f, r_l = self.arrays
        return TabularKernel(
            torch.softmax(draw * x[0], -1), torch.softmax(P * (1 + x[1]), -1), r_f + x[2], r_l * (1 + x[3])
        )

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        k = self.kernel(x)
        P = (k.draw.unsqueeze(-1) * k.P).sum(-2)
        return TabularMDP(P, (k.draw * k.r_follower).sum(-1), self.rho, 0.8)

    def leader_reward(self, x: Tensor) -> Tensor:
        k = self.kernel(x)
        return (k.draw * k.r_leader).sum(-1)


def array_problem(terminal: Any = None, mask: Any = None) -> ArrayProblem:
    """Two states; action a leads to state a if x = 1, to state 0 if x = 0; the follower is paid x + s."""
    rewards, rho = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.full((2,), 0.5)
    base = TabularMDP(torch.eye(2).expand(2, 2, 2), rewards, rho, 0.9, terminal, mask)
    one, zero = base.P, torch.eye(2, dtype=torch.float64)[0].expand(2, 2, 2)
    return ArrayProblem(
        base,
        LeaderSet.box(1, 0, 1),
        lambda x: base.r + x,
        lambda x: 2 * base.r + x,
        lambda x: x * one + (1 - x) * zero,
    )


def record(env: TabularEnv | TabularVectorEnv, steps: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], ...]:
    """Columns s, a, w, s', r_f, r_l of steps under uniform actions; s' is the state before any reset."""
    rng = np.random.default_rng(seed)
    rows = []
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        if isinstance(env, TabularVectorEnv):
            actions: Any = rng.integers(env.single_action_space.n, size=env.num_envs)  # type: ignore[attr-defined]
        else:
            actions = rng.integers(env.action_space.n)  # type: ignore[attr-defined]
        following, reward, terminated, _, info = env.step(actions)
        last = np.where(info["_final_obs"], info["final_obs"], following) if "final_obs" in info else following
        step = (obs, actions, info["leader_draw"], last, reward, info["leader_reward"])
        rows.append([np.atleast_1d(v) for v in step])
        obs = following if isinstance(env, TabularVectorEnv) or not terminated else env.reset()[0]
    columns = np.concatenate(rows, axis=1).astype(np.float64)
    return *columns[:4].astype(np.int64), columns[4], columns[5]


def chi_square(problem: TabularProblem, x: np.ndarray[Any, Any], s: Any, a: Any, w: Any, s_next: Any) -> float:
    """p-value of the counts of (w, s') given (s, a) under the kernel at x; states may count contexts."""
    k = problem.kernel(torch.as_tensor(x))
    joint = (k.draw.expand(k.r_follower.shape).unsqueeze(-1) * k.P).detach().numpy()
    S, A, W = joint.shape[-4:-1]
    joint = joint.reshape(-1, A, W * S)
    counts = np.zeros(joint.shape)
    np.add.at(counts, (s, a, w * S + s_next % S), 1)
    expected = counts.sum(-1, keepdims=True) * joint
    statistic = ((counts - expected) ** 2 / expected.clip(1e-12)).sum()
    return float(scipy.stats.chi2.sf(statistic, np.prod(joint.shape[:2]) * (joint.shape[2] - 1)))


@pytest.mark.parametrize("problem", [random_stackelberg(**GAME), MovingProblem()], ids=["stackelberg", "moving"])
@pytest.mark.parametrize("vector", [False, True])
def test_draws_follow_the_kernel_at_x(problem: TabularProblem, vector: bool) -> None:
    env = TabularVectorEnv(problem, 50, max_episode_steps=20) if vector else TabularEnv(problem)
    x = np.random.default_rng(2).uniform(-1, 1, problem.leader_dim)
    env.set_leader(x)
    s, a, w, s_next, r_f, r_l = record(env, 800 if vector else 40_000)
    assert chi_square(problem, x, s, a, w, s_next) > 1e-3
    assert chi_square(problem, -x, s, a, w, s_next) < 1e-6  # the test can fail
    if problem.context_probs is not None:
        np.testing.assert_array_equal(s // 3, s_next // 3)  # an episode keeps its context
    model = env.leader_model()
    with torch.no_grad():
        follower, leader, _ = model(s, a, w, s_next)
    np.testing.assert_allclose(follower.numpy(), r_f, atol=1e-12)
    np.testing.assert_allclose(leader.numpy(), r_l, atol=1e-12)


@pytest.mark.parametrize("problem", [random_stackelberg(**GAME), MovingProblem()], ids=["stackelberg", "moving"])
def test_mean_return_is_the_exact_one(problem: TabularProblem) -> None:
    """Discounted returns of random actions, 4000 episodes: within four standard errors."""
    n = 4000
    x = torch.linspace(-1, 1, problem.leader_dim, dtype=torch.float64)
    mdp = problem.follower_mdp(x)
    env = TabularVectorEnv(problem, n)
    env.set_leader(x)
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    returns = np.zeros((2, n))
    for t in range(200):
        _, reward, _, _, info = env.step(rng.integers(mdp.n_actions, size=n))
        returns += env.gamma**t * np.stack([reward, info["leader_reward"]])
    pi = torch.full(mdp.r.shape, 1 / mdp.n_actions, dtype=torch.float64)
    exact = [float(problem.over_contexts(policy_return(mdp, pi))), float(problem.leader_return(x, pi))]
    error = returns.std(axis=1, ddof=1) / np.sqrt(n)
    assert (np.abs(returns.mean(axis=1) - exact) < 4 * error).all()
    assert (error < 0.1).all()


def test_every_copy_plays_under_its_own_x() -> None:
    problem = array_problem()
    env = TabularVectorEnv(problem, 4)
    x = np.array([[0.0], [1.0], [0.0], [1.0]])
    env.set_leader(x)
    obs, _ = env.reset(seed=0)
    following, reward, _, _, info = env.step(np.ones(4, dtype=np.int64))
    assert following.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(reward, obs + x[:, 0])
    np.testing.assert_allclose(info["leader_reward"], 2 * obs + x[:, 0])
    np.testing.assert_array_equal(env.commitment(following), x)
    np.testing.assert_array_equal(env.leader_x, x)
    env.set_leader([0.25])  # one x for all again
    assert env.leader_x.shape == (1,)
    np.testing.assert_array_equal(env.commitment(following), np.full((4, 1), 0.25))
    env.set_leader(x)
    with pytest.raises(ValueError, match=r"^x: expected one x for all environments"):
        env.leader_model()


def test_every_copy_draws_from_its_own_leader_policy() -> None:
    """Logits +10 on one leader action, another for each copy: the draws are all that action."""
    env = StackelbergGameEnv.vector(num_envs=3, **GAME)
    x = np.full((3, 4, 3), -10.0)
    x[np.arange(3), :, np.arange(3)] = 10.0
    env.set_leader(x.reshape(3, -1))
    obs, _ = env.reset(seed=0)
    for _ in range(20):
        obs, _, _, _, info = env.step(np.zeros(3, dtype=np.int64))
        assert info["leader_draw"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(env.commitment(obs), np.eye(3), atol=1e-6)
    single = StackelbergGameEnv(**GAME)
    single.set_leader(x[2].ravel())
    np.testing.assert_array_equal(single.commitment(int(obs[2])), env.commitment(obs)[2])


@pytest.mark.parametrize("vector", [False, True])
def test_x_counts_from_the_next_step_and_is_copied(vector: bool) -> None:
    problem = TwoStateProblem()
    env: Any = TabularVectorEnv(problem, 2) if vector else TabularEnv(problem)
    action = np.ones(2, dtype=np.int64) if vector else 1
    x = np.array([2.0])
    env.set_leader(x)
    x[0] = -1.0
    env.leader_x[0] = -1.0
    assert env.leader_x.tolist() == [2.0]
    env.reset(seed=0)
    env.step(action)  # now in state 1, where action 1 pays x - 1 + 0.5
    assert np.all(env.step(action)[1] == 1.5)
    env.set_leader([3.0])
    assert np.all(env.step(action)[1] == 2.5)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3), "shape"),
        (np.zeros((2, 12)), "shape"),
        (np.full(12, np.nan), "finite"),
        (np.r_[np.zeros(11), 10.1], "within .* coordinate 11"),
        ("high", "numbers"),
    ],
)
def test_wrong_x_is_refused_and_changes_nothing(vector: bool, x: Any, message: str) -> None:
    env = StackelbergGameEnv.vector(num_envs=3, **GAME) if vector else StackelbergGameEnv(**GAME)
    env.set_leader(np.ones(12))
    with pytest.raises(ValueError, match=f"^x: expected .*{message}"):
        env.set_leader(x)
    np.testing.assert_array_equal(env.leader_x, np.ones(12))


@pytest.mark.parametrize("value", [np.nan, 11.0])
def test_the_wrong_row_of_x_is_named(value: float) -> None:
    x = np.zeros((3, 12))
    x[1, 4] = value
    with pytest.raises(ValueError, match=r"^x\[1\]: expected"):
        StackelbergGameEnv.vector(num_envs=3, **GAME).set_leader(x)


@pytest.mark.parametrize(("name", "value"), [("num_envs", 0), ("max_episode_steps", -1)])
def test_wrong_vector_sizes_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        TabularVectorEnv(TwoStateProblem(), **{"num_envs": 2, name: value})


def test_actions_that_do_not_exist() -> None:
    problem = array_problem(mask=[[True, False], [True, True]])
    env, vector = TabularEnv(problem), TabularVectorEnv(problem, 2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    with pytest.raises(gym.error.ResetNeeded):
        vector.step(np.zeros(2, dtype=np.int64))
    env.reset(seed=0)
    vector.reset(seed=0)
    env.step(0)  # x = 0 at the start: both are in state 0 now
    vector.step(np.array([0, 0]))
    for action in (1, 2, -1):
        with pytest.raises(ValueError, match=r"^action: expected one that exists in state 0"):
            env.step(action)
        with pytest.raises(ValueError, match=r"^actions\[1\]: expected one that exists in state 0"):
            vector.step(np.array([0, action]))
    for actions in (np.zeros(3, dtype=np.int64), np.zeros(2)):
        with pytest.raises(ValueError, match=r"^actions: expected 2 whole numbers"):
            vector.step(actions)


def test_terminal_states_pay_once_and_end_the_episode() -> None:
    problem = array_problem(terminal=[False, True])
    vector = TabularVectorEnv(problem, 3, max_episode_steps=3)
    env: Any = TabularEnv(problem)
    env.set_leader([1.0])
    vector.set_leader([1.0])
    while env.reset()[0] != 0:
        pass
    assert env.step(0)[:4] == (0, 1.0, False, False)
    assert env.step(1)[:4] == (1, 1.0, False, False)  # arriving does not end it
    assert env.step(0)[1:4] == (2.0, True, False)
    obs, _ = vector.reset(seed=0)
    length = np.zeros(3, dtype=np.int64)
    for _ in range(60):
        before, length = obs, length + 1
        obs, reward, terminated, truncated, infos = vector.step(np.array([0, 1, 1]))
        np.testing.assert_array_equal(terminated, before == 1)
        np.testing.assert_array_equal(truncated, length == 3)
        np.testing.assert_array_equal(reward, before + 1.0)
        done = terminated | truncated
        length[done] = 0
        assert ("final_obs" in infos) == bool(done.any())
        if done.any():
            np.testing.assert_array_equal(infos["_final_obs"], done)
            assert infos["final_obs"][done].tolist() == np.array([0, 1, 1])[done].tolist()
            np.testing.assert_array_equal(infos["final_info"]["leader_reward"][done], (2 * before + 1.0)[done])
            assert infos["final_obs"][~done].tolist() == [None] * int((~done).sum())


def test_random_numbers_do_not_depend_on_what_happens() -> None:
    """Other actions, another x, other ends of episodes: the generator stands where it would have stood."""
    one, two = (TabularVectorEnv(array_problem(terminal=[False, True]), 5) for _ in range(2))
    two.set_leader([1.0])
    one.reset(seed=3)
    two.reset(seed=3)
    for _ in range(10):
        one.step(np.zeros(5, dtype=np.int64))
        two.step(np.ones(5, dtype=np.int64))
    assert one.np_random.bit_generator.state == two.np_random.bit_generator.state


@pytest.mark.parametrize("problem", [random_stackelberg(**GAME), MovingProblem()], ids=["stackelberg", "moving"])
def test_leader_model_slopes_are_central_differences(problem: TabularProblem) -> None:
    env = TabularVectorEnv(problem, 6)
    env.set_leader(np.random.default_rng(0).uniform(-1, 1, problem.leader_dim))
    s, a, w, s_next, _, _ = record(env, 3)
    model = env.leader_model()
    assert [name for name, _ in model.named_parameters()] == ["x"]
    weights = torch.linspace(-1, 1, len(s), dtype=torch.float64)
    for i in range(3):
        value = (model(s, a, w, s_next)[i] * weights).sum()
        (slope,) = torch.autograd.grad(value, model.x)
        difference = torch.zeros_like(slope)
        for j in range(problem.leader_dim):
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():  # as a sampler calls it: P's share of log_p must not go missing
                    model.x[j] += step
                    ends.append((model(s, a, w, s_next)[i] * weights).sum())
                    model.x[j] -= step
            difference[j] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-8)
        assert i != 2 or bool((slope != 0).any())


def test_a_kernel_that_did_not_change_is_kept() -> None:
    env: Any = StackelbergGameEnv.vector(num_envs=2, **GAME)
    before = env._tables.P
    env.set_leader(np.ones((2, 12)))
    assert env._tables.P is before
    env.problem.kernel(torch.zeros(12)).P.add_(0.0)  # written in place
    env.set_leader(np.ones(12))
    assert env._tables.P is not before


def test_ansi_rendering() -> None:
    env = TabularEnv(TwoStateProblem(), render_mode="ansi")
    env.reset(seed=0)
    env.step(1)
    assert env.render() is not None
    assert str(env.render()).endswith("state 1")


@pytest.mark.parametrize("action", [0.5, -0.5, 1.5, np.float64(0.25)])
def test_an_action_that_is_no_whole_number_is_refused(action: float) -> None:
    env = gym.make("bilevel_gym/TwoState-v0").unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action: expected one that exists in state"):
        env.step(action)
    env.step(np.int64(1))
