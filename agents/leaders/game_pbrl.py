r"""PBRL over a zero-sum lower level, exact: Algorithm 1 with the Nikaido-Isoda penalty (arXiv 2402.06886, section 5).

    F_lam(x,y1,y2) = -J_L(x, pi_y1, pi_y2) + lam psi(x, pi_y1, pi_y2)

One step of (x, y1, y2) together, the best responses pi1* to pi_y2 and pi2* to pi_y1 held (Lemma 12): two single-agent oracles
a step and no Nash solve. The honest record is the leader's return at the Nash equilibrium of x.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...envs.mdp import BilevelProblem, GameProblem, TabularMDP, ZeroSumGame, nikaido_isoda_gap, player_mdp, solve_nash
from ...envs.mdp.checks import require
from ..common.evaluation import Evaluation
from ..common.policies import Direct, Softmax, Solved
from ..common.projected_step import Projection
from ..common.tabular import ProblemSource, TabularLeader
from ..oracles import Oracle, OracleAnswer, SoftPolicyIteration
from ..penalties import NikaidoIsodaPenalty
from .tabular_pbrl import TabularPBRL, TabularPBRLConfig


class GamePBRL(TabularPBRL):
    """The penalty method with the game known; :class:`TabularPBRL` makes it where the problem is one over a game.

    ``evaluate()``: ``leader_return`` is that at the Nash equilibrium of x (temperature ``problem.tau0``),
    ``leader_return_at_pi_y`` that at the method's own policies, ``gap`` and ``penalty`` their Nikaido-Isoda gap.

    Args:
        problem: a problem over a zero-sum game, an environment that has one, or its id.
        penalty: :class:`NikaidoIsodaPenalty`; by default lam 4.
        oracle: how each player's best response is found; by default soft policy iteration.
        config: steps, schedules, bounds; both players are held alike.
        seed: kept for files; the method draws nothing.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Raises:
        ValueError: another penalty, a solved follower, a problem with one follower.

    Example:
        >>> from bilevel_gym.agents import NikaidoIsodaPenalty, TabularPBRL
        >>> leader = TabularPBRL("bilevel_gym/incentive_design_v0", NikaidoIsodaPenalty(lam=10.0)).learn(100)
        >>> leader.evaluate().gap < 0.2
        True
    """

    problem: GameProblem  # type: ignore[assignment]
    penalty: NikaidoIsodaPenalty  # type: ignore[assignment]
    _problem_kind: ClassVar[type[BilevelProblem]] = GameProblem

    def __init__(
        self,
        problem: ProblemSource,
        penalty: NikaidoIsodaPenalty | None = None,
        oracle: Oracle | None = None,
        config: TabularPBRLConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        config = TabularPBRLConfig() if config is None else config
        self.penalty = NikaidoIsodaPenalty() if penalty is None else penalty
        fits = isinstance(self.penalty, NikaidoIsodaPenalty)
        require(fits, "penalty", "a NikaidoIsodaPenalty over a zero-sum game", type(self.penalty).__name__)
        follower = Softmax() if config.follower is None else config.follower
        require(not isinstance(follower, Solved), "config.follower", "Softmax or Direct over a zero-sum game", "Solved")
        assert not isinstance(follower, Solved)
        self._players: Softmax | Direct = follower
        self.oracle = SoftPolicyIteration() if oracle is None else oracle
        self.lam = self.penalty.lam_at(1.0)
        self._answers: tuple[OracleAnswer | None, OracleAnswer | None] = (None, None)
        self._ys: list[Tensor] | None = None
        # not TabularPBRL's, which is about its one follower
        TabularLeader.__init__(self, problem, config, seed, env_kwargs, x0, positive_tau=False)

    @classmethod
    def _file_kind(cls) -> str:
        return TabularPBRL.__name__

    def _views(self, game: ZeroSumGame) -> tuple[TabularMDP, TabularMDP]:
        """An MDP with each player's sizes: that against a uniform other."""
        one, two = (
            torch.full((*game.batch_shape, game.n_states, n), 1.0 / n, dtype=game.r.dtype) for n in game.n_actions
        )
        return player_mdp(game, 1, two, 0.0), player_mdp(game, 2, one, 0.0)

    def _parameters(self) -> list[dict[str, Any]]:
        views = self._views(self.problem.game(self._x.detach()))
        if self._ys is None:
            self._ys = [self._players.start(view).requires_grad_() for view in views]
        rate = self._players.learning_rate
        groups = [{"params": [y]} if rate is None else {"params": [y], "lr": rate} for y in self._ys]
        return [*TabularLeader._parameters(self), *groups]

    def _projections(self) -> list[Projection]:
        first, second = self._views(self.problem.game(self._x.detach()))
        project = self._players.project
        return [*TabularLeader._projections(self), lambda y: project(y, first), lambda y: project(y, second)]

    def _policies(self, game: ZeroSumGame) -> tuple[Tensor, Tensor]:
        """pi_y1 and pi_y2."""
        assert self._ys is not None
        first, second = self._views(game)
        return self._players.policy(self._ys[0], first), self._players.policy(self._ys[1], second)

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        self.lam = self.penalty.lam_at(progress_remaining)
        if self._players.learning_rate is None:
            for group in self.optimizer.param_groups[1:]:
                group["lr"] = self._rate(progress_remaining)
        game = self.problem.game(self._x)
        held = game.detach()
        pi1, pi2 = self._policies(held)
        first = self.oracle.solve(player_mdp(held, 1, pi2.detach(), self.tau), self.tau, self._answers[0])
        second = self.oracle.solve(player_mdp(held, 2, pi1.detach(), self.tau), self.tau, self._answers[1])
        self._answers = (first, second)
        penalty = self.problem.over_contexts(self.penalty(game, pi1, pi2, first.pi, second.pi, self.tau))
        (self.lam * penalty - self.problem.leader_return(self._x, (pi1, pi2))).backward()
        return {
            "oracle_residual": max(first.residual, second.residual),
            "oracle_iterations": float(first.iterations + second.iterations),
            "stationarity": self._stationarity(),
        }

    @torch.no_grad()
    def _evaluate(self, x: Tensor) -> Evaluation:
        game = self.problem.game(x)
        nash = solve_nash(game, self.problem.tau0, self._evaluation_V)
        self._evaluation_V = nash.V
        pair = self._policies(game)
        gap = float(self.problem.over_contexts(nikaido_isoda_gap(game, *pair, self.tau)))
        return Evaluation(
            leader_return=float(self.problem.leader_return(x, (nash.pi1, nash.pi2))),
            leader_return_at_pi_y=float(self.problem.leader_return(x, pair)),
            gap=gap,
            penalty=gap,
            lam=self.lam,
            tau=self.tau,
            steps=0,
            iteration=self.iteration,
        )

    def _state(self) -> dict[str, Any]:
        answers = [{} if answer is None else {"pi": answer.pi, "V": answer.V} for answer in self._answers]
        return {"ys": [] if self._ys is None else [y.detach() for y in self._ys], "answers": answers, "lam": self.lam}

    def _restore(self, state: dict[str, Any]) -> None:
        self.lam = state["lam"]
        self._ys = [y.requires_grad_() for y in state["ys"]]
        first, second = (OracleAnswer(a["pi"], a["V"], float("nan"), 0) if a else None for a in state["answers"])
        self._answers = (first, second)
