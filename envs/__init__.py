"""Registers the environments, in each of which a leader sets a parameter of the follower's problem."""

from typing import TYPE_CHECKING, Any

if __name__ != "bilevel_gym.envs":
    raise ImportError(f"import bilevel_gym.envs, not {__name__}: it would load a second copy of each class")

import pettingzoo
from gymnasium.envs.registration import register

if TYPE_CHECKING:
    from .check import check_leader_env

__all__ = ["check_leader_env"]

# id, module and class of the environment, max_episode_steps; environments of a problem have a `vector_env` beside the class
_OF_PROBLEMS = (
    ("TwoState-v0", "two_state:TwoStateEnv", 100),
    ("StackelbergGame-v0", "stackelberg_game:StackelbergGameEnv", 100),
    ("FourRooms-v0", "four_rooms:FourRoomsEnv", 500),
    ("RandomMDP-v0", "random_mdp:RandomMDPEnv", 100),
    ("GoalPlacement-v0", "goal_placement:GoalPlacementEnv", 100),
    ("TollDesign-v0", "toll_design:TollDesignEnv", 100),
    ("LQStackelberg-v0", "lq_stackelberg:LQStackelbergEnv", 100),
    ("SubsidisedPendulum-v0", "subsidised_pendulum:SubsidisedPendulumEnv", 100),
    ("BuildingControl-v0", "building_control:BuildingControlEnv", 100),
    ("RewardGrid-v0", "reward_grid:RewardGridEnv", 100),
)
_OTHERS = (
    # environments of Gymnasium's with a leader
    ("ShapedMountainCar-v0", "wrappers.worlds.shaped_mountain_car:ShapedMountainCarEnv", 200),
    ("ShapedCartPole-v0", "wrappers.worlds.shaped_cart_pole:ShapedCartPoleEnv", 500),
    ("DesignedPendulum-v0", "wrappers.worlds.designed_pendulum:DesignedPendulumEnv", 200),
    ("DesignedHopper-v0", "wrappers.worlds.designed_hopper:DesignedHopperEnv", 1000),
    # any of them, under a leader that has decided; episodes end as the other environment's do
    ("UnderLeader-v0", "wrappers.worlds.under_leader:UnderLeaderEnv", None),
    # a world for learning a reward from preferences: the leader is the reward model, none is in the environment
    ("HappyText-v0", "envs.happy_text:HappyTextEnv", 100),
)

# those of them that have a `vector_env` too
_SIMULATED = ("ShapedCartPole-v0", "DesignedPendulum-v0")

for _id, _entry, _steps in _OF_PROBLEMS:
    register(
        id=f"bilevel_gym/{_id}",
        entry_point=f"bilevel_gym.envs.{_entry}",
        vector_entry_point=f"bilevel_gym.envs.{_entry.partition(':')[0]}:vector_env",
        max_episode_steps=_steps,
    )
for _id, _entry, _limit in _OTHERS:
    _parallel = f"bilevel_gym.{_entry.partition(':')[0]}:vector_env" if _id in _SIMULATED else None
    register(
        id=f"bilevel_gym/{_id}",
        entry_point=f"bilevel_gym.{_entry}",
        vector_entry_point=_parallel,
        max_episode_steps=_limit,
    )

# modules of this package that hold a game of several players: the id is the module's name
for _name in ("incentive_design_v0",):
    pettingzoo.register("parallel", f"bilevel_gym/{_name}", f"bilevel_gym.envs.{_name}:parallel_env")


def __getattr__(name: str) -> Any:
    """Import ``check_leader_env`` on first use, because it imports torch."""
    if name == "check_leader_env":
        from .check import check_leader_env

        return check_leader_env
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
