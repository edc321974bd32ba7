r"""PBRL for preferences (Shen, Yang and Chen, arXiv 2402.06886, section 6.2), over any SB3 follower.

The leader is the reward model r_x, the follower's problem the MDP that it pays, and the leader's loss is how badly r_x explains
preferences between segments of the follower's own behaviour:

    f(x, y) = E_{d1, d2 ~ pi_y} [ CE_x(d1, d2) ],      p(x, y) = V*_x(rho) - V_x^{pi_y}(rho),      min  f + lam p

CE being the Bradley-Terry cross-entropy of the answer. Two followers of the user's algorithm stand for the two policies:

    best response          paid r_x                                          stands for  pihat ~ pi*(x)
    penalised follower     paid r_x, and -H (CE - baseline)/lam at the       stands for  pi_y
                           last step of each labelled segment of H steps

The second is the score trick: who draws the segments is paid for drawing pairs that r_x explains, ``CE/lam`` for each of their
steps. It is paid when the segment is complete, for then every action in it, and what led to it, has the whole of it in its
return to go; paid step by step, later actions would count less than earlier ones, though the answer is to all of them. Both
segments of a pair carry it, unlabelled steps carry nothing. Questions are asked about the penalised follower. x goes down

    grad_x CE + lam (1 - gamma) ( grad_x V_x^{pihat} - grad_x V_x^{pi_y} )

the first over all labelled pairs held, the second (Lemmas 6 and 7a) from the steps that both just trained on, weighted by
gamma^t, or exactly where both plan in a known model (``Planner``); times 1 - gamma, so that p is in reward a step and lam needs
no other value at another discount.

**Both followers are watched.** Exact ones keep ``0 <= p <= f/lam``: the best response is best, and the penalised follower
forgoes no more learned reward than its answers can cost, f >= 0 being the least. An estimate below tells of a best response
that lags, one above of a penalised follower that does; either error is then larger than the penalty, and its gradient is left
out. f is estimated by answers to which x was not yet fitted. Both followers have the same seed, so that they differ by their
rewards alone.

**Or pi_y follows slowly**, as in the paper's algorithm, which moves y by one step where it solves for the best response: two
algorithms are given, in :class:`Tracked`. Then pi_y lags by design, and nothing above is an error. Its questions are about what
the follower did for a while, and the penalty takes reward from where the best response has just gone and pi_y has not been.

Without the second term of each, it is DRLHF (Christiano et al. 2017).

**A follower's value under the learned reward**, and how it moves with x, is read from its recorded steps:

    (1 - gamma) V_x^pi(rho) = sum_t w_t r_x(s_t, a_t),      w_t = gamma^t / ( sum_t gamma^t + sum_ends gamma^T / (1 - gamma) )

over steps numbered within their episodes; T is the length of an episode that ended by itself, after which nothing is paid. Of
an episode that is cut, what lies beyond is taken to be like what was seen. By Lemma 7a (arXiv 2402.06886) the gradient in x,
the policy held, is the same sum of grad_x r_x. Without a discount, w is uniform and the sum is the mean reward of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp.checks import check_number, require
from ...wrappers import Segment
from ...wrappers.segments import TERMINATED, SegmentRecorder, Steps
from ..config import configured
from ..followers.spec import FollowerSpec
from ..leader import Leader, Progress
from ..learned.worlds import EnvSpec
from ..penalties import ValuePenalty
from ..preferences.config import PreferenceConfig
from ..preferences.labels import Labeller, Preference
from ..preferences.method import PreferenceLeader, PreferenceMethod, PreferenceState
from ..preferences.planner import Planner
from ..preferences.recorded import RecordedFollower
from ..preferences.reward_model import RewardModel
from ..preferences.training import pair_losses
from ..preferences.worlds import Copies


@dataclass(frozen=True)
class Tracked:
    """Two algorithms for the two followers.

    Attributes:
        best_response: what stands for pihat.
        penalised: what stands for pi_y, and moves slowly, e.g. a ``Planner`` by one step of ``MirrorDescent`` an iteration.
    """

    best_response: FollowerSpec
    penalised: FollowerSpec


@dataclass(frozen=True, eq=False)
class Occupancy:
    """Steps and their weights.

    Attributes:
        obs: ``[B, ...]``.
        actions: ``[B, ...]``.
        weight: ``[B]``.
    """

    obs: Tensor
    actions: Tensor
    weight: Tensor

    def mean_reward(self, model: RewardModel) -> Tensor:
        """Each member's ``(1 - gamma) V_x``, not normalised, ``[M]``, differentiable in the weights."""
        r: Tensor = model(self.obs, self.actions)
        return (r * self.weight.to(r.dtype)).sum(-1)


