"""An environment as SB3 takes it, random legal actions, and the step at which a number is none."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from bilevel_gym.envs.actions import draw_action, legal_action
from bilevel_gym.envs.mdp.checks import one_number
from bilevel_gym.wrappers import EventPayments, FiniteSteps, ForSB3, ShapedReward, WorkerVecEnv
from bilevel_gym.wrappers.vec_env import legal_actions
from tests.agents.users import Charged, Masked, Users, always, led

PICTURES = spaces.Box(0, 255, (7, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("obs", "actions", "told_obs", "told_actions"),
    [
        (None, spaces.Discrete(3, start=-1), None, spaces.Discrete(3)),
        (spaces.Discrete(4, start=7), spaces.MultiDiscrete([3, 2], start=[5, -2]), spaces.Discrete(4), None),
        (spaces.MultiDiscrete([3, 2], start=[1, -1]), spaces.Discrete(2), spaces.MultiDiscrete([3, 2]), None),
        (PICTURES, spaces.Discrete(2, start=2), spaces.Box(0, 255, (3, 7, 5), np.uint8), spaces.Discrete(2)),
    ],
    ids=str,
)
def test_the_environment_gets_its_own_actions_and_the_leader_model_its_own_steps(
    obs: Any, actions: Any, told_obs: Any, told_actions: Any
) -> None:
    """``Users`` insists on legal actions; what the model says of SB3's steps is what they paid."""
    own = Charged(obs, actions)
    env = ForSB3(own)
    assert told_obs is None or env.observation_space == told_obs
    assert told_actions is None or env.action_space == told_actions
    env.action_space.seed(0)
    before, _ = env.reset(seed=0)
    steps: list[Any] = []
    for _ in range(8):
        assert env.observation_space.contains(before)
        shown = env.commitment(before)
        np.testing.assert_array_equal(shown, own.commitment(own._now))
        action = env.action_space.sample()
        after, reward, _, _, info = env.step(action)
        assert type(reward) is type(info["leader_reward"]) is float
        steps.append((before, action, 0, after, reward, info["leader_reward"]))
        before = after
    *batch, paid, to_leader = (torch.as_tensor(np.stack([np.asarray(p) for p in column])) for column in zip(*steps))  # noqa: B905
    r_follower, r_leader, _ = env.leader_model()(*batch)
    torch.testing.assert_close(r_follower.detach(), paid, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(r_leader.detach(), to_leader)
    assert float(to_leader.min()) >= float(np.min(actions.start))


def test_other_environments_pass_as_they_are() -> None:
    env = gym.make("CartPole-v1")
    assert ForSB3(env).observation_space is env.observation_space
    assert ForSB3(env).action_space is env.action_space
    first = spaces.Box(0, 255, (3, 7, 5), np.uint8)
    assert ForSB3(Users(first)).observation_space is first


@pytest.mark.parametrize("value", [1.5, np.float32(1.5), np.array([1.5]), np.array(1.5), torch.tensor([1.5]), [1.5]])
def test_an_array_of_one_number_is_a_number(value: Any) -> None:
    assert one_number(value, "reward") == 1.5


@pytest.mark.parametrize("value", [np.ones(3), np.ones((1, 1)), np.zeros((2, 2)), None, "one", []])
def test_a_vector_is_refused_with_the_way_out(value: Any) -> None:
    many = np.ndim(value) > 0 and np.size(value) > 0
    with pytest.raises(
        ValueError, match=r"reward: expected .*TransformReward" if many else "reward: expected a number"
    ):
        one_number(value, "reward")


def test_the_way_out_of_a_vector_is_one() -> None:
    weights = np.array([2.0, -1.0])
    env = Users(paid=lambda step, action: np.array([1.0, step]))
    with pytest.raises(ValueError, match="TransformReward"):
        led(env)
    scalar: Any = gym.wrappers.TransformReward(env, lambda r: float(weights @ r))
    leader = led(scalar)
    leader.reset(seed=0)
    assert leader.step(0)[1] == 2.0 - env.steps


# --- legal actions ------------------------------------------------------------------------------------------------------

SPACES = [
    spaces.Discrete(3),
    spaces.Discrete(3, start=-4),
    spaces.MultiDiscrete([3, 2, 4]),
    spaces.MultiDiscrete([3, 2], start=[5, -2]),
    spaces.MultiBinary(4),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_random_moves_are_legal(space: Any) -> None:
    """Alone, in parallel, and where a payment is tried: an illegal move is an error of the environment's."""
    env = Masked(action_space=space)
    env.reset(seed=0)
    for _ in range(20):
        env.step(legal_action(env))
    ShapedReward(env, EventPayments([always]))
    venv = DummyVecEnv([lambda: ForSB3(Masked(action_space=space)) for _ in range(3)])
    venv.reset()
    for _ in range(20):
        venv.step(legal_actions(venv))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_all_legal_moves_are_drawn_and_nothing_changes_where_all_are(space: Any) -> None:
    space.seed(0)
    size = {spaces.Discrete: 3, spaces.MultiBinary: 8}.get(type(space)) or int(space.nvec.sum())
    plain = [space.sample() for _ in range(5)]
    space.seed(0)
    for one in plain:
        np.testing.assert_array_equal(draw_action(space, np.ones(size)), one)
    mask = np.ones(size, dtype=bool)
    mask[0] = False  # the first choice of the first part
    drawn = {int(np.atleast_1d(draw_action(space, mask) - getattr(space, "start", 0))[0]) for _ in range(60)}
    assert drawn == set(range(1, {spaces.MultiBinary: 2}.get(type(space), 3)))
    for bad in (np.ones(size + 1), np.zeros(size)):
        with pytest.raises(ValueError, match="action_masks: expected"):
            draw_action(space, bad)


def test_actions_that_are_not_counted_have_no_mask() -> None:
    with pytest.raises(ValueError, match="action_masks: expected none"):
        draw_action(spaces.Box(-1.0, 1.0, (2,)), np.ones(2))


# --- numbers that are none ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("kind", [DummyVecEnv, WorkerVecEnv])
@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e16, 1e39])
def test_a_reward_that_is_none_is_caught_at_its_step(kind: Any, value: float) -> None:
    """In the second of two environments, at its third step, under the x that it has."""
    if kind is WorkerVecEnv and value != 1e39:
        pytest.skip("one kind is enough")

    def make(bad: bool) -> Any:
        return lambda: led(Users(paid=lambda step, action: value if bad and step == 11 else 1.0))

    venv = FiniteSteps(kind([make(False), make(True)]), "some/Env-v0")
    try:
        venv.env_method("set_leader", np.array([0.25]))
        venv.reset()
        for _ in range(2):  # beside the eight that were tried
            venv.step(np.zeros(2, dtype=np.int64))
        seen = "inf" if value == 1e39 else f"{value:g}".replace("+", r"\+")  # in float32
        where = r"from some/Env-v0, parallel environment 1, in step 3, at x = \[0.25\]$"
        told = rf"^reward: expected finite numbers within 1e\+15, got {seen} {where}"
        with pytest.raises(ValueError, match=told):
            venv.step(np.zeros(2, dtype=np.int64))
    finally:
        venv.close()


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("shape", [(2,), (4, 3)])
def test_an_observation_that_is_none_is_caught(shape: tuple[int, ...]) -> None:
    """At a reset, in an episode, and in its last step, which SB3 keeps apart."""

    def seen(at: int) -> Any:
        return lambda step: np.full(shape, np.nan if step == at else 0.0)

    for at, length in ((0, 10), (3, 10), (3, 3)):
        env = Users(spaces.Box(-1.0, 1.0, shape, np.float64), length=length, seen=seen(at))
        venv = FiniteSteps(DummyVecEnv([lambda env=env: env]), "some/Env-v0")  # type: ignore[misc]

        def play(venv: Any = venv) -> None:
            venv.reset()
            for _ in range(5):
                venv.step(np.zeros(1, dtype=np.int64))

        where = rf"got nan from some/Env-v0, parallel environment 0, in step {at}$"
        with pytest.raises(ValueError, match=r"^observation: expected finite numbers .*" + where):
            play()


