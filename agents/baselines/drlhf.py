"""Deep reinforcement learning from human preferences (Christiano et al. 2017): the loop of PBRL without its penalty.

One follower is paid r_x and compared; r_x is fitted to the answers by the Bradley-Terry loss alone, as if the segments did not
depend on it.
"""

from __future__ import annotations

from ..preferences.method import PreferenceLeader


class DRLHF(PreferenceLeader):
    """Learn a reward from preferences, ignoring that the follower's behaviour depends on it.

    Arguments, attributes and errors are those of ``PreferencePBRL``, without the penalty.

    Example:
        >>> from stable_baselines3 import A2C
        >>> from bilevel_gym.agents import DRLHF, PreferenceConfig
        >>> config = PreferenceConfig(labels=8, first_labels=4, length=5, first_steps=64, follower_steps=64)
        >>> DRLHF("bilevel_gym/RewardGrid-v0", A2C, config=config).learn(400).evaluate().labels
        8
    """
