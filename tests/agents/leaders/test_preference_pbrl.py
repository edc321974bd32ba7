"""Learning a reward from preferences: the penalised follower's reward, labels alone, late and missing answers, files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import bilevel_gym  # noqa: F401
from bilevel_gym.agents import (
    DRLHF,
    FileLabeller,
    Linear,
    MirrorDescent,
    PreferenceConfig,
    PreferencePBRL,
    TrueReturnLabeller,
    TrueReward,
    ValuePenalty,
)
from bilevel_gym.agents.leader import Progress
from bilevel_gym.agents.leaders.preference_pbrl import PreferencePBRLMethod, Tracked
from bilevel_gym.agents.preferences.files import LoggedLabeller, PreferenceLog, read_preferences
from bilevel_gym.agents.preferences.fragmenters import ActiveFragmenter
from bilevel_gym.agents.preferences.labels import Answer, Label, Labeller, Pair, ProgramLabeller, Query
from bilevel_gym.agents.preferences.planner import Planner
from bilevel_gym.agents.preferences.training import FitConfig, RewardExplodedError, pair_losses
from bilevel_gym.agents.preferences.worlds import Copies

GRID = "bilevel_gym/RewardGrid-v0"
SMALL = PreferenceConfig(
    labels=12, first_labels=6, length=5, first_steps=64, follower_steps=64, first_epochs=10, epochs=2, n_envs=4
)
METHODS = (PreferencePBRL, DRLHF)


def short_ppo(venv: VecEnv) -> PPO:
    return PPO("MlpPolicy", venv, n_steps=16, batch_size=32, n_epochs=1, gamma=0.9)


# --- the score trick --------------------------------------------------------------------------------------------------


def test_paid_when_the_segment_is_complete_the_cross_entropy_is_what_its_score_says() -> None:
    """All pairs of 3-step segments of a two-state world, enumerated: the policy gradient of the follower's reward is that of
    E[CE]; with the same paid in thirds along the segment it is not."""
    H, rng = 3, np.random.default_rng(0)
    P = torch.from_numpy(rng.dirichlet([1, 1], (2, 2)))
    r = torch.from_numpy(rng.normal(size=(2, 2)))
    theta = torch.from_numpy(rng.normal(size=(2, 2))).requires_grad_()
    log_pi = torch.log_softmax(theta, -1)
    walks = list(itertools.product(range(2), repeat=2 * H))  # s0 a0 s1 a1 s2 a2
    log_p, R = torch.zeros(len(walks)).double(), torch.zeros(len(walks)).double()
    scores = torch.zeros(len(walks), H).double()
    for i, walk in enumerate(walks):
        s, a = walk[::2], walk[1::2]
        steps = torch.stack([log_pi[s[t], a[t]] for t in range(H)])
        moves = sum((P[s[t], a[t], s[t + 1]].log() for t in range(H - 1)), torch.tensor(0.5).log().double())
        log_p[i], R[i], scores[i] = steps.sum() + moves, r[list(s), list(a)].sum(), steps
    chance = log_p.exp()
    better = R[:, None] - R[None, :] + 0.3
    mu = (better > 0).double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(0.4 * better, mu, reduction="none")
    weight = chance[:, None] * chance[None, :]
    (exact,) = torch.autograd.grad((weight * loss).sum(), [theta], retain_graph=True)

    def policy_gradient(paid: torch.Tensor) -> torch.Tensor:
        """Of both players of a pair; ``paid`` [H] is the share of the loss that is paid at each step."""
        to_go = paid.flip(0).cumsum(0).flip(0)
        of_one = (scores * to_go).sum(-1)
        surrogate = (weight.detach() * loss * (of_one[:, None] + of_one[None, :])).sum()
        return torch.autograd.grad(surrogate, [theta], retain_graph=True)[0]

    torch.testing.assert_close(policy_gradient(torch.tensor([0.0, 0.0, 1.0]).double()), exact, rtol=1e-12, atol=1e-14)
    thirds = policy_gradient(torch.full((H,), 1 / 3).double())
    assert float((thirds - exact).norm()) > 0.05 * float(exact.norm())


def labelled_rollout(lam: float) -> tuple[PreferencePBRL, dict[str, Any]]:
    """A learner, and what its penalised PPO follower's rollout buffer held before and after the credit."""
    seen: dict[str, Any] = {}

    class Watching(PreferencePBRLMethod):
        def rollout_ended(self, state: Any, f: Any, progress: Progress, begun: int, found: dict[str, Any]) -> None:
            rollout = f.follower.model.rollout_buffer
            seen["before"] = rollout.rewards.copy()
            seen["held"] = state.buffer.seen
            super().rollout_ended(state, f, progress, begun, found)
            seen["fresh"] = list(state.buffer)[seen["held"] :]
            seen["losses"] = self.cross_entropies(state, seen["fresh"])
            seen["after"] = rollout.rewards.copy()
            seen["steps"] = f.recorder.steps
            seen["returns"], seen["scale"] = rollout.returns.copy(), float(state.model.scale)
            seen["values"], seen["starts"] = rollout.values.copy(), rollout.episode_starts.copy()
            seen["last"], seen["dones"] = found["values"].numpy().ravel(), found["dones"]

    class Watched(PreferencePBRL):
        method_class = Watching

    learner = Watched(
        GRID, short_ppo, penalty=ValuePenalty(lam), config=SMALL, labeller=TrueReturnLabeller(temperature=0.5)
    )
    learner.learn(64 + 2 * 64)
    return learner, seen


