"""Environments as users have them: what SB3 alone trains on, leaders train on; what nothing can be learned from is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO

from bilevel_gym.agents import DRLHF, PBRL, PreferencePBRL
from tests.agents.users import GAMMA, Charged, Masked, Users, led, once, pbrl, preferences

pytestmark = pytest.mark.filterwarnings(
    "ignore:the best response was certified", "ignore:follower. expected rollouts", "ignore:.*queries are still without"
)
LEARNERS = [DRLHF, PreferencePBRL]

# --- actions and observations that are not counted from 0 -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "obs", "actions", "most"),
    [
        (A2C, None, spaces.Discrete(3, start=-1), 1),
        (DQN, None, spaces.Discrete(3, start=-1), 1),
        (A2C, spaces.Discrete(4, start=7), spaces.MultiDiscrete([3, 2], start=[5, -2]), 6),
        (A2C, spaces.MultiDiscrete([3, 2], start=[1, -1]), spaces.Discrete(2, start=4), 5),
    ],
    ids=str,
)
def test_a_leader_that_is_paid_by_the_action_is_paid_by_the_true_one(
    algorithm: Any, obs: Any, actions: Any, most: int
) -> None:
    """``Users`` takes legal actions alone; ten steps can pay the leader no more than ten times the largest."""
    leader = once(pbrl(led(Users(obs, actions)), algorithm))
    assert leader.iteration >= 1
    bound = most * (1.0 - GAMMA**10) / (1.0 - GAMMA)
    least = min(-1, most - 3) * (1.0 - GAMMA**10) / (1.0 - GAMMA)
    returns = [record.leader_return for record in leader.history]
    assert all(least <= found <= bound + 1e-6 for found in returns), returns
    env = leader.follower_env()
    assert env.action_space == leader.follower.model.action_space
    leader.close()


def test_x_is_shown_beside_observations_that_are_not_counted_from_0() -> None:
    """And the model is held against the step, x's gradient being that of the true action: -x a is paid."""
    leader = pbrl(Charged(spaces.Discrete(4, start=7), spaces.Discrete(3, start=-1)), A2C, observe_commitment=True)
    worlds = leader.worlds
    step = tuple(np.array([part]) for part in (0, 0, 0, 1))  # state 7, action -1
    _, _, r_follower, r_leader = worlds.relabelled(np.array([0.5]), *step)
    assert (float(r_follower[0]), float(r_leader[0])) == (7.5, -1.0)
    once(leader)
    assert leader.iteration >= 1
    leader.close()


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(
    "actions", [spaces.Discrete(3, start=-1), spaces.MultiDiscrete([3, 2], start=[5, -2])], ids=str
)
def test_preferences_over_such_actions(learner: Any, actions: Any) -> None:
    record = preferences(Users(spaces.Discrete(4, start=7), actions), A2C, learner).learn(160).evaluate()
    low, high = (10.0 * float(np.sum(end)) for end in (actions.start, actions.start + getattr(actions, "nvec", 3) - 1))
    assert low <= record.true_return <= high


# --- numbers that are none ----------------------------------------------------------------------------------------------


def broken(at: int, value: float = float("nan")) -> Callable[[int, Any], float]:
    """A reward that is none in one step."""
    return lambda step, action: value if step == at else 1.0


@pytest.mark.parametrize("algorithm", [DQN, PPO, A2C])
def test_a_reward_that_is_no_number_is_named_and_the_leader_can_be_saved(algorithm: Any, tmp_path: Any) -> None:
    leader = pbrl(led(Users(paid=broken(60))), algorithm)
    x = leader.last_x
    told = r"reward: expected finite numbers .* got nan from .*Users.*, parallel environment \d, in step \d+, at x = \["
    with pytest.raises(ValueError, match=told):
        leader.learn(10_000)
    for follower in leader.followers.values():
        for tensor in follower.model.policy.state_dict().values():
            assert bool(np.isfinite(tensor.numpy()).all())
    assert np.isfinite(leader.last_x).all()
    assert leader.x.shape == x.shape
    path = leader.save(tmp_path / "leader.zip")
    kept = PBRL.load(path, algorithm, led(Users()))
    np.testing.assert_array_equal(kept.last_x, leader.last_x)
    once(kept)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_reward_beyond_float32_is_named() -> None:
    with pytest.raises(ValueError, match=r"reward: expected finite numbers within 1e\+15, got inf from"):
        pbrl(led(Users(paid=broken(60, 1e39))), A2C).learn(10_000)


