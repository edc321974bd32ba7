"""Leaders, their penalties and followers, and baselines. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "bilevel_gym.agents":
    raise ImportError(f"import bilevel_gym.agents, not {__name__}: it would load a second copy of every class")

if TYPE_CHECKING:
    from .advice import leader_for as leader_for
    from .baselines.cma_es import CMAES as CMAES
    from .baselines.cma_es import CMAESConfig as CMAESConfig
    from .baselines.cma_es import TabularCMAES as TabularCMAES
    from .baselines.drlhf import DRLHF as DRLHF
    from .baselines.independent_policy_gradient import IndependentPolicyGradient as IndependentPolicyGradient
    from .baselines.meta_gradient import MetaGradient as MetaGradient
    from .baselines.optuna_search import OptunaSearch as OptunaSearch
    from .baselines.sweep import Sweep as Sweep
    from .baselines.true_reward import TrueReward as TrueReward
    from .baselines.zero_order import ZeroOrder as ZeroOrder
    from .callbacks import Checkpoint as Checkpoint
    from .estimators.known_model import KnownModel as KnownModel
    from .estimators.rollouts import Rollouts as Rollouts
    from .evaluation import Evaluation as Evaluation
    from .evaluation import leader_return_at_best_response as leader_return_at_best_response
    from .followers import MirrorDescent as MirrorDescent
    from .followers import PolicyGradient as PolicyGradient
    from .followers import SoftPolicyIteration as SoftPolicyIteration
    from .leader import Leader as Leader
    from .leaders.hpgd import HPGD as HPGD
    from .leaders.hpgd import HPGDConfig as HPGDConfig
    from .leaders.hypergradient import Hypergradient as Hypergradient
    from .leaders.hypergradient import HypergradientConfig as HypergradientConfig
    from .leaders.pbrl import PBRL as PBRL
    from .leaders.pbrl import PBRLConfig as PBRLConfig
    from .leaders.preference_pbrl import PreferencePBRL as PreferencePBRL
    from .leaders.response_pool import ResponsePool as ResponsePool
    from .leaders.single_loop import SingleLoop as SingleLoop
    from .leaders.single_loop import SingleLoopConfig as SingleLoopConfig
    from .leaders.sobirl import SoBiRL as SoBiRL
    from .leaders.sobirl import SoBiRLConfig as SoBiRLConfig
    from .leaders.tabular_pbrl import TabularPBRL as TabularPBRL
    from .leaders.tabular_pbrl import TabularPBRLConfig as TabularPBRLConfig
    from .learned.regret import find_regret as find_regret
    from .monte_carlo import MonteCarlo as MonteCarlo
    from .penalties import BellmanPenalty as BellmanPenalty
    from .penalties import NikaidoIsodaPenalty as NikaidoIsodaPenalty
    from .penalties import ValuePenalty as ValuePenalty
    from .preferences.config import PreferenceConfig as PreferenceConfig
    from .preferences.files import FileLabeller as FileLabeller
    from .preferences.labels import TrueReturnLabeller as TrueReturnLabeller
    from .responses import robustness as robustness
    from .schedules import Geometric as Geometric
    from .schedules import Linear as Linear

_NAMES = {
    "advice": "leader_for",
    "baselines.cma_es": "CMAES CMAESConfig TabularCMAES",
    "baselines.drlhf": "DRLHF",
    "baselines.independent_policy_gradient": "IndependentPolicyGradient",
    "baselines.meta_gradient": "MetaGradient",
    "baselines.optuna_search": "OptunaSearch",
    "baselines.sweep": "Sweep",
    "baselines.true_reward": "TrueReward",
    "baselines.zero_order": "ZeroOrder",
    "callbacks": "Checkpoint",
    "estimators.known_model": "KnownModel",
    "estimators.rollouts": "Rollouts",
    "evaluation": "Evaluation leader_return_at_best_response",
    "followers": "MirrorDescent PolicyGradient SoftPolicyIteration",
    "leader": "Leader",
    "leaders.hpgd": "HPGD HPGDConfig",
    "leaders.hypergradient": "Hypergradient HypergradientConfig",
    "leaders.pbrl": "PBRL PBRLConfig",
    "leaders.preference_pbrl": "PreferencePBRL",
    "leaders.response_pool": "ResponsePool",
    "leaders.single_loop": "SingleLoop SingleLoopConfig",
    "leaders.sobirl": "SoBiRL SoBiRLConfig",
    "leaders.tabular_pbrl": "TabularPBRL TabularPBRLConfig",
    "learned.regret": "find_regret",
    "monte_carlo": "MonteCarlo",
    "penalties": "BellmanPenalty NikaidoIsodaPenalty ValuePenalty",
    "preferences.config": "PreferenceConfig",
    "preferences.labels": "TrueReturnLabeller",
    "preferences.files": "FileLabeller",
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
