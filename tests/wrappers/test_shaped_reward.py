"""Rewards that a leader shapes: what is paid, its gradient in x, and what is refused."""

import copy
import math
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from bilevel_gym.agents import PBRL, PBRLConfig, Rollouts
from bilevel_gym.agents.estimators.rollouts import collect, discounts, surrogate
from bilevel_gym.wrappers import (
    EventPayments,
    LeaderWrapper,
    LinearPotential,
    LinearReward,
    PotentialModule,
    RewardModule,
    ShapedReward,
    Shaping,
    Step,
    set_leader,
)

GAMMA = 0.9


def place_and_speed(obs: Any, action: Any, next_obs: Any) -> Any:
    return [next_obs[0], obs[1] * action, 1.0]


def potential_features(obs: Any) -> Any:
    return [obs[3], obs[2] ** 2]


def pushes_right(obs: Any, action: Any, next_obs: Any) -> bool:
    return bool(action == 1)


def leans_left(obs: Any, action: Any, next_obs: Any) -> bool:
    return bool(next_obs[2] < 0.0)


class Network(nn.Module):
    """A small network of (s, a, s')."""

    def __init__(self, n_actions: int = 2, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_actions, 2)
        self.net = nn.Sequential(nn.Linear(2 * width + 2, 2), nn.Tanh(), nn.Linear(2, 1))

    def forward(self, obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(torch.cat([obs, self.embed(action), next_obs], -1)).squeeze(-1)
        return out


class Flat(nn.Module):
    """A network's only column, as ``[n]``."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 2), nn.Tanh(), nn.Linear(2, 1))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(obs).squeeze(-1)
        return out


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network()


def flat() -> nn.Module:
    torch.manual_seed(0)
    return Flat()


SHAPINGS: dict[str, Any] = {
    "features": lambda: LinearReward(place_and_speed, 3),
    "events": lambda: EventPayments([pushes_right, leans_left]),
    "module": lambda: RewardModule(network()),
    "potential": lambda: LinearPotential(potential_features, 2),
    "potential module": lambda: PotentialModule(flat()),
}


def shaped(shaping: Shaping, **kwargs: Any) -> ShapedReward:
    return ShapedReward(gym.make("CartPole-v1", max_episode_steps=40), shaping, GAMMA, -3.0, 3.0, **kwargs)


def point(env: LeaderWrapper, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, len(env.leader_x))


def play(env: LeaderWrapper, steps: int = 30) -> tuple[list[torch.Tensor], list[tuple[float, float]]]:
    """Random steps from seed 1: the batch that a leader model takes, and both rewards paid."""
    rng = np.random.default_rng(1)
    obs, _ = env.reset(seed=1)
    rows, paid = [], []
    for _ in range(steps):
        action = int(rng.integers(2))
        after, reward, terminated, truncated, info = env.step(action)
        rows.append((obs, action, info["leader_draw"], after))
        paid.append((reward, info["leader_reward"]))
        obs = env.reset()[0] if terminated or truncated else after
    return [torch.as_tensor(np.stack(column)) for column in zip(*rows, strict=True)], paid


@pytest.mark.parametrize("kind", SHAPINGS)
def test_the_model_pays_what_the_environment_pays(kind: str) -> None:
    env = shaped(SHAPINGS[kind](), leader_pays=0.3)
    env.set_leader(point(env))
    batch, paid = play(env)
    r_follower, r_leader, log_p = env.leader_model()(*batch)
    np.testing.assert_allclose(torch.stack([r_follower, r_leader], 1).detach(), paid, rtol=1e-12)
    np.testing.assert_allclose(1.0 - 0.3 * (np.array(paid)[:, 0] - 1.0), np.array(paid)[:, 1], rtol=1e-12)
    assert np.ptp(np.array(paid)[:, 0]) > 0.1
    assert not log_p.detach().any()


@pytest.mark.parametrize("kind", SHAPINGS)
def test_the_models_gradient_against_central_differences(kind: str) -> None:
    env = shaped(SHAPINGS[kind](), leader_pays=0.3)
    x, h = point(env), 1e-5
    env.set_leader(x)
    batch, _ = play(env)
    weights = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 30)))

    def both(at: np.ndarray[Any, Any]) -> torch.Tensor:
        env.set_leader(at)
        model = env.leader_model()
        r_follower, r_leader, log_p = model(*batch)
        total: torch.Tensor = (weights[0] * r_follower + weights[1] * r_leader + log_p).sum().detach()
        return total

    model = env.leader_model()
    r_follower, r_leader, log_p = model(*batch)
    value = (weights[0] * r_follower + weights[1] * r_leader + log_p).sum()
    (gradient,) = torch.autograd.grad(value, model.x)
    numeric = [float(both(x + h * e) - both(x - h * e)) / (2.0 * h) for e in np.eye(len(x))]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)
    assert gradient.norm() > 0.0


@pytest.mark.parametrize("kind", SHAPINGS)
def test_the_gradient_of_the_return_against_central_differences(kind: str) -> None:
    """Of a fixed policy in copies under DummyVecEnv, where x moves no transition: on the same random numbers, exactly."""
    venv = DummyVecEnv([lambda: shaped(SHAPINGS[kind]()) for _ in range(2)])
    x = point(venv.envs[0])  # type: ignore[arg-type]
    kicks = np.random.default_rng(3).integers(2, size=(25, 2))

    def returns(at: Any) -> Any:
        set_leader(venv, at)
        steps = iter(kicks)
        rollout = collect(venv, lambda _: next(steps), len(kicks), seed=5)
        return rollout, (discounts(rollout, GAMMA) * rollout.r_follower).sum() / 2

    rollout, _ = returns(x)
    assert 0.0 < rollout.alive.mean() < 1.0
    (model,) = venv.env_method("leader_model", indices=0)
    nothing = np.zeros_like(rollout.alive)
    (follower,), _ = surrogate(model, rollout, discounts(rollout, GAMMA), (nothing, nothing))
    (gradient,) = torch.autograd.grad(follower, model.x)
    h = 1e-2 if kind in ("features", "events", "potential") else 1e-3  # SB3 pays in float32
    numeric = [(returns(x + h * e)[1] - returns(x - h * e)[1]) / (2.0 * h) for e in np.eye(len(x))]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("kind", ["potential", "potential module"])
@pytest.mark.parametrize("limit", [40, 5])
def test_potentials_telescope(kind: str, limit: int) -> None:
    """sum_t gamma^t phi = gamma^T Phi(s_T) - Phi(s_0), Phi(s_T) being 0 where the episode terminates, not where it is cut."""
    env = ShapedReward(gym.make("CartPole-v1", max_episode_steps=limit), SHAPINGS[kind](), GAMMA, -3.0, 3.0)
    x = point(env)
    env.set_leader(x)
    module = flat().double()
    nn.utils.vector_to_parameters(torch.from_numpy(x if kind != "potential" else np.zeros(31)), module.parameters())

    def potential(obs: Any) -> float:
        if kind == "potential":
            return float(np.asarray(potential_features(obs)) @ x)
        with torch.no_grad():
            return float(module(torch.as_tensor(obs, dtype=torch.float64)[None]).item())

    first, _ = env.reset(seed=0)
    total, t, done = 0.0, 0, False
    while not done:
        obs, reward, terminated, truncated, info = env.step(1)
        total += GAMMA**t * (reward - info["leader_reward"])
        t, done = t + 1, terminated or truncated
    assert terminated == (limit == 40)
    rest = 0.0 if terminated else GAMMA**t * potential(obs)
    assert total == pytest.approx(rest - potential(first), rel=1e-6)


def test_events_are_paid_where_they_happen() -> None:
    env = shaped(EventPayments([pushes_right, leans_left]), leader_pays=1.0)
    env.set_leader([0.5, -2.0])
    batch, paid = play(env)
    expected = 1.0 + 0.5 * (batch[1] == 1) - 2.0 * (batch[3][:, 2] < 0)
    np.testing.assert_allclose(np.array(paid), np.stack([expected, 2.0 - expected], 1))


def test_the_leaders_reward_is_the_users_choice() -> None:
    def pushed(step: Step) -> float:
        return float(10.0 * step.action + step.reward)

    env = shaped(SHAPINGS["features"](), leader_reward=pushed)
    env.set_leader([1.0, 1.0, 1.0])
    batch, paid = play(env)
    np.testing.assert_allclose([leader for _, leader in paid], 10.0 * batch[1] + 1.0)


def test_spaces_may_be_discrete_and_actions_continuous() -> None:
    lake = ShapedReward(gym.make("FrozenLake-v1"), LinearReward(lambda s, a, z: np.eye(16)[z], 16), GAMMA)
    lake.set_leader(np.linspace(0.0, 1.0, 16))
    lake.reset(seed=0)
    z, reward, *_, info = lake.step(2)
    assert reward == info["leader_reward"] + z / 15

    class Torque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.ones(1))

        def forward(self, obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
            return -self.x * action.square().sum(-1)

    pendulum = ShapedReward(gym.make("Pendulum-v1"), RewardModule(Torque()), GAMMA)
    pendulum.reset(seed=0)
    _, reward, *_, info = pendulum.step(np.array([2.0], dtype=np.float32))
    assert reward == pytest.approx(info["leader_reward"] - 4.0)


def test_set_leader_counts_from_the_next_step_through_other_wrappers() -> None:
    env = gym.wrappers.TimeLimit(shaped(EventPayments([pushes_right])), 10)
    env.reset(seed=0)
    assert env.step(1)[1] == 1.0
    x = np.array([2.0])
    env.unwrapped.set_leader(x)  # type: ignore[attr-defined]
    x[0] = 0.0
    assert env.step(1)[1] == 3.0
    assert env.get_wrapper_attr("leader_x") == [2.0]
    assert env.get_wrapper_attr("force_mag") == 10.0  # of the base environment
    assert env.set_wrapper_attr("force_mag", 5.0, force=False)
    assert env.unwrapped.env.unwrapped.force_mag == 5.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("kind", SHAPINGS)
def test_a_copy_has_its_own_leader(kind: str, how: Any) -> None:
    env = shaped(SHAPINGS[kind]())
    twin = how(env)
    twin.set_leader(point(env))
    assert not np.array_equal(twin.leader_x, env.leader_x)
    twin.set_leader(env.leader_x)
    np.testing.assert_equal(play(twin)[1], play(env)[1])


def test_pbrl_learns_on_a_wrapped_environment() -> None:
    """The leader likes the cart to the right, and pays for a place: it learns to pay for the right one."""

    def to_the_right(step: Step) -> float:
        return float(step.next_obs[0])

    def make() -> gym.Env[Any, Any]:
        place = LinearReward(lambda obs, action, next_obs: [next_obs[0]], 1)
        env = ShapedReward(gym.make("CartPole-v1", max_episode_steps=30), place, GAMMA, leader_reward=to_the_right)
        return env

    config = PBRLConfig(
        learning_rate=0.1,
        n_envs=8,
        follower_steps=256,
        warmup_steps=0,
        estimator=Rollouts(n_envs=16),
        evaluation_steps=64,
        eval_every=100,
    )
    leader = PBRL(make, A2C, config=config).learn(6_000)
    assert leader.oracle_failures < leader.iteration
    assert leader.last_x[0] > 0.0
    assert leader.worlds.horizon(0.01) == 30


# --- bad input --------------------------------------------------------------------------------------------------------


class Answer(nn.Module):
    """A reward model that answers with a function of its only parameter and the number of steps."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(1))
        self.answer = answer

    def forward(self, obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> Any:
        return self.answer(self.x, len(obs))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x, n: x * math.nan * torch.ones(n), "module: expected finite rewards"),
        (
            lambda x, n: x * torch.ones(n, 1),
            r"module: expected an output of shape \(8,\), one number for each step, got shape \(8, 1\)",
        ),
        (lambda x, n: x.sum(), r"module: expected an output of shape \(8,\), one number for each step, got shape \(\)"),
        (lambda x, n: 3.0, r"module: expected an output of shape \(8,\), one number for each step, got 3.0"),
        (lambda x, n: torch.ones(n), "module: expected a reward that depends on its parameters x"),
        (lambda x, n: 0.0 * x * torch.ones(n), "module: expected a reward that depends on its parameters x"),
    ],
)
def test_reward_models_that_are_none(answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shaped(RewardModule(Answer(answer)))


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="module: expected a module with parameters"):
        RewardModule(nn.Tanh())


