"""Train a leader with your own SB3 follower, save it, and load it again."""

from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import PBRL


def follower(venv: VecEnv) -> BaseAlgorithm:
    """Any SB3 model on the environment that it receives; its gamma must equal the environment's."""
    return A2C(
        "MlpPolicy",
        venv,
        gamma=0.9,
        n_steps=8,
        learning_rate=0.03,
        ent_coef=0.05,
        policy_kwargs={"net_arch": []},
        device="cpu",
    )


if __name__ == "__main__":
    leader = PBRL("bilevel_gym/StackelbergGame-v0", follower, env_kwargs={"n_states": 20})
    leader.learn(total_timesteps=300_000, progress_bar=True)
    print(leader.evaluate())  # the leader's return at the follower's best response, the follower's regret, the steps
    leader.save("leader.zip")
    leader = PBRL.load("leader.zip", follower=follower)  # a callable is never stored
