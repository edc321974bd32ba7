r"""Models with a sparse P, and linear solves with I - gamma P_pi that never form a dense matrix.

P is one scipy CSR matrix ``[S * A, S]`` whose row ``s * A + a`` is P(.|s,a). For a policy, P_pi is assembled once (a product of
two sparse matrices), and ``(I - gamma P_pi) V = b`` and its transpose are solved by BiCGSTAB. Residuals are recomputed, never
taken from the recursion; where BiCGSTAB stagnates, plain sweeps

    V <- V + e,   e <- gamma P_pi e              e the residual b - (I - gamma P_pi) V

take over, which shrink ``max |e|`` (``sum |e|`` for the transpose) by gamma each. The error is at most the residual over
1 - gamma, in the same norm.

Derivatives: with ``V = (I - gamma P_pi)^{-1} b`` and g the gradient of a scalar in V, one transposed solve

    y = (I - gamma P_pi)^{-T} g,     d/db = y,     d/dpi(a|s) = gamma y(s) sum_{s'} P(s'|s,a) V(s')

and the same with the solves exchanged for the transpose. First derivatives only; P itself is held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse
from scipy.sparse.linalg import LinearOperator, bicgstab
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import DISTRIBUTION_ATOL, require
from .tabular import Model, TabularMDP

Floats = NDArray[np.float64]

LINEAR_TOLERANCE = 1e-14
"""Residual of a linear solve per unit of ``|b| / (1 - gamma)``, the largest that ``|V|`` can be: 50 roundings of V."""

LARGEST_VALUE = 1e6
"""Of ``1 / (1 - gamma)`` no more than this counts in a linear solve's tolerance: episodes that end have smaller values."""

SWEEPS = 10
"""Plain sweeps between two looks at the residual."""


@dataclass(frozen=True, eq=False)
class SparseMDP(TabularMDP):
    """A finite discounted MDP with sparse transitions; not batched.

    It can replace a ``TabularMDP`` in exact leaders, penalties and oracles, which use P through ``policy_value``, ``visitation``,
    ``action_value`` and ``solve_soft`` only. Simulators and sampled returns need a dense P.

    Attributes:
        P: transition probabilities ``P(s'|s,a)``, a scipy sparse matrix ``[S * A, S]``, row ``s * A + a``; stored as CSR.
        r: rewards, ``[S, A]``.
        rho: start distribution, ``[S]``.

    The other fields are those of ``TabularMDP``.

    Raises:
        ValueError: in the same cases as for ``TabularMDP``; also if P is not a sparse matrix, or a field has batch axes.
    """

    P: csr_array
    sparse: ClassVar[bool] = True

    def _check_transitions(self) -> None:
        require(issparse(self.P), "P", "a scipy sparse matrix", type(self.P).__name__)
        for name, axes in (("r", 2), ("rho", 1), ("terminal", 1), ("mask", 2)):
            field = getattr(self, name)
            expected = "[S, A]" if axes == 2 else "[S]"
            fits = field is None or field.ndim == axes
            require(fits, name, f"shape {expected}, without batch axes", f"shape {tuple(np.shape(field))}")
        S, A = self.n_states, self.n_actions
        require(self.P.shape == (S * A, S), "P", f"shape ({S * A}, {S}), as r has", f"shape {self.P.shape}")
        P = csr_array(self.P, dtype=np.float64)
        require(bool(np.isfinite(P.data).all()), "P", "finite numbers", "NaN or infinity")
        low = P.data.min(initial=0.0)
        require(low >= 0.0, "P", "probabilities >= 0", f"{low:.6g}")
        total = P.sum(1)
        row = int(np.abs(total - 1.0).argmax())
        fits = abs(total[row] - 1.0) <= DISTRIBUTION_ATOL
        require(fits, "P", "rows that sum to 1", f"a sum of {total[row]:.9g} in row {row}")
        object.__setattr__(self, "P", P)

    def detach(self: Model) -> Model:
        return replace(self, r=self.r.detach(), rho=self.rho.detach(), validate=False)

    def dense(self) -> TabularMDP:
        """Return the same model with a dense P, a tensor ``[S, A, S]``, if it is small."""
        P = torch.from_numpy(self.P.toarray()).view(self.n_states, self.n_actions, self.n_states)
        flags = (self.terminal, self.mask, self.terminal_entropy)
        return TabularMDP(P, self.r, self.rho, self.gamma, *flags, validate=False)

    @property
    def dense_P(self) -> Tensor:
        raise NotImplementedError("a dense P is needed here: SparseMDP.dense() makes one of a small model")

    def check_policy(self, pi: Tensor) -> None:
        require(pi.shape == self.r.shape, "pi", f"shape {tuple(self.r.shape)}", f"shape {tuple(pi.shape)}")

    def expected_value(self, V: Tensor) -> Tensor:
        answer: Tensor = _Expect.apply(V, self)  # type: ignore[no-untyped-call]
        return answer

    def solve(self, pi: Tensor, b: Tensor, transposed: bool = False, guess: Tensor | None = None) -> Tensor:
        answer: Tensor = _Solve.apply(pi, b, self, transposed, guess)  # type: ignore[no-untyped-call]
        return answer

    def newton_step(self, pi: Tensor, b: Tensor, target: float) -> tuple[Tensor, int]:
        resolvent = Resolvent(self, pi)
        return torch.from_numpy(resolvent.solve(b.numpy(), target)), resolvent.products


