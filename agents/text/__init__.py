"""Language models as followers in text environments such as ``HappyText-v0``. Each file can be used on its own.

language_model  the interface, and the compact model in the package, pretrained on messages from the project's own grammar
pretrain        pretrains that model: ``python -m bilevel_gym.agents.text.pretrain``
huggingface     wraps any causal language model of the ``transformers`` library (extra ``transformers``)
policy          a Stable-Baselines3 policy initialised as a language model, a KL penalty, and a follower that uses both
reward_net      a network over words in context, for reward models
quality         measures of texts: sentiment, likelihood under the pretrained model, diversity
"""
