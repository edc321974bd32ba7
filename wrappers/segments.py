"""Records segments of a follower's behaviour with their true rewards, and pays followers a learned reward.

A segment consists of ``length`` steps of one environment, cut from one episode. If the episode terminates within the segment, the
remaining steps are padding: their mask is 0 and they earn nothing, since nothing is earned after a terminal state. Segments thus
have equal lengths but may differ in the number of steps really taken; this determines the constant part of a learned reward in
environments whose episodes end. A segment never extends over a time limit or a reset.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from ..envs.mdp.checks import check_size, require
from .vec_env import add_info_column, info_column

Floats = NDArray[np.float64]
RewardFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""From observations and actions, ``[n, ...]`` each, rewards ``[n]``."""
RUNNING, TERMINATED, CUT = 0, 1, 2
"""What a step did to its episode: nothing, ended it by itself, cut it (a time limit or a reset)."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment of ``H`` successive steps of one environment.

    Attributes:
        obs: observations before each step, ``[H, ...]``; of stacks of k frames, channels first, the single frames
            ``[H + k - 1, ...]`` where ``frame_stack`` is k.
        actions: actions, ``[H, ...]``.
        mask: whether the step was taken, ``[H]``; False after the end of the episode.
        true_rewards: the environment's own rewards, ``[H]``, 0 for steps not taken; None if they are not known.
        pictures: a picture of each step for a person to see, uint8 ``[H, height, width, 3]``; None if there are none.
        frame_stack: k if observations are stacks of k frames, else 1.
        time: the recorder's number of the first step; -1 for a segment from a file.
        copy: number of the parallel environment; -1 for a segment from a file.

    Raises:
        ValueError: the fields have different lengths, or a true reward is not finite.
    """

    obs: NDArray[Any]
    actions: NDArray[Any]
    mask: NDArray[np.bool_]
    true_rewards: Floats | None = None
    pictures: NDArray[np.uint8] | None = None
    frame_stack: int = 1
    time: int = -1
    copy: int = -1

    def __post_init__(self) -> None:
        H = len(self.mask)
        require(H >= 1, "segment", "one step or more", H)
        frames = H + self.frame_stack - 1
        require(len(self.obs) == frames, "obs", f"{frames} of {H} steps", len(self.obs))
        require(len(self.actions) == H, "actions", f"{H}, one a step", len(self.actions))
        require(self.pictures is None or len(self.pictures) == H, "pictures", f"{H}, one a step", "another number")
        if self.true_rewards is not None:
            shape = np.shape(self.true_rewards)
            require(shape == (H,), "true_rewards", f"shape ({H},)", f"shape {shape}")
            require(bool(np.isfinite(self.true_rewards).all()), "true_rewards", "finite numbers", self.true_rewards)

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def observations(self) -> NDArray[Any]:
        """The observations, ``[H, ...]``, with frames stacked as the follower saw them."""
        if self.frame_stack == 1:
            return self.obs
        windows = np.lib.stride_tricks.sliding_window_view(self.obs, self.frame_stack, axis=0)
        return np.moveaxis(windows, -1, 1)

    @property
    def true_return(self) -> float:
        """Sum of the true rewards, undiscounted.

        Raises:
            ValueError: the true rewards are not known.
        """
        if self.true_rewards is None:
            raise ValueError("segment: expected one whose true rewards were recorded, got one from elsewhere")
        return float(self.true_rewards[self.mask].sum())


@dataclass(frozen=True, eq=False)
class Steps:
    """Recorded steps in time order; ``SegmentRecorder.observations`` returns the observations before them.

    Attributes:
        time: the recorder's number of each step, ``[T]``.
        actions: actions, ``[T, n, ...]``.
        true_rewards: the environment's own rewards, ``[T, n]``.
        age: number of steps since the episode's start, ``[T, n]``.
        ended: state of the episode after the step, RUNNING, TERMINATED or CUT, ``[T, n]``.
    """

    time: NDArray[np.int64]
    actions: NDArray[Any]
    true_rewards: Floats
    age: NDArray[np.int64]
    ended: NDArray[np.int8]


