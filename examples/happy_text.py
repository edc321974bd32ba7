"""Teach a small language model to write messages that are liked, from comparisons; takes a minute on one core."""

import gymnasium as gym

from bilevel_gym.agents import PreferenceConfig, PreferencePBRL
from bilevel_gym.agents.preferences.fragmenters import WholeEpisodes
from bilevel_gym.agents.preferences.training import FitConfig
from bilevel_gym.agents.text.language_model import load_word_model
from bilevel_gym.agents.text.policy import writer
from bilevel_gym.agents.text.quality import Quality, assess, text_env, write
from bilevel_gym.agents.text.reward_net import WordsReward

WORLD = "bilevel_gym/HappyText-v0"
CONFIG = PreferenceConfig(
    labels=300,
    first_labels=150,
    first_steps=4096,
    follower_plays_first=True,  # the first comparisons are of the pretrained model's messages
    length=24,
    n_envs=32,
    follower_steps=1024,
    epochs=3,
    first_epochs=40,
    ensemble=1,
    net=WordsReward,
    fit=FitConfig(learning_rate=3e-3, weight_decay=0.1),
    fragmenter=WholeEpisodes(),  # whole messages are compared
    max_pending=300,
    device="cpu",
)


def main(steps: int = 40_000, config: PreferenceConfig = CONFIG) -> tuple[Quality, Quality]:
    """Print some messages before and after training, with their scores."""
    leader = PreferencePBRL(WORLD, writer(kl=0.6), config=config)  # labels come from the sentiment rule
    env, pretrained, found = text_env(gym.make(WORLD)), load_word_model(), []
    for when in ("before", "after"):
        policy = leader.best_response.follower.policy
        written = write(lambda obs, policy=policy: policy.predict(obs)[0], env, 200, seed=1)  # type: ignore[misc]
        found.append(assess(written, pretrained))
        print(f"\n{when}: {found[-1]}", *written.messages[:8], sep="\n  ")
        if when == "before":
            leader.learn(steps, progress_bar=True)
    return found[0], found[1]


if __name__ == "__main__":
    main()
