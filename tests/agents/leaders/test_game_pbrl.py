"""PBRL over a zero-sum game: four followers, counted, saved, refused where it must be, and that the leader learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pettingzoo
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import (
    PBRL,
    KnownModel,
    NikaidoIsodaPenalty,
    PBRLConfig,
    Rollouts,
    TabularPBRL,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.estimators.game_rollouts import linearised_reward
from bilevel_gym.agents.model_card import followers_of, write_model_card, write_zoo_folder
from bilevel_gym.envs.incentive_design_v0 import IncentiveDesignEnv
from bilevel_gym.envs.incentive_design_v0 import env as turn_by_turn
from bilevel_gym.envs.mdp import nikaido_isoda_gap, player_mdp, policy_return, random_incentive_design
from bilevel_gym.envs.player import PlayerVectorEnv

ENV_ID = "bilevel_gym/incentive_design_v0"
SIZES = {"n_states": 3, "n_actions_1": 3, "n_actions_2": 2}
SMALL = PBRLConfig.for_a_game(n_envs=8, follower_steps=128, warmup_steps=128, estimator=Rollouts(8), eval_every=2)


def small(follower: Any = A2C, **changes: Any) -> PBRL:
    arguments: dict[str, Any] = {"env": ENV_ID, "config": SMALL, "env_kwargs": SIZES, **changes}
    return PBRL(arguments.pop("env"), follower, **arguments)


@pytest.mark.filterwarnings("ignore:the best response was significantly worse")  # 128 steps are few
@pytest.mark.parametrize("estimator", [Rollouts(8), KnownModel()])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_every_step_is_counted(algorithm: Any, estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    step = PlayerVectorEnv.step

    def counting(self: PlayerVectorEnv, actions: Any) -> Any:
        nonlocal taken
        taken += self.num_envs
        return step(self, actions)

    monkeypatch.setattr(PlayerVectorEnv, "step", counting)
    leader = small(algorithm, config=replace(SMALL, estimator=estimator)).learn(5000)
    assert leader.num_timesteps == taken >= 5000
    assert leader.history[-1].steps == taken
    trained = [follower.num_timesteps for follower in leader.followers.values()]
    assert len(set(trained)) == 1
    assert (sum(trained) == taken) == isinstance(estimator, KnownModel)


def test_records_are_exact_at_the_equilibrium_and_at_the_players_own_policies() -> None:
    leader = small(PPO)
    leader.learn(4000)
    record, x = leader.history[-1], torch.from_numpy(leader.last_x)
    problem = random_incentive_design(3, 3, 2, seed=0)
    pi, _ = leader.method.level.policies(leader.followers, x)
    assert record.leader_return == pytest.approx(leader_return_at_best_response(problem, x), abs=1e-12)
    assert record.leader_return_at_pi_y == pytest.approx(float(problem.leader_return(x, pi)), abs=1e-12)
    assert record.gap == pytest.approx(float(nikaido_isoda_gap(problem.game(x), pi[0], pi[1], problem.tau)), abs=1e-12)
    assert record.tau == problem.tau


def tables(leader: PBRL, trained: bool = False) -> list[Any]:
    """The four policies at the last x."""
    return [leader.method.level.tables(f, leader.last_x[None], trained) for f in leader.followers.values()]


def owed(leader: PBRL) -> dict[str, Any]:
    """What the leader's linearised return pays the players."""
    found: dict[str, Any] = leader.method.level._owed(leader.state)
    return found


def test_a_player_is_paid_its_payoff_its_entropy_and_the_others_and_the_leaders_linearised_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leader = small(config=replace(SMALL, follower_steps=64))
    held: list[Any] = []
    hold = PlayerVectorEnv.hold

    def spying(self: PlayerVectorEnv, policy: Any, bonus: Any = None) -> None:
        if bonus is not None:
            held.append((self.player, np.array(policy), np.array(bonus)))
        hold(self, policy, bonus)

    monkeypatch.setattr(PlayerVectorEnv, "hold", spying)
    leader.learn(1_464)  # the first look
    before, pay = tables(leader), list(owed(leader).values())
    trained = tables(leader, trained=True)
    assert all(np.abs(p).max() > 1e-3 for p in pay)
    held.clear()
    level, points = leader.method.level, leader.last_x[None].repeat(leader.config.n_envs, 0)
    level.train(leader.state, points, leader.config.follower_steps, 10_000, tuple(leader.followers))
    after, tau = tables(leader), 0.1
    assert [player for player, _, _ in held] == [1, 2, 1, 2]
    for k, (_, policy, bonus) in zip((2, 3, 0, 1), held, strict=True):
        other = (before if k >= 2 else after)[3 - k]  # best responses move last
        assert np.array_equal(policy, other)
        expected = tau * (other * np.log(other)).sum(-1)[..., None] - tau * np.log(trained[k])
        assert np.allclose(bonus, expected + (pay[k - 2] if k >= 2 else 0.0), atol=1e-12)