def test_a_payment_that_turns_nan_is_named() -> None:
    env = shaped(RewardModule(Answer(lambda x, n: (x - 1.0 + 1e-3).log() * torch.ones(n))))
    env.set_leader([0.0])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shaping: expected a finite payment in every step, got nan at x = \[0.\]"):
        env.step(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shaped(LinearReward(place_and_speed, 4)), r"features: expected shape \(4,\), got shape \(3,\)"),
        (lambda: shaped(LinearPotential(potential_features, 3)), r"features: expected shape \(3,\), got shape \(2,\)"),
        (lambda: shaped(LinearReward(lambda s, a, z: [math.nan], 1)), "features: expected finite numbers"),
        (lambda: shaped(EventPayments([lambda s, a, z: 2.5])), r"events\[0\]: expected True or False, got 2.5"),  # type: ignore[list-item, return-value]
        (lambda: shaped(EventPayments([])), "events: expected callables"),
        (lambda: shaped(LinearReward(3, 1)), "features: expected a callable"),  # type: ignore[arg-type]
        (lambda: shaped(LinearReward(place_and_speed, 0)), "size: expected a whole number"),
        (lambda: shaped(lambda s, a, z: 1.0), "shaping: expected a Shaping"),  # type: ignore[arg-type]
        (lambda: shaped(SHAPINGS["features"](), leader_reward=3.0), "leader_reward: expected a callable"),
        (lambda: shaped(SHAPINGS["features"](), leader_pays=math.inf), "leader_pays: expected"),
        (lambda: ShapedReward("CartPole-v1", SHAPINGS["events"]()), "env: expected a Gymnasium environment"),  # type: ignore[arg-type]
        (lambda: ShapedReward(gym.make("CartPole-v1"), SHAPINGS["events"](), low=[0.0] * 3), "low: expected a number or"),
        (lambda: ShapedReward(gym.make("CartPole-v1"), SHAPINGS["events"](), low=1.0, high=0.0), "low: expected low <="),
        (lambda: ShapedReward(gym.make("CartPole-v1"), SHAPINGS["events"](), gamma=1.0), "gamma: expected"),
        (lambda: ShapedReward(gym.make("Blackjack-v1"), SHAPINGS["events"]()), "env: expected a Box, Discrete, .* obs"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_leaders_reward_that_is_no_number() -> None:
    env = shaped(SHAPINGS["events"](), leader_reward=lambda step: math.nan)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="leader_reward: expected a finite number in every step, got nan"):
        env.step(0)
