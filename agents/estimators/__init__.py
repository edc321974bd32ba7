"""Estimators of x's gradient, one file a kind."""
