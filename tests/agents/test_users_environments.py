"""Environments as users have them: what SB3 alone trains on, leaders train on; what nothing can be learned from is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC

from bilevel_gym.agents import DRLHF, PBRL, PBRLConfig, PreferencePBRL, Rollouts
from bilevel_gym.wrappers import EventPayments, ObserveCommitment, ShapedReward
from tests.agents.users import GAMMA, Charged, Masked, Users, always, led, once, pbrl, preferences

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


# --- pictures, parts, and large observations ----------------------------------------------------------------------------

TILES = spaces.Box(0, 255, (7, 7, 3), np.uint8)
PARTS = spaces.Dict({"place": spaces.Box(-1.0, 1.0, (2,)), "goal": spaces.Discrete(3)})


@pytest.mark.parametrize("algorithm", [A2C, DQN])
def test_small_pictures_with_channels_last(algorithm: Any) -> None:
    """As MiniGrid has them; SB3 shows its models channels first, and so do we, of whichever world it is."""
    leader = once(pbrl(led(Users(TILES, spaces.Discrete(3, start=-1))), algorithm))
    assert leader.follower.model.observation_space == leader.follower_env().observation_space
    assert leader.follower_env().observation_space.shape == (3, 7, 7)
    assert np.isfinite(leader.history[-1].leader_return)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(
    "obs", [TILES, spaces.Box(0.0, 1.0, (5, 6, 4)), spaces.Box(0, 255, (1, 9, 9), np.uint8)], ids=str
)
def test_small_pictures_under_preferences(learner: Any, obs: Any) -> None:
    """Too small for convolutions: the reward is a perceptron's."""
    leader = preferences(Users(obs), A2C, learner).learn(130)
    assert 0.0 <= leader.evaluate().true_return <= 10.0
    assert type(leader.model.members[0]).__name__ == "MLPReward"


def test_larger_pictures_are_convolved() -> None:
    obs = spaces.Box(0, 255, (56, 56, 3), np.uint8)
    leader = preferences(Users(obs), lambda venv: A2C("CnnPolicy", venv), n_envs=1, first_steps=16).learn(60)
    assert type(leader.model.members[0]).__name__ == "ConvReward"
    moved = preferences(Users(obs, spaces.Box(-1.0, 1.0, (1,))), A2C, n_envs=1, first_steps=16, first_epochs=1)
    assert type(moved.model.members[0]).__name__ == "MLPReward"


@pytest.mark.parametrize("obs", [TILES, spaces.MultiDiscrete([3, 2]), spaces.Box(-1.0, 1.0, (2, 2))], ids=str)
def test_x_is_not_shown_beside_such_observations(obs: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^env: expected Discrete observations .* \(observe_commitment=False does not show x\)"
    ):
        pbrl(led(Users(obs)), A2C, observe_commitment=True)


def test_parts_are_refused_by_name_with_the_way_out() -> None:
    for make in (lambda: led(Users(PARTS)), lambda: pbrl(Charged(PARTS), A2C), lambda: preferences(Users(PARTS), A2C)):
        with pytest.raises(ValueError, match=r"expected .*FlattenObservation makes"):
            make()
    flat = gym.wrappers.FlattenObservation(Users(PARTS))
    assert np.isfinite(once(pbrl(led(flat), A2C, observe_commitment=True)).history[-1].leader_return)


@pytest.mark.parametrize(
    ("obs", "features"),
    [
        (spaces.Box(-1.0, 1.0, (64, 64)), 8193),
        (spaces.Box(-1.0, 1.0, (84 * 84,)), 14113),
        (spaces.Box(0, 255, (56, 56, 3), np.uint8), 18817),
        (spaces.Discrete(30_000), 30_000),
        (spaces.MultiBinary(3_000), 6_001),
    ],
    ids=str,
)
def test_observations_too_large_for_the_critic_are_refused_before_any_work(obs: Any, features: int) -> None:
    """The leader's critic is linear; its cost grows with the square of its features."""
    env = led(Users(obs))
    began = time.process_time()
    with pytest.raises(
        ValueError, match=rf"^env: expected observations .* at most 2048 features .*, got {features} features"
    ):
        pbrl(env, A2C)
    assert time.process_time() - began < 2.0