def test_a_labelled_segment_carries_its_cross_entropy_and_nothing_else_does() -> None:
    lam = 2.0
    learner, seen = labelled_rollout(lam)
    assert len(seen["fresh"]) > 2
    baseline = learner.loss_estimate  # of the first that were credited: their mean
    assert baseline == pytest.approx(seen["losses"].mean(), rel=1e-5)
    expected = np.zeros_like(seen["before"])
    for preference, loss in zip(seen["fresh"], seen["losses"], strict=True):
        for segment in (preference.pair.left, preference.pair.right):
            at = segment.time + 4 - (seen["steps"] - 16)
            if at >= 0:
                expected[at, segment.copy] -= 5 * (loss - baseline) / (lam * seen["scale"])
    assert np.count_nonzero(expected) >= len(seen["fresh"])
    np.testing.assert_allclose(seen["after"] - seen["before"], expected, atol=1e-5)
    # the advantages were worked out again, with the changed rewards
    gae, gamma, trace = np.zeros(4), 0.9, 0.95
    for t in range(15, -1, -1):
        going = 1.0 - (seen["dones"] if t == 15 else seen["starts"][t + 1])
        following = seen["last"] if t == 15 else seen["values"][t + 1]
        gae = seen["after"][t] + gamma * following * going - seen["values"][t] + gamma * trace * going * gae
        np.testing.assert_allclose(seen["returns"][t], gae + seen["values"][t], rtol=1e-4, atol=1e-4)
    assert learner.lam == lam


