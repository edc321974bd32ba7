"""All that traces take from the package, and how they read its leaders: what has to follow when a name moves."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import bilevel_gym  # noqa: F401  registers the environments
from bilevel_gym.agents import (
    CMAES,
    DRLHF,
    HPGD,
    PBRL,
    BellmanPenalty,
    CMAESConfig,
    Geometric,
    HPGDConfig,
    Hypergradient,
    HypergradientConfig,
    IndependentPolicyGradient,
    KnownModel,
    Linear,
    MetaGradient,
    MirrorDescent,
    MonteCarlo,
    NikaidoIsodaPenalty,
    OptunaSearch,
    PBRLConfig,
    PolicyGradient,
    PreferenceConfig,
    PreferencePBRL,
    ResponsePool,
    Rollouts,
    SingleLoop,
    SingleLoopConfig,
    SoBiRL,
    SoBiRLConfig,
    SoftPolicyIteration,
    Sweep,
    TabularCMAES,
    TabularPBRL,
    TabularPBRLConfig,
    TrueReturnLabeller,
    TrueReward,
    ValuePenalty,
    ZeroOrder,
    robustness,
)
from bilevel_gym.agents.baselines.cma_es import TabularCMAESConfig
from bilevel_gym.agents.baselines.independent_policy_gradient import IndependentPolicyGradientConfig
from bilevel_gym.agents.baselines.meta_gradient import MetaGradientConfig
from bilevel_gym.agents.baselines.zero_order import ZeroOrderConfig
from bilevel_gym.agents.held_policies import Direct, Softmax, Solved
from bilevel_gym.agents.leaders.preference_pbrl import Tracked
from bilevel_gym.agents.leaders.single_loop import (
    FiniteDifferences,
    FiniteDifferencesConfig,
    NestedLoopConfig,
    PartialSGD,
)
from bilevel_gym.agents.preferences.fragmenters import ActiveFragmenter, WholeEpisodes
from bilevel_gym.agents.preferences.planner import Planner
from bilevel_gym.agents.preferences.training import FitConfig
from bilevel_gym.agents.schedules import Quench
from bilevel_gym.agents.text.policy import writer
from bilevel_gym.agents.text.reward_net import WordsReward
from bilevel_gym.envs import incentive_design_v0
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, SparseMDP, TabularMDP
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.wrappers import LinearReward, ShapedReward

__all__ = [
    "CMAES",
    "DRLHF",
    "HPGD",
    "PBRL",
    "ActiveFragmenter",
    "ArrayProblem",
    "BellmanPenalty",
    "CMAESConfig",
    "Direct",
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
    "LeaderSet",
    "Linear",
    "LinearReward",
    "MetaGradient",
    "MetaGradientConfig",
    "MirrorDescent",
    "MonteCarlo",
    "NestedLoopConfig",
    "NikaidoIsodaPenalty",
    "OptunaSearch",
    "PBRLConfig",
    "PartialSGD",
    "Planner",
    "PolicyGradient",
    "PreferenceConfig",
    "PreferencePBRL",
    "Quench",
    "ResponsePool",
    "Rollouts",
    "ShapedReward",
    "SingleLoop",
    "SingleLoopConfig",
    "SoBiRL",
    "SoBiRLConfig",
    "SoftPolicyIteration",
    "Softmax",
    "Solved",
    "SparseMDP",
    "Sweep",
    "TabularCMAES",
    "TabularCMAESConfig",
    "TabularEnv",
    "TabularMDP",
    "TabularPBRL",
    "TabularPBRLConfig",
    "Tracked",
    "TrueReturnLabeller",
    "TrueReward",
    "ValuePenalty",
    "WholeEpisodes",
    "WordsReward",
    "ZeroOrder",
    "ZeroOrderConfig",
    "followers_of",
    "incentive_design_v0",
    "labels_of",
    "last_x",
    "robustness",
    "variables_of",
    "writer",
]


def last_x(leader: Any) -> Any:
    """The last iterate; a reward model's weights."""
    return getattr(leader, "last_x", leader.x)


def followers_of(leader: Any) -> dict[str, Any]:
    """What has a ``model`` of SB3's, by role, and by number where there are several players; none of an exact leader."""
    found: dict[str, Any] = {}
    for role, games_of_01 in (("best_response", "best_response_"), ("penalised", "player_")):
        held = getattr(leader, role, None)
        if held is None and isinstance(getattr(leader, "followers", None), dict):
            held = {name: one for name, one in leader.followers.items() if name.startswith(games_of_01)}
        if isinstance(held, dict):
            found |= {f"{role}_{i + 1}": one for i, one in enumerate(held.values())}
        elif held is not None:
            found[role] = held
    return {name: one if hasattr(one, "model") else one.follower for name, one in found.items()}


def variables_of(model: Any) -> dict[str, Any]:
    """Tensors that SB3 keeps beside its modules, e.g. the logarithm of SAC's entropy coefficient."""
    return {name: attrgetter(name)(model) for name in model._get_torch_save_params()[1]}


def labels_of(leader: Any) -> dict[str, Any]:
    """Counts and labels of a preference learner, in order; none of other leaders."""
    if not hasattr(leader, "buffer"):
        return {}
    names = ("asked", "penalty_estimate", "penalty_share", "loss_estimate")
    return {
        "labels": [preference.label for preference in leader.buffer],
        "times": [[side.time for side in (p.pair.left, p.pair.right)] for p in leader.buffer],
        "seen": leader.buffer.seen,
        "pending": sorted(leader.pending),
        **{name: getattr(leader, name, None) for name in names},
    }
