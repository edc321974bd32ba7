r"""PBRL, exact: Algorithm 1 (eq. 4.4) of Shen, Yang and Chen, arXiv 2402.06886, with the model known.

    F_lam(x,y) = -J_L(x, pi_y) + lam p(x,y)
    z_{k+1} = Proj_{X x Y}[ z_k - alpha ( grad f(z_k) + lam grad^p(z_k; pihat_k) ) ],   z = (x, y)

pihat_k is the oracle's last iterate in place of the best response pi*(x_k). The step is taken by any ``torch.optim``
optimiser, which is given the projected gradient (4.6), ``(z - Proj(z - alpha grad F_lam)) / alpha``. Its norm is logged as
stationarity. Over a zero-sum game the step is that of ``game_pbrl``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...envs.mdp import TabularMDP
from ...envs.mdp.checks import require
from ..common.policies import Direct, Softmax, Solved
from ..common.projected_step import Projection, projected_gradient
from ..common.storage import storable
from ..common.tabular import ProblemSource, TabularLeader, TabularLeaderConfig, plays_a_game
from ..oracles import Oracle, OracleAnswer, SoftPolicyIteration
from ..penalties import BellmanPenalty, NikaidoIsodaPenalty, Penalty, ValuePenalty
from ..schedules import Geometric, Schedule


@storable
@dataclass(frozen=True, eq=False)
class TabularPBRLConfig(TabularLeaderConfig):
    """How :class:`TabularPBRL` learns.

    Attributes:
        follower: how pi_y is held: :class:`Softmax` or :class:`Direct` (joint steps in x and y, the paper's), or
            :class:`Solved`. None takes ``Solved``, the best found, where it applies and ``Softmax`` elsewhere.
        tau: temperature; None anneals it from 0.2 to that of honest evaluation (``problem.tau0``, at least 0.003).
        learning_rate: step of x.
    """

    follower: Softmax | Direct | Solved | None = None
    learning_rate: float | Schedule = 0.05


class TabularPBRL(TabularLeader):
    """The penalty method with the model known.

    Args:
        problem: a tabular problem, an environment that has one, or its id; over a zero-sum game it makes a
            :class:`~bilevel_gym.agents.leaders.game_pbrl.GamePBRL`, whose verbs are the same.
        penalty: :class:`ValuePenalty` or :class:`BellmanPenalty`; by default the value penalty, lam 2 to 20. Over a
            zero-sum game :class:`NikaidoIsodaPenalty`.
        oracle: how the best response is found; by default soft policy iteration.
        config: steps, schedules, bounds.
        seed: kept for files; the method draws nothing.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Raises:
        ValueError: an unknown id, an x0 outside X, a tau of 0 for a penalty that needs it positive, a solved follower
            without the value penalty or without a leader reward.

    Example:
        >>> from bilevel_gym.agents import TabularPBRL
        >>> leader = TabularPBRL("bilevel_gym/StackelbergGame-v0", env_kwargs={"n_states": 10}).learn(20)
        >>> leader.evaluate().leader_return > leader.evaluate().gap
        True
    """

    config: TabularPBRLConfig

    def __new__(cls, problem: Any = None, *args: Any, **kwargs: Any) -> TabularPBRL:
        """The leader whose step fits the problem's type."""
        if cls is TabularPBRL and plays_a_game(problem):
            from .game_pbrl import GamePBRL

            return super().__new__(GamePBRL)
        return super().__new__(cls)

    def __init__(
        self,
        problem: ProblemSource,
        penalty: Penalty | NikaidoIsodaPenalty | None = None,
        oracle: Oracle | None = None,
        config: TabularPBRLConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        config = TabularPBRLConfig() if config is None else config
        require(isinstance(config, TabularPBRLConfig), "config", "a TabularPBRLConfig", repr(config))
        penalty = ValuePenalty(lam=Geometric(2.0, 20.0)) if penalty is None else penalty
        single = isinstance(penalty, Penalty)
        require(single, "penalty", "a ValuePenalty or a BellmanPenalty for a problem with one follower", repr(penalty))
        known = config.follower is None or isinstance(config.follower, (Softmax, Direct, Solved))
        require(known, "config.follower", "Softmax(), Direct(), Solved() or None", repr(config.follower))
        solves = oracle is None or (not isinstance(oracle, type) and hasattr(oracle, "solve"))
        require(
            solves,
            "oracle",
            "an oracle such as SoftPolicyIteration(), MirrorDescent() or PolicyGradient()",
            repr(oracle),
        )
        self.penalty: Penalty = penalty  # type: ignore[assignment]
        self.oracle: Oracle = SoftPolicyIteration() if oracle is None else oracle
        self.lam = self.penalty.lam_at(1.0)
        self._answer: OracleAnswer | None = None
        self._y: Tensor | None = None
        self._follower: Softmax | Direct | Solved = Softmax() if config.follower is None else config.follower
        super().__init__(problem, config, seed, env_kwargs, x0, positive_tau=self.penalty.needs_positive_tau)
        solvable = isinstance(self.penalty, ValuePenalty) and self.problem.leader_reward(self._x.detach()) is not None
        if isinstance(config.follower, Solved):
            require(
                solvable,
                "config.follower",
                "Softmax or Direct without a value penalty and a J_L that is a return",
                "Solved",
            )
        elif config.follower is None and solvable:
            self._follower, self._y = Solved(), None
            self._restart_optimizer()
        if isinstance(self.penalty, BellmanPenalty) and self.penalty.mu is not None:
            n_states = self.problem.follower_mdp(self._x.detach()).n_states
            require(
                len(self.penalty.mu) == n_states, "mu", f"{n_states} weights, one a state", f"{len(self.penalty.mu)}"
            )

    def _default_tau(self) -> Schedule:
        return self._annealed(0.2)

    def _parameters(self) -> list[dict[str, Any]]:
        follower = self._follower
        groups = super()._parameters()
        if isinstance(follower, Solved):
            return groups
        if self._y is None:
            self._y = follower.start(self.problem.follower_mdp(self._x.detach())).requires_grad_()
        groups.append({"params": [self._y]})
        if follower.learning_rate is not None:
            groups[1]["lr"] = follower.learning_rate
        return groups

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        self.lam = self.penalty.lam_at(progress_remaining)
        follower = self._follower
        if not isinstance(follower, Solved) and follower.learning_rate is None:
            self.optimizer.param_groups[1]["lr"] = self._rate(progress_remaining)
        mdp = self.problem.follower_mdp(self._x)
        held = mdp.detach()
        self._answer = self.oracle.solve(held, self.tau, self._answer)
        pi_y = self._policy(held)
        penalty = self.problem.over_contexts(self.penalty(mdp, pi_y, self._answer.pi, self.tau))
        leader_return = self.problem.leader_return(self._x, pi_y)
        (self.lam * penalty - leader_return).backward()
        return {
            "oracle_residual": self._answer.residual,
            "oracle_iterations": float(self._answer.iterations),
            "stationarity": self._stationarity(),
        }

    def _policy(self, mdp: TabularMDP) -> Tensor:
        follower = self._follower
        if isinstance(follower, Solved):
            reward = self.problem.leader_reward(self._x.detach())
            assert reward is not None
            pi, self._y = follower.solve(mdp, reward, self.lam, self.tau, self._y)
            return pi
        assert self._y is not None
        return follower.policy(self._y, mdp)

    @torch.no_grad()
    def _stationarity(self) -> float:
        """Norm of the projected gradient (4.6) at this iteration's steps."""
        pairs = zip(self.optimizer.param_groups, self._projections(), strict=True)
        gradients = [projected_gradient(group["params"][0], group["lr"], project) for group, project in pairs]
        return math.sqrt(sum(float(g.square().sum()) for g in gradients))

    def _projections(self) -> list[Projection]:
        follower, projections = self._follower, super()._projections()
        if isinstance(follower, Solved):
            return projections
        mdp = self.problem.follower_mdp(self._x.detach())
        return [*projections, lambda y: follower.project(y, mdp)]

    def _pi_y(self, mdp: TabularMDP) -> Tensor:
        return self._policy(mdp)

    def _penalty(self) -> tuple[Penalty, float]:
        return self.penalty, self.lam

    def _parts(self) -> dict[str, Any]:
        return {"penalty": self.penalty, "oracle": self.oracle}

    def _state(self) -> dict[str, Any]:
        answer = {} if self._answer is None else {"pi": self._answer.pi, "V": self._answer.V}
        return {"y": None if self._y is None else self._y.detach(), "answer": answer, "lam": self.lam}

    def _restore(self, state: dict[str, Any]) -> None:
        self.lam = state["lam"]
        if state["y"] is not None:
            self._y = state["y"].requires_grad_(not isinstance(self._follower, Solved))
        if state["answer"]:
            self._answer = OracleAnswer(state["answer"]["pi"], state["answer"]["V"], float("nan"), 0)
