"""Environments of Gymnasium's with a leader."""

import math
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import bilevel_gym

assert bilevel_gym.__version__
CLASSIC = ("ShapedMountainCar-v0", "ShapedCartPole-v0", "DesignedPendulum-v0")


def test_mountain_cars_potential() -> None:
    """Phi = x . (sin 3p, (v / 0.07)^2, (p + 0.3) / 0.9); the leader is paid what Mountain Car pays."""
    env: Any = gym.make("bilevel_gym/ShapedMountainCar-v0").unwrapped
    x = np.array([3.0, -2.0, 1.0])
    env.set_leader(x)
    s, _ = env.reset(seed=0)
    for _ in range(200):
        z, reward, terminated, _, info = env.step(2 if s[1] >= 0 else 0)  # swings up
        f, f_next = (np.array([math.sin(3 * q[0]), (q[1] / 0.07) ** 2, (q[0] + 0.3) / 0.9]) for q in (s, z))
        assert info["leader_reward"] == -1.0
        assert reward == pytest.approx(-1.0 + 0.99 * (0.0 if terminated else f_next @ x) - f @ x, abs=1e-6)
        s = z
        if terminated:
            break
    assert terminated


def test_cart_poles_leader_wants_a_place() -> None:
    env: Any = gym.make("bilevel_gym/ShapedCartPole-v0", target=-0.5, leader_pays=0.5).unwrapped
    env.set_leader([0.5, -1.0])
    env.reset(seed=0)
    for _ in range(8):
        s, reward, _, _, info = env.step(1)
        u = s[0] / 2.4
        paid = 0.5 * u - u * u
        assert reward == pytest.approx(1.0 + paid, rel=1e-6)
        assert info["leader_reward"] == pytest.approx(1.0 - ((s[0] + 0.5) / 2.4) ** 2 - 0.5 * paid, rel=1e-6)


def test_pendulums_leader_is_paid_by_the_gravity_it_drew() -> None:
    env: Any = gym.make("bilevel_gym/DesignedPendulum-v0", value=0.3, std=2.0).unwrapped
    env.set_leader([3.0])
    given = []
    for seed in range(30):
        env.reset(seed=seed)
        _, reward, _, _, info = env.step(env.action_space.sample())
        given.append(env.env.unwrapped.g)
        assert info["leader_reward"] == pytest.approx(reward + 0.3 * given[-1])
        assert given[-1] == max(info["leader_draw"][3], 0.0)
    assert 0.0 in given  # what is drawn below 0 is clipped
    assert np.mean(given) == pytest.approx(3.0, abs=1.5)


@pytest.mark.parametrize("name", CLASSIC)
def test_pictures_are_the_base_environments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make(f"bilevel_gym/{name}", render_mode="rgb_array")
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.dtype == np.uint8
    assert np.ptp(picture) > 0
    env.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*A Box observation space (min|max)imum value is -?infinity")
        warnings.filterwarnings("ignore", message=".*a symmetric and normalized")
        warnings.filterwarnings("ignore", message=".*avx2 capable", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message=".*pkg_resources", category=UserWarning)
        check_env(gym.make(f"bilevel_gym/{name}", disable_env_checker=True).unwrapped)


def test_hopper_lives_by_the_body_drawn() -> None:
    pytest.importorskip("mujoco")
    env: Any = gym.make("bilevel_gym/DesignedHopper-v0").unwrapped
    env.set_leader([2.0, 150.0])
    env.reset(seed=0)
    *_, info = env.step(np.zeros(3, dtype=np.float32))
    mass, gear = info["leader_draw"][3:]
    model = env.env.model
    assert model.body_mass[1] == mass
    np.testing.assert_array_equal(model.actuator_gear[:, 0], gear)
    assert model.body_subtreemass[1] == pytest.approx(model.body_mass[1:].sum())  # computed anew
    assert abs(mass - 2.0) < 1.0


def test_hopper_without_mujoco_names_the_extra() -> None:
    code = """if True:
        import sys
        sys.modules["mujoco"] = None
        import gymnasium, bilevel_gym
        gymnasium.make("bilevel_gym/DesignedHopper-v0")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: DesignedHopper needs MuJoCo: pip install 'bilevel-gym[mujoco]'" in done.stderr


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("ShapedCartPole-v0", {"target": 3.0}, "target: expected"),
        ("DesignedPendulum-v0", {"std": 0.0}, "std: expected"),
        ("DesignedPendulum-v0", {"value": math.inf}, "value: expected"),
        ("ShapedMountainCar-v0", {"gamma": 1.0}, "gamma: expected"),
    ],
)
def test_bad_arguments_are_named(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make(f"bilevel_gym/{name}", **kwargs)
