"""The best known response to x where no model is known, and the leader's return at it.

Answers are policies: followers newly trained from scratch or from known weights, the leader's own two followers, and the best
answer of earlier records. All play episodes with common random numbers. The best answer is the one with the highest follower
return; its regret is 0, so no regret is negative. The error of the leader's return has two parts:

- the choice of the best answer and the noise of the episodes: the standard deviation over bootstrap resamples of the episodes, in
  - the distance to a better answer that was not found: among n independent answers the best falls short of the limit by about as
    much as the second falls short of the best (Robson and Whitlock 1964). So the difference between the leader's returns at these
    two counts as an error. It shrinks as more followers are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from ...wrappers import set_leader
from ..estimators.rollouts import Rollout, collect, episode_returns, start_values
from ..followers.sb3 import SB3Follower
from ..followers.spec import Answering, FollowerSpec
from ..plan import RecordCost
from ..schedules import Geometric
from .counted import FLOOR, LARGEST, Counting, Counts, Planned, plan, seek, seek_steps
from .worlds import Worlds

Floats = NDArray[np.float64]

RESAMPLES = 256
"""Number of bootstrap resamples of the episodes."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The episodes of one policy at x.

    Attributes:
        name: name of the policy.
        source: name of the training run; two ways to play one policy share it.
        follower: the follower's return of each episode, ``[N]``.
        leader: the leader's return of each episode, ``[N]``; the same random numbers for all answers.
    """

    name: str
    source: str
    follower: Floats
    leader: Floats


@dataclass(frozen=True, eq=False)
class Found:
    """The best answer, and the leader's return at it.

    Attributes:
        best: the best answer.
        leader_return: the leader's mean return over its episodes.
        leader_return_stderr: see the module's docstring.
    """

    best: Answer
    leader_return: float
    leader_return_stderr: float

    def regret(self, answer: Answer) -> tuple[float, float]:
        """Return how much an answer's follower return falls short of the best, and its standard error."""
        apart = self.best.follower - answer.follower
        stderr = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else 0.0
        return max(float(apart.mean()), 0.0), stderr


def best_answer(answers: Sequence[Answer], rng: np.random.Generator, unfound: float | None = None) -> Found:
    """Return the answer with the highest follower return.

    Args:
        answers: at least one.
        rng: source of the resamples.
        unfound: by how much the leader's return may differ at a better answer that was not found; None takes the difference to
            the second best answer from another training run.
    """
    F, L = (np.stack([getattr(answer, name) for answer in answers]) for name in ("follower", "leader"))  # [K, N]
    order = np.argsort(-F.mean(1), kind="stable")
    best = answers[order[0]]

    # Resample the episodes, and choose the best answer in each resample.
    n = F.shape[1]
    drawn = rng.multinomial(n, np.full(n, 1.0 / n), size=RESAMPLES) / n  # [B, N]
    chosen = (drawn @ F.T).argmax(1)
    variance = float(((drawn @ L.T)[np.arange(RESAMPLES), chosen]).var(ddof=1))

    if unfound is None:
        second = next((k for k in order if answers[k].source != best.source), None)
        unfound = 0.0 if second is None else float(best.leader.mean() - L[second].mean())
    floor = FLOOR * float(np.abs(best.leader).mean())
    return Found(best, float(best.leader.mean()), float(np.sqrt(variance + unfound**2 + floor**2)))


# --- from an environment ------------------------------------------------------------------------------------------------

TAIL = 0.01
"""Discount at which episodes are cut; a critic fitted on them estimates the rest."""
BEST_IN_TABLE = "the best policy in the counted table"
"""Name of the answer that is planned in a counted table."""
SETTLING = Answering(q_temperature=Geometric(0.2, 0.01), entropy=Geometric(0.2, 0.002))
"""For followers given as a class, with the library's settings: at a fixed x they end less soft than at a moving one."""


@dataclass(frozen=True)
class Evaluating:
    """The effort of a record where no model is known.

    Attributes:
        followers: number of newly trained followers.
        steps: training steps of each, and of exploration where a table can be counted.
        n_envs: number of parallel environments of each.
        episodes: number of evaluation episodes of each answer.
    """

    followers: int
    steps: int
    n_envs: int
    episodes: int


