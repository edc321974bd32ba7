r"""A follower that plans: it plays SB3's rollouts, but instead of gradient steps it takes the answer of a tabular oracle.

The model P of its environment is known. Its reward is what it is paid: the whole table of the learned reward plus, as a mean over
visits, any additional reward of its rollout (a penalised follower's share of the leader's loss),

    r(s,a) = r_x(s,a) + mean over this rollout's visits of (paid - r_x(s,a))

Its policy is the oracle's answer to the MDP with reward r at temperature tau, starting at its current policy: the exact soft best
response with ``SoftPolicyIteration``, or one step towards it with ``MirrorDescent`` and one iteration. Sampling then only decides
which segments are recorded, so that a comparison of methods depends on the methods alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ...envs.mdp import TabularMDP, TabularProblem, policy_value, visitation
from ...envs.mdp.checks import check_tau, require
from ...wrappers import LearnedReward, VectorEnvAdapter
from ..followers.oracles import Oracle, OracleAnswer, SoftPolicyIteration

RARE = -30.0
"""Smallest logit."""


class Planner(A2C):
    """An SB3 model that plans in a tabular environment whose reward is learned.

    Args:
        policy: "MlpPolicy".
        env: parallel native tabular environments under a ``LearnedReward``, as preference leaders make them.
        oracle: the solver; None takes ``SoftPolicyIteration()``.
        tau: temperature, positive, in units of the paid reward.
        kwargs: further arguments of ``A2C``, e.g. ``n_steps`` per rollout and ``seed``.

    Raises:
        ValueError: the environment is another one, ``tau`` is not positive, or the oracle has no ``solve``.
    """

    def __init__(
        self, policy: Any, env: VecEnv | None, oracle: Oracle | None = None, tau: float = 0.3, **kwargs: Any
    ) -> None:
        self.oracle = SoftPolicyIteration() if oracle is None else oracle
        require(hasattr(self.oracle, "solve"), "oracle", "an oracle, e.g. SoftPolicyIteration()", repr(oracle))
        self.tau = check_tau(tau, positive=True)
        settings: dict[str, Any] = {"policy_kwargs": {"net_arch": []}, "device": "cpu"} | kwargs
        self._paid: Any = env
        if env is None:  # SB3 loads a model to act without one
            super().__init__(policy, env, **settings)  # type: ignore[arg-type]
            return
        inner = env.unwrapped
        problem: Any = getattr(inner.env, "problem", None) if isinstance(inner, VectorEnvAdapter) else None
        fits = isinstance(env, LearnedReward) and isinstance(problem, TabularProblem) and problem.context_probs is None
        require(fits, "env", "a native tabular environment, without contexts, under a LearnedReward", repr(env))
        self._mdp: TabularMDP = problem.follower_mdp(problem.start_x()).detach()
        super().__init__(policy, env, **({"gamma": self._mdp.gamma} | settings))
        with torch.no_grad():  # a critic that stays 0, since SB3 adds its value to the reward where an episode is cut
            for parameter in self.policy.value_net.parameters():
                parameter.zero_()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_paid", "_mdp"]

    def table(self) -> Tensor:
        """The current policy, ``[S, A]``."""
        net: Any = self.policy.action_net
        return torch.softmax((net.weight.T + net.bias).detach().double(), -1)

    def occupancy(self) -> Tensor:
        """Return the policy's exact discounted occupancy, ``[S, A]``, which sums to 1."""
        pi = self.table()
        return (1.0 - self._mdp.gamma) * visitation(self._mdp, pi).unsqueeze(-1) * pi

    def train(self) -> None:
        """Set the policy to the oracle's answer."""
        # The reward is the learned one; in pairs that the rollout visited, it is the mean of what it was paid there.
        S, A = self._mdp.n_states, self._mdp.n_actions
        learned = np.asarray(self._paid.reward(np.repeat(np.arange(S), A), np.tile(np.arange(A), S)), dtype=np.float64)
        rollout = self.rollout_buffer
        cells = rollout.observations.ravel().astype(int) * A + rollout.actions.ravel().astype(int)
        visits, paid = np.bincount(cells, minlength=S * A), np.bincount(cells, rollout.rewards.ravel(), S * A)
        r = np.where(visits > 0, paid / np.maximum(visits, 1), learned)
        mdp, pi = self._mdp.with_reward(torch.from_numpy(r.reshape(S, A))), self.table()
        answer = self.oracle.solve(mdp, self.tau, OracleAnswer(pi, policy_value(mdp, pi, self.tau), np.inf, 0))
        net: Any = self.policy.action_net
        with torch.no_grad():
            net.weight.copy_(answer.pi.log().clamp_min(RARE).T)
            net.bias.zero_()
        self._n_updates += 1
