r"""The Bradley-Terry model of preferences (arXiv 2402.06886, section 6.2; Christiano et al. 2017, eq. 1).

    R_x(d)    = sum_t r_x(s_t, a_t)                            of a segment d; steps after an episode's end are worth nothing
    P(d1 > d2) = sigmoid( R_x(d1) - R_x(d2) )
    loss      = - [ mu log P(d1 > d2) + (1 - mu) log P(d2 > d1) ],      mu = 1, 1/2, 0 for left, equal, right

A labeller who errs at random in a share e of the answers is told by ``P' = (1 - e) P + e/2``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ...envs.mdp.checks import check_number


def cross_entropy(R_left: Tensor, R_right: Tensor, mu: Tensor, error: float = 0.0) -> Tensor:
    """The loss of each pair, ``[..., B]``, differentiable in the returns.

    Args:
        R_left: returns of the left segments, ``[..., B]``.
        R_right: of the right ones.
        mu: the share of the preference that goes to the left, ``[B]``.
        error: share of answers that are random, in [0, 1).

    Raises:
        ValueError: an error outside [0, 1).
    """
    logit = R_left - R_right
    mu = mu.to(logit.dtype).expand_as(logit)
    if check_number(error, "error", low=0.0, high=1.0, open_high=True) == 0.0:
        return binary_cross_entropy_with_logits(logit, mu, reduction="none")
    random = torch.log(torch.full_like(logit, 0.5 * error))
    sure = torch.log1p(torch.full_like(logit, -error))
    left, right = (torch.logaddexp(sure + logsigmoid(sign * logit), random) for sign in (1.0, -1.0))
    return -(mu * left + (1.0 - mu) * right)
