r"""A Stable-Baselines3 policy initialised as a language model, and a follower that uses it.

Given the text so far, the follower's policy is the language model's distribution of the next token. The critic reads the model's
state without changing it: only the policy's gradient reaches the language model's weights.

The follower is paid its reward minus a cost for leaving the language model that it started from:

    r'(s,a) = r(s,a) - kl ( log pi(a|s) - log p_0(a|s) )

In expectation over the follower's own actions, the cost is the KL divergence ``kl KL(pi(s), p_0(s))`` of every step (as in
Stiennon et al. 2020). The reward contains the log-ratio of the chosen action and not the divergence itself, because a policy
gradient treats the reward as fixed: it would see no cost in the current step, only in later ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from ...envs.mdp.checks import check_number, require
from ...wrappers.segments import StepWrapper
from .language_model import LanguageModel, load_word_model

LanguageModelSpec = Callable[[], LanguageModel]
"""A function that makes a language model, one for each policy."""


class TextPolicy(ActorCriticPolicy):
    """An actor and critic on top of a language model.

    Args:
        observation_space: texts, ``MultiDiscrete([V + 1] * L)``, where V means an empty place.
        action_space: the next token, ``Discrete(V)``.
        lr_schedule: learning rate schedule of the algorithm.
        language_model: makes the initial model; by default the package's compact one.
        critic_width: size of the critic's hidden layer.
        kwargs: further arguments of ``ActorCriticPolicy``.

    Raises:
        ValueError: the spaces are not of texts, or the vocabulary size differs.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        lr_schedule: Schedule,
        language_model: LanguageModelSpec = load_word_model,
        critic_width: int = 64,
        **kwargs: Any,
    ) -> None:
        expected = "texts: MultiDiscrete observations, Discrete actions"
        require(isinstance(observation_space, gym.spaces.MultiDiscrete), "env", expected, repr(observation_space))
        require(isinstance(action_space, gym.spaces.Discrete), "env", expected, repr(action_space))
        self._make, self._critic_width = language_model, critic_width
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.language_model = self._make()
        tokens = int(self.action_space.n)  # type: ignore[attr-defined]
        require(self.language_model.size == tokens, "language_model", f"{tokens} tokens", self.language_model.size)
        last = nn.Linear(self._critic_width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = nn.Linear(self.language_model.width, self._critic_width)
        self.value_net = nn.Sequential(first, nn.Tanh(), last)  # type: ignore[assignment]  # SB3's own has one layer
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        mine = {"language_model": self._make, "critic_width": self._critic_width, "lr_schedule": self._dummy_schedule}
        theirs = ("observation_space", "action_space", "optimizer_class", "optimizer_kwargs")
        return mine | {name: getattr(self, name) for name in theirs}

    def _hidden(self, obs: Any) -> Tensor:
        return self.language_model.last_hidden(obs.long())

    def _distribution(self, hidden: Tensor) -> Distribution:
        return self.action_dist.proba_distribution(action_logits=self.language_model.logits(hidden))

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions ``[n]``, values ``[n, 1]`` and the actions' log-probabilities ``[n]`` for texts ``[n, L]``."""
        hidden = self._hidden(obs)
        distribution = self._distribution(hidden)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.value_net(hidden.detach()), distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values ``[n, 1]``, the actions' log-probabilities and the entropies ``[n]`` for texts ``[n, L]``."""
        hidden = self._hidden(obs)
        distribution = self._distribution(hidden)
        return self.value_net(hidden.detach()), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """Return the distribution of the next token for texts ``[n, L]``."""
        return self._distribution(self._hidden(obs))

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Return values ``[n, 1]`` for texts ``[n, L]``."""
        return self.value_net(self._hidden(obs).detach())  # type: ignore[no-any-return]


class KLReward(StepWrapper):
    """Subtract ``kl`` times the log-ratio from the reward; ``info["log_ratio"]`` is the log-ratio of each step.

    Args:
        venv: parallel text environments.
        reference: p_0, which stays fixed.
        kl: cost per nat, in units of reward.

    Raises:
        ValueError: ``kl`` is negative; in ``step``, no policy was given to :meth:`watch`.
    """

    def __init__(self, venv: VecEnv, reference: LanguageModel, kl: float) -> None:
        super().__init__(venv)
        self.kl = check_number(kl, "kl", low=0.0, open_high=True)
        self.reference = reference.eval().requires_grad_(False)
        self._policy: Any = None

    def watch(self, policy: ActorCriticPolicy) -> None:
        """Set the policy pi that takes the actions."""
        self._policy = policy

    def step_async(self, actions: NDArray[Any]) -> None:
        require(self._policy is not None, "policy", "a policy to watch (KLReward.watch)", "none")
        super().step_async(actions)

    def paid(self, rewards: NDArray[Any], dones: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[Any]:
        with torch.no_grad():
            texts, _ = self._policy.obs_to_tensor(self.now)
            taken = torch.as_tensor(self.taken, device=texts.device)
            ours = self._policy.get_distribution(texts).log_prob(taken)
            theirs = torch.log_softmax(self.reference.logits(self.reference.last_hidden(texts)), -1)
            theirs = theirs.gather(-1, taken.long().reshape(-1, 1))[:, 0]
            log_ratio = (ours - theirs).cpu().numpy()
        for info, value in zip(infos, log_ratio.tolist(), strict=True):
            info["log_ratio"] = value
        return (rewards - self.kl * log_ratio).astype(np.float32)  # type: ignore[no-any-return]


def writer(
    kl: float = 0.1, language_model: LanguageModelSpec = load_word_model, **settings: Any
) -> Callable[[VecEnv], PPO]:
    """Make a follower that writes text: PPO on a language model, with a KL penalty (:class:`KLReward`).

    Args:
        kl: cost per nat of divergence from the language model, in units of reward.
        language_model: makes the language model; one copy is trained, another stays fixed.
        settings: further arguments of SB3's ``PPO``.

    Raises:
        ValueError: ``kl`` is negative.
    """
    check_number(kl, "kl", low=0.0, open_high=True)

    def build(venv: VecEnv) -> PPO:
        near = KLReward(venv, language_model(), kl)
        ours: dict[str, Any] = {"n_steps": 32, "batch_size": 256, "n_epochs": 4, "learning_rate": 1e-3, "device": "cpu"}
        policy = {"language_model": language_model} | settings.get("policy_kwargs", {})
        model = PPO(TextPolicy, near, **(ours | settings | {"policy_kwargs": policy}))
        near.watch(model.policy)
        return model

    return build
