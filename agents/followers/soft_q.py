r"""Followers with a Q-network and a soft policy, as the sampled Bellman penalty needs them:

    best response          Q = r_f + gamma E[ tau log sum_a' exp(Q(s',a')/tau) ]                  pi* = softmax(Q/tau)
    penalised follower     U = r_l + gamma E[ c log sum_a' pi*(a'|s') exp(U(s',a')/c) ]           pi_y = pi* exp(U/c) / Z

with c = lam tau. The second is reinforcement learning on the leader's reward, with a relative entropy that keeps the policy near
pi*. U is lam times the Q-function of the reward ``r_l/lam``, so its scale does not shrink as lam grows. It never uses r_f: an
error of Q affects both policies equally, and U = 0 makes them the same.

SB3's algorithm remains the trainer. Its target takes the maximum over actions of the target network's output. Here the target
network outputs the soft value for every action, so the maximum is the soft value. For quantiles ``[n, K, A]`` it outputs those of
the best action, shifted so that their mean is the soft value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...envs.mdp.checks import require
from .sb3 import SB3Follower, mean_over_quantiles

_NETWORKS = {"q_net": "q_net_target", "quantile_net": "quantile_net_target"}


class SoftTarget(nn.Module):
    """A target network that outputs the soft value for every action.

    Args:
        network: the target network, from observations to Q ``[n, A]`` or quantiles ``[n, K, A]``; its parameters are shared.
        soft_value: function from observations and Q to V, ``[n]``.
    """

    def __init__(self, network: nn.Module, soft_value: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self._soft_value = network, soft_value

    def forward(self, obs: Any) -> Tensor:
        """Return V for every action, in the shape of the network's output."""
        answer: Tensor = self.network(obs)
        Q, quantiles = mean_over_quantiles(answer), answer if answer.ndim == 3 else answer.unsqueeze(1)
        top = Q.max(-1, keepdim=True)
        best = quantiles.gather(2, top.indices.unsqueeze(1).expand(-1, quantiles.shape[1], 1))
        moved = best + (self._soft_value(obs, Q).unsqueeze(-1) - top.values).unsqueeze(-1)
        return moved.expand_as(quantiles).reshape(answer.shape)


class SoftQFollower(SB3Follower):
    """A DQN or QRDQN with a soft target. It plays its soft policy in training too, with SB3's exploration on top.

    Args:
        arguments: as for :class:`SB3Follower`. The environments pay r_f to the best response and r_l to the penalised follower;
            ``q_temperature`` of ``answering`` is tau.
        prior: the best response that the penalised follower is kept near; None, the default, for the best response itself.

    Attributes:
        lam: the coefficient of the penalty; unused without a prior.

    Raises:
        ValueError: the algorithm has no Q-network over discrete actions, uses ``VecNormalize``, or has targets of several
            steps.
    """

    def __init__(self, *arguments: Any, prior: SoftQFollower | None = None) -> None:
        super().__init__(*arguments)
        self.prior, self.lam = prior, 1.0
        model: Any = self.model
        found = [name for name in _NETWORKS if hasattr(model, name)]
        expected = "an algorithm with a Q-network over discrete actions (DQN, QRDQN) for a BellmanPenalty"
        require(len(found) == 1, "follower", expected, type(model).__name__)
        scaled = model.get_vec_normalize_env() is not None
        require(not scaled, "follower", "a model without VecNormalize for a BellmanPenalty", type(model).__name__)
        steps = getattr(model, "n_steps", 1)
        one_step = "one-step targets (n_steps=1), since longer targets leave out the entropy of later steps"
        require(steps == 1, "follower", one_step, steps)
        self._network, target = found[0], _NETWORKS[found[0]]
        setattr(model, target, SoftTarget(getattr(model.policy, target), self._soft_value))
        model.policy._predict = self._play

    @property
    def temperature(self) -> float:
        """tau: temperature of the best response, and of the relative entropy to it."""
        return self.q_temperature if self.prior is None else self.prior.temperature

    @property
    def _scale(self) -> float:
        """Temperature by which Q or U is divided: tau, or lam tau."""
        return self.temperature if self.prior is None else self.lam * self.temperature

    def _preferences(self, obs: Any, Q: Tensor) -> Tensor:
        """Return log pi up to a constant in each row, ``[n, A]``."""
        return Q / self._scale if self.prior is None else self.prior.log_policy(obs) + Q / self._scale

    def _soft_value(self, obs: Any, Q: Tensor) -> Tensor:
        return self._scale * torch.logsumexp(self._preferences(obs, Q), -1)

    def log_policy(self, obs: Any, policy: Any = None) -> Tensor:
        """Return log pi, ``[n, A]``, at observations given as tensors; by default of the policy that acts."""
        policy = self.policy if policy is None else policy
        if policy.training:
            policy.set_training_mode(False)
        with torch.no_grad():
            Q = mean_over_quantiles(getattr(policy, self._network)(obs))
            return torch.log_softmax(self._preferences(obs, Q), -1)

    def _play(self, obs: Any, deterministic: bool = False) -> Tensor:
        """Return the actions that SB3's model plays in training."""
        log_pi = self.log_policy(obs, self.model.policy)
        return log_pi.argmax(-1) if deterministic else torch.distributions.Categorical(logits=log_pi).sample()

    def _probabilities(self, obs: Any, masks: Any = None, policy: Any = None) -> Tensor:
        tensor, _ = self.policy.obs_to_tensor(obs)
        return self.log_policy(tensor, policy).exp().cpu()

    def act(self, obs: Any, greedily: bool = False, masks: Any = None) -> NDArray[Any]:
        with self.generators.active(), torch.no_grad():
            pi = self._probabilities(obs)
            chosen = pi.argmax(-1) if greedily else torch.distributions.Categorical(probs=pi).sample()
        return np.asarray(chosen.numpy())

    def coupled_player(self, seed: int) -> Callable[[Any], NDArray[Any]]:
        """Return a player that draws actions by inverse CDF, from one uniform number of ``seed`` per environment and step.

        Two followers with the same seed choose the same action wherever their policies allow it.
        """
        rng = np.random.default_rng([seed, 1])  # the environments' own generators use the plain seed

        def act(obs: Any) -> NDArray[Any]:
            below = self.probabilities(obs)[:, :-1].cumsum(-1) <= rng.random((len(obs), 1))
            chosen: NDArray[Any] = below.sum(-1)
            return chosen

        return act

    def state_dict(self) -> dict[str, Any]:
        """Return the state of :class:`SB3Follower`, and lam."""
        return {**super().state_dict(), "lam": self.lam}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.lam = float(state["lam"])
