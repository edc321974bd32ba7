"""What leaders that learn a reward from preferences show, beside what all leaders do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from ...envs.mdp.checks import require
from ..followers.sb3 import SB3Follower
from ..followers.spec import FollowerSpec
from ..leader import Leader
from ..learned.worlds import EnvSpec
from .config import PreferenceConfig, PreferenceEvaluation
from .labels import Labeller
from .method import PreferenceMethod
from .recorded import RecordedFollower
from .worlds import Copies


class PreferenceLeader(Leader):
    """A leader that learns a reward from preferences while a follower learns from that reward, by its ``method_class``.

    x is the reward model's weights, flat, float64. Of a learned reward nothing but the last is kept: ``evaluate`` is of that, a
    ``PreferenceEvaluation``, and ``history`` stays empty.

    A file, with ``replay=True``, also holds what was recorded and the place in the episodes. Then learning on is to the bit,
    where the world is one of the library's native simulators and the labeller one that answers at once; in other worlds it
    begins new episodes. True rewards are not stored; a follower, a net or a labeller of one's own has to be given again, as
    ``load(path, follower, env, labeller, net, checkpoint)``: a labeller that goes on with a preference file brings its pairs,
    else the file's are taken, and ``checkpoint`` is the config's.

    Attributes:
        model: the reward model.
        buffer: labelled pairs.
        pending: open queries, by number.
        asked: queries so far.
        followers: all that are trained, by role.

    Raises:
        ValueError: no environment or follower that can be used, a config of another kind, a labeller that is none.
        TimeoutError: in ``learn``, a labeller that has answered nothing within ``config.patience`` seconds.
        RewardExplodedError: in ``learn``, a reward model whose output explodes; the leader, and ``config.checkpoint`` if that is
            set, hold its last good state.
    """

    method_class: ClassVar[type[Any]] = PreferenceMethod
    given = ("follower", "env", "labeller", "net", "checkpoint")

    def __init__(
        self,
        env: EnvSpec | Copies,
        follower: FollowerSpec,
        config: PreferenceConfig | None = None,
        labeller: Labeller | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(self.method_class(env, follower, config, labeller, env_kwargs), seed)

    @property
    def best_response(self) -> RecordedFollower:
        """What is paid r_x."""
        return self.state.followers["best_response"]  # type: ignore[no-any-return]

    @property
    def observed(self) -> RecordedFollower:
        """The follower whose segments are compared."""
        return self.state.followers[self.method.observed]  # type: ignore[no-any-return]

    @property
    def follower(self) -> SB3Follower:
        """The trained follower; ``follower.save(path)`` writes a plain SB3 model."""
        return self.best_response.follower

    def get_env(self) -> VecEnv:
        """The follower's parallel environments, for SB3's callbacks."""
        return self.follower.venv

    def true_returns(self) -> NDArray[np.float64]:
        """Undiscounted true returns of ``evaluation_episodes`` episodes of the follower that ``evaluate`` judges, ``[n]``."""
        return self.method.true_returns(self.state)  # type: ignore[no-any-return]

    def evaluate(self) -> PreferenceEvaluation:
        """The record of the learned reward; what a fresh follower's training and the episodes cost is not counted."""
        return super().evaluate()  # type: ignore[no-any-return]

    @classmethod
    def _arguments(cls, header: dict[str, Any], named: dict[str, Any], path: str | Path) -> dict[str, Any]:
        arguments = super()._arguments(header, named, path)
        net, labeller, checkpoint = (named.get(name) for name in ("net", "labeller", "checkpoint"))
        own = arguments.pop("own_net")
        require(own == (net is not None), "net", "the net of the config, if it had one", repr(net))
        config = replace(arguments["config"], net=net, checkpoint=checkpoint)
        return dict(labeller=labeller, **(arguments | {"config": config}))  # a file that names a labeller is refused