def weights(steps: Steps, gamma: float | None) -> NDArray[np.float64]:
    """w, ``[T, n]``; uniform for gamma None."""
    if gamma is None:
        return np.full(steps.age.shape, 1.0 / max(1, steps.age.size))
    powers = gamma ** steps.age.astype(np.float64)
    beyond = gamma * powers[steps.ended == TERMINATED].sum() / (1.0 - gamma)
    return powers / (powers.sum() + beyond)  # type: ignore[no-any-return]


def occupancy(
    recorder: SegmentRecorder, since: int, gamma: float | None, model: RewardModel, most: int, rng: np.random.Generator
) -> Occupancy:
    """The steps recorded from step ``since`` on, or ``most`` of them drawn by their weights where there are more."""
    steps = recorder.window(since)
    w = weights(steps, gamma).ravel()
    chosen = np.arange(len(w))
    if len(w) > most:
        total = w.sum()
        chosen = rng.choice(len(w), most, p=w / total)
        w = np.full(most, total / most)
    t, copies = np.divmod(chosen, recorder.num_envs)
    obs, actions = recorder.observations(steps.time[t], copies), steps.actions[t, copies]
    return Occupancy(model.tensor(obs), model.tensor(actions), model.tensor(w))


@dataclass(kw_only=True)
class PenalisedState(PreferenceState):
    """What PBRL for preferences goes on from.

    Attributes:
        lam: the penalty's coefficient now.
        penalty_estimate: the last p^, in reward a step.
        penalty_share: share of the last fit's steps, and of the members, in which the penalty's gradient was counted.
        loss_estimate: f at the current x and pi_y, from answers to which x was not yet fitted; None before any.
    """

    lam: float = 1.0
    penalty_estimate: float | None = None
    penalty_share: float | None = field(default=None, metadata={"kept": False})
    loss_estimate: float | None = None


class PreferencePBRLMethod(PreferenceMethod):
    """The penalty method for learning a reward from preferences; see :class:`PreferencePBRL`."""

    observed = "penalised"
    state_class = PenalisedState

    def __init__(self, penalty: Any, env: Any, follower: Any, *further: Any) -> None:
        self.penalty = ValuePenalty(lam=1.0) if penalty is None else penalty
        require(isinstance(self.penalty, ValuePenalty), "penalty", "a ValuePenalty", type(self.penalty).__name__)
        super().__init__(env, follower, *further)
        self._lags = isinstance(follower, Tracked)  # by design
        two = follower if isinstance(follower, Tracked) else Tracked(follower, follower)
        self.specs = {"best_response": two.best_response, "penalised": two.penalised}

    def init(self, x: None, seed: int | None) -> PenalisedState:
        state: PenalisedState = super().init(x, seed)
        state.lam = self.penalty.lam_at(1.0)
        return state

    def found(self, state: PenalisedState) -> dict[str, float | None]:
        return {"penalty": state.penalty_estimate, "lam": state.lam}

    # --- the penalised follower's reward ----------------------------------------------------------------------------

    def cross_entropies(self, state: PenalisedState, preferences: list[Preference]) -> NDArray[np.float64]:
        """Of each pair at the current x, mean over members, ``[n]``."""
        with torch.no_grad():
            losses, _ = pair_losses(state.model, preferences, self.config.fit.error)
        return np.asarray(losses.mean(0).double().cpu().numpy())

    def credit(self, state: PenalisedState, first: int, last: int) -> NDArray[np.float64]:
        """-H (CE - baseline)/lam, in the paid reward's unit, at the last step of each labelled segment of H steps taken."""
        credit = np.zeros((last - first, state.followers["penalised"].recorder.num_envs))
        sides = [(p, (p.pair.left, p.pair.right)) for p in state.buffer]
        recent = [(p, both) for p, both in sides if min(s.time for s in both) >= max(0, first - len(both[0]))]
        found = [p for p, both in recent if any(first <= _last(s) < last for s in both)]
        if not found:
            return credit
        losses = self.cross_entropies(state, found)
        baseline = float(losses.mean()) if state.loss_estimate is None else state.loss_estimate
        for preference, loss in zip(found, losses, strict=True):
            for segment in (preference.pair.left, preference.pair.right):
                if first <= _last(segment) < last:
                    credit[_last(segment) - first, segment.copy] -= int(segment.mask.sum()) * (loss - baseline)
        return credit / (state.lam * float(state.model.scale))

    def collect(self, state: PenalisedState) -> int:
        """Also follow f(x, y): the loss of pairs that x was not yet fitted to, a moving average."""
        before = state.buffer.seen
        taken = super().collect(state)
        fresh = list(state.buffer)[len(state.buffer) - min(state.buffer.seen - before, len(state.buffer)) :]
        if fresh and state.begun:
            loss = float(self.cross_entropies(state, fresh).mean())
            held = state.loss_estimate
            state.loss_estimate = loss if held is None else 0.8 * held + 0.2 * loss
        return taken

    # --- the penalty's gradient in x --------------------------------------------------------------------------------

    def further(self, state: PenalisedState, since: dict[str, int], progress: Progress) -> Callable[[], Tensor]:
        best, own = (self._occupancy(state, f, since[role]) for role, f in state.followers.items())
        state.lam = self.penalty.lam_at(1.0 - min(1.0, state.num_timesteps / max(1, progress.total)))
        # p < f / lam where followers are exact; before any answer f is that of a coin.
        most = (math.log(2.0) if state.loss_estimate is None else state.loss_estimate) / state.lam
        counted: list[float] = []

        def penalty() -> Tensor:
            p = best.mean_reward(state.model) - own.mean_reward(state.model)  # [M]
            fits = (p > 0.0) & ((p < most) | self._lags)
            counted.append(float(fits.double().mean()))
            state.penalty_estimate, state.penalty_share = float(p.detach().mean()), sum(counted) / len(counted)
            return state.lam * torch.where(fits, p, 0.0).sum() if bool(fits.any()) else p.new_zeros(())

        return penalty

    def _occupancy(self, state: PenalisedState, f: RecordedFollower, since: int) -> Occupancy:
        planner, model = f.follower.model, state.model
        if isinstance(planner, Planner):  # all pairs of a state and an action, weighted exactly
            d = planner.occupancy()
            states, actions = np.divmod(np.arange(d.numel()), d.shape[1])
            return Occupancy(model.tensor(states), model.tensor(actions), model.tensor(d.flatten().numpy()))
        gamma = self.worlds.gamma if self.config.discounted else None
        return occupancy(f.recorder, since, gamma, model, self.config.penalty_steps, state.rng)

    # --- files ------------------------------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        return {"penalty": self.penalty, **super().arguments()}

    def loaded(self, state: PenalisedState, replay: bool, path: Path) -> None:
        super().loaded(state, replay, path)
        check_number(state.lam, "lam", low=0.0, open_low=True)
        for name in ("penalty_estimate", "loss_estimate"):
            found = getattr(state, name)
            require(found is None or math.isfinite(found), name, "a finite number", found)