def test_the_leaders_reward_and_parts_of_a_dict_are_looked_at() -> None:
    wrong = FiniteSteps(DummyVecEnv([lambda: Unpaid()]), "some/Env-v0")
    wrong.reset()
    with pytest.raises(ValueError, match=r"^leader_reward: expected .*, got nan"):
        wrong.step(np.zeros(1, dtype=np.int64))
    parts = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": spaces.Discrete(3)})
    seen = lambda step: {"a": np.full(2, np.nan if step == 10 else 0.0, np.float32), "b": 1}  # noqa: E731
    venv = FiniteSteps(DummyVecEnv([lambda: Users(parts, seen=seen)]), "some/Env-v0")
    venv.reset()
    for _ in range(9):
        venv.step(np.zeros(1, dtype=np.int64))
    with pytest.raises(ValueError, match="observation: expected"):  # the last of the episode
        venv.step(np.zeros(1, dtype=np.int64))


class Unpaid(Users):
    """The leader is paid nothing that is a number."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, info | {"leader_reward": float("nan")}


def test_a_payment_is_not_blamed_for_what_the_environment_shows() -> None:
    """Features of an observation that is none are none, but it is the observation that is named."""
    with pytest.raises(ValueError, match=r"^observation: expected .* in a trial step"):
        led(Users(seen=lambda step: np.full(2, np.nan)))
    with pytest.raises(ValueError, match=r"^reward: expected .* in a trial step"):
        led(Users(paid=lambda step, action: np.inf))
