"""Learned followers: their environments, and the lower levels that train and evaluate them."""
