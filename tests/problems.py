"""Small random problems with every feature of a model, and the rulers that analytic gradients and rates are held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from bilevel_gym.envs.mdp import (
    ArrayProblem,
    LeaderSet,
    TabularMDP,
    TabularProblem,
    policy_return,
    random_stackelberg,
    solve_soft,
    start_value,
)

F64 = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_mdp(
    seed: int = 0,
    n_states: int = 5,
    n_actions: int = 3,
    gamma: float = 0.9,
    batch: tuple[int, ...] = (),
    terminal: bool = False,
    masked: bool = False,
    terminal_entropy: bool = False,
    scale: float = 1.0,
) -> TabularMDP:
    """A random model, rho of full support; if asked, its last state is terminal and a third of its actions are missing."""
    rng = generator(seed)
    S, A = n_states, n_actions
    P = torch.rand(*batch, S, A, S, generator=rng, dtype=F64) ** 3
    r = scale * torch.rand(*batch, S, A, generator=rng, dtype=F64)
    rho = 0.1 + torch.rand(*batch, S, generator=rng, dtype=F64)
    ends = torch.arange(S) == S - 1
    allowed = torch.rand(*batch, S, A, generator=rng, dtype=F64) < 2 / 3
    allowed[..., torch.arange(S), torch.arange(S) % A] = True
    return TabularMDP(
        P / P.sum(-1, keepdim=True),
        r,
        rho / rho.sum(-1, keepdim=True),
        gamma,
        ends if terminal else None,
        allowed if masked else None,
        terminal_entropy,
    )


def shared_dynamics(seed: int) -> TabularMDP:
    """Six rewards and ends on one map: P and rho without batch axes."""
    one, many = random_mdp(seed, n_states=4), random_mdp(seed + 50, n_states=4, batch=(2, 3), masked=True)
    ends = torch.nn.functional.one_hot(torch.arange(6) % 4, 4).bool().view(2, 3, 4)
    return TabularMDP(one.P, many.r, one.rho, one.gamma, ends, many.mask, terminal_entropy=True)


MDPS: dict[str, Callable[[int], TabularMDP]] = {
    "plain": lambda seed: random_mdp(seed),
    "terminal": lambda seed: random_mdp(seed, terminal=True),
    "terminal entropy": lambda seed: random_mdp(seed, terminal=True, terminal_entropy=True),
    "masked, terminal": lambda seed: random_mdp(seed, n_actions=4, terminal=True, masked=True),
    "batched, masked": lambda seed: random_mdp(seed, batch=(2, 3), n_states=4, masked=True, terminal=True),
    "batched, shared P": lambda seed: shared_dynamics(seed),
    "gamma 0": lambda seed: random_mdp(seed, gamma=0.0),
    "one action": lambda seed: random_mdp(seed, n_actions=1),
    "one state": lambda seed: random_mdp(seed, n_states=1),
}


def random_policy(mdp: TabularMDP, seed: int = 0, spread: float = 1.0) -> Tensor:
    """A policy of full support on the actions that exist."""
    logits = spread * torch.randn(*mdp.batch_shape, *mdp.r.shape[-2:], generator=generator(seed), dtype=F64)
    return torch.softmax(logits if mdp.mask is None else logits.masked_fill(~mdp.mask, -math.inf), -1)


def instances(mdp: TabularMDP) -> Iterator[tuple[tuple[int, ...], TabularMDP]]:
    """Each instance of a batch with its index; an unbatched model is its own only instance."""
    for index in np.ndindex(*mdp.batch_shape):
        P, r, rho = (
            t.expand(*mdp.batch_shape, *t.shape[-n:])[index] for t, n in ((mdp.P, 3), (mdp.r, 2), (mdp.rho, 1))
        )
        terminal = None if mdp.terminal is None else mdp.terminal.expand(*mdp.batch_shape, -1)[index]
        mask = None if mdp.mask is None else mdp.mask.expand(*mdp.batch_shape, -1, -1)[index]
        yield index, TabularMDP(P, r, rho, mdp.gamma, terminal, mask, mdp.terminal_entropy)


def shifted(base: TabularMDP, x: Tensor) -> TabularMDP:
    """x, ``[..., 3]``, moves rewards, transitions and start of an unbatched model, none of them linearly."""
    rng = generator(7)
    phi, psi, omega = (torch.randn(3, *t.shape, generator=rng, dtype=F64) for t in (base.r, base.P, base.rho))
    mix = [(torch.sin(x) @ f.flatten(1)).unflatten(-1, f.shape[1:]) for f in (phi, psi, omega)]
    P = torch.softmax(base.P.log() + mix[1], -1)
    rho = torch.softmax(base.rho.log() + mix[2], -1)
    return TabularMDP(
        P, base.r + mix[0], rho, base.gamma, base.terminal, base.mask, base.terminal_entropy, validate=False
    )


def shared_contexts(seed: int) -> TabularMDP:
    """Two goals on one map: only rewards and ends carry the context axis."""
    one, many = random_mdp(seed, n_states=4), random_mdp(seed + 50, n_states=4, batch=(2,))
    return TabularMDP(one.P, many.r, one.rho, one.gamma, torch.eye(4, dtype=torch.bool)[2:])


def array_problem(base: TabularMDP, seed: int, dynamics: bool, context_probs: Tensor | None = None) -> ArrayProblem:
    """x, four numbers in [-2, 2], moves both rewards and, if asked, the transitions, none of them linearly."""
    rng = generator(1000 + seed)
    phi = torch.randn(4, *base.r.shape, generator=rng, dtype=F64)
    psi = torch.randn(4, *base.P.shape, generator=rng, dtype=F64)
    own = torch.rand(base.r.shape, generator=rng, dtype=F64)

    def mix(x: Tensor, features: Tensor) -> Tensor:
        return (torch.sin(x) @ features.flatten(1)).view(features.shape[1:])

    problem = ArrayProblem(
        base,
        LeaderSet.box(4, -2.0, 2.0),
        follower_reward=lambda x: base.r + 0.5 * mix(x, phi),
        leader_reward=lambda x: own + 0.3 * mix(x + 1.0, phi) - 0.1 * x.square().sum(),
        transition=(lambda x: torch.softmax(base.P.log() + mix(x, psi), -1)) if dynamics else None,
    )
    problem.context_probs = context_probs
    return problem


PROBLEMS: dict[str, Callable[[int], TabularProblem]] = {
    "reward": lambda seed: array_problem(random_mdp(seed), seed, dynamics=False),
    "dynamics": lambda seed: array_problem(random_mdp(seed, gamma=0.7), seed, dynamics=True),
    "terminal, masked": lambda seed: array_problem(
        random_mdp(seed, n_actions=4, gamma=0.95, terminal=True, masked=True), seed, dynamics=True
    ),
    "terminal entropy": lambda seed: array_problem(
        random_mdp(seed, terminal=True, terminal_entropy=True), seed, dynamics=True
    ),
    "contexts": lambda seed: array_problem(
        random_mdp(seed, batch=(2,), n_states=4, masked=True), seed, True, torch.tensor([0.3, 0.7], dtype=F64)
    ),
    "contexts, shared P": lambda seed: array_problem(
        shared_contexts(seed), seed, False, torch.tensor([0.6, 0.4], dtype=torch.float64)
    ),
    "Stackelberg": lambda seed: random_stackelberg(4, 3, 3, gamma=0.8, sparsity=0.3, seed=seed),
}


def random_x(problem: TabularProblem, seed: int = 0) -> Tensor:
    """A point well inside X."""
    return problem.project(torch.randn(problem.leader_dim, generator=generator(2000 + seed), dtype=F64)) * 0.9


def numerical_gradient(f: Callable[[Tensor], Tensor | float], z: Tensor, h: float = 3e-4) -> Tensor:
    """Gradient of a scalar by central differences of fourth order."""
    z = z.detach().clone()
    flat, gradient = z.view(-1), torch.zeros(z.numel(), dtype=F64)
    with torch.no_grad():
        for i in range(flat.numel()):
            here = float(flat[i])
            total = 0.0
            for shift, weight in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
                flat[i] = here + shift * h
                total += weight * float(f(z))
            flat[i] = here
            gradient[i] = total / (12 * h)
    return gradient.view_as(z)


def autograd(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Gradient of a scalar by autograd."""
    z = z.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(z), z)
    return gradient


