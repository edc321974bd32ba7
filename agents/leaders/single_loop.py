r"""Single-loop actor-critic with attenuating entropy (Zeng, Bhatt, Ganesh and Koppel, arXiv 2601.16399), and its competitors.

x affects the follower's reward only; f = -J_L is a smooth function of x and of the occupancy m(s,a) = (1-gamma) d(s) pi(a|s). Two
followers, each a softmax table with a tabular critic, track the best response and the solution of the penalised problem,

    L(x,pi_L) = f(x,pi_L) + (1/w) ( J_tau(x,pi*_tau(x)) - J_tau(x,pi_L) ),
    grad_x L  = d_x f(x,pi_L) + 1/(w(1-gamma)) ( E_{m(pi)} grad r_x - E_{m(pi_L)} grad r_x )  at pi = pi*_tau(x),

with one transition (s,a,s') each per iterate; tau, w and the learning rates fall as power laws of the number of iterates:

    x       <- Proj_X( x - zeta [ d_x f + (grad r_x(s,a) - grad r_x(s_L,a_L)) / (w(1-gamma)) ] )
    theta   <- theta + alpha delta grad log pi(a|s),      delta = r(s,a) - tau log pi(a|s) + gamma V(s') - V(s)
    V(s)    <- V(s) + beta delta                          and the same for pi_L, with its own reward r_L

- **States** follow the occupancy: after each transition a follower restarts with probability 1-gamma. Sums over a discounted
  episode are then means over transitions, divided by 1-gamma; alpha contains this factor for the followers.
- **f's gradient in pi_L** is a policy gradient: grad f = E_m[ A_c grad log pi_L ], with A_c the advantage under the pseudo-reward
  c(s,a) = df/dm(s,a). So pi_L ascends J_tau - w f, up to a factor, with a single critic of the reward r_L = r_x - w (1-gamma) c.
  m is estimated from pi_L's own transitions, as an average with its own rate. P is known through transitions only.
- **Blocks.** x is the slowest: it moves once in ``block`` iterates, by the sum of their steps, and the tables of r_x and c are
  computed then. A block of one iterate is the method as published.
- **Common random numbers.** Both followers get the same uniform numbers. This changes neither's distribution, and removes most of
  the noise from the difference of two gradients, which 1/w magnifies. It is our addition.

The publication compares with four methods that we know by name only; each is implemented in this setting as its name says:

- **fixed tau**: the same method with a number as ``tau``.
- **partial SGD** (:class:`PartialSGD`): x follows d_x f(x,pi) at the tracked best response, as if the follower did not react.
- **nested loop** (:class:`NestedLoopConfig`): x stays fixed for a long block, then steps by the mean gradient of its last part.
- **finite differences** (:class:`FiniteDifferences`): two followers, at x + h u and x - h u with u standard normal, and the
  difference of their f.

The exponents 9/10 (zeta), 1/2 (alpha, beta), 3/20 (w) and 1/20 (tau) are our default, meant as the publication's (unverified).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from ...envs.mdp import TabularProblem
from ...envs.mdp.checks import check_count, check_number, check_size, require
from ...envs.tabular import AliasSampler, Floats, Integers
from ..exact import ExactConfig, ExactLeader, ExactMethod, ExactState, generator
from ..leader import Progress, projected_step
from ..lower_levels import Policies
from ..plan import Cost
from ..records import storable
from ..schedules import Power, Schedule, as_schedule, scaled


@dataclass(frozen=True, eq=False)
class World:
    """A source of transitions for the followers, and nothing more.

    Attributes:
        n_states: number of states S.
        n_actions: number of actions A.
        gamma: discount.
        following: sampler of s' from row ``s * A + a``.
        start: sampler of a start state from row 0.
    """

    n_states: int
    n_actions: int
    gamma: float
    following: AliasSampler
    start: AliasSampler

    @staticmethod
    def of(problem: TabularProblem) -> World:
        """Return the source of transitions of a problem.

        Raises:
            ValueError: there are contexts, terminal states or unavailable actions, or x affects the transitions or nothing.
        """
        mdp = problem.follower_mdp(problem.start_x().requires_grad_())
        ends = mdp.terminal is not None and bool(mdp.terminal.any())
        missing = mdp.mask is not None and not bool(mdp.mask.all())
        plain = not mdp.batch_shape and problem.context_probs is None and not ends and not missing
        wanted = "a single context, no terminal states and all actions available"
        require(plain, "problem", wanted, repr(problem))
        enters = mdp.r.requires_grad and not mdp.P.requires_grad
        require(enters, "problem", "an x that affects the follower's reward and not its transitions", repr(problem))
        rows = mdp.P.reshape(-1, mdp.n_states).numpy()
        following, start = AliasSampler(rows), AliasSampler(mdp.rho.reshape(1, -1).numpy())
        return World(mdp.n_states, mdp.n_actions, mdp.gamma, following, start)

    def begin(self, u: Floats) -> Integers:
        """Return start states from uniform numbers, in the shape of u."""
        return self.start.draw(np.zeros(u.size, dtype=np.int64), u.ravel()).reshape(u.shape)


@dataclass(frozen=True, eq=False)
class Followers:
    """F followers for each of n runs.

    Attributes:
        theta: logits of the policies, ``[F, n, S, A]``.
        V: critics, ``[F, n, S]``.
        state: current states, ``[F, n]``.
        occupancy: running averages of their transitions, ``[F, n, S, A]``.
    """

    theta: Floats
    V: Floats
    state: Integers
    occupancy: Floats

    def __post_init__(self) -> None:
        n_states = self.theta.shape[-2]
        there = bool(((self.state >= 0) & (self.state < n_states)).all())
        require(there, "state", f"an index below {n_states} states", self.state)

    @staticmethod
    def new(world: World, F: int, u: Floats) -> Followers:
        """Make followers with uniform policies, at start states drawn by uniform numbers u, ``[n]``."""
        n, S, A = len(u), world.n_states, world.n_actions
        state = np.broadcast_to(world.begin(u), (F, n)).copy()
        return Followers(np.zeros((F, n, S, A)), np.zeros((F, n, S)), state, np.full((F, n, S, A), 1.0 / (S * A)))

    @property
    def policies(self) -> Floats:
        """Return the policies softmax(theta), ``[F, n, S, A]``."""
        return softmax(self.theta, -1)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Rates:
    """The values of the schedules in a block, each ``[n]``, one per run.

    Attributes:
        alpha: learning rate of the policies.
        beta: learning rate of the critics.
        occupancy: weight of the newest transition in the running occupancy.
        w: weight w = 1/lam of the penalty.
        tau: temperature.
    """

    alpha: Floats
    beta: Floats
    occupancy: Floats
    w: Floats
    tau: Floats


def track(world: World, followers: Followers, reward: Floats, rates: Rates, u: Floats) -> tuple[Followers, Integers]:
    """Run K actor-critic steps of every follower, with one transition each.

    Args:
        world: the source of transitions.
        followers: the followers.
        reward: reward of each follower, ``[F, n, S, A]``.
        rates: learning rates and temperatures.
        u: uniform numbers for the action, the next state and the restart, ``[K, 3, n]``, shared by a run's followers.

    Returns:
        The followers after the steps, and the transitions' pairs ``s * A + a``, ``[K, F, n]``.
    """
    F, n, S, A = reward.shape
    K, N, gamma = len(u), F * n, world.gamma
    theta, V = followers.theta.reshape(-1, A).copy(), followers.V.ravel().copy()
    paid, s = reward.ravel(), followers.state.ravel()
    alpha, beta, tau = (np.tile(rate, F) for rate in (rates.alpha, rates.beta, rates.tau))
    draws = np.tile(u, F)
    anew = draws[:, 2] < 1.0 - gamma
    starts = world.begin(np.where(anew, draws[:, 2] / (1.0 - gamma), 0.0))
    first, each = np.arange(N) * S, np.arange(N)
    pairs = np.empty((K, N), dtype=np.int64)
    for t in range(K):
        here = first + s
        logits = theta.take(here, 0)
        z = logits - logits.max(1, keepdims=True)
        p = np.exp(z)
        below = p.cumsum(1)
        total = below[:, -1:]
        a = (below[:, :-1] <= draws[t, 0][:, None] * total).sum(1)
        pair = s * A + a
        following = world.following.draw(pair, draws[t, 1])
        v = V.take(here)
        log_pi = z[each, a] - np.log(total[:, 0])
        delta = paid.take(first * A + pair) - tau * log_pi + gamma * V.take(first + following) - v
        p *= (-alpha * delta)[:, None] / total  # theta + alpha delta (e_a - pi)
        p[each, a] += alpha * delta
        theta[here] = logits + p
        V[here] = v + beta * delta
        pairs[t] = pair
        s = np.where(anew[t], starts[t], following)
    weights = rates.occupancy * (1.0 - rates.occupancy) ** np.arange(K - 1, -1, -1)[:, None]
    newest = tally(world, pairs.reshape(K, F, n), weights[:, None])
    occupancy = ((1.0 - rates.occupancy) ** K)[:, None, None] * followers.occupancy + newest
    after = Followers(theta.reshape(F, n, S, A), V.reshape(F, n, S), s.reshape(F, n), occupancy)
    return after, pairs.reshape(K, F, n)


def tally(world: World, pairs: Integers, weights: Floats | float) -> Floats:
    """Sum weights by state-action pair, ``[F, n, S, A]``, for pairs ``[K, F, n]``."""
    _, F, n = pairs.shape
    S, A = world.n_states, world.n_actions
    cells = (pairs + (np.arange(F * n) * (S * A)).reshape(F, n)).ravel()
    sums = np.zeros(F * n * S * A)
    np.add.at(sums, cells, np.broadcast_to(weights, pairs.shape).ravel())
    return sums.reshape(F, n, S, A)


def frequencies(world: World, pairs: Integers) -> Floats:
    """Return the frequency of each pair, ``[F, n, S, A]``, in pairs ``[K, F, n]``."""
    return tally(world, pairs, 1.0 / len(pairs))


def _cost(problem: TabularProblem, x: Tensor, occupancy: Tensor) -> Tensor:
    """Return f, ``[n]``, at x ``[n, dim]`` and occupancies ``[n, S, A]``; several runs need a problem with batch axes."""
    if len(x) == 1:
        return -problem.occupancy_return(x[0], occupancy[0]).reshape(1)
    return -problem.occupancy_return(x, occupancy)


def _slopes(problem: TabularProblem, x: Tensor, occupancy: Floats) -> tuple[Tensor, Tensor]:
    """Return d_x f, ``[n, dim]``, and c = df/dm, ``[n, S, A]``."""
    x, m = x.detach().requires_grad_(), torch.from_numpy(occupancy).requires_grad_()
    f = _cost(problem, x, m).sum()
    direct, c = torch.autograd.grad(f, (x, m), allow_unused=True, materialize_grads=True)
    return direct, c


def _reward(problem: TabularProblem, x: Tensor) -> Tensor:
    """Return r_x, ``[n, S, A]``."""
    return problem.follower_mdp(x[0]).r.unsqueeze(0) if len(x) == 1 else problem.follower_mdp(x).r


@dataclass(frozen=True, eq=False)
class Block:
    """The input of a method's step.

    Attributes:
        problem: the bilevel problem; for several runs its functions must accept leading axes.
        world: its source of transitions.
        followers: the followers.
        x: the leader's parameters, ``[n, dim]``, detached.
        rates: the schedules' values.
        u: uniform numbers, ``[K, 3, n]``.
        burn_in: number of first transitions that x's gradient leaves out.
    """

    problem: TabularProblem
    world: World
    followers: Followers
    x: Tensor
    rates: Rates
    u: Floats
    burn_in: int = 0


Step = tuple[Followers, Tensor]
"""The followers after a block, and x's descent gradient, ``[n, dim]``, as a mean over the block's iterates."""


def single_loop(block: Block) -> Step:
    """Run K iterates of the method above with two followers, the best response and the penalised one."""
    x, scale = block.x.detach().requires_grad_(), block.rates.w * (1.0 - block.world.gamma)
    direct, c = _slopes(block.problem, x, block.followers.occupancy[1])
    r = _reward(block.problem, x)
    paid = r.detach().numpy()
    rewards = np.stack([paid, paid - scale[:, None, None] * c.numpy()])
    followers, pairs = track(block.world, block.followers, rewards, block.rates, block.u)
    best, penalised = frequencies(block.world, pairs[block.burn_in :])
    weights = torch.from_numpy((best - penalised) / scale[:, None, None])
    (through_reward,) = torch.autograd.grad(r, x, weights)
    return followers, direct + through_reward


def partial_sgd(block: Block) -> Step:
    """Return d_x f at the tracked best response, with one follower."""
    direct, _ = _slopes(block.problem, block.x, block.followers.occupancy[0])
    with torch.no_grad():
        paid = _reward(block.problem, block.x).numpy()
    followers, _ = track(block.world, block.followers, paid[None], block.rates, block.u)
    return followers, direct


@torch.no_grad()
def finite_differences(block: Block, direction: Tensor, h: float) -> Step:
    """Return (f(x + h u) - f(x - h u)) / 2h times u, ``direction``, at the occupancies of two followers, one per point."""
    points = [block.problem.project(block.x + sign * h * direction) for sign in (1.0, -1.0)]
    paid = np.stack([_reward(block.problem, point).numpy() for point in points])
    followers, pairs = track(block.world, block.followers, paid, block.rates, block.u)
    seen = torch.from_numpy(frequencies(block.world, pairs[block.burn_in :]))
    above, below = (_cost(block.problem, point, m) for point, m in zip(points, seen, strict=True))
    return followers, ((above - below) / (2.0 * h)).unsqueeze(-1) * direction


UNIT = 0.1526
"""``reward_unit`` of goal placement, for which the schedules below were tuned (``benchmarks/single_loop.py``)."""
ZETA, ALPHA, BETA = Power(9.65e-5, 6.54e-6, 0.9), Power(0.877, 0.192, 0.5), Power(0.354, 0.0471, 0.5)
TAU, W, OCCUPANCY_RATE = Power(0.289, 0.0242, 0.8), Power(5.28, 2.69, 0.15), Power(0.0166, 0.00171, 0.5)
"""Default schedules, found by random search; other problems may need other values."""


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class SingleLoopConfig(ExactConfig):
    """Options of :class:`SingleLoop`. Every schedule runs over the budget of ``learn``.

    Attributes:
        learning_rate: zeta, the learning rate of x per iterate; a block moves x by ``block`` times it. None takes a schedule
            in the unit of the leader's rewards.
        optimizer_class: default plain gradient descent, as in the publication.
        tau: temperature in units of the follower's reward; None takes a schedule in the unit of the follower's rewards.
        alpha: learning rate of the policies; None takes a schedule, likewise.
        beta: learning rate of the critics.
        w: weight 1/lam of the penalty, positive; None takes a schedule in the units of the leader's and follower's rewards.
        occupancy_rate: weight of the newest transition in the running occupancies, at most 1.
        block: number of iterates between two steps of x.
        burn_in: number of a block's first iterates that x's gradient leaves out.
        eval_every: number of blocks between evaluations at the best response.
        keep_best: default False: the last x is kept, as in the publication.
    """

    learning_rate: float | Schedule | None = None  # type: ignore[assignment]
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.SGD
    alpha: float | Schedule | None = None
    beta: float | Schedule = BETA
    w: float | Schedule | None = None
    occupancy_rate: float | Schedule = OCCUPANCY_RATE
    block: int = 50
    burn_in: int = 0
    eval_every: int = 1000
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.block, "block")
        shorter = check_count(self.burn_in, "burn_in") < self.block
        require(shorter, "burn_in", f"less than block, {self.block}", self.burn_in)
        for name, positive in (("alpha", False), ("beta", False), ("w", True), ("occupancy_rate", True)):
            if getattr(self, name) is not None:
                as_schedule(getattr(self, name), name, positive=positive)
        for progress_remaining in (1.0, 0.0):
            rate = as_schedule(self.occupancy_rate, "occupancy_rate", positive=True)(progress_remaining)
            check_number(rate, "occupancy_rate", low=0.0, high=1.0)


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class NestedLoopConfig(SingleLoopConfig):
    """The nested loop: x stays fixed while its followers learn, then steps by the mean gradient of the block's last part."""

    block: int = 2000
    burn_in: int = 1000
    eval_every: int = 10


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class FiniteDifferencesConfig(NestedLoopConfig):
    """Options of :class:`FiniteDifferences`, with blocks as long as the nested loop's.

    Attributes:
        h: distance of the followers' points from x, along a standard normal direction.
    """

    h: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.h, "h", low=0.0, open_low=True, open_high=True)