def test_the_leaders_return_is_linearised_at_the_policies_that_are_trained_not_at_their_averages() -> None:
    leader = small(config=replace(SMALL, follower_steps=64))
    for _ in range(2):  # after one iteration the average is the newest
        leader.learn(1, reset_num_timesteps=False)
    gain = leader.state.gain
    assert gain is not None
    averaged, trained = tables(leader), tables(leader, trained=True)
    for i, (name, paid) in enumerate(owed(leader).items()):
        k = list(leader.followers).index(name)
        rewards = [
            linearised_reward(gain.advantages[i], torch.from_numpy(pi[k][0]), gain.d_leader, gain.d[i]) / leader.lam
            for pi in (trained, averaged)
        ]
        sign = leader.method.level.roles[name].share
        np.testing.assert_allclose(paid, sign * rewards[0].numpy(), atol=1e-12)
        assert np.abs(paid - sign * rewards[1].numpy()).max() > 1e-6


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_one_seed_gives_one_result(algorithm: type[BaseAlgorithm]) -> None:
    def run(seed: int) -> Any:
        np.random.seed()  # whatever the caller's generators hold
        return small(algorithm, seed=seed).learn(4000).last_x

    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


def test_a_saved_leader_comes_back(tmp_path: Path) -> None:
    leader = small(PPO).learn(3000)
    again = PBRL.load(leader.save(tmp_path / "leader"))
    assert np.array_equal(again.x, leader.x)
    assert again.history == leader.history
    for a, b in zip(tables(leader), tables(again), strict=True):
        assert np.array_equal(a, b)
    for one, two in zip(owed(leader).values(), owed(again).values(), strict=True):
        assert np.array_equal(one, two)
    before = again.num_timesteps
    assert again.learn(2000, reset_num_timesteps=False).num_timesteps >= before + 2000


def test_followers_may_see_the_incentives() -> None:
    leader = small(PPO, config=replace(SMALL, observe_commitment=True, x_noise=1.0))
    leader.learn(4000)
    points = np.stack([leader.last_x, leader.last_x + 3.0])
    for follower in leader.followers.values():
        table = leader.method.level.tables(follower, points)
        assert table.shape[:2] == (2, 3)
        assert not np.array_equal(table[0], table[1])


def test_games_come_as_ids_environments_and_callables() -> None:
    problem = random_incentive_design(3, 3, 2, seed=0)
    given: list[Any] = [
        IncentiveDesignEnv(problem),
        turn_by_turn(**SIZES),
        pettingzoo.make("parallel", ENV_ID, **SIZES),
        lambda: IncentiveDesignEnv(problem),
    ]
    xs = [small(env=env, env_kwargs=None, penalty=NikaidoIsodaPenalty()).learn(1800).last_x for env in given]
    assert all(np.array_equal(x, xs[0]) for x in [*xs, small().learn(1800).last_x])


@pytest.mark.long
def test_the_designer_learns() -> None:
    problem = random_incentive_design(3, 3, 2, seed=1)
    exact = TabularPBRL(problem, penalty=NikaidoIsodaPenalty(lam=4.0)).learn(200).evaluate().leader_return
    config = PBRLConfig.for_a_game(
        n_envs=32, follower_steps=512, warmup_steps=2048, estimator=Rollouts(16), learning_rate=0.1
    )
    leader = PBRL(IncentiveDesignEnv(problem), PPO, config=config, seed=0).learn(150_000)
    start, last = leader.history[0].leader_return, leader.history[-1]
    assert last.leader_return - start > 0.4 * (exact - start)
    assert last.gap is not None
    assert last.gap < 0.5


# --- public members, as over one follower -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> PBRL:
    return small(PPO).learn(3000)


def test_followers_are_told_by_player(trained: PBRL) -> None:
    held = trained.followers
    assert list(held) == ["best_response_1", "best_response_2", "player_1", "player_2"]
    assert trained.best_response == {"player_1": held["best_response_1"], "player_2": held["best_response_2"]}
    assert trained.penalised == {"player_1": held["player_1"], "player_2": held["player_2"]}
    sizes = [SIZES["n_actions_1"], SIZES["n_actions_2"]]
    for kind in (trained.best_response, trained.penalised):
        assert [follower.model.action_space.n for follower in kind.values()] == sizes
    assert trained.follower is held["best_response_1"]
    assert trained.get_env() is held["best_response_1"].venv
    assert isinstance(trained.get_env(), VecEnv)


