"""Estimators of x's gradient, one per file."""
