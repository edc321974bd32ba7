"""Physical attributes drawn from the leader's Gaussian."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from bilevel_gym.agents import PBRL, PBRLConfig, Rollouts
from bilevel_gym.agents.estimators.rollouts import RolloutEstimator, collect
from bilevel_gym.agents.followers.sb3 import SB3Follower
from bilevel_gym.agents.followers.spec import Answering
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.wrappers import Attribute, DrawnAttribute, set_leader
from bilevel_gym.wrappers.vec_env import leader_model


class Scale(gym.Env[Any, Any]):
    """Three steps; each pays -(k - 3)^2, so that under k ~ N(m, s^2) the mean return has a closed form."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.k = 2.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.full(1, self.t / 3, dtype=np.float32), -((self.k - 3.0) ** 2), self.t == 3, False, {}


def set_length(env: Any, value: float) -> None:
    env.length = value
    env.polemass_length = env.masspole * value


def scale(**kwargs: Any) -> DrawnAttribute:
    return DrawnAttribute(Scale(), [Attribute("k", 0.0, 5.0, 0.5)], gamma=0.9, **kwargs)


def episodes() -> gym.Env[Any, Any]:
    """With the length of an episode known, so that no rollout plays on."""
    return gym.wrappers.TimeLimit(scale(), 3)


def pendulum(**kwargs: Any) -> DrawnAttribute:
    attributes = [Attribute("g", 6.0, 14.0, 4.0, limits=(6.0, 14.0)), Attribute("m", 0.5, 2.0, (0.01, 0.16))]
    return DrawnAttribute(gym.make("Pendulum-v1"), attributes, gamma=0.9, **kwargs)


def test_the_environment_lives_by_the_draw() -> None:
    """Pendulum: speed' = speed + (3 g / 2 sin(angle) + 3 u / m) dt with l = 1, and g clipped to its limits."""
    env: Any = pendulum()
    inner = env.env.unwrapped
    clipped = 0
    for seed in range(12):
        env.reset(seed=seed)
        angle, speed = inner.state
        *_, info = env.step(np.array([1.0], dtype=np.float32))
        _, _, first, g, m = info["leader_draw"]
        assert (first, inner.g, inner.m) == (1.0, min(max(g, 6.0), 14.0), m)
        expected = speed + (15.0 / 10.0 * inner.g * math.sin(angle) + 3.0 / m) * 0.05
        assert inner.state[1] == pytest.approx(expected)
        clipped += g != inner.g
    assert 0 < clipped < 12


def test_log_p_is_the_gaussians_and_counts_once_an_episode() -> None:
    env = pendulum()
    x = [8.0, 1.5, math.log(0.1)]
    env.set_leader(x)
    draws = []
    for _ in range(2):
        env.reset()
        draws += [env.step(np.zeros(1, dtype=np.float32))[-1]["leader_draw"] for _ in range(3)]
    assert [draw[2] for draw in draws] == [1.0, 0.0, 0.0] * 2
    assert not np.array_equal(draws[0][3:], draws[3][3:])
    model = env.leader_model()
    r_follower, r_leader, log_p = model(None, None, np.stack(draws), None)
    for i, draw in enumerate(draws):
        whole = torch.distributions.Normal(8.0, 4.0).log_prob(torch.tensor(draw[3]))
        whole = whole + torch.distributions.Normal(1.5, 0.1).log_prob(torch.tensor(draw[4]))
        assert log_p[i].item() == pytest.approx(whole.item() if i in (0, 3) else 0.0, rel=1e-6)
    (gradient,) = torch.autograd.grad(log_p[0] + r_follower.sum() + r_leader.sum(), model.x)
    z = (draws[0][4] - 1.5) / 0.1
    np.testing.assert_allclose(gradient, [(draws[0][3] - 8.0) / 16.0, z / 0.1, z * z - 1.0], rtol=1e-12)


class _Idle:
    """A follower that does nothing, for a gradient estimator."""

    def __init__(self, follower: SB3Follower) -> None:
        self.generators = follower.generators

    def player(self, venv: VecEnv) -> Any:
        return lambda obs: np.zeros(len(obs), dtype=np.int64)


@pytest.mark.parametrize(("gae_lambda", "unbiased"), [(None, True), (0.0, False)])
def test_the_gradient_of_the_return_against_its_closed_form(gae_lambda: float | None, unbiased: bool) -> None:
    """E return = -(1 + gamma + gamma^2) ((m-3)^2 + s^2). A critic's TD errors, blind to the draw, miss all but one step."""
    worlds = Worlds(episodes, None, observe_commitment=False)
    venv = DummyVecEnv([episodes])
    idle: Any = _Idle(SB3Follower(PPO, venv, 0.9, 0, False, Answering()))
    estimator = RolloutEstimator(worlds, Rollouts(n_envs=120, gae_lambda=gae_lambda), np.random.default_rng(0))
    x, each, T = torch.tensor([2.0], dtype=torch.float64), [], 1.0 + 0.9 + 0.81
    for _ in range(8):
        set_leader(estimator.venv, x.numpy())
        model = leader_model(worlds.env, x.numpy())
        seed = int(estimator.rng.integers(2**31))
        played = collect(estimator.venv, idle.player(estimator.venv), estimator.horizon, seed)
        (follower, _), _ = estimator._surrogates(model, played, played.r_follower, estimator.critics["penalised"])
        each.append(float(torch.autograd.grad(follower, model.get_parameter("x"))[0]))
    exact, error = 2.0 * T, np.std(each, ddof=1) / math.sqrt(len(each))
    assert error < 0.2 * exact
    if unbiased:
        assert abs(np.mean(each) - exact) < 3.0 * error + 1e-9
    else:
        assert np.mean(each) == pytest.approx(2.0, abs=float(4.0 * error))
        assert exact - np.mean(each) > 10.0 * error