class StepWrapper(VecEnvWrapper):
    """Base class of VecEnv wrappers that compute the reward from the observation before a step and the action.

    Attributes:
        now: the last observations, ``[n, ...]``; None before a reset.
        taken: the last actions, ``[n, ...]``.
    """

    now: Any = None
    taken: Any = None

    def reset(self) -> VecEnvObs:
        obs = self.venv.reset()
        self.now = np.array(obs)
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        self.taken = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        paid = self.paid(rewards, dones, infos)
        self.now = np.array(obs)
        return obs, paid, dones, infos

    @abstractmethod
    def paid(self, rewards: NDArray[Any], dones: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[Any]:
        """Return new rewards, ``[n]``, of the step by :attr:`taken` at :attr:`now`, given the VecEnv's ``rewards``."""


class LearnedReward(StepWrapper):
    """VecEnv wrapper that pays ``reward(obs, actions)``; ``info["true_reward"]`` is the environment's own reward.

    Args:
        venv: parallel environments of any kind.
        reward: a function of the observations before a step and the actions, both ``[n, ...]``, that returns rewards ``[n]``.

    Raises:
        ValueError: ``reward`` is not callable; in ``step``, it returns another shape or rewards that are not finite.
    """

    def __init__(self, venv: VecEnv, reward: RewardFunction) -> None:
        require(callable(reward), "reward", "a function of observations and actions", repr(reward))
        super().__init__(venv)
        self.reward = reward

    def paid(self, rewards: NDArray[Any], dones: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[Any]:
        paid = np.asarray(self.reward(self.now, self.taken), dtype=np.float32)
        require(paid.shape == rewards.shape, "reward", f"shape {rewards.shape}", f"shape {paid.shape}")
        require(bool(np.isfinite(paid).all()), "reward", "finite numbers", paid)
        add_info_column(self.venv, infos, "true_reward", rewards)
        return paid


class SegmentRecorder(StepWrapper):
    """VecEnv wrapper that records every step without changing it, and cuts segments from the newest steps.

    Put it inside any wrapper that changes the reward, so that it records the environment's own reward.

    Args:
        venv: parallel environments whose observations are arrays.
        length: number of steps of a segment, H.
        capacity: number of steps of each environment that are stored, at least ``length``.
        true_reward: the key of ``info`` with the true reward. Default: None, the reward that the VecEnv returns.
        pictures: whether to store ``venv.get_images()`` of every step, for a person to see. Default: False.
        frame_stack: k if observations are stacks of k frames, channels first; each frame is then stored only once. Default: 1.

    Attributes:
        steps: number of steps of each environment so far.
        terminations: number of episodes that terminated so far.

    Raises:
        ValueError: a size is below 1, ``capacity`` is below ``length``, or observations are dicts or not stacks of
            ``frame_stack`` frames; in ``step``, a true reward is missing or not finite.
    """

    def __init__(
        self,
        venv: VecEnv,
        length: int,
        capacity: int = 4096,
        true_reward: str | None = None,
        pictures: bool = False,
        frame_stack: int = 1,
    ) -> None:
        super().__init__(venv)
        self.length, self.capacity = check_size(length, "length"), check_size(capacity, "capacity")
        require(self.capacity >= self.length, "capacity", f"{length} steps, a segment, or more", capacity)
        shape = venv.observation_space.shape
        require(shape is not None, "venv", "observations that are arrays", repr(venv.observation_space))
        fits = check_size(frame_stack, "frame_stack") == 1 or (shape is not None and shape[:1] == (frame_stack,))
        require(fits, "frame_stack", f"the first number of the observations' shape {shape}", frame_stack)
        self._key, self._pictures, self._stack = true_reward, pictures, frame_stack
        self.steps = self.terminations = 0
        n, size, actions = self.num_envs, self.capacity, venv.action_space
        # of stacks the newest frame alone, k - 1 steps longer; `_heads` has the other frames of an episode's first stack
        self._span, one = size + frame_stack - 1, tuple(shape or ()) if frame_stack == 1 else tuple((shape or ())[1:])
        self._obs = np.zeros((self._span, n, *one), venv.observation_space.dtype)
        self._heads: dict[tuple[int, int], NDArray[Any]] = {}
        self._actions = np.zeros((size, n, *(actions.shape or ())), actions.dtype)
        self._rewards = np.zeros((size, n))
        self._age = np.zeros((size, n), np.int64)
        self._ended = np.zeros((size, n), np.int8)
        self._images: NDArray[np.uint8] | None = None
        self._shown: Any = None
        self._episode_age = np.zeros(n, np.int64)

    # --- recording ----------------------------------------------------------------------------------------------------

    def reset(self) -> VecEnvObs:
        if self.steps:
            last = self._ended[(self.steps - 1) % self.capacity]
            last[last == RUNNING] = CUT
        obs = super().reset()
        self._episode_age[:] = 0
        self._shown = self._look()
        return obs

    def paid(self, rewards: NDArray[Any], dones: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[Any]:
        at = self.steps % self.capacity
        self._obs[self.steps % self._span] = self.now if self._stack == 1 else self.now[:, -1]
        if self._stack > 1:  # the other frames of an episode's first stack are kept while they can be asked for
            for i in np.flatnonzero(self._episode_age == 0):
                self._heads[self.steps, int(i)] = self.now[i, :-1].copy()
            if at == 0:
                oldest = self.steps - self.capacity - self._stack
                self._heads = {key: frames for key, frames in self._heads.items() if key[0] >= oldest}
        self._actions[at] = self.taken
        true = rewards if self._key is None else info_column(self.venv, infos, self._key, optional=True)
        require(true is not None, "true_reward", f"the key {self._key!r} in every info", sorted(infos[0]))
        self._rewards[at] = true
        require(bool(np.isfinite(self._rewards[at]).all()), "true_reward", "a finite number in every step", "another")
        self._age[at] = self._episode_age
        self._ended[at] = RUNNING
        for i in np.flatnonzero(dones):
            self._ended[at, i] = CUT if infos[i].get("TimeLimit.truncated", False) else TERMINATED
        self.terminations += int((self._ended[at] == TERMINATED).sum())
        if self._pictures:
            if self._images is None:
                self._images = np.zeros((self.capacity, *self._shown.shape), np.uint8)
            self._images[at] = self._shown
            self._shown = self._look()
        self._episode_age = np.where(dones, 0, self._episode_age + 1)
        self.steps += 1
        return rewards

    def _look(self) -> Any:
        if not self._pictures:
            return None
        images = self.venv.get_images()
        seen = len(images) > 0 and all(image is not None for image in images)
        require(seen, "pictures", "False for an environment that draws none (render_mode='rgb_array' is needed)", True)
        return np.stack([np.asarray(image, dtype=np.uint8) for image in images])

    # --- files --------------------------------------------------------------------------------------------------------

    def arrays(self, whole: bool = False) -> dict[str, NDArray[Any]]:
        """Return the recorded arrays by name, not copied.

        Args:
            whole: whether to return whole arrays, to read a file into, or only the part that is filled.
        """
        names = ("obs", "actions", "rewards", "age", "ended", "images")
        held = {name: getattr(self, f"_{name}") for name in names}
        return {name: array if whole else array[: self.steps] for name, array in held.items() if array is not None}

    def state(self) -> dict[str, Any]:
        """Return the recorder's other state, as arrays and numbers."""
        heads = [(*key, frames) for key, frames in self._heads.items()]
        images = None if self._images is None else list(self._images.shape[1:])
        counts = {"steps": self.steps, "terminations": self.terminations}
        return {**counts, "now": self.now, "age": self._episode_age, "heads": heads, "images": images}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned and allocate the arrays; the wrapped VecEnv must be restored too.

        Raises:
            ValueError: the state belongs to a recorder of other environments or sizes.
        """
        now, age = np.asarray(state["now"]), np.asarray(state["age"])
        space = self.observation_space
        fits = now.shape == (self.num_envs, *(space.shape or ())) and now.dtype == space.dtype
        require(fits and age.shape == self._episode_age.shape, "recorder", f"observations in {space}", "others")
        self.steps, self.terminations = int(state["steps"]), int(state["terminations"])
        require(self.steps >= 0, "steps", "0 or more", self.steps)
        self.now, self._episode_age = now.copy(), age.astype(np.int64)
        self._heads = {(int(step), int(copy)): np.asarray(frames) for step, copy, frames in state["heads"]}
        if state["images"] is not None:
            self._images = np.zeros((self.capacity, *(int(size) for size in state["images"])), np.uint8)
        self._shown = self._look()

    # --- reading ------------------------------------------------------------------------------------------------------

    def _order(self, since: int) -> NDArray[np.int64]:
        """Return the indices of the stored steps from ``since`` on."""
        return np.arange(max(since, self.steps - self.capacity, 0), self.steps)

    def starts(self, since: int = 0) -> NDArray[np.int64]:
        """Return the starts (time, environment), ``[k, 2]``, of all segments in the stored steps from ``since`` on."""
        times = self._order(since)
        T, H = len(times), self.length
        ended = self._ended[times % self.capacity]
        # the first end at or after each step (T: none yet), and whether it was a termination
        first = np.full((T + 1, self.num_envs), T, np.int64)
        for t in range(T - 1, -1, -1):
            first[t] = np.where(ended[t] != RUNNING, t, first[t + 1])
        first = first[:T]
        begin = np.arange(T)[:, None]
        whole = (first >= begin + H - 1) & (begin + H <= T)
        kind = np.take_along_axis(ended, np.minimum(first, T - 1), 0) if T else ended
        found = np.argwhere(whole | ((first < np.minimum(begin + H, T)) & (kind == TERMINATED)))
        found[:, 0] += times[0] if T else 0
        return found

    def cut(self, time: int, copy: int) -> Segment:
        """Return the segment that begins at step ``time`` of parallel environment ``copy``, one of :meth:`starts`.

        Raises:
            ValueError: the steps are no longer stored, or the segment would extend over the end of an episode.
        """
        H, held = self.length, max(0, self.steps - self.capacity)
        require(
            held <= time < self.steps and 0 <= copy < self.num_envs,
            "time",
            f"a step that is still stored, from {held} on",
            time,
        )
        at = np.arange(time, min(time + H, self.steps)) % self.capacity
        ends = np.flatnonzero(self._ended[at, copy] != RUNNING)
        lived = int(ends[0]) + 1 if len(ends) else len(at)
        complete = lived == H or (len(ends) > 0 and self._ended[at[lived - 1], copy] == TERMINATED)
        require(complete, "time", f"the start of {H} steps of one episode", f"{time}, after which {lived} are")
        at = at[:lived]

        def padded(values: NDArray[Any]) -> NDArray[Any]:
            rest = np.zeros((H - lived, *values.shape[1:]), values.dtype)
            return np.concatenate([values, rest])

        seen = self.observations(np.arange(time, time + lived), np.full(lived, copy))
        obs = padded(seen)
        if self._stack > 1:
            obs = np.concatenate([obs[0, :-1], obs[:, -1]])
        actions, rewards = padded(self._actions[at, copy]), padded(self._rewards[at, copy])
        pictures = None if self._images is None else padded(self._images[at, copy])
        mask = np.arange(H) < lived
        return Segment(obs, actions, mask, rewards, pictures, self._stack, int(time), int(copy))

    def window(self, since: int = 0) -> Steps:
        """Return the stored steps from ``since`` on, in time order."""
        times = self._order(since)
        at = times % self.capacity
        return Steps(times, self._actions[at], self._rewards[at], self._age[at], self._ended[at])

    def observations(self, times: NDArray[np.int64], copies: NDArray[np.int64]) -> NDArray[Any]:
        """Return the observations before stored steps, ``[B, ...]``, given their times and environments, ``[B]``."""
        k = self._stack
        if k == 1:
            return self._obs[times % self._span, copies]
        age = self._age[times % self.capacity, copies]
        back = np.arange(k - 1, -1, -1)  # the frame of so many steps ago, where the episode is that old
        frames: NDArray[Any] = self._obs[(times[:, None] - back) % self._span, copies[:, None]]
        for b in np.flatnonzero(age < k - 1):
            head = self._heads[int(times[b] - age[b]), int(copies[b])]
            frames[b, : k - 1 - age[b]] = head[age[b] :]
        return frames

    def sample(self, since: int, most: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return observations and actions, ``[B, ...]``, of at most ``most`` stored steps from ``since`` on, evenly spread."""
        times = self._order(since)
        n = len(times) * self.num_envs
        which = np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)
        t, copies = times[which // self.num_envs], which % self.num_envs
        return self.observations(t, copies), self._actions[t % self.capacity, copies]