@pytest.mark.parametrize("observe_commitment", [False, True])
def test_the_first_players_world_pays_its_payoff_against_the_seconds_own_policy(observe_commitment: bool) -> None:
    leader = small(PPO, config=replace(SMALL, observe_commitment=observe_commitment)).learn(2500)
    problem, points = random_incentive_design(3, 3, 2, seed=0), [None, leader.x + 1.0]
    for point in points:
        env = leader.follower_env() if point is None else leader.follower_env(point)
        x = torch.from_numpy(leader.x if point is None else point)
        own, best = leader.method.level.policies(leader.followers, x)
        exact = float(policy_return(player_mdp(problem.game(x), 1, own[1], 0.0), best[0], 0.0))
        assert env.observation_space == leader.follower.model.observation_space
        rng = np.random.default_rng(1)
        returns: list[float] = []
        known: dict[bytes, Any] = {}
        for episode in range(250):
            obs, _ = env.reset(seed=episode)
            total, discount, over = 0.0, 1.0, False
            while not over and discount > 1e-2:
                shown = np.asarray(obs)[None]
                if shown.tobytes() not in known:
                    known[shown.tobytes()] = leader.follower.probabilities(shown)[0]
                pi = known[shown.tobytes()]
                obs, reward, terminated, truncated, _ = env.step(rng.choice(len(pi), p=pi / pi.sum()))
                total += discount * float(reward)
                discount, over = discount * leader.worlds.gamma, terminated or truncated
            returns.append(total)
        error = np.std(returns, ddof=1) / np.sqrt(len(returns))
        assert np.mean(returns) == pytest.approx(exact, abs=4.0 * error + 0.02)
        assert error < 0.25
    with pytest.raises(ValueError, match=r"^x: expected shape \(18,\)"):
        leader.follower_env(np.zeros(3))
    with pytest.raises(ValueError, match=r"^render_mode: expected None for a game, got 'human'"):
        leader.follower_env(render_mode="human")


def test_a_saved_follower_is_evaluated_and_trained_in_its_world(trained: PBRL, tmp_path: Path) -> None:
    path, env = trained.follower.save(tmp_path / "first"), trained.follower_env()
    model = PPO.load(path, env=env, device="cpu", custom_objects={"n_steps": 8, "batch_size": 8, "n_envs": 1})
    mean, _ = evaluate_policy(model, Monitor(env), n_eval_episodes=2)
    assert np.isfinite(mean)
    assert model.learn(16, reset_num_timesteps=False).num_timesteps > trained.follower.num_timesteps
    for player, follower in trained.penalised.items():
        assert PPO.load(follower.save(tmp_path / player), device="cpu").action_space == follower.model.action_space


def test_a_games_leader_has_a_card(trained: PBRL, tmp_path: Path) -> None:
    folder = write_model_card(trained, tmp_path / "card")
    assert followers_of(trained) == trained.followers
    assert sorted(path.name for path in (folder / "followers").iterdir()) == [
        f"{name}.zip" for name in sorted(trained.followers)
    ]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "# PBRL-PPO-incentive_design_v0" in card
    assert 'PPO.load("followers/best_response_1.zip", env=None)' in card
    assert PBRL.load(folder / "leader.zip").evaluate() == trained.evaluate()
    with pytest.raises(ValueError, match="leader: expected one with a follower and an environment given as an id"):
        write_zoo_folder(trained, tmp_path / "zoo")


def test_a_leader_of_a_game_is_closed_and_may_be_closed_again() -> None:
    leader = small()
    closed: list[Any] = []
    for follower in leader.followers.values():
        follower.venv.close = lambda venv=follower.venv: closed.append(venv)
    leader.close()
    assert closed == [follower.venv for follower in leader.followers.values()]
    leader.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"follower": DQN}, "follower: expected an on-policy algorithm for a game .* got DQN"),
        ({"penalty": ValuePenalty()}, "penalty: expected a NikaidoIsodaPenalty for a zero-sum game, got ValuePenalty"),
        (
            {"env": "bilevel_gym/TwoState-v0", "env_kwargs": None, "penalty": NikaidoIsodaPenalty()},
            "env: expected a PettingZoo game for a NikaidoIsodaPenalty",
        ),
        ({"env_kwargs": {"n_states": 0}}, "n_states: expected a whole number >= 1, got 0"),
        ({"x0": np.zeros(3)}, r"x0: expected shape \(18,\), got shape \(3,\)"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