def test_the_penalty_enters_the_loss_where_exact_followers_could_have_it() -> None:
    """lam p where 0 < p < f/lam, p by hand from the recorded steps; elsewhere nothing."""
    learner = PreferencePBRL(
        GRID, short_ppo, penalty=ValuePenalty(3.0), config=replace(SMALL, ensemble=1, n_envs=2), seed=1
    )
    learner.learn(300)
    rng = np.random.default_rng(0)
    state, method = learner.state, learner.method
    assert isinstance(method, PreferencePBRLMethod)
    for f in state.followers.values():
        for _ in range(16):  # as if they had come apart
            f.recorder.step(rng.integers(0, 4, 2))

    def lam_p(loss_estimate: float, swapped: bool = False) -> float:
        roles = dict(state.followers)
        if swapped:
            state.followers = dict(zip(roles, reversed(roles.values()), strict=True))
        state.loss_estimate = loss_estimate
        since = {role: f.recorder.steps - 16 for role, f in state.followers.items()}
        further = method.further(state, since, Progress(learner.num_timesteps, 300))
        state.followers = roles
        return further().item()

    values = []
    for f in state.followers.values():
        w = f.recorder.window(f.recorder.steps - 16)
        weight = 0.9 ** w.age.ravel()
        obs, actions = f.recorder.sample(f.recorder.steps - 16, 10**6)
        values.append((weight * learner.model.raw(obs, actions)).sum() / weight.sum())
    p = values[0] - values[1]
    assert abs(p) > 1e-4
    assert [lam_p(1e9), lam_p(1e9, swapped=True)] == pytest.approx([3.0 * max(p, 0.0), 3.0 * max(-p, 0.0)], rel=1e-3)
    assert lam_p(3.0 * abs(p) * 0.9) == lam_p(3.0 * abs(p) * 0.9, swapped=True) == 0.0
    assert learner.penalty_estimate == pytest.approx(-p, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_replay_is_true_to_the_reward_as_it_is(method: Any) -> None:
    def dqn(venv: VecEnv) -> DQN:
        return DQN("MlpPolicy", venv, gamma=0.9, buffer_size=400, learning_starts=10, batch_size=8)

    learner = method(GRID, dqn, config=SMALL).learn(64 * (1 + 8 * len(method(GRID, dqn, config=SMALL).followers)))
    f = learner.observed
    buffer = f.replay
    assert buffer is not None
    assert buffer.full  # so that the places have been used again
    learner.method.relabel(learner.state, f)
    first = f.recorder.steps - buffer.size()
    steps = f.recorder.window(first)
    expected = learner.model.reward(*f.recorder.sample(first, 10**6)).reshape(steps.age.shape)
    if method is PreferencePBRL:
        scale = float(learner.model.scale)
        inside = [p for p in learner.buffer if min(p.pair.left.time, p.pair.right.time) >= first - 5]
        losses = pair_losses(learner.model, inside)[0].mean(0).detach().numpy()
        baseline = learner.loss_estimate
        for preference, loss in zip(inside, losses, strict=True):
            for s in (preference.pair.left, preference.pair.right):
                if s.time + 4 >= first:
                    expected[s.time + 4 - first, s.copy] -= 5 * (loss - baseline) / (learner.lam * scale)
        assert len(inside) > 1
    at = (np.arange(first, f.recorder.steps) - f.begun) % buffer.buffer_size
    np.testing.assert_allclose(buffer.rewards[at], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(buffer.actions[at][..., 0], steps.actions)


@pytest.mark.parametrize("method", METHODS)
def test_every_gradient_step_of_an_off_policy_follower_sees_the_reward_as_it_is(method: Any) -> None:
    """Of old transitions too: without relabelling they would be paid what they were worth when they were made."""
    rewards: list[float] = []

    def dqn(venv: VecEnv) -> DQN:
        model = DQN("MlpPolicy", venv, gamma=0.9, buffer_size=400, learning_starts=10, batch_size=8)
        train = model.train

        def watched(*args: Any, **kwargs: Any) -> None:
            (f,) = (f for f in leader.followers.values() if f.follower.model is model)
            first, last = f.begun, f.recorder.steps
            expected = leader.model.reward(*f.recorder.sample(first, 10**6)).reshape(last - first, -1)
            credit = leader.method.credit(leader.state, first, last) if f is leader.observed else None
            expected = expected if credit is None else expected + credit
            assert model.replay_buffer is not None
            np.testing.assert_allclose(model.replay_buffer.rewards[: last - first], expected, rtol=1e-4, atol=1e-4)
            rewards.append(float(expected[0, 0]))
            train(*args, **kwargs)

        model.train = watched  # type: ignore[method-assign]
        return model

    leader = method(GRID, dqn, config=SMALL)
    leader.learn(64 * (1 + 4 * len(leader.followers)))
    assert len(set(rewards)) >= 4  # of one transition, in as many iterations


def test_lam_follows_its_schedule_in_the_loss_and_in_the_reward() -> None:
    lam, total = Linear(0.5, 4.0), 64 * 13
    in_the_loss, in_the_reward, told = list[Any](), list[Any](), [0.5]

    class Watching(PreferencePBRLMethod):
        def further(self, state: Any, since: dict[str, int], progress: Progress) -> Any:
            penalty, now = super().further(state, since, progress), lam(1.0 - min(1.0, state.num_timesteps / total))

            def watched() -> torch.Tensor:
                value = penalty()
                in_the_loss.append((value.item(), now * max(state.penalty_estimate, 0.0)))
                return value

            return watched

        def credit(self, state: Any, first: int, last: int) -> Any:
            found = super().credit(state, first, last)
            if found.any():
                held, state.lam = state.lam, 1.0
                times_lam, state.lam = super().credit(state, first, last), held
                in_the_reward.append((times_lam.sum() / found.sum(), told[-1]))
            return found

    class Watched(PreferencePBRL):
        method_class = Watching

    plan = partial(Planner, "MlpPolicy", tau=0.3, n_steps=16)
    followers = Tracked(plan, partial(plan, oracle=MirrorDescent(eta=0.5, iterations=1)))
    config = replace(SMALL, ensemble=1, labels=40)
    leader = Watched(
        GRID, followers, penalty=ValuePenalty(lam), config=config, labeller=TrueReturnLabeller(temperature=0.5)
    )
    leader.learn(total, lambda found: told.append(found.lam))
    assert told[-1] == pytest.approx(4.0)
    assert len({round(value, 3) for value in told}) == leader.iteration + 1
    for found in (in_the_loss, in_the_reward):  # the reward's is that of the last fit
        values, expected = np.array(found).T
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-9)
        assert len(set(expected)) > 3


# --- the true reward reaches the follower through labels alone --------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_another_true_reward_under_the_same_labels_changes_nothing(method: Any) -> None:
    def by_cells(pair: Pair) -> Label:
        return "left" if pair.left.obs.sum() > pair.right.obs.sum() else "right"

    found = []
    for field in (0, 1):
        learner = method(GRID, A2C, config=SMALL, labeller=ProgramLabeller(by_cells), env_kwargs={"seed": field})
        learner.learn(500)
        found.append((learner.x, learner.evaluate().regret, learner.observed.recorder.window().true_rewards.sum()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] != found[1][1]
    assert found[0][2] != found[1][2]


@pytest.mark.parametrize("method", [PreferencePBRL, pytest.param(DRLHF, marks=pytest.mark.long)])
def test_true_labels_teach_and_shuffled_ones_do_not(method: Any) -> None:
    """Mean regret over three grids: with true labels less than a fourth of that with labels drawn by a coin."""
    fit = FitConfig(learning_rate=0.01)
    config = replace(SMALL, labels=60, first_labels=40, first_steps=400, first_epochs=30, epochs=4, ensemble=1, fit=fit)
    found = []
    for seed in range(3):
        coin = np.random.default_rng(seed)

        def toss(_: Pair, coin: np.random.Generator = coin) -> Label:
            return "left" if coin.random() < 0.5 else "right"

        labellers = (TrueReturnLabeller(), ProgramLabeller(toss))
        found.append(
            [
                method(GRID, A2C, config=config, labeller=labeller, seed=seed, env_kwargs={"seed": seed, "size": 3})
                .learn(800)
                .evaluate()
                .regret
                for labeller in labellers
            ]
        )
    true, coin_tossed = np.mean(found, axis=0)
    assert true < 0.25 * coin_tossed


def test_the_upper_bound_is_paid_the_true_reward() -> None:
    def dqn(venv: VecEnv) -> DQN:
        return DQN("MlpPolicy", venv, gamma=0.9, buffer_size=4000, learning_starts=10, seed=0)

    learner = TrueReward(GRID, dqn, config=SMALL, env_kwargs={"size": 3}).learn(300)
    buffer, steps = learner.best_response.replay, learner.best_response.recorder.window()
    assert buffer is not None
    np.testing.assert_allclose(buffer.rewards[: len(steps.age)], steps.true_rewards, rtol=1e-6)
    assert steps.true_rewards.std() > 0.1
    assert learner.evaluate().regret == pytest.approx(0.0, abs=1e-6)
    assert learner.asked == 0


# --- labellers that take their time -----------------------------------------------------------------------------------


class Slow(Labeller):
    """Answers each query after ``delay`` further looks."""

    def __init__(self, delay: int) -> None:
        self.delay, self.open = delay, list[tuple[int, int]]()

    def ask(self, queries: Sequence[Query]) -> None:
        self.open += [(query.id, self.delay) for query in queries]

    def answers(self) -> list[Answer]:
        due = [number for number, left in self.open if left <= 0]
        self.open = [(number, left - 1) for number, left in self.open if left > 0]
        return [Answer(number, "left") for number in due]


def test_late_answers_are_taken_when_they_come() -> None:
    learner = PreferencePBRL(GRID, A2C, config=SMALL, labeller=Slow(1)).learn(800)
    assert learner.asked == 12
    assert len(learner.buffer) + len(learner.pending) == 12
    assert len(learner.buffer) >= 6


def test_a_labeller_that_never_answers_is_not_waited_for_in_vain() -> None:
    learner = DRLHF(GRID, A2C, config=replace(SMALL, patience=0.1), labeller=Slow(10**9))
    with pytest.raises(
        TimeoutError, match=r"labeller: expected an answer within 0.1 s, got no left, right or equal to 6 queries"
    ):
        learner.learn(500)
    assert len(learner.pending) == 6


def test_one_that_stops_answering_is_asked_no_more_than_may_be_open() -> None:
    class Tired(Slow):
        def answers(self) -> list[Answer]:
            return super().answers() if len(self.open) > 5 else []

    learner = DRLHF(GRID, A2C, config=replace(SMALL, max_pending=6, labels=40), labeller=Tired(0))
    with pytest.warns(UserWarning, match=r"\d queries have no answer yet"):
        learner.learn(1000)
    assert 0 < len(learner.pending) <= 6


def test_a_wrong_answer_is_refused() -> None:
    class Wrong(Slow):
        def answers(self) -> list[Answer]:
            return [Answer(99, "left")]

    with pytest.raises(ValueError, match="labeller: expected an answer to a query, got number 99"):
        DRLHF(GRID, A2C, config=SMALL, labeller=Wrong(0)).learn(500)


def test_a_person_answers_in_a_file_and_a_second_session_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "asked.prefs"
    config = replace(SMALL, patience=5.0)
    first = DRLHF(GRID, A2C, config=config)
    labeller = FileLabeller(path, first.worlds.signature(config.length))
    person = PreferenceLog(path)

    class Person(FileLabeller):
        def answers(self) -> list[Answer]:
            person.refresh()
            for number in person.contents.pending:
                person.answer(number, "right")
            return super().answers()

    asked = DRLHF(GRID, A2C, config=config, labeller=Person(path)).learn(600)
    assert len(asked.buffer) == 12
    again = DRLHF(GRID, A2C, config=config, labeller=FileLabeller(path))
    assert (len(again.buffer), again.asked) == (12, 12)
    again.learn(300)  # nothing is left to ask
    assert again.evaluate().labels == 12
    assert labeller.first_id == 0  # it read the file before anything was asked


def test_what_is_answered_is_in_the_file_before_the_learner_has_it(tmp_path: Path) -> None:
    """And no more: queries without an answer are asked anew."""
    path, config = tmp_path / "kept.prefs", replace(SMALL, patience=0.1)
    signature = DRLHF(GRID, A2C, config=config).worlds.signature(config.length)

    class Killed(LoggedLabeller):
        def answers(self) -> list[Answer]:
            super().answers()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DRLHF(GRID, A2C, config=config, labeller=Killed(TrueReturnLabeller(), path, signature)).learn(500)
    kept = read_preferences(path)
    assert len(kept.answered) == 6
    again = DRLHF(GRID, A2C, config=config, labeller=LoggedLabeller(TrueReturnLabeller(), path))
    assert ([p.label for p in again.buffer], again.asked) == ([label for _, label in kept.answered], 6)
    again.learn(500)
    assert again.buffer.seen == again.asked == len(read_preferences(path).answered) == 12
    slow = DRLHF(GRID, A2C, config=replace(config, labels=20), labeller=LoggedLabeller(Slow(10**9), path))
    assert slow.asked == 12
    with pytest.warns(UserWarning, match=r"\d queries have no answer yet"):
        slow.learn(500)
    assert len(read_preferences(path).pairs) == 12


# --- followers and worlds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, TrueReward])
def test_continuous_followers(method: Any) -> None:
    def sac(venv: VecEnv) -> SAC:
        return SAC(
            "MlpPolicy", venv, learning_starts=20, batch_size=8, policy_kwargs={"net_arch": [8]}, gradient_steps=1
        )

    config = replace(SMALL, evaluation_episodes=2)
    for follower in (sac, A2C):
        record = method("Pendulum-v1", follower, config=config).learn(300).evaluate()
        assert -2000 < record.true_return < 0
        assert record.regret is None


def test_the_level_of_the_reward_is_kept_where_episodes_end() -> None:
    config = replace(SMALL, length=20, first_steps=200, evaluation_episodes=3)
    learner = DRLHF("CartPole-v1", A2C, config=config).learn(400)
    assert float(learner.model.shift) == 0.0
    assert any(p.label != "equal" for p in learner.buffer)  # who fell within a segment
    assert float(DRLHF("Pendulum-v1", A2C, config=config).learn(300).model.shift) != 0.0


def test_a_world_that_makes_its_own_copies() -> None:
    made = Copies(lambda n: DummyVecEnv([lambda: gym.make("Pendulum-v1")] * n), "swing")
    learner = DRLHF(made, A2C, config=replace(SMALL, evaluation_steps=100, evaluation_episodes=2)).learn(300)
    assert learner.worlds.name == "swing"
    before = learner.x
    # With three fresh followers, other ones each time, which disturb nothing.
    records = [learner.evaluate() for _ in range(3)]
    assert len({record.true_return for record in records}) == 3
    for record in records:
        assert (record.evaluation_followers, record.evaluation_steps >= 300) == (3, True)
        assert record.true_return_stderr > 0.0
    returns = learner.true_returns()
    assert returns.shape == (3, 2)
    np.testing.assert_array_equal(learner.x, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_fixes_everything(method: Any) -> None:
    config = replace(SMALL, fragmenter=ActiveFragmenter(3))
    one, two, other = (method(GRID, A2C, config=config, seed=s).learn(300).x for s in (4, 4, 5))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_questions_may_come_evenly() -> None:
    asked: list[int] = []
    config = replace(SMALL, labels=40, first_labels=10, early=0.0)
    DRLHF(GRID, A2C, config=config).learn(64 * 20, callback=lambda found: asked.append(found.asked))
    np.testing.assert_allclose(asked, 10 + 30 * np.minimum(1.0, np.arange(2, 2 + len(asked)) / 20), atol=0.51)


def test_rollouts_shorter_than_a_segment_ask_about_those_that_end_in_them() -> None:
    """So that what is paid for their last step is still learned from."""

    def hasty(venv: VecEnv) -> A2C:
        return A2C("MlpPolicy", venv, n_steps=2, gamma=0.9)

    class Noting(PreferencePBRLMethod):
        def rollout_ended(self, state: Any, f: Any, progress: Progress, begun: int, found: dict[str, Any]) -> None:
            seen, steps = state.buffer.seen, f.recorder.steps
            super().rollout_ended(state, f, progress, begun, found)
            new = list(state.buffer)[seen:]
            asked.append(len(new))
            for segment in (side for p in new for side in (p.pair.left, p.pair.right)):
                assert segment.mask.all()
                assert steps - 2 <= segment.time + 4 < steps
                paid.append(self.credit(state, steps - 2, steps)[segment.time + 4 - (steps - 2), segment.copy])

    class Noted(PreferencePBRL):
        method_class = Noting

    asked, paid = list[int](), list[float]()
    config = replace(SMALL, labels=30, early=0.0, n_envs=8)
    Noted(GRID, hasty, penalty=ValuePenalty(1.0), config=config).learn(64 + 4 * 128)
    assert (sum(asked), max(asked) < 10) == (24, True)
    assert sum(n > 0 for n in asked) > 10
    assert np.count_nonzero(paid) > 40


def test_the_unit_of_the_paid_reward() -> None:
    learner = DRLHF(GRID, A2C, config=replace(SMALL, unit=0.05, centre=True)).learn(300)
    paid = learner.model.reward(*learner.observed.recorder.sample(0, 10**6))
    assert (paid.mean(), paid.std()) == pytest.approx((0.0, 0.05), abs=1e-6)


def test_questions_come_early_and_the_budget_is_kept() -> None:
    asked: list[int] = []
    config = replace(SMALL, labels=40, first_labels=10)
    learner = DRLHF(GRID, A2C, config=config).learn(64 * 20, callback=lambda found: asked.append(found.asked))
    assert asked[0] > 10
    assert np.diff(asked)[:5].sum() > np.diff(asked)[-5:].sum()
    assert asked[-1] == learner.asked == 40
    stingy = DRLHF(GRID, A2C, config=config, labeller=TrueReturnLabeller(budget=15)).learn(64 * 20)
    assert stingy.asked == 15


# --- ends and files ---------------------------------------------------------------------------------------------------


def test_an_explosion_stops_learning_with_the_last_good_state_saved(tmp_path: Path) -> None:
    config = replace(SMALL, checkpoint=str(tmp_path / "good.zip"))
    learner = DRLHF(GRID, A2C, config=config)

    def spoil(found: Any) -> None:
        found.trainer.optimizer.param_groups[0]["lr"] = 1e9

    with pytest.raises(RewardExplodedError, match=r"reward model: expected .*; saved in .*good.zip"):
        learner.learn(600, callback=spoil)
    good = DRLHF.load(tmp_path / "good.zip")
    np.testing.assert_array_equal(good.x, learner.x)
    assert np.abs(good.x).max() < 10.0
    assert good.evaluate().labels == learner.buffer.seen


@pytest.mark.parametrize("method", METHODS)
def test_saved_in_the_middle_no_label_is_lost(method: Any, tmp_path: Path) -> None:
    learner = method(GRID, A2C, config=SMALL, labeller=Slow(1), seed=2).learn(200)
    path = learner.save(tmp_path / "leader")
    again = method.load(path, labeller=Slow(1))
    np.testing.assert_array_equal(again.x, learner.x)
    assert [p.label for p in again.buffer] == [p.label for p in learner.buffer]
    assert list(again.pending) == list(learner.pending)
    assert (again.num_timesteps, again.asked) == (learner.num_timesteps, learner.asked)
    assert again.evaluate().true_return == pytest.approx(learner.evaluate().true_return, rel=1e-6)
    again.learn(400, reset_num_timesteps=False)
    assert again.num_timesteps >= learner.num_timesteps + 400
    assert again.asked == 12


def test_a_file_of_another_method_or_environment_is_refused(tmp_path: Path) -> None:
    path = DRLHF(GRID, A2C, config=SMALL).learn(200).save(tmp_path / "leader.zip")
    with pytest.raises(ValueError, match="expected the file of a PreferencePBRL, got that of a DRLHF"):
        PreferencePBRL.load(path)
    with pytest.raises(ValueError, match="path: expected preferences of CartPole-v1"):
        DRLHF.load(path, env=gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="follower: expected"):
        DRLHF.load(path, follower=PPO)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", 0),
        ("first_labels", 500),
        ("length", 0),
        ("ensemble", 0),
        ("patience", -1.0),
        ("fragmenter", None),
        ("fit", None),
        ("net", 3),
        ("evaluation_steps", -1),
    ],
)
def test_wrong_settings_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        PreferenceConfig(**{name: value})


def test_wrong_arguments_are_named() -> None:
    for kwargs, name in (
        ({"config": FitConfig()}, "config"),
        ({"labeller": 3}, "labeller"),
        ({"penalty": 3.0}, "penalty"),
        ({"config": PreferenceConfig(gamma=0.5)}, "gamma"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            PreferencePBRL(GRID, A2C, **kwargs)
    with pytest.raises(ValueError, match="env: expected"):
        DRLHF(7, A2C)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ensemble: expected 2 or more"):
        PreferenceConfig(ensemble=1, fragmenter=ActiveFragmenter())
