"""Monte Carlo returns: unbiased, value and gradient, for the truncated return; wrong variants are shown to be outside.

A hundred thousand episodes of five steps in one call: ``REPLICAS`` estimates of ``BATCH`` episodes each, whose mean must lie
within four of its standard errors of the exact gradient in every coordinate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel_gym.envs.mdp import (
    TabularMDP,
    TabularWorld,
    Trajectories,
    action_value,
    game_world,
    joint_return,
    kernel_world,
    mdp_world,
    player_mdp,
    policy_return,
    random_stackelberg,
    sample,
    sampled_return,
    start_value,
    truncated_return,
    truncated_value,
    visitation,
)
from tests.games import moved_game, random_game, random_pair
from tests.problems import (
    F64,
    MDPS,
    assert_unbiased,
    autograd,
    generator,
    instances,
    random_mdp,
    random_policy,
    shifted,
    slope,
    standard_scores,
)

REPLICAS, BATCH, LENGTH, TAU = 1000, 100, 5, 0.3


def replicated(z: Tensor) -> Tensor:
    """One copy of z a replica, each with a gradient of its own."""
    return z.detach().expand(REPLICAS, *z.shape).clone().requires_grad_()


def logits_policy(y: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(y if mask is None else y.masked_fill(~mask, -math.inf), -1)


X = torch.tensor([0.3, -0.5, 0.8], dtype=F64)


def estimates(
    world: Callable[[Tensor], TabularWorld],
    policy: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    tau: float = TAU,
    estimate: Callable[..., Tensor] = sampled_return,
    seed: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient in x and gradient in y, one a replica."""
    xs, ys = replicated(x), replicated(y)
    model, pi = world(xs), policy(ys)
    first = kwargs.get("first")
    drawn = sample(model, pi, LENGTH, BATCH, generator(seed), first=first)
    value = estimate(model, pi, drawn, tau, **kwargs)
    in_x, in_y = torch.autograd.grad(value.sum(), [xs, ys], allow_unused=True)
    none = torch.zeros(())
    return value.detach(), none if in_x is None else in_x, none if in_y is None else in_y


# --- truncated return -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MDPS)
def test_the_truncated_return_counts_its_steps(name: str) -> None:
    """By the distribution of the state at each step, carried forward; and of one step, by hand."""
    mdp = MDPS[name](3)
    pi = random_policy(mdp, 3)
    returns = truncated_return(mdp, pi, LENGTH, TAU)
    for index, one in instances(mdp):
        state, total, policy = one.rho.clone(), 0.0, pi[index]
        live = torch.ones(one.n_states, dtype=F64) if one.terminal is None else (~one.terminal).to(F64)
        entropy = -(policy * policy.clamp_min(1e-300).log()).sum(-1)
        entropy = entropy if one.terminal_entropy else entropy * live
        for t in range(LENGTH):
            total += one.gamma**t * float(state @ ((policy * one.r).sum(-1) + TAU * entropy))
            state = torch.einsum("s,sa,sat->t", state * live, policy, one.P)
        assert float(returns[index]) == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(truncated_return(mdp, pi, 1), (mdp.rho * (pi * mdp.r).sum(-1)).sum(-1))


def test_the_truncated_return_nears_the_whole_one_at_gamma() -> None:
    mdp = random_mdp(1)
    pi = random_policy(mdp, 1)
    lengths = range(10, 60, 10)
    missing = [abs(float(policy_return(mdp, pi, TAU) - truncated_return(mdp, pi, n, TAU))) for n in lengths]
    assert slope(lengths, [math.log(m) for m in missing]) == pytest.approx(math.log(0.9), rel=1e-3)


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_draws_follow_their_distributions() -> None:
    """Every transition's count over one long batch, against its probability."""
    problem = random_stackelberg(3, 2, 3, seed=1)
    x = torch.randn(problem.leader_dim, generator=generator(0), dtype=F64)
    world = kernel_world(problem.kernel(x), problem.follower_mdp(x))
    pi = random_policy(problem.follower_mdp(x), 1)
    drawn = sample(world, pi, 1, 200_000, generator(1))
    joint = torch.einsum("s,sa,slw,sawt->sawt", world.rho, pi, world.draw, world.P)
    index = ((drawn.states * 3 + drawn.actions) * 2 + drawn.draws) * 3 + drawn.next_states
    share = torch.bincount(index.flatten(), minlength=joint.numel()) / index.numel()
    error = (joint.flatten() * (1 - joint.flatten()) / index.numel()).sqrt()
    assert float(((share - joint.flatten()) / error).abs().max()) < 4.0


