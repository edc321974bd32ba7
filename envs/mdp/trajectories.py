r"""Episodes of a fixed number of steps, drawn from tabular models in one batch (inverse cdf, torch).

    s_0 ~ rho,    a_t ~ pi(.|s_t),    w_t ~ p(.|s_t,a_t),    s_{t+1} ~ P(.|s_t,a_t,w_t),       t = 0 .. length - 1

w is a draw of the model besides the next state. Three models have this form:

- a :class:`TabularMDP`, which draws nothing else, W = 1 (:func:`mdp_world`);
- a leader's :class:`TabularKernel`, e.g. of a Stackelberg game, where w is the leader's action, ``w ~ pi_x``
  (:func:`kernel_world`);
- a :class:`ZeroSumGame`, where a is player 1's action and w player 2's (:func:`game_world`).

Each draw takes one uniform number u and returns the first k whose cumulative probability exceeds u. Since this is monotone in the
table, episodes of two policies with the same random numbers are equal as long as the policies choose the same actions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import broadcast_batch, check_finite, check_size, require
from .tabular import TabularKernel, TabularMDP, negative_entropy
from .zero_sum import ZeroSumGame


@dataclass(frozen=True, eq=False)
class TabularWorld:
    """The tables that episodes are drawn from, and their rewards; they may have an autograd graph.

    Attributes:
        rho: start distribution, ``[..., S]``.
        draw: probabilities ``p(w|s,a)``, ``[..., S, A or 1, W]``.
        P: probabilities ``P(s'|s,a,w)``, ``[..., S, A, W, S]``.
        r: reward of a step, ``[..., S, A, W]``.
        gamma: discount factor.
        state_reward: reward of a step that depends on its state only, ``[..., S]``, e.g. tau times the other player's entropy.
            Default: None, for 0.
        terminal: states whose step is the episode's last, bool ``[..., S]``. Default: None, no such state.
        terminal_entropy: whether the step in a terminal state earns entropy. Default: False.

    Raises:
        ValueError: sizes do not fit together, or batch axes do not broadcast.
    """

    rho: Tensor
    draw: Tensor
    P: Tensor
    r: Tensor
    gamma: float
    state_reward: Tensor | None = None
    terminal: Tensor | None = None
    terminal_entropy: bool = False

    def __post_init__(self) -> None:
        require(self.r.ndim >= 3, "r", "shape [..., S, A, W]", f"shape {tuple(self.r.shape)}")
        S, A, W = self.r.shape[-3:]
        for name, shapes in (
            ("rho", [(S,)]),
            ("draw", [(S, A, W), (S, 1, W)]),
            ("P", [(S, A, W, S)]),
            ("state_reward", [(S,)]),
            ("terminal", [(S,)]),
        ):
            table = getattr(self, name)
            if table is not None:
                found = tuple(table.shape[-len(shapes[0]) :])
                require(found in shapes, name, f"shape [..., {shapes[0]}], as r has", f"shape {tuple(table.shape)}")
        _ = self.batch_shape

    @property
    def n_states(self) -> int:
        """S."""
        return int(self.r.shape[-3])

    @property
    def n_actions(self) -> int:
        """A."""
        return int(self.r.shape[-2])

    @property
    def batch_shape(self) -> torch.Size:
        """The leading batch axes, broadcast over the tables."""
        ranks = {"rho": 1, "draw": 3, "P": 4, "r": 3, "state_reward": 1, "terminal": 1}
        tables = [(name, getattr(self, name), rank) for name, rank in ranks.items()]
        return broadcast_batch(*((name, table.shape[:-rank]) for name, table, rank in tables if table is not None))

    def with_reward(self, r: Tensor) -> TabularWorld:
        """Return the same model with another reward, ``[..., S, A, W]``, and no state reward."""
        return dataclasses.replace(self, r=r, state_reward=None)

    def with_start(self, rho: Tensor) -> TabularWorld:
        """Return the same model with another start distribution, ``[..., S]``."""
        return dataclasses.replace(self, rho=rho)

    def detach(self) -> TabularWorld:
        """Return the same model, detached from the autograd graph."""
        tables = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        held: dict[str, Any] = {name: table.detach() for name, table in tables.items() if isinstance(table, Tensor)}
        return dataclasses.replace(self, **held)


def mdp_world(mdp: TabularMDP) -> TabularWorld:
    """Return the tables of an MDP, whose only draw is the next state."""
    draw = torch.ones((mdp.n_states, 1, 1), dtype=mdp.r.dtype)
    kernel = TabularKernel(draw, mdp.dense_P.unsqueeze(-2), mdp.r.unsqueeze(-1), mdp.r.unsqueeze(-1))
    return kernel_world(kernel, mdp)


def kernel_world(kernel: TabularKernel, mdp: TabularMDP) -> TabularWorld:
    """Return the tables of a kernel at x, with start, discount and terminal states of the follower's MDP M(x), ``mdp``."""
    return TabularWorld(
        mdp.rho, kernel.draw, kernel.P, kernel.r_follower, mdp.gamma, None, mdp.terminal, mdp.terminal_entropy
    )


def game_world(game: ZeroSumGame, pi2: Tensor, tau: float = 0.0) -> TabularWorld:
    """Return the tables that player 1 faces while player 2 plays pi2, ``[..., S, A2]``; the draws w are player 2's actions.

    ``tau h(pi2(s))``, which player 1 earns in the game at temperature tau, becomes a reward of the state.

    Raises:
        ValueError: the policy has other sizes than the game.
    """
    expected = (game.n_states, game.n_actions[1])
    require(pi2.shape[-2:] == expected, "pi2", f"shape [..., {expected}]", f"shape {tuple(pi2.shape)}")
    paid = tau * negative_entropy(pi2) if tau != 0.0 else None
    return TabularWorld(game.rho, pi2.unsqueeze(-2), game.P, game.r, game.gamma, paid)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """A batch of episodes, with fields ``[..., batch, length]``, where ``...`` are the models' batch axes.

    Attributes:
        states: s_t.
        actions: a_t.
        draws: w_t.
        next_states: s_{t+1}.
        alive: False for steps after a terminal one, which do not count.
        uniforms: the random numbers, ``[..., batch, 1 + 3 length]``: one for the start state, then three for each step.

    Raises:
        ValueError: the fields have different sizes.
    """

    states: Tensor
    actions: Tensor
    draws: Tensor
    next_states: Tensor
    alive: Tensor
    uniforms: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.states.shape)
        require(len(shape) >= 2, "states", "shape [..., batch, length]", f"shape {shape}")
        for name in ("actions", "draws", "next_states", "alive"):
            found = tuple(getattr(self, name).shape)
            require(found == shape, name, f"shape {shape}, as states has", f"shape {found}")
        expected, found = (*shape[:-1], 1 + 3 * shape[-1]), tuple(self.uniforms.shape)
        require(found == expected, "uniforms", f"shape {expected}, as states has", f"shape {found}")

    @property
    def batch_shape(self) -> torch.Size:
        """The models' batch axes."""
        return self.states.shape[:-2]

    @property
    def batch(self) -> int:
        """Episodes per model."""
        return int(self.states.shape[-2])

    @property
    def length(self) -> int:
        """Steps per episode."""
        return int(self.states.shape[-1])


