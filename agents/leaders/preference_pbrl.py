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
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp.checks import check_number, require
from ...wrappers import Segment
from ..common.storage import decode, encode
from ..common.worlds import EnvSpec
from ..followers.spec import FollowerSpec
from ..penalties import ValuePenalty
from ..preferences.buffer import Preference, batch_of
from ..preferences.config import PreferenceConfig
from ..preferences.labels import Labeller
from ..preferences.loop import PreferenceLearner
from ..preferences.occupancy import Occupancy, known_occupancy, occupancy
from ..preferences.planner import Planner
from ..preferences.recorded import RecordedFollower
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


class PreferencePBRL(PreferenceLearner):
    """The penalty method for learning a reward from preferences.

    Args:
        env: an id, an environment (copied), a callable that makes one, or ``Copies``.
        follower: an SB3 class, or a callable ``VecEnv -> BaseAlgorithm``; or two of them, :class:`Tracked`.
        penalty: a :class:`ValuePenalty`; lam is in nats (of a pair's cross-entropy) per unit of learned reward a step.
        config: how.
        labeller: who answers; None takes the true return's sign.
        seed: of the nets, the followers, their worlds and the choice of pairs.
        env_kwargs: arguments of an id.

    Attributes:
        best_response: the follower that stands for pihat.
        penalised: the one that stands for pi_y; its segments are compared.
        lam: the penalty's coefficient now.
        penalty_estimate: the last p^, in reward a step.
        penalty_share: share of the last fit's steps, and of the members, in which the penalty's gradient was counted.
        loss_estimate: f at the current x and pi_y, from answers to which x was not yet fitted; None before any.

    Raises:
        ValueError: as ``PreferenceLearner``; a penalty of another kind.

    Example:
        >>> from stable_baselines3 import A2C
        >>> from bilevel_gym.agents import PreferenceConfig, PreferencePBRL
        >>> config = PreferenceConfig(labels=8, first_labels=4, length=5, first_steps=64, follower_steps=64)
        >>> leader = PreferencePBRL("bilevel_gym/RewardGrid-v0", A2C, config=config)
        >>> record = leader.learn(1_000).evaluate()
        >>> record.labels, record.regret > 0.0
        (8, True)
    """

    def __init__(
        self,
        env: EnvSpec | Copies,
        follower: FollowerSpec | Tracked,
        penalty: ValuePenalty | None = None,
        config: PreferenceConfig | None = None,
        labeller: Labeller | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.penalty = ValuePenalty(lam=1.0) if penalty is None else penalty
        require(isinstance(self.penalty, ValuePenalty), "penalty", "a ValuePenalty", type(self.penalty).__name__)
        self._tracked = follower if isinstance(follower, Tracked) else None
        best, own = (follower.best_response, follower.penalised) if isinstance(follower, Tracked) else (follower,) * 2
        super().__init__(env, best, config, labeller, seed, env_kwargs)
        self.lam = self.penalty.lam_at(1.0)
        self.penalty_estimate: float | None = None
        self.penalty_share: float | None = None
        self.loss_estimate: float | None = None
        self.penalised = self._new_follower(self._follower_seed, own)  # common random numbers

    @property
    def followers(self) -> list[RecordedFollower]:
        return [self.best_response, self.penalised]

    @property
    def observed(self) -> RecordedFollower:
        return self.penalised

    # --- the penalised follower's reward ------------------------------------------------------------------------------

    def _cross_entropies(self, preferences: list[Preference]) -> NDArray[np.float64]:
        """Of each pair at the current x, mean over members, ``[n]``."""
        with torch.no_grad():
            losses, _ = pair_losses(self.model, batch_of(preferences), self.config.fit.error)
        return np.asarray(losses.mean(0).double().cpu().numpy())

    def _credit(self, first: int, last: int) -> NDArray[np.float64]:
        """-H (CE - baseline)/lam, in the paid reward's unit, at the last step of each labelled segment of H steps taken."""
        recorder = self.penalised.recorder
        credit = np.zeros((last - first, recorder.num_envs))
        sides = [(p, (p.pair.left, p.pair.right)) for p in self.buffer]
        recent = [(p, both) for p, both in sides if min(s.time for s in both) >= max(0, first - len(both[0]))]
        found = [p for p, both in recent if any(first <= _last(s) < last for s in both)]
        if not found:
            return credit
        losses = self._cross_entropies(found)
        baseline = float(losses.mean()) if self.loss_estimate is None else self.loss_estimate
        for preference, loss in zip(found, losses, strict=True):
            for segment in (preference.pair.left, preference.pair.right):
                if first <= _last(segment) < last:
                    credit[_last(segment) - first, segment.copy] -= int(segment.mask.sum()) * (loss - baseline)
        return credit / (self.lam * float(self.model.scale))

    def _collect(self) -> int:
        """Also follow f(x, y): the loss of pairs that x was not yet fitted to, a moving average."""
        before = self.buffer.seen
        taken = super()._collect()
        fresh = list(self.buffer)[len(self.buffer) - min(self.buffer.seen - before, len(self.buffer)) :]
        if fresh and self._begun:
            loss = float(self._cross_entropies(fresh).mean())
            self.loss_estimate = loss if self.loss_estimate is None else 0.8 * self.loss_estimate + 0.2 * loss
        return taken

    def _rollout_ended(self, follower: RecordedFollower, found: dict[str, Any]) -> None:
        """Pay an on-policy follower for the segments of this rollout that were labelled, before it learns from it."""
        super()._rollout_ended(follower, found)
        model: Any = follower.follower.model
        rollout = model.rollout_buffer
        steps = follower.recorder.steps
        rollout.rewards += self._credit(steps - rollout.buffer_size, steps).astype(np.float32)
        rollout.compute_returns_and_advantage(last_values=found["values"], dones=found["dones"])

    # --- the penalty's gradient in x ----------------------------------------------------------------------------------

    def _further(self, since: dict[int, int]) -> Callable[[], Tensor] | None:
        best, own = (self._occupancy(f, since[id(f)]) for f in (self.best_response, self.penalised))
        self.lam = self.penalty.lam_at(1.0 - min(1.0, self.num_timesteps / max(1, self._total)))
        lam, most = self.lam, (math.log(2.0) if self.loss_estimate is None else self.loss_estimate) / self.lam

        counted: list[float] = []

        def penalty() -> Tensor:
            p = best.mean_reward(self.model) - own.mean_reward(self.model)  # [M]
            self.penalty_estimate = float(p.detach().mean())
            fits = (p > 0.0) & ((p < most) | (self._tracked is not None))
            counted.append(float(fits.double().mean()))
            self.penalty_share = sum(counted) / len(counted)
            return lam * torch.where(fits, p, 0.0).sum() if bool(fits.any()) else p.new_zeros(())

        return penalty

    def _occupancy(self, f: RecordedFollower, since: int) -> Occupancy:
        planner = f.follower.model
        if isinstance(planner, Planner):
            return known_occupancy(planner.occupancy(), self.model)
        gamma = self.worlds.gamma if self.config.discounted else None
        return occupancy(f.recorder, since, gamma, self.model, self.config.penalty_steps, self.rng)

    def _record(self) -> dict[str, float | None]:
        return {"penalty": self.penalty_estimate, "lam": self.lam}

    # --- files --------------------------------------------------------------------------------------------------------

    def _follower_name(self) -> str | None:
        return None if self._tracked else super()._follower_name()

    def _method_state(self) -> Any:
        return {
            "penalty": encode(self.penalty),
            "lam": self.lam,
            "estimates": [self.penalty_estimate, self.loss_estimate],
        }

    @classmethod
    def _again(
        cls,
        env: Any,
        follower: Any,
        config: PreferenceConfig,
        labeller: Labeller | None,
        seed: int | None,
        env_kwargs: dict[str, Any] | None,
        method: Any,
    ) -> PreferencePBRL:
        learner = cls(env, follower, decode(method["penalty"]), config, labeller, seed, env_kwargs)
        learner.lam = check_number(method["lam"], "lam", low=0.0, open_low=True)
        estimates = [None if value is None else check_number(value, "estimate") for value in method["estimates"]]
        learner.penalty_estimate, learner.loss_estimate = estimates
        return learner


def _last(segment: Segment) -> int:
    """The recorder's number of the last step taken."""
    return segment.time + int(segment.mask.sum()) - 1
