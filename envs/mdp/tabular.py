r"""Finite Markov decision processes: the model, a policy's value, the soft-optimal policy.

At a given x, the follower's MDP is the tuple :math:`M_\tau(x) = (S, A, r_x, P_x, \tau h)` with start distribution rho. The
temperature tau belongs to the method, not to the model. Leading axes ``...`` are batch axes (instances, contexts).
Everything is differentiable in the model and in the policy.

**A policy's value** (Shen, Yang and Chen, arXiv 2402.06886, section 2) is one linear solve:

    V(s)   = E[ sum_t gamma^t ( r(s_t,a_t) - tau h(pi(s_t)) ) | s_0 = s ]                      (2.1)
    Q(s,a) = r(s,a) + gamma E V(s')                                                            (2.2)
    d(s)   = sum_t gamma^t Pr(s_t = s)                   sums to 1/(1-gamma) without terminal states

h is the negative entropy. Terminal states pay once: their rows of P_pi are zero.

**The soft-optimal policy** is the follower's best response:

    (T V)(s) = tau logsumexp_a( Q(s,a)/tau ),   Q = r + gamma P V,   V* = T V*,   pi* = softmax(Q*/tau)

Soft policy iteration evaluates the soft-greedy policy of V exactly, one linear solve a step; it is Newton's method on
``V - T V = 0`` and converges quadratically. At tau = 0 the maximum replaces logsumexp: policy iteration. Since
``r_pi - tau h(pi) + gamma P_pi V = T V`` for the soft-greedy pi, the step d solves

    (I - gamma P_pi) d = b,   b = T V - V,   V <- V + d

A sparse model (:mod:`.sparse`, Newton-Krylov) solves it only until ``max |b - (I - gamma P_pi) d| <= eta max |b|``. eta starts
at 0.1 and falls to a tenth after every step that does not lower the residual by 1%, at the least to 0.1 (1-gamma)^3. There it
converges from anywhere, by the argument for policy iteration: to first order in eta, ``max |V* - V^{pi_k}|`` is at most
``gamma + 4 eta/(1-gamma)^2 < 1`` times the larger of the two before it.

The residual is ``max_s |T V - V|``; since T contracts at gamma, ``max_s |V* - V| <= residual / (1 - gamma)``.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import InitVar, dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from .checks import (
    LONGEST_EPISODE,
    as_float64,
    broadcast_batch,
    check_distribution,
    check_gamma,
    check_length,
    check_size,
    check_tau,
    keep,
    require,
)

Model = TypeVar("Model", bound="TabularMDP")

LOG_FLOOR = 1e-300
"""Probabilities are floored here inside logarithms: 0 log 0 = 0, with a finite slope."""

TOLERANCE = 1e-11
"""Default residual at which soft policy iteration stops, per unit of the larger of ``max |V|`` and ``max |r|``."""

ROUNDING = 4e-15
"""The least residual, per unit of the values' size, that rounding lets a solve reach."""

LOOSEST = 0.1
"""Where eta starts, the share of the residual to which a sparse model's Newton step is solved."""

# --- models -----------------------------------------------------------------------------------------------------------


