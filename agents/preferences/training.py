r"""Fitting a reward model to labelled pairs, by the Bradley-Terry model (arXiv 2402.06886, 6.2; Christiano et al. 2017, eq. 1).

    R_x(d)    = sum_t r_x(s_t, a_t)                            of a segment d; steps after an episode's end count as 0
    P(d1 > d2) = sigmoid( R_x(d1) - R_x(d2) )
    loss      = - [ mu log P(d1 > d2) + (1 - mu) log P(d2 > d1) ],      mu = 1, 1/2, 0 for left, equal, right

For a labeller who answers at random with probability e, use ``P' = (1 - e) P + e/2``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ...envs.mdp.checks import check_number, check_size, plain_fields, require
from .labels import Preference, PreferenceBuffer
from .reward_model import NUMBERS, RewardModel

BOUND = 1e6
"""Largest learned return of a segment; beyond it the model has exploded."""


class RewardExplodedError(RuntimeError):
    """The reward model's output is not finite or far too large; the model has been reset to its last good state."""


@dataclass(frozen=True)
class Fit:
    """How well a reward model explains labelled pairs: means over members and pairs, without dropout.

    Attributes:
        cross_entropy: the loss, in nats.
        accuracy: share of the pairs labelled left or right in which the preferred one has the larger return; NaN without any.
    """

    cross_entropy: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Options for fitting a reward model.

    Attributes:
        learning_rate: learning rate of Adam.
        weight_decay: decoupled weight decay.
        batch_size: number of pairs per step.
        error: assumed share of random answers (see the module's docstring).
        assessed: number of pairs to assess a fit on, evenly spaced; None takes all.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 32
    error: float = 0.0
    assessed: int | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_number(self.learning_rate, "learning_rate", low=0.0, open_low=True)
        check_number(self.weight_decay, "weight_decay", low=0.0)
        check_size(self.batch_size, "batch_size")
        check_number(self.error, "error", low=0.0, high=1.0, open_high=True)
        if self.assessed is not None:
            check_size(self.assessed, "assessed")


def cross_entropy(R_left: Tensor, R_right: Tensor, mu: Tensor, error: float = 0.0) -> Tensor:
    """Return the loss of each pair, ``[..., B]``, differentiable in the returns.

    Args:
        R_left: returns of the left segments, ``[..., B]``.
        R_right: returns of the right segments, ``[..., B]``.
        mu: share of the preference for the left segment, ``[B]``.
        error: assumed share of random answers, in [0, 1).

    Raises:
        ValueError: ``error`` is outside [0, 1).
    """
    logit = R_left - R_right
    mu = mu.to(logit.dtype).expand_as(logit)
    if check_number(error, "error", low=0.0, high=1.0, open_high=True) == 0.0:
        return binary_cross_entropy_with_logits(logit, mu, reduction="none")
    random = torch.log(torch.full_like(logit, 0.5 * error))
    sure = torch.log1p(torch.full_like(logit, -error))
    left, right = (torch.logaddexp(sure + logsigmoid(sign * logit), random) for sign in (1.0, -1.0))
    return -(mu * left + (1.0 - mu) * right)


def pair_losses(model: RewardModel, pairs: Sequence[Preference], error: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return each member's Bradley-Terry loss of B labelled pairs and the margins ``R_left - R_right``, both ``[M, B]``."""
    R_left, R_right = (model.returns([getattr(p.pair, side) for p in pairs]) for side in ("left", "right"))
    return cross_entropy(R_left, R_right, model.tensor(np.array([p.mu for p in pairs])), error), R_left - R_right


def _require_tame(values: Tensor) -> None:
    if not bool((values.detach().abs() <= BOUND).all()):  # NaN fails this too
        raise RewardExplodedError(
            f"reward model: expected returns of segments and slopes within {BOUND:g}, got a larger or undefined one; the "
            "last good state is kept; a smaller learning_rate or a larger weight_decay may help"
        )


@dataclass(init=False, eq=False)
class RewardTrainer:
    """A reward model with its optimiser.

    Args:
        model: the model to fit.
        config: options of the fit.
        seed: seed of the order of pairs.
    """

    model: RewardModel
    optimizer: torch.optim.Optimizer
    rng: np.random.Generator
    config: FitConfig = field(metadata={"kept": False})

    def __init__(self, model: RewardModel, config: FitConfig, seed: int = 0) -> None:
        self.model, self.config, self.rng = model, config, np.random.default_rng(seed)
        rate, decay = config.learning_rate, config.weight_decay
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)

    def fit(self, buffer: PreferenceBuffer, epochs: int, further: Callable[[], Tensor] | None = None) -> Fit:
        """Train on all pairs ``epochs`` times.

        Args:
            buffer: labelled pairs.
            epochs: number of passes over the pairs.
            further: a function that returns a further term of every step's loss, e.g. a penalty. Default: None.

        Raises:
            ValueError: the buffer is empty.
            RewardExplodedError: returns are not finite or beyond ``BOUND``; model and optimiser are restored.
        """
        parts: list[Any] = [self.model, self.optimizer]
        good = copy.deepcopy([part.state_dict() for part in parts])
        try:
            self.model.train()
            for _ in range(check_size(epochs, "epochs")):
                for batch in buffer.batches(self.config.batch_size, self.rng):
                    losses, margins = pair_losses(self.model, batch, self.config.error)
                    _require_tame(margins)
                    loss = losses.mean(-1).sum()  # members are independent
                    if further is not None:
                        loss = loss + further()
                    _require_tame(loss)
                    self.optimizer.zero_grad()
                    loss.backward()
                    slopes = [p.grad.abs().max() for p in self.model.parameters() if p.grad is not None]
                    _require_tame(torch.stack(slopes))
                    self.optimizer.step()
            return self.assess(buffer)
        except RewardExplodedError:
            for part, held in zip(parts, good, strict=True):
                part.load_state_dict(held)
            self.model.eval()
            raise

    @torch.no_grad()
    def assess(self, buffer: PreferenceBuffer) -> Fit:
        """Measure how well the model, without dropout, explains all pairs, or ``config.assessed`` of them.

        Raises:
            ValueError: the buffer is empty.
            RewardExplodedError: see :meth:`fit`; the model does not change.
        """
        self.model.eval()
        losses: list[float] = []
        hits: list[float] = []
        require(len(buffer) > 0, "buffer", "at least one labelled pair", "none")
        most = min(len(buffer), self.config.assessed or len(buffer))
        chosen = np.linspace(0, len(buffer) - 1, most).astype(int).tolist()
        at_once = max(self.config.batch_size, min(256, NUMBERS // self.model.numbers(buffer[0].pair.left.observations)))
        for batch in ([buffer[j] for j in chosen[i : i + at_once]] for i in range(0, most, at_once)):
            loss, margins = pair_losses(self.model, batch, self.config.error)
            _require_tame(margins)
            losses += loss.mean(0).tolist()
            rows = zip(batch, margins.mean(0).tolist(), strict=True)
            hits += [float((margin > 0) == (p.mu > 0.5)) for p, margin in rows if p.mu != 0.5]
        return Fit(float(np.mean(losses)), float(np.mean(hits)) if hits else float("nan"))
