"""PBRL over SB3 followers: its watch over the oracle, its counting, its files, and that it learns."""

from __future__ import annotations

import json
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import (
    PBRL,
    BellmanPenalty,
    KnownModel,
    PBRLConfig,
    Rollouts,
    TabularPBRL,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.estimators import rollouts
from bilevel_gym.agents.estimators.rollouts import Rollout, collect
from bilevel_gym.agents.leader import Progress
from bilevel_gym.agents.leaders.pbrl import PBRLMethod, PBRLState
from bilevel_gym.envs.core import LeaderEnv
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP
from bilevel_gym.envs.tabular import TabularEnv, TabularVectorEnv
from tests.agents.estimators.test_one_follower import estimated

ENV_ID = "bilevel_gym/StackelbergGame-v0"
SMALL = PBRLConfig(n_envs=8, follower_steps=128, warmup_steps=128, estimator=Rollouts(8), eval_every=2)


def small(follower: Any = A2C, **changes: Any) -> PBRL:
    arguments: dict[str, Any] = {"env": ENV_ID, "config": SMALL, "env_kwargs": {"n_states": 5}, **changes}
    return PBRL(arguments.pop("env"), follower, **arguments)


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_through_the_known_model_only_the_followers_spend_steps(algorithm: type[BaseAlgorithm]) -> None:
    leader = small(algorithm, config=replace(SMALL, estimator=KnownModel())).learn(5000)
    assert leader.num_timesteps == leader.best_response.num_timesteps + leader.penalised.num_timesteps
    assert leader.last_x.any()


def test_without_a_model_it_cannot_be_known() -> None:
    with pytest.raises(ValueError, match=r"estimator: expected Rollouts\(\) where the environment has no model"):
        PBRL(Chase, ppo_for_chase, config=replace(SMALL, estimator=KnownModel()))


def test_a_certified_bad_oracle_is_reported_and_not_climbed_on() -> None:
    leader = small(
        env_kwargs={"n_states": 5},
        config=PBRLConfig(n_envs=8, follower_steps=64, warmup_steps=64, estimator=Rollouts(256)),
    )
    problem = leader.worlds.problem
    assert problem is not None
    mdp = problem.follower_mdp(problem.start_x())
    worst, best = mdp.r.argmin(-1).numpy(), mdp.r.argmax(-1).numpy()
    leader.best_response.act = lambda obs: worst[leader.worlds.base_observation(obs)]
    leader.penalised.act = lambda obs: best[leader.worlds.base_observation(obs)]
    with pytest.warns(UserWarning, match="significantly worse"):
        leader.learn(15_200)
    assert leader.iteration >= 1
    assert leader.oracle_failures == leader.iteration
    assert leader.penalty_estimate is not None
    assert leader.penalty_estimate.mean < -2 * leader.penalty_estimate.stderr
    assert np.array_equal(leader.last_x, np.zeros(25))
    leader.best_response.act, leader.penalised.act = leader.penalised.act, leader.best_response.act
    leader.learn(10_000, reset_num_timesteps=False)
    assert not np.array_equal(leader.last_x, np.zeros(25))


def still(venv: VecEnv) -> BaseAlgorithm:
    """A follower that training leaves as it is."""
    net: dict[str, Any] = {"net_arch": [4], **({"log_std_init": -3.0} if hasattr(venv.action_space, "low") else {})}
    gamma = venv.get_attr("gamma")[0]
    return A2C("MlpPolicy", venv, learning_rate=0.0, gamma=gamma, n_steps=8, device="cpu", seed=0, policy_kwargs=net)


def planted(env: str, worse: str, **changes: Any) -> PBRL:
    """A leader of which one follower always pushes to one side, and the other one does next to nothing."""
    config = PBRLConfig(n_envs=4, follower_steps=32, warmup_steps=32, vec_env="dummy", eval_every=10**6, **changes)
    leader = PBRL(env, still, config=config)
    policy = leader.penalised.policy_state()
    for name, follower in leader.followers.items():
        policy["weights"]["action_net.weight"][:] = 0.0
        policy["weights"]["action_net.bias"][:] = 0.0
        policy["weights"]["action_net.bias"][0] = 8.0 if name == worse else 0.0
        follower.take_policy(policy)
    return leader


def weights(follower: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = follower.policy_state()["weights"]
    return found


def iterate(leader: PBRL) -> None:
    """One iteration, without records."""
    leader.method.step(leader.state, Progress(leader.num_timesteps, 10**6))


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


WITHOUT_TABLES = [f"bilevel_gym/{name}-v0" for name in ("LQStackelberg", "SubsidisedPendulum", "ShapedCartPole")]


@pytest.mark.parametrize("env", WITHOUT_TABLES)
def test_a_worse_best_response_takes_over_the_penalised_followers_policy_and_x_waits(env: str) -> None:
    leader = planted(env, "best_response", swap=True)
    x, better = leader.last_x, weights(leader.penalised)
    iterate(leader)
    assert leader.penalty_estimate is not None
    assert leader.penalty_estimate.mean < -2.0 * leader.penalty_estimate.stderr
    assert leader.oracle_failures == 1
    assert np.array_equal(leader.last_x, x)
    assert same(leader.best_response, leader.penalised)
    assert all(torch.equal(better[name], held) for name, held in weights(leader.best_response).items())
    # Both the policy that trains and its average are taken over.
    trained = leader.best_response.model.policy.state_dict()
    assert all(torch.equal(better[name], held) for name, held in trained.items())


@pytest.mark.parametrize("env", WITHOUT_TABLES)
def test_a_better_best_response_keeps_its_policy(env: str) -> None:
    leader = planted(env, "penalised", swap=True)
    own = weights(leader.best_response)
    iterate(leader)
    assert leader.oracle_failures == 0
    assert all(torch.equal(own[name], held) for name, held in weights(leader.best_response).items())


def test_without_the_swap_x_only_waits() -> None:
    leader = planted(WITHOUT_TABLES[0], "best_response")
    x = leader.last_x
    iterate(leader)
    assert leader.oracle_failures == 1
    assert np.array_equal(leader.last_x, x)
    assert not same(leader.best_response, leader.penalised)


def test_soft_followers_do_not_swap() -> None:
    assert not small().method.swaps
    assert small(config=replace(SMALL, swap=True)).method.swaps
    assert not small(DQN, penalty=BellmanPenalty(), config=replace(SMALL, swap=True)).method.swaps
    with pytest.raises(ValueError, match="swap: expected True or False, got 'yes'"):
        replace(SMALL, swap="yes")  # type: ignore[arg-type]


def test_a_saved_leader_swaps_as_it_would_have(tmp_path: Path) -> None:
    leader = planted(WITHOUT_TABLES[0], "best_response", swap=True)
    again = PBRL.load(leader.save(tmp_path / "leader"), still)
    for each in (leader, again):
        iterate(each)
        iterate(each)
    assert leader.oracle_failures == again.oracle_failures >= 1
    assert np.array_equal(leader.last_x, again.last_x)
    assert same(leader.best_response, again.best_response)


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_every_follower_step_is_counted(algorithm: type[BaseAlgorithm], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    step = TabularVectorEnv.step

    def counting(self: TabularVectorEnv, actions: Any) -> Any:
        nonlocal taken
        taken += self.num_envs
        return step(self, actions)

    monkeypatch.setattr(TabularVectorEnv, "step", counting)
    leader = small(algorithm).learn(5000)
    assert leader.num_timesteps == taken >= 5000
    assert leader.history[-1].steps == taken
    assert leader.best_response.num_timesteps == leader.penalised.num_timesteps


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_one_seed_gives_one_result(algorithm: type[BaseAlgorithm]) -> None:
    def run(seed: int) -> Any:
        np.random.seed()  # whatever the caller's generators hold
        return small(algorithm, seed=seed).learn(4000).last_x

    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


@pytest.mark.long
def test_the_leader_learns_over_several_games() -> None:
    gains = []
    for seed in range(4):
        config = PBRLConfig(n_envs=32, follower_steps=512, warmup_steps=5_000, estimator=Rollouts(32))
        leader = PBRL(ENV_ID, PPO, config=config, seed=seed, env_kwargs={"n_states": 5, "seed": seed}).learn(200_000)
        problem = leader.worlds.problem
        assert problem is not None
        untrained, reached = (
            leader_return_at_best_response(problem, torch.as_tensor(x)) for x in (problem.start_x(), leader.last_x)
        )
        exact = TabularPBRL(problem).learn(200).evaluate().leader_return
        gains.append((reached - untrained) / (exact - untrained))
    assert np.mean(gains) > 0.5
    assert min(gains) > 0.0


def test_the_path_of_x_does_not_read_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = small().learn(10_000).last_x
    evaluate = PBRLMethod.evaluate

    def worse_every_time(self: PBRLMethod, state: Any, x: Tensor, iteration: int) -> Any:
        return replace(evaluate(self, state, x, iteration), leader_return=-float(iteration))

    monkeypatch.setattr(PBRLMethod, "evaluate", worse_every_time)
    blind = small().learn(10_000)
    assert np.array_equal(blind.last_x, honest)
    assert np.array_equal(blind.x, np.zeros(25))  # the choice of the best does read it


def test_the_best_x_is_kept() -> None:
    leader = small(DQN).learn(20_000)
    record = leader.evaluate()
    problem = leader.worlds.problem
    assert problem is not None
    assert record.leader_return == max(e.leader_return for e in leader.history)
    assert leader_return_at_best_response(problem, torch.from_numpy(leader.x)) == record.leader_return


def test_learning_goes_on_and_callbacks_stop_it() -> None:
    leader = small().learn(3000)
    first = leader.num_timesteps
    leader.learn(3000, reset_num_timesteps=False)
    assert leader.num_timesteps >= first + 3000
    seen: list[int] = []

    def stop_at_three(it: Any) -> bool:
        seen.append(it.iteration)
        return len(seen) < 3

    leader.learn(50_000, callback=stop_at_three)
    assert seen == [1, 2, 3]


def test_bounds_and_budget_hold() -> None:
    config = PBRLConfig(
        n_envs=8, follower_steps=64, warmup_steps=0, estimator=Rollouts(8), low=-0.5, budget=2.0, learning_rate=0.5
    )
    leader = small(config=config, x0=np.full(25, 0.05))
    leader.learn(20_000, callback=lambda it: it.leader_set.contains(torch.from_numpy(it.last_x)))
    assert leader.num_timesteps >= 20_000
    assert leader.last_x.min() >= -0.5
    assert np.abs(leader.last_x).sum() <= 2.0 + 1e-9
    assert np.abs(leader.last_x).sum() > 1.5


def test_records_are_logged(tmp_path: Path) -> None:
    leader = small()
    leader.set_logger(configure(str(tmp_path), ["csv", "json", "tensorboard"]))
    leader.learn(5000)
    leader.logger.close()
    table = (tmp_path / "progress.csv").read_text().splitlines()
    assert {
        "leader/leader_return",
        "leader/follower_regret",
        "leader/lam",
        "leader/steps",
        "leader/penalty_estimate",
    } <= set(table[0].split(","))
    assert len(table) == len(leader.history) + 1
    assert list(tmp_path.glob("events*"))


class Chase(LeaderEnv[Any, Any]):
    """Continuous and not tabular: the follower is paid for meeting x, the leader for actions near 0.6."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    leader_space = gym.spaces.Box(-1, 1, (1,), np.float64)
    gamma = 0.5
    commitment_size = 1

    def __init__(self) -> None:
        self._x = np.zeros(1)
        self._t = 0

    @property
    def leader_x(self) -> Any:
        return self._x.copy()

    def set_leader(self, x: Any) -> None:
        self._x = np.array(x, dtype=np.float64)

    def commitment(self, obs: Any) -> Any:
        return self._x.astype(np.float32)

    def leader_model(self) -> torch.nn.Module:
        class Model(torch.nn.Module):
            def __init__(self, x: Any) -> None:
                super().__init__()
                self.x = torch.nn.Parameter(torch.as_tensor(x))

            def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
                a = torch.as_tensor(action).double().clamp(-1, 1)[:, 0]
                return 1 - (a - self.x[0]) ** 2, -((a - 0.6) ** 2) + 0 * self.x[0], 0 * a * self.x[0]

        return Model(self._x)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        a = float(np.clip(action, -1, 1)[0])
        self._t += 1
        info = {"leader_reward": -((a - 0.6) ** 2), "leader_draw": 0}
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return obs, 1 - (a - float(self._x[0])) ** 2, False, self._t >= 6, info


def ppo_for_chase(venv: VecEnv) -> BaseAlgorithm:
    return PPO("MlpPolicy", venv, gamma=0.5, n_steps=32, batch_size=64, learning_rate=1e-3, n_epochs=10, device="cpu")


@pytest.mark.long
def test_any_environment_without_a_model() -> None:
    config = PBRLConfig(
        n_envs=4,
        follower_steps=128,
        warmup_steps=4000,
        estimator=Rollouts(8),
        eval_every=1000,
        evaluation_steps=2000,
        x_noise=0.2,
    )
    leader = PBRL(Chase, ppo_for_chase, penalty=ValuePenalty(lam=2.0), config=config, seed=0)
    leader.learn(24_000)
    record = leader.history[-1]
    assert leader.worlds.problem is None
    assert abs(leader.last_x[0] - 0.6) < 0.25  # the follower goes where x is, so x goes where the leader is paid
    assert record.leader_return > leader.history[0].leader_return
    assert record.leader_return_stderr > 0
    assert record.steps == leader.num_timesteps


def test_wrapped_environments_are_not_bypassed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(gym.RewardWrapper[Any, Any]):
        def reward(self, reward: Any) -> float:
            return 2.0 * float(reward)

    plain, doubled = small(), small(env=Doubled(gym.make(ENV_ID, n_states=5)), env_kwargs=None)
    assert type(plain.estimator.venv.unwrapped).__name__ == "VectorEnvAdapter"
    assert type(doubled.estimator.venv.unwrapped).__name__ == "DummyVecEnv"
    played: list[Rollout] = []

    def watched(*asked: Any, **further: Any) -> Rollout:
        played.append(collect(*asked, **further))
        return played[-1]

    monkeypatch.setattr(rollouts, "collect", watched)
    estimated(doubled)
    assert len(played) == 2
    rewards = played[0].r_follower
    paid: Any = doubled.worlds.env.unwrapped.problem.r_follower.numpy().ravel()
    assert np.isin(np.round(rewards / 2, 5), np.round(paid, 5)).all()
    assert rewards.max() > 1.0
    assert doubled.worlds.problem is None  # the numbers of the game inside are not those that the follower lives by


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_a_saved_leader_comes_back(algorithm: type[BaseAlgorithm], tmp_path: Path) -> None:
    leader = small(algorithm).learn(4000)
    path = leader.save(tmp_path / "leader")
    again = PBRL.load(path)
    assert path.suffix == ".zip"
    assert np.array_equal(again.x, leader.x)
    assert np.array_equal(again.last_x, leader.last_x)
    assert again.evaluate() == leader.evaluate()
    assert again.history == leader.history
    for a, b in ((leader.best_response, again.best_response), (leader.penalised, again.penalised)):
        assert np.array_equal(
            leader.level.table(a, torch.from_numpy(leader.x)), again.level.table(b, torch.from_numpy(leader.x))
        )
    before = again.num_timesteps
    assert again.learn(2000, reset_num_timesteps=False).num_timesteps >= before + 2000


def test_a_callable_follower_is_never_stored(tmp_path: Path) -> None:
    unpicklable = (i for i in range(3))

    def follower(venv: VecEnv) -> BaseAlgorithm:
        assert unpicklable is not None
        return A2C("MlpPolicy", venv, gamma=0.9, device="cpu")

    path = small(follower).learn(1100).save(tmp_path / "leader.zip")
    with pytest.raises(ValueError, match="follower: expected the callable"):
        PBRL.load(path)
    assert PBRL.load(path, follower=follower).iteration > 0
    with pytest.raises(ValueError, match="follower: expected the algorithm"):
        PBRL.load(path, follower=DQN)
    with zipfile.ZipFile(path) as archive:
        names, header = archive.namelist(), json.loads(archive.read("leader.json"))
    assert names == ["leader.json", *(f"arrays/{i}.npy" for i in range(len(names) - 1))]
    assert set(header["state"]["state"]) == {field.name for field in fields(PBRLState)}
    assert header["follower"] is None


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = small().learn(1100).save(tmp_path / "leader.zip")
    whole = path.read_bytes()
    cut = tmp_path / "cut.zip"
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="path: expected a whole leader file"):
            PBRL.load(cut)
    with pytest.raises(FileNotFoundError, match="path: expected a leader file"):
        PBRL.load(tmp_path / "none.zip")
    with pytest.raises(ValueError, match="path: expected the file of a TabularPBRL, got that of a PBRL"):
        TabularPBRL.load(path)
    with pytest.raises(ValueError, match="env: expected the environment of"):
        PBRL.load(path, env=gym.make(ENV_ID, n_states=5, seed=8))
    given = small(env=gym.make(ENV_ID, n_states=5), env_kwargs=None).save(tmp_path / "given.zip")
    with pytest.raises(ValueError, match="env: expected the environment that this leader was trained on"):
        PBRL.load(given)
    assert PBRL.load(given, env=gym.make(ENV_ID, n_states=5)).num_timesteps == 0


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "bilevel_gym/Nothing-v0"}, "env: expected a registered environment id"),
        ({"env": "CartPole-v1", "env_kwargs": None}, "env: expected a leader environment"),
        ({"env_kwargs": {"n_states": 0}}, "n_states: expected a whole number >= 1, got 0"),
        ({"env_kwargs": {"gamma": 1.0}}, r"gamma: expected a number in \[0, 1\), got 1.0"),
        ({"x0": np.zeros(3)}, r"x0: expected shape \(25,\), got shape \(3,\)"),
        ({"x0": np.full(25, np.nan)}, "x0: expected finite numbers, got nan"),
        ({"x0": np.full(25, 99.0)}, "x0: expected a point of X"),
        ({"env": gym.make(ENV_ID, n_states=5)}, "env_kwargs: expected none for an environment"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_envs", 0),
        ("follower_steps", 1.5),
        ("estimator", None),
        ("averaging", 1.0),
        ("entropy", -0.1),
        ("x_noise", -1),
        ("noisy_share", 2),
        ("q_temperature", 0),
    ],
)
def test_bad_settings_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        PBRLConfig(**{name: value})


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="total_timesteps: expected a whole number >= 1, got 0"):
        small().learn(0)


# --- what users stumbled over ----------------------------------------------------------------------------------------


class Plain(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that does nothing, but hides that the environment is tabular."""


def test_sampled_evaluation_leaves_training_alone() -> None:
    def train(eval_every: int) -> Any:
        config = PBRLConfig(
            n_envs=8,
            follower_steps=128,
            warmup_steps=0,
            estimator=Rollouts(8),
            eval_every=eval_every,
            evaluation_steps=64,
        )
        seen: list[Any] = []

        def stop_at_five(it: Any) -> bool:
            seen.append(it.last_x)
            return len(seen) < 5

        penalty = ValuePenalty(lam=3.0)  # a schedule runs over all steps, those of evaluation among them
        plain = small(env=Plain(gym.make(ENV_ID, n_states=5)), env_kwargs=None, config=config, penalty=penalty)
        plain.learn(20_000, callback=stop_at_five)
        return seen[4]

    assert np.array_equal(train(1), train(1000))


def test_contexts_are_evaluated() -> None:
    rng = torch.Generator().manual_seed(0)
    P = torch.rand(2, 3, 2, 3, generator=rng, dtype=torch.float64)
    base = TabularMDP(P / P.sum(-1, keepdim=True), torch.rand(2, 3, 2, generator=rng), torch.full((2, 3), 1 / 3), 0.8)
    problem = ArrayProblem(base, LeaderSet.box(1, -1, 1), lambda x: base.r + x, lambda x: base.r - x)
    problem.context_probs = torch.tensor([0.3, 0.7], dtype=torch.float64)
    leader = PBRL(TabularEnv(problem), A2C, config=SMALL).learn(2000)
    assert leader.level.table(leader.penalised, torch.from_numpy(leader.x)).numel() == 6 * 2
    assert leader.evaluate().leader_return == leader_return_at_best_response(problem, torch.from_numpy(leader.x))


def test_missing_actions_are_refused_before_training() -> None:
    base = TabularMDP(
        torch.full((2, 2, 2), 0.5),
        torch.eye(2),
        torch.full((2,), 0.5),
        0.9,
        mask=torch.tensor([[True, True], [True, False]]),
    )
    problem = ArrayProblem(base, LeaderSet.box(1, -1, 1), lambda x: base.r + x, lambda x: base.r - x)
    with pytest.raises(ValueError, match="env: expected an environment without action masks"):
        PBRL(TabularEnv(problem), A2C)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*regularised at tau.*")
def test_a_simulator_that_takes_missing_actions_teaches_not_to_take_them() -> None:
    leader = PBRL("bilevel_gym/TollDesign-v0", PPO, config=SMALL, env_kwargs={"n_nodes": 8})
    problem = leader.worlds.problem
    assert problem is not None
    mdp = problem.follower_mdp(problem.start_x())
    assert mdp.mask is not None
    assert mdp.terminal is not None
    missing = (~mdp.mask & ~mdp.terminal.unsqueeze(-1)).flatten(0, 1)

    def share() -> float:
        pi = leader.level.table(leader.best_response, torch.from_numpy(leader.x))
        return float(pi.reshape(missing.shape)[missing].mean())

    before = share()
    leader.learn(80_000)
    assert before == pytest.approx(1.0 / mdp.n_actions, abs=0.02)
    assert share() < 0.5 * before
    assert leader.evaluate().leader_return <= 0.0


def test_another_class_than_the_files_is_refused(tmp_path: Path) -> None:
    path = small(PPO).learn(1100).save(tmp_path / "leader.zip")
    with pytest.raises(
        ValueError, match=r"follower: expected stable_baselines3.ppo.ppo:PPO.*got stable_baselines3.a2c.a2c:A2C"
    ):
        PBRL.load(path, follower=A2C)


def test_rollouts_far_longer_than_asked_are_reported() -> None:
    def long_rollouts(venv: VecEnv) -> BaseAlgorithm:
        return PPO("MlpPolicy", venv, gamma=0.9, n_steps=256, n_epochs=1, batch_size=2048, device="cpu")

    with pytest.warns(UserWarning, match="follower: expected rollouts of about follower_steps=128 steps, got 2048"):
        small(long_rollouts).learn(6_000)


class Unpaid(Chase):
    """Its info lacks the leader's reward."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return (*super().step(action)[:4], {})


class Misfit(Chase):
    """Its model answers with scalars."""

    def leader_model(self) -> torch.nn.Module:
        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.x = torch.nn.Parameter(torch.zeros(1))

            def forward(self, *batch: Any) -> Any:
                return tuple(self.x.sum() for _ in range(3))

        return Model()


class Wrong(Chase):
    """It pays other rewards than its model says."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        return (obs, 10.0 * reward, *rest)


def test_environments_that_break_the_contract_are_told_so_before_training() -> None:
    for env, message in (
        (Unpaid, "info: expected the key 'leader_reward'"),
        (Misfit, "leader_model: expected a torch module"),
    ):
        with pytest.raises(ValueError, match=message):
            PBRL(env, ppo_for_chase)
    with pytest.warns(UserWarning, match="leader_model: in a trial step the follower's reward"):
        PBRL(Wrong, ppo_for_chase)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"n_envs": 3}}, "config: expected a PBRLConfig"),
        ({"seed": -1}, "seed: expected None or a whole number >= 0, got -1"),
        ({"env": 3, "env_kwargs": None}, "env: expected an environment, its id, a problem, or a callable"),
    ],
)
def test_arguments_of_another_type_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
    with pytest.raises(ValueError, match="callback: expected a callable"):
        small().learn(10_000, callback=3)


