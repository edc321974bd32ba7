r"""A follower's reward less what it costs to leave the language model that it started from.

    r'(s,a) = r(s,a) - kl ( log pi(a|s) - log p_0(a|s) )

In expectation over the follower's own actions that is the KL divergence ``kl KL(pi(s), p_0(s))`` of every step (as in Stiennon et
al. 2020). The log-ratio of the action taken stands in the reward, and not the divergence itself, because a policy gradient
takes the reward for fixed: it would then see no cost in the step itself, only in later ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from ...envs.mdp.checks import check_number, require
from .language_model import LanguageModel


class KLReward(VecEnvWrapper):
    """Pays the reward above; ``info["log_ratio"]`` is what each step cost, before ``kl``.

    Args:
        venv: copies of a world of text.
        reference: p_0, which stands still.
        kl: cost of a nat, in the reward's unit.

    Raises:
        ValueError: a negative cost; in ``step``, no policy to watch.
    """

    def __init__(self, venv: VecEnv, reference: LanguageModel, kl: float) -> None:
        super().__init__(venv)
        self.kl = check_number(kl, "kl", low=0.0, open_high=True)
        self.reference = reference.eval().requires_grad_(False)
        self._policy: ActorCriticPolicy | None = None
        self._now: Any = None
        self._log_ratio: Any = None

    def watch(self, policy: ActorCriticPolicy) -> None:
        """Whose actions are to come: pi."""
        self._policy = policy

    def reset(self) -> VecEnvObs:
        obs = self.venv.reset()
        self._now = np.array(obs)
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        require(self._policy is not None, "policy", "a policy to watch (KLReward.watch)", "none")
        assert self._policy is not None
        with torch.no_grad():
            texts, _ = self._policy.obs_to_tensor(self._now)
            assert isinstance(texts, torch.Tensor)
            taken = torch.as_tensor(actions, device=texts.device)
            ours = self._policy.get_distribution(texts).log_prob(taken)
            theirs = torch.log_softmax(self.reference.logits(self.reference.last_hidden(texts)), -1)
            theirs = theirs.gather(-1, taken.long().reshape(-1, 1))[:, 0]
            self._log_ratio = (ours - theirs).cpu().numpy()
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        for info, log_ratio in zip(infos, self._log_ratio.tolist(), strict=True):
            info["log_ratio"] = log_ratio
        self._now = np.array(obs)
        return obs, (rewards - self.kl * self._log_ratio).astype(np.float32), dones, infos