def test_a_context_that_multiplies_is_refused_with_its_size() -> None:
    """States times x: 2,000 states beside 40 numbers would be 82,000."""
    payments = EventPayments([always] * 40)
    env = ShapedReward(Users(spaces.Discrete(2_000)), payments, gamma=GAMMA)
    with pytest.raises(
        ValueError, match=r"^observe_commitment: expected False if .* 65536 entries, got True with 82000 entries, for"
    ):
        pbrl(env, A2C, observe_commitment=True)
    with pytest.raises(
        ValueError, match=r"^observe_commitment: expected False if .*, got True with 66000 entries, for"
    ):
        ObserveCommitment(ShapedReward(Users(spaces.Box(-1.0, 1.0, (65_960,))), payments))
    pbrl(env, A2C)


def test_preferences_over_large_observations_take_little_memory() -> None:
    """One-hot states are worked on in batches that fit: 30,000 numbers a step."""
    leader = preferences(Users(spaces.Discrete(30_000)), A2C, n_envs=1, first_steps=32).learn(64)
    most = 0

    def look(module: Any, arguments: Any, out: Any) -> None:
        nonlocal most
        most = max(most, arguments[0].numel())

    leader.model.members[0].layers[0].register_forward_hook(look)
    leader.model.raw(np.zeros(2_000, np.int64), np.zeros(2_000, np.int64))
    assert 2**23 < most <= 2**24


# --- float64 actions ------------------------------------------------------------------------------------------------------

WIDE = [
    spaces.Box(-1.0, 1.0, (2,), np.float64),
    spaces.Box(-2.0, 1.0, (2, 3), np.float64),
    spaces.Box(-3e38, 3e38, (1,), np.float64),
]


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("actions", WIDE, ids=str)
def test_actions_in_float64(learner: Any, actions: Any) -> None:
    """As dm_control has them; the reward model sees them in [-1, 1], and stays finite."""
    leader = preferences(
        Users(action_space=actions, paid=lambda step, action: float(action.mean() > 0.0)), A2C, learner
    )
    leader.learn(130)
    assert 0.0 <= leader.evaluate().true_return <= 10.0
    net = leader.model.members[0]
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}
    n = int(np.prod(actions.shape))
    low, high = (torch.as_tensor(end.reshape(1, -1), dtype=torch.float32) for end in (actions.low, actions.high))
    for end, seen in ((low, -1.0), (high, 1.0)):
        torch.testing.assert_close((end - net.mean[-n:]) / net.std[-n:], torch.full((1, n), seen))


def test_float64_actions_from_a_replay_buffer() -> None:
    follower = lambda venv: SAC("MlpPolicy", venv, learning_starts=8, policy_kwargs={"net_arch": [4]})  # noqa: E731
    paid = lambda step, action: float(action.mean() > 0.0)  # noqa: E731
    leader = preferences(Users(action_space=WIDE[0], paid=paid), follower).learn(100)
    assert 0.0 <= leader.evaluate().true_return <= 10.0


# --- segments and episodes ------------------------------------------------------------------------------------------------


def limited(steps: int, length: int | None = None) -> Any:
    return gym.wrappers.TimeLimit(Users(length=length), steps)


def test_segments_longer_than_episodes_are_named() -> None:
    for length, longest in ((11, 10), (25, 10), (4, 3)):
        leader = preferences(limited(longest), A2C, length=length)
        with pytest.raises(
            ValueError, match=rf"^length: expected at most {longest} steps, the longest episode .*, got {length}$"
        ):
            leader.learn(200)
    assert (
        preferences(Users(length=10), A2C, length=11).learn(100).evaluate().labels > 0
    )  # padded: they ended by themselves


