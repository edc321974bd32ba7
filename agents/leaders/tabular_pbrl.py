r"""PBRL, exact: Algorithm 1 (eq. 4.4) of Shen, Yang and Chen, arXiv 2402.06886, with the model known.

    F_lam(x,y) = -J_L(x, pi_y) + lam p(x,y)
    z_{k+1} = Proj_{X x Y}[ z_k - alpha ( grad f(z_k) + lam grad^p(z_k; pihat_k) ) ],   z = (x, y)

pihat_k is the oracle's last iterate in place of the best response pi*(x_k). Over a zero-sum game (section 5) y = (y1, y2), p is
the Nikaido-Isoda penalty, and pihat_k holds each player's best response to the other: two single-agent oracles a step and
no Nash solve. The step is taken by any ``torch.optim`` optimiser, which is given the projected gradient (4.6),
``(z - Proj(z - alpha grad F_lam)) / alpha``. Its norm is logged as stationarity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...envs.mdp import GameProblem, TabularProblem
from ...envs.mdp.checks import check_number, require
from ..common.lower_level import Policies, TabularLevel
from ..common.policies import Direct, HeldPolicies, Softmax, Solved
from ..common.projected_step import Projection, projected_gradient
from ..common.sampled_level import sampled_level
from ..common.storage import storable
from ..common.tabular import Kinds, ProblemSource, TabularLeader, TabularLeaderConfig, plays_a_game
from ..estimators import MonteCarlo
from ..followers import Oracle, OracleAnswer, SoftPolicyIteration
from ..penalties import BellmanPenalty, NikaidoIsodaPenalty, Penalty, ValuePenalty, WeightedPenalty
from ..schedules import Geometric, Schedule

GAME_RATE = 0.2
"""The players' step over a game, where the config names none."""


@storable
@dataclass(frozen=True, eq=False)
class TabularPBRLConfig(TabularLeaderConfig):
    """How :class:`TabularPBRL` learns.

    Attributes:
        follower: how pi_y is held: :class:`Softmax` or :class:`Direct` (joint steps in x and y, the paper's), or
            :class:`Solved`. None takes the best found: ``Solved`` where it applies, ``Softmax(0.2)`` over a game, whose two
            players are held alike, and ``Softmax`` elsewhere.
        tau: temperature; None anneals it from 0.2 to that of honest evaluation (``problem.tau0``, at least 0.003).
        learning_rate: step of x.
        estimator: ``MonteCarlo(...)`` takes gradients from episodes; None, the default, takes exact ones.
    """

    follower: Softmax | Direct | Solved | None = None
    learning_rate: float | Schedule = 0.05
    estimator: MonteCarlo | None = None


