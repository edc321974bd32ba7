"""Regret found: planted regrets of tables against the exact ones, no regret where there is none, and what is refused."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from bilevel_gym.agents import PBRL, ResponsePool, Rollouts, find_regret
from bilevel_gym.agents.followers.sb3 import SB3Follower
from bilevel_gym.agents.followers.spec import Answering
from bilevel_gym.agents.learned.regret import KINDS, PairedEpisodes, RegretFound
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP, policy_return, solve_soft
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.wrappers import hide_model

GAMMA, S, A = 0.8, 6, 3
SMALL: dict[str, Any] = {"fresh_steps": 2_000, "warm_steps": 1_000, "n_envs": 8}


def problem() -> ArrayProblem:
    """A random table whose first action is paid x in every state."""
    rng = torch.Generator().manual_seed(3)
    P, r, wanted = (torch.rand(S, A, n, generator=rng, dtype=torch.float64) for n in (S, 1, 1))
    base = TabularMDP(P / P.sum(-1, keepdim=True), r[..., 0], torch.full((S,), 1.0 / S, dtype=torch.float64), GAMMA)
    first = torch.zeros(S, A, dtype=torch.float64)
    first[:, 0] = 1.0
    return ArrayProblem(
        base, LeaderSet.box(1, -1.0, 1.0), lambda x: r[..., 0] + x * first, lambda x: wanted[..., 0] - x * first
    )


def world() -> gym.Env[Any, Any]:
    return hide_model(TabularEnv(problem()), 40)


def solved(x: float) -> tuple[TabularMDP, Tensor]:
    """The follower's problem at x, and its best policy ``[S, A]``."""
    mdp = problem().follower_mdp(torch.tensor([x], dtype=torch.float64))
    return mdp, solve_soft(mdp, 0.0).pi


def model_of(pi: Tensor, flat: float = 1.0) -> PPO:
    """A PPO model whose policy is this table, ``[S, A]``; ``flat`` < 1 flattens how it explores, and not its best action."""
    model = PPO("MlpPolicy", world(), gamma=GAMMA, policy_kwargs={"net_arch": []}, seed=0, device="cpu")
    net: Any = model.policy.action_net
    with torch.no_grad():
        net.weight.copy_(flat * (pi + 1e-6).log().T)
        net.bias.zero_()
    return model


def regret_at(*arguments: Any, **options: Any) -> RegretFound:
    """The regret found at one x."""
    found = find_regret(*arguments, **options)
    assert isinstance(found, RegretFound)
    return found


def spoilt(pi: Tensor, states: list[int], by: int = 1) -> Tensor:
    """The policy with another action in some states."""
    pi = pi.clone()
    pi[states] = pi[states].roll(by, -1)
    return pi


# --- the number ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [[0], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_a_planted_regret_is_what_the_table_says(states: list[int]) -> None:
    """The challenger is the best policy itself, so that the regret found is all of the regret."""
    mdp, pi = solved(0.3)
    truth = float(policy_return(mdp, pi) - policy_return(mdp, spoilt(pi, states)))
    found = regret_at(world(), model_of(spoilt(pi, states)), [0.3], ["earlier"], earlier=[model_of(pi)], episodes=4096)
    assert found.refuted
    assert truth > 4.0 * found.stderr
    assert abs(found.regret - truth) < 3.0 * found.stderr + 0.01 * truth  # episodes are cut where the discount is 1%
    assert found.kind == "earlier"
    assert found.kinds == ("earlier",)
    # no training, and half of the episodes for each way of three policies, and for what is measured
    assert found.steps % (2048 * 21) == 0


def test_the_share_is_of_what_is_known_to_be_gained() -> None:
    """The error of the share covers how it varies over seeds; what it is a share of is best less untrained."""
    _, pi = solved(0.3)
    bad, best = model_of(spoilt(pi, [0, 2, 3])), model_of(pi)
    found = [regret_at(world(), bad, [0.3], ["earlier"], earlier=[best], episodes=64, seed=seed) for seed in range(8)]
    for one in found:
        assert one.share > 0.0
        assert one.share * one.stderr < one.share_stderr * one.regret * 3.0
    idle = [
        1.0 / one.share for one in found
    ]  # an untrained policy differs from seed to seed, and is at times the better one
    assert np.std(idle) > 0.0
    # an untrained challenger that is the best known: no share can be told
    worst = model_of(spoilt(pi, list(range(S)), 2))
    one = regret_at(world(), worst, [0.3], ["untrained"], episodes=512)
    assert one.refuted
    assert one.share == math.inf