@dataclass
class SingleLoopState(ExactState):
    """The state that the single loop continues from.

    Attributes:
        generator: random generator.
        followers: the followers' policies, critics, states and occupancies.
        w: weight 1/lam of the penalty.
    """

    generator: Any = None
    followers: Followers | None = None
    w: float = 0.0


class SingleLoopMethod(ExactMethod):
    """x and two followers are updated together; see :class:`SingleLoop`."""

    config_class: ClassVar[type[ExactConfig]] = SingleLoopConfig
    state_class = SingleLoopState
    counts = "total_timesteps"
    n_followers: ClassVar[int] = 2
    estimates = True

    def __init__(self, problem: Any, config: Any = None, env_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(problem, config, env_kwargs)
        self.world = World.of(self.problem)
        # What the config leaves out is as it was found, for rewards of this problem's units.
        c, unit, leader_unit = self.config, self.unit, self.leader_unit
        alpha = scaled(ALPHA, UNIT / unit) if c.alpha is None else c.alpha
        w = scaled(W, unit / leader_unit) if c.w is None else c.w
        given = {"alpha": alpha, "beta": c.beta, "occupancy_rate": c.occupancy_rate, "w": w}
        self.schedules = [as_schedule(value, name, positive=False) for name, value in given.items()]
        S, A = self.world.n_states, self.world.n_actions
        try:
            _cost(self.problem, self.start_x()[None], torch.full((1, S, A), 1.0 / (S * A), dtype=torch.float64))
        except NotImplementedError as error:
            raise ValueError(f"problem: expected a J_L that is a function of x and the occupancy ({error})") from error

    def default_tau(self) -> Schedule:
        return scaled(TAU, self.unit / UNIT)

    def default_rate(self) -> Schedule:
        return scaled(ZETA, UNIT / self.leader_unit)

    def prepare(self, state: SingleLoopState, seed: int | None) -> None:
        state.generator, state.w = generator(seed), self.schedules[3](1.0)
        u = torch.rand(1, dtype=torch.float64, generator=state.generator).numpy()
        state.followers = Followers.new(self.world, self.n_followers, u)

    def iteration_steps(self, state: SingleLoopState, total: int, first: bool, left: float = math.inf) -> Cost:
        return Cost(self.n_followers * self.config.block)

    def step(self, state: SingleLoopState, progress: Progress) -> tuple[SingleLoopState, dict[str, float]]:
        state.tau, block = self.schedule(progress.remaining), self.config.block
        found = self.descend(state, progress)
        state.optimizer.param_groups[0]["lr"] = self._rate(progress.remaining) * block
        projected_step(state.optimizer, self.projections(state))
        state.num_timesteps += self.n_followers * block
        return state, found

    def descend(self, state: SingleLoopState, progress: Progress) -> dict[str, float]:
        alpha, beta, occupancy, state.w = (schedule(progress.remaining) for schedule in self.schedules)
        rates = Rates(*(np.array([rate]) for rate in (alpha, beta, occupancy, state.w, state.tau)))
        u = torch.rand(self.config.block, 3, 1, dtype=torch.float64, generator=state.generator).numpy()
        assert state.followers is not None
        x = state.x.detach().clone()[None]
        block = Block(self.problem, self.world, state.followers, x, rates, u, self.config.burn_in)
        state.followers, gradient = self.advance(block, state)
        state.x.grad = gradient[0]
        return {"gradient_norm": float(gradient.norm()), "w": state.w}

    def advance(self, block: Block, state: SingleLoopState) -> Step:
        """Return the followers after a block, and x's descent gradient."""
        return single_loop(block)

    def policies(self, state: SingleLoopState, model: Any) -> Policies:
        assert state.followers is not None
        return (torch.from_numpy(state.followers.policies[-1, 0]),)

    def lam_now(self, state: SingleLoopState) -> float | None:
        return 1.0 / state.w

    def response(self, state: SingleLoopState, own: Policies) -> Policies | None:
        assert state.followers is not None
        return own if self.lam_now(state) is None else (torch.from_numpy(state.followers.policies[0, 0]),)

    def sampled_steps(self, state: SingleLoopState) -> int:
        return state.num_timesteps


class SingleLoop(ExactLeader):
    """Single-loop actor-critic: x and two followers are updated together, with one transition each per iterate.

    The model is used only to draw transitions, and for evaluation at the best response.

    In ``evaluate()``, ``leader_return`` is taken at the exact best response; ``leader_return_at_pi_y`` and ``penalty`` are those
    of the penalised follower, with lam = 1/w; ``follower_regret`` is that of the follower trained as best response.
    ``num_timesteps`` counts the transitions of all followers.

    Args:
        problem: a tabular problem, an environment that has one, or an environment's id. x must affect the follower's reward
            only; there must be one context, no terminal states and no unavailable actions; J_L must be a function of the
            occupancy.
        config: learning rates, schedules and bounds.
        seed: seed of all random numbers.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default 0, projected onto X.

    Attributes:
        followers: the followers' policies, critics, states and occupancies.

    Raises:
        ValueError: the id is unknown, x0 is outside X, or the problem is of another kind.

    Example:
        >>> from bilevel_gym.agents import SingleLoop, SingleLoopConfig
        >>> config = SingleLoopConfig(learning_rate=3e-4, tau=0.3, w=0.5)
        >>> leader = SingleLoop("bilevel_gym/TwoState-v0", config=config, env_kwargs={"tau": 0.3}, x0=[0.0]).learn(20_000)
        >>> leader.evaluate().leader_return > 2.0 * leader.history[0].leader_return
        True
    """

    method_class = SingleLoopMethod


class PartialSGDMethod(SingleLoopMethod):
    """x follows d_x f only, at a tracked best response; see :class:`PartialSGD`."""

    n_followers = 1

    def advance(self, block: Block, state: SingleLoopState) -> Step:
        return partial_sgd(block)

    def lam_now(self, state: SingleLoopState) -> None:
        return None


class PartialSGD(SingleLoop):
    """Partial SGD: x follows d_x f only, at a tracked best response.

    Arguments are those of :class:`SingleLoop`; w is not used.
    """

    method_class = PartialSGDMethod


class FiniteDifferencesMethod(SingleLoopMethod):
    """x follows central differences of f at tracked best responses; see :class:`FiniteDifferences`."""

    config_class = FiniteDifferencesConfig

    def advance(self, block: Block, state: SingleLoopState) -> Step:
        direction = torch.randn(block.x.shape, dtype=torch.float64, generator=state.generator)
        return finite_differences(block, direction, self.config.h)

    def lam_now(self, state: SingleLoopState) -> None:
        return None


class FiniteDifferences(SingleLoop):
    """Finite differences: x follows central differences of f at tracked best responses.

    Arguments are those of :class:`SingleLoop`; w is not used.
    """

    method_class = FiniteDifferencesMethod