class PreferencePBRL(PreferenceLeader):
    """The penalty method for learning a reward from preferences.

    Args:
        env: an id, an environment (copied), a callable that makes one, a problem, or ``Copies``.
        follower: an SB3 class, or a callable ``VecEnv -> BaseAlgorithm``; or two of them, :class:`Tracked`.
        penalty: a :class:`ValuePenalty`; lam is in nats (of a pair's cross-entropy) per unit of learned reward a step.
        config: how.
        labeller: who answers; None takes the true return's sign.
        seed: of the nets, the followers, their worlds and the choice of pairs.
        env_kwargs: arguments of an id.
        settings: fields of the config by name, e.g. ``labels=400``; none beside ``config``.

    Attributes:
        best_response: the follower that stands for pihat.
        penalised: the one that stands for pi_y; its segments are compared.
        lam: the penalty's coefficient now.
        penalty_estimate: the last p^, in reward a step.
        penalty_share: share of the last fit's steps, and of the members, in which the penalty's gradient was counted.
        loss_estimate: f at the current x and pi_y, from answers to which x was not yet fitted; None before any.

    Raises:
        ValueError: as ``PreferenceLeader``; a penalty of another kind.

    Example:
        >>> from stable_baselines3 import A2C
        >>> from bilevel_gym.agents import PreferenceConfig, PreferencePBRL
        >>> config = PreferenceConfig(labels=8, first_labels=4, length=5, first_steps=64, follower_steps=64)
        >>> leader = PreferencePBRL("bilevel_gym/RewardGrid-v0", A2C, config=config)
        >>> record = leader.learn(1_000).evaluate()
        >>> record.labels, record.regret > 0.0
        (8, True)
    """

    method_class = PreferencePBRLMethod

    def __init__(
        self,
        env: EnvSpec | Copies,
        follower: FollowerSpec | Tracked,
        *,
        penalty: ValuePenalty | None = None,
        config: PreferenceConfig | None = None,
        labeller: Labeller | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        config = configured(type(self), PreferenceConfig, config, settings)
        Leader.__init__(self, self.method_class(penalty, env, follower, config, labeller, env_kwargs), seed)

    penalised = PreferenceLeader.observed
    """What is paid r_x and what explains it; its segments are compared."""


def _last(segment: Segment) -> int:
    """The recorder's number of the last step taken."""
    return segment.time + int(segment.mask.sum()) - 1
