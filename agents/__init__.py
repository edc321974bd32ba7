"""Agents: leaders, the penalties and followers they stand on, and baselines. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "bilevel_gym.agents":
    raise ImportError(f"import bilevel_gym.agents, not {__name__}: second copies of its classes would be strangers")

if TYPE_CHECKING:
    from .advice import leader_for
    from .baselines.cma_es import CMAES, CMAESConfig, TabularCMAES
    from .baselines.drlhf import DRLHF
    from .baselines.independent_policy_gradient import IndependentPolicyGradient
    from .baselines.meta_gradient import MetaGradient
    from .baselines.true_reward import TrueReward
    from .baselines.zero_order import ZeroOrder
    from .callbacks import Checkpoint, LeaderEvalCallback
    from .estimators.known_model import KnownModel
    from .estimators.rollouts import Rollouts
    from .evaluation import Evaluation, leader_return_at_best_response
    from .followers import MirrorDescent, PolicyGradient, SoftPolicyIteration
    from .leader import Leader
    from .leaders.hpgd import HPGD, HPGDConfig
    from .leaders.hypergradient import Hypergradient, HypergradientConfig
    from .leaders.pbrl import PBRL, PBRLConfig
    from .leaders.preference_pbrl import PreferencePBRL
    from .leaders.single_loop import SingleLoop, SingleLoopConfig
    from .leaders.sobirl import SoBiRL, SoBiRLConfig
    from .leaders.tabular_pbrl import TabularPBRL, TabularPBRLConfig
    from .monte_carlo import MonteCarlo
    from .penalties import BellmanPenalty, NikaidoIsodaPenalty, ValuePenalty
    from .preferences.config import PreferenceConfig
    from .preferences.files import FileLabeller
    from .preferences.labels import TrueReturnLabeller
    from .responses import robustness
    from .schedules import Geometric, Linear

_NAMES = {
    "advice": "leader_for",
    "baselines.cma_es": "CMAES CMAESConfig TabularCMAES",
    "baselines.drlhf": "DRLHF",
    "baselines.independent_policy_gradient": "IndependentPolicyGradient",
    "baselines.meta_gradient": "MetaGradient",
    "baselines.true_reward": "TrueReward",
    "baselines.zero_order": "ZeroOrder",
    "callbacks": "Checkpoint LeaderEvalCallback",
    "estimators.known_model": "KnownModel",
    "estimators.rollouts": "Rollouts",
    "evaluation": "Evaluation leader_return_at_best_response",
    "followers": "MirrorDescent PolicyGradient SoftPolicyIteration",
    "leader": "Leader",
    "leaders.hpgd": "HPGD HPGDConfig",
    "leaders.hypergradient": "Hypergradient HypergradientConfig",
    "leaders.pbrl": "PBRL PBRLConfig",
    "leaders.preference_pbrl": "PreferencePBRL",
    "leaders.single_loop": "SingleLoop SingleLoopConfig",
    "leaders.sobirl": "SoBiRL SoBiRLConfig",
    "leaders.tabular_pbrl": "TabularPBRL TabularPBRLConfig",
    "monte_carlo": "MonteCarlo",
    "penalties": "BellmanPenalty NikaidoIsodaPenalty ValuePenalty",
    "preferences.config": "PreferenceConfig",
    "preferences.files": "FileLabeller",
    "preferences.labels": "TrueReturnLabeller",
    "responses": "robustness",
    "schedules": "Geometric Linear",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
