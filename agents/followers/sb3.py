"""Any Stable-Baselines3 algorithm as a follower. The leader uses its rollouts only, never its gradients.

A follower has its own random generators. Building or training a seeded SB3 model reseeds the global generators of Python, numpy
and torch. So each follower runs under its own saved state and restores the caller's afterwards: followers with seeds disturb
neither each other nor the leader.
"""

from __future__ import annotations

import inspect
import io
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ...envs.mdp import TabularMDP
from ...envs.mdp.checks import check_count, check_number, require
from ..files import write_whole
from ..plan import Cost
from .model_state import explorations, hold_weights, load_model_state, model_state
from .replay import TrueReplay, buffer_arrays, require_playable
from .spec import FALLING_ENTROPY, AlgorithmSpec, Answering, FollowerSpec, build_model

_IN_USE = threading.RLock()

FLATTER = 0.3
"""Factor of a policy's logits where its exploration is restored."""


class Generators:
    """Private states of the three global random generators (Python, numpy, torch).

    Threads take turns: while one runs under its private states, the others wait, since the global generators are shared.
    """

    def __init__(self, seed: int) -> None:
        self.state: tuple[Any, Any, Tensor] = (
            random.Random(seed).getstate(),
            np.random.RandomState(seed % 2**32).get_state(),
            torch.Generator().manual_seed(seed).get_state(),
        )
        self._active = False

    @staticmethod
    def _swap(state: tuple[Any, Any, Tensor]) -> tuple[Any, Any, Tensor]:
        held = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
        random.setstate(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        torch.set_rng_state(state[2])
        return held

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run under the private states, and restore the caller's in any case. Nested calls do nothing."""
        with _IN_USE:
            if self._active:
                yield
                return
            held, self._active = self._swap(self.state), True
            try:
                yield
            finally:
                self.state, self._active = self._swap(held), False

    def state_dict(self) -> dict[str, Any]:
        """Return the states as tensors and numbers."""
        (version, words, gauss), (kind, keys, pos, has_gauss, cached), torchs = self.state
        return {
            "python": (version, torch.tensor(words), gauss),
            "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), int(pos), int(has_gauss), float(cached)),
            "torch": torchs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned. Anything else raises an error."""
        (version, words, gauss), (kind, keys, *rest) = state["python"], state["numpy"]
        found = (version, tuple(words.tolist()), gauss), (kind, keys.numpy().astype(np.uint32), *rest), state["torch"]
        random.Random().setstate(found[0])
        np.random.RandomState().set_state(found[1])
        torch.Generator().set_state(found[2])
        self.state = found


class SB3Follower:
    """An SB3 model with its own parallel environments and random generators.

    Args:
        spec: the algorithm that the user gave.
        venv: its parallel environments; they pay the reward that it is trained on.
        gamma: the environment's discount.
        seed: seed of the model, its generators and its environments.
        linear: whether a linear policy can be exact (see :func:`.tuned.tuned_settings`).
        answering: how it turns into a policy, and how soft that is.

    Attributes:
        model: the SB3 model that is trained.
        policy: the policy that acts: the model's, or the average of its weights.
        q_temperature: current temperature of a Q-network's softmax policy, in units of reward.
        replay: its replay buffer, where x's moves are followed; else None.

    Raises:
        ValueError: see :func:`.spec.build_model`.
    """

    def __init__(
        self, spec: FollowerSpec, venv: VecEnv, gamma: float, seed: int, linear: bool, answering: Answering
    ) -> None:
        seed = check_count(seed, "seed")
        self.generators, self.seed, self.venv = Generators(seed), seed, venv
        self._q_temperature, self.q_temperature = answering.q_temperature, answering.q_temperature(1.0)
        with self.generators.active():
            venv.seed(seed)
            self.model = build_model(spec, venv, gamma, seed, linear)
            venv.seed(seed)
        self.model.set_logger(Logger(folder=None, output_formats=[]))

        # The entropy bonus is annealed where it is a constant that the user has not set.
        fixed = isinstance(self.model, OnPolicyAlgorithm) and isinstance(self.model.ent_coef, (int, float))
        by_class = isinstance(spec, type) or (isinstance(spec, AlgorithmSpec) and "ent_coef" not in spec.settings)
        tuned = FALLING_ENTROPY if linear and by_class else None
        self._entropy = (answering.entropy or tuned) if fixed else None

        # The policy that acts may be an average of the weights: uniform at first, later with weight 1 - averaging on the newest.
        self.replay: TrueReplay | None = None
        self._average = None
        if answering.averaging > 0.0:
            newest = 1.0 - answering.averaging
            if explorations(self.model):  # noise that is part of a graph cannot be copied
                with self.generators.active(), torch.no_grad():
                    self.model.policy.reset_noise(self.model.n_envs)  # type: ignore[operator]

            def average(past: Any, new: Any, n: Tensor | int) -> None:
                torch._foreach_lerp_(past, new, max(newest, 1.0 / (float(n) + 1.0)))

            self._average = AveragedModel(self.model.policy, multi_avg_fn=average)

    @property
    def policy(self) -> Any:
        return self.model.policy if self._average is None else self._average.module

    @property
    def num_timesteps(self) -> int:
        """Environment steps spent on training, including the rounding up to whole rollouts."""
        return int(self.model.num_timesteps)

    @property
    def recurrent(self) -> bool:
        """Whether it has memory; then its policy is no function of the observation, and cannot be tabulated."""
        return hasattr(self.model.policy, "lstm_actor")

    @cached_property
    def takes_masks(self) -> bool:
        """Whether it accepts action masks."""
        return "use_masking" in inspect.signature(self.model.learn).parameters

    def table(self, mdp: TabularMDP, obs: NDArray[Any]) -> Tensor:
        """Return the policy in every state of a model, ``[S, A]``, given the follower's observation of each, ``[S, ...]``."""
        asked = [obs]
        if self.takes_masks and mdp.mask is not None:
            asked.append(mdp.mask.expand(mdp.r.shape).reshape(-1, mdp.n_actions).numpy())
        pi = torch.as_tensor(self.probabilities(*asked))
        return pi / pi.sum(-1, keepdim=True)

    # --- training ------------------------------------------------------------------------------------------------

    def train(
        self, steps: int, planned_total: int, callback: BaseCallback | None = None, fresh_episodes: bool = True
    ) -> int:
        """Train for at least ``steps`` environment steps; return the number spent.

        Args:
            steps: environment steps; SB3 rounds up to whole rollouts.
            planned_total: total steps over which the model's own schedules run.
            callback: an SB3 callback.
            fresh_episodes: whether to begin new episodes, since the current ones began under another x. False continues them.
        """
        model: Any = self.model
        before = self.num_timesteps
        planned = max(planned_total, before + steps)
        progress_remaining = 1.0 - before / planned

        def update(num_timesteps: int, _: int) -> None:
            model._current_progress_remaining = max(0.0, 1.0 - num_timesteps / planned)

        with self.generators.active():
            if fresh_episodes:
                self.begin_episodes()
            self.q_temperature = self._q_temperature(progress_remaining)
            if self._entropy is not None:
                model.ent_coef = self._entropy(progress_remaining)
            self._forget_scales(steps)
            # SB3's schedules run over the leader's whole budget and not over each short call of ``learn``.
            model._update_current_progress_remaining = update
            try:
                masking = {"use_masking": self.venv.has_attr("action_masks")} if self.takes_masks else {}
                model.learn(steps, callback, log_interval=None, reset_num_timesteps=False, **masking)
            finally:
                del model._update_current_progress_remaining  # restores the class's own method
            if self._average is not None:
                self._average.update_parameters(model.policy)
        return self.num_timesteps - before

    def cost(self, steps: int) -> Cost:
        """Return the environment steps of :meth:`train` for ``steps``, in whole rollouts; approximate for whole episodes."""
        model: Any = self.model
        if isinstance(model, OnPolicyAlgorithm):
            rollout = model.n_steps * model.n_envs
        elif isinstance(model, OffPolicyAlgorithm) and model.train_freq.unit is TrainFrequencyUnit.STEP:  # type: ignore[union-attr]
            rollout = model.train_freq.frequency * model.n_envs  # type: ignore[union-attr]
        else:  # in whole episodes
            return Cost(steps, certain=False)
        return Cost(-(-steps // rollout) * rollout)

    def cost_alone(self, steps: int) -> Cost:
        """Return the environment steps of :meth:`train_alone`."""
        tenth = self.cost(-(-steps // 10))
        return tenth._replace(followers=-(-steps // tenth.followers) * tenth.followers)

    def begin_episodes(self) -> None:
        """Begin new episodes, with a seed drawn from the follower's seed and steps, so that no state of an environment is used.

        A follower loaded from a file thus continues as if it had never stopped, even if its environment keeps state across
        episodes.
        """
        seed = int(np.random.SeedSequence([self.seed, self.num_timesteps]).generate_state(1)[0]) % 2**31
        self.venv.seed(seed)
        self.model.action_space.seed(seed)  # SB3 draws its random exploration from it
        self.model._last_obs = None  # makes SB3 reset, as ``set_env`` does, without its checks

    def train_alone(self, steps: int) -> int:
        """Train for at least ``steps`` steps at a fixed x, in ten parts, with all schedules; return the steps spent."""
        before = self.num_timesteps
        while self.num_timesteps - before < steps:
            self.train(-(-steps // 10), before + steps)
        return self.num_timesteps - before

    def _forget_scales(self, steps: int) -> None:
        """Limit the weight of VecNormalize's statistics from before x moved to ``steps`` steps, so that they follow x and lam."""
        for statistics in self._statistics():
            statistics.count = min(statistics.count, float(steps))

    def _statistics(self) -> list[Any]:
        """Return the running moments of the user's VecNormalize that are updated: of observations, then of returns."""
        scaling = self.model.get_vec_normalize_env()
        if scaling is None or not scaling.training:
            return []
        return [*([scaling.obs_rms] if scaling.norm_obs else []), scaling.ret_rms]

    def _moments(self) -> list[tuple[Tensor, Tensor, float]]:
        return [(torch.tensor(s.mean), torch.tensor(s.var), float(s.count)) for s in self._statistics()]

    def _take_moments(self, moments: Any) -> None:
        for statistics, (mean, var, count) in zip(self._statistics(), moments, strict=True):
            fits = mean.shape == torch.as_tensor(statistics.mean).shape == var.shape
            fits = fits and bool((var >= 0.0).all())
            require(fits, "moments", f"shape {np.shape(statistics.mean)}, variances >= 0", tuple(mean.shape))
            statistics.mean, statistics.var = (part.double().numpy().copy() for part in (mean, var))
            statistics.count = check_number(count, "count", low=0.0)

    def policy_state(self) -> dict[str, Any]:
        """Return the weights of :attr:`policy` and the moments that scale its observations, as tensors."""
        weights = {name: tensor.clone() for name, tensor in self.policy.state_dict().items()}
        return {"weights": weights, "moments": self._moments()}

    def take_policy(self, state: dict[str, Any]) -> None:
        """Copy the weights and moments of another follower of the same kind; training continues from them.

        Raises:
            RuntimeError: the weights belong to another network.
        """
        self.model.policy.load_state_dict(state["weights"])
        hold_weights(self.model)
        if self._average is not None:
            self._average.module.load_state_dict(state["weights"])
        self._take_moments(state["moments"])

    @torch.no_grad()
    def explore_again(self) -> None:
        """Restore the exploration of a trained policy: the spread of a Gaussian, or flatter action probabilities."""
        actor: Any = self.model.policy
        if not isinstance(self.model.policy, ActorCriticPolicy):
            return
        if hasattr(actor, "log_std"):
            actor.log_std.fill_(actor.log_std_init)
        else:
            actor.action_net.weight.mul_(FLATTER)
            actor.action_net.bias.mul_(FLATTER)

    # --- acting --------------------------------------------------------------------------------------------------

    def act(self, obs: Any, greedily: bool = False, masks: Any = None) -> NDArray[Any]:
        """Return actions of the follower's policy, without exploration noise, ``[n, ...]``.

        Every observation counts as the first of an episode; for whole episodes see :meth:`player`.

        Args:
            obs: observations, ``[n, ...]``.
            greedily: whether to take the policy's best action (for continuous actions, its mean). Default: False.
            masks: available actions, bool ``[n, A]``, for models that accept masks. Default: all are available.
        """
        with self.generators.active(), torch.no_grad():
            if self._q_network is not None and not greedily:
                return np.asarray(torch.distributions.Categorical(probs=self._probabilities(obs)).sample().numpy())
            told = {} if masks is None else {"action_masks": masks}
            actions, _ = self.policy.predict(self._seen(obs), deterministic=greedily, **told)
        return np.asarray(actions)

    def _seen(self, obs: Any) -> Any:
        """Scale observations as the model's training does."""
        scaling = self.model.get_vec_normalize_env()
        return obs if scaling is None else scaling.normalize_obs(obs)

    def player(self, venv: VecEnv, greedily: bool = False) -> Callable[[Any], NDArray[Any]]:
        """Return a function that plays one episode in each environment of ``venv``, starting at a reset, as :meth:`act` does.

        It passes action masks at every step, where the model accepts them and the environments have them. A recurrent policy
        keeps its hidden state through the episodes, starting at zero. Make a new player for new episodes.
        """
        if not self.recurrent and self.takes_masks and venv.has_attr("action_masks"):
            return lambda obs: self.act(obs, greedily, np.stack(venv.env_method("action_masks")))
        if not self.recurrent:
            return partial(self.act, greedily=True) if greedily else self.act
        hidden: Any = None
        starts = np.ones(venv.num_envs, dtype=bool)

        def play(obs: Any) -> NDArray[Any]:
            nonlocal hidden, starts
            with self.generators.active(), torch.no_grad():
                actions, hidden = self.policy.predict(self._seen(obs), hidden, starts, deterministic=greedily)
            starts = np.zeros_like(starts)
            return np.asarray(actions)

        return play

    def probabilities(self, obs: Any, masks: Any = None, /) -> NDArray[np.float64]:
        """Return the policy over discrete actions, ``[n, A]``: exact where the model has one, else its deterministic action.

        Args:
            obs: observations, ``[n, ...]``.
            masks: available actions, bool ``[n, A]``, for models that accept masks. Default: None.

        Raises:
            ValueError: the policy is recurrent, thus no function of the observation.
        """
        expected = "a policy that is a function of the observation"
        require(not self.recurrent, "follower", expected, f"{type(self.model).__name__}, which is recurrent")
        with self.generators.active(), torch.no_grad():
            return np.asarray(self._probabilities(obs, masks).double().numpy())

    def trained_probabilities(self, obs: Any) -> NDArray[np.float64]:
        """Return the probabilities of the policy in training, not averaged: the one that plays its next rollout."""
        with self.generators.active(), torch.no_grad():
            return np.asarray(self._probabilities(obs, policy=self.model.policy).double().numpy())

    @property
    def _q_network(self) -> Any:
        """Return the network of Q over discrete actions, or of its quantiles; None for other models."""
        return getattr(self.policy, "q_net", getattr(self.policy, "quantile_net", None))

    def _probabilities(self, obs: Any, masks: Any = None, policy: Any = None) -> Tensor:
        policy = self.policy if policy is None else policy
        if policy.training:
            policy.set_training_mode(False)
        obs = self._seen(obs)
        tensor, _ = policy.obs_to_tensor(obs)
        if self._q_network is not None:
            return torch.softmax(mean_over_quantiles(self._q_network(tensor)) / self.q_temperature, -1).cpu()
        if hasattr(policy, "get_distribution"):
            told = () if masks is None else (masks,)
            return torch.as_tensor(policy.get_distribution(tensor, *told).distribution.probs).detach().clone().cpu()
        actions, _ = policy.predict(obs, deterministic=True)
        n = int(self.model.action_space.n)  # type: ignore[attr-defined]
        return torch.nn.functional.one_hot(torch.as_tensor(actions).long(), n).double()

    # --- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the policy that acts as a plain SB3 model, atomically: ``PPO.load(path)`` and rl_zoo3 can read it.

        The weights are the averaged ones where followers average, and schedules are frozen at their current values, so that
        the file needs SB3 only. The statistics of a VecNormalize, without which the policy differs, are saved where rl_zoo3
        looks for them: for ``name.zip`` in ``name/vecnormalize.pkl``. For a model without any, an old file there is removed.
        These files hold pickles, like every file of SB3: load only what you trust.

        Args:
            path: the file; without a suffix, ``.zip`` is added.

        Raises:
            OSError: the file cannot be written.
        """
        path, blob = Path(path), io.BytesIO()
        model: Any = self.model
        names = ("learning_rate", "lr_schedule", "action_noise")
        held = {name: vars(model)[name] for name in names if name in vars(model)}
        weights = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
        try:
            if isinstance(held.get("action_noise"), VectorizedActionNoise):  # sized for the current n_envs
                model.action_noise = model.action_noise.base_noise
            if "lr_schedule" in held:
                model.learning_rate = float(held["lr_schedule"](model._current_progress_remaining))
                model.lr_schedule = FloatSchedule(model.learning_rate)
            model.policy.load_state_dict(self.policy.state_dict())
            model.save(blob, exclude=["_trigger_callback"])  # ARS's, replaced by a closure above
        finally:
            model.policy.load_state_dict(weights)
            vars(model).update(held)
        path = path if path.suffix else path.with_suffix(".zip")
        scaling, statistics = model.get_vec_normalize_env(), statistics_beside(path)
        if scaling is not None:
            write_whole(statistics, lambda file: pickle.dump(scaling, file))
        elif statistics.is_file():
            statistics.unlink()
        return write_whole(path, lambda file: file.write(blob.getbuffer()))  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return all state that training continues from, as tensors and numbers, except the :meth:`replay_arrays`.

        It holds the model's state (:func:`.model_state.model_state`), the average, the generators and a VecNormalize's moments.
        Environments begin new episodes, with a seed drawn from these.
        """
        return {
            **model_state(self.model),
            "average": None if self._average is None else self._average.state_dict(),
            "q_temperature": self.q_temperature,
            "moments": self._moments(),
            "generators": self.generators.state_dict(),
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned. The state of another model raises an error."""
        load_model_state(self.model, state)
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.q_temperature = check_number(state["q_temperature"], "q_temperature", low=0.0, open_low=True)
        self._take_moments(state["moments"])
        self.generators.load_state_dict(state["generators"])
        self.seed = check_count(state["seed"], "seed")

    def replay_arrays(self, whole: bool = False) -> dict[str, NDArray[Any]]:
        """Return the arrays of the replay buffer by name; empty where there is no buffer.

        Args:
            whole: whether to return whole arrays, to read into, or only their filled part. Default: False.
        """
        buffer = getattr(self.model, "replay_buffer", None)
        return {} if buffer is None else buffer_arrays(buffer, whole)

    def replay_read(self, read: bool) -> None:
        """Finish loading a state: check the replay buffer's arrays where they were read, else empty the buffer."""
        buffer = getattr(self.model, "replay_buffer", None)
        if buffer is not None:
            require_playable(buffer) if read else buffer.reset()


def statistics_beside(path: Path) -> Path:
    """Return the path of the VecNormalize statistics that belong to a follower saved at ``path``."""
    return path.with_suffix("") / "vecnormalize.pkl"


def mean_over_quantiles(Q: Tensor) -> Tensor:
    """Return Q, ``[n, A]``, from Q itself or from its quantiles, ``[n, K, A]``."""
    return Q.mean(1) if Q.ndim == 3 else Q
