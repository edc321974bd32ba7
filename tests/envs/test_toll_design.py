"""The toll environment: sampled travel times against the model, missing actions, files, the picture's figures."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from bilevel_gym.envs.mdp import RoadNetwork, TollDesignProblem, policy_return, random_city, solve_soft
from bilevel_gym.envs.toll_design import TollDesignEnv
from bilevel_gym.wrappers import VectorEnvAdapter

SMALL: dict[str, Any] = {"n_nodes": 9, "seed": 1}


def draw_actions(pi: Any, states: Any, rng: np.random.Generator) -> Any:
    """One action a state from rows of a policy ``[C * S, A]``."""
    return (pi[states].cumsum(-1) < rng.uniform(size=(len(states), 1))).sum(-1)


def drive(env: Any, pi: Any, steps: int) -> list[Any]:
    """Columns s, a, w, s', follower's and leader's reward, alive of the first episode of every copy."""
    rng = np.random.default_rng(1)  # not the environment's numbers
    obs, _ = env.reset(seed=0)
    alive, rows = np.ones(env.num_envs, dtype=bool), []
    for _ in range(steps):
        action = draw_actions(pi, obs, rng)
        following, reward, terminated, _, infos = env.step(action)
        after = np.where(terminated, obs, following)
        rows.append((obs, action, infos["leader_draw"], after, reward, infos["leader_reward"], alive))
        alive, obs = alive & ~terminated, following
    assert not alive.any()
    return [np.stack(column) for column in zip(*rows, strict=True)]


