"""Incentive design: two players of a zero-sum Markov game whose payoffs a designer shifts (PettingZoo)."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import wrappers
from pettingzoo.utils.conversions import parallel_to_aec_wrapper

from .mdp import IncentiveDesignProblem, random_incentive_design
from .mdp.checks import check_size, require
from .sampling import AliasSampler

__all__ = ["IncentiveDesignEnv", "env", "parallel_env", "raw_env"]

PLAYERS = ("player_1", "player_2")

Observations = dict[str, np.int64]
Infos = dict[str, dict[str, Any]]


class IncentiveDesignEnv(ParallelEnv[str, np.int64, Any]):
    """Two players meet in a random zero-sum game; a designer, who lives in another world, adds incentives to it.

    ## Description
    In each state both players choose an action at once. Player 2 pays player 1 ``r(s,a1,a2) + sigmoid(x(s,a1,a2))``,
    where x is the designer's, and the state moves by ``P(s'|s,a1,a2)``. The designer earns what the players' policies
    earn under transitions ``P_id`` and rewards ``r_id`` of its own: x reaches it through those policies alone. Rewards
    are drawn once, uniformly from [0, 1]; transition probabilities are uniform numbers, normalised.

    ``reset(options={"designer_world": True})`` starts an episode that moves by ``P_id``: there the discounted sum of
    ``leader_reward`` is an unbiased estimate of the designer's return.

    ## Agents
    ``player_1`` (maximises the payoff) and ``player_2`` (is paid its negative), in parallel.

    ## Action Space
    ``Discrete(n_actions_1)`` and ``Discrete(n_actions_2)``.

    ## Observation Space
    ``Discrete(n_states)`` for both: the state.

    ## Leader Space
    ``Box(-10, 10, (n_states * n_actions_1 * n_actions_2,), float64)``: x, ``[S, A1, A2]`` flattened; 0 is the same
    incentive 1/2 everywhere. ``set_leader(x)`` holds from the next step on.

    ## Rewards
    The payoff and its negative. ``info["leader_reward"]``, the same for both players, is the designer's ``r_id`` of the
    step, undiscounted; ``info["leader_draw"]`` is 0, for x makes the environment draw nothing.

    ## Starting State
    Uniform over the states.

    ## Episode End
    It does not terminate; it is truncated after ``max_cycles`` steps.

    ## Arguments
    - ``n_states``, ``n_actions_1``, ``n_actions_2``: sizes (10, 5, 5).
    - ``gamma``: discount of all, in [0, 1) (0.9).
    - ``tau``: default temperature of the players (0.1).
    - ``seed``: of the game's rewards and transitions, not of its play (0); None draws a random game.
    - ``max_cycles``: steps of an episode (100).
    - ``render_mode``: None or ``"ansi"``.

    The sizes, ``gamma`` and ``tau`` are recollections or choices that were not checked against the published experiment.

    ## Version History
    - v0: first version.

    ## References
    Shen, Yang and Chen, Principled Penalty-based Methods for Bilevel Reinforcement Learning and RLHF, arXiv 2402.06886.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "name": "incentive_design_v0",
        "render_modes": ["ansi"],
        "render_fps": 4,
        "is_parallelizable": True,
    }

    def __init__(
        self,
        n_states: int = 10,
        n_actions_1: int = 5,
        n_actions_2: int = 5,
        gamma: float = 0.9,
        tau: float = 0.1,
        seed: int | None = 0,
        max_cycles: int = 100,
        render_mode: str | None = None,
    ) -> None:
        require(render_mode in (None, "ansi"), "render_mode", "None or 'ansi'", repr(render_mode))
        self.max_cycles, self.render_mode = check_size(max_cycles, "max_cycles"), render_mode
        self._problem = random_incentive_design(n_states, n_actions_1, n_actions_2, gamma, tau, seed)
        problem = self._problem
        self.gamma = problem.gamma
        self._sizes = tuple(int(n) for n in problem.r.shape)
        low, high = problem.leader_set.low.numpy(), problem.leader_set.high.numpy()
        self.leader_space = gym.spaces.Box(low, high, dtype=np.float64)
        self.possible_agents, self.agents = list(PLAYERS), []
        S, A1, A2 = self._sizes
        self.observation_spaces: dict[str, gym.Space[Any]] = {agent: gym.spaces.Discrete(S) for agent in PLAYERS}
        self.action_spaces: dict[str, gym.Space[Any]] = {
            agent: gym.spaces.Discrete(n) for agent, n in zip(PLAYERS, (A1, A2), strict=True)
        }
        self._start = AliasSampler(problem.rho.numpy()[None])
        self._worlds = tuple(AliasSampler(P.reshape(-1, S).numpy()) for P in (problem.P, problem.P_id))
        self._leader_payoffs = problem.r_id.reshape(-1).numpy()
        self._random = seeding.np_random(None)[0]
        self._designer_world, self._state, self._elapsed, self._last = False, 0, 0, ""
        self.set_leader(problem.start_x())

    @property
    def problem(self) -> IncentiveDesignProblem:
        """The model itself."""
        return self._problem

    @property
    def leader_x(self) -> NDArray[np.float64]:
        """A copy of the designer's current parameter, ``[dim]``."""
        return np.array(self._x.numpy())

    def set_leader(self, x: Any) -> None:
        """Set the designer's parameter, from the next step on; x is copied.

        Raises:
            ValueError: wrong shape, an entry that is not finite, or a point outside X.
        """
        self._x = self._problem.leader_set.check(x).detach().clone()
        self._payoffs = (self._problem.r + self._problem.incentive(self._x)).reshape(-1).numpy()

    def observation_space(self, agent: str) -> gym.Space[Any]:
        """The player's, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space[Any]:
        """The player's, always the same object."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, Infos]:
        """Draw a start state; ``options={"designer_world": True}`` plays the episode under the designer's transitions."""
        if seed is not None:
            self._random = seeding.np_random(seed)[0]
        self._designer_world = bool((options or {}).get("designer_world", False))
        self.agents, self._elapsed, self._last = list(PLAYERS), 0, ""
        self._state = self._start.draw_one(0, self._random.random())
        return self._observations(), {agent: {} for agent in PLAYERS}

    def _observations(self) -> Observations:
        return {agent: np.int64(self._state) for agent in PLAYERS}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[Observations, dict[str, float], dict[str, bool], dict[str, bool], Infos]:
        """One step of both players; one random number, whatever they do.

        Raises:
            ValueError: an action that does not exist.
        """
        if not self.agents:
            raise gym.error.ResetNeeded("step was called before reset, or after the episode's end")
        row = self._state
        for agent, size in zip(PLAYERS, self._sizes[1:], strict=True):
            action = int(actions[agent])
            require(0 <= action < size, f"actions[{agent!r}]", f"a whole number in [0, {size})", actions[agent])
            row = row * size + action
        payoff, leader_reward = self._payoffs.item(row), self._leader_payoffs.item(row)
        if self.render_mode is not None:
            moves = ", ".join(f"{agent} {int(actions[agent])}" for agent in PLAYERS)
            self._last = f"state {self._state}, {moves}: payoff {payoff:g}, leader {leader_reward:g}; "
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

    def render(self) -> str | None:
        """The last step and the state, in one line; None without a render mode."""
        return None if self.render_mode is None else f"{self._last}state {self._state}"

    def close(self) -> None:
        """Nothing to close."""


