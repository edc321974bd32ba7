"""Any Stable-Baselines3 algorithm as a follower: only its rollouts are asked for, never its gradients.

A follower owns its generators. Building or training a seeded SB3 model reseeds Python's, numpy's and torch's global
generators, so each follower runs under its own saved state and hands the caller's back: two followers with seeds do not
disturb each other, and neither disturbs the leader.
"""

from __future__ import annotations

import importlib
import inspect
import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch.optim.swa_utils import AveragedModel

from ...envs.mdp.checks import check_gamma, check_number, require
from ..files import restore_optimizer, write_whole
from ..schedules import Geometric, Linear, Schedule
from .replay import TrueReplay, buffer_arrays, buffer_state, restore_buffer


@dataclass(frozen=True, eq=False)
class Adjusted:
    """An SB3 class with some settings of its own, beside those that suit a moving x (see :func:`tuned_settings`).

    Attributes:
        algorithm: the class.
        settings: arguments of its constructor; ``policy`` too.

    Raises:
        ValueError: no SB3 class, an argument that it does not have.
    """

    algorithm: type[BaseAlgorithm]
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        is_class = isinstance(self.algorithm, type) and issubclass(self.algorithm, BaseAlgorithm)
        require(is_class, "follower", "an SB3 algorithm class", repr(self.algorithm))
        known = [name for name in inspect.signature(self.algorithm).parameters if name not in ("env", "seed")]
        unknown = sorted(set(self.settings) - set(known))
        require(not unknown, "follower", f"settings of {self.algorithm.__name__}: {known}", unknown)


FollowerSpec = type[BaseAlgorithm] | Adjusted | Callable[[VecEnv], BaseAlgorithm]
"""What a user gives as follower: an SB3 class, :class:`Adjusted` or not, or a callable that builds a model on a VecEnv."""

Weights = tuple[torch.Tensor, ...] | list[torch.Tensor]


