"""Learn to balance a pole from comparisons alone: which of two segments lasted longer.

python examples/preferences_cart_pole.py [--quick]
"""

import sys

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from bilevel_gym.agents import DRLHF, PreferenceConfig, PreferencePBRL, TrueReturnLabeller, TrueReward, ValuePenalty

QUICK = "--quick" in sys.argv[1:]


def follower(venv: VecEnv) -> PPO:
    """PPO with short rollouts; any other Stable-Baselines3 algorithm also works."""
    return PPO("MlpPolicy", venv, n_steps=256, batch_size=256, n_epochs=10, learning_rate=1e-3, gamma=0.99)


def main() -> None:
    """Train the same follower in three ways: the penalty method, DRLHF (Christiano et al.), and the true reward."""
    config = PreferenceConfig(
        labels=20 if QUICK else 150,
        first_labels=10 if QUICK else 40,
        length=50,  # long enough that random play falls within it: else all segments are worth the same
        follower_steps=2048,
        evaluation_episodes=5 if QUICK else 20,
    )
    steps = 8_000 if QUICK else 60_000
    learners = {
        "PBRL": PreferencePBRL(
            "CartPole-v1",
            follower,
            penalty=ValuePenalty(lam=10.0),
            config=config,
            labeller=TrueReturnLabeller(noise=0.05),
        ),
        "DRLHF": DRLHF("CartPole-v1", follower, config=config, labeller=TrueReturnLabeller(noise=0.05)),
        "true reward": TrueReward("CartPole-v1", follower, config=config),
    }
    for name, learner in learners.items():
        record = learner.learn(steps, progress_bar=not QUICK).evaluate()
        print(
            f"{name:12} true return {record.true_return:6.1f} +- {record.true_return_stderr:.1f}, {record.labels} labels"
        )


if __name__ == "__main__":
    main()
