"""Learn to swing up a pendulum from 200 comparisons, and train a new agent on the learned reward to judge it.

python examples/preferences_pendulum.py [--quick]
"""

import sys

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import PreferenceConfig, PreferencePBRL, TrueReturnLabeller, ValuePenalty
from bilevel_gym.agents.preferences.training import FitConfig

QUICK = "--quick" in sys.argv[1:]
STEPS = 6_000 if QUICK else 124_928
GAMMA = 0.98  # a swing-up takes some 50 steps


def falling(progress_remaining: float) -> float:
    """The falling learning rate."""
    return 2e-3 * progress_remaining + 1e-5


def follower(venv: VecEnv) -> PPO:
    """PPO with state-dependent exploration, much as rl-baselines3-zoo tuned it for Pendulum."""
    return PPO("MlpPolicy", venv, falling, n_steps=128, batch_size=256, gamma=GAMMA, use_sde=True, sde_sample_freq=4)


def main() -> None:
    """Learn the reward, save the leader, and judge the reward."""
    config = PreferenceConfig(
        labels=20 if QUICK else 200,
        first_labels=10 if QUICK else 40,
        length=5,
        n_envs=16,
        follower_steps=2048,
        first_epochs=60,
        gamma=GAMMA,
        fit=FitConfig(learning_rate=2e-3, batch_size=64),
        evaluation_steps=STEPS,  # of the fresh agent
        evaluation_followers=1,
        evaluation_episodes=5 if QUICK else 100,
        device="cpu",
    )
    leader = PreferencePBRL(
        "Pendulum-v1", follower, penalty=ValuePenalty(lam=10.0), config=config, labeller=TrueReturnLabeller(), seed=0
    )
    leader.learn(STEPS, progress_bar=not QUICK)
    path = leader.save("runs/pendulum.zip")
    record = leader.evaluate()
    print(
        f"{record.labels} labels, {record.steps:,} steps; the reward orders {record.accuracy:.0%} of the pairs rightly"
    )
    print(
        f"a fresh agent on it: true return {record.true_return:.0f} +- {record.true_return_stderr:.0f}; saved in {path}"
    )


if __name__ == "__main__":
    main()