def assert_gradient(got: Tensor, numerical: Tensor) -> None:
    """Equal within 1e-6 relative, entry by entry; entries under 1e-4 of the largest count as that."""
    largest = float(numerical.abs().max())
    assert largest > 1e-4, "a vanishing gradient proves nothing"
    torch.testing.assert_close(got, numerical, rtol=1e-6, atol=1e-10 * largest)


def standard_scores(estimates: Tensor, exact: Tensor) -> Tensor:
    """How many standard errors the mean over the first axis lies from ``exact``, per coordinate."""
    error = estimates.std(0) / math.sqrt(len(estimates))
    difference = estimates.mean(0) - exact
    still = error == 0.0  # no chance enters here
    assert bool((difference[still].abs() <= 1e-12).all())
    return torch.where(still, 0.0, difference / torch.where(still, 1.0, error))


def assert_unbiased(estimates: Tensor, exact: Tensor) -> None:
    """Within four standard errors in every coordinate, and so precise that the test could have failed."""
    scores = standard_scores(estimates, exact)
    assert float(scores.abs().max()) < 4.0, scores
    precision = estimates.std(0).norm() / math.sqrt(len(estimates)) / exact.norm()
    assert float(precision) < 0.1, f"a standard error of {float(precision):.2f} of the gradient proves little"


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def slope(x: object, y: object) -> float:
    """Slope of the straight line fitted to (x, y)."""
    return float(np.polyfit(np.asarray(x, dtype=float), np.asarray(y, dtype=float), 1)[0])


