"""Environments of Gymnasium's with a leader: registered uses of ``bilevel_gym.wrappers``."""
