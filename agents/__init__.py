"""Agents: leaders, the penalties and oracles they stand on, and baselines. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "bilevel_gym.agents":
    raise ImportError(f"import bilevel_gym.agents, not {__name__}: second copies of its classes would be strangers")

if TYPE_CHECKING:
    from .baselines.cma_es import CMAES, CMAESConfig, TabularCMAES, TabularCMAESConfig
    from .baselines.drlhf import DRLHF
    from .baselines.independent_policy_gradient import IndependentPolicyGradient, IndependentPolicyGradientConfig
    from .baselines.meta_gradient import MetaGradient, MetaGradientConfig
    from .baselines.true_reward import TrueReward
    from .baselines.zero_order import ZeroOrder, ZeroOrderConfig
    from .common.callbacks import Checkpoint
    from .common.evaluation import Evaluation, leader_return_at_best_response
    from .common.model_card import load_follower, push_to_hub, write_model_card, write_zoo_folder
    from .common.policies import Direct, Softmax, Solved
    from .common.robustness import Response, robustness
    from .common.sb3_callbacks import LeaderEvalCallback
    from .estimators import KnownModel, MonteCarlo, Rollouts
    from .leaders.hpgd import HPGD, HPGDConfig
    from .leaders.hypergradient import Hypergradient, HypergradientConfig
    from .leaders.pbrl import PBRL, PBRLConfig
    from .leaders.preference_pbrl import PreferencePBRL, Tracked
    from .leaders.single_loop import (
        FiniteDifferences,
        FiniteDifferencesConfig,
        NestedLoopConfig,
        PartialSGD,
        SingleLoop,
        SingleLoopConfig,
    )
    from .leaders.sobirl import SoBiRL, SoBiRLConfig
    from .leaders.tabular_pbrl import TabularPBRL, TabularPBRLConfig
    from .oracles import MirrorDescent, PolicyGradient, SoftPolicyIteration
    from .penalties import BellmanPenalty, NikaidoIsodaPenalty, ValuePenalty
    from .preferences.atari import AtariCNN, atari_copies
    from .preferences.config import PreferenceConfig, PreferenceEvaluation
    from .preferences.files import PreferenceLog
    from .preferences.fragmenters import ActiveFragmenter, RandomFragmenter
    from .preferences.labels import Labeller, ProgramLabeller, TrueReturnLabeller
    from .preferences.outside import FileLabeller, LoggedLabeller
    from .preferences.planner import Planner
    from .preferences.reward_model import ConvReward, MLPReward, RewardModel
    from .preferences.training import FitConfig, RewardExplodedError
    from .preferences.worlds import Copies
    from .schedules import Constant, Geometric, Linear, Power, Quench

_HOME = {
    "PBRL": "leaders.pbrl",
    "PBRLConfig": "leaders.pbrl",
    "TabularPBRL": "leaders.tabular_pbrl",
    "TabularPBRLConfig": "leaders.tabular_pbrl",
    "Hypergradient": "leaders.hypergradient",
    "HypergradientConfig": "leaders.hypergradient",
    "HPGD": "leaders.hpgd",
    "HPGDConfig": "leaders.hpgd",
    "CMAES": "baselines.cma_es",
    "CMAESConfig": "baselines.cma_es",
    "TabularCMAES": "baselines.cma_es",
    "TabularCMAESConfig": "baselines.cma_es",
    "SoBiRL": "leaders.sobirl",
    "SoBiRLConfig": "leaders.sobirl",
    "SingleLoop": "leaders.single_loop",
    "SingleLoopConfig": "leaders.single_loop",
    "NestedLoopConfig": "leaders.single_loop",
    "PartialSGD": "leaders.single_loop",
    "FiniteDifferences": "leaders.single_loop",
    "FiniteDifferencesConfig": "leaders.single_loop",
    "IndependentPolicyGradient": "baselines.independent_policy_gradient",
    "IndependentPolicyGradientConfig": "baselines.independent_policy_gradient",
    "MetaGradient": "baselines.meta_gradient",
    "MetaGradientConfig": "baselines.meta_gradient",
    "ZeroOrder": "baselines.zero_order",
    "ZeroOrderConfig": "baselines.zero_order",
    "ValuePenalty": "penalties",
    "BellmanPenalty": "penalties",
    "NikaidoIsodaPenalty": "penalties",
    "SoftPolicyIteration": "oracles",
    "MirrorDescent": "oracles",
    "PolicyGradient": "oracles",
    "PreferencePBRL": "leaders.preference_pbrl",
    "Tracked": "leaders.preference_pbrl",
    "DRLHF": "baselines.drlhf",
    "TrueReward": "baselines.true_reward",
    "PreferenceConfig": "preferences.config",
    "PreferenceEvaluation": "preferences.config",
    "Copies": "preferences.worlds",
    "AtariCNN": "preferences.atari",
    "atari_copies": "preferences.atari",
    "FitConfig": "preferences.training",
    "RewardExplodedError": "preferences.training",
    "RewardModel": "preferences.reward_model",
    "MLPReward": "preferences.reward_model",
    "ConvReward": "preferences.reward_model",
    "RandomFragmenter": "preferences.fragmenters",
    "ActiveFragmenter": "preferences.fragmenters",
    "Labeller": "preferences.labels",
    "TrueReturnLabeller": "preferences.labels",
    "ProgramLabeller": "preferences.labels",
    "Planner": "preferences.planner",
    "FileLabeller": "preferences.outside",
    "LoggedLabeller": "preferences.outside",
    "PreferenceLog": "preferences.files",
    "MonteCarlo": "estimators",
    "Rollouts": "estimators",
    "KnownModel": "estimators",
    "Softmax": "common.policies",
    "Direct": "common.policies",
    "Solved": "common.policies",
    "Constant": "schedules",
    "Linear": "schedules",
    "Quench": "schedules",
    "Geometric": "schedules",
    "Power": "schedules",
    "Checkpoint": "common.callbacks",
    "LeaderEvalCallback": "common.sb3_callbacks",
    "load_follower": "common.model_card",
    "push_to_hub": "common.model_card",
    "write_model_card": "common.model_card",
    "write_zoo_folder": "common.model_card",
    "Response": "common.robustness",
    "robustness": "common.robustness",
    "Evaluation": "common.evaluation",
    "leader_return_at_best_response": "common.evaluation",
}

__all__ = [
    "CMAES",
    "DRLHF",
    "HPGD",
    "PBRL",
    "ActiveFragmenter",
    "AtariCNN",
    "BellmanPenalty",
    "CMAESConfig",
    "Checkpoint",
    "Constant",
    "ConvReward",
    "Copies",
    "Direct",
    "Evaluation",
    "FileLabeller",
    "FiniteDifferences",
    "FiniteDifferencesConfig",
    "FitConfig",
    "Geometric",
    "HPGDConfig",
    "Hypergradient",
    "HypergradientConfig",
    "IndependentPolicyGradient",
    "IndependentPolicyGradientConfig",
    "KnownModel",
    "Labeller",
    "LeaderEvalCallback",
    "Linear",
    "LoggedLabeller",
    "MLPReward",
    "MetaGradient",
    "MetaGradientConfig",
    "MirrorDescent",
    "MonteCarlo",
    "NestedLoopConfig",
    "NikaidoIsodaPenalty",
    "PBRLConfig",
    "PartialSGD",
    "Planner",
    "PolicyGradient",
    "Power",
    "PreferenceConfig",
    "PreferenceEvaluation",
    "PreferenceLog",
    "PreferencePBRL",
    "ProgramLabeller",
    "Quench",
    "RandomFragmenter",
    "Response",
    "RewardExplodedError",
    "RewardModel",
    "Rollouts",
    "SingleLoop",
    "SingleLoopConfig",
    "SoBiRL",
    "SoBiRLConfig",
    "SoftPolicyIteration",
    "Softmax",
    "Solved",
    "TabularCMAES",
    "TabularCMAESConfig",
    "TabularPBRL",
    "TabularPBRLConfig",
    "Tracked",
    "TrueReturnLabeller",
    "TrueReward",
    "ValuePenalty",
    "ZeroOrder",
    "ZeroOrderConfig",
    "atari_copies",
    "leader_return_at_best_response",
    "load_follower",
    "push_to_hub",
    "robustness",
    "write_model_card",
    "write_zoo_folder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