class MarkovModel:
    """Base class of MDPs and games: P ``[..., S, actions, S]``, r ``[..., S, actions]``, rho ``[..., S]`` and gamma."""

    P: Tensor
    r: Tensor
    rho: Tensor
    gamma: float
    rank: ClassVar[int] = 2
    """Axes of r without the batch's."""
    action_axes: ClassVar[str] = "A"

    def __post_init__(self, validate: bool) -> None:
        if not validate:
            return
        keep(self, "r", "rho")
        object.__setattr__(self, "gamma", check_gamma(self.gamma))
        r, rho = self.r, self.rho
        sized = r.ndim >= self.rank and min(r.shape) >= 1
        require(sized, "r", f"shape [..., S, {self.action_axes}] with sizes >= 1", f"shape {tuple(r.shape)}")
        expected = f"shape [..., {self.n_states}], as r has"
        require(rho.shape[-1:] == (self.n_states,), "rho", expected, f"shape {tuple(rho.shape)}")
        check_distribution(rho, "rho")
        self._check_flags()
        self._check_transitions()
        self.check_discount()
        try:
            _ = self.batch_shape
        except RuntimeError as error:
            raise ValueError(
                f"P: expected batch axes that broadcast with those of the other fields ({error})"
            ) from error

    def _check_flags(self) -> None:
        """Check the other fields of a model; here there are none."""

    def check_discount(self) -> None:
        """Raise ``ValueError`` if gamma is too near 1 to solve the model in double precision."""
        check_gamma(self.gamma, endless=True)

    def _check_transitions(self) -> None:
        """Check P and keep it as float64."""
        P, axes = as_float64(self.P, "P"), (*self.r.shape[-self.rank :], self.n_states)
        expected = f"shape [..., {', '.join(map(str, axes))}], as r has"
        require(P.shape[-len(axes) :] == axes, "P", expected, f"shape {tuple(P.shape)}")
        check_distribution(P, "P")
        object.__setattr__(self, "P", P)

    @property
    def n_states(self) -> int:
        """S."""
        return int(self.r.shape[-self.rank])

    @property
    def batch_shape(self) -> torch.Size:
        """The leading batch axes, broadcast over the fields."""
        n = self.rank
        return torch.broadcast_shapes(self.P.shape[: -n - 1], self.r.shape[:-n], self.rho.shape[:-1])  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class TabularMDP(MarkovModel):
    """A finite discounted MDP, or a batch of them.

    Attributes:
        P: transition probabilities ``P(s'|s,a)``, ``[..., S, A, S]``.
        r: rewards, ``[..., S, A]``.
        rho: start distribution, ``[..., S]``.
        gamma: discount factor, in [0, 1).
        terminal: states that pay their reward once and then end the episode, bool ``[..., S]``. Default: None, no such state.
        mask: True for each available action, bool ``[..., S, A]``. Default: None, all are available.
        terminal_entropy: whether the step in a terminal state earns entropy. Default: False.
        validate: whether the entries are checked; False is for models derived from a checked one. Default: True.

    Raises:
        ValueError: the shapes do not fit together, rows of P or rho are not probability distributions, gamma lies outside [0, 1),
            a reward is not finite, or a mask leaves a state without an action.
    """

    P: Tensor
    r: Tensor
    rho: Tensor
    gamma: float
    terminal: Tensor | None = None
    mask: Tensor | None = None
    terminal_entropy: bool = False
    validate: InitVar[bool] = True
    sparse: ClassVar[bool] = False

    def _check_flags(self) -> None:
        for name, shape in (("terminal", self.r.shape[-2:-1]), ("mask", self.r.shape[-2:])):
            flags = getattr(self, name)
            if flags is None:
                continue
            flags = torch.as_tensor(flags)
            require(flags.dtype == torch.bool, name, "booleans", str(flags.dtype))
            expected = f"shape [..., {tuple(shape)}]"
            require(flags.shape[-len(shape) :] == shape, name, expected, f"shape {tuple(flags.shape)}")
            object.__setattr__(self, name, flags)
        if self.mask is not None and not bool(self.mask.any(-1).all()):
            where = tuple(int(i) for i in (~self.mask.any(-1)).nonzero()[0])
            raise ValueError(f"mask: expected at least one action in every state, got none in state {where}")

    @torch.no_grad()
    def check_discount(self) -> None:
        """Raise ``ValueError`` if gamma is too near 1 to compute the uniform policy's values in double precision."""
        if self.terminal is None:
            super().check_discount()
        elif 1.0 / (1.0 - self.gamma) > LONGEST_EPISODE:
            uniform = near_greedy_policy(self, torch.zeros_like(self.r), 0.0)
            check_length(self.gamma, longest_episode(self, uniform))

    @property
    def n_actions(self) -> int:
        """A."""
        return int(self.r.shape[-1])

    @property
    def batch_shape(self) -> torch.Size:
        """The leading batch axes, broadcast over the fields."""
        flags = [f.shape[:-n] for f, n in ((self.terminal, 1), (self.mask, 2)) if f is not None]
        return torch.broadcast_shapes(super().batch_shape, *flags)  # type: ignore[no-any-return]

    def detach(self: Model) -> Model:
        """Return the same model, detached from the autograd graph."""
        return replace(self, P=self.P.detach(), r=self.r.detach(), rho=self.rho.detach(), validate=False)

    def with_reward(self: Model, r: Tensor) -> Model:
        """Return the model with another reward, ``[..., S, A]``."""
        return replace(self, r=r, validate=False)

    # What depends on how P is held; a sparse model has its own of these.

    @property
    def dense_P(self) -> Tensor:
        """P as a tensor, ``[..., S, A, S]``.

        Raises:
            NotImplementedError: the model is sparse.
        """
        return self.P

    def check_policy(self, pi: Tensor) -> None:
        """Raise ``ValueError`` if a policy's sizes differ from the model's, or its batch axes do not broadcast."""
        expected = tuple(self.r.shape[-2:])
        require(pi.shape[-2:] == expected, "pi", f"shape [..., {expected}]", f"shape {tuple(pi.shape)}")
        broadcast_batch(("P", self.P.shape[:-3]), ("r", self.r.shape[:-2]), ("pi", pi.shape[:-2]))

    def expected_value(self, V: Tensor) -> Tensor:
        """Return sum_{s'} P(s'|s,a) V(s'), ``[..., S, A]``; terminal states s are treated like all others."""
        following: Tensor
        if self.P.ndim > 3:
            following = (self.P @ V[..., None, :, None]).squeeze(-1)
        else:
            following = (V @ self.P.flatten(0, 1).mT).unflatten(-1, self.P.shape[:2])
        return following

    def solve(self, pi: Tensor, b: Tensor, transposed: bool = False, guess: Tensor | None = None) -> Tensor:
        """Solve (I - gamma P_pi) V = b, or the transposed system, for V ``[..., S]``; batch axes broadcast.

        ``guess``, ``[S]``, is the start of the iterative solve of a sparse model; a dense model ignores it.
        """
        matrix = _resolvent(self, pi)
        matrix = matrix.mT if transposed else matrix
        if b.ndim < matrix.ndim - 1:  # which linalg.solve could take for a batch of vectors
            b = b.expand(matrix.shape[:-1])
        V: Tensor = torch.linalg.solve(matrix, b.unsqueeze(-1))
        return V.squeeze(-1)

    def newton_step(self, pi: Tensor, b: Tensor, target: float) -> tuple[Tensor, int]:
        """Solve (I - gamma P_pi) d = b, exactly or, if sparse, to the residual ``target``; also return the products spent."""
        return self.solve(pi, b), 0


