"""Settings for learning a reward from preferences, and the record of a learned reward."""

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
    """Options for learning a reward from preferences.

    Attributes:
        labels: total number of comparisons to ask for.
        first_labels: how many of them to ask about random play, before any training.
        first_steps: number of steps of random play.
        follower_plays_first: whether the untrained follower plays these steps instead of random actions; for followers with a
            meaningful start, e.g. a language model.
        early: how much denser the other questions are at the start than at the end; 0 spaces them evenly.
        length: number of steps in a segment.
        n_envs: number of parallel environments per follower.
        follower_steps: training steps of each follower per iteration (SB3 rounds up to whole rollouts).
        epochs: passes over the labelled pairs per iteration.
        first_epochs: passes over the first pairs.
        ensemble: number of networks; the reward is their mean.
        net: function that builds a network; None takes ``default_net``. Not stored in files.
        fit: how the networks are fitted.
        fragmenter: how the pairs to ask about are chosen.
        capacity: number of labelled pairs to keep, the newest.
        memory: recorded steps per environment; None keeps four iterations, but at least 1024.
        centre: whether the paid reward has mean 0. None: until an episode terminates, since then its level matters.
        unit: standard deviation of the paid reward; a follower's entropy bonus is relative to it.
        gamma: the discount; None takes that of a leader environment, else 0.99.
        discounted: whether step t of an episode has weight gamma^t in values of the learned reward. False weighs all steps
            equally, for episodes much longer than 1/(1-gamma) (the penalty is then that of the mean reward).
        evaluation_steps: training steps of each new follower in ``evaluate``; 0 evaluates the trained one.
        evaluation_followers: number of new followers in ``evaluate``.
        evaluation_episodes: number of episodes of each.
        patience: seconds to wait for the labeller's first answers.
        penalty_steps: number of steps of each follower for the penalty's gradient, drawn at random from longer records.
        max_pending: number of queries that may be open at a time.
        vec_env: how parallel environments are stepped.
        device: device of the reward model; "auto" takes a GPU if there is one.
        pictures: whether segments include pictures, for a person to look at.
        frame_stack: see ``SegmentRecorder``.
        checkpoint: file for the last good state, should the reward model explode. Not stored in files, which must not name a
            path to write.
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
        check_number(self.unit, "unit", low=1e-30, high=1e30)  # the network uses float32
        require(isinstance(self.fragmenter, Fragmenter), "fragmenter", "a Fragmenter", repr(self.fragmenter))
        require(isinstance(self.fit, FitConfig), "fit", "a FitConfig", repr(self.fit))
        net = self.net is None or (callable(self.net) and takes(self.net, 2))
        require(net, "net", "a function that builds a torch module for two spaces", repr(self.net))
        if self.memory is not None:
            check_size(self.memory, "memory")
        try:
            _ = self.device == "auto" or torch.zeros(1, device=self.device)
        except Exception as error:  # torch raises several kinds
            raise ValueError(f"device: expected auto or a torch device, got {self.device!r} ({error})") from error
        alone = isinstance(self.fragmenter, ActiveFragmenter) and self.ensemble < 2
        require(not alone, "ensemble", "2 or more to choose pairs by disagreement", self.ensemble)

    @property
    def recorded(self) -> int:
        """Number of recorded steps per environment."""
        asked = -(-max(self.follower_steps, self.first_steps) // self.n_envs)
        return max(self.length, max(1024, 4 * asked) if self.memory is None else self.memory)


@dataclass(frozen=True)
class PreferenceEvaluation:
    """The record of a learned reward.

    Attributes:
        labels: number of answers so far that are left, right or equal.
        true_return: true return of the best response to the learned reward. In a tabular environment it is discounted and
            exact. Otherwise it is the undiscounted mean over episodes of followers that were newly trained on the learned
            reward for this record, or of the trained one (see ``evaluation_steps``).
        true_return_stderr: its standard error, across followers where there are several; 0 where exact.
        regret: true optimum minus the true return of the best response to the learned reward; None without a model.
        regret_at_pi_y: the same for the follower whose segments are compared.
        cross_entropy: the reward model's loss on the labelled pairs.
        accuracy: share of the labelled pairs, without ties, that it orders correctly.
        penalty: the latest estimate of p(x, y), in reward per step; None without a penalty.
        lam: coefficient of the penalty; None without one.
        steps: environment steps of learning.
        iteration: number of iterations so far.
        evaluation_followers: number of followers newly trained for this record.
        evaluation_steps: environment steps of this record, not counted in ``steps``.
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
        """Return the record as plain numbers."""
        return asdict(self)
