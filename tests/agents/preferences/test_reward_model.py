"""The loss and its gradient, against closed forms and central differences; the nets; the fit and its end in an explosion."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym.agents.preferences.labels import Pair, PreferenceBuffer
from bilevel_gym.agents.preferences.reward_model import ConvReward, MLPReward, RewardModel, default_net
from bilevel_gym.agents.preferences.training import (
    FitConfig,
    RewardExplodedError,
    RewardTrainer,
    cross_entropy,
    pair_losses,
)
from bilevel_gym.wrappers import Segment

CELLS, MOVES = gym.spaces.Discrete(5), gym.spaces.Discrete(3)


def walk(seed: int, H: int = 4, lived: int = 4) -> Segment:
    rng = np.random.default_rng(seed)
    return Segment(rng.integers(0, 5, H), rng.integers(0, 3, H), np.arange(H) < lived)


def table(members: int = 1) -> RewardModel:
    """A reward a state-action, float64."""
    torch.manual_seed(0)
    return RewardModel([MLPReward(CELLS, MOVES, hidden=()) for _ in range(members)], "cpu").double()


def walks(n: int) -> PreferenceBuffer:
    buffer = PreferenceBuffer()
    for i in range(n):
        pair = Pair(walk(2 * i, lived=1 + i % 4), walk(2 * i + 1))
        buffer.add(pair, ("left", "right", "equal")[i % 3])
    return buffer


def as_table(model: RewardModel) -> np.ndarray[Any, Any]:
    """r_x(s, a), ``[5, 3]``."""
    states, actions = np.repeat(np.arange(5), 3), np.tile(np.arange(3), 5)
    return model.raw(states, actions).reshape(5, 3)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_closed_forms_of_the_loss() -> None:
    mu = torch.tensor([1.0, 0.0, 0.5, 1.0])
    R_left, R_right = torch.tensor([0.0, 1.0, 3.0, 20.0]).double(), torch.tensor([0.0, 3.0, 1.0, -10.0]).double()
    expected = [math.log(2), math.log1p(math.exp(-2)), math.log1p(math.exp(2)) - 1.0, math.log1p(math.exp(-30))]
    torch.testing.assert_close(
        cross_entropy(R_left, R_right, mu), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_an_error_share_bounds_the_loss() -> None:
    left, right, mu = torch.tensor([-100.0]).double(), torch.tensor([100.0]).double(), torch.ones(1)
    assert float(cross_entropy(left, right, mu, 0.1)) == pytest.approx(-math.log(0.05))
    z = torch.tensor([0.7], dtype=torch.float64)
    expected = -math.log(0.9 / (1 + math.exp(-0.7)) + 0.05)
    assert float(cross_entropy(z, 0 * z, mu, 0.1)) == pytest.approx(expected, rel=1e-12)


def test_the_loss_in_a_table_is_what_the_pairs_say() -> None:
    model, buffer = table(), walks(9)
    r = as_table(model)
    for i, held in enumerate(buffer):
        R = [r[s.obs[s.mask], s.actions[s.mask]].sum() for s in (held.pair.left, held.pair.right)]
        expected = math.log1p(math.exp(R[1] - R[0])) * held.mu + math.log1p(math.exp(R[0] - R[1])) * (1 - held.mu)
        assert pair_losses(model, [buffer[i]])[0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_the_gradient_agrees_with_central_differences(error: float) -> None:
    torch.manual_seed(1)
    model = RewardModel([MLPReward(CELLS, MOVES, hidden=(7,)) for _ in range(2)], "cpu").double()
    batch = list(walks(6))
    pair_losses(model, batch, error)[0].sum().backward()
    h = 1e-6
    for parameter in model.parameters():
        assert parameter.grad is not None
        for index in list(np.ndindex(*parameter.shape))[::4]:
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    parameter[index] += sign * h
                    ends.append(float(pair_losses(model, batch, error)[0].sum()))
                    parameter[index] -= sign * h
            assert float(parameter.grad[index]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-9)


def test_in_a_table_the_gradient_is_the_difference_of_visits() -> None:
    """d loss / d r(s,a) = (P(left > right) - mu) (visits of the left - visits of the right)."""
    model, batch = table(), [walks(4)[3]]
    losses, margins = pair_losses(model, batch)
    losses.sum().backward()
    (layer,) = (p for name, p in model.named_parameters() if name.endswith("weight"))
    visits = np.zeros((2, 5, 3))
    for side, one in enumerate((batch[0].pair.left, batch[0].pair.right)):
        np.add.at(visits[side], (one.obs[one.mask], one.actions[one.mask]), 1.0)
    weight = 1.0 / (1.0 + math.exp(-float(margins.detach()))) - batch[0].mu
    assert layer.grad is not None
    np.testing.assert_allclose(layer.grad.T, weight * (visits[0] - visits[1]), atol=1e-12)


def test_what_follows_the_end_of_an_episode_is_worth_nothing() -> None:
    model, buffer = table(), PreferenceBuffer()
    one = walk(0, lived=2)
    other = Segment(np.where(one.mask, one.obs, 4), np.where(one.mask, one.actions, 2), one.mask)
    buffer.add(Pair(one, other), "left")
    assert float(pair_losses(model, list(buffer))[1]) == 0.0


# --- nets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [gym.spaces.Discrete(3), gym.spaces.Box(-2.0, 2.0, (2,), np.float32)])
@pytest.mark.parametrize(
    "space", [CELLS, gym.spaces.Box(-8.0, 8.0, (3,)), gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)]
)
def test_default_nets_pay_one_number_a_step(space: Any, actions: Any) -> None:
    space.seed(0), actions.seed(0)
    model = RewardModel([default_net(space, actions) for _ in range(2)], "cpu")
    obs, taken = (np.stack([s.sample() for _ in range(5)]) for s in (space, actions))
    assert model.reward(obs, taken).shape == (5,)
    assert model(model.tensor(obs), model.tensor(taken)).shape == (2, 5)
    np.testing.assert_allclose(model.raw(obs, taken, batch=2), model.raw(obs, taken), rtol=1e-4, atol=1e-6)


def test_the_papers_net() -> None:
    net = ConvReward(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(6))
    convolutions = [m for m in net.features if isinstance(m, torch.nn.Conv2d)]
    assert [(c.kernel_size[0], c.stride[0], c.out_channels) for c in convolutions] == [
        (7, 3, 16),
        (5, 2, 16),
        (3, 1, 16),
        (3, 1, 16),
    ]
    linear = [(m.in_features, m.out_features) for m in net.head if isinstance(m, torch.nn.Linear)]
    assert linear == [(16 * 7 * 7, 64), (64, 6)]
    model = RewardModel([net], "cpu")
    obs, actions = np.random.default_rng(0).integers(0, 255, (3, 4, 84, 84), np.uint8), np.zeros(3, np.int64)
    np.testing.assert_array_equal(model.reward(obs, actions), model.reward(obs, actions))  # no dropout in what is paid
    model.train()
    one, two = (model(model.tensor(obs), model.tensor(actions)) for _ in range(2))
    assert not torch.equal(one, two)
    with pytest.raises(ValueError, match="observation_space: expected images"):
        ConvReward(gym.spaces.Box(0, 255, (4, 20, 20), np.uint8), gym.spaces.Discrete(6))


def test_the_action_taken_is_the_one_that_is_paid() -> None:
    net = MLPReward(CELLS, MOVES, hidden=())
    weight, bias = net.layers[0].weight.detach(), net.layers[0].bias.detach()  # type: ignore[operator]
    states, actions = torch.tensor([0, 3, 3]), torch.tensor([2, 0, 1])
    torch.testing.assert_close(net(states, actions), weight[actions, states] + bias[actions])


def test_normalised_to_unit_deviation() -> None:
    model = table(3)
    obs, actions = np.arange(5).repeat(3), np.tile(np.arange(3), 5)
    model.normalise(obs, actions, centre=True)
    paid = model.reward(obs, actions)
    assert paid.mean() == pytest.approx(0.0, abs=1e-12)
    assert paid.std() == pytest.approx(1.0)
    model.normalise(obs, actions, centre=False)
    np.testing.assert_allclose(model.reward(obs, actions), model.raw(obs, actions) / float(model.scale))
    assert np.mean(model.reward(obs, actions) ** 2) == pytest.approx(1.0)


def test_inputs_are_standardised() -> None:
    space = gym.spaces.Box(-1e3, 1e3, (2,), np.float64)
    model = RewardModel([MLPReward(space, MOVES)], "cpu")
    obs = np.random.default_rng(0).normal([100.0, -3.0], [50.0, 0.1], (400, 2))
    model.fit_inputs(obs)
    (net,) = model.members
    np.testing.assert_allclose(net.mean, [100.0, -3.0], rtol=0.1)  # type: ignore[arg-type]
    np.testing.assert_allclose(net.std, [50.0, 0.1], rtol=0.1)  # type: ignore[arg-type]


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_a_fit_finds_the_maximum_likelihood_of_one_comparison() -> None:
    """Left three times in four: the margin tends to log 3."""
    model, buffer = table(), PreferenceBuffer()
    pair = Pair(
        Segment(np.array([1]), np.array([0]), np.array([True])), Segment(np.array([2]), np.array([1]), np.array([True]))
    )
    for label in ("left", "left", "left", "right"):
        buffer.add(pair, label)
    RewardTrainer(model, FitConfig(learning_rate=0.05, weight_decay=0.0)).fit(buffer, 400)
    r = as_table(model)
    assert r[1, 0] - r[2, 1] == pytest.approx(math.log(3), rel=1e-3)


def test_members_do_not_know_each_other() -> None:
    alone, together, buffer = table(), table(2), walks(6)
    for model in (alone, together):
        RewardTrainer(model, FitConfig(), seed=3).fit(buffer, 3)
    one, two = alone.members[0].state_dict(), together.members[0].state_dict()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-12)


def test_an_explosion_leaves_the_last_good_state() -> None:
    model, buffer = table(), walks(6)
    trainer = RewardTrainer(model, FitConfig())
    trainer.fit(buffer, 2)
    good = as_table(model)
    trainer.optimizer.param_groups[0]["lr"] = 1e9
    with pytest.raises(
        RewardExplodedError, match="reward model: expected returns of segments and slopes within 1e\\+06"
    ):
        trainer.fit(buffer, 5)
    np.testing.assert_array_equal(as_table(model), good)
    trainer.optimizer.param_groups[0]["lr"] = 1e-3
    assert np.isfinite(trainer.fit(buffer, 1).cross_entropy)


def test_what_is_not_finite_is_an_explosion_too() -> None:
    model, buffer = table(), walks(6)
    with pytest.raises(RewardExplodedError):
        RewardTrainer(model, FitConfig()).fit(buffer, 1, lambda: torch.tensor(float("nan")))


def test_an_empty_buffer_teaches_nothing() -> None:
    with pytest.raises(ValueError, match="buffer: expected at least one labelled pair"):
        RewardTrainer(table(), FitConfig()).fit(PreferenceBuffer(), 1)


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 0.0), ("batch_size", 0), ("error", 1.0)])
def test_wrong_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        FitConfig(**{name: value})
    with pytest.raises(ValueError, match="members: expected one or more torch modules"):
        RewardModel([])