@dataclass(frozen=True, eq=False)
class TabularKernel:
    """The distributions of a simulator's draws at one x: ``w ~ p_x(w|s,a)``, then ``s' ~ P_x(s'|s,a,w)``.

    w is the leader's own draw, e.g. its action in a Stackelberg game; W = 1 if it draws nothing. An axis A of size one means that
    the values are the same for all follower actions. ``draw``, ``r_follower`` and ``r_leader`` may have a leading axis with one
    row for each environment.

    Attributes:
        draw: probabilities ``p_x(w|s,a)``, ``[..., S, A or 1, W]``.
        P: probabilities ``P_x(s'|s,a,w)``, ``[..., S, A, W, S]``.
        r_follower: the follower's reward, ``[..., S, A, W]``.
        r_leader: the leader's reward, ``[..., S, A, W]``, undiscounted.
    """

    draw: Tensor
    P: Tensor
    r_follower: Tensor
    r_leader: Tensor


# --- a policy's value -------------------------------------------------------------------------------------------------


def negative_entropy(pi: Tensor) -> Tensor:
    """h(p) = sum_a p_a log p_a over the last axis."""
    return (pi * pi.clamp_min(LOG_FLOOR).log()).sum(-1)


def negative_entropy_gradient(pi: Tensor) -> Tensor:
    """grad h(p) = 1 + log p, same shape as pi."""
    return 1.0 + pi.clamp_min(LOG_FLOOR).log()


def entropy_weight(mdp: TabularMDP, tau: float) -> float | Tensor:
    """Return tau; if terminal steps earn no entropy, return it for each state, ``[..., S]``, with 0 in terminal states."""
    if mdp.terminal is None or mdp.terminal_entropy or tau == 0.0:
        return tau
    return tau * (~mdp.terminal).to(mdp.r.dtype)


def going_on(mdp: TabularMDP, weights: Tensor) -> Tensor:
    """Return weights of states and actions, ``[..., S, A]``, with the rows of terminal states set to 0."""
    return weights if mdp.terminal is None else weights * (~mdp.terminal).unsqueeze(-1)


def _mix(mdp: TabularMDP, weights: Tensor) -> Tensor:
    """sum_a weights(s,a) P(s'|s,a), ``[..., S, S]``; one P for a whole batch is not copied."""
    P = mdp.dense_P
    if P.ndim > 3:
        return (weights.unsqueeze(-2) @ P).squeeze(-2)
    by_state = weights.reshape(-1, *weights.shape[-2:]).transpose(0, 1)
    return (by_state @ P).transpose(0, 1).view(*weights.shape[:-1], mdp.n_states)


