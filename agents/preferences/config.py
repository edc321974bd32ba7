"""How a reward is learned from preferences, and the record of one that was."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch

from ...envs.mdp.checks import check_number, check_size, plain_fields, require
from ..followers.spec import takes
from ..learned.worlds import Vectorisation
from ..records import storable
from .fragmenters import ActiveFragmenter, Fragmenter, RandomFragmenter, WholeEpisodes
from .reward_model import RewardNet
from .training import FitConfig

for _cls in (FitConfig, RandomFragmenter, WholeEpisodes, ActiveFragmenter):
    storable(_cls)


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class PreferenceConfig:
    """How a reward is learned from preferences.

    Attributes:
        labels: comparisons asked for in all.
        first_labels: of them, before any training, about random play.
        first_steps: steps of random play.
        follower_plays_first: whether those are the untrained follower's and not random: for one that starts as something, e.g.
            a language model.
        early: how much sooner the others are asked at the start than at the end; 0 spreads them evenly.
        length: steps of a segment.
        n_envs: copies of the world per follower.
        follower_steps: steps that each follower trains per iteration (SB3 rounds up to whole rollouts).
        epochs: passes over the labelled pairs per iteration.
        first_epochs: passes over the first pairs.
        ensemble: nets whose mean is the reward.
        net: what builds one; None takes ``default_net``. Not stored in files.
        fit: how they are fitted.
        fragmenter: which pairs are asked about.
        capacity: labelled pairs that are kept, the newest.
        memory: steps a copy that are recorded; None takes four iterations', at least 1024.
        centre: whether the paid reward has mean 0; None: while no episode has ended by itself (then its level matters).
        unit: standard deviation of the paid reward; what an entropy bonus of a follower's is measured against.
        gamma: the discount; None takes a leader environment's own, else 0.99.
        discounted: whether steps weigh gamma^t, t the step's number in its episode, in values of the learned reward; False
            weighs all alike, for episodes far longer than 1/(1-gamma) (the penalty is then that of the mean reward).
        evaluation_steps: steps of each fresh follower whose true return ``evaluate`` reports; 0 takes the one trained.
        evaluation_followers: how many fresh followers.
        evaluation_episodes: episodes of each.
        patience: seconds that a labeller is given for its first answers.
        penalty_steps: steps of each follower that a penalty's gradient is estimated from; where there are more, a draw of them.
        max_pending: queries that may be open at a time.
        vec_env: how copies are stepped.
        device: of the reward model; "auto" takes a GPU if there is one.
        pictures: whether segments carry pictures, for a person to look at.
        frame_stack: see ``SegmentRecorder``.
        checkpoint: where the last good state is saved if the reward model explodes. Not stored in files, which name no path to
            write.
    """

    labels: int = 200
    first_labels: int = 20
    first_steps: int = 2048
    follower_plays_first: bool = False
    early: float = 9.0
    length: int = 25
    n_envs: int = 8
    follower_steps: int = 2048
    epochs: int = 10
    first_epochs: int = 100
    ensemble: int = 3
    net: RewardNet | None = field(default=None, metadata={"kept": False})
    fit: FitConfig = field(default_factory=FitConfig)
    fragmenter: Fragmenter = field(default_factory=RandomFragmenter)
    capacity: int = 3000
    memory: int | None = None
    centre: bool | None = None
    unit: float = 1.0
    gamma: float | None = None
    discounted: bool = True
    evaluation_steps: int = 0
    evaluation_followers: int = 3
    evaluation_episodes: int = 20
    patience: float = 60.0
    penalty_steps: int = 2048
    max_pending: int = 100
    vec_env: Vectorisation | None = None
    device: str = "auto"
    pictures: bool = False
    frame_stack: int = 1
    checkpoint: str | None = field(default=None, metadata={"kept": False})

    def __post_init__(self) -> None:
        plain_fields(self)
        sizes = ("labels", "first_labels", "length", "n_envs", "follower_steps", "epochs", "first_epochs", "ensemble")
        judging = ("evaluation_followers", "evaluation_episodes")
        for name in (*sizes, *judging, "first_steps", "capacity", "max_pending", "penalty_steps"):
            check_size(getattr(self, name), name)
        require(isinstance(self.pictures, bool), "pictures", "True or False", repr(self.pictures))
        require(self.first_labels <= self.labels, "first_labels", f"at most labels={self.labels}", self.first_labels)
        for name in ("evaluation_steps", "patience", "early"):
            check_number(getattr(self, name), name, low=0.0)
        check_number(self.unit, "unit", low=1e-30, high=1e30)  # the net is in float32
        require(isinstance(self.fragmenter, Fragmenter), "fragmenter", "a Fragmenter", repr(self.fragmenter))
        require(isinstance(self.fit, FitConfig), "fit", "a FitConfig", repr(self.fit))
        net = self.net is None or (callable(self.net) and takes(self.net, 2))
        require(net, "net", "a callable that builds a torch module for two spaces", repr(self.net))
        if self.memory is not None:
            check_size(self.memory, "memory")
        try:
            _ = self.device == "auto" or torch.zeros(1, device=self.device)
        except Exception as error:  # of several kinds, torch's own
            raise ValueError(f"device: expected auto or a device of torch's, got {self.device!r} ({error})") from error
        alone = isinstance(self.fragmenter, ActiveFragmenter) and self.ensemble < 2
        require(not alone, "ensemble", "2 or more for a choice by disagreement", self.ensemble)

    @property
    def recorded(self) -> int:
        """Steps a copy that a recorder keeps."""
        asked = -(-max(self.follower_steps, self.first_steps) // self.n_envs)
        return max(self.length, max(1024, 4 * asked) if self.memory is None else self.memory)


@dataclass(frozen=True)
class PreferenceEvaluation:
    """The record of a learned reward.

    Attributes:
        labels: answers so far that say left, right or equal.
        true_return: true return of the best response to the learned reward. In a tabular world discounted and exact, of the
            exact best response; elsewhere the undiscounted mean of episodes, of followers that learned from the reward afresh
            for this record, or of the one that was trained (``evaluation_steps``).
        true_return_stderr: its standard error, between followers where there are several; 0 where it is exact.
        regret: what the best response to the learned reward falls short of the true optimum; None where no model is known.
        regret_at_pi_y: the same of the follower that is asked about.
        cross_entropy: the reward model's loss on the labelled pairs held.
        accuracy: share of them, without ties, that it orders rightly.
        penalty: the last estimate of p(x, y), in reward a step; None without a penalty.
        lam: its coefficient; None without one.
        steps: environment steps of learning.
        iteration: iterations so far.
        evaluation_followers: followers that were trained afresh for this record.
        evaluation_steps: environment steps that this record cost; they are not among ``steps``.
    """

    labels: int
    true_return: float
    true_return_stderr: float
    regret: float | None
    regret_at_pi_y: float | None
    cross_entropy: float
    accuracy: float
    penalty: float | None
    lam: float | None
    steps: int
    iteration: int
    evaluation_followers: int = 0
    evaluation_steps: int = 0

    def as_dict(self) -> dict[str, float | int | None]:
        """The record as plain numbers."""
        return asdict(self)
