"""The incentive design environment: PettingZoo's tests, a whole episode's determinism, and its own contract."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pettingzoo
import pytest
import torch
from pettingzoo.test.api_test import api_test
from pettingzoo.test.parallel_test import parallel_api_test

import bilevel_gym
from bilevel_gym.envs import incentive_design_v0
from bilevel_gym.envs.incentive_design_v0 import PLAYERS, IncentiveDesignEnv

assert bilevel_gym.__version__
ID = "bilevel_gym/incentive_design_v0"
Step = tuple[Any, ...]


def make(**kwargs: Any) -> IncentiveDesignEnv:
    env = pettingzoo.make("parallel", ID, **kwargs)
    assert isinstance(env, IncentiveDesignEnv)
    return env


def episode(env: IncentiveDesignEnv, seed: int | None, options: dict[str, Any] | None = None) -> list[Step]:
    """The steps of one episode under random actions."""
    rng = np.random.default_rng(7)
    steps: list[Step] = [env.reset(seed=seed, options=options)]
    while env.agents:
        steps.append(env.step({agent: rng.integers(5) for agent in PLAYERS}))
    return steps


def test_pettingzoo_s_own_tests() -> None:
    parallel_api_test(make(), num_cycles=200)
    parallel_api_test(make(n_states=1, n_actions_1=1, n_actions_2=2), num_cycles=50)


@pytest.mark.filterwarnings("ignore:Observation is not a NumPy array")  # states are np.int64, as Discrete wants them
def test_pettingzoo_s_own_test_turn_by_turn() -> None:
    for make_env in (incentive_design_v0.env, incentive_design_v0.raw_env):
        api_test(make_env(max_cycles=30), num_cycles=100)  # type: ignore[no-untyped-call]


def test_registering_loads_neither_torch_nor_sb3() -> None:
    code = (
        "import sys, bilevel_gym, pettingzoo\n"
        f"assert pettingzoo.spec('parallel', {ID!r}).namespace == 'bilevel_gym'\n"
        "assert not {'torch', 'stable_baselines3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_seed_fixes_the_whole_episode() -> None:
    one, two, other = (episode(make(), seed) for seed in (3, 3, 4))
    assert len(one) == 101
    np.testing.assert_equal(one, two)
    assert [step[0] for step in one] != [step[0] for step in other]


def test_the_module_s_environment_turn_by_turn_plays_the_same_game() -> None:
    aec: Any = incentive_design_v0.env(max_cycles=5)
    aec.set_leader(np.full(250, 3.0))
    np.testing.assert_array_equal(aec.leader_x, np.full(250, 3.0))
    assert aec.leader_space.contains(aec.leader_x)
    assert aec.problem.leader_dim == 250
    parallel = make(max_cycles=5)
    parallel.set_leader(np.full(250, 3.0))
    rng = np.random.default_rng(7)
    aec.reset(seed=2)
    for step in episode(parallel, 2)[1:]:
        for _ in PLAYERS:
            aec.step(rng.integers(5))
        assert aec.rewards == step[1]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_alike(how: Any) -> None:
    env = make()
    env.set_leader(env.leader_space.sample())
    env.reset(seed=1)
    env.step({agent: 0 for agent in PLAYERS})
    twin = how(env)
    np.testing.assert_array_equal(twin.leader_x, env.leader_x)
    np.testing.assert_equal(episode(twin, None), episode(env, None))
    pickle.loads(pickle.dumps(incentive_design_v0.env()))


def test_rewards_are_those_of_the_problem_at_x() -> None:
    env = make(seed=2)
    x = env.leader_space.sample()
    env.set_leader(x)
    game, problem = env.problem.game(torch.from_numpy(x)), env.problem
    x[:] = 0.0  # x was copied
    state = int(env.reset(seed=0)[0]["player_1"])
    for a1, a2 in ((0, 4), (3, 1), (4, 4)):
        obs, rewards, _, _, infos = env.step({"player_1": a1, "player_2": a2})
        assert rewards["player_1"] == -rewards["player_2"] == pytest.approx(float(game.r[state, a1, a2]), rel=1e-15)
        for agent in PLAYERS:
            assert infos[agent] == {"leader_reward": float(problem.r_id[state, a1, a2]), "leader_draw": 0}
            assert type(infos[agent]["leader_reward"]) is float
        state = int(obs["player_1"])


@pytest.mark.parametrize("designer_world", [False, True])
def test_the_state_moves_by_the_world_s_own_transitions(designer_world: bool) -> None:
    """Frequencies from one row against its probabilities, a chi-square of 9 degrees of freedom; the other world's fail it."""
    env, n = make(max_cycles=1), 4000
    counts = np.zeros((10, 10))
    env.reset(seed=0)
    for _ in range(n):
        state = env.reset(options={"designer_world": designer_world})[0]["player_1"]
        counts[state, env.step({"player_1": 2, "player_2": 3})[0]["player_1"]] += 1

    def chi_square(P: torch.Tensor) -> float:
        expected = counts.sum(1, keepdims=True) * P[:, 2, 3].numpy()
        return float(((counts - expected) ** 2 / expected).sum())

    own, other = (env.problem.P_id, env.problem.P) if designer_world else (env.problem.P, env.problem.P_id)
    assert chi_square(own) < 90 + 4 * 180**0.5
    assert chi_square(other) > 3 * (90 + 4 * 180**0.5)


def test_discounted_rewards_in_the_designer_s_world_are_its_return() -> None:
    """Uniform policies, 2000 episodes, within four standard errors."""
    env = make(n_states=3, n_actions_1=2, n_actions_2=2, gamma=0.5, max_cycles=30)
    rng, returns = np.random.default_rng(0), []
    env.reset(seed=0)
    for _ in range(2000):
        env.reset(options={"designer_world": True})
        total, t = 0.0, 0
        while env.agents:
            infos = env.step({agent: rng.integers(2) for agent in PLAYERS})[4]
            total, t = total + 0.5**t * infos["player_1"]["leader_reward"], t + 1
        returns.append(total)
    half = torch.full((3, 2), 0.5, dtype=torch.float64)
    truth = float(env.problem.leader_return(env.problem.start_x(), (half, half)))
    assert abs(np.mean(returns) - truth) < 4 * np.std(returns) / 2000**0.5


def test_rendering_is_one_line() -> None:
    env = make(render_mode="ansi")
    env.reset(seed=0)
    env.step({agent: 1 for agent in PLAYERS})
    line = env.render()
    assert line is not None
    assert "player_2 1" in line
    assert "\n" not in line
    assert make().render() is None


def test_wrong_arguments_are_named() -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^actions\['player_2'\]: expected"):
        env.step({"player_1": 0, "player_2": 5})
    for x in (np.zeros(3), np.full(250, np.nan), np.full(250, 11.0)):
        with pytest.raises(ValueError, match=r"^x: expected"):
            env.set_leader(x)
    for name, value in (("max_cycles", 0), ("render_mode", "human"), ("n_states", 0)):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            incentive_design_v0.parallel_env(**{name: value})