def induced_transition(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """P_pi(s,s') = sum_a pi(a|s) P(s'|s,a), ``[..., S, S]``, dense; rows of terminal states are zero.

    Raises:
        ValueError: the policy's sizes differ from the model's, or batch axes do not broadcast.
        NotImplementedError: the model is sparse.
    """
    mdp.check_policy(pi)
    return _mix(mdp, going_on(mdp, pi))


def induced_reward(mdp: TabularMDP, pi: Tensor, tau: float) -> Tensor:
    """r_pi(s) - tau h(pi(s)), ``[..., S]``."""
    reward = (pi * mdp.r).sum(-1)
    return reward if tau == 0.0 else reward - entropy_weight(mdp, tau) * negative_entropy(pi)


def _resolvent(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """I - gamma P_pi, ``[..., S, S]``."""
    return torch.eye(mdp.n_states, dtype=mdp.r.dtype) + _mix(mdp, -mdp.gamma * going_on(mdp, pi))


class FactoredResolvent:
    """The LU factors of I - gamma P_pi of a dense model, for several right-hand sides, without an autograd graph."""

    @torch.no_grad()
    def __init__(self, mdp: TabularMDP, pi: Tensor) -> None:
        self._factors = torch.linalg.lu_factor(_resolvent(mdp, pi))

    def solve(self, b: Tensor) -> Tensor:
        """Solve (I - gamma P_pi) V = b for V, ``[..., S]``."""
        V: Tensor = torch.linalg.lu_solve(*self._factors, b.unsqueeze(-1))
        return V.squeeze(-1)

    def solve_adjoint(self, b: Tensor) -> Tensor:
        """Solve (I - gamma P_pi)^T d = b for d, ``[..., S]``."""
        d: Tensor = torch.linalg.lu_solve(*self._factors, b.unsqueeze(-1), adjoint=True)
        return d.squeeze(-1)


def policy_value(mdp: TabularMDP, pi: Tensor, tau: float = 0.0, guess: Tensor | None = None) -> Tensor:
    """Solve (I - gamma P_pi) V = r_pi - tau h(pi) for V, ``[..., S]`` (2.1).

    ``guess``, ``[S]``, is the start of the iterative solve of a sparse model; a dense model ignores it.

    Raises:
        ValueError: in the same cases as for :func:`induced_transition`.
    """
    mdp.check_policy(pi)
    return mdp.solve(pi, induced_reward(mdp, pi, tau), guess=guess)


@torch.no_grad()
def longest_episode(mdp: TabularMDP, pi: Tensor) -> float:
    """Return the largest expected discounted number of steps from any state, ``max (I - gamma P_pi)^{-1} 1``, or inf."""
    try:
        lengths = mdp.solve(pi, torch.ones_like(pi[..., 0]))
    except RuntimeError:  # torch's error for a singular matrix
        return math.inf
    return float(lengths.max()) if bool(torch.isfinite(lengths).all() & (lengths > 0.0).all()) else math.inf


def visitation(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """Solve (I - gamma P_pi)^T d = rho for the unnormalised discounted visitation d, ``[..., S]``.

    Raises:
        ValueError: as :func:`induced_transition`.
    """
    mdp.check_policy(pi)
    return mdp.solve(pi, mdp.rho, transposed=True)


def action_value(mdp: TabularMDP, V: Tensor) -> Tensor:
    """Return Q(s,a) = r(s,a) + gamma E V(s'), ``[..., S, A]``, without the current step's entropy (2.2)."""
    following = mdp.expected_value(V)
    if mdp.terminal is not None:
        following = following * (~mdp.terminal).unsqueeze(-1)
    return mdp.r + mdp.gamma * following


def start_value(mdp: MarkovModel, V: Tensor) -> Tensor:
    """V(rho) = sum_s rho(s) V(s), ``[...]``."""
    return (mdp.rho * V).sum(-1)


def policy_return(mdp: TabularMDP, pi: Tensor, tau: float = 0.0) -> Tensor:
    """V^pi(rho), ``[...]``."""
    return start_value(mdp, policy_value(mdp, pi, tau))


def truncated_value(mdp: TabularMDP, pi: Tensor, length: int, tau: float = 0.0) -> Tensor:
    """Return the value of ``length`` steps, ``[..., S]``: V_0 = 0, V_{k+1} = r_pi - tau h(pi) + gamma P_pi V_k."""
    P_pi, r_pi = induced_transition(mdp, pi), induced_reward(mdp, pi, tau)
    V = torch.zeros_like(r_pi)
    for _ in range(length):
        V = r_pi + mdp.gamma * (P_pi @ V.unsqueeze(-1)).squeeze(-1)
    return V


def truncated_return(mdp: TabularMDP, pi: Tensor, length: int, tau: float = 0.0) -> Tensor:
    """Return E sum_{t<length} gamma^t ( r(s_t,a_t) - tau h(pi(s_t)) ), s_0 ~ rho, ``[...]``, differentiable.

    Raises:
        ValueError: ``length`` is below 1.
    """
    return start_value(mdp, truncated_value(mdp, pi, check_size(length, "length"), tau))


def policy_return_gradient(mdp: TabularMDP, pi: Tensor, tau: float = 0.0) -> Tensor:
    """dV(rho)/dpi(a|s) = d(s) [ Q(s,a) - tau (grad h(pi(s)))_a ], ``[..., S, A]``, in closed form."""
    Q = action_value(mdp, policy_value(mdp, pi, tau))
    weight = entropy_weight(mdp, tau)
    slope = negative_entropy_gradient(pi) * (weight.unsqueeze(-1) if isinstance(weight, Tensor) else weight)
    return visitation(mdp, pi).unsqueeze(-1) * (Q - slope)


# --- the soft-optimal policy ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SoftOptimum:
    """The soft-optimal values and policy of an MDP.

    Attributes:
        V: values, ``[..., S]``.
        Q: action values at V, ``[..., S, A]``.
        pi: soft-greedy policy of Q, ``[..., S, A]``.
        residual: ``max |T V - V|`` over states and batch.
        iterations: number of linear solves.
        products: number of matrix-vector products in the iterative solves of a sparse model.
    """

    V: Tensor
    Q: Tensor
    pi: Tensor
    residual: float
    iterations: int
    products: int = 0


def _masked(mdp: TabularMDP, Q: Tensor) -> Tensor:
    return Q if mdp.mask is None else Q.masked_fill(~mdp.mask, -math.inf)


def greedy_policy(mdp: TabularMDP, Q: Tensor) -> Tensor:
    """Return the greedy policy, uniform over exactly tied actions, ``[..., S, A]``."""
    return near_greedy_policy(mdp, Q, 0.0)


def near_greedy_policy(mdp: TabularMDP, Q: Tensor, share: float) -> Tensor:
    """Return the uniform policy over actions whose Q is within ``share`` times max |Q| of the best, ``[..., S, A]``."""
    q = _masked(mdp, Q)
    slack = share * q.masked_fill(q == -math.inf, 0.0).abs().max() if share > 0.0 else 0.0
    best = (q >= q.max(-1, keepdim=True).values - slack).to(Q.dtype)
    return best / best.sum(-1, keepdim=True)


def soft_policy(mdp: TabularMDP, Q: Tensor, tau: float) -> Tensor:
    """Return softmax(Q/tau) over the available actions, ``[..., S, A]``; the greedy policy in states without entropy."""
    weight = entropy_weight(mdp, tau)
    if tau == 0.0:
        return greedy_policy(mdp, Q)
    soft = torch.softmax(_masked(mdp, Q) / tau, -1)
    return (
        soft if not isinstance(weight, Tensor) else torch.where((weight > 0).unsqueeze(-1), soft, greedy_policy(mdp, Q))
    )


def soft_maximum(mdp: TabularMDP, Q: Tensor, tau: float) -> Tensor:
    """Return (T V)(s) = tau logsumexp(Q(s,.)/tau), ``[..., S]``; the maximum of Q in states without entropy."""
    q = _masked(mdp, Q)
    if tau == 0.0:
        return q.max(-1).values
    soft = tau * torch.logsumexp(q / tau, -1)
    weight = entropy_weight(mdp, tau)
    return soft if not isinstance(weight, Tensor) else torch.where(weight > 0, soft, q.max(-1).values)


def largest_reward(mdp: TabularMDP) -> Tensor:
    """Return max |r(s,a)| over the available actions, ``[...]``; residuals are relative to it or to max |V|."""
    r = mdp.r if mdp.mask is None else mdp.r.masked_fill(~mdp.mask, 0.0)
    return r.abs().amax((-2, -1))


def soft_backup(mdp: TabularMDP, Q: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return both T V, ``[..., S]``, and the soft-greedy policy, ``[..., S, A]``."""
    q = _masked(mdp, Q)
    top = q.amax(-1, keepdim=True)
    if tau == 0.0:
        return top.squeeze(-1), greedy_policy(mdp, Q)
    share = ((q - top) / tau).exp()
    total = share.sum(-1, keepdim=True)
    backup, pi = (top + tau * total.log()).squeeze(-1), share / total
    weight = entropy_weight(mdp, tau)
    if not isinstance(weight, Tensor):
        return backup, pi
    soft = weight > 0
    return torch.where(soft, backup, top.squeeze(-1)), torch.where(soft.unsqueeze(-1), pi, greedy_policy(mdp, Q))


@torch.no_grad()
def solve_soft(
    mdp: TabularMDP, tau: float, V: Tensor | None = None, tol: float = TOLERANCE, max_iterations: int = 200
) -> SoftOptimum:
    """Solve an MDP by soft policy iteration, which converges quadratically: one to six linear solves from a near start.

    Args:
        mdp: the model, batched or not.
        tau: temperature, at least 0.
        V: initial values, ``[..., S]``, e.g. the optimum at a nearby x. Default: 0.
        tol: residual at which to stop, relative to the larger of ``max |V|`` and ``max |r|`` in each instance of a batch.
        max_iterations: maximum number of linear solves.

    Warns:
        RuntimeWarning: gamma is so near 1, and the optimal policy's episodes are so long, that its values have fewer than six
            correct digits.
    """
    check_tau(tau)
    V = torch.zeros_like(mdp.r[..., 0]) if V is None else V
    # Near gamma = 1 a residual counts 1/(1-gamma) times in V; rounding bounds what can be asked of it.
    tol = max(tol * min(1.0, 1e3 * (1.0 - mdp.gamma)), ROUNDING)
    eta, least, before, products = LOOSEST, LOOSEST * (1.0 - mdp.gamma) ** 3, math.inf, 0
    largest = largest_reward(mdp)
    for iterations in range(max_iterations + 1):
        Q = action_value(mdp, V)
        backup, pi = soft_backup(mdp, Q, tau)
        step = backup - V
        residuals = step.abs().amax(-1)
        enough = tol * torch.maximum(V.abs().amax(-1), largest)
        residual = float(residuals.max())
        if iterations == max_iterations or bool((residuals <= enough).all()):
            break
        if residual > 0.99 * before:
            eta = max(0.1 * eta, least)
        before = residual
        d, spent = mdp.newton_step(pi, step, max(eta * residual, 0.5 * float(enough.min())))
        V, products = V + d, products + spent
    if 1.0 / (1.0 - mdp.gamma) > LONGEST_EPISODE and (length := longest_episode(mdp, pi)) > LONGEST_EPISODE:
        warnings.warn(
            f"gamma: at {mdp.gamma!r} = 1 - {1.0 - mdp.gamma:.3g} the best policy's episodes last {length:.3g} discounted steps; "
            f"its values have fewer than six digits (residual {residual:.3g}, error up to {residual * length:.3g})",
            RuntimeWarning,
            stacklevel=3,
        )
    return SoftOptimum(V, Q, pi, residual, iterations, products)


def value_iteration(mdp: TabularMDP, tau: float, V: Tensor, sweeps: int) -> Tensor:
    """Apply T ``sweeps`` times, which converges at rate gamma; a second implementation to test policy iteration against."""
    for _ in range(sweeps):
        V = soft_maximum(mdp, action_value(mdp, V), tau)
    return V


def attach(mdp: TabularMDP, tau: float, optimum: SoftOptimum) -> SoftOptimum:
    r"""Return the same optimum with its first derivative in the model's parameters (implicit function theorem).

    ``V*`` is re-evaluated at the held policy pi* in the differentiable model: by Danskin
    ``dV*/dx = (I - gamma P_{pi*})^{-1} d_x T(x, V*)``, which is what autograd's adjoint solve returns; then
    ``Q* = r_x + gamma P_x V*`` and ``pi* = softmax(Q*/tau)`` carry it on. First derivatives only. Needs tau > 0 for pi.
    """
    V = policy_value(mdp, optimum.pi.detach(), tau, guess=optimum.V)
    Q = action_value(mdp, V)
    return SoftOptimum(V, Q, soft_policy(mdp, Q, tau), optimum.residual, optimum.iterations, optimum.products)


def suboptimality(mdp: TabularMDP, pi: Tensor, tau: float, optimum: SoftOptimum) -> Tensor:
    """Return the follower's regret V*(rho) - V^pi(rho) >= 0, ``[...]``."""
    return start_value(mdp, optimum.V) - start_value(mdp, policy_value(mdp, pi, tau))