def test_the_draw_is_independent_of_the_first_state() -> None:
    env: Any = DrawnAttribute(gym.make("Pendulum-v1"), [Attribute("g", 1.0, 20.0, 1.0)])
    pairs = []
    for seed in range(400):
        env.reset(seed=seed)
        pairs.append((env.env.unwrapped.g, *env.env.unwrapped.state))
    assert np.abs(np.corrcoef(np.array(pairs).T)[0, 1:]).max() < 3.0 / math.sqrt(400)
    assert np.mean(pairs, axis=0)[0] == pytest.approx(10.0, abs=4.0 / math.sqrt(400))
    assert np.std(pairs, axis=0)[0] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("show_draw", [True, False])
def test_the_commitment_shows_the_draw_if_asked(show_draw: bool) -> None:
    env: Any = pendulum(show_draw=show_draw)
    obs, _ = env.reset(seed=0)
    shown = env.commitment(obs)
    drawn = [env.env.unwrapped.g, env.env.unwrapped.m] if show_draw else []
    np.testing.assert_array_equal(shown, np.array([*env.leader_x, *drawn], dtype=np.float32))
    assert shown.shape == (env.commitment_size,)


def test_x_counts_from_the_next_reset_in_every_copy() -> None:
    venv = DummyVecEnv([scale for _ in range(3)])
    venv.reset()
    before = [env.get_wrapper_attr("env").k for env in venv.envs]
    assert len(set(before)) == 3
    set_leader(venv, np.array([[0.0], [2.5], [5.0]]))
    for _ in range(2):
        venv.step(np.zeros(3, dtype=np.int64))
        assert [env.get_wrapper_attr("env").k for env in venv.envs] == before
    venv.step(np.zeros(3, dtype=np.int64))  # ends, and resets
    after = np.array([env.get_wrapper_attr("env").k for env in venv.envs])
    assert np.abs(after - [0.0, 2.5, 5.0]).max() < 2.5


def test_the_leader_starts_at_the_environments_own_value() -> None:
    start = pendulum().leader_x
    np.testing.assert_allclose(start, [10.0, 1.0, math.log(0.04)])
    assert DrawnAttribute(Scale(), [Attribute("k", 2.5, 3.0, 0.1)]).leader_x == [2.5]


def test_a_setter_keeps_what_follows_from_the_attribute() -> None:
    env: Any = DrawnAttribute(gym.make("CartPole-v1"), [Attribute("length", 0.2, 2.0, 0.05, (0.1, 3.0), set_length)])
    env.set_leader([1.5])
    env.reset(seed=0)
    pole = env.env.unwrapped
    assert pole.length != 0.5
    assert pole.polemass_length == pole.masspole * pole.length
    assert DrawnAttribute(env.env, [Attribute("any name", 1.0, 2.0, 0.1, setter=set_length)]).leader_x == [1.5]


def test_pbrl_learns_a_drawn_attribute() -> None:
    config = PBRLConfig(
        learning_rate=0.2,
        n_envs=4,
        follower_steps=64,
        warmup_steps=0,
        estimator=Rollouts(n_envs=16),
        x_noise=0.1,
        evaluation_steps=64,
        eval_every=100,
    )
    leader = PBRL(episodes, PPO, config=config, x0=[1.0]).learn(2_200)
    assert leader.estimator.gae_lambda == 1.0
    assert leader.oracle_failures < leader.iteration
    assert 1.5 < leader.last_x[0] < 3.5  # the optimum is 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DrawnAttribute(gym.make("Pendulum-v1"), [Attribute("gravity", 1.0, 20.0, 1.0)]),
            r"attributes: expected an attribute of PendulumEnv that is a number: dt, g, l, m, .*, got 'gravity'",
        ),
        (
            lambda: DrawnAttribute(gym.make("CartPole-v1"), [Attribute("state", 1.0, 20.0, 1.0)]),
            r"attributes: expected an attribute of CartPoleEnv that is a number: force_mag, .*length",
        ),
        (lambda: DrawnAttribute(Scale(), []), "attributes: expected a list of at least one Attribute"),
        (lambda: DrawnAttribute(Scale(), ["k"]), "attributes: expected a list of at least one Attribute, got"),  # type: ignore[list-item]
        (lambda: DrawnAttribute(3, [Attribute("k", 0.0, 1.0, 0.1)]), "env: expected a Gymnasium env"),  # type: ignore[arg-type]
        (lambda: Attribute("k", 2.0, 1.0, 0.1), "low: expected low <= high within"),
        (lambda: Attribute("k", 0.0, 1.0, 0.1, limits=(0.5, 2.0)), "low: expected low <= high within"),
        (lambda: Attribute("k", 0.0, 1.0, 0.0), r"std: expected a number in \(0, inf\)"),
        (lambda: Attribute("k", 0.0, 1.0, (0.2, 0.1)), "std: expected smallest <= largest"),
        (lambda: Attribute("k", 0.0, math.inf, 0.1), "high: expected a number"),
        (lambda: Attribute("k", 0.0, 1.0, 0.1, setter=3), "setter: expected a callable"),  # type: ignore[arg-type]
        (lambda: scale(show_draw=1), "show_draw: expected True or False"),
        (lambda: scale().set_leader([6.0]), r"x: expected a point of X, within \[0, 5\]"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