def test_steps_follow_one_another_and_end_in_terminal_states() -> None:
    mdp = random_mdp(2, batch=(2, 3), n_actions=4, terminal=True, masked=True)
    assert mdp.mask is not None
    pi = random_policy(mdp, 2)
    drawn = sample(mdp_world(mdp), pi, 8, 50, generator(2))
    assert drawn.states.shape == drawn.alive.shape == (2, 3, 50, 8)
    assert (drawn.batch_shape, drawn.batch, drawn.length) == ((2, 3), 50, 8)
    assert torch.equal(drawn.states[..., 1:], drawn.next_states[..., :-1])
    ended = (drawn.states == 4).cumsum(-1)
    before = torch.cat([torch.zeros_like(ended[..., :1]), ended[..., :-1]], -1)
    assert torch.equal(drawn.alive, before == 0)
    assert bool(drawn.alive.any())
    assert not bool(drawn.alive.all())
    exists = mdp.mask.expand(2, 3, 5, 4).unsqueeze(-3).expand(2, 3, 50, 5, 4)
    chosen = exists.gather(-2, drawn.states[..., None].expand(*drawn.states.shape, 4)).gather(
        -1, drawn.actions[..., None]
    )
    assert bool(chosen.all())


def test_drawing_stops_once_every_episode_has_ended() -> None:
    """Two steps at most: drawn for two or for seven, the steps that count are the same, and so is the return."""
    mdp = random_mdp(3, n_states=4, n_actions=2)
    ends = torch.tensor([False, True, True, True])
    P = mdp.P.clone()
    P[0, :, 0], P[0, :, 1] = 0.0, P[0, :, :2].sum(-1)
    mdp = TabularMDP(P, mdp.r, mdp.rho, mdp.gamma, ends)
    world, pi = mdp_world(mdp), random_policy(mdp, 0)
    long = sample(world, pi, 7, 40, generator(0))
    assert int(long.alive.sum(-1).max()) == 2
    assert torch.equal(long.states[..., 1:], long.next_states[..., :-1])
    short = dataclasses.replace(
        long,
        **{name: getattr(long, name)[..., :2] for name in ("states", "actions", "draws", "next_states", "alive")},
        uniforms=long.uniforms[..., :7],
    )
    again = sample(world, pi, 2, 40, generator(1), twin=short)
    for name in ("states", "actions", "next_states", "alive"):
        assert torch.equal(getattr(again, name), getattr(short, name))
    torch.testing.assert_close(sampled_return(world, pi, long), sampled_return(world, pi, short), rtol=1e-14, atol=0.0)


