"""Ground floor: tabular mathematics in torch float64, batched over leading axes, differentiable in x."""

from .building import BuildingProblem
from .continuous import ContinuousProblem, GridResponse
from .grid import GridMap
from .incentive import IncentiveDesignProblem, random_incentive_design
from .linear_quadratic import (
    LinearDynamics,
    LinearOptimum,
    LinearQuadraticProblem,
    LinearResponse,
    QuadraticCost,
    random_linear_quadratic,
    steering_game,
)
from .nash import NashEquilibrium, attach_nash, matrix_game, regularised_matrix_game, solve_nash
from .problem import ArrayProblem, BilevelProblem, GameProblem, LeaderSet, Optimum, TabularProblem
from .road_network import RoadNetwork, random_city
from .sampled_return import sampled_return
from .sparse import SparseMDP
from .stack import stack_problems
from .stackelberg import StackelbergProblem, random_stackelberg
from .tabular import (
    SoftOptimum,
    TabularKernel,
    TabularMDP,
    action_value,
    attach,
    induced_reward,
    induced_transition,
    negative_entropy,
    negative_entropy_gradient,
    policy_return,
    policy_return_gradient,
    policy_value,
    soft_maximum,
    soft_policy,
    solve_soft,
    start_value,
    suboptimality,
    truncated_return,
    truncated_value,
    value_iteration,
    visitation,
)
from .tntp import read_tntp
from .toll import TollDesignProblem, Trip
from .trajectories import TabularWorld, Trajectories, game_world, kernel_world, mdp_world, sample
from .zero_sum import ZeroSumGame, best_responses, joint_return, joint_value, nikaido_isoda_gap, player_mdp

__all__ = [
    "ArrayProblem", "BilevelProblem", "BuildingProblem", "ContinuousProblem", "GameProblem", "GridMap", "GridResponse",
    "IncentiveDesignProblem", "LeaderSet",
    "LinearDynamics", "LinearOptimum", "LinearQuadraticProblem", "LinearResponse", "NashEquilibrium", "Optimum",
    "QuadraticCost", "RoadNetwork", "SoftOptimum", "SparseMDP", "StackelbergProblem", "TabularKernel", "TabularMDP",
    "TabularProblem", "TabularWorld", "TollDesignProblem", "Trajectories", "Trip", "ZeroSumGame", "action_value",
    "attach", "attach_nash", "best_responses", "game_world", "induced_reward", "induced_transition", "joint_return",
    "joint_value", "kernel_world", "matrix_game", "mdp_world", "negative_entropy", "negative_entropy_gradient",
    "nikaido_isoda_gap", "player_mdp", "policy_return", "policy_return_gradient", "policy_value", "random_city",
    "random_incentive_design", "random_linear_quadratic", "random_stackelberg", "read_tntp",
    "regularised_matrix_game", "sample", "sampled_return", "soft_maximum", "soft_policy", "solve_nash", "solve_soft",
    "stack_problems", "start_value", "steering_game", "suboptimality", "truncated_return", "truncated_value",
    "value_iteration", "visitation",
]  # fmt: skip