@dataclass(frozen=True, eq=False)
class Judged:
    """The evaluation of x at the best answer that was found.

    Attributes:
        leader_return: the leader's return at the best answer, with its standard error.
        regrets: the regret of each follower that was compared with it, with standard errors, by name.
        leader_returns: the leader's return at each of these followers, by name.
        best_answer: name of the best answer.
        followers: number of followers that were trained.
        steps: environment steps spent.
        policy: weights of the best newly trained follower, for the next record.
    """

    leader_return: tuple[float, float]
    regrets: dict[str, tuple[float, float]]
    leader_returns: dict[str, float]
    best_answer: str
    followers: int
    steps: int
    policy: dict[str, Any]


def fresh_follower(worlds: Worlds, spec: FollowerSpec, venv: VecEnv, seed: int) -> SB3Follower:
    """Make an untrained follower on ``venv`` for a fixed x."""
    by_class = isinstance(spec, type) and worlds.linear
    return SB3Follower(spec, venv, worlds.gamma, seed, worlds.linear, SETTLING if by_class else Answering())


@torch.no_grad()
def judge(
    worlds: Worlds,
    spec: FollowerSpec,
    x: Floats,
    held: Mapping[str, SB3Follower],
    known: Sequence[tuple[str, dict[str, Any]]],
    sizes: Evaluating,
    seeds: np.random.SeedSequence,
) -> Judged:
    """Find the best answer to x: train followers, search for a better answer, and compare all in episodes.

    Args:
        worlds: the environment.
        spec: the algorithm that the user gave.
        x: a point of X, ``[dim]``.
        held: followers to compare with the best answer, by name; each is a candidate.
        known: weights of further policies, by name, most recent first. Every second follower starts from the first.
        sizes: how much to train and to play.
        seeds: seeds of all random numbers.
    """
    rng, counts = np.random.default_rng(seeds), _counts(worlds)
    episodes = worlds.make(sizes.episodes)
    set_leader(episodes, x)
    trained, spent = _train(worlds, spec, x, known, sizes, counts, rng)
    others = {}
    for name, weights in known:
        if name not in held:
            others[name] = fresh_follower(worlds, spec, episodes, 0)
            others[name].take_policy(weights)
    kept = next(iter(trained.values()))

    # Where a table was counted, plan the best answer in it. If it predicts that answer's return, it gives every policy's return.
    planned: Planned | None = None
    if counts is not None:
        planned, rollout, steps = _plan(worlds, x, sizes, counts, episodes, rng)
        spent += steps
        if not any(f.recurrent for f in held.values()) and _agrees(planned, rollout, worlds):
            shown = worlds.every_observation(x)
            policies = {name: np.asarray(f.probabilities(shown)) for name, f in held.items()}
            episodes.close()
            return Judged(
                (planned.leader_return, planned.leader_return_stderr),
                {name: planned.regret(pi) for name, pi in policies.items()},
                {name: planned.returns(pi)[1] for name, pi in policies.items()},
                BEST_IN_TABLE,
                sizes.followers,
                spent,
                kept.policy_state(),
            )

    # Otherwise all play episodes with common random numbers.
    answers, steps = _play(worlds, trained | dict(held) | others, held, planned, episodes, int(rng.integers(2**31)))
    spent += steps
    episodes.close()
    found, by_name = best_answer(answers, rng), {answer.name: answer for answer in answers}
    kept = (trained | others).get(found.best.source, kept)
    return Judged(
        (found.leader_return, found.leader_return_stderr),
        {name: found.regret(by_name[name]) for name in held},
        {name: float(by_name[name].leader.mean()) for name in held},
        found.best.name,
        sizes.followers,
        spent,
        kept.policy_state(),
    )


def _train(
    worlds: Worlds,
    spec: FollowerSpec,
    x: Floats,
    known: Sequence[tuple[str, dict[str, Any]]],
    sizes: Evaluating,
    counts: Counts | None,
    rng: np.random.Generator,
) -> tuple[dict[str, SB3Follower], int]:
    """Train followers at x from scratch, every second one from known weights; return them by name, and the steps spent."""
    trained, spent = dict[str, SB3Follower](), 0
    for i in range(sizes.followers):
        venv = worlds.make(sizes.n_envs)
        set_leader(venv, x)
        venv = venv if counts is None else Counting(venv, counts, worlds.base_observation)
        follower = fresh_follower(worlds, spec, venv, int(rng.integers(2**31)))
        warm = bool(known) and (i % 2 == 1 or sizes.followers == 1)
        if warm:
            follower.take_policy(known[0][1])
        with torch.enable_grad():
            spent += follower.train_alone(sizes.steps)
        venv.close()
        trained[f"{'warm' if warm else 'fresh'} follower {i + 1}"] = follower
    return trained, spent