def test_sb3_makes_our_environments_by_id() -> None:
    assert A2C("MlpPolicy", "bilevel_gym/TwoState-v0", device="cpu").learn(50).num_timesteps >= 50


def scaled(width: float) -> TabularEnv:
    """A table whose reward depends on x as a share of X's width."""
    rng = torch.Generator().manual_seed(2)
    P = torch.rand(4, 2, 4, generator=rng, dtype=torch.float64)
    base = TabularMDP(P / P.sum(-1, keepdim=True), torch.zeros(4, 2), torch.full((4,), 0.25), gamma=0.8)
    pay, own = torch.randn(2, 4, 2, generator=rng, dtype=torch.float64)
    X = LeaderSet.box(1, -0.5 * width, 0.5 * width)
    return TabularEnv(ArrayProblem(base, X, lambda x: own + 2.0 * x / width * pay, lambda x: pay - 2.0 * x / width))


@pytest.mark.parametrize("width", [0.02, 1.0])
def test_steps_and_noise_are_shares_of_a_narrow_X(width: float) -> None:
    reference, narrow = (
        PBRL(scaled(w), A2C, config=replace(SMALL, observe_commitment=False, x_noise=0.0)).learn(6_000)
        for w in (2.0, width)
    )
    assert reference.last_x[0] != 0.0
    np.testing.assert_allclose(narrow.last_x / width, reference.last_x / 2.0, rtol=1e-6)
    wide = small().method
    np.testing.assert_array_equal(wide.unit, 1.0)
    points = PBRL(scaled(width), A2C, config=replace(SMALL, x_noise=0.1, noisy_share=1.0))
    spread = points.method.neighbourhood(points.state).std()
    assert 0.02 * width < spread < 0.1 * width


@pytest.mark.parametrize(
    ("width", "unit"), [(0.01, 0.005), (2.0, 1.0), (20.0, 1.0), (40.0, 1.0), (4e6, 1e5), (0.0, 1.0)]
)
def test_the_unit_of_x(width: float, unit: float) -> None:
    assert LeaderSet.box(2, 1.0, 1.0 + width).unit.tolist() == pytest.approx([unit, unit])
