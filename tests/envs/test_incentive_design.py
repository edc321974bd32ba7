"""The incentive design environment: PettingZoo's tests, a whole episode's determinism, and its own contract."""

from __future__ import annotations

import copy
import itertools
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
from bilevel_gym.envs.mdp import IncentiveDesignProblem, ZeroSumGame, random_incentive_design, stack_problems
from bilevel_gym.envs.player import GameLeaderModel
from tests.problems import F64, assert_gradient, generator, numerical_gradient

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


def random_steps(env: IncentiveDesignEnv, n: int = 40) -> tuple[torch.Tensor, ...]:
    """States, joint actions, states after, rewards of both players and the designer's, of n steps."""
    rng, rows = np.random.default_rng(3), []
    state = int(env.reset(seed=1)[0][PLAYERS[0]])
    for _ in range(n):
        actions = {agent: int(rng.integers(5)) for agent in PLAYERS}
        obs, rewards, _, _, infos = env.step(actions)
        following = int(obs[PLAYERS[0]])
        paid = [rewards[agent] for agent in PLAYERS]
        rows.append((state, list(actions.values()), following, paid, infos[PLAYERS[0]]["leader_reward"]))
        state = following
    return tuple(torch.tensor(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("turn_by_turn", [False, True])
def test_the_leader_model_is_the_step_as_a_function_of_x(turn_by_turn: bool) -> None:
    env = make(seed=4)
    x = 2.0 * torch.randn(250, generator=generator(0), dtype=F64)
    env.set_leader(x.numpy())
    s, joint, following, paid, designer = random_steps(env)
    if turn_by_turn:
        aec: Any = incentive_design_v0.env(seed=4)
        aec.set_leader(x.numpy())
        model = aec.leader_model()
    else:
        model = env.leader_model()
    (parameter,) = model.parameters()
    assert parameter is model.x
    torch.testing.assert_close(parameter.detach(), x)
    answer = model(s, joint, torch.zeros(len(s)), following)
    assert [part.shape for part in answer] == [(40, 2), (40,), (40,)]
    torch.testing.assert_close(answer[0].detach(), paid.double(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(answer[1].detach(), designer.double(), rtol=1e-6, atol=0.0)
    assert not bool(answer[2].any())  # x makes nothing be drawn

    weights = torch.linspace(-1.0, 1.0, 80, dtype=F64).view(40, 2)

    def total(z: torch.Tensor) -> torch.Tensor:
        game = env.problem.game(z)
        payoff = game.r[s, joint[:, 0], joint[:, 1]]
        return (weights * torch.stack([payoff, -payoff], -1)).sum()

    (weights * answer[0]).sum().backward(retain_graph=True)
    assert_gradient(parameter.grad, numerical_gradient(total, x))
    for part in answer[1:]:
        (gradient,) = torch.autograd.grad(part.sum(), parameter, retain_graph=True)
        assert not bool(gradient.any())
    assert env.leader_x is not None
    with torch.no_grad():
        parameter.zero_()
    np.testing.assert_array_equal(env.leader_x, x.numpy())  # the model's x is its own


class Moving(IncentiveDesignProblem):
    """x moves the players' transitions too."""

    def game(self, x: torch.Tensor) -> ZeroSumGame:
        game = super().game(x)
        P = torch.softmax(game.P.log() + self.incentive(x).unsqueeze(-1) * torch.arange(3.0, dtype=F64), -1)
        return ZeroSumGame(P, game.r, game.rho, game.gamma, validate=False)


def test_the_leader_model_knows_where_x_moves_transitions() -> None:
    plain = random_incentive_design(3, 2, 2)
    problem = Moving(plain.P, plain.r, plain.P_id, plain.r_id, plain.rho, plain.gamma)
    x = torch.randn(12, generator=generator(0), dtype=F64)
    model = GameLeaderModel(problem, x)
    s, joint, following = torch.tensor([0, 2]), torch.tensor([[0, 1], [1, 1]]), torch.tensor([2, 1])
    log_p = model(s, joint, torch.zeros(2), following)[2]

    def total(z: torch.Tensor) -> torch.Tensor:
        P = problem.game(z).P
        return P[0, 0, 1, 2].log() + P[2, 1, 1, 1].log()

    log_p.sum().backward()
    assert float(log_p.sum().detach()) == pytest.approx(float(total(x)), rel=1e-12)
    assert model.x.grad is not None
    assert_gradient(model.x.grad, numerical_gradient(total, x))


def test_the_commitment_is_the_state_s_incentives() -> None:
    aec: Any = incentive_design_v0.env()
    for env in (make(), aec):
        x = np.linspace(-3.0, 3.0, 250)
        env.set_leader(x)
        assert (env.commitment_size, env.commitment_is_distribution, env.gamma) == (25, False, 0.9)
        shown = env.commitment(np.int64(7))
        assert shown.dtype == np.float32
        np.testing.assert_allclose(shown, 1.0 / (1.0 + np.exp(-x.reshape(10, 25)[7])), rtol=1e-6)


def test_rendering_is_one_line() -> None:
    env = make(render_mode="ansi")
    env.reset(seed=0)
    assert env.render().startswith("state ")
    env.step({agent: 1 for agent in PLAYERS})
    line = env.render()
    assert "player_2 1" in line
    assert "\n" not in line
    assert make().render() is None


def test_the_picture_shows_the_incentives_the_state_and_the_last_actions() -> None:
    env = make(render_mode="rgb_array", n_states=3, n_actions_1=2, n_actions_2=3)
    env.reset(seed=0)
    pictures = [env.render()]
    assert pictures[0].dtype == np.uint8
    assert pictures[0].ndim == 3
    assert pictures[0].shape[-1] == 3
    np.testing.assert_array_equal(env.render(), pictures[0])
    env.set_leader(np.full(18, 2.0))
    pictures.append(env.render())
    env.step({"player_1": 1, "player_2": 0})
    pictures.append(env.render())
    env.step({"player_1": 0, "player_2": 2})
    pictures.append(env.render())
    for before, after in itertools.pairwise(pictures):
        assert before.shape != after.shape or not np.array_equal(before, after)


def test_an_environment_of_the_user_s_own_tables() -> None:
    """And the two payoffs of a game that is not zero-sum are refused at the door."""
    plain = random_incentive_design(3, 2, 2, seed=5)
    game = ZeroSumGame.from_payoffs(plain.r, -plain.r, plain.P, plain.rho, plain.gamma)
    problem = IncentiveDesignProblem.over(game, plain.P_id, plain.r_id, plain.tau)
    parallel_api_test(IncentiveDesignEnv(problem), num_cycles=20)
    env = IncentiveDesignEnv(problem, max_cycles=7)
    twin = make(n_states=3, n_actions_1=2, n_actions_2=2, seed=5, max_cycles=7)
    rng = np.random.default_rng(0)
    np.testing.assert_equal(env.reset(seed=3), twin.reset(seed=3))
    while env.agents:
        actions = {agent: rng.integers(2) for agent in PLAYERS}
        np.testing.assert_equal(env.step(actions), twin.step(actions))
    with pytest.raises(ValueError, match=r"^r2: expected -r1, for the game is zero-sum"):
        ZeroSumGame.from_payoffs(plain.r, plain.r, plain.P, plain.rho, plain.gamma)
    with pytest.raises(ValueError, match=r"^r_id: expected shape \(3, 2, 2\)"):
        IncentiveDesignProblem.over(game, plain.P_id, plain.r_id[:, :1])
    with pytest.raises(ValueError, match=r"^problem: expected an IncentiveDesignProblem, not a stack"):
        IncentiveDesignEnv(stack_problems([plain, plain]))


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
            make(**{name: value})
