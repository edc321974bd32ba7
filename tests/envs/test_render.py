"""Pictures: of every registered environment, and of what is in them."""

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

import bilevel_gym
from bilevel_gym.envs.mdp import GridMap
from bilevel_gym.envs.render import draw_grid, new_panel, to_rgb

assert bilevel_gym.__version__
# pictures of Gymnasium's environments show no leader (see test_wrapped), nor do worlds without one (test_happy_text)
NO_LEADER = ("bilevel_gym.wrappers.worlds", "bilevel_gym.envs.happy_text")
IDS = sorted(
    name
    for name, spec in gym.registry.items()
    if name.startswith("bilevel_gym/") and not str(spec.entry_point).startswith(NO_LEADER)
)


def picture(env: gym.Env[Any, Any]) -> Any:
    image = env.render()
    assert isinstance(image, np.ndarray)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[-1] == 3
    return image


@pytest.mark.parametrize("name", IDS)
def test_a_picture_shows_the_leader(name: str) -> None:
    env = gym.make(name, render_mode="rgb_array")
    env.reset(seed=0)
    before = picture(env)
    assert np.ptp(before) > 0
    again = picture(env)
    np.testing.assert_array_equal(before, again)
    space = env.get_wrapper_attr("leader_space")
    space.seed(0)
    env.get_wrapper_attr("set_leader")(space.sample())
    after = picture(env)
    assert before.shape != after.shape or not np.array_equal(before, after)


def test_a_grid_has_walls_and_a_follower() -> None:
    grid = GridMap([" x ", "   "])
    images = []
    for follower in (None, 0, 3):
        figure, panel = new_panel()
        draw_grid(panel, grid, np.arange(5.0), "number", follower, {4: "G"})
        images.append(to_rgb(figure))
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyNotInstalled, match=r"bilevel-gym\[plots\]"):
        new_panel()
