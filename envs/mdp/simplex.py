"""Euclidean projection of rows on the probability simplex."""

from __future__ import annotations

import torch
from torch import Tensor


def project_simplex(v: Tensor, mask: Tensor | None = None, floor: float = 0.0) -> Tensor:
    """Project the last axis of v, ``[..., A]``, on ``{p : sum p = 1, p >= floor}``; masked entries become 0.

    Sort and threshold (Held, Wolfe and Crowder, 1974): ``p_a = max(v_a - t, floor)`` with the t that makes the sum one.
    """
    allowed = torch.ones_like(v, dtype=torch.bool) if mask is None else mask.expand_as(v)
    n = allowed.sum(-1, keepdim=True).to(v.dtype)
    mass = 1.0 - floor * n
    ordered = torch.where(allowed, v - floor, -torch.inf).sort(-1, descending=True).values
    rank = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype)
    sums = torch.where(ordered.isfinite(), ordered, 0.0).cumsum(-1)
    thresholds = (sums - mass) / rank
    support = (ordered > thresholds).sum(-1, keepdim=True)
    t = thresholds.gather(-1, support - 1)
    return torch.where(allowed, (v - floor - t).clamp_min(0.0) + floor, 0.0)
