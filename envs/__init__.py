"""Environments in which a leader chooses a parameter of the follower's problem: the registration table."""

from gymnasium.envs.registration import register

# id, module of this package, class (<class>Env is the environment, <class>VectorEnv the natively vectorised one)
_TABLE = (
    ("TwoState-v0", "two_state", "TwoState"),
    ("StackelbergGame-v0", "stackelberg_game", "StackelbergGame"),
)

for _id, _module, _name in _TABLE:
    register(
        id=f"bilevel_gym/{_id}",
        entry_point=f"bilevel_gym.envs.{_module}:{_name}Env",
        vector_entry_point=f"bilevel_gym.envs.{_module}:{_name}VectorEnv",
        max_episode_steps=100,
    )