@pytest.mark.parametrize("x", [-0.8, 0.9])
def test_an_exact_follower_is_not_refuted(x: float) -> None:
    _, pi = solved(x)
    found = regret_at(world(), model_of(pi), [x], earlier=[model_of(spoilt(pi, [2]))], seed=1, **SMALL)
    assert not found.refuted
    assert found.regret <= 2.0 * found.stderr
    assert found.kinds == KINDS
    assert "nothing better found by these: untrained, earlier, larger stakes, fresh, warm" in str(found)


@pytest.mark.parametrize("kind", ["warm", "fresh", "larger stakes"])
def test_training_finds_a_planted_regret(kind: str) -> None:
    mdp, pi = solved(0.3)
    bad = spoilt(pi, [0, 1, 2, 3, 4, 5])
    truth = float(policy_return(mdp, pi) - policy_return(mdp, bad))
    steps = {"fresh_steps": 4_000, "warm_steps": 4_000, "n_envs": 8}
    spec = partial(
        PPO,
        "MlpPolicy",
        gamma=GAMMA,
        n_steps=16,
        batch_size=64,
        n_epochs=4,
        learning_rate=0.03,
        ent_coef=0.01,
        policy_kwargs={"net_arch": []},
        device="cpu",
    )
    found = regret_at(world(), model_of(bad, 0.1), [0.3], [kind], challenger=spec, seed=2, **steps)
    assert (found.refuted, found.kind) == (True, kind)
    assert 0.5 * truth < found.regret < truth + 3.0 * found.stderr
    assert f"{kind}; tried: {kind}" in str(found)
    assert found.steps > 4_000


def test_a_worse_challenger_finds_nothing() -> None:
    _, pi = solved(0.3)
    found = regret_at(world(), model_of(pi), [0.3], ["earlier"], earlier=[model_of(spoilt(pi, [0, 3]))])
    assert (found.regret, found.share) == (0.0, 0.0)
    assert not found.refuted


def test_the_better_way_to_play_counts_for_both() -> None:
    """Nearly even probabilities whose best actions are right: greedily nothing is lacking, of a challenger likewise."""
    mdp, pi = solved(0.3)
    flat, bad = model_of(pi, 0.01), spoilt(pi, [0, 2])
    found = regret_at(world(), flat, [0.3], ["earlier"], earlier=[model_of(bad)], episodes=1024)
    assert found.regret == 0.0
    assert found.follower_return == pytest.approx(float(policy_return(mdp, pi)), rel=0.03)
    other = regret_at(world(), model_of(bad), [0.3], ["earlier"], earlier=[flat], episodes=1024)
    assert other.refuted


def at_random(rng: np.random.Generator, obs: Any) -> Any:
    return rng.integers(A, size=len(obs))


def test_to_choose_does_not_inflate() -> None:
    """Sixteen challengers that are as good as the follower: by the second half the chosen one gains nothing."""
    worlds = Worlds(world, None, False)
    venv = worlds.make(16)
    actor = SB3Follower(A2C, venv, GAMMA, 0, False, Answering())
    inflated, honest, refuted = [], [], 0
    for seed in range(40):
        paired = PairedEpisodes(actor, venv, 10, GAMMA, seed)
        for k in range(17):
            rng = np.random.default_rng([seed, k])
            paired.add(str(k), "random", partial(at_random, rng))
        rivals = [str(k) for k in range(1, 17)]
        chosen = paired.best(rivals)
        inflated.append(float((paired._both(chosen, 0, 0)[0] - paired._both("0", 0, 0)[0]).mean()))
        found = paired.regret("0", rivals, "0")
        honest.append(float((paired._both(chosen, 1, 0)[0] - paired._both("0", 1, 0)[0]).mean()))
        refuted += found.refuted
    venv.close()
    error = np.std(honest, ddof=1) / math.sqrt(40)
    assert abs(np.mean(honest)) < 3.0 * error
    assert np.mean(inflated) > 5.0 * error
    assert refuted <= 5  # 2.3% each


