"""LQStackelberg-v0 and any linear-quadratic game as environments: what is drawn, paid, shown and refused."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import bilevel_gym
from bilevel_gym.envs.linear_quadratic import LinearQuadraticEnv, LinearQuadraticVectorEnv
from bilevel_gym.envs.lq_stackelberg import LQStackelbergEnv
from bilevel_gym.envs.mdp import LeaderSet, LinearQuadraticProblem, random_linear_quadratic, steering_game
from bilevel_gym.wrappers import VectorEnvAdapter

assert bilevel_gym.__version__
F64 = torch.float64
GAMES = {"steering": steering_game(), "three states": random_linear_quadratic(3, 2, gamma=0.8, seed=1)}
POINTS = {"steering": [-0.9, 0.4], "three states": [0.3, -0.2, 0.1, 0.0, 0.4, -0.3]}


def point(name: str) -> torch.Tensor:
    return torch.tensor(POINTS[name], dtype=F64)


def best_actions(problem: LinearQuadraticProblem, x: torch.Tensor, s: Any) -> NDArray[np.float64]:
    """The exact best response as actions, ``[N, m_f]``, not clipped."""
    actions: NDArray[np.float64] = -(s @ problem.best_response(x).F.numpy().T) / problem.action_bound.numpy()
    return actions


# --- play -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GAMES)
def test_the_mean_return_is_the_exact_one(name: str) -> None:
    """Within four standard errors, which are under a hundredth; and the best response never meets a bound."""
    problem, x, n, steps = GAMES[name], point(name), 20_000, 120
    env = LinearQuadraticVectorEnv(problem, n)
    env.set_leader(x)
    F = problem.best_response(x).F
    s, _ = env.reset(seed=3)
    follower, leader, largest = np.zeros(n), np.zeros(n), 0.0
    for t in range(steps):
        actions = best_actions(problem, x, s)
        largest = max(largest, float(np.abs(actions).max()))
        s, reward, _, _, infos = env.step(actions)
        follower += problem.gamma**t * reward
        leader += problem.gamma**t * infos["leader_reward"]
    assert largest < 1.0
    assert problem.saturation_probability(x) < 1e-6
    for sampled, exact in ((follower, problem.follower_return(x, F)), (leader, problem.leader_return(x, F))):
        stderr = sampled.std(ddof=1) / np.sqrt(n)
        tail = (
            10.0 * problem.gamma**steps * abs(float(exact))
        )  # rewards are stationary by then: a tail of about the return
        assert abs(sampled.mean() - float(exact)) < 4.0 * stderr + tail
        assert stderr + tail < 0.01 * abs(float(exact))


@pytest.mark.parametrize("name", GAMES)
def test_one_copy_is_the_environment(name: str) -> None:
    problem, x = GAMES[name], point(name)
    one, many = LinearQuadraticEnv(problem), LinearQuadraticVectorEnv(problem, 1)
    one.set_leader(x)
    many.set_leader(x)
    np.testing.assert_array_equal(one.reset(seed=5)[0][None], many.reset(seed=5)[0])
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1.5, 1.5, problem.sizes[2]).astype(np.float32)
        s, reward, _, _, info = one.step(action)
        s_many, reward_many, _, _, infos = many.step(action[None])
        np.testing.assert_array_equal(s[None], s_many)
        assert reward == reward_many[0]
        assert info["leader_reward"] == infos["leader_reward"][0]
        np.testing.assert_array_equal(info["leader_draw"], infos["leader_draw"][0])


@pytest.mark.parametrize("name", GAMES)
def test_a_step_is_that_of_the_game(name: str) -> None:
    """u_l ~ N(-K s, sigma^2) and s' - E s' ~ N(0, W), each copy under its own K; rewards by hand."""
    problem, n = GAMES[name], 60_000
    d = problem.dynamics
    low, high = problem.leader_set.low.numpy(), problem.leader_set.high.numpy()
    env = LinearQuadraticVectorEnv(problem, n)
    x = np.random.default_rng(1).uniform(low, high, (n, len(low)))
    env.set_leader(x)
    K = problem.gain(torch.from_numpy(x)).numpy()
    s, _ = env.reset(seed=0)
    np.testing.assert_allclose(np.cov(s.T), d.start.numpy(), atol=0.03 * float(d.start.max()))
    a = np.random.default_rng(2).uniform(-1.5, 1.5, (n, problem.sizes[2]))
    following, reward, _, _, infos = env.step(a)
    u_l, u_f = infos["leader_draw"], problem.action_bound.numpy() * np.clip(a, -1, 1)
    e = (u_l + np.einsum("nij,nj->ni", K, s)) / problem.sigma
    w = following - s @ d.A.numpy().T - u_l @ d.B_leader.numpy().T - u_f @ d.B_follower.numpy().T
    for drawn, covariance in ((e, np.eye(problem.sizes[1])), (w, d.noise.numpy())):
        scale = covariance.max()
        np.testing.assert_allclose(drawn.mean(0), 0.0, atol=0.02 * np.sqrt(scale))
        np.testing.assert_allclose(np.atleast_2d(np.cov(drawn.T)), covariance, atol=0.03 * scale)
    assert abs(np.corrcoef(e[:, 0], w[:, 0])[0, 1]) < 0.02
    for cost, paid in ((problem.follower_cost, reward), (problem.leader_cost, infos["leader_reward"])):
        Q, R_l, R_f = (part.numpy() for part in (cost.Q, cost.R_leader, cost.R_follower))
        for i in range(50):
            assert paid[i] == pytest.approx(-(s[i] @ Q @ s[i] + u_l[i] @ R_l @ u_l[i] + u_f[i] @ R_f @ u_f[i]))


def test_random_numbers_are_common_whatever_the_actions() -> None:
    problem = steering_game()
    envs = [LinearQuadraticVectorEnv(problem, 4, max_episode_steps=3) for _ in range(2)]
    states = [env.reset(seed=9)[0] for env in envs]
    for t in range(1, 10):
        actions = [np.full((4, 1), 0.1 * t), np.full((4, 1), -0.2)]
        steps = [env.step(a) for env, a in zip(envs, actions, strict=True)]
        ended = t % 3 == 0
        assert all(bool(step[3].all()) is ended for step in steps)
        finals = [step[4]["final_obs"] if ended else step[0] for step in steps]
        drawn = [
            after - s @ (problem.dynamics.A - problem.dynamics.B_leader @ problem.gain(problem.start_x())).numpy().T
            - (problem.action_bound.numpy() * a) @ problem.dynamics.B_follower.numpy().T
            for after, s, a in zip(finals, states, actions, strict=True)
        ]  # fmt: skip
        np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-12)
        states = [step[0] for step in steps]
        if ended:
            np.testing.assert_array_equal(states[0], states[1])


# --- the leader's side ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GAMES)
def test_the_leader_model_is_the_step(name: str) -> None:
    problem, x, n = GAMES[name], point(name), 200
    env = LinearQuadraticVectorEnv(problem, n)
    env.set_leader(x)
    s, _ = env.reset(seed=1)
    a = np.random.default_rng(0).uniform(-1.3, 1.3, (n, problem.sizes[2]))
    following, reward, _, _, infos = env.step(a)
    model = env.leader_model()
    r_f, r_l, log_p = model(s, a, infos["leader_draw"], following)
    np.testing.assert_allclose(r_f.detach(), reward, rtol=1e-12)
    np.testing.assert_allclose(r_l.detach(), infos["leader_reward"], rtol=1e-12)
    K = problem.gain(x).clone().requires_grad_()
    law = torch.distributions.Normal(-torch.from_numpy(s) @ K.T, problem.sigma)
    expected = law.log_prob(torch.from_numpy(infos["leader_draw"])).sum(-1)
    torch.testing.assert_close(log_p, expected, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1.0, 1.0, n, dtype=F64)
    (ours,) = torch.autograd.grad((weights * log_p).sum() + r_f.sum() + r_l.sum(), [model.get_parameter("x")])
    (theirs,) = torch.autograd.grad((weights * expected).sum(), [K])
    torch.testing.assert_close(ours, theirs.reshape(-1), rtol=1e-11, atol=1e-11)


def test_the_commitment_is_the_gain() -> None:
    one, many = LQStackelbergEnv(), LQStackelbergEnv.vector(3)
    one.set_leader([-0.5, 0.25])
    assert one.commitment(one.observation_space.sample()).tolist() == [-0.5, 0.25]
    many.set_leader(np.array([[-0.5, 0.25], [-1.0, 0.5], [0.0, 0.0]]))
    assert many.commitment(None).tolist() == [[-0.5, 0.25], [-1.0, 0.5], [0.0, 0.0]]
    with pytest.raises(ValueError, match="x: expected one x for all environments"):
        many.leader_model()
    many.set_leader([-0.5, 0.25])
    assert many.commitment(None).tolist() == [[-0.5, 0.25]] * 3
    twin = pickle.loads(pickle.dumps(many))
    np.testing.assert_array_equal(twin.leader_x, many.leader_x)


def unsafe() -> LinearQuadraticProblem:
    """The steering game with a wider X: inside it, not at its corners, the follower cannot move an unstable mode."""
    game = steering_game()
    box = LeaderSet(torch.tensor([-1.5, -1.5]), torch.tensor([1.0, 1.5]))
    return LinearQuadraticProblem(game.dynamics, game.leader_cost, game.follower_cost, game.gamma, game.sigma, box)


def test_points_without_a_best_response_are_refused() -> None:
    env, vector = LinearQuadraticEnv(unsafe()), LinearQuadraticVectorEnv(unsafe(), 2)
    bad = [0.9, -1.1]  # the mode p - q has the eigenvalue 0.8 + 0.45
    message = r"^x: .*got the eigenvalue 1\.18585 \(modulus 1\.18585\) of sqrt\(gamma\) \(A - B_leader K\)"
    for refuse, x in ((env, bad), (vector, bad), (vector, [[0.0, 0.0], bad])):
        with pytest.raises(ValueError, match=message):
            refuse.set_leader(x)
        np.testing.assert_array_equal(refuse.leader_x, [0.0, 0.0])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([0.0], r"^x: expected shape \(2,\), got shape \(1,\)"),
        ([[0.0, 0.0]], r"^x: expected shape \(2,\)"),
        ([0.1, 0.0], "^x: expected a point of X, within"),
        ([np.nan, 0.0], "^x: expected finite numbers"),
        ("K", "^x: expected numbers"),
    ],
)
def test_bad_points_are_named(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LQStackelbergEnv().set_leader(x)


def test_bad_rows_are_named() -> None:
    env = LQStackelbergEnv.vector(2)
    with pytest.raises(ValueError, match=r"^x\[1\]: expected a point of X"):
        env.set_leader([[0.0, 0.0], [0.5, 0.0]])
    with pytest.raises(ValueError, match=r"^x: expected shape \(2,\) or \(2, 2\), got shape \(3, 2\)"):
        env.set_leader(np.zeros((3, 2)))


def test_bad_actions_are_named() -> None:
    env, vector = LQStackelbergEnv(), LQStackelbergEnv.vector(2)
    for one in (env, vector):
        with pytest.raises(gym.error.ResetNeeded):
            one.step(np.zeros(1))
        one.reset(seed=0)
    for wrong in (np.zeros(2), np.array([np.nan])):
        with pytest.raises(ValueError, match=r"^action: expected finite numbers of shape \(1,\)"):
            env.step(wrong)
    with pytest.raises(ValueError, match=r"^actions: expected finite numbers of shape \(2, 1\), got shape \(2,\)"):
        vector.step(np.zeros(2))
    with pytest.raises(ValueError, match="num_envs: expected"):
        LQStackelbergEnv.vector(0)


# --- SB3 and pictures -------------------------------------------------------------------------------------------------


def test_the_adapter_serves_continuous_spaces() -> None:
    venv = VectorEnvAdapter(gym.make_vec("bilevel_gym/LQStackelberg-v0", num_envs=3, max_episode_steps=2))
    assert venv.observation_space.dtype == np.float64
    venv.env_method("set_leader", [-0.5, 0.25], indices=[1])
    np.testing.assert_array_equal(venv.get_attr("leader_x"), [[0.0, 0.0], [-0.5, 0.25], [0.0, 0.0]])
    assert venv.env_method("commitment", np.zeros(2), indices=1)[0].tolist() == [-0.5, 0.25]
    shown = VectorEnvAdapter(venv.env, observe_commitment=True)
    first = shown.reset()
    assert first.shape == (3, 4)
    assert first[1, 2:].tolist() == [-0.5, 0.25]
    np.testing.assert_array_equal(shown.base_observation(first), first[:, :2])
    shown.step(np.zeros((3, 1)))
    obs, rewards, dones, infos = shown.step(np.zeros((3, 1)))
    assert isinstance(obs, np.ndarray)
    assert rewards.dtype == np.float32
    assert dones.all()
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert info["leader_draw"].shape == (1,)
        assert info["terminal_observation"].shape == (4,)
        assert not np.array_equal(info["terminal_observation"][:2], obs[i, :2])


@pytest.mark.parametrize("problem", [steering_game(), random_linear_quadratic(1, 1), random_linear_quadratic(3, 2)])
def test_pictures(problem: LinearQuadraticProblem) -> None:
    env = LinearQuadraticEnv(problem, render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    env.step(env.action_space.sample())
    frames.append(env.render())
    env.set_leader(problem.leader_set.low)
    frames.append(env.render())
    assert all(frame.dtype == np.uint8 and frame.shape == (320, 1000, 3) for frame in frames)
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])


def test_one_line_of_text() -> None:
    env = LQStackelbergEnv(render_mode="ansi")
    assert env.render() == ""
    s, _ = env.reset(seed=0)
    assert env.render() == f"state ({s[0]:.3g}, {s[1]:.3g})"
    _, reward, _, _, info = env.step([0.5])
    u_f = 0.5 * float(env.problem.action_bound[0])
    inputs = f"follower's input ({u_f:.3g}), leader's ({info['leader_draw'][0]:.3g})"
    assert env.render().startswith(f"{inputs}: follower {reward:.3g}, leader {info['leader_reward']:.3g}; state (")
    assert LQStackelbergEnv().render() is None
