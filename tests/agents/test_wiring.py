"""What a run really does: who is paid what, at which x, with which lam, for how long, in which order, and who is judged.

Followers here are models of SB3's that play as they are set, learn nothing, and keep what they were paid; the environment keeps
a diary. All of it goes through ``learn`` and ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN
from torch import Tensor

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import (
    DRLHF,
    PBRL,
    BellmanPenalty,
    KnownModel,
    Linear,
    NikaidoIsodaPenalty,
    PBRLConfig,
    PreferenceConfig,
    PreferencePBRL,
    Rollouts,
    ValuePenalty,
)
from bilevel_gym.agents.estimators.rollouts import Rollout, advantages, start_values
from bilevel_gym.envs.core import LeaderEnv
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    LeaderSet,
    TabularMDP,
    nikaido_isoda_gap,
    policy_return,
    random_incentive_design,
    solve_soft,
    start_value,
    steering_game,
)
from bilevel_gym.envs.tabular import TabularEnv
from tests.traces.names import followers_of

INCENTIVE, GRID, TWO = "bilevel_gym/incentive_design_v0", "bilevel_gym/RewardGrid-v0", "bilevel_gym/TwoState-v0"
SIZES: dict[str, Any] = {"n_states": 3, "n_actions_1": 3, "n_actions_2": 2}
F64 = torch.float64
NEVER = 1e12
"""A lam at which the leader's share in a follower's pay is none."""


class Still(A2C):
    """Plays as it is set and learns nothing; keeps the observations, actions and rewards of its rollouts."""

    paid: list[tuple[Any, Any, Any]]
    diary: list[tuple[Any, ...]]

    def train(self) -> None:
        held = self.rollout_buffer
        self.paid.append((held.observations.copy(), held.actions.copy(), held.rewards.copy()))
        self.diary.append(("trained", self))


def still(
    gamma: float = 0.5, n_steps: int = 4, diary: list[Any] | None = None, **settings: Any
) -> Callable[[Any], Still]:
    """A callable that builds one; ``settings`` are more of A2C's."""

    def build(venv: Any) -> Still:
        own: dict[str, Any] = {"policy_kwargs": {"net_arch": []}, "seed": 3, "device": "cpu"} | settings
        model = Still("MlpPolicy", venv, gamma=gamma, n_steps=n_steps, **own)
        model.paid, model.diary = [], [] if diary is None else diary
        return model

    return build


def play(follower: Any, logits: Any) -> None:
    """Set a follower's policy, ``[A]``, the same in every observation."""
    with torch.no_grad():
        head = follower.model.policy.action_net
        head.weight.zero_()
        head.bias.copy_(torch.as_tensor(logits))


def play_by_state(follower: Any, logits: Any) -> None:
    """Set a follower's policy, ``[S, A]``, where it observes states one-hot."""
    with torch.no_grad():
        head = follower.model.policy.action_net
        head.weight.copy_(torch.as_tensor(logits).T)
        head.bias.zero_()


class Diary(LeaderEnv[Any, Any]):
    """Three states in a ring, an episode without end; the follower is paid 1 + x a + s, the leader 2 - a.

    Every copy writes its resets and steps, with the x in force, into one list.
    """

    observation_space = gym.spaces.Discrete(3)
    action_space = gym.spaces.Discrete(2)
    leader_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float64)
    gamma = 0.5
    commitment_size = 1

    def __init__(self, entries: list[tuple[Any, ...]] | None = None) -> None:
        self._entries = [] if entries is None else entries
        self._x, self._s = np.full(1, 0.5), 0

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
                s, a = (torch.as_tensor(part).double() for part in (obs, action))
                return 1.0 + self.x[0] * a + s, 2.0 - a + 0.0 * self.x[0], 0.0 * a * self.x[0]

        return Model(self._x)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._s = 0
        self._entries.append(("reset", id(self), float(self._x[0])))
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 1.0 + float(self._x[0]) * int(action) + self._s
        self._s = (self._s + 1) % 3
        self._entries.append(("step", id(self), float(self._x[0])))
        return self._s, reward, False, False, {"leader_reward": 2.0 - float(action), "leader_draw": 0}


