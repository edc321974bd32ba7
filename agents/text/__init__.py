"""Language models as followers, in worlds of text such as ``HappyText-v0``. Its parts stand alone, one file each.

language_model  the interface, and the compact model that the package ships, pretrained on the project's own messages
pretrain        makes that model: ``python -m bilevel_gym.agents.text.pretrain``
huggingface     any causal language model of the ``transformers`` library as one (extra ``transformers``)
policy          a Stable-Baselines3 policy that starts as a language model, a reward that keeps it near that, a follower of both
reward_net      a net over words in their context, for reward models
quality         what texts are worth: sentiment, likelihood under the pretrained model, variety
"""