def test_sampled_trips_are_the_model_s() -> None:
    """Mean discounted returns of both, and every link's mean time, within four standard errors."""
    env: Any = TollDesignEnv.vector(num_envs=4000, revenue_weight=0.5, **SMALL)
    problem: Any = env.problem
    x = np.random.default_rng(3).uniform(0, 5, problem.leader_dim)
    env.set_leader(x)
    mdp = problem.follower_mdp(torch.from_numpy(x))
    pi = solve_soft(mdp, 1.0).pi
    s, a, _, after, reward, leader, alive = drive(env, pi.flatten(0, 1).numpy(), 60)
    weight = 0.999 ** np.arange(60)[:, None] * alive
    expected = problem.over_contexts(policy_return(mdp, pi)), problem.leader_return(torch.from_numpy(x), pi)
    for paid, value in zip((reward, leader), expected, strict=True):
        returns = (weight * paid).sum(0)
        assert abs(returns.mean() - float(value)) < 4 * returns.std() / np.sqrt(len(returns))
    means = mdp.r.flatten(0, 1).numpy()[s, a]
    noise = (reward - means)[alive]
    assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(noise.size)
    driving = alive & (means < 0)
    ratio = ((reward + x[problem.link_of.numpy()[s % 9, a]]) / problem.network.time.numpy()[problem.link_of[s % 9, a]])[
        driving
    ]
    np.testing.assert_allclose(np.unique(ratio.round(9)), [-1.5, -1.1, -0.9, -0.8, -0.7])
    heads = problem.network.links.numpy()[problem.link_of.numpy()[s % 9, a], 1]
    np.testing.assert_array_equal(after[driving], (s // 9 * 9 + heads)[driving])


def test_the_leader_model_gives_the_very_step() -> None:
    env: Any = TollDesignEnv.vector(num_envs=200, revenue_weight=0.5, **SMALL)
    problem: Any = env.problem
    env.set_leader(np.random.default_rng(3).uniform(0, 5, problem.leader_dim))
    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    model = env.leader_model()
    for _ in range(20):
        action = env.action_space.sample()
        following, reward, terminated, _, infos = env.step(action)
        after = np.where(terminated, obs, following)
        r_follower, r_leader, log_p = model(obs, action, infos["leader_draw"], after)
        np.testing.assert_allclose(r_follower.detach(), reward, atol=1e-12)
        np.testing.assert_allclose(r_leader.detach(), infos["leader_reward"], atol=1e-12)
        np.testing.assert_allclose(log_p.detach(), np.log(0.2), atol=1e-12)
        obs = following


def test_a_missing_action_is_a_wait() -> None:
    env = TollDesignEnv(**SMALL)
    problem: Any = env.problem
    exists = problem.follower_mdp(problem.start_x()).mask
    wait = float(problem.network.time.max()) + problem.max_toll
    env.set_leader(np.full(problem.leader_dim, 2.0))
    waited = 0
    for seed in range(60):
        obs, info = env.reset(seed=seed)
        c, s = divmod(int(obs), 9)
        assert env.action_masks().tolist() == exists[c, s].tolist() == info["action_mask"].astype(bool).tolist()
        for a in np.flatnonzero(info["action_mask"] == 0):
            after, reward, terminated, _, info = env.step(a)
            assert (after, reward, terminated, info["leader_reward"]) == (obs, -wait, False, 0.0)
            waited += 1
        action = env.action_space.sample(info["action_mask"])
        after, reward, _, _, info = env.step(action)
        assert after != obs
        assert -wait < reward < -2.0
        assert info["action_mask"].dtype == np.int8
    assert waited > 30
    with pytest.raises(ValueError, match=r"^action: expected one that exists"):
        env.step(4)


def test_arriving_is_free_and_ends_the_trip() -> None:
    env = TollDesignEnv(**SMALL)
    problem: Any = env.problem
    env.set_leader(np.full(problem.leader_dim, 1.0))
    obs, _ = env.reset(seed=0)
    pi = solve_soft(problem.follower_mdp(torch.zeros(problem.leader_dim)), 0.0).pi.flatten(0, 1)
    for _ in range(20):
        c, s = divmod(int(obs), 9)
        before = obs
        obs, reward, terminated, _, info = env.step(int(pi[obs].argmax()))
        if terminated:
            break
    assert s == int(problem.destinations[c])
    assert obs == before
    assert (reward, info["leader_reward"]) == (0.0, 0.0)


def test_masks_of_many_copies() -> None:
    env: Any = TollDesignEnv.vector(num_envs=50, **SMALL)
    exists = env.problem.follower_mdp(env.problem.start_x()).mask
    assert exists is not None
    table = exists.flatten(0, 1).numpy()
    obs, infos = env.reset(seed=0)
    venv = VectorEnvAdapter(env)
    for _ in range(30):
        np.testing.assert_array_equal(env.action_masks(), table[obs])
        np.testing.assert_array_equal(infos["action_mask"], table[obs])
        np.testing.assert_array_equal(np.stack(venv.env_method("action_masks")), table[obs])
        np.testing.assert_array_equal(np.stack(venv.env_method("action_masks", indices=[7, 3])), table[obs[[7, 3]]])
        obs, _, _, _, infos = env.step(env.action_space.sample())


@pytest.mark.parametrize("native", [False, True])
def test_maskable_ppo_never_waits(native: bool) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    masking = pytest.importorskip("sb3_contrib.common.maskable.utils")
    venv: Any = DummyVecEnv([lambda: gym.make("bilevel_gym:bilevel_gym/TollDesign-v0", **SMALL)] * 2)
    if native:
        venv = VectorEnvAdapter(TollDesignEnv.vector(num_envs=2, max_episode_steps=100, **SMALL))
    driver = contrib.MaskablePPO("MlpPolicy", venv, n_steps=64, batch_size=64, n_epochs=1, seed=0).learn(256)
    problem = TollDesignProblem(**SMALL)
    obs, wait = venv.reset(), float(problem.network.time.max()) + problem.max_toll
    for _ in range(50):
        masks = masking.get_action_masks(venv)
        actions, _ = driver.predict(obs, action_masks=masks)
        assert masks[np.arange(2), actions].all()
        obs, rewards, _, _ = venv.step(actions)
        assert rewards.min() > -wait


def write_tntp(folder: Path, city: RoadNetwork) -> Path:
    """The files of a network in the TNTP format, to the last digit."""
    n, links = city.n_nodes, zip(city.links.tolist(), city.external_cost.tolist(), city.time.tolist(), strict=True)
    head = f"<NUMBER OF ZONES> {n}\n<NUMBER OF NODES> {n}\n<FIRST THRU NODE> 1\n<NUMBER OF LINKS> {city.n_links}\n"
    rows = [f"{tail + 1} {to + 1} 1 {cost!r} {time!r} ;" for (tail, to), cost, time in links]
    (folder / "a_net.tntp").write_text("\n".join([head + "<END OF METADATA>", *rows]), encoding="ascii")
    trips = "<END OF METADATA>\n"
    for origin, row in enumerate(city.demand.tolist(), 1):
        trips += f"Origin {origin}\n" + " ".join(f"{to}: {count!r};" for to, count in enumerate(row, 1)) + "\n"
    (folder / "a_trips.tntp").write_text(trips, encoding="ascii")
    return folder / "a_net.tntp"


def test_a_network_of_one_s_own_and_from_a_file(tmp_path: Path) -> None:
    city = random_city(8, 0)
    own: Any = TollDesignEnv(network=city).problem
    read: Any = gym.make("bilevel_gym:bilevel_gym/TollDesign-v0", network=str(write_tntp(tmp_path, city))).unwrapped
    x = torch.linspace(0, 5, city.n_links, dtype=torch.float64)
    for field in ("P", "r", "rho", "mask", "terminal"):
        assert torch.equal(*(getattr(problem.follower_mdp(x), field) for problem in (own, read.problem)))
    assert torch.equal(own.leader_reward(x), read.problem.leader_reward(x))
    assert torch.equal(own.context_probs, read.problem.context_probs)


def test_the_default_city_is_no_toy() -> None:
    env: Any = gym.make("bilevel_gym:bilevel_gym/TollDesign-v0").unwrapped
    assert env.gamma == 0.999
    assert env.problem.network.n_nodes >= 20
    assert env.problem.network.n_links >= 60
    assert env.observation_space.n == 625
    assert env.leader_space.shape == (env.problem.network.n_links,)
