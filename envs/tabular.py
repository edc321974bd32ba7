"""Environments that simulate a tabular problem, single and parallel.

Both draw ``w ~ p_x(w|s,a)``, then ``s' ~ P_x(s'|s,a,w)``, from ``problem.kernel(x)``. A problem with contexts draws
one at each reset; its observations count (context, state) pairs, ``c * S + s``.

Each draw takes one uniform number. Two samplers draw exactly from the rows of a table of distributions ``p[row, k]``:

- ``AliasSampler``, for tables that do not depend on x: a draw takes constant time; building takes one sweep over the columns.
- ``InverseCdfSampler``, for tables that depend on x: a draw takes log2(K) steps; building is a cumulative sum. The draw at a
  given uniform number is monotone in the table, so that episodes under nearby x with the same random numbers stay similar.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .core import Flags, Info, LeaderVectorEnv, OfProblem, ProblemEnv
from .mdp import TabularKernel, TabularProblem
from .mdp.checks import as_float64, check_size, require
from .render import draw_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# --- drawing from many small distributions at once --------------------------------------------------------------------


AT_ONCE = 2**20
"""Entries whose alias tables are computed at once."""


class AliasSampler:
    """A sampler for the rows of ``p``, ``[..., K]``, by Walker's alias method, with constant time per draw."""

    source: Tensor | None = None
    """The tensor of ``p``, kept so that no other takes its place in memory while the sampler is shared."""

    def __init__(self, p: Floats) -> None:
        self._size = p.shape[-1]
        shape = (p.size // self._size, self._size)
        threshold, alias = np.empty(shape), np.empty(shape, np.int32)
        # Some rows at a time, so that what the tables are computed with, and a copy of what is laid out in another order, take
        # little memory.
        inner = shape[0] // len(p)
        at_once = max(1, AT_ONCE // (inner * self._size))
        for first in range(0, len(p), at_once):
            part = slice(first * inner, (first + at_once) * inner)
            keep, alias[part] = alias_tables(p[first : first + at_once].reshape(-1, self._size))
            # The draw compares u * K, not its fractional part: cell k holds k + keep.
            threshold[part] = keep + np.arange(self._size)
        self._threshold, self._alias = threshold.ravel(), alias.ravel()

    def draw(self, rows: Integers, u: Floats) -> Integers:
        """Draw one k for each row, ``[n]``, from uniform numbers in [0, 1), ``[n]``."""
        t = u * self._size
        k = t.astype(np.int64)
        cell = rows * self._size
        cell += k
        kept = t < self._threshold.take(cell)
        chosen: Integers = np.where(kept, k, self._alias.take(cell))
        return chosen

    def draw_one(self, row: int, u: float) -> int:
        """Draw one k from one uniform number in [0, 1); ``draw`` gives the same k."""
        t = u * self._size
        k = int(t)
        cell = row * self._size + k
        alias: int = self._alias.item(cell)
        return k if t < self._threshold.item(cell) else alias


class InverseCdfSampler:
    """A sampler for the rows of ``p``, ``[R, K]``, by a binary search in their cumulative sums."""

    def __init__(self, p: Floats) -> None:
        size = p.shape[1]
        self._size = size
        self._width = 1 << max(0, size - 1).bit_length()
        cdf = np.full((p.shape[0], self._width), 2.0)
        if size > 8:
            np.cumsum(p, axis=1, out=cdf[:, :size])
        else:  # column by column: the same sums, several times faster over short rows
            cdf[:, 0] = p[:, 0]
            for k in range(1, size):
                np.add(cdf[:, k - 1], p[:, k], out=cdf[:, k])
        cdf[:, :size] /= cdf[:, size - 1 : size]  # ends at exactly 1, above every u
        self._cdf = cdf.ravel()
        self._memory = memoryview(self._cdf.data)  # indexing it gives Python floats, far quicker than the array's

    def draw(self, rows: Integers, u: Floats) -> Integers:
        """Draw one k for each row, ``[n]``, from uniform numbers in [0, 1), ``[n]``."""
        position = rows * self._width
        step = self._width >> 1
        while step:
            beyond = self._cdf.take(position + (step - 1)) <= u
            position += np.multiply(beyond, step, dtype=np.int64)
            step >>= 1
        k: Integers = position & (self._width - 1)
        return k

    def draw_one(self, row: int, u: float) -> int:
        """Draw one k from one uniform number in [0, 1); ``draw`` gives the same k."""
        first = row * self._width
        k: int = bisect_right(self._memory, u, first, first + self._size) - first
        return k


Sampler = AliasSampler | InverseCdfSampler


def alias_tables(p: Floats) -> tuple[Floats, Integers]:
    """Compute the alias tables of all rows of ``p`` at once.

    One sweep over the columns handles all rows: with q = K p, a light cell (q <= 1) is filled up by the current heavy cell; a
    heavy cell whose rest falls to 1 or below is filled up by the next heavy cell.

    Args:
        p: distributions, ``[R, K]``.

    Returns:
        keep: probability that a cell returns its own index, ``[R, K]``.
        alias: the index that it returns otherwise, ``[R, K]``.
    """
    R, K = p.shape
    q = p * K
    keep, alias = np.ones((R, K)), np.tile(np.arange(K), (R, 1))
    heavy = q > 1.0
    order = np.argsort(heavy, axis=1, kind="stable")  # the light cells in order, then the heavy ones
    row = np.arange(R)
    light = np.zeros(R, dtype=np.int64)
    n_light = K - heavy.sum(1)
    giver = n_light.copy()
    active = giver < K
    rest = q[row, order[row, np.minimum(giver, K - 1)]]
    for _ in range(K):
        gives = active & (rest > 1.0) & (light < n_light)
        changes = active & ~gives & (giver < K - 1)
        here = order[row, np.minimum(giver, K - 1)]
        r = row[gives]
        cell = order[r, light[r]]
        keep[r, cell], alias[r, cell] = q[r, cell], here[r]
        rest[r] -= 1.0 - q[r, cell]
        light[r] += 1
        r = row[changes]
        following = order[r, giver[r] + 1]
        keep[r, here[r]], alias[r, here[r]] = np.minimum(rest[r], 1.0), following
        rest[r] = q[r, following] - (1.0 - rest[r])
        giver[r] += 1
    return keep, alias


# --- the leader's view of a step ---------------------------------------------------------------------------------------


def moves_transitions(problem: TabularProblem) -> bool:
    """Return whether the transition probabilities depend on x."""
    with torch.enable_grad():
        return bool(problem.kernel(problem.start_x().requires_grad_()).P.requires_grad)


class TabularLeaderModel(nn.Module):
    r"""Rewards and log-probability of steps of a tabular problem, as functions of x.

    .. math:: \log p_x = \log p_x(w|s,a) + \log P_x(s'|s,a,w), the second term only where P depends on x.

    Args:
        problem: the problem.
        x: the initial value of the parameter, ``[dim]``.
    """

    def __init__(self, problem: TabularProblem, x: Tensor) -> None:
        super().__init__()
        self.problem = problem
        self._moves_transitions = moves_transitions(problem)
        self.x = nn.Parameter(x.detach().to(torch.float64).clone())

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate a batch of steps.

        Args:
            obs: states, ``[...]``, whole numbers.
            action: the follower's actions, ``[...]``.
            draw: the leader's draws, ``info["leader_draw"]``, ``[...]``.
            next_obs: states after the step (before a reset), ``[...]``.

        Returns:
            r_follower, r_leader and log_p, each ``[...]``, float64; those that do not depend on x have gradient zero.
        """
        s, a, w, s_next = (torch.as_tensor(part).long() for part in (obs, action, draw, next_obs))
        kernel = self.problem.kernel(self.x)
        S = kernel.P.shape[-1]
        c = None if self.problem.context_probs is None else torch.div(s, S, rounding_mode="floor")
        s, s_next = s % S, s_next % S

        def at(field: Tensor, rank: int, *index: Tensor) -> Tensor:
            actions = index[1] if field.shape[field.ndim - rank + 1] > 1 else torch.zeros_like(index[1])
            index = (index[0], actions, *index[2:])
            return field[index] if c is None or field.ndim == rank else field[(c, *index)]

        log_p = at(kernel.draw, 3, s, a, w).log()
        if self._moves_transitions:
            log_p = log_p + at(kernel.P, 4, s, a, w, s_next).log()
        attached = 0.0 * self.x.sum()
        r_follower, r_leader = at(kernel.r_follower, 3, s, a, w), at(kernel.r_leader, 3, s, a, w)
        return r_follower + attached, r_leader + attached, log_p + attached


# --- the simulators ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """One field of a kernel: its rows, and the index of each environment's first row (0 if all share the rows)."""

    values: Floats
    offset: Integers | int
    sampler: Sampler | None = None


class _Tables:
    """The kernel at the current x as flat numpy arrays; fields whose tensors have not changed are reused.

    Row numbers are ``z = c * S + s`` for a state, ``z * A + a`` with the action, and ``(z * A + a) * W + w`` with the draw;
    rows of one environment follow those of another.
    """

    def __init__(self, problem: TabularProblem, n_envs: int) -> None:
        self._problem, self._n = problem, n_envs
        x = problem.start_x()
        with torch.no_grad():
            mdp = problem.follower_mdp(x)
        self.gamma = float(mdp.gamma)
        self.S, self.A = mdp.n_states, mdp.n_actions
        self.n_contexts = 1 if problem.context_probs is None else len(problem.context_probs)
        self._contexts = torch.Size([] if problem.context_probs is None else [self.n_contexts])
        rows = self.n_contexts * self.S
        weights = torch.ones(1) if problem.context_probs is None else problem.context_probs
        rho = weights.to(torch.float64)[:, None] * mdp.rho.expand(self.n_contexts, self.S)
        self.start = InverseCdfSampler(rho.reshape(1, rows).numpy())
        self.terminal, self.mask = self._flags(mdp.terminal, self.S), self._flags(mdp.mask, self.S, self.A)
        self.refused = None if self.mask is None or problem.takes_missing_actions else ~self.mask
        # Does x move P? Then tables that are cheap to build and monotone in x; else the quicker ones, built once.
        moving = moves_transitions(problem)
        self._next_sampler: type[Sampler] = InverseCdfSampler if moving else AliasSampler
        self._seen: dict[str, tuple[Tensor, int, _Field]] = {}

    def _flags(self, flags: Tensor | None, *shape: int) -> Flags | None:
        if flags is None or (len(shape) == 1 and not bool(flags.any())):
            return None
        answer: Flags = flags.expand(self.n_contexts, *shape).numpy().ravel()
        return answer

    def _kernel(self, x: Tensor) -> TabularKernel:
        """Return the kernel at x, ``[dim]`` or ``[n, dim]``, row by row if the problem's kernel takes no batch."""
        if x.ndim == 1 or self._problem.batched_kernel:
            return self._problem.kernel(x)
        rows = [self._problem.kernel(row) for row in x]

        def stack(name: str) -> Tensor:
            fields = [getattr(kernel, name) for kernel in rows]
            if all(_same(field, fields[0]) for field in fields):
                return fields[0]  # type: ignore[no-any-return]
            return torch.stack([field.expand(self._contexts + field.shape[-_RANK[name] :]) for field in fields])

        return TabularKernel(stack("draw"), stack("P"), stack("r_follower"), stack("r_leader"))

    @torch.no_grad()
    def load(self, x: Tensor) -> None:
        """Read the kernel at x, ``[dim]`` for all environments or ``[n, dim]``."""
        kernel = self._kernel(x)
        self.W = int(kernel.P.shape[-2])
        self.draw_by_state = kernel.draw.shape[-2] == 1
        self.draw = self._field("draw", kernel.draw, InverseCdfSampler if self.W > 1 else None)
        # One P for every w, laid out once (an expanded axis): its rows are then (z, a) alone.
        self.P_by_draw = kernel.P.stride(-2) != 0
        self.P = self._field("P", kernel.P if self.P_by_draw else kernel.P[..., :1, :], self._next_sampler)
        self.r_follower = self._field("r_follower", kernel.r_follower)
        self.r_leader = self._field("r_leader", kernel.r_leader)

    def _field(self, name: str, tensor: Tensor, sampler: type[Sampler] | None = None) -> _Field:
        seen = self._seen.get(name)
        if seen is not None and _same(tensor, seen[0]) and tensor._version == seen[1]:
            return seen[2]
        rank = _RANK[name]
        actions = tensor.shape[-rank + 1] if name == "draw" else self.A
        inner = torch.Size([self.S, actions, *tensor.shape[-rank + 2 :]])
        own = torch.Size([self._n] if tensor.ndim - rank > len(self._contexts) else [])
        laid = tensor.detach().expand(own + self._contexts + inner).numpy()
        shared = sampler is AliasSampler and not own
        rows = laid if shared else laid.reshape(-1, laid.shape[-1]) if sampler is not None else laid.reshape(-1)
        offset: Integers | int = np.arange(self._n) * (rows.shape[0] // self._n) if own else 0
        made: Sampler | None = None
        if shared:
            # Simulators of one problem share its largest table. Whoever holds the sampler also holds the tensor.
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version, inner)
            made = _SHARED.get(key)
            if made is None:
                made = _SHARED[key] = AliasSampler(rows)
                made.source = tensor
        elif sampler is not None:
            made = sampler(rows)
        field = _Field(rows if sampler is None else np.empty(0), offset, made)
        self._seen[name] = (tensor, tensor._version, field)
        return field

    def masks(self, z: Integers | int) -> Flags:
        """Return which actions are available in a state, ``[A]``, or in each of several states, ``[n, A]``."""
        if self.mask is None:
            return np.ones((*np.shape(z), self.A), dtype=np.bool_)
        found: Flags = self.mask.reshape(-1, self.A)[z]
        return found


_SHARED: WeakValueDictionary[Any, AliasSampler] = WeakValueDictionary()
"""Alias tables in use, by the tensor that they are made from."""
_RANK = {"draw": 3, "P": 4, "r_follower": 3, "r_leader": 3}


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same view of the same memory."""
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


class _TabularLeader(OfProblem):
    """Base class of both environments: the tables and the leader's interface."""

    problem: TabularProblem

    def _set_up(self, problem: TabularProblem, n_envs: int) -> None:
        self._tables = _Tables(problem, n_envs)
        t, self.gamma = self._tables, self._tables.gamma
        self._spaces = gym.spaces.Discrete(t.n_contexts * t.S), gym.spaces.Discrete(t.A)
        super()._set_up(problem, n_envs)
        self.commitment_size = int(problem.commitment(self._x).shape[-1])
        self.commitment_is_distribution = problem.commitment_is_distribution

    def _load(self, x: Tensor) -> None:
        self._tables.load(x)
        self._x = x
        self._shown: NDArray[np.float32] | None = None

    def set_leader(self, x: Any) -> None:
        """Set x (copied), which takes effect at the next step.

        Args:
            x: a point of X, ``[dim]``; parallel environments also take ``[num_envs, dim]``, one row for each.

        Raises:
            ValueError: x has the wrong shape, has an entry that is not finite, or lies outside X.
        """
        point, leader_set = as_float64(x, "x").detach(), self.problem.leader_set
        many = point.ndim == 2 and isinstance(self, LeaderVectorEnv)
        self._load((leader_set.check_rows(point, self._n_envs) if many else leader_set.check(point)).clone())

    def leader_model(self) -> TabularLeaderModel:
        """Return the leader model of a step, see ``TabularLeaderModel``.

        Raises:
            ValueError: the environments have different x.
        """
        require(self._x.ndim == 1, "x", "one x for all environments", f"shape {tuple(self._x.shape)}")
        return TabularLeaderModel(self.problem, self._x)

    def _commitments(self) -> NDArray[np.float32]:
        """Return the leader contexts of all states, ``[num_envs or 1, S or 1, size]``, computed once per x."""
        if self._shown is None:
            with torch.no_grad():
                shown = self.problem.commitment(self._x).to(torch.float32)
            self._shown = shown.reshape(-1, *shown.shape[-2:]).numpy()
        return self._shown

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tables"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tables = _Tables(self.problem, self._n_envs)
        self._tables.load(self._x)


class TabularVectorEnv(_TabularLeader, LeaderVectorEnv):
    """Parallel ``TabularEnv``, stepped together in numpy.

    Environments may have different x: ``set_leader`` takes ``[dim]`` or ``[num_envs, dim]``. An environment whose episode ends is
    reset in the same step (``final_obs``, ``final_info``); ``infos["leader_reward"]`` and ``infos["leader_draw"]`` always belong
    to the step that was taken. If the problem has a mask, ``infos["action_mask"]`` is that of the returned observations. A step
    draws three random numbers for each environment, for any actions, so that two simulators with the same seed have common random
    numbers.

    Args:
        problem: the problem to simulate.
        num_envs: number of parallel environments, at least 1.
        max_episode_steps: number of steps after which an episode is truncated, at least 1; None for never.

    Raises:
        ValueError: a size is below 1; in ``step``, actions have the wrong shape or are not available in their states.
    """

    _state: Integers | None

    def __init__(self, problem: TabularProblem, num_envs: int, max_episode_steps: int | None = None) -> None:
        self._set_up(problem, check_size(num_envs, "num_envs"))
        super().__init__(num_envs, max_episode_steps, *self._spaces)
        self._uniforms = np.empty((3, self.num_envs))
        self._first_row = np.zeros(self.num_envs, dtype=np.int64)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Integers, Info]:
        """Start every environment anew; ``options`` are not used."""
        super().reset(seed=seed)
        self._elapsed[:] = 0
        self._state = self._tables.start.draw(self._first_row, self.np_random.random(self.num_envs))
        return self._state.copy(), self._mask_infos()

    def _mask_infos(self) -> dict[str, Any]:
        if self._tables.mask is None:
            return {}
        return {"action_mask": self.action_masks().astype(np.int8), "_action_mask": self._everyone}

    def action_masks(self) -> Flags:
        """Return which actions are available in each environment's current state, bool ``[num_envs, A]``."""
        if self._state is None:
            raise gym.error.ResetNeeded("action_masks was called before reset")
        return self._tables.masks(self._state)

    def _check(self, actions: Any, state: Integers) -> Integers:
        """Check the actions and return their row numbers ``z * A + a``."""
        t = self._tables
        a = np.asarray(actions)
        if a.shape != (self.num_envs,) or a.dtype.kind not in "iu":
            raise ValueError(f"actions: expected {self.num_envs} whole numbers, got {a.dtype} of shape {a.shape}")
        a = a.astype(np.int64, copy=False)
        rows: Integers = state * t.A + a
        exists = (a >= 0) & (a < t.A)
        if t.refused is not None:
            exists &= ~t.refused.take(rows, mode="clip")
        if not exists.all():
            i = int(exists.argmin())
            raise ValueError(f"actions[{i}]: expected one that exists in state {state[i]}, got {a[i]}")
        return rows

    def step(self, actions: Any) -> tuple[Integers, Floats, Flags, Flags, dict[str, Any]]:
        """Step every environment; see the class."""
        t, z = self._tables, self._state
        if z is None:
            raise gym.error.ResetNeeded("step was called before reset")
        row = pair = self._check(actions, z)
        u = self.np_random.random(out=self._uniforms)
        # What x makes each environment draw, then where it moves.
        if t.draw.sampler is None:
            w = np.zeros(self.num_envs, dtype=np.int64)
        else:
            w = t.draw.sampler.draw((z if t.draw_by_state else pair) + t.draw.offset, u[0])
            row = pair * t.W
            row += w
        assert t.P.sampler is not None
        following = t.P.sampler.draw((row if t.P_by_draw else pair) + t.P.offset, u[1])
        if t.n_contexts > 1:
            following += z - z % t.S
        # What both are paid, by the states and actions of the step.
        rewards = t.r_follower.values.take(row + t.r_follower.offset)
        infos: dict[str, Any] = {
            "leader_reward": t.r_leader.values.take(row + t.r_leader.offset),
            "_leader_reward": self._everyone,
            "leader_draw": w,
            "_leader_draw": self._everyone,
        }
        # Which episodes end: those begin anew in the same step, with a random number that is drawn in any case.
        terminated = np.zeros(self.num_envs, dtype=np.bool_) if t.terminal is None else t.terminal.take(z)
        self._elapsed += 1
        truncated = self._elapsed >= self._limit
        done = terminated | truncated
        if done.any():
            following = self._restart(infos, done, following, t.start.draw(self._first_row, u[2]))
        self._state = following
        infos |= self._mask_infos()
        return following.copy(), rewards, terminated, truncated, infos

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """Return the leader context of each environment, ``[num_envs, commitment_size]``, at observations ``[num_envs]``."""
        shown = self._commitments()
        n, states, _ = shown.shape
        if states == 1:
            return np.repeat(shown[:, 0], self.num_envs // n, axis=0)
        rows = np.asarray(obs, dtype=np.int64)
        if n > 1:
            rows = rows + np.arange(n) * states
        answer: NDArray[np.float32] = shown.reshape(n * states, -1).take(rows, axis=0)
        return answer


class TabularEnv(_TabularLeader, ProblemEnv):
    """The follower's MDP of a tabular problem, under the leader's current x.

    Observations are states, Discrete(S); actions are Discrete(A). ``step`` returns the follower's reward; ``info`` has
    ``leader_reward``, ``leader_draw`` (w) and, if the problem has a mask, the observation's ``action_mask``, int8 ``[A]``.
    Episodes are not truncated: use ``gymnasium.wrappers.TimeLimit``.

    Args:
        problem: the problem to simulate.
        render_mode: ``"ansi"`` renders one line of text, ``"rgb_array"`` a picture; None (default) and other modes nothing.

    Raises:
        ValueError: in ``step``, the action is not available in the current state, and the problem's ``takes_missing_actions``
            is False.
    """

    vector_class: ClassVar[type[Any]] = TabularVectorEnv

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.int64, Info]:
        """Draw a start state; ``options`` are not used."""
        super().reset(seed=seed)
        self._state, self._last = self._tables.start.draw_one(0, self.np_random.random()), ""
        return np.int64(self._state), self._mask_info()

    def _mask_info(self) -> dict[str, Any]:
        return {} if self._tables.mask is None else {"action_mask": self.action_masks().astype(np.int8)}

    def action_masks(self) -> Flags:
        """Return which actions are available in the current state, bool ``[A]``; sb3-contrib's ``MaskablePPO`` calls it."""
        if self._state is None:
            raise gym.error.ResetNeeded("action_masks was called before reset")
        return self._tables.masks(self._state).copy()

    def step(self, action: Any) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Take one step; it draws two random numbers, for any action."""
        t, z, a = self._tables, self._state, int(action)
        if z is None:
            raise gym.error.ResetNeeded("step was called before reset")
        if a != action or not 0 <= a < t.A or (t.refused is not None and t.refused[z * t.A + a]):
            raise ValueError(f"action: expected one that exists in state {z}, got {action}")
        u, v = self.np_random.random(), self.np_random.random()
        pair = z * t.A + a
        w = 0 if t.draw.sampler is None else t.draw.sampler.draw_one(z if t.draw_by_state else pair, u)
        row = pair * t.W + w
        assert t.P.sampler is not None
        self._state = z - z % t.S + t.P.sampler.draw_one(row if t.P_by_draw else pair, v)
        reward, leader_reward = t.r_follower.values.item(row), t.r_leader.values.item(row)
        if self.render_mode is not None:
            self._last = f"state {z}, action {a}, draw {w}: follower {reward:g}, leader {leader_reward:g}; "
        terminated = t.terminal is not None and bool(t.terminal[z])
        info: dict[str, Any] = {"leader_reward": leader_reward, "leader_draw": w}
        if t.mask is not None:
            info |= self._mask_info()
        return np.int64(self._state), reward, terminated, False, info

    def _text(self) -> str:
        return f"{self._last}state {self._state}"

    def _draw(self, panel: Axes) -> None:
        """Draw a table of the follower's expected rewards at x, with the current state marked."""
        t, z = self._tables, self._state or 0
        rewards = self.problem.follower_mdp(self._x).r.detach().expand(t.n_contexts, t.S, t.A)
        draw_table(panel, rewards[z // t.S], "follower's reward at x", None if self._state is None else z % t.S)

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """Return the leader context in a state, ``[commitment_size]``."""
        shown = self._commitments()[0]
        row: NDArray[np.float32] = shown[int(obs) if len(shown) > 1 else 0].copy()
        return row
