"""Ground shared by leaders and baselines."""
