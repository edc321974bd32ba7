r"""PBRL for preferences (Shen, Yang and Chen, arXiv 2402.06886, section 6.2), with any SB3 follower.

The leader is the reward model r_x. The follower's problem is the MDP with this reward. The leader's loss is how badly r_x
explains the preferences between segments of the follower's own behaviour:

    f(x, y) = E_{d1, d2 ~ pi_y} [ CE_x(d1, d2) ],      p(x, y) = V*_x(rho) - V_x^{pi_y}(rho),      min  f + lam p

where CE is the Bradley-Terry cross-entropy of the answer. Two followers of the user's algorithm are trained:

    best response          paid r_x                                          stands for  pihat ~ pi*(x)
    penalised follower     paid r_x, and -H (CE - baseline)/lam at the       stands for  pi_y
                           last step of each labelled segment of H steps

The second is the score-function trick: the follower that draws the segments is paid for drawing pairs that r_x explains,
``CE/lam`` for each of their steps. It is paid when the segment is complete, so that the return to go of every action in it, and
before it, contains all of it; paid step by step, later actions would count less, though the answer depends on all of them. Both
segments of a pair are paid, unlabelled steps are not. Questions are asked about the penalised follower. x descends along

    grad_x CE + lam (1 - gamma) ( grad_x V_x^{pihat} - grad_x V_x^{pi_y} )

where the first term uses all labelled pairs. The second (Lemmas 6 and 7a) uses the latest training steps of both followers,
weighted by gamma^t, or is exact where both plan in a known model (``Planner``). The factor 1 - gamma makes p a reward per step,
so that lam need not change with the discount.

**The checks on both followers.** Exact followers have ``0 <= p <= f/lam``: the best response is best, and the penalised follower
gives up no more learned reward than its answers can cost, since f >= 0. An estimate below shows that the best response lags, one
above that the penalised follower does. Then the error is larger than the penalty, and its gradient is left out. f is estimated
from answers that x has not been fitted to. Both followers have the same seed, so that they differ by their rewards only.

**A slow pi_y**, as in the paper's algorithm, which takes one step of y for each best response: give two algorithms, as
:class:`Tracked`. Then pi_y lags by design, and none of the above counts as an error. The questions are about what the follower
did for a while, and the penalty lowers the reward where the best response has just gone and pi_y has not been.

Without the second term of each, this is DRLHF (Christiano et al. 2017).

**The follower's value under the learned reward**, and its gradient in x, are estimated from its recorded steps:

    (1 - gamma) V_x^pi(rho) = sum_t w_t r_x(s_t, a_t),      w_t = gamma^t / ( sum_t gamma^t + sum_ends gamma^T / (1 - gamma) )

over steps numbered within their episodes. T is the length of an episode that terminated; after it the reward is 0. A cut episode
is assumed to continue like its recorded part. By Lemma 7a (arXiv 2402.06886) the gradient in x at a fixed policy is the same sum
of grad_x r_x. Without a discount, w is uniform and the sum is the mean reward per step.
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
    """Two algorithms, one for each follower.

    Attributes:
        best_response: the follower trained as pihat.
        penalised: the follower trained as pi_y, which moves slowly, e.g. a ``Planner`` with one step of ``MirrorDescent``.
    """

    best_response: FollowerSpec
    penalised: FollowerSpec


@dataclass(frozen=True, eq=False)
class Occupancy:
    """Recorded steps and their weights.

    Attributes:
        obs: observations, ``[B, ...]``.
        actions: actions, ``[B, ...]``.
        weight: weights, ``[B]``.
    """

    obs: Tensor
    actions: Tensor
    weight: Tensor

    def mean_reward(self, model: RewardModel) -> Tensor:
        """Return each member's ``(1 - gamma) V_x``, not normalised, ``[M]``, differentiable in the weights."""
        r: Tensor = model(self.obs, self.actions)
        return (r * self.weight.to(r.dtype)).sum(-1)


def weights(steps: Steps, gamma: float | None) -> NDArray[np.float64]:
    """Return the weights w, ``[T, n]``; uniform if gamma is None."""
    if gamma is None:
        return np.full(steps.age.shape, 1.0 / max(1, steps.age.size))
    powers = gamma ** steps.age.astype(np.float64)
    beyond = gamma * powers[steps.ended == TERMINATED].sum() / (1.0 - gamma)
    return powers / (powers.sum() + beyond)  # type: ignore[no-any-return]


def occupancy(
    recorder: SegmentRecorder, since: int, gamma: float | None, model: RewardModel, most: int, rng: np.random.Generator
) -> Occupancy:
    """Return the steps recorded from step ``since`` on; of more than ``most``, a sample drawn by their weights."""
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
    """The state that PBRL for preferences continues from.

    Attributes:
        lam: current coefficient of the penalty.
        penalty_estimate: the latest p^, in reward per step.
        penalty_share: share of the latest fit's steps and members in which the penalty's gradient was used.
        loss_estimate: f at the current x and pi_y, from answers that x had not been fitted to; None before any.
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
        """Return the cross-entropy of each pair at the current x, as a mean over members, ``[n]``."""
        with torch.no_grad():
            losses, _ = pair_losses(state.model, preferences, self.config.fit.error)
        return np.asarray(losses.mean(0).double().cpu().numpy())

    def credit(self, state: PenalisedState, first: int, last: int) -> NDArray[np.float64]:
        """Return -H (CE - baseline)/lam, in units of the paid reward, at the last step of each labelled segment of H steps."""
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
        """Also update f(x, y), a moving average of the loss on pairs that x was not yet fitted to."""
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
        # p < f / lam where followers are exact; before any answer, f is the loss of a coin toss.
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
        if isinstance(planner, Planner):  # all state-action pairs, with exact weights
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
        env: an id, an environment (it is copied), a callable that makes one, a problem, or ``Copies``.
        follower: an SB3 class, or a callable ``VecEnv -> BaseAlgorithm``; or two of them, :class:`Tracked`.
        penalty: a :class:`ValuePenalty`; lam is in nats (of a pair's cross-entropy) per unit of learned reward per step.
        config: a :class:`PreferenceConfig`.
        labeller: the labeller; None compares true returns.
        seed: seed of the networks, the followers, their environments and the choice of pairs.
        env_kwargs: arguments of the environment, where ``env`` is an id.
        settings: fields of the config by name, e.g. ``labels=400``; not allowed with ``config``.

    Attributes:
        best_response: the follower trained as pihat.
        penalised: the follower trained as pi_y; its segments are compared.
        lam: current coefficient of the penalty.
        penalty_estimate: the latest p^, in reward per step.
        penalty_share: share of the latest fit's steps and members in which the penalty's gradient was used.
        loss_estimate: f at the current x and pi_y, from answers that x had not been fitted to; None before any.

    Raises:
        ValueError: see ``PreferenceLeader``; also if the penalty is of another kind.

    Example:
        >>> from stable_baselines3 import A2C
        >>> from bilevel_gym.agents import PreferenceConfig, PreferencePBRL
        >>> config = PreferenceConfig(labels=8, first_labels=4, length=5, first_steps=64, follower_steps=64)
        >>> leader = PreferencePBRL("bilevel_gym/RewardGrid-v0", A2C, config=config)
        >>> record = leader.learn(400).evaluate()
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
    """The follower that is paid r_x and a credit; its segments are compared."""


def _last(segment: Segment) -> int:
    """Return the recorder's number of the last step that was taken."""
    return segment.time + int(segment.mask.sum()) - 1