class Generators:
    """Private states of the three global generators."""

    def __init__(self, seed: int) -> None:
        self.state: tuple[Any, Any, torch.Tensor] = (
            random.Random(seed).getstate(),
            np.random.RandomState(seed % 2**32).get_state(),
            torch.Generator().manual_seed(seed).get_state(),
        )
        self._active = False

    @staticmethod
    def _swap(state: tuple[Any, Any, torch.Tensor]) -> tuple[Any, Any, torch.Tensor]:
        held = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
        random.setstate(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        torch.set_rng_state(state[2])
        return held

    def as_tensors(self) -> dict[str, Any]:
        """The states as tensors and numbers."""
        (version, words, gauss), (kind, keys, pos, has_gauss, cached), torchs = self.state
        return {
            "python": (version, torch.tensor(words), gauss),
            "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), int(pos), int(has_gauss), float(cached)),
            "torch": torchs,
        }

    def from_tensors(self, tensors: dict[str, Any]) -> None:
        """Take back what :meth:`as_tensors` gave; raises what something else leads to."""
        (version, words, gauss), (kind, keys, *rest) = tensors["python"], tensors["numpy"]
        state = (version, tuple(words.tolist()), gauss), (kind, keys.numpy().astype(np.uint32), *rest), tensors["torch"]
        random.Random().setstate(state[0])
        np.random.RandomState().set_state(state[1])
        torch.Generator().set_state(state[2])
        self.state = state

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run under the private states; the caller's come back whatever happens. Inside itself it does nothing."""
        if self._active:
            yield
            return
        held, self._active = self._swap(self.state), True
        try:
            yield
        finally:
            self.state, self._active = self._swap(held), False


def _linear(**policy_kwargs: Any) -> dict[str, Any]:
    return {"net_arch": [], **policy_kwargs}


FALLING_Q_TEMPERATURE = Geometric(0.3, 0.05)
"""Temperature of a Q-network's answers, in the reward's unit."""
FALLING_ENTROPY = Geometric(0.2, 0.05)
"""Entropy bonus of a linear policy in training: soft at first, so that no action is given up before x has settled."""


NEAR = 0.95
"""Up to this discount a linear critic's one-step errors are trusted, and steps are long."""


def tuned_settings(name: str, n_envs: int, linear: bool, gamma: float, n_inputs: int = 0) -> dict[str, Any]:
    """Settings of an algorithm that has to track a moving x, by class name; SB3's own for an algorithm not listed.

    Args:
        name: e.g. ``"PPO"``.
        n_envs: copies of the environment.
        linear: whether observations are product features, in which a linear policy or Q-function is exact.
        gamma: the discount.
        n_inputs: numbers in an action, where actions are a Box.
    """
    if n_inputs:
        return _continuous_settings(n_envs, n_inputs).get(name, {})
    policy_kwargs = _linear() if linear else {}
    near, entropy = gamma <= NEAR, FALLING_ENTROPY.start
    gae_lambda = 0.5 if linear and near else 0.95
    rate = Linear(0.03, 0.003) if near else 0.003
    settings: dict[str, dict[str, Any]] = {
        "PPO": {
            "n_steps": 64 if linear and not near else 16,
            "batch_size": 16 * n_envs,
            "n_epochs": 8,
            "gae_lambda": gae_lambda,
            "learning_rate": rate if linear else 3e-4,
            "ent_coef": entropy if linear else 0.0,
            "policy_kwargs": policy_kwargs,
        },
        "A2C": {
            "n_steps": 8,
            "gae_lambda": gae_lambda,
            "learning_rate": rate if linear else 7e-4,
            "ent_coef": entropy if linear else 0.0,
            "policy_kwargs": policy_kwargs,
        },
        "DQN": {
            "learning_rate": 0.01 if linear else 1e-4,
            "buffer_size": 50_000,
            "batch_size": 1024 if linear else 256,
            "learning_starts": 1_000,
            "train_freq": 1,
            "gradient_steps": 2,
            "target_update_interval": 16 * n_envs,
            "exploration_initial_eps": 0.2,
            "exploration_final_eps": 0.2,
            "policy_kwargs": policy_kwargs,
        },
    }
    settings["QRDQN"] = {**settings["DQN"], "batch_size": 256, "policy_kwargs": {**policy_kwargs, "n_quantiles": 20}}
    settings["MaskablePPO"] = settings["PPO"]
    settings["RecurrentPPO"] = _recurrent(n_envs, entropy if linear else 0.0)
    settings["TRPO"] = {
        "n_steps": 32,
        "batch_size": 8 * n_envs,
        "gae_lambda": gae_lambda,
        "policy_kwargs": policy_kwargs,
    }
    settings["ARS"] = _random_search(n_envs)
    return settings.get(name, {})


def _recurrent(n_envs: int, entropy: float) -> dict[str, Any]:
    """A rollout of as many steps as PPO's, and a small memory."""
    policy_kwargs = {"lstm_hidden_size": 32, "net_arch": []}
    return {
        "n_steps": 32,
        "batch_size": 8 * n_envs,
        "n_epochs": 4,
        "learning_rate": 3e-3,
        "ent_coef": entropy,
        "policy_kwargs": policy_kwargs,
    }


def _random_search(n_envs: int) -> dict[str, Any]:
    """A candidate plays one episode in every copy, for all copies are stepped whatever is asked; few candidates."""
    return {"n_delta": 4, "n_eval_episodes": n_envs}


def _continuous_settings(n_envs: int, n_inputs: int) -> dict[str, dict[str, Any]]:
    """Small smooth networks (with ReLU, TD3's actor ends at the bounds), exploration of a fifth to a tenth of the range."""
    small: dict[str, Any] = {"net_arch": [64, 64], "activation_fn": torch.nn.Tanh}
    off_policy: dict[str, Any] = {
        "buffer_size": 100_000,
        "batch_size": 1024,
        "learning_starts": 1_000,
        "train_freq": 1,
        "gradient_steps": max(1, n_envs // 4),
        "policy_kwargs": small,
    }
    # A critic of its own deterministic actor follows x as fast as its targets do: small batches, more steps, a quick target.
    quick = {**off_policy, "batch_size": 256, "gradient_steps": max(1, n_envs // 2), "tau": 0.02, "learning_rate": 3e-3}
    noise = NormalActionNoise(np.zeros(n_inputs), np.full(n_inputs, 0.1))
    narrow = {**small, "log_std_init": -1.5}
    return {
        "PPO": {
            "n_steps": 32,
            "batch_size": 8 * n_envs,
            "n_epochs": 10,
            "learning_rate": 1e-3,
            "policy_kwargs": narrow,
        },
        "A2C": {"n_steps": 8, "gae_lambda": 0.95, "policy_kwargs": narrow},
        "SAC": {**off_policy, "learning_rate": 1e-3},
        "TD3": {**quick, "action_noise": noise},
        "DDPG": {**quick, "action_noise": noise},
        "TQC": {**off_policy, "learning_rate": 1e-3, "batch_size": 256},
        "TRPO": {"n_steps": 32, "batch_size": 8 * n_envs, "policy_kwargs": narrow},
        "RecurrentPPO": _recurrent(n_envs, 0.0),
        "ARS": _random_search(n_envs),
    }


@contextmanager
def _planned(model: BaseAlgorithm, total: int) -> Iterator[None]:
    """Let SB3's schedules run over the leader's whole budget instead of over each short call of ``learn``."""

    def update(num_timesteps: int, _: int) -> None:
        model._current_progress_remaining = max(0.0, 1.0 - num_timesteps / total)

    model._update_current_progress_remaining = update  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del model._update_current_progress_remaining  # the class's own shows again


def _count_each_step_once(model: Any) -> None:
    """Let ARS count environment steps: its own callback runs once a copy in each step, and counts all copies every time."""
    seen: Any = None

    def count(_locals: dict[str, Any], _globals: dict[str, Any], callback: Any, n_envs: int) -> None:
        nonlocal seen
        if _locals["new_observations"] is not seen:
            seen = _locals["new_observations"]
            model.num_timesteps += n_envs
            callback.on_step()

    model._trigger_callback = count


def _policy_name(algorithm: type[BaseAlgorithm]) -> str:
    """The plain policy of an algorithm: of ARS the linear one (its search starts at 0, which a network hardly leaves)."""
    names = algorithm.policy_aliases
    if "LinearPolicy" in names:
        return "LinearPolicy"
    return "MlpPolicy" if "MlpPolicy" in names else "MlpLstmPolicy"


def build_model(spec: FollowerSpec, venv: VecEnv, gamma: float, seed: int, linear: bool) -> BaseAlgorithm:
    """The user's algorithm on ``venv``.

    Raises:
        ValueError: an algorithm that cannot act in the action space, a callable that returns no SB3 model or one with
            another discount than the environment's, something that is neither a class nor a callable.
    """
    own: dict[str, Any] = spec.settings if isinstance(spec, Adjusted) else {}
    spec = spec.algorithm if isinstance(spec, Adjusted) else spec
    if isinstance(spec, type):
        require(issubclass(spec, BaseAlgorithm), "follower", "an SB3 algorithm class or a callable", spec.__name__)
        n_inputs = int(np.prod(venv.action_space.shape)) if isinstance(venv.action_space, gym.spaces.Box) else 0
        settings = tuned_settings(spec.__name__, venv.num_envs, linear, gamma, n_inputs)
        algorithm: Any = spec
        if "gamma" in inspect.signature(spec).parameters:  # ARS has none
            settings = {"gamma": gamma, **settings}
        settings = {"policy": _policy_name(algorithm), "device": "cpu", **settings, **own}
        build: Callable[[VecEnv], Any] = lambda venv: algorithm(env=venv, seed=seed, **settings)  # noqa: E731
    else:
        expected = "an SB3 algorithm class or a callable from a VecEnv to a model"
        require(callable(spec) and takes(spec, 1), "follower", expected, repr(spec))
        build = spec
    name = getattr(spec, "__name__", repr(spec))
    try:
        model = build(venv)
    except (AssertionError, NotImplementedError) as error:
        spaces = f"actions in {venv.action_space} from observations in {venv.observation_space}"
        raise ValueError(f"follower: expected an algorithm for {spaces}, got {name} ({error})") from error
    require(
        isinstance(model, BaseAlgorithm),
        "follower",
        "a callable that returns an SB3 model",
        f"{type(model).__name__} from {name}",
    )
    theirs = check_gamma(getattr(model, "gamma", gamma))
    require(
        abs(theirs - gamma) < 1e-12,
        "follower",
        f"a model with the environment's gamma={gamma}",
        f"gamma={theirs} from {name}",
    )
    assert isinstance(model, BaseAlgorithm)
    _require_its_world(model, venv, name)
    return model


def _require_its_world(model: BaseAlgorithm, venv: VecEnv, name: str) -> None:
    """Raise ``ValueError`` for a model that lives elsewhere, sees something else, or scales rewards as they once were."""
    inner: Any = model.get_env()
    while isinstance(inner, VecEnvWrapper) and inner is not venv:
        inner = inner.venv
    require(inner is venv, "follower", "a model on the VecEnv it is given, for x reaches no other", f"one from {name}")
    seen, shape = model.observation_space.shape, venv.observation_space.shape
    require(seen == shape, "follower", f"a model that observes what the world shows, of shape {shape}", f"shape {seen}")
    scaling = model.get_vec_normalize_env()
    frozen = scaling is not None and scaling.norm_reward and not scaling.training
    expected = "a VecNormalize whose scale of rewards follows x (training=True), or norm_reward=False"
    require(not frozen, "follower", expected, f"training=False and norm_reward=True from {name}")


@dataclass(frozen=True)
class Answering:
    """How a follower answers when it is asked for its policy, and how soft it is trained to be.

    Attributes:
        q_temperature: a model with a Q-network and discrete actions answers with ``softmax(Q / q_temperature)``; by the
            follower's own progress.
        averaging: the answer is that of an average of the weights after each call of ``train``, of which the past keeps
            this share, in [0, 1), and at first no more than an equal one: what the optimiser's noise moves back and forth
            does not reach the leader.
        entropy: coefficient of the entropy bonus of a model that has a fixed one (PPO's and A2C's ``ent_coef``), by the
            follower's own progress; None leaves the model's.
    """

    q_temperature: Schedule = FALLING_Q_TEMPERATURE
    averaging: float = 0.0
    entropy: Schedule | None = None


def takes(call: Callable[..., Any], n: int) -> bool:
    """Whether a callable can be called with so many arguments, as far as can be told."""
    try:
        inspect.signature(call).bind(*[None] * n)
    except TypeError:
        return False
    except ValueError:  # without a signature
        return True
    return True


class SB3Follower:
    """One SB3 model on its own copies of the environment, with its own generators.

    Args:
        spec: the user's algorithm.
        venv: its copies of the world, its reward being what it is trained on.
        gamma: the environment's discount.
        seed: of the model, its generators and its world.
        linear: whether a linear policy is exact (see :func:`tuned_settings`).
        answering: how it answers.

    Attributes:
        model: the SB3 model that is trained.
        policy: what answers: the model's policy, or the average of its weights.
        q_temperature: at which a Q-network answers now.
        replay: its replay buffer, where that is kept true.
    """

    def __init__(
        self, spec: FollowerSpec, venv: VecEnv, gamma: float, seed: int, linear: bool, answering: Answering
    ) -> None:
        self.generators, self.seed = Generators(seed), seed
        self.venv = venv
        self._q_temperature, self.q_temperature = answering.q_temperature, answering.q_temperature(1.0)
        with self.generators.active():
            venv.seed(seed)
            self.model = build_model(spec, venv, gamma, seed, linear)
            venv.seed(seed)
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        if hasattr(self.model, "_trigger_callback"):
            _count_each_step_once(self.model)
        fixed = isinstance(self.model, OnPolicyAlgorithm) and isinstance(self.model.ent_coef, (int, float))
        by_class = isinstance(spec, type) or (isinstance(spec, Adjusted) and "ent_coef" not in spec.settings)
        tuned = FALLING_ENTROPY if linear and by_class else None
        self._entropy = (answering.entropy or tuned) if fixed else None
        self.replay: TrueReplay | None = None
        self._average = None
        if answering.averaging > 0.0:
            newest = 1.0 - answering.averaging
            if self._explorations():  # the graph of what was drawn cannot be copied
                with self.generators.active(), torch.no_grad():
                    self.model.policy.reset_noise(self.model.n_envs)  # type: ignore[operator]

            def average(past: Weights, new: Weights, n: torch.Tensor | int) -> None:
                torch._foreach_lerp_(past, new, max(newest, 1.0 / (float(n) + 1.0)))

            self._average = AveragedModel(self.model.policy, multi_avg_fn=average)

    @property
    def policy(self) -> Any:
        return self.model.policy if self._average is None else self._average.module

    @property
    def num_timesteps(self) -> int:
        """Environment steps spent by training, rollouts rounded up included."""
        return int(self.model.num_timesteps)

    @property
    def recurrent(self) -> bool:
        """Whether it remembers: its policy is then no function of the observation, and has no table."""
        return hasattr(self.model.policy, "lstm_actor")

    @cached_property
    def takes_masks(self) -> bool:
        """Whether it can be told which actions exist."""
        return "use_masking" in inspect.signature(self.model.learn).parameters

    def train(
        self, steps: int, planned_total: int, callback: BaseCallback | None = None, fresh_episodes: bool = True
    ) -> int:
        """Train for at least ``steps`` steps; return the steps really spent.

        Args:
            steps: environment steps asked for; SB3 rounds up to whole rollouts.
            planned_total: steps over which the model's own schedules run.
            callback: SB3's.
            fresh_episodes: whether episodes begin anew: what was begun was under another x. False goes on with them.
        """
        before = self.num_timesteps
        with self.generators.active():
            if fresh_episodes:
                self.begin_episodes()
            planned = max(planned_total, before + steps)
            progress_remaining = 1.0 - before / planned
            self.q_temperature = self._q_temperature(progress_remaining)
            self._forget_scales(steps)
            if self._entropy is not None:
                self.model.ent_coef = self._entropy(progress_remaining)  # type: ignore[attr-defined]
            masking = {"use_masking": self.venv.has_attr("action_masks")} if self.takes_masks else {}
            with _planned(self.model, planned):
                self.model.learn(steps, callback, log_interval=None, reset_num_timesteps=False, **masking)  # type: ignore[arg-type]
            if self._average is not None:
                self._average.update_parameters(self.model.policy)
        return self.num_timesteps - before

    def begin_episodes(self) -> None:
        """New episodes, their seed drawn from the follower's and the steps spent: they go on from nothing that is in a world.

        So a follower that comes from a file lives on as if it had never been away, whatever its environment keeps to itself.
        """
        seed = int(np.random.SeedSequence([self.seed, self.num_timesteps]).generate_state(1)[0]) % 2**31
        self.venv.seed(seed)
        self.model.action_space.seed(seed)  # of which SB3's random exploration is drawn
        self.model._last_obs = None  # as ``set_env`` does, without its checks: SB3 resets

    def train_alone(self, steps: int) -> int:
        """Train at an x that stays, for at least ``steps`` steps, in tenths: all schedules run; return the steps spent."""
        before = self.num_timesteps
        while self.num_timesteps - before < steps:
            self.train(-(-steps // 10), before + steps)
        return self.num_timesteps - before

    def _forget_scales(self, steps: int) -> None:
        """Let what a VecNormalize gathered before x moved weigh no more than ``steps`` steps: it follows x and lam."""
        for statistics in self._statistics():
            statistics.count = min(statistics.count, float(steps))

    def _statistics(self) -> list[Any]:
        """The running moments of the user's VecNormalize that go on: of observations, then of returns."""
        scaling = self.model.get_vec_normalize_env()
        if scaling is None or not scaling.training:
            return []
        return [*([scaling.obs_rms] if scaling.norm_obs else []), scaling.ret_rms]

    def _seen(self, obs: Any) -> Any:
        """Observations as the model was trained on them."""
        scaling = self.model.get_vec_normalize_env()
        return obs if scaling is None else scaling.normalize_obs(obs)

    def act(self, obs: Any) -> NDArray[Any]:
        """Actions of the follower's policy, without exploration noise, ``[n, ...]``.

        All actions are taken to exist, and every observation to be an episode's first: see :meth:`player`.
        """
        return self._answer(obs, None, greedily=False)

    def act_greedily(self, obs: Any) -> NDArray[Any]:
        """The actions that the policy holds best, ``[n, ...]``: for continuous actions, its mean."""
        return self._answer(obs, None, greedily=True)

    def _answer(self, obs: Any, masks: Any, greedily: bool) -> NDArray[Any]:
        with self.generators.active(), torch.no_grad():
            if self._q_network is not None and not greedily:
                return np.asarray(torch.distributions.Categorical(probs=self._probabilities(obs)).sample().numpy())
            told = {} if masks is None else {"action_masks": masks}
            actions, _ = self.policy.predict(self._seen(obs), deterministic=greedily, **told)
        return np.asarray(actions)

    def player(self, venv: VecEnv, greedily: bool = False) -> Callable[[Any], NDArray[Any]]:
        """What plays one episode in each copy of ``venv``, from their resets: :meth:`act`, or :meth:`act_greedily`.

        It is told the copies' action masks at every step, where it takes them and they have them; a recurrent policy carries
        a hidden state of its own through the episodes, which starts at zero. Take a new player for new episodes.
        """
        if self.recurrent:
            return _RecurrentPlayer(self, venv.num_envs, greedily)
        if self.takes_masks and venv.has_attr("action_masks"):
            return lambda obs: self._answer(obs, np.stack(venv.env_method("action_masks")), greedily)
        return self.act_greedily if greedily else self.act

    def probabilities(self, obs: Any, masks: Any = None, /) -> NDArray[np.float64]:
        """The policy over discrete actions, ``[n, A]``: exact where the model shows it, else its deterministic choice.

        Args:
            obs: observations, ``[n, ...]``.
            masks: which actions exist, ``[n, A]``, for a model that can be told.

        Raises:
            ValueError: a recurrent policy, which is no function of the observation.
        """
        expected = "a policy that is a function of the observation"
        require(not self.recurrent, "follower", expected, f"{type(self.model).__name__}, which remembers")
        with self.generators.active(), torch.no_grad():
            return np.asarray(self._probabilities(obs, masks).double().numpy())

    def trained_probabilities(self, obs: Any) -> NDArray[np.float64]:
        """The same of the policy that is being trained, not averaged: what its next rollout plays."""
        with self.generators.active(), torch.no_grad():
            return np.asarray(self._probabilities(obs, policy=self.model.policy).double().numpy())

    @property
    def _q_network(self) -> Any:
        """What answers Q over discrete actions, or its quantiles; None for other models."""
        policy = self.policy
        return getattr(policy, "q_net", getattr(policy, "quantile_net", None))

    def _probabilities(self, obs: Any, masks: Any = None, policy: Any = None) -> torch.Tensor:
        policy = self.policy if policy is None else policy
        if policy.training:
            policy.set_training_mode(False)
        obs = self._seen(obs)
        tensor, _ = policy.obs_to_tensor(obs)
        if self._q_network is not None:
            Q = self._q_network(tensor)
            Q = Q.mean(1) if Q.ndim == 3 else Q  # of the quantiles [n, quantiles, A]
            return torch.softmax(Q / self.q_temperature, -1).cpu()
        if hasattr(policy, "get_distribution"):
            told = () if masks is None else (masks,)
            return torch.as_tensor(policy.get_distribution(tensor, *told).distribution.probs).detach().clone().cpu()
        actions, _ = policy.predict(obs, deterministic=True)
        n = int(self.model.action_space.n)  # type: ignore[attr-defined]
        return torch.nn.functional.one_hot(torch.as_tensor(actions).long(), n).double()

    def save(self, path: str | Path) -> Path:
        """Write what answers as a plain SB3 model, whole or not at all: ``PPO.load(path)`` reads it, and so does rl_zoo3.

        Its weights are the averaged ones, where followers answer by an average; schedules stand still at where they are, so
        that the file needs nothing but SB3. Like every file of SB3's it holds pickled settings: load only what you trust.

        Args:
            path: the file, ``.zip`` where it has no suffix.

        Raises:
            OSError: a file that cannot be written.
        """
        model: Any = self.model
        names = ("learning_rate", "lr_schedule", "action_noise")
        held = {name: vars(model)[name] for name in names if name in vars(model)}
        weights = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".zip")
        blob = io.BytesIO()
        try:
            if isinstance(held.get("action_noise"), VectorizedActionNoise):  # of as many copies as there are here
                model.action_noise = model.action_noise.base_noise
            if "lr_schedule" in held:
                model.learning_rate = float(held["lr_schedule"](model._current_progress_remaining))
                model.lr_schedule = FloatSchedule(model.learning_rate)
            model.policy.load_state_dict(self.policy.state_dict())
            model.save(blob, exclude=["_trigger_callback"])  # ARS's, of which a closure was made here
        finally:
            model.policy.load_state_dict(weights)
            vars(model).update(held)
        return write_whole(path, lambda file: file.write(blob.getbuffer()))  # type: ignore[arg-type]

    # --- files ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that training goes on from, as tensors and numbers, but for the arrays of :meth:`replay_arrays`.

        Weights, optimisers and SB3's own counters, the average, generators, a VecNormalize's moments, exploration matrices
        (gSDE) and the place in a replay buffer. Environments begin new episodes with a seed drawn from these.
        """
        average = None if self._average is None else self._average.state_dict()
        moments = [(torch.as_tensor(s.mean), torch.as_tensor(s.var), float(s.count)) for s in self._statistics()]
        buffer = getattr(self.model, "replay_buffer", None)
        return {
            "parameters": self.model.get_parameters(),
            "variables": {name: value.detach() for name, value in self._variables().items()},
            "counters": _counters(self.model),
            "explorations": [matrices for _, matrices in self._explorations()],
            "average": average,
            "q_temperature": self.q_temperature,
            "moments": moments,
            "generators": self.generators.as_tensors(),
            "seed": self.seed,
            "replay": None if buffer is None else buffer_state(buffer),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave; raises what a state of another model leads to."""
        model, parameters = self.model, dict(state["parameters"])
        expected = model.get_parameters()
        require(parameters.keys() == expected.keys(), "follower", f"parts {sorted(expected)}", sorted(parameters))
        for name, part in parameters.items():
            held: Any = attrgetter(name)(model)
            if isinstance(held, torch.optim.Optimizer):
                restore_optimizer(held, part)
            else:
                held.load_state_dict(part)
        for name, value in self._variables().items():
            with torch.no_grad():
                value.copy_(state["variables"][name])
        for name, present in _counters(model).items():
            value = state["counters"][name]
            require(type(value) is type(present), name, f"a {type(present).__name__}", repr(value))
            setattr(model, name, value)
        for (distribution, matrices), found in zip(self._explorations(), state["explorations"], strict=True):
            for name, value in matrices.items():
                require(found[name].shape == value.shape, name, f"shape {tuple(value.shape)}", tuple(found[name].shape))
                setattr(distribution, name, found[name])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.q_temperature = check_number(state["q_temperature"], "q_temperature", low=0.0, open_low=True)
        for statistics, (mean, var, count) in zip(self._statistics(), state["moments"], strict=True):
            fits = mean.shape == torch.as_tensor(statistics.mean).shape == var.shape
            require(fits, "moments", f"shape {np.shape(statistics.mean)}", tuple(mean.shape))
            statistics.mean, statistics.var = (part.double().numpy().copy() for part in (mean, var))
            statistics.count = check_number(count, "count", low=0.0)
        self.generators.from_tensors(state["generators"])
        self.seed = int(state["seed"])
        buffer = getattr(model, "replay_buffer", None)
        if buffer is not None:
            restore_buffer(buffer, state["replay"])
        if hasattr(model, "weights"):  # ARS searches from a vector beside its policy
            model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()

    def replay_arrays(self, whole: bool = False) -> dict[str, NDArray[Any]]:
        """The arrays of the replay buffer by name; none where there is none.

        Args:
            whole: all of them, to be read into; else what has been filled.
        """
        buffer = getattr(self.model, "replay_buffer", None)
        return {} if buffer is None else buffer_arrays(buffer, whole)

    def forget_replay(self) -> None:
        """Empty the replay buffer."""
        buffer = getattr(self.model, "replay_buffer", None)
        if buffer is not None:
            buffer.reset()

    def _variables(self) -> dict[str, torch.Tensor]:
        """Tensors that SB3 keeps beside its modules, e.g. the logarithm of SAC's entropy coefficient."""
        return {name: attrgetter(name)(self.model) for name in self.model._get_torch_save_params()[1]}

    def _explorations(self) -> list[tuple[Any, dict[str, torch.Tensor]]]:
        """Of state-dependent exploration: each distribution and its matrices, which no state_dict holds."""
        found = [getattr(module, "action_dist", None) for module in self.model.policy.modules()]
        names = ("exploration_mat", "exploration_matrices")
        return [
            (dist, {name: getattr(dist, name).detach() for name in names})
            for dist in found
            if isinstance(dist, StateDependentNoiseDistribution)
        ]


def _counters(model: BaseAlgorithm) -> dict[str, Any]:
    """SB3's own counters: the numbers that are no settings, which are all public but for two."""
    return {
        name: float(value) if isinstance(value, float) else value
        for name, value in vars(model).items()
        if isinstance(value, (int, float)) and (name.startswith("_") or name in ("num_timesteps", "exploration_rate"))
    }


class _RecurrentPlayer:
    """A recurrent follower in the midst of episodes, one a copy; see ``SB3Follower.player``."""

    def __init__(self, follower: SB3Follower, n_envs: int, greedily: bool) -> None:
        self.follower, self.greedily = follower, greedily
        self._state: Any = None
        self._starts = np.ones(n_envs, dtype=bool)

    def __call__(self, obs: Any) -> NDArray[Any]:
        with self.follower.generators.active(), torch.no_grad():
            policy = self.follower.policy
            obs = self.follower._seen(obs)
            actions, self._state = policy.predict(obs, self._state, self._starts, deterministic=self.greedily)
        self._starts = np.zeros_like(self._starts)
        return np.asarray(actions)


# --- followers in leader files ------------------------------------------------------------------------------------------


def follower_name(spec: FollowerSpec) -> str | None:
    """The name under which a leader file holds a class; None for a callable, which it does not hold."""
    return f"{spec.__module__}:{spec.__qualname__}" if isinstance(spec, type) else None


def follower_of_file(name: str | None, given: FollowerSpec | None, path: object) -> FollowerSpec:
    """The follower of a leader file: the one given again, or the class of SB3 or sb3-contrib that the file names.

    Raises:
        ValueError: another class than the file's, a class of neither package or a callable that is not given again.
    """
    if given is not None:
        same = name is None or not isinstance(given, type) or follower_name(given) == name
        require(same, "follower", f"{name}, which {path} was trained with", follower_name(given))
        return given
    expected = "the callable that this leader was trained with (a callable is never stored)"
    require(name is not None, "follower", expected, None)
    assert name is not None
    module, _, qualname = name.partition(":")
    package = module.split(".")[0]
    expected = f"the class {name} to be given again (it is none of SB3's own)"
    require(package in ("stable_baselines3", "sb3_contrib"), "follower", expected, None)
    found = getattr(importlib.import_module(package), qualname, None)
    require(isinstance(found, type) and issubclass(found, BaseAlgorithm), "follower", expected, None)
    assert isinstance(found, type)
    return found