def test_a_seed_tells_the_draws_and_a_twin_repeats_the_numbers() -> None:
    mdp = random_mdp(3)
    world, pi, other = mdp_world(mdp), random_policy(mdp, 3), random_policy(mdp, 4)
    one, two, three = (sample(world, pi, 5, 20, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.states, two.states)
    assert not torch.equal(one.states, three.states)
    rng = generator(5)
    twin = sample(world, pi, 5, 20, rng, twin=one)
    assert torch.equal(twin.states, one.states)
    assert torch.equal(rng.get_state(), generator(5).get_state())
    near = sample(world, 0.95 * pi + 0.05 * other, 5, 20, rng, twin=one)
    same = (near.states == one.states).double().mean()
    assert 0.5 < float(same) < 1.0
    assert float((three.states == one.states).double().mean()) < float(same)


def test_impossible_draws_never_come() -> None:
    """Probabilities of 0 at the start, in the middle and at the end of a row."""
    p = torch.tensor([0.0, 0.0, 0.3, 0.0, 0.7, 0.0], dtype=F64)
    mdp = TabularMDP(p.expand(6, 6, 6), torch.zeros(6, 6), p, 0.9)
    drawn = sample(mdp_world(mdp), p.expand(6, 6), 5, 20_000, generator(0))
    for field in (drawn.states, drawn.actions, drawn.next_states):
        assert set(field.unique().tolist()) == {2, 4}


# --- unbiased ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("name", ["plain", "terminal", "terminal entropy", "masked, terminal"])
def test_an_mdp_s_estimates_are_unbiased(name: str, baseline: bool) -> None:
    """x in rewards, transitions and start; y in the policy's logits; entropy in the return."""
    base = MDPS[name](1)
    y = torch.randn(base.r.shape, generator=generator(1), dtype=F64)
    value, in_x, in_y = estimates(
        lambda x: mdp_world(shifted(base, x)), lambda y: logits_policy(y, base.mask), X, y, baseline=baseline
    )
    pi = logits_policy(y, base.mask)
    assert_unbiased(value, truncated_return(shifted(base, X), pi, LENGTH, TAU))
    assert_unbiased(in_x, autograd(lambda x: truncated_return(shifted(base, x), pi, LENGTH, TAU), X))
    assert_unbiased(
        in_y, autograd(lambda z: truncated_return(shifted(base, X), logits_policy(z, base.mask), LENGTH, TAU), y)
    )


@pytest.mark.parametrize("whose", ["follower", "leader"])
def test_a_stackelberg_game_s_estimates_are_unbiased(whose: str) -> None:
    """The leader's actions are drawn (Lemma 7b); its return is one of the same episodes."""
    game = random_stackelberg(3, 3, 2, gamma=0.9, sparsity=0.3, seed=1)
    x = torch.randn(game.leader_dim, generator=generator(2), dtype=F64)
    y = torch.randn(3, 2, generator=generator(3), dtype=F64)
    tau = TAU if whose == "follower" else 0.0

    def world(x: Tensor) -> TabularWorld:
        kernel = game.kernel(x)
        follower = kernel_world(kernel, game.follower_mdp(x[0] if x.ndim > 1 else x).detach())
        return follower if whose == "follower" else follower.with_reward(kernel.r_leader)

    def exact(x: Tensor, y: Tensor) -> Tensor:
        mdp = game.follower_mdp(x)
        mdp = mdp if whose == "follower" else mdp.with_reward(game.leader_reward(x))
        return truncated_return(mdp, torch.softmax(y, -1), LENGTH, tau)

    value, in_x, in_y = estimates(world, lambda y: torch.softmax(y, -1), x, y, tau)
    assert_unbiased(value, exact(x, y))
    assert_unbiased(in_x, autograd(lambda z: exact(z, y), x))
    assert_unbiased(in_y, autograd(lambda z: exact(x, z), y))


def test_a_zero_sum_game_s_estimates_are_unbiased() -> None:
    """In x, in player 1's logits and in player 2's, whose entropy player 1 is paid."""
    game = random_game(1, n_states=3)
    pair = random_pair(game, 1)
    xs, y1, y2 = replicated(X), replicated(pair[0].log()), replicated(pair[1].log())
    pi1, pi2 = torch.softmax(y1, -1), torch.softmax(y2, -1)
    world = game_world(moved_game(game, xs), pi2, TAU)
    value = sampled_return(world, pi1, sample(world, pi1, LENGTH, BATCH, generator(4)), TAU)
    joint = torch.autograd.grad(value.sum(), [xs, y1, y2])

    def exact(x: Tensor, y1: Tensor, y2: Tensor) -> Tensor:
        return truncated_return(
            player_mdp(moved_game(game, x), 1, torch.softmax(y2, -1), TAU), torch.softmax(y1, -1), LENGTH, TAU
        )

    x, z1, z2 = X, pair[0].log(), pair[1].log()
    assert_unbiased(value.detach(), exact(x, z1, z2))
    assert_unbiased(joint[0], autograd(lambda z: exact(z, z1, z2), x))
    assert_unbiased(joint[1], autograd(lambda z: exact(x, z, z2), z1))
    assert_unbiased(joint[2], autograd(lambda z: exact(x, z1, z), z2))


def test_a_first_step_of_another_policy_is_a_sampled_action_value() -> None:
    """E_rho[ <first, Q^pi> - tau h(first) ], Q^pi of as many steps; in x, and in the first policy alone."""
    base = random_mdp(4, terminal=True)
    pi = random_policy(base, 4)
    y = torch.randn(base.r.shape, generator=generator(5), dtype=F64)

    def exact(x: Tensor, y: Tensor) -> Tensor:
        mdp, first = shifted(base, x), torch.softmax(y, -1)
        Q = action_value(mdp, truncated_value(mdp, pi, LENGTH - 1, TAU))
        live = torch.arange(5) < 4
        h = (first * first.log()).sum(-1) * live
        return start_value(mdp, (first * Q).sum(-1) - TAU * h)

    xs, ys = replicated(X), replicated(y)
    world, first = mdp_world(shifted(base, xs)), torch.softmax(ys, -1)
    drawn = sample(world, pi, LENGTH, BATCH, generator(6), first=first)
    value = sampled_return(world, pi, drawn, TAU, first=first)
    in_x, in_y = torch.autograd.grad(value.sum(), [xs, ys])
    assert_unbiased(value.detach(), exact(X, y))
    assert_unbiased(in_x, autograd(lambda z: exact(z, y), X))
    assert_unbiased(in_y, autograd(lambda z: exact(X, z), y))


# --- wrong variants ---------------------------------------------------------------------------------------------------


def without(*fields: str) -> Callable[..., Tensor]:
    """The estimate that forgets the scores of these tables: their graph still flows through what is paid."""

    def estimate(world: TabularWorld, pi: Tensor, drawn: Trajectories, tau: float, **kwargs: Any) -> Tensor:
        held = {name: getattr(world, name).detach() for name in fields if name != "pi"}
        return sampled_return(
            dataclasses.replace(world, **held), pi.detach() if "pi" in fields else pi, drawn, tau, **kwargs
        )

    return estimate


def without_later_entropy(world: TabularWorld, pi: Tensor, drawn: Trajectories, tau: float, **kwargs: Any) -> Tensor:
    """Each step's own entropy is differentiated, and none of it enters the return to go."""
    h = (pi * pi.log()).sum(-1)
    rows = torch.arange(REPLICAS)[:, None, None]
    own = -tau * h[rows, drawn.states] * drawn.alive * world.gamma ** torch.arange(LENGTH)
    return sampled_return(world, pi, drawn, 0.0, **kwargs) + own.sum(-1).mean(-1)


WRONG: dict[str, tuple[Callable[..., Tensor], str]] = {
    "no score of the transitions": (without("P"), "x"),
    "no score of the start": (without("rho"), "x"),
    "no reward's own derivative": (without("r"), "x"),
    "no entropy of later steps, in x": (without_later_entropy, "x"),
    "no entropy of later steps, in y": (without_later_entropy, "y"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_estimate_is_outside(name: str) -> None:
    base = random_mdp(1)
    y = torch.randn(base.r.shape, generator=generator(1), dtype=F64)
    estimate, which = WRONG[name]
    arguments = (lambda x: mdp_world(shifted(base, x)), lambda y: torch.softmax(y, -1), X, y)

    def exact(x: Tensor, y: Tensor) -> Tensor:
        return truncated_return(shifted(base, x), torch.softmax(y, -1), LENGTH, 2.0)

    truth = autograd(lambda z: exact(z, y), X) if which == "x" else autograd(lambda z: exact(X, z), y)
    right, wrong = (estimates(*arguments, 2.0, e, seed=9)[1 if which == "x" else 2] for e in (sampled_return, estimate))
    assert_unbiased(right, truth)
    assert float(standard_scores(wrong, truth).abs().max()) > 6.0


def test_the_estimate_is_not_that_of_the_whole_return() -> None:
    """Cut at five steps at gamma 0.9, two fifths of the gradient's weight are there; more steps bring the rest."""
    base = random_mdp(1)
    pi = random_policy(base, 1)
    whole = autograd(lambda x: policy_return(shifted(base, x), pi, TAU), X)
    _, in_x, _ = estimates(lambda x: mdp_world(shifted(base, x)), lambda y: torch.softmax(y, -1), X, pi.log())
    assert float(standard_scores(in_x, whole).abs().max()) > 10.0
    cut = [autograd(lambda x, n=n: truncated_return(shifted(base, x), pi, n, TAU), X) for n in (5, 50)]  # type: ignore[misc]
    short, long = (float((c - whole).norm() / whole.norm()) for c in cut)
    assert 0.3 < short < 0.9
    assert long < 0.05


def test_the_baseline_lowers_the_variance() -> None:
    base = random_mdp(1)
    y = torch.randn(base.r.shape, generator=generator(1), dtype=F64)
    spread = {}
    for baseline in (True, False):
        _, in_x, in_y = estimates(
            lambda x: mdp_world(shifted(base, x)), lambda y: torch.softmax(y, -1), X, y, baseline=baseline
        )
        spread[baseline] = float(in_x.var(0).sum()), float(in_y.var(0).sum())
    assert spread[True][0] < 0.5 * spread[False][0]
    assert spread[True][1] < 0.5 * spread[False][1]


def test_a_batch_of_one_has_no_baseline() -> None:
    mdp = random_mdp(1)
    pi = random_policy(mdp, 1).requires_grad_()
    world = mdp_world(mdp)
    drawn = sample(world, pi, LENGTH, 1, generator(0))
    grads = [torch.autograd.grad(sampled_return(world, pi, drawn, TAU, baseline=b), pi)[0] for b in (True, False)]
    torch.testing.assert_close(*grads, rtol=0.0, atol=0.0)


def test_the_value_is_the_mean_return_of_the_episodes() -> None:
    """Added up in plain Python."""
    mdp = random_mdp(2, terminal=True)
    pi = random_policy(mdp, 2)
    world = mdp_world(mdp)
    drawn = sample(world, pi, 6, 7, generator(3))
    h, total = (pi * pi.log()).sum(-1).tolist(), 0.0
    for states, actions in zip(drawn.states.tolist(), drawn.actions.tolist(), strict=True):
        for t, (s, a) in enumerate(zip(states, actions, strict=True)):
            total += mdp.gamma**t * (float(mdp.r[s, a]) - (TAU * h[s] if s != 4 else 0.0))
            if s == 4:
                break
    assert float(sampled_return(world, pi, drawn, TAU)) == pytest.approx(total / 7, rel=1e-12)


def test_instances_of_a_batch_are_estimated_each_by_itself() -> None:
    """Ten models in one call give what each gives alone with its own random numbers."""
    mdp = random_mdp(5, batch=(10,), n_states=4)
    pi = random_policy(mdp, 5).requires_grad_()
    world = mdp_world(mdp)
    drawn = sample(world, pi, LENGTH, 16, generator(0))
    together = sampled_return(world, pi, drawn, TAU)
    (gradient,) = torch.autograd.grad(together.sum(), pi)
    for (i,), one in instances(mdp):
        alone = pi.detach()[i].clone().requires_grad_()
        fields = {f.name: getattr(drawn, f.name)[i] for f in dataclasses.fields(drawn)}
        value = sampled_return(mdp_world(one), alone, Trajectories(**fields), TAU)
        torch.testing.assert_close(value, together[i])
        torch.testing.assert_close(torch.autograd.grad(value, alone)[0], gradient[i])


# --- bad input --------------------------------------------------------------------------------------------------------


def test_batches_that_do_not_fit_are_named() -> None:
    three, two = (random_mdp(1, batch=(n,), n_states=4) for n in (3, 2))
    one = random_mdp(1, n_states=4)
    pi_3, pi_2, pi = (random_policy(m) for m in (three, two, one))
    with pytest.raises(ValueError, match=r"^pi: expected batch axes that broadcast with \(3,\) \(world\), got \(2,\)"):
        sample(mdp_world(three), pi_2, 5, 4, generator(0))
    with pytest.raises(ValueError, match=r"^first: expected batch axes that broadcast with \(3,\).*got \(2,\)"):
        sample(mdp_world(three), pi_3, 5, 4, generator(0), first=pi_2)
    with pytest.raises(ValueError, match=r"^P: expected batch axes that broadcast with \(3,\) \(rho\), got \(2,\)"):
        dataclasses.replace(mdp_world(three), P=mdp_world(two).P)
    drawn = sample(mdp_world(three), pi_3, 5, 4, generator(0))
    with pytest.raises(ValueError, match=r"^trajectories: expected batch axes \(\) of world and policy, got \(3,\)"):
        sampled_return(mdp_world(one), pi, drawn)
    with pytest.raises(ValueError, match=r"^pi: expected batch axes that broadcast"):
        sampled_return(mdp_world(three), pi_2, drawn)


def test_exact_returns_name_them_too() -> None:
    three, pi_2 = random_mdp(1, batch=(3,), n_states=4), random_policy(random_mdp(1, batch=(2,), n_states=4))
    for function in (policy_return, visitation, lambda mdp, pi: truncated_return(mdp, pi, 5)):
        with pytest.raises(ValueError, match=r"^pi: expected batch axes that broadcast with \(3,\) \(P\), got \(2,\)"):
            function(three, pi_2)
        with pytest.raises(ValueError, match=r"^pi: expected shape \[..., \(4, 3\)\], got shape \(2, 4, 2\)"):
            function(three, pi_2[..., :2])
    games, pair = random_game(1, batch=(3,)), random_pair(random_game(1, batch=(2,)))
    with pytest.raises(ValueError, match=r"^held: expected batch axes that broadcast with \(3,\) \(P\), got \(2,\)"):
        joint_return(games, *pair)


def test_trajectories_of_unequal_sizes_are_named() -> None:
    world = mdp_world(random_mdp(1))
    pi = random_policy(random_mdp(1))
    few, many = (sample(world, pi, 5, batch, generator(0)) for batch in (16, 24))
    with pytest.raises(ValueError, match=r"^twin: expected trajectories \(24, 5\), got trajectories \(16, 5\)"):
        sample(world, pi, 5, 24, generator(0), twin=few)
    with pytest.raises(ValueError, match=r"^actions: expected shape \(16, 5\), as states has, got shape \(24, 5\)"):
        dataclasses.replace(few, actions=many.actions)
    with pytest.raises(ValueError, match=r"^uniforms: expected shape \(16, 16\)"):
        dataclasses.replace(few, uniforms=many.uniforms)


def test_bad_arguments_are_named() -> None:
    mdp = random_mdp(1)
    world, pi = mdp_world(mdp), random_policy(mdp)
    for name, length, batch in (("length", 0, 1), ("batch", 1, 0)):
        with pytest.raises(ValueError, match=f"^{name}: expected a whole number >= 1, got 0"):
            sample(world, pi, length, batch, generator(0))
    with pytest.raises(ValueError, match=r"^generator: expected a torch.Generator, got 3"):
        sample(world, pi, 1, 1, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^pi: expected shape \[..., \(5, 3\)\]"):
        sample(world, pi[:, :2], 1, 1, generator(0))
    with pytest.raises(ValueError, match=r"^length: "):
        truncated_return(mdp, pi, 0)
    with pytest.raises(ValueError, match=r"^tau: "):
        sampled_return(world, pi, sample(world, pi, 1, 1, generator(0)), -1.0)
    with pytest.raises(ValueError, match=r"^rho: expected shape \[..., \(5,\)\], as r has"):
        world.with_start(torch.ones(4, dtype=F64) / 4)
    with pytest.raises(ValueError, match=r"^pi2: expected shape"):
        game_world(random_game(), torch.ones(4, 3, dtype=F64) / 3)
