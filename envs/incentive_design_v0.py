"""Incentive design (PettingZoo): a designer adds incentives to the payoffs of a zero-sum Markov game of two players."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from numpy.typing import NDArray
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import wrappers
from pettingzoo.utils.conversions import parallel_to_aec_wrapper
from torch import Tensor

from .core import OfProblem
from .mdp import IncentiveDesignProblem, random_incentive_design
from .mdp.checks import check_size, require
from .player import GameLeaderModel
from .render import FOLLOWER, Drawn, draw_table
from .tabular import AliasSampler

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["IncentiveDesignEnv", "env", "parallel_env", "raw_env"]

PLAYERS = ("player_1", "player_2")

Observations = dict[str, np.int64]
Infos = dict[str, dict[str, Any]]


class IncentiveDesignEnv(Drawn, OfProblem, ParallelEnv[str, np.int64, Any]):
    """Two players play a random zero-sum game, to which a designer with another reward and other transitions adds incentives.

    ## Description
    In each state both players choose an action at the same time. Player 2 pays player 1 ``r(s,a1,a2) + sigmoid(x(s,a1,a2))``,
    where the designer chooses x, and the next state is drawn from ``P(s'|s,a1,a2)``. The designer's return is that of the
    players' policies under its own transitions ``P_id`` and rewards ``r_id``; it depends on x through those policies only. In
    the registered environment rewards are drawn once, uniformly from [0, 1]; transition probabilities are uniform numbers,
    normalised. ``IncentiveDesignEnv(problem)`` simulates any :class:`IncentiveDesignProblem`, e.g. one from your own payoff
    tables.

    ``reset(options={"designer_world": True})`` starts an episode with transitions ``P_id``, in which the discounted sum
    of ``leader_reward`` is an unbiased estimate of the designer's return.

    ## Agents
    ``player_1`` (maximises the payoff) and ``player_2`` (is paid its negative), in parallel.

    ## Action Space
    ``Discrete(n_actions_1)`` and ``Discrete(n_actions_2)``.

    ## Observation Space
    ``Discrete(n_states)`` for both: the state.

    ## Leader Space
    ``Box(-10, 10, (n_states * n_actions_1 * n_actions_2,), float64)``: x, ``[S, A1, A2]`` flattened; 0 is the same
    incentive 1/2 everywhere. ``set_leader(x)`` takes effect at the next step. The players may see the leader context
    ``commitment(s)``: the incentives ``sigmoid(x(s, ., .))`` of their state, ``[A1 * A2]``. ``leader_model()`` takes both
    players' actions, ``[..., 2]``, and returns both rewards, ``[..., 2]``.

    ## Rewards
    The payoff and its negative. ``info["leader_reward"]``, the same for both players, is the designer's ``r_id`` of the
    step, undiscounted; ``info["leader_draw"]`` is 0, because nothing that is drawn depends on x.

    ## Starting State
    Uniform over the states.

    ## Episode End
    It does not terminate; it is truncated after ``max_cycles`` steps.

    ## Arguments
    - ``n_states``, ``n_actions_1``, ``n_actions_2``: sizes (10, 5, 5).
    - ``gamma``: discount factor of players and designer, in [0, 1) (0.9).
    - ``tau``: default temperature of the players (0.1).
    - ``seed``: seed of the game's rewards and transitions, not of the episodes (0); None draws a random game.
    - ``max_cycles``: steps of an episode (100).
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``: the incentives, the state and the last pair of actions.

    These are arguments of ``parallel_env``, ``env`` and ``raw_env``; the class takes ``problem``, ``max_cycles`` and
    ``render_mode``. The sizes, ``gamma`` and ``tau`` are our defaults; the published experiment may use others.

    ## Version History
    - v0: first version.

    ## References
    Shen, Yang and Chen, Principled Penalty-based Methods for Bilevel Reinforcement Learning and RLHF, arXiv 2402.06886.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        **Drawn.metadata,
        "name": "incentive_design_v0",
        "is_parallelizable": True,
    }
    size: ClassVar[tuple[float, float]] = (7.0, 4.0)

    problem: IncentiveDesignProblem
    leader_space: gym.spaces.Box

    def __init__(self, problem: IncentiveDesignProblem, max_cycles: int = 100, render_mode: str | None = None) -> None:
        modes = (None, *self.metadata["render_modes"])
        require(render_mode in modes, "render_mode", f"one of {modes}", repr(render_mode))
        single = isinstance(problem, IncentiveDesignProblem) and problem.context_probs is None
        require(single, "problem", "an IncentiveDesignProblem, not a stack of them", repr(problem))
        self.max_cycles, self.render_mode = check_size(max_cycles, "max_cycles"), render_mode
        self._set_up(problem, 1)
        self.gamma, self._sizes = problem.gamma, tuple(int(n) for n in problem.r.shape)
        self.possible_agents, self.agents = list(PLAYERS), []
        S, A1, A2 = self._sizes
        self.commitment_size, self.commitment_is_distribution = A1 * A2, False
        self.observation_spaces: dict[str, gym.Space[Any]] = {agent: gym.spaces.Discrete(S) for agent in PLAYERS}
        self.action_spaces: dict[str, gym.Space[Any]] = {
            agent: gym.spaces.Discrete(n) for agent, n in zip(PLAYERS, (A1, A2), strict=True)
        }
        self._start = AliasSampler(problem.rho.numpy()[None])
        self._worlds = tuple(AliasSampler(P.reshape(-1, S).numpy()) for P in (problem.P, problem.P_id))
        self._leader_payoffs = problem.r_id.reshape(-1).numpy()
        self._random = seeding.np_random(None)[0]
        self._designer_world, self._state, self._elapsed = False, 0, 0
        self._last: tuple[int, int, int, float, float] | None = None  # state, both actions, payoff, leader's reward

    def _load(self, x: Tensor) -> None:
        self._x = x
        self._payoffs = self.problem.game(x).r.reshape(-1).numpy()

    def set_leader(self, x: Any) -> None:
        self._load(self.problem.leader_set.check(x).detach().clone())

    def leader_model(self) -> GameLeaderModel:
        """Return the leader model of a step, see ``GameLeaderModel``."""
        return GameLeaderModel(self.problem, self._x)

    def commitment(self, obs: Any) -> NDArray[np.float32]:
        """Return the leader context in a state: its incentives, ``[A1 * A2]``."""
        shown: NDArray[np.float32] = self.problem.commitment(self._x)[int(obs)].to(torch.float32).numpy()
        return shown

    def observation_space(self, agent: str) -> gym.Space[Any]:
        """Return the observation space of a player, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space[Any]:
        """Return the action space of a player, always the same object."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, Infos]:
        """Draw a start state; with ``options={"designer_world": True}`` the episode uses the designer's transitions."""
        if seed is not None:
            self._random = seeding.np_random(seed)[0]
        self._designer_world = bool((options or {}).get("designer_world", False))
        self.agents, self._elapsed, self._last = list(PLAYERS), 0, None
        self._state = self._start.draw_one(0, self._random.random())
        return self._observations(), {agent: {} for agent in PLAYERS}

    def _observations(self) -> Observations:
        return {agent: np.int64(self._state) for agent in PLAYERS}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[Observations, dict[str, float], dict[str, bool], dict[str, bool], Infos]:
        """Take one step of both players; it draws one random number, for any actions.

        Raises:
            ValueError: an action does not exist.
        """
        if not self.agents:
            raise gym.error.ResetNeeded("step was called before reset, or after the episode's end")
        a1, a2 = (int(actions[agent]) for agent in PLAYERS)
        for agent, action, size in zip(PLAYERS, (a1, a2), self._sizes[1:], strict=True):
            require(0 <= action < size, f"actions[{agent!r}]", f"a whole number in [0, {size})", actions[agent])
        row = (self._state * self._sizes[1] + a1) * self._sizes[2] + a2
        payoff, leader_reward = self._payoffs.item(row), self._leader_payoffs.item(row)
        self._last = (self._state, a1, a2, payoff, leader_reward)
        self._state = self._worlds[self._designer_world].draw_one(row, self._random.random())
        self._elapsed += 1
        ended = self._elapsed >= self.max_cycles
        self.agents = [] if ended else self.agents
        return (
            self._observations(),
            {PLAYERS[0]: payoff, PLAYERS[1]: -payoff},
            dict.fromkeys(PLAYERS, False),
            dict.fromkeys(PLAYERS, ended),
            {agent: {"leader_reward": leader_reward, "leader_draw": 0} for agent in PLAYERS},
        )

    def _text(self) -> str:
        if self._last is None:
            return f"state {self._state}"
        state, a1, a2, payoff, leader = self._last
        moves = f"{PLAYERS[0]} {a1}, {PLAYERS[1]} {a2}"
        return f"state {state}, {moves}: payoff {payoff:g}, leader {leader:g}; state {self._state}"

    def _draw(self, panel: Axes) -> None:
        """Draw the incentives ``[S, A1 * A2]``, with the current state's row marked and a cross at the last step."""
        S, A1, A2 = self._sizes
        incentives = self.problem.incentive(self._x).reshape(S, A1 * A2)
        draw_table(panel, incentives, "incentive", self._state, vmin=0.0, vmax=1.0)
        panel.set_xlabel("actions of both players (a2 within each group)")
        panel.set_xticks([(a1 + 0.5) * A2 - 0.5 for a1 in range(A1)], [f"a1={a1}" for a1 in range(A1)])
        for a1 in range(1, A1):
            panel.axvline(a1 * A2 - 0.5, color="white", linewidth=0.8)
        if self._last is not None:
            state, a1, a2, _, _ = self._last
            panel.plot(a1 * A2 + a2, state, "X", color=FOLLOWER, markersize=9, markeredgecolor="white")


