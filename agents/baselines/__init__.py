"""Baselines: the methods that the leaders are compared with."""