class TabularPBRL(TabularLeader):
    """The penalty method with the model known.

    Over a zero-sum game ``evaluate().leader_return`` is that at the Nash equilibrium of x, ``gap`` and ``penalty`` are the
    Nikaido-Isoda gap of the method's own policies.

    Args:
        problem: a tabular problem or one over a zero-sum game, an environment that has one, or its id.
        penalty: :class:`ValuePenalty` or :class:`BellmanPenalty`; by default the value penalty, lam 2 to 20. Over a
            zero-sum game :class:`NikaidoIsodaPenalty`, by default lam 2 to 20.
        oracle: how best responses are found; by default soft policy iteration.
        config: steps, schedules, bounds.
        seed: of a Monte Carlo estimator; exact gradients draw nothing.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Raises:
        ValueError: an unknown id, an x0 outside X, a tau of 0 for a penalty that needs it positive, a penalty that is not
            the problem's, a solved follower without the value penalty or without a leader reward, a Monte Carlo
            estimator where J_L is no return.

    Example:
        >>> from bilevel_gym.agents import NikaidoIsodaPenalty, TabularPBRL
        >>> leader = TabularPBRL("bilevel_gym/StackelbergGame-v0", env_kwargs={"n_states": 10}).learn(20)
        >>> leader.evaluate().leader_return > leader.evaluate().gap
        True
        >>> leader = TabularPBRL("bilevel_gym/incentive_design_v0", NikaidoIsodaPenalty(lam=10.0)).learn(100)
        >>> leader.evaluate().gap < 0.2
        True
    """

    config: TabularPBRLConfig
    _level: TabularLevel[Any, Any]
    _kinds: ClassVar[Kinds] = (TabularProblem, GameProblem)

    def __init__(
        self,
        problem: ProblemSource,
        penalty: WeightedPenalty | None = None,
        oracle: Oracle | None = None,
        config: TabularPBRLConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        config = TabularPBRLConfig() if config is None else config
        require(isinstance(config, TabularPBRLConfig), "config", "a TabularPBRLConfig", repr(config))
        known = config.follower is None or isinstance(config.follower, (Softmax, Direct, Solved))
        require(known, "config.follower", "Softmax(), Direct(), Solved() or None", repr(config.follower))
        solves = oracle is None or (not isinstance(oracle, type) and hasattr(oracle, "solve"))
        kinds = "an oracle such as SoftPolicyIteration(), MirrorDescent() or PolicyGradient()"
        require(solves, "oracle", kinds, repr(oracle))
        self.penalty = _checked(penalty, plays_a_game(problem))
        self.oracle: Oracle = SoftPolicyIteration() if oracle is None else oracle
        self.lam = self.penalty.lam_at(1.0)
        self._answers: list[OracleAnswer | None] = []
        self._held: HeldPolicies | None = None  # None: solved for every x
        self._solved_V: Tensor | None = None
        super().__init__(problem, config, seed, env_kwargs, x0, positive_tau=self.penalty.needs_positive_tau)
        self._sampled = sampled_level(self.problem, config.estimator, seed)
        if isinstance(self.penalty, BellmanPenalty) and self.penalty.mu is not None:
            n_states, given = self._level.views[0].n_states, len(self.penalty.mu)
            require(given == n_states, "mu", f"{n_states} weights, one a state", f"{given}")

    def _default_tau(self) -> Schedule:
        return self._annealed(0.2)

    def _parameters(self) -> list[dict[str, Any]]:
        groups, follower = super()._parameters(), self.config.follower
        if self._held is None and not self._solves():
            assert not isinstance(follower, Solved)
            default = Softmax(GAME_RATE) if isinstance(self.problem, GameProblem) else Softmax()
            self._held = HeldPolicies(default if follower is None else follower, self._level.views)
        return groups if self._held is None else [*groups, *self._held.groups()]

    def _solves(self) -> bool:
        """Whether pi_y is solved for every x."""
        follower = self.config.follower
        if isinstance(follower, (Softmax, Direct)):
            return False
        solvable = isinstance(self.penalty, ValuePenalty) and self.problem.leader_reward(self._x.detach()) is not None
        wanted = "Softmax or Direct without a value penalty and a J_L that is a return"
        require(solvable or follower is None, "config.follower", wanted, "Solved")
        return solvable

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        self.lam = self.penalty.lam_at(progress_remaining)
        if self._held is not None:
            self._held.set_rate(self.optimizer.param_groups[1:], self._rate(progress_remaining))
        level = self._level
        model = level.model(self._x)
        held = model.detach()
        pi_y = self._policies(held)
        faced = level.faced(held, tuple(pi.detach() for pi in pi_y), self.tau)
        warm = self._answers or [None] * len(faced)
        answers = [self.oracle.solve(mdp, self.tau, near) for mdp, near in zip(faced, warm, strict=True)]
        self._answers = [*answers]
        best = tuple(answer.pi for answer in answers)
        if self._sampled is None:
            penalty = self.problem.over_contexts(self.penalty.at(model, pi_y, best, self.tau))
            leader_return = level.leader_return(self._x, pi_y)
        else:
            penalty, leader_return = self._sampled.penalised(self._x, model, self.penalty, pi_y, best, self.tau)
        (self.lam * penalty - leader_return).backward()
        return {
            "oracle_residual": max(answer.residual for answer in answers),
            "oracle_iterations": float(sum(answer.iterations for answer in answers)),
            "stationarity": self._stationarity(),
        }

    def _policies(self, model: Any) -> Policies:
        if self._held is not None:
            return self._held.policies()
        reward = self.problem.leader_reward(self._x.detach())
        assert reward is not None
        pi, self._solved_V = Solved().solve(model, reward, self.lam, self.tau, self._solved_V)
        return (pi,)

    @torch.no_grad()
    def _stationarity(self) -> float:
        """Norm of the projected gradient (4.6) at this iteration's steps."""
        pairs = zip(self.optimizer.param_groups, self._projections(), strict=True)
        gradients = [projected_gradient(group["params"][0], group["lr"], project) for group, project in pairs]
        return math.sqrt(sum(float(g.square().sum()) for g in gradients))

    def _projections(self) -> list[Projection]:
        projections = super()._projections()
        return projections if self._held is None else [*projections, *self._held.projections()]

    def _steps(self) -> int:
        return 0 if self._sampled is None else self._sampled.sampler.steps

    def _penalty(self) -> tuple[WeightedPenalty, float]:
        return self.penalty, self.lam

    def _parts(self) -> dict[str, Any]:
        return {"penalty": self.penalty, "oracle": self.oracle}

    def _state(self) -> dict[str, Any]:
        answers = [None if answer is None else {"pi": answer.pi, "V": answer.V} for answer in self._answers]
        ys = None if self._held is None else self._held.state()
        sampled = None if self._sampled is None else self._sampled.state()
        return {"ys": ys, "solved_V": self._solved_V, "answers": answers, "lam": self.lam, "sampled": sampled}

    def _restore(self, state: dict[str, Any]) -> None:
        self.lam = check_number(state["lam"], "lam", low=0.0, open_low=True)
        self._solved_V = state["solved_V"]
        if self._held is not None:
            self._held.restore(state["ys"])
        if self._sampled is not None:
            self._sampled.restore(state["sampled"])
        self._answers = [OracleAnswer(a["pi"], a["V"], float("nan"), 0) for a in state["answers"]]


def _checked(penalty: WeightedPenalty | None, over_a_game: bool) -> WeightedPenalty:
    """The penalty, or the default of the problem's kind.

    Raises:
        ValueError: a penalty of the other kind.
    """
    if over_a_game:
        chosen = NikaidoIsodaPenalty(lam=Geometric(2.0, 20.0)) if penalty is None else penalty
        wanted, fits = "a NikaidoIsodaPenalty over a zero-sum game", isinstance(chosen, NikaidoIsodaPenalty)
    else:
        chosen = ValuePenalty(lam=Geometric(2.0, 20.0)) if penalty is None else penalty
        wanted, fits = "a ValuePenalty or a BellmanPenalty over one follower", isinstance(chosen, Penalty)
    require(fits, "penalty", wanted, repr(chosen))
    return chosen
