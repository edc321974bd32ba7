"""Environments in which a leader chooses a parameter of the follower's problem: the registration table."""

import pettingzoo
from gymnasium.envs.registration import register

# id, module of this package, class (<class>Env is the environment, <class>VectorEnv the natively vectorised one)
_TABLE = (
    ("TwoState-v0", "two_state", "TwoState"),
    ("StackelbergGame-v0", "stackelberg_game", "StackelbergGame"),
    ("FourRooms-v0", "four_rooms", "FourRooms"),
    ("RandomMDP-v0", "random_mdp", "RandomMDP"),
    ("GoalPlacement-v0", "goal_placement", "GoalPlacement"),
    ("TollDesign-v0", "toll_design", "TollDesign"),
    ("LQStackelberg-v0", "lq_stackelberg", "LQStackelberg"),
    ("RewardGrid-v0", "reward_grid", "RewardGrid"),
)

_STEPS = {"FourRooms-v0": 500}  # max_episode_steps, where 100 are too few

for _id, _module, _name in _TABLE:
    register(
        id=f"bilevel_gym/{_id}",
        entry_point=f"bilevel_gym.envs.{_module}:{_name}Env",
        vector_entry_point=f"bilevel_gym.envs.{_module}:{_name}VectorEnv",
        max_episode_steps=_STEPS.get(_id, 100),
    )

# environments of Gymnasium's with a leader, in ``wrapped``: id, module, class, max_episode_steps
_WRAPPED = (
    ("ShapedMountainCar-v0", "shaped_mountain_car", "ShapedMountainCar", 200),
    ("ShapedCartPole-v0", "shaped_cart_pole", "ShapedCartPole", 500),
    ("DesignedPendulum-v0", "designed_pendulum", "DesignedPendulum", 200),
    ("DesignedHopper-v0", "designed_hopper", "DesignedHopper", 1000),
)

for _id, _module, _name, _limit in _WRAPPED:
    register(
        id=f"bilevel_gym/{_id}",
        entry_point=f"bilevel_gym.envs.wrapped.{_module}:{_name}Env",
        max_episode_steps=_limit,
    )

# any of them, under a leader that has decided; episodes end as the other environment's do
register(id="bilevel_gym/UnderLeader-v0", entry_point="bilevel_gym.envs.wrapped.under_leader:UnderLeaderEnv")

# worlds for learning a reward from preferences: the leader is the reward model, none is in the environment
_WORLDS = (("HappyText-v0", "happy_text", "HappyText"),)

for _id, _module, _name in _WORLDS:
    register(id=f"bilevel_gym/{_id}", entry_point=f"bilevel_gym.envs.{_module}:{_name}Env", max_episode_steps=100)

# modules of this package that hold a game of several players: the id is the module's name
_GAMES = ("incentive_design_v0",)

for _name in _GAMES:
    pettingzoo.register("parallel", f"bilevel_gym/{_name}", f"bilevel_gym.envs.{_name}:parallel_env")