def _plan(
    worlds: Worlds, x: Floats, sizes: Evaluating, counts: Counts, episodes: VecEnv, rng: np.random.Generator
) -> tuple[Planned, Rollout, int]:
    """Explore at x, plan the best policy in the counted table, and play it; return it, its episodes and the steps spent."""
    venv = Counting(worlds.make(sizes.n_envs), counts, worlds.base_observation)
    set_leader(venv, x)
    spent = seek(venv, sizes.steps, rng)
    venv.close()
    planned = plan(counts.table(), rng)
    act = partial(_by_table, planned.pi, worlds)
    rollout = collect(episodes, act, worlds.horizon(TAIL), int(rng.integers(2**31)))
    return planned, rollout, spent + rollout.steps


def _play(
    worlds: Worlds,
    followers: Mapping[str, SB3Follower],
    held: Mapping[str, SB3Follower],
    planned: Planned | None,
    episodes: VecEnv,
    seed: int,
) -> tuple[list[Answer], int]:
    """Play episodes with the same random numbers by every follower, and by the planned policy if there is one.

    Followers explore, and play greedily too; those of ``held`` do both where actions are continuous as well.

    Returns:
        The answers, and the steps spent.
    """
    answers, spent = list[Answer](), 0

    def heard(name: str, source: str, act: Callable[[Any], Any]) -> None:
        nonlocal spent
        rollout = collect(episodes, act, worlds.horizon(TAIL), seed)
        spent += rollout.steps
        answers.append(Answer(name, source, *episode_returns(rollout, worlds.base_space, worlds.gamma)))

    for name, follower in followers.items():
        for greedily in [True] if worlds.continuous_actions and name not in held else [False, True]:
            state = follower.generators.state
            with follower.generators.active():
                heard(name + (", greedily" if greedily else ""), name, follower.player(episodes, greedily))
            follower.generators.state = state
    if planned is not None:
        heard(BEST_IN_TABLE, BEST_IN_TABLE, partial(_by_table, planned.pi, worlds))
    return answers, spent


def judge_steps(worlds: Worlds, sizes: Evaluating, like: SB3Follower, n_held: int, earlier: bool) -> RecordCost:
    """Return the environment steps of :func:`judge`.

    Args:
        worlds: the environment.
        sizes: how much to train and to play.
        like: a follower of the same algorithm, with as many environments.
        n_held: number of followers to compare with the best answer.
        earlier: whether there is an answer of an earlier record, as there is after the first record.
    """
    trained, episode = like.cost_alone(sizes.steps), sizes.episodes * worlds.horizon(TAIL)
    spent, certain = sizes.followers * trained.followers, trained.certain
    if _counts(worlds) is not None:  # one policy plays if the table predicts its return; else all do
        spent += seek_steps(sizes.n_envs, sizes.steps) + episode
        return RecordCost(spent, spent, False)
    ways = 1 if worlds.continuous_actions else 2
    first, later = (spent + episode * (ways * (sizes.followers + more) + 2 * n_held) for more in (earlier, 1))
    return RecordCost(first, later, certain)


def _counts(worlds: Worlds) -> Counts | None:
    """Return counts for an environment with a small, discrete table whose state is observed; else None."""
    space, actions = worlds.base_space, worlds.env.action_space
    if not (isinstance(space, gym.spaces.Discrete) and isinstance(actions, gym.spaces.Discrete)):
        return None
    small = int(space.n) * int(actions.n) <= LARGEST
    return Counts(int(space.n), int(actions.n), worlds.gamma) if small and not worlds.draws_once else None


def _by_table(pi: NDArray[np.int64], worlds: Worlds, obs: Any) -> NDArray[np.int64]:
    return pi[np.asarray(worlds.base_observation(obs)).astype(np.int64).reshape(-1)]


def _agrees(planned: Planned, rollout: Rollout, worlds: Worlds) -> bool:
    """Whether the table predicts its best policy's returns in episodes; it does not where the state is not observed."""
    after = rollout.flat("base_next_obs").astype(np.int64)
    first = rollout.base_obs[0].astype(np.int64).reshape(-1)
    for V, paid in ((planned.V_f, rollout.r_follower), (planned.V_l, rollout.r_leader)):
        earned = start_values(paid, V[after].reshape(paid.shape), rollout, worlds.gamma)
        apart = earned - V[first]
        error = apart.std(ddof=1) / np.sqrt(len(apart)) if len(apart) > 1 else np.inf
        if abs(apart.mean()) > 5.0 * error + planned.leader_return_stderr + 1e-4 * np.abs(V).max():
            return False
    return True