def pick(table: Tensor, rank: int, batch_shape: torch.Size, *index: Tensor) -> Tensor:
    """Index a table ``[..., (rank axes)]`` at ``[*batch_shape, ...]``, each instance of the batch at its own indices.

    An axis of size one means that the values are the same for all indices.
    """
    wide = table.expand(*batch_shape, *table.shape[-rank:])
    n, dims = len(batch_shape), index[0].ndim
    grid = [torch.arange(size).view(-1, *[1] * (dims - 1 - axis)) for axis, size in enumerate(batch_shape)]
    own = [torch.zeros_like(i) if wide.shape[n + axis] == 1 else i for axis, i in enumerate(index)]
    return wide[(*grid, *own)]


def _inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    """Return the first k with ``sum_{j<=k} p_j > u``, ``[...]``, for rows p, ``[..., K]``, and u, ``[...]``."""
    cdf = p.cumsum(-1)
    cdf = cdf / cdf[..., -1:]  # ends at exactly 1, above every u
    return torch.searchsorted(cdf, u.unsqueeze(-1).contiguous(), right=True).squeeze(-1)


@torch.no_grad()
def sample(
    world: TabularWorld,
    pi: Tensor,
    length: int,
    batch: int,
    generator: torch.Generator,
    first: Tensor | None = None,
    twin: Trajectories | None = None,
) -> Trajectories:
    """Draw ``batch`` episodes of ``length`` steps in every instance at once.

    Args:
        world: the tables to draw from.
        pi: policy, ``[..., S, A]``.
        length: number of steps of each episode, at least 1.
        batch: number of episodes in each instance, at least 1.
        generator: a ``torch.Generator`` for the random numbers; not used if ``twin`` is given.
        first: policy of the first step, ``[..., S, A]``. Default: pi.
        twin: trajectories whose random numbers are reused. Default: None.

    Raises:
        ValueError: a policy has the wrong sizes or contains NaN, batch axes do not broadcast, the twin has other sizes,
            ``length`` or ``batch`` is below 1, or ``generator`` is not a ``torch.Generator``.
    """
    length, batch = check_size(length, "length"), check_size(batch, "batch")
    require(isinstance(generator, torch.Generator), "generator", "a torch.Generator", repr(generator))
    shape = _batch_shape(world, pi, first)
    if twin is None:
        uniforms = torch.rand((*shape, batch, 1 + 3 * length), generator=generator, dtype=torch.float64)
    else:
        expected, found = (*shape, batch, length), tuple(twin.states.shape)
        require(found == expected, "twin", f"trajectories {expected}", f"trajectories {found}")
        uniforms = twin.uniforms
    rho = world.rho.unsqueeze(-2).expand(*shape, batch, world.n_states)
    s = _inverse_cdf(rho, uniforms[..., 0])
    alive = torch.ones_like(s, dtype=torch.bool)
    columns: list[tuple[Tensor, ...]] = []
    for t in range(length):
        policy = first if t == 0 and first is not None else pi
        u_a, u_w, u_s = uniforms[..., 1 + 3 * t : 4 + 3 * t].unbind(-1)
        a = _inverse_cdf(pick(policy, 2, shape, s), u_a)
        w = _inverse_cdf(pick(world.draw, 3, shape, s, a), u_w)
        s_next = _inverse_cdf(pick(world.P, 4, shape, s, a, w), u_s)
        columns.append((s, a, w, s_next, alive))
        if world.terminal is not None:
            alive = alive & ~pick(world.terminal, 1, shape, s)
            if not bool(alive.any()):  # every episode has ended: what follows does not count
                columns += [(s_next, a, w, s_next, alive)] * (length - t - 1)
                break
        s = s_next
    states, actions, draws, next_states, lives = (torch.stack(column, -1) for column in zip(*columns, strict=True))
    return Trajectories(states, actions, draws, next_states, lives, uniforms)


def _batch_shape(world: TabularWorld, pi: Tensor, first: Tensor | None) -> torch.Size:
    """Return the batch axes of the tables and of the policies together."""
    expected, named = (world.n_states, world.n_actions), [("world", world.batch_shape)]
    for name, policy in (("pi", pi), ("first", first)):
        if policy is not None:
            require(policy.shape[-2:] == expected, name, f"shape [..., {expected}]", f"shape {tuple(policy.shape)}")
            check_finite(policy, name)
            named.append((name, policy.shape[:-2]))
    return broadcast_batch(*named)
