"""Gymnasium's environments with a leader, made and registered with ``bilevel_gym.wrappers``."""