class _TurnByTurn(parallel_to_aec_wrapper):  # type: ignore[type-arg]
    """The same game in PettingZoo's turn-by-turn interface, with the leader's side of it."""

    @property
    def problem(self) -> IncentiveDesignProblem:
        """The model itself."""
        return self.env.problem  # type: ignore[no-any-return, attr-defined]

    @property
    def leader_space(self) -> gym.spaces.Box:
        """X, around which it is a Box."""
        return self.env.leader_space  # type: ignore[no-any-return, attr-defined]

    @property
    def leader_x(self) -> NDArray[np.float64]:
        """A copy of the designer's current parameter."""
        return self.env.leader_x  # type: ignore[no-any-return, attr-defined]

    def set_leader(self, x: Any) -> None:
        """Set the designer's parameter, from the next step on."""
        self.env.set_leader(x)  # type: ignore[attr-defined]


def parallel_env(**kwargs: Any) -> IncentiveDesignEnv:
    """The environment in PettingZoo's parallel interface; see :class:`IncentiveDesignEnv` for its arguments."""
    return IncentiveDesignEnv(**kwargs)


def raw_env(**kwargs: Any) -> AECEnv[str, np.int64, Any]:
    """The environment turn by turn, without checks."""
    return _TurnByTurn(parallel_env(**kwargs))


def env(**kwargs: Any) -> AECEnv[str, np.int64, Any]:
    """The environment turn by turn, with PettingZoo's checks of the order of calls and of actions."""
    return wrappers.OrderEnforcingWrapper(wrappers.AssertOutOfBoundsWrapper(raw_env(**kwargs)))