class _TurnByTurn(parallel_to_aec_wrapper):  # type: ignore[type-arg]
    """The same game in PettingZoo's turn-by-turn (AEC) interface; the leader's methods are passed on to the game."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "env" not in self.__dict__:  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.env, name)


def parallel_env(
    n_states: int = 10,
    n_actions_1: int = 5,
    n_actions_2: int = 5,
    gamma: float = 0.9,
    tau: float = 0.1,
    seed: int | None = 0,
    max_cycles: int = 100,
    render_mode: str | None = None,
) -> IncentiveDesignEnv:
    """Make a random game in PettingZoo's parallel interface; see :class:`IncentiveDesignEnv` for the arguments."""
    problem = random_incentive_design(n_states, n_actions_1, n_actions_2, gamma, tau, seed)
    return IncentiveDesignEnv(problem, max_cycles, render_mode)


def raw_env(**kwargs: Any) -> AECEnv[str, np.int64, Any]:
    """Make the environment in the turn-by-turn (AEC) interface, without checks."""
    return _TurnByTurn(parallel_env(**kwargs))


def env(**kwargs: Any) -> AECEnv[str, np.int64, Any]:
    """Make the environment in the turn-by-turn (AEC) interface, with PettingZoo's checks of call order and actions."""
    return wrappers.OrderEnforcingWrapper(wrappers.AssertOutOfBoundsWrapper(raw_env(**kwargs)))
