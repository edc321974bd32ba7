"""What every registered environment owes its users."""

import copy
import importlib.util
import inspect
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import bilevel_gym

assert bilevel_gym.__version__
NEEDS = {"bilevel_gym/DesignedHopper-v0": "mujoco"}  # an extra
IDS = sorted(
    name
    for name in gym.registry
    if name.startswith("bilevel_gym/") and (name not in NEEDS or importlib.util.find_spec(NEEDS[name]))
)
NO_LEADER = {
    "bilevel_gym/HappyText-v0"
}  # worlds for preferences: the leader is the reward model, none is in the environment
VECTOR_IDS = [name for name in IDS if gym.spec(name).vector_entry_point is not None]
Step = tuple[Any, ...]


def episode(env: gym.Env[Any, Any], seed: int | None, action_seed: int) -> list[Step]:
    """The steps of one episode under random actions."""
    rng = np.random.default_rng(action_seed)
    obs, info = env.reset(seed=seed)
    steps: list[Step] = [(obs, info)]
    while True:
        env.action_space.seed(int(rng.integers(2**31)))
        steps.append(env.step(env.action_space.sample()))
        if steps[-1][2] or steps[-1][3]:
            return steps


def same(one: Any, two: Any) -> bool:
    try:
        np.testing.assert_equal(one, two)
    except AssertionError:
        return False
    return True


def test_the_table_is_registered() -> None:
    assert {"bilevel_gym/TwoState-v0", "bilevel_gym/StackelbergGame-v0", "bilevel_gym/TollDesign-v0"} <= set(IDS)


@pytest.mark.parametrize("name", IDS)
def test_checkers_have_nothing_to_say(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # a state that Gaussian noise drives has no bounds
        warnings.filterwarnings("ignore", message=".*A Box observation space (min|max)imum value is -?infinity")
        # Pendulum's torques, which are Gymnasium's to choose
        warnings.filterwarnings("ignore", message=".*a symmetric and normalized")
        base: Any = gym.make(name, disable_env_checker=True).unwrapped
        check_env(base, skip_render_check="human" in base.metadata["render_modes"])  # Gymnasium's own need an extra
        sb3_check_env(gym.make(name))


@pytest.mark.parametrize("name", IDS)
def test_a_seed_fixes_the_whole_episode(name: str) -> None:
    one, two, *others = (episode(gym.make(name), seed, 3) for seed in (5, 5, *range(6, 16)))
    assert len(one) > 2
    assert same(one, two)
    assert not all(same(one, other) for other in others)


@pytest.mark.parametrize("name", [name for name in IDS if name not in NO_LEADER])
def test_the_leader_contract(name: str) -> None:
    env = gym.make(f"bilevel_gym:{name}")
    base: Any = env.unwrapped
    _, reward, _, _, info = episode(env, 0, 0)[-1]
    assert type(reward) is float
    assert type(info["leader_reward"]) is float
    assert "leader_draw" in info
    assert base.leader_space is None or base.leader_space.dtype == np.float64
    assert base.commitment(env.observation_space.sample()).shape == (base.commitment_size,)
    assert "x" in dict(base.leader_model().named_parameters())
    assert 0.0 <= base.gamma < 1.0
    again = env.spec.make() if env.spec is not None else None
    assert again is not None
    assert again.spec == env.spec


@pytest.mark.parametrize("name", [name for name in IDS if NEEDS.get(name) != "mujoco"])  # its copies begin anew
@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_alike(name: str, how: Any) -> None:
    env = gym.make(name)
    base: Any = env.unwrapped
    if name not in NO_LEADER and base.leader_space is not None:
        base.set_leader(base.leader_space.sample())
    env.reset(seed=1)
    env.step(env.action_space.sample())
    twin = how(env)
    if name not in NO_LEADER:
        np.testing.assert_equal(twin.unwrapped.leader_x, base.leader_x)
    assert same(episode(twin, None, 2), episode(env, None, 2))


@pytest.mark.parametrize("name", VECTOR_IDS)
def test_vector_environments(name: str) -> None:
    """Truncated when the single environment is; a seed fixes 250 steps; a pickled copy goes on alike."""
    limit = gym.spec(name).max_episode_steps
    one, two = gym.make_vec(name, num_envs=3), gym.make_vec(name, num_envs=3)
    assert same(one.reset(seed=4), two.reset(seed=4))
    one.action_space.seed(0)
    elapsed = np.zeros(3, dtype=np.int64)
    for t in range(1, 251):
        if t == 120:
            two = pickle.loads(pickle.dumps(two))
        actions = one.action_space.sample()
        step = one.step(actions)
        assert same(step, two.step(actions))
        obs, _, terminated, truncated, infos = step
        assert one.observation_space.contains(obs)
        elapsed += 1
        np.testing.assert_array_equal(truncated, elapsed == limit)
        elapsed[terminated | truncated] = 0
        assert ("final_obs" in infos) == bool((truncated | terminated).any())


OVER_OTHERS = ("bilevel_gym/ShapedCartPole-v0", "bilevel_gym/DesignedPendulum-v0")
"""Those of Gymnasium's environments with a leader that have a simulator, and no problem."""


@pytest.mark.parametrize("name", OVER_OTHERS)
def test_arguments_are_those_of_the_single_environment(name: str) -> None:
    one, many = gym.make(name, gamma=0.3), gym.make_vec(name, num_envs=2, gamma=0.3)
    assert one.unwrapped.gamma == many.unwrapped.gamma == 0.3  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="nonsense"):
        gym.make_vec(name, num_envs=2, nonsense=1)


@pytest.mark.parametrize("name", [name for name in VECTOR_IDS if name not in OVER_OTHERS])
def test_arguments_are_the_problem_s(name: str) -> None:
    """One list of arguments: the environment's, the parallel one's, and what a reader of the signature sees."""
    cls = type(gym.make(name).unwrapped)
    own = inspect.signature(cls.make_problem).parameters  # type: ignore[attr-defined]
    shown = inspect.signature(cls).parameters
    assert list(shown) == [*own, "render_mode"]
    assert all(shown[key].default == own[key].default for key in own)
    assert name.startswith(f"bilevel_gym/{cls.__name__.removesuffix('Env')}-v")
    kwargs = {"tau" if "tau" in own else "gamma": 0.3}
    one, many = gym.make(name, **kwargs), gym.make_vec(name, num_envs=2, **kwargs)  # type: ignore[arg-type]
    for key, value in kwargs.items():
        assert getattr(one.unwrapped.problem, key) == getattr(many.unwrapped.problem, key) == value  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="nonsense"):
        gym.make_vec(name, num_envs=2, nonsense=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_states", 0),
        ("n_leader_actions", 2.5),
        ("n_follower_actions", -1),
        ("gamma", 1.0),
        ("tau", -1.0),
        ("sparsity", 1.5),
        ("seed", -3),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render_mode.*")
def test_wrong_arguments_are_named(name: str, value: object) -> None:
    kwargs: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        gym.make("bilevel_gym/StackelbergGame-v0", **kwargs)
