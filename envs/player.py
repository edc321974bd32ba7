"""Parallel environments of one player of a zero-sum game, in which the other player's policy is fixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .mdp import GameProblem, TabularKernel, TabularMDP, TabularProblem, ZeroSumGame, player_mdp
from .mdp.checks import require
from .tabular import Floats, TabularVectorEnv


class GameLeaderModel(nn.Module):
    """Rewards and log-probability of steps of a zero-sum game, as functions of x.

    Args:
        problem: the problem, not a stack, whose leader's objective is a return.
        x: the initial value of the parameter, ``[dim]``.

    Raises:
        ValueError: the leader's objective is not a return.
    """

    def __init__(self, problem: GameProblem, x: Tensor) -> None:
        super().__init__()
        self.problem = problem
        self.x = nn.Parameter(x.detach().to(torch.float64).clone())
        paid = problem.leader_game(self.x) is not None
        require(paid, "problem", "a leader whose objective is a return", type(problem).__name__)

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate a batch of steps.

        Args:
            obs: states, ``[...]``, whole numbers.
            action: the players' actions, ``[..., 2]``.
            draw: ``info["leader_draw"]``, ``[...]``; not used, since the leader draws nothing.
            next_obs: states after the step, ``[...]``.

        Returns:
            r_follower, ``[..., 2]``, the players' rewards, which add up to 0; r_leader and log_p, ``[...]``; all float64. log_p
            is 0 if the players' transitions do not depend on x. Values that do not depend on x have gradient zero.
        """
        s, joint, s_next = (torch.as_tensor(part).long() for part in (obs, action, next_obs))
        a1, a2 = joint.unbind(-1)
        game, leader_game = self.problem.game(self.x), self.problem.leader_game(self.x)
        assert leader_game is not None
        attached = 0.0 * self.x.sum()
        payoff = game.r[s, a1, a2] + attached
        log_p = game.P[s, a1, a2, s_next].log() if game.P.requires_grad else torch.zeros_like(payoff)
        return torch.stack([payoff, -payoff], -1), leader_game.r[s, a1, a2] + attached, log_p + attached


class PlayersProblem(TabularProblem):
    """The single-agent problem of one player of a game, in which the other player's actions are drawn from a fixed policy.

    Args:
        game_problem: the game problem, not a stack.
        player: the player, 1 or 2.
        leaders_world: whether states follow the leader's transitions instead of the players'.

    Attributes:
        held: the other player's policy, ``[S, A_other]`` or ``[num_envs, S, A_other]``; initially uniform.
        bonus: a reward added to the player's payoff, ``[S, A]`` or ``[num_envs, S, A]``; None for none.
    """

    batched_kernel = True

    def __init__(self, game_problem: GameProblem, player: int, leaders_world: bool) -> None:
        require(player in (1, 2), "player", "1 or 2", repr(player))
        self.game_problem, self.player, self._leaders_world = game_problem, player, leaders_world
        self.leader_set = game_problem.leader_set
        x = self.start_x()
        paid = game_problem.leader_game(x) is not None
        require(paid, "problem", "a leader whose objective is a return", type(game_problem).__name__)
        other = game_problem.game(x).n_actions[2 - player]
        self.held = torch.full((game_problem.game(x).n_states, other), 1.0 / other, dtype=torch.float64)
        self.bonus: Tensor | None = None

    def start_x(self) -> Tensor:
        return self.game_problem.start_x()

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        """Return the player's MDP against the fixed policy (the same in all environments), without the bonus."""
        return player_mdp(self.game_problem.game(x), self.player, self.held, 0.0)

    def leader_reward(self, x: Tensor) -> None:
        """Return None, because the leader's reward depends on both players' actions; see :meth:`kernel`."""

    def kernel(self, x: Tensor) -> TabularKernel:
        """Return the kernel at x, whose draw w is the other player's action; x is ``[dim]`` or ``[num_envs, dim]``."""
        rows = [x] if x.ndim == 1 else list(x)
        games: list[ZeroSumGame] = [self.game_problem.game(row) for row in rows]
        leaders: list[Any] = [self.game_problem.leader_game(row) for row in rows]  # never None: see the constructor

        def stacked(tables: list[Tensor], axis: int) -> Tensor:
            """Stack a table for each environment if they differ, with the player's own actions first; ``axis`` is player 1's."""
            shared = all(table is tables[0] for table in tables)
            table = tables[0] if shared else torch.stack(tables)
            return table if self.player == 1 else table.transpose(axis, axis + 1)

        P = stacked([game.P for game in (leaders if self._leaders_world else games)], -3)
        r_follower = (1.0 if self.player == 1 else -1.0) * stacked([game.r for game in games], -2)
        if self.bonus is not None:
            r_follower = r_follower + self.bonus.unsqueeze(-1)
        return TabularKernel(self.held.unsqueeze(-2), P, r_follower, stacked([game.r for game in leaders], -2))

    def commitment(self, x: Tensor) -> Tensor:
        rows = [x] if x.ndim == 1 else list(x)
        return torch.stack([self.game_problem.commitment(row) for row in rows])


