"""Learned followers: the worlds they live in, and the lower levels that train and judge them."""