N_ENVS, STEPS, EPISODES, TAIL = 2, 16, 3, 0.1
HORIZON = 4  # 0.5**4 <= 0.1 < 0.5**3
SGD: dict[str, Any] = {"optimizer_class": torch.optim.SGD}
SMALL: dict[str, Any] = {
    "n_envs": N_ENVS,
    "follower_steps": STEPS,
    "warmup_steps": 0,
    "estimator": Rollouts(EPISODES, TAIL),
    "observe_commitment": False,
    "averaging": 0.0,
    "evaluation_steps": 8,
    "eval_every": 1000,
}


def in_the_diary(
    entries: list[Any], penalty: Any = None, world: Callable[[], Any] | None = None, **changes: Any
) -> PBRL:
    """A leader over two followers, of which the best response takes the action that x > 0 pays for more often."""
    made = world or (lambda: Diary(entries))
    leader = PBRL(made, still(diary=entries), penalty=penalty, config=PBRLConfig(**(SMALL | changes)))
    for role, logits in (("best_response", [0.0, 2.0]), ("penalised", [2.0, 0.0])):
        play(followers_of(leader)[role], logits)
    return leader


def over_a_game(penalty: Any = None, follower: Any = None, **changes: Any) -> PBRL:
    config = PBRLConfig.for_a_game(**(SMALL | changes))
    return PBRL(
        INCENTIVE, still(0.9) if follower is None else follower, penalty=penalty, config=config, env_kwargs=SIZES
    )


def iterations(n: int, seen: list[Any] | None = None, look: Callable[[Any], Any] = lambda leader: None) -> Any:
    """A callback that keeps what it sees after each iteration, and stops after the n-th."""
    found = [] if seen is None else seen

    def watch(leader: Any) -> bool:
        found.append(look(leader))
        return len(found) < n

    return watch


# --- what followers are paid, at which x, with which lam, in which order ------------------------------------------------


def test_each_follower_is_paid_by_its_role_at_the_x_and_the_lam_of_the_iteration() -> None:
    """The best response r_f, the penalised follower r_f + r_l / lam; x moves once, after both and the leader's episodes."""
    entries: list[Any] = []
    lam, total = Linear(2.0, 6.0), 1000
    leader = in_the_diary(entries, ValuePenalty(lam=lam), learning_rate=0.01, **SGD)
    best, own = (followers_of(leader)[role].model for role in ("best_response", "penalised"))
    seen: list[Any] = []

    def look(one: Any) -> Any:
        return one.last_x[0], one.lam, one.num_timesteps, len(entries), len(best.paid)

    leader.learn(total, iterations(5, seen, look))
    for (x, _, steps, begun, rollouts), (_, lam_then, _, ended, more) in pairwise(seen):
        assert lam_then == pytest.approx(lam(1.0 - steps / total), rel=1e-12)
        for model, share in ((best, 0.0), (own, 1.0 / lam_then)):
            assert len(model.paid[rollouts:more]) == STEPS // (N_ENVS * 4)
            for obs, actions, rewards in model.paid[rollouts:more]:
                s, a = obs.reshape(rewards.shape), actions.reshape(rewards.shape)
                np.testing.assert_allclose(rewards, 1.0 + x * a + s + share * (2.0 - a), rtol=1e-6)
        entered = entries[begun:ended]
        trained = [entry[1] for entry in entered if entry[0] == "trained"]
        assert trained == [best] * (more - rollouts) + [own] * (more - rollouts)
        last = max(i for i, entry in enumerate(entered) if entry[0] == "trained")
        assert sum(entry[0] == "step" for entry in entered[last:]) == 2 * EPISODES * HORIZON
        assert {entry[2] for entry in entered if entry[0] == "step"} == {x}
    assert len({x for x, *_ in seen}) == 5


def test_episodes_begin_anew_after_x_has_moved() -> None:
    """No step under one x in an episode that began under another, though no episode ends by itself."""
    entries: list[Any] = []
    leader = in_the_diary(entries, learning_rate=0.01, **SGD)
    seen: list[Any] = []
    leader.learn(1000, iterations(4, seen, lambda one: (one.last_x[0], len(entries))))
    assert len({x for x, _ in seen}) == 4
    began: dict[int, float] = {}
    for kind, copy, x in (entry for entry in entries if len(entry) == 3):
        if kind == "reset":
            began[copy] = x
        else:
            assert x == began[copy]
    for (_, begun), (_, ended) in pairwise(seen):
        assert sum(entry[0] == "reset" for entry in entries[begun:ended]) >= 2 * N_ENVS + 2 * EPISODES