class PlayerVectorEnv(TabularVectorEnv):
    """Parallel single-agent environments of one player of a game, while the other player's policy is fixed.

    In state s the player chooses an action, the other player's is drawn from its fixed policy, and the next state from P. The
    reward is the player's own payoff (player 2's is the negative of player 1's) plus ``bonus(s, a)``, if there is a bonus.
    ``infos["leader_reward"]`` is the leader's reward in the step, ``infos["leader_draw"]`` the other player's action. A step
    draws three random numbers for each environment, for any actions, so that equal seeds give common random numbers.

    Args:
        problem: the game problem, not a stack.
        player: the player, 1 or 2.
        num_envs: number of parallel environments, at least 1.
        max_episode_steps: number of steps after which an episode is truncated; None for never.
        leaders_world: whether states follow the leader's transitions, ``problem.leader_game(x).P``, instead of the players'.

    Raises:
        ValueError: ``player`` is not 1 or 2, a size is below 1, or the leader's objective is not a return; in ``step``, actions
            have the wrong shape or do not exist.
    """

    problem: PlayersProblem

    def __init__(
        self,
        problem: GameProblem,
        player: int,
        num_envs: int,
        max_episode_steps: int | None = None,
        leaders_world: bool = False,
    ) -> None:
        super().__init__(PlayersProblem(problem, player, leaders_world), num_envs, max_episode_steps)
        self.player = player

    def leader_model(self) -> GameLeaderModel:  # type: ignore[override]
        """Return the leader model of the joint step, see ``GameLeaderModel``.

        Raises:
            ValueError: the environments have different x.
        """
        require(self._x.ndim == 1, "x", "one x for all environments", f"shape {tuple(self._x.shape)}")
        return GameLeaderModel(self.problem.game_problem, self._x)

    def hold(self, policy: Any, bonus: Any = None) -> None:
        """Fix the other player's policy, and the player's bonus, from the next step on.

        Args:
            policy: the other player's policy, ``[S, A]``, or one for each environment, ``[num_envs, S, A]``.
            bonus: a reward added to the player's payoff, ``[S, A]`` or ``[num_envs, S, A]``. Default: None, for none.

        Raises:
            ValueError: an argument has the wrong shape, or the policy's rows are not distributions.
        """
        held = self._table(policy, self._tables.W, "policy")
        fits = bool((held >= 0.0).all()) and bool(np.allclose(held.sum(-1), 1.0, atol=1e-6))
        require(fits, "policy", "rows that are distributions", "others")
        self.problem.held = torch.from_numpy(held)
        self.problem.bonus = None if bonus is None else torch.from_numpy(self._table(bonus, self._tables.A, "bonus"))
        self._tables.load(self._x)

    def _table(self, values: Any, actions: int, name: str) -> Floats:
        table, one = np.asarray(values, dtype=np.float64).copy(), (self._tables.S, actions)
        many = (self.num_envs, *one)
        table = table[0] if table.ndim == 3 and len(table) == 1 else table
        require(table.shape in (one, many), name, f"shape {one} or {many}", f"shape {np.shape(values)}")
        require(bool(np.isfinite(table).all()), name, "finite numbers", "others")
        return table
