"""Ground floor: tabular mathematics in torch float64, batched over leading axes, differentiable in x."""

from .evaluation import (
    action_value,
    induced_reward,
    induced_transition,
    negative_entropy,
    negative_entropy_gradient,
    policy_return,
    policy_return_gradient,
    policy_value,
    start_value,
    visitation,
)
from .leader_set import LeaderSet
from .models import TabularKernel, TabularMDP
from .optimality import SoftOptimum, attach, soft_maximum, soft_policy, solve_soft, suboptimality, value_iteration
from .problem import ArrayProblem, Optimum, TabularProblem
from .stackelberg import StackelbergProblem, random_stackelberg

__all__ = [
    "ArrayProblem",
    "LeaderSet",
    "Optimum",
    "SoftOptimum",
    "StackelbergProblem",
    "TabularKernel",
    "TabularMDP",
    "TabularProblem",
    "action_value",
    "attach",
    "induced_reward",
    "induced_transition",
    "negative_entropy",
    "negative_entropy_gradient",
    "policy_return",
    "policy_return_gradient",
    "policy_value",
    "random_stackelberg",
    "soft_maximum",
    "soft_policy",
    "solve_soft",
    "start_value",
    "suboptimality",
    "value_iteration",
    "visitation",
]