class Resolvent:
    """The matrix I - gamma P_pi, and a solver of its linear systems.

    Args:
        mdp: the model.
        pi: the policy, ``[S, A]``.

    Attributes:
        products: number of matrix-vector products so far.
    """

    def __init__(self, mdp: SparseMDP, pi: Tensor) -> None:
        S, A = mdp.n_states, mdp.n_actions
        weights = mdp.gamma * pi.detach()
        if mdp.terminal is not None:
            weights = weights * (~mdp.terminal).unsqueeze(-1)
        kind = mdp.P.indices.dtype
        rows = (weights.reshape(-1).numpy(), np.arange(S * A, dtype=kind), np.arange(0, S * A + 1, A, dtype=kind))
        self.K = csr_array(rows, shape=(S, S * A)) @ mdp.P
        self.gamma = mdp.gamma
        self.products = 0

    def solve(self, b: Floats, target: float, transposed: bool = False, guess: Floats | None = None) -> Floats:
        """Return x with ``max |b - (I - gamma P_pi) x| <= target``; for the transpose, with ``sum |...| <= target``.

        Args:
            b: right-hand side, ``[S]``.
            target: the residual to reach; if rounding prevents it, the solver stops when sweeps no longer help.
            transposed: whether to solve with ``(I - gamma P_pi)^T``.
            guess: initial x, ``[S]``. Default: 0.
        """
        K = self.K.T if transposed else self.K

        def product(v: Floats) -> Floats:
            self.products += 1
            return K @ v  # type: ignore[no-any-return]

        def size(v: Floats) -> float:
            return float(np.abs(v).sum() if transposed else np.abs(v).max())

        operator = LinearOperator(K.shape, matvec=lambda v: v - product(v), dtype=np.float64)
        x = np.zeros_like(b) if guess is None else guess.copy()
        e = b.copy() if guess is None else b - x + product(x)
        krylov = True
        while size(e) > target:
            if krylov:
                ratio = min(0.1, max(0.5 * target / size(e), 1e-12))
                # no more products than sweeps would need for the same
                most = 10 + int(0.5 * math.log(ratio) / math.log(max(self.gamma, 0.5)))
                step, _ = bicgstab(operator, e, rtol=ratio, atol=0.0, maxiter=most)
                left = e - step + product(step)
                krylov = bool(np.linalg.norm(left) < 0.5 * np.linalg.norm(e))
                if krylov:
                    x += step
                    e = left
            else:
                before = size(e)
                for _ in range(SWEEPS):
                    x += e
                    e = product(e)
                e = b - x + product(x)
                if not size(e) < before:
                    break
        return x


class _Solve(torch.autograd.Function):
    """(I - gamma P_pi)^{-1} b, or with the transpose; see the module."""

    @staticmethod
    def forward(ctx: Any, pi: Tensor, b: Tensor, mdp: SparseMDP, transposed: bool, guess: Tensor | None) -> Tensor:
        ctx.resolvent, ctx.mdp, ctx.transposed = Resolvent(mdp, pi), mdp, transposed
        start = None if guess is None else guess.detach().numpy()
        ctx.answer = _solve(ctx.resolvent, b.detach().contiguous().numpy(), transposed, start)
        return torch.from_numpy(ctx.answer)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mdp: SparseMDP = ctx.mdp
        y = _solve(ctx.resolvent, gradient.contiguous().numpy(), not ctx.transposed, None)
        in_pi = None
        if ctx.needs_input_grad[0]:
            left, right = (ctx.answer, y) if ctx.transposed else (y, ctx.answer)
            left = left if mdp.terminal is None else left * (~mdp.terminal).numpy()
            following = (mdp.P @ right).reshape(mdp.n_states, mdp.n_actions)
            in_pi = torch.from_numpy(mdp.gamma * left[:, None] * following)
        return in_pi, torch.from_numpy(y), None, None, None


def _solve(resolvent: Resolvent, b: Floats, transposed: bool, guess: Floats | None) -> Floats:
    scale = float(np.abs(b).sum() if transposed else np.abs(b).max())
    largest = min(1.0 / (1.0 - resolvent.gamma), LARGEST_VALUE)
    return resolvent.solve(b, LINEAR_TOLERANCE * scale * largest, transposed, guess)


class _Expect(torch.autograd.Function):
    """sum_{s'} P(s'|s,a) V(s')."""

    @staticmethod
    def forward(ctx: Any, V: Tensor, mdp: SparseMDP) -> Tensor:
        ctx.P = mdp.P
        return torch.from_numpy(mdp.P @ V.detach().contiguous().numpy()).view(mdp.n_states, mdp.n_actions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.from_numpy(ctx.P.T @ gradient.contiguous().view(-1).numpy()), None