# --- several points, and other followers ----------------------------------------------------------------------------------


def test_the_same_episodes_price_several_points() -> None:
    _, pi = solved(0.3)
    bad, xs = model_of(spoilt(pi, [1, 5])), [[-0.5], [0.3], [1.0]]
    together = find_regret(world(), bad, xs, ["untrained", "earlier"], earlier=[model_of(pi)])
    assert isinstance(together, tuple)
    for x, found in zip(xs, together, strict=True):
        alone = regret_at(world(), bad, x, ["untrained", "earlier"], earlier=[model_of(pi)])
        assert found.regret == pytest.approx(alone.regret, rel=1e-5, abs=1e-9)
        assert found.stderr == pytest.approx(alone.stderr, rel=1e-5)
        assert found.follower_return == pytest.approx(alone.follower_return, rel=1e-5)
        assert found.steps >= alone.steps


def test_several_points_train_challengers_at_each() -> None:
    _, pi = solved(0.3)
    found = find_regret(world(), model_of(spoilt(pi, [1, 5])), [[-0.9], [0.8]], **SMALL)
    assert isinstance(found, tuple)
    assert [one.kinds for one in found] == [("untrained", "larger stakes", "fresh", "warm")] * 2
    assert found[0].steps == found[1].steps > 2 * (2 * 2_000 + 2 * 1_000)


def test_leaders_hold_the_follower_and_the_challengers() -> None:
    """PBRL's best response against its penalised follower, both of which see x; the pool's best against all others."""
    leader = PBRL(world, A2C, n_envs=8, follower_steps=64, warmup_steps=64, estimator=Rollouts(8), evaluation_steps=64)
    leader.learn(2_000)
    found = regret_at(world, leader, leader.x, ["untrained", "earlier"])
    assert found.kinds == ("untrained", "earlier")
    assert find_regret(world, leader.penalised, leader.x, ["fresh"], earlier=[leader.best_response], **SMALL)
    with pytest.raises(ValueError, match=r"^x: expected one point"):
        find_regret(world, leader, [[0.1], [0.2]], ["earlier"])
    leader.close()
    pool = ResponsePool(world, A2C, fresh_steps=2_000, warm_steps=500, n_envs=8, episodes=16)
    with pytest.raises(ValueError, match=r"^follower: expected a leader that has learned"):
        find_regret(world, pool, [0.0])
    pool.learn(8_000)
    at = find_regret(world, pool, [[-1.0], [1.0]], ["earlier", "warm"], **SMALL)
    assert isinstance(at, tuple)
    assert all(one.kinds == ("earlier", "warm") for one in at)
    pool.close()


def test_a_function_is_a_follower_too() -> None:
    mdp, pi = solved(0.3)
    best = pi.argmax(-1).numpy()
    exact, truth = regret_at(world(), lambda obs: best[obs], [0.3], ["fresh"], **SMALL), float(policy_return(mdp, pi))
    assert not exact.refuted
    assert exact.follower_return == pytest.approx(truth, rel=0.05)
    poor = regret_at(world(), lambda obs: (best[obs] + 1) % A, [0.3], ["earlier"], earlier=[model_of(pi)])
    assert poor.refuted