def test_large_rewards_that_float32_bears_leave_everything_finite() -> None:
    leader = once(pbrl(led(Users(paid=lambda step, action: 1e12 * float(action))), A2C))
    assert leader.iteration >= 1
    assert np.isfinite([leader.last_x[0], *(record.leader_return for record in leader.history)]).all()


def test_in_processes_of_their_own_too() -> None:
    leader = pbrl(led(Users(paid=broken(60))), A2C, vec_env="subproc")
    try:
        with pytest.raises(
            ValueError, match=r"reward: expected .*, got nan from .*, parallel environment \d, in step \d+"
        ):
            leader.learn(10_000)
    finally:
        leader.close()


def test_an_observation_that_is_no_number_is_named() -> None:
    seen = lambda step: np.full(2, np.nan if step == 60 else 0.1, np.float32)  # noqa: E731
    with pytest.raises(ValueError, match=r"observation: expected finite numbers .* got nan from .*, at x = \["):
        pbrl(led(Users(seen=seen)), A2C).learn(10_000)
    with pytest.raises(ValueError, match="observation: expected finite numbers"):
        preferences(Users(seen=seen), A2C).learn(1_000)


@pytest.mark.parametrize("learner", LEARNERS)
def test_preferences_are_not_learned_from_what_is_no_number(learner: Any) -> None:
    leader = preferences(led(Users(paid=broken(200))), A2C, learner)
    with pytest.raises(
        ValueError, match=r"reward: expected .*, got nan from .*, parallel environment \d, in step \d+, at x"
    ):
        leader.learn(10_000)
    assert np.isfinite(leader.last_x).all()
    with pytest.raises(ValueError, match=r"reward: .* in trial step 1$"):
        preferences(Users(paid=broken(1)), A2C)


# --- rewards of other shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_rewards_of_shape_1_are_numbers(vec_env: Any) -> None:
    """The follower's and, of an environment of the user's own, the leader's: the same as numbers would lead to."""
    leader = once(pbrl(Charged(), A2C, vec_env=vec_env))
    assert leader.iteration >= 1
    leader.close()
    if vec_env == "dummy":
        one, other = (
            once(pbrl(led(Users(paid=paid)), A2C))
            for paid in (lambda step, a: np.array([float(a)]), lambda step, a: float(a))
        )
        assert [r.as_dict() for r in one.history] == [r.as_dict() for r in other.history]


@pytest.mark.parametrize("learner", LEARNERS)
def test_learners_of_preferences_take_shape_1_too(learner: Any) -> None:
    record = preferences(Users(paid=lambda step, action: np.array([float(action)])), A2C, learner).learn(160).evaluate()
    assert 0.0 <= record.true_return <= 10.0


def test_vector_rewards_are_refused_by_name_with_the_way_out() -> None:
    def many(step: int, action: Any) -> Any:
        return np.array([1.0, float(action)])

    for make in (lambda: led(Users(paid=many)), lambda: preferences(Users(paid=many), A2C)):
        with pytest.raises(ValueError, match=r"^reward: expected one number a step, .*TransformReward.*LinearReward"):
            make()
    scalar: Any = gym.wrappers.TransformReward(Users(paid=many), lambda r: float(r @ np.array([1.0, 2.0])))
    assert once(pbrl(led(scalar), A2C)).iteration >= 1


# --- masks ------------------------------------------------------------------------------------------------------------------

MASKED = [spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]


@pytest.mark.parametrize("actions", MASKED, ids=str)
def test_illegal_moves_are_not_made(actions: Any) -> None:
    """An illegal move is an error of the environment's: where a step is tried, in the first plays, and by followers."""
    leader = once(pbrl(led(Masked(action_space=actions)), MaskablePPO))
    assert leader.iteration >= 1
    record = preferences(Masked(action_space=actions), MaskablePPO).learn(160).evaluate()
    assert record.true_return >= 0.0