def test_too_few_first_steps_are_named() -> None:
    for length, first_steps in ((8, 8), (30, 40)):
        leader = preferences(limited(50), A2C, length=length, first_steps=first_steps)
        with pytest.raises(
            ValueError, match=rf"^first_steps: expected steps for two segments or more, of length={length}, in 2"
        ):
            leader.learn(200)


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_environment_whose_episodes_do_not_end_is_refused_at_once(learner: Any) -> None:
    env = Users(length=None)
    for given in (env, lambda: env, led(Users(length=None))):
        with pytest.raises(ValueError, match=r"^env: expected episodes that end, since .* \(add a TimeLimit: "):
            preferences(given, A2C, learner)
    assert env.steps <= 2 * 5_000
    preferences(limited(10), A2C, learner)
    preferences(Users(length=500), A2C, learner)


class EndsByAnAction(Users):
    """An episode ends when action 1 is taken, which pays nothing: random play ends it, a trained follower does not."""

    def step(self, action: Any) -> Any:
        obs, _, _, _, info = super().step(action)
        return obs, 1.0 - float(action), bool(action == 1), False, info


def balanced(obs: Any) -> Any:
    """What keeps the pole of Cart Pole up for ever."""
    return (obs @ np.array([0.1, 0.3, 2.0, 1.0]) > 0.0).astype(np.int64)


@pytest.mark.parametrize(
    ("make", "act"),
    [
        (EndsByAnAction, lambda obs: np.zeros(len(obs), np.int64)),
        (lambda: led(EndsByAnAction(length=None)), lambda obs: np.zeros(len(obs), np.int64)),
        (lambda: gym.make("CartPole-v1").unwrapped, balanced),
    ],
    ids=["bare", "under a leader", "Cart Pole"],
)
def test_without_a_time_limit_an_episode_that_does_not_end_is_not_waited_for_long(make: Any, act: Any) -> None:
    """Random play ended, so the environment was accepted; the evaluation of a good follower says what to add."""
    worlds = preferences(make, A2C).worlds
    with pytest.raises(ValueError, match=r"^env: expected episodes that end within 5000 steps \(add a TimeLimit: "):
        worlds.true_returns(lambda venv: act, 1, 0)
    limited_worlds = preferences(lambda: gym.wrappers.TimeLimit(make(), 50), A2C).worlds
    assert limited_worlds.true_returns(lambda venv: act, 1, 0)[1] == 50


# --- threads, and numbers of NumPy's -------------------------------------------------------------------------------------


def found_by(seed: int, barrier: threading.Barrier | None = None) -> list[float]:
    """x and weights after two iterations."""
    leader = pbrl(led(Users()), A2C, seed=seed)
    if barrier is not None:
        barrier.wait()
    leader.learn(10**6, callback=lambda one: one.iteration < 2)
    weights = [float(p.detach().sum()) for p in leader.follower.model.policy.parameters()]
    return [*leader.last_x.tolist(), *weights, *(record.leader_return for record in leader.history)]


def test_two_leaders_in_two_threads_are_what_each_is_alone() -> None:
    alone, barrier = [found_by(0), found_by(1)], threading.Barrier(2)
    together: dict[int, list[float]] = {}
    threads = [threading.Thread(target=lambda i=i: together.update({i: found_by(i, barrier)})) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[0], together[1]] == alone
    assert alone[0] != alone[1]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16])
def test_whole_numbers_of_numpys_are_numbers_and_can_be_saved(kind: Any, tmp_path: Any) -> None:
    rate: Any = np.float32(0.125)
    config = PBRLConfig(
        n_envs=kind(2),
        follower_steps=kind(16),
        warmup_steps=kind(16),
        learning_rate=rate,
        estimator=Rollouts(n_envs=kind(2), tail=np.float64(0.5)),
    )
    seed = np.random.default_rng(0).integers(2**15).astype(kind)
    kwargs = {"n_states": kind(4), "seed": kind(3)}
    leader = PBRL("bilevel_gym/StackelbergGame-v0", A2C, config=config, seed=seed, env_kwargs=kwargs)
    kept = PBRL.load(leader.save(tmp_path / "leader.zip"))
    assert (kept.seed, kept.config.n_envs, kept.config.learning_rate) == (int(seed), 2, 0.125)
    few = {"labels": kind(8), "first_labels": kind(4), "length": kind(5), "first_steps": kind(64)}
    learner = preferences("bilevel_gym/RewardGrid-v0", A2C, **few)
    assert DRLHF.load(learner.save(tmp_path / "learner.zip")).config.length == 5