@pytest.mark.parametrize("kind", ["scaled", "quiet", "dqn", "follower"])
def test_any_model_is_challenged_by_its_own_kind(kind: str) -> None:
    env: Any = gym.make("bilevel_gym/SubsidisedPendulum-v0")
    if kind in ("scaled", "quiet"):
        venv = VecNormalize(DummyVecEnv([lambda: env]), norm_reward=kind == "scaled", gamma=0.97)
        model: Any = PPO("MlpPolicy", venv, gamma=0.97, n_steps=64, batch_size=64, device="cpu", seed=0).learn(64)
        venv.training = kind == "scaled"
        x = [0.5]
    elif kind == "dqn":
        env, x = world(), [0.1]
        model = DQN("MlpPolicy", env, gamma=GAMMA, policy_kwargs={"net_arch": [16]}, device="cpu", seed=0)
    else:
        x = [0.5]
        worlds = Worlds(env, None, False)
        model = SB3Follower(A2C, worlds.make(4), 0.97, 0, False, Answering(averaging=0.5))
        model.train_alone(320)
    found = regret_at(env, model, x, episodes=8, **SMALL)
    assert found.kinds == ("untrained", "larger stakes", "fresh", "warm")
    assert math.isfinite(found.follower_return)


# --- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": []}, "kinds: expected at least one of"),
        ({"kinds": "fresh"}, "kinds: expected at least one of"),
        ({"kinds": ["fresh", "frish"]}, r"kinds: expected some of .*, got \['frish'\]"),
        ({"kinds": ["earlier"]}, "kinds: expected other kinds, or earlier policies"),
        ({"x": [1.5]}, "x: expected a point of X"),
        ({"x": [[0.2], [-1.5]]}, r"x\[1\]: expected a point of X"),
        ({"x": [0.1, 0.2]}, "x: expected shape"),
        ({"x": [math.nan]}, "x: expected finite"),
        ({"x": np.zeros((0, 1))}, "x: expected"),
        ({"episodes": 3}, "episodes: expected a whole number >= 4"),
        ({"episodes": 64.5}, "episodes: expected a whole number"),
        ({"fresh_steps": 0}, "fresh_steps: expected"),
        ({"tail": 0.0}, "tail: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"follower": PPO}, "follower: expected a trained SB3 model"),
        ({"follower": "PPO"}, "follower: expected a trained SB3 model"),
        ({"follower": PPO("MlpPolicy", "CartPole-v1", device="cpu")}, "follower: expected a model on"),
        ({"earlier": [PPO]}, "earlier: expected trained SB3 models"),
        ({"earlier": [PPO("MlpPolicy", world(), device="cpu")]}, "earlier 0: expected weights of the challengers' PPO"),
        ({"challenger": A2C}, "follower: expected weights of the challengers' A2C"),
        ({"env": "bilevel_gym/Nowhere-v0"}, "env: expected a registered"),
        ({"env": "CartPole-v1"}, "env: expected a leader environment"),
        ({"env": "bilevel_gym/incentive_design_v0"}, "env: expected an environment with one follower, not a game"),
        (
            {"env": lambda: pettingzoo.make("parallel", "bilevel_gym/incentive_design_v0")},
            "env: expected an environment with one follower, not a game",
        ),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "env": world(),
        "follower": model_of(solved(0.0)[1]),
        "x": [0.0],
        "kinds": ["untrained"],
    } | options
    with pytest.raises(ValueError, match="^" + message):
        find_regret(given.pop("env"), given.pop("follower"), given.pop("x"), given.pop("kinds"), **given)


def test_a_function_alone_is_imitated_where_the_policy_has_a_likelihood() -> None:
    """Noise in a function is not imitated: the imitation's best action is the one that the function plays most."""
    _, pi = solved(0.3)
    best, rng = pi.argmax(-1).numpy(), np.random.default_rng(0)

    def noisy(obs: Any) -> Any:
        return np.where(rng.random(len(obs)) < 0.3, rng.integers(A, size=len(obs)), best[obs])

    found = regret_at(world(), noisy, [0.3], ["warm"], warm_steps=64, n_envs=8)
    assert (found.refuted, found.kind) == (True, "warm")
    with pytest.raises(
        ValueError, match=r"^kinds: expected other kinds for a follower without weights, got \['warm'\]"
    ):
        find_regret(world(), noisy, [0.0], ["warm"], challenger=DQN)
    with pytest.raises(ValueError, match=r"^earlier: expected trained SB3 models"):
        find_regret(world(), noisy, [0.0], earlier=[print])  # type: ignore[list-item]