@pytest.mark.parametrize("estimator", [Rollouts(EPISODES, TAIL), KnownModel()])
def test_the_players_of_a_game_are_paid_the_leaders_share_over_lam(estimator: Any) -> None:
    """Runs that differ in lam alone: players' pay differs by a share that is in proportion to 1 / lam, best responses' not."""

    def paid(lam: float) -> dict[str, Any]:
        leader = over_a_game(NikaidoIsodaPenalty(lam=lam), estimator=estimator, learning_rate=1e-12, **SGD)
        leader.learn(10_000, iterations(3))
        return {
            name: np.stack([rewards for *_, rewards in one.model.paid]).astype(np.float64)
            for name, one in followers_of(leader).items()
        }

    none, once, twice = paid(NEVER), paid(2.0), paid(1.0)
    for name, rewards in none.items():
        share = once[name] - rewards
        np.testing.assert_allclose(twice[name] - rewards, 2.0 * share, atol=1e-5)
        if name.startswith("penalised"):
            assert np.abs(share).max() > 0.01
        else:
            np.testing.assert_array_equal(share, 0.0)


def test_with_the_bellman_penalty_the_penalised_follower_is_paid_the_leaders_reward_alone() -> None:
    def dqn(venv: Any) -> DQN:
        return DQN("MlpPolicy", venv, gamma=0.5, learning_starts=10_000, buffer_size=1000, device="cpu", seed=3)

    leader = PBRL(
        lambda: Diary([]),
        dqn,
        penalty=BellmanPenalty(lam=2.0),
        config=PBRLConfig(**(SMALL | {"learning_rate": 0.2} | SGD)),
    )
    found: list[float] = []

    leader.learn(1000, iterations(3, found, lambda one: one.last_x[0]))
    leader.learn(1000, iterations(1), reset_num_timesteps=False)  # at x as it was: what is held was renewed for it
    pay: dict[str, Callable[..., Any]] = {
        "best_response": lambda s, a: 1.0 + found[-1] * a + s,
        "penalised": lambda s, a: 2.0 - a,
    }
    for role, reward in pay.items():
        buffer = followers_of(leader)[role].model.replay_buffer
        n = buffer.size()
        s, a = (part[:n].reshape(n, N_ENVS) for part in (buffer.observations, buffer.actions))
        assert n >= 4 * STEPS // N_ENVS
        np.testing.assert_allclose(buffer.rewards[:n], reward(s, a), rtol=1e-6)


# --- how long -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda **how: in_the_diary([], **how), lambda **how: over_a_game(**how)])
@pytest.mark.parametrize(("total", "warmup"), [(10_000, 96), (640, 80)])  # at most an eighth of the budget
def test_followers_warm_up_once_before_x_first_moves(make: Any, total: int, warmup: int) -> None:
    leader = make(warmup_steps=96)
    seen: list[Any] = [[0] * len(followers_of(leader))]

    def look(one: Any) -> list[int]:
        return [follower.model.num_timesteps for follower in followers_of(one).values()]

    leader.learn(total, iterations(len(seen) + 2, seen, look))
    leader.learn(10_000, iterations(len(seen) + 1, seen, look), reset_num_timesteps=False)
    spent = np.diff(np.array(seen), axis=0)
    np.testing.assert_array_equal(spent[0], warmup + STEPS)
    np.testing.assert_array_equal(spent[1:], STEPS)
    assert len(spent) >= 2


@pytest.mark.parametrize("limit", [None, 3])
def test_the_leaders_episodes_are_as_long_as_their_tail_says(limit: int | None) -> None:
    """The discount of what is left out is at most ``tail``; of a shorter episode, nothing is left out."""
    entries: list[Any] = []

    def world() -> gym.Env[Any, Any]:
        return Diary(entries) if limit is None else gym.wrappers.TimeLimit(Diary(entries), limit)

    leader = in_the_diary(entries, world=world)
    seen: list[Any] = []
    horizon = HORIZON if limit is None else limit
    leader.learn(1000, iterations(3, seen, lambda one: (one.num_timesteps, len(entries))))
    trained = 2 * STEPS
    for (before, begun), (after, ended) in pairwise(seen):
        assert after - before == trained + 2 * EPISODES * horizon
        assert sum(entry[0] == "step" for entry in entries[begun:ended]) == trained + 2 * EPISODES * horizon