def residual(mdp: TabularMDP, V: Tensor, tau: float) -> float:
    """max |T V - V| over states and batch, in numpy, state by state."""
    worst = 0.0
    for index, one in instances(mdp):
        v = V[index].numpy()
        for s in range(one.n_states):
            ends = one.terminal is not None and bool(one.terminal[s])
            exists = np.ones(one.n_actions, bool) if one.mask is None else one.mask[s].numpy()
            q = one.r[s].numpy() + (0.0 if ends else one.gamma) * (one.P[s].numpy() @ v)
            soft = tau > 0.0 and (one.terminal_entropy or not ends)
            best = tau * logsumexp(q[exists] / tau) if soft else q[exists].max()
            worst = max(worst, abs(best - v[s]))
    return worst


def true_value_penalty(mdp: TabularMDP, pi: Tensor, tau: float) -> Tensor:
    """max V(rho) - V^pi(rho), the maximum solved for here and now."""
    return start_value(mdp, solve_soft(mdp, tau, tol=1e-13).V) - policy_return(mdp, pi, tau)


def true_bellman_penalty(mdp: TabularMDP, pi: Tensor, tau: float, mu: Tensor) -> Tensor:
    """tau E_mu KL(pi || pi*), pi* solved for here and now; mu must not weigh states that earn no entropy."""
    Q = solve_soft(mdp, tau, tol=1e-13).Q
    log_star = torch.log_softmax((Q if mdp.mask is None else Q.masked_fill(~mdp.mask, -1e300)) / tau, -1)
    return tau * (mu * torch.where(pi > 0, pi * (pi.log() - log_star), 0.0).sum(-1)).sum(-1)


def live_weights(mdp: TabularMDP) -> Tensor:
    """Uniform over the states that do not end the episode."""
    live = torch.ones(mdp.n_states, dtype=F64) if mdp.terminal is None else (~mdp.terminal).to(F64)
    return live / live.sum(-1, keepdim=True)
