"""Policy evaluation against sums written out by hand, and its derivative against central differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bilevel_gym.envs.mdp import (
    TabularMDP,
    induced_transition,
    negative_entropy,
    policy_return,
    policy_return_gradient,
    policy_value,
    visitation,
)
from tests.problems import (
    F64,
    MDPS,
    assert_gradient,
    autograd,
    instances,
    numerical_gradient,
    random_mdp,
    random_policy,
)


def value_by_loops(mdp: TabularMDP, pi: Tensor, tau: float) -> list[float]:
    """(2.1) summed step by step in plain Python, the tail under 1e-15."""
    P, r, p = mdp.P.tolist(), mdp.r.tolist(), pi.tolist()
    S, A = mdp.n_states, mdp.n_actions
    ends = [False] * S if mdp.terminal is None else mdp.terminal.tolist()
    reward, step = [], []
    for s in range(S):
        entropy = -sum(q * math.log(q) for q in p[s] if q > 0)
        earned = tau * entropy if mdp.terminal_entropy or not ends[s] else 0.0
        reward.append(sum(p[s][a] * r[s][a] for a in range(A)) + earned)
        step.append([0.0 if ends[s] else sum(p[s][a] * P[s][a][t] for a in range(A)) for t in range(S)])
    sweeps = 1 if mdp.gamma == 0.0 else math.ceil(math.log(1e-16) / math.log(mdp.gamma))
    V = [0.0] * S
    for _ in range(sweeps):
        V = [reward[s] + mdp.gamma * sum(step[s][t] * V[t] for t in range(S)) for s in range(S)]
    return V


@pytest.mark.parametrize("tau", [0.0, 0.3])
@pytest.mark.parametrize("name", MDPS)
def test_policy_value_is_the_discounted_sum(name: str, tau: float) -> None:
    mdp = MDPS[name](1)
    pi = random_policy(mdp, 1)
    V = policy_value(mdp, pi, tau)
    for index, one in instances(mdp):
        torch.testing.assert_close(
            V[index], torch.tensor(value_by_loops(one, pi[index], tau), dtype=F64), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("name", MDPS)
def test_visitation_is_the_discounted_sum_of_state_distributions(name: str) -> None:
    mdp = MDPS[name](2)
    pi = random_policy(mdp, 2)
    d, p_t, total = visitation(mdp, pi), mdp.rho, torch.zeros_like(mdp.rho)
    step = induced_transition(mdp, pi)
    for t in range(400):
        total = total + mdp.gamma**t * p_t
        p_t = (p_t.unsqueeze(-2) @ step).squeeze(-2)
    torch.testing.assert_close(d, total, rtol=1e-12, atol=1e-12)
    horizon = torch.full(mdp.batch_shape, 1 / (1 - mdp.gamma), dtype=F64)
    if mdp.terminal is None:
        torch.testing.assert_close(d.sum(-1), horizon, rtol=1e-12, atol=0.0)
    else:
        assert bool((d.sum(-1) < 0.999 * horizon).all())


@pytest.mark.parametrize("tau", [0.0, 0.2])
@pytest.mark.parametrize("name", ["plain", "terminal", "terminal entropy", "masked, terminal", "gamma 0"])
def test_policy_return_gradient(name: str, tau: float) -> None:
    mdp = MDPS[name](3)
    pi = random_policy(mdp, 3)
    exists = torch.ones_like(mdp.r, dtype=torch.bool) if mdp.mask is None else mdp.mask
    closed = policy_return_gradient(mdp, pi, tau)[exists]

    def value(free: Tensor) -> Tensor:
        return policy_return(mdp, torch.zeros_like(pi).masked_scatter(exists, free), tau)

    assert_gradient(closed, numerical_gradient(value, pi[exists]))
    torch.testing.assert_close(closed, autograd(value, pi[exists]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("fields", ["P", "r", "rho", "terminal", "mask", "P mask", "r terminal"])
def test_fields_without_the_batch_axis_are_shared(fields: str) -> None:
    many = random_mdp(4, batch=(3,), n_states=4, terminal=True, masked=True)
    assert many.terminal is not None
    assert many.mask is not None
    ends = torch.eye(4, dtype=torch.bool)[:3]
    P, r, rho, terminal, mask = (
        t if name in fields.split() else t[0]
        for name, t in zip(
            ("P", "r", "rho", "terminal", "mask"), (many.P, many.r, many.rho, ends, many.mask), strict=True
        )
    )
    mdp = TabularMDP(P, r, rho, 0.9, terminal, mask)
    assert mdp.batch_shape == (3,)
    pi = random_policy(mdp, 4)
    values, d, slopes = policy_return(mdp, pi, 0.2), visitation(mdp, pi), policy_return_gradient(mdp, pi, 0.2)
    for index, one in instances(mdp):
        torch.testing.assert_close(values[index], policy_return(one, pi[index], 0.2))
        torch.testing.assert_close(d.expand(3, 4)[index], visitation(one, pi[index]))
        torch.testing.assert_close(slopes[index], policy_return_gradient(one, pi[index], 0.2))


def test_a_terminal_state_pays_once() -> None:
    P, rho = torch.ones(1, 2, 1, dtype=F64), torch.ones(1, dtype=F64)
    r = torch.tensor([[3.0, 5.0]], dtype=F64)
    pi = torch.tensor([[0.25, 0.75]], dtype=F64)
    ends = torch.tensor([True])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    for terminal, earns, expected in (
        (ends, False, 4.5),
        (ends, True, 4.5 + 0.2 * entropy),
        (None, False, (4.5 + 0.2 * entropy) / (1 - 0.9)),
    ):
        mdp = TabularMDP(P, r, rho, 0.9, terminal, None, earns)
        assert float(policy_return(mdp, pi, 0.2)) == pytest.approx(expected, rel=1e-14)
        assert float(visitation(mdp, pi).sum()) == pytest.approx(10.0 if terminal is None else 1.0, rel=1e-14)


def test_zero_probabilities_have_no_entropy_and_a_finite_slope() -> None:
    pi = torch.tensor([0.0, 1.0], dtype=F64)
    assert float(negative_entropy(pi)) == 0.0
    assert bool(torch.isfinite(autograd(negative_entropy, pi)).all())