def test_the_leaders_episodes_over_a_game_are_as_long_as_their_tail_says() -> None:
    leader, seen = over_a_game(estimator=Rollouts(5, 0.3)), [(0, 0)]

    def look(one: Any) -> tuple[int, int]:
        return one.num_timesteps, sum(follower.model.num_timesteps for follower in followers_of(one).values())

    leader.learn(10_000, iterations(4, seen, look))
    for (before, trained_before), (after, trained) in pairwise(seen):
        assert after - before - (trained - trained_before) == 3 * 5 * 12  # 0.9**12 <= 0.3 < 0.9**11


# --- what moves x -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda **how: in_the_diary([], **how), lambda **how: over_a_game(**how)])
def test_x_moves_by_its_learning_rate_which_follows_its_schedule(make: Any) -> None:
    noted: list[tuple[float, Any]] = []

    class Noted(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            (group,) = self.param_groups
            noted.append((group["lr"], group["params"][0].grad.numpy().copy()))
            return super().step(closure)

    rate, total = Linear(1e-2, 1e-4), 1000
    leader = make(optimizer_class=Noted, learning_rate=rate)
    seen: list[Any] = []
    noted.clear()
    leader.learn(total, iterations(4, seen, lambda one: (one.last_x, one.num_timesteps, len(noted))))
    moved = 0
    for (x, steps, before), (x_then, _, after) in pairwise(seen):
        for lr, slope in noted[before:after]:  # none where the best response was certified worse
            assert lr == pytest.approx(rate(1.0 - steps / total), rel=1e-12)
            np.testing.assert_allclose(x_then - x, -lr * slope, rtol=1e-6, atol=1e-12)
            moved += 1
    assert moved >= 2
    assert len({lr for lr, _ in noted}) == len(noted)


def ending_problem() -> ArrayProblem:
    """x moves rewards and transitions of four states, two of which end the episode."""
    rng = torch.Generator().manual_seed(4)
    S, A, dim = 4, 3, 3
    P, Q, r, g = (torch.rand(S, A, n, generator=rng, dtype=F64) for n in (S, S, dim, dim))
    terminal = torch.tensor([False, False, True, True])
    base = TabularMDP(P / P.sum(-1, keepdim=True), r[..., 0], torch.full((S,), 1 / S), 0.8, terminal)

    def transition(x: Tensor) -> Tensor:
        return torch.softmax(P + 6.0 * (x[0] * Q + x[1] * Q**2), -1)

    return ArrayProblem(base, LeaderSet.box(dim, -2, 2), lambda x: r @ x, lambda x: g @ (1 - x), transition)


@pytest.mark.parametrize("gae_lambda", [None, 0.9])
def test_what_follows_an_episodes_end_counts_neither_in_the_penalty_nor_in_the_gradient(
    gae_lambda: float | None,
) -> None:
    """The mean step of x and the mean p^ of many iterations are those of the model, within their standard errors."""
    lam, problem, lr = 2.0, ending_problem(), 1e-8
    x = torch.tensor([0.3, 0.6, 0.9], dtype=F64).requires_grad_()
    leader = PBRL(
        TabularEnv(problem),
        still(0.8),
        penalty=ValuePenalty(lam=lam),
        config=PBRLConfig(**(SMALL | SGD | {"estimator": Rollouts(500, 3e-3, gae_lambda), "learning_rate": lr})),
        x0=x.detach().numpy(),
    )
    mdp = problem.follower_mdp(x)
    best = (solve_soft(mdp.detach(), 0.3).pi + 0.02) / 1.06  # every action is taken
    own = torch.softmax(1.5 * torch.randn(best.shape, generator=torch.Generator().manual_seed(1), dtype=F64), -1)
    for role, pi in (("best_response", best), ("penalised", own)):
        play_by_state(followers_of(leader)[role], pi.log().float())
    seen: list[Any] = []
    leader.learn(10**9, iterations(16, seen, lambda one: (one.last_x, one.penalty_estimate.mean)))
    assert leader.oracle_failures == 0
    ascents = np.diff([at for at, _ in seen], axis=0) / lr
    penalties = np.array([p for _, p in seen])
    forgone = policy_return(mdp, best) - policy_return(mdp, own)
    (exact,) = torch.autograd.grad(problem.leader_return(x, own) - lam * forgone, [x])
    p = float(forgone.detach())
    z = (ascents.mean(0) - exact.numpy()) / (ascents.std(0, ddof=1) / np.sqrt(len(ascents)))
    assert np.abs(z).max() < 4.5
    assert np.all(ascents.std(0) / np.sqrt(len(ascents)) < 0.05 * np.abs(exact.numpy()).max())
    stderr = penalties.std(ddof=1) / np.sqrt(len(penalties))
    assert abs(penalties.mean() - p) < 4.5 * stderr
    assert stderr < 0.02 * p


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_returns_and_advantages_of_episodes_that_end_are_cut_or_go_on_by_hand(gae_lambda: float) -> None:
    """Copies whose episode terminates in the second step, is cut there by a time limit, or still runs in the last step."""
    gamma, rng = 0.8, np.random.default_rng(0)
    reward, V, after = (rng.standard_normal((4, 3)) for _ in range(3))
    alive, terminated = np.ones((4, 3)), np.zeros((4, 3))
    alive[2:, :2], terminated[1, 0] = 0.0, 1.0
    nothing = np.zeros((4, 3))
    rollout = Rollout(nothing, nothing, nothing, nothing, nothing, reward, reward, alive, terminated)
    A = advantages(reward, V, after, rollout, gamma, gae_lambda)
    returns = start_values(reward, after, rollout, gamma)
    for copy, (length, bootstrapped) in enumerate([(2, False), (2, True), (4, True)]):
        beyond = after[length - 1, copy] if bootstrapped else 0.0
        expected = sum(gamma**t * reward[t, copy] for t in range(length)) + gamma**length * beyond
        assert returns[copy] == pytest.approx(expected, rel=1e-12)
        carried = 0.0
        for t in reversed(range(length)):
            following = beyond if t == length - 1 else after[t, copy]
            carried = reward[t, copy] + gamma * following - V[t, copy] + gamma * gae_lambda * carried
            assert A[t, copy] == pytest.approx(carried, rel=1e-12)


# --- who is judged ------------------------------------------------------------------------------------------------------


def test_the_record_judges_the_penalised_follower_where_the_model_is_known() -> None:
    config = PBRLConfig(**(SMALL | {"observe_commitment": False}))
    leader = PBRL(TabularEnv(ending_problem()), still(0.8), penalty=None, config=config, x0=[0.3, 0.6, 0.9])
    problem, x = ending_problem(), torch.tensor([0.3, 0.6, 0.9], dtype=F64)
    mdp = problem.follower_mdp(x)
    policies = {"best_response": [0.0, 5.0, 0.0], "penalised": [2.0, 0.0, -1.0]}
    for role, logits in policies.items():
        play(followers_of(leader)[role], logits)
    record = leader.evaluate()
    pi_y = torch.softmax(torch.tensor(policies["penalised"], dtype=F64), -1).expand(4, 3)
    gap = float(start_value(mdp, solve_soft(mdp, 0.0).V) - policy_return(mdp, pi_y))
    hat = torch.softmax(torch.tensor(policies["best_response"], dtype=F64), -1).expand(4, 3)
    assert record.penalty == pytest.approx(gap, rel=1e-6)
    regret = float(start_value(mdp, solve_soft(mdp, 0.0).V) - policy_return(mdp, hat))
    assert record.follower_regret == pytest.approx(regret, rel=1e-6)
    assert regret != pytest.approx(gap, rel=0.01)
    assert record.leader_return_at_pi_y == pytest.approx(float(problem.leader_return(x, pi_y)), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*regularised at tau.*")
def test_the_record_judges_the_penalised_follower_of_the_bellman_penalty() -> None:
    """pi_y is the best response's policy, tilted by U / (lam tau)."""

    def dqn(venv: Any) -> DQN:
        return DQN("MlpPolicy", venv, gamma=0.9, policy_kwargs={"net_arch": []}, device="cpu", seed=3)

    lam, tau = 2.0, 0.5
    leader = PBRL(TWO, dqn, penalty=BellmanPenalty(lam=lam), config=PBRLConfig(**SMALL, q_temperature=tau), x0=[0.4])
    for role, values in (("best_response", [1.0, 0.2]), ("penalised", [-1.0, 2.0])):
        with torch.no_grad():
            head = followers_of(leader)[role].model.policy.q_net.q_net[-1]
            head.weight.zero_()
            head.bias.copy_(torch.tensor(values))
    record, problem = leader.evaluate(), gym.make(TWO).unwrapped.problem  # type: ignore[attr-defined]
    pi_y = torch.softmax(torch.tensor([1.0 / tau - 1.0 / (lam * tau), 0.2 / tau + 2.0 / (lam * tau)], dtype=F64), -1)
    x, mdp = torch.tensor([0.4], dtype=F64), problem.follower_mdp(torch.tensor([0.4], dtype=F64))
    gap = float(start_value(mdp, solve_soft(mdp, tau).V) - policy_return(mdp, pi_y.expand(2, 2), tau))
    assert record.penalty == pytest.approx(gap, rel=1e-5)
    assert record.leader_return_at_pi_y == pytest.approx(float(problem.leader_return(x, pi_y.expand(2, 2))), rel=1e-5)


def test_the_record_judges_the_penalised_follower_where_no_model_is_known() -> None:
    """Beside a fresh follower, which here plays action 1; the penalised one plays 0 and forgoes x in every step."""
    fresh = still()

    def follower(venv: Any) -> Any:
        model = fresh(venv)
        play(SimpleNamespace(model=model), [-50.0, 50.0])
        return model

    leader = PBRL(lambda: Diary([]), follower, penalty=None, config=PBRLConfig(**SMALL))
    play(followers_of(leader)["penalised"], [50.0, -50.0])
    record = leader.evaluate()
    assert record.penalty == pytest.approx(0.5 / (1.0 - 0.5), rel=1e-3)
    assert record.leader_return == pytest.approx(1.0 / (1.0 - 0.5), rel=1e-3)
    assert record.leader_return_at_pi_y == pytest.approx(2.0 / (1.0 - 0.5), rel=1e-3)


def test_the_record_judges_the_penalised_follower_of_a_linear_quadratic_game() -> None:
    game, x = steering_game(), torch.tensor([-0.6, 0.3], dtype=F64)
    best = game.best_response(x).F
    leader = PBRL(
        "bilevel_gym/LQStackelberg-v0",
        still(game.gamma, policy_kwargs={"net_arch": [], "log_std_init": -20.0}),
        penalty=None,
        config=PBRLConfig(**(SMALL | {"estimator": Rollouts(1000, TAIL)})),
        x0=x.numpy(),
    )
    for role, F in (("best_response", best), ("penalised", best + 0.2)):
        play_by_state(followers_of(leader)[role], -(F / game.action_bound.unsqueeze(-1)).T)
    record = leader.evaluate()
    gap = float(game.follower_return(x, best) - game.follower_return(x, best + 0.2))
    assert record.penalty == pytest.approx(gap, rel=0.1)
    assert record.follower_regret == pytest.approx(0.0, abs=1e-6)
    assert record.leader_return_at_pi_y == pytest.approx(float(game.leader_return(x, best + 0.2)), rel=0.05)


def test_the_record_judges_the_players_of_a_game() -> None:
    leader, problem = over_a_game(), random_incentive_design(3, 3, 2, seed=0)
    logits = {
        "best_response_1": [0.0, 3.0, 0.0],
        "best_response_2": [0.0, 3.0],
        "penalised_1": [1.0, 0.0, -1.0],
        "penalised_2": [0.5, -0.5],
    }
    for role, follower in followers_of(leader).items():
        play(follower, logits[role])
    record, x = leader.evaluate(), torch.from_numpy(leader.last_x)
    own = [
        torch.softmax(torch.tensor(logits[f"penalised_{i}"], dtype=F64), -1).expand(3, -1).contiguous() for i in (1, 2)
    ]
    gap = float(nikaido_isoda_gap(problem.game(x), own[0], own[1], problem.tau))
    assert record.gap == pytest.approx(gap, rel=1e-5)
    assert record.leader_return_at_pi_y == pytest.approx(float(problem.leader_return(x, (own[0], own[1]))), rel=1e-5)


# --- preferences --------------------------------------------------------------------------------------------------------

ASKED: dict[str, Any] = {
    "labels": 60,
    "first_labels": 10,
    "length": 4,
    "first_steps": 64,
    "follower_steps": 64,
    "n_envs": 4,
    "epochs": 2,
    "first_epochs": 20,
    "ensemble": 1,
    "device": "cpu",
}


def test_the_penalised_followers_credit_is_divided_by_lam_which_follows_its_schedule() -> None:
    """Followers that learn nothing play the same episodes, so that p = 0 and lam reaches nothing but the credit."""
    total, schedule = 1200, Linear(1.0, 5.0)

    def run(lam: Any) -> tuple[list[Any], list[Any], list[float]]:
        learner = PreferencePBRL(
            GRID, still(0.9, 16), penalty=ValuePenalty(lam=lam), config=PreferenceConfig(**ASKED), seed=1
        )
        seen: list[Any] = []
        learner.learn(total, iterations(5, seen, lambda one: (one.lam, one.num_timesteps)))
        for lam_then, steps in seen:
            expected = lam(1.0 - steps / total) if isinstance(lam, Linear) else lam
            assert lam_then == pytest.approx(expected, rel=1e-12)
        assert learner.evaluate().lam == seen[-1][0]
        followers = followers_of(learner)
        paid = [[r for *_, r in followers[role].model.paid] for role in ("best_response", "penalised")]
        return paid[0], paid[1], [schedule(1.0), *(schedule(1.0 - steps / total) for _, steps in seen)]

    best, none, lams = run(NEVER)
    _, constant, _ = run(1.0)
    best_too, moving, _ = run(schedule)
    np.testing.assert_allclose(best_too, best, atol=1e-4)
    shares = []
    for k, (nothing, whole, part) in enumerate(zip(none, constant, moving, strict=True)):
        credit = whole - nothing
        shares.append(np.abs(credit).max())
        np.testing.assert_allclose(part - nothing, credit / lams[k], atol=2e-4)
    assert len(shares) == 5
    assert sum(share > 0.05 for share in shares) >= 4


@pytest.mark.parametrize("method", [DRLHF, PreferencePBRL])
def test_replayed_steps_are_paid_what_the_reward_says_now(method: Any) -> None:
    """One reward for each state and action in all of the buffer, old and new; only credited steps are paid another."""

    def dqn(venv: Any) -> DQN:
        return DQN("MlpPolicy", venv, gamma=0.9, buffer_size=2000, learning_starts=10_000, device="cpu", seed=3)

    learner = method(GRID, dqn, config=PreferenceConfig(**ASKED), env_kwargs={"size": 2}, seed=1)
    tables: dict[str, list[Any]] = {}

    def look(one: Any) -> None:
        for role, follower in followers_of(one).items():
            buffer = follower.model.replay_buffer
            n = buffer.size()
            cell = (4 * buffer.observations[:n].reshape(n, -1) + buffer.actions[:n].reshape(n, -1)).astype(int).ravel()
            paid = buffer.rewards[:n].astype(np.float64).ravel()
            table = np.array([np.median(paid[cell == k]) if (cell == k).any() else np.nan for k in range(16)])
            others = np.abs(paid - table[cell]) > 1e-4
            credited = method is PreferencePBRL and role == "penalised"
            assert others.sum() <= (2 * one.evaluate().labels if credited else 0)
            tables.setdefault(role, []).append((table, int(others.sum()), n))

    learner.learn(1200, iterations(4, None, look))
    for role, found in tables.items():
        assert found[-1][2] == 64, role  # steps a copy, of four iterations
        assert np.nanmax(np.abs(found[-1][0] - found[0][0])) > 0.05  # the reward has moved
        if method is PreferencePBRL and role == "penalised":
            assert found[-1][1] > 0
