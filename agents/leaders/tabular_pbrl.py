r"""Exact PBRL: Algorithm 1 (eq. 4.4) of Shen, Yang and Chen, arXiv 2402.06886, with a known model.

    F_lam(x,y) = -J_L(x, pi_y) + lam p(x,y)
    z_{k+1} = Proj_{X x Y}[ z_k - alpha ( grad f(z_k) + lam grad^p(z_k; pihat_k) ) ],   z = (x, y)

pihat_k, the oracle's last iterate, approximates the best response pi*(x_k). In a zero-sum game (section 5) y = (y1, y2), p is the
Nikaido-Isoda penalty, and pihat_k holds each player's best response to the other: two single-agent oracles per step, and no Nash
solve. Any ``torch.optim`` optimiser takes the step, given the projected gradient (4.6), ``(z - Proj(z - alpha grad F_lam)) /
alpha``, whose norm is logged as stationarity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...envs.mdp.checks import require
from ..config import configured
from ..exact import ExactLeader
from ..followers.oracles import Oracle, OracleAnswer, SoftPolicyIteration, in_unit
from ..held_policies import Direct, HeldConfig, HeldMethod, HeldState, Softmax, Solved
from ..leader import Leader, Progress, projected_gradient
from ..lower_levels import Policies
from ..penalties import Penalty
from ..records import storable
from ..schedules import Geometric, Schedule, as_schedule, scaled
from ..sources import ProblemSource

LAM = 20.0
"""Default coefficient of the penalty for one follower, in units of the leader's reward per unit of the follower's."""


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class TabularPBRLConfig(HeldConfig):
    """Options of :class:`TabularPBRL`.

    Attributes:
        follower: how pi_y is parametrised: :class:`Softmax` or :class:`Direct` (joint steps in x and y, as in the paper), or
            :class:`Solved`. None takes our best setting: ``Solved`` where it applies, ``Softmax(0.2)`` in a game, for both
            players, and ``Softmax`` elsewhere.
        tau: temperature in units of the follower's reward. None takes 0.4 reward units for a sixth of training, then that of
            evaluation (``problem.tau0``, at least 0.003 reward units). In a game None anneals it from 0.2 reward units.
        learning_rate: learning rate of x.
        estimator: ``MonteCarlo(...)`` estimates gradients from episodes; None, the default, computes exact ones.
    """

    follower: Softmax | Direct | Solved | None = None
    learning_rate: float | Schedule = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.follower is None or isinstance(self.follower, (Softmax, Direct, Solved))
        require(known, "config.follower", "Softmax(), Direct(), Solved() or None", repr(self.follower))


@dataclass
class TabularPBRLState(HeldState):
    """The state that exact PBRL continues from.

    Attributes:
        lam: coefficient of the penalty.
        solved_V: values of a solved pi_y, ``[..., S]``.
        answers: the oracle's latest best response of each player; empty before the first iteration.
    """

    lam: float = 0.0
    solved_V: Tensor | None = None
    answers: list[OracleAnswer] = field(default_factory=list)


class TabularPBRLMethod(HeldMethod):
    """Algorithm 1 with a known model; see :class:`TabularPBRL`."""

    config_class = TabularPBRLConfig
    state_class = TabularPBRLState

    def __init__(
        self, problem: ProblemSource, penalty: Penalty | None, oracle: Oracle | None, config: Any, env_kwargs: Any
    ) -> None:
        solves = oracle is None or (not isinstance(oracle, type) and hasattr(oracle, "solve"))
        kinds = "an oracle such as SoftPolicyIteration(), MirrorDescent() or PolicyGradient()"
        require(solves, "oracle", kinds, repr(oracle))
        known = penalty is None or isinstance(penalty, Penalty)
        require(known, "penalty", "a penalty such as ValuePenalty()", repr(penalty))
        self.given_penalty = penalty
        self.given_oracle: Oracle = SoftPolicyIteration() if oracle is None else oracle
        super().__init__(problem, config, env_kwargs)
        self.oracle: Oracle = in_unit(self.given_oracle, self.unit)
        self.penalty.check(self.level.n_players, self.level.views[0].n_states)
        # pi_y is solved at every x where possible, unless another parametrisation is asked for.
        solvable = self.penalty.solvable and self.level.leader_reward(self.start_x()) is not None
        wanted = "Softmax or Direct without a value penalty and a J_L that is a return"
        require(solvable or not isinstance(self.config.follower, Solved), "config.follower", wanted, "Solved")
        self.solves = solvable and not isinstance(self.config.follower, (Softmax, Direct))

    @cached_property
    def penalty(self) -> Penalty:
        """The penalty; the default is the lower level's, with lam in units of the leader's reward per unit of the follower's."""
        if self.given_penalty is not None:
            return self.given_penalty
        lam: float | Schedule = Geometric(2.0, 20.0) if self.level.n_players > 1 else LAM
        return self.level.default_penalty(scaled(as_schedule(lam, "lam", positive=True), self.leader_unit / self.unit))  # type: ignore[no-any-return]

    @property
    def positive_tau(self) -> bool:  # type: ignore[override]
        """Whether tau is positive."""
        return self.penalty.needs_positive_tau

    def default_tau(self) -> Schedule:
        return self.annealed(0.2) if self.level.n_players > 1 else self.quenched()

    def prepare(self, state: TabularPBRLState, seed: int | None) -> None:
        state.lam = self.penalty.lam_at(1.0)
        super().prepare(state, seed)

    def descend(self, state: TabularPBRLState, progress: Progress) -> dict[str, float]:
        level, x, tau = self.level, state.x, state.tau
        state.lam = self.penalty.lam_at(progress.remaining)
        if state.held is not None:
            state.held.set_rate(state.optimizer, self._rate(progress.remaining))
        model = level.model(x)
        held = model.detach()
        pi_y = self.policies(state, held)
        # The oracle's best response of each player to the others, started from the last one.
        faced = level.faced(held, tuple(pi.detach() for pi in pi_y), tau)
        warm: Any = state.answers or [None] * len(faced)
        answers = [self.oracle.solve(mdp, tau, near) for mdp, near in zip(faced, warm, strict=True)]
        state.answers = answers
        best = tuple(answer.pi for answer in answers)
        # F_lam, whose backward pass sets the gradients in x and y.
        if state.sampler is None:
            penalty = self.problem.over_contexts(self.penalty.value(level, model, pi_y, best, tau))
            leader_return = level.leader_return(x, pi_y)
        else:
            penalty, leader_return = level.sampled(x, model, self.penalty, pi_y, best, tau, state.sampler)
        (state.lam * penalty - leader_return).backward()
        return {
            "oracle_residual": max(answer.residual for answer in answers),
            "oracle_iterations": float(sum(answer.iterations for answer in answers)),
            "stationarity": self._stationarity(state),
        }

    def policies(self, state: TabularPBRLState, model: Any) -> Policies:
        if state.held is not None:
            return super().policies(state, model)
        reward = self.level.leader_reward(state.x.detach())
        pi, state.solved_V = Solved().solve(model, reward, state.lam, state.tau, state.solved_V)
        return (pi,)

    @torch.no_grad()
    def _stationarity(self, state: TabularPBRLState) -> float:
        """Return the norm of the projected gradient (4.6) at this iteration's learning rates."""
        pairs = zip(state.optimizer.param_groups, self.projections(state), strict=True)
        gradients = [projected_gradient(group["params"][0], group["lr"], project) for group, project in pairs]
        return math.sqrt(sum(float(g.square().sum()) for g in gradients))

    def lam_now(self, state: TabularPBRLState) -> float:
        return state.lam

    def response(self, state: TabularPBRLState, own: Policies) -> Policies | None:
        """Return the oracle's latest answer, to the previous x; None in a game, whose players respond to each other."""
        return (state.answers[0].pi,) if len(state.answers) == 1 else None

    def arguments(self) -> dict[str, Any]:
        return {"config": self.config, "penalty": self.penalty, "oracle": self.given_oracle}


class TabularPBRL(ExactLeader):
    """The penalty method with a known model.

    In a zero-sum game, ``leader_return`` in ``evaluate()`` is that at the Nash equilibrium of x, and ``penalty`` is the
    Nikaido-Isoda gap of the method's own policies.

    Args:
        problem: a tabular problem, one over a zero-sum game, an environment that has one, or an environment's id.
        penalty: :class:`ValuePenalty` or :class:`BellmanPenalty`; by default the value penalty. In a zero-sum game
            :class:`NikaidoIsodaPenalty`. lam weighs the follower's reward against the leader's, so its unit is that of the
            leader's reward per unit of the follower's. The default is 20 times
            ``problem.leader_reward_unit / problem.reward_unit``; in a game it rises from 2 to 20 times that.
        oracle: solver of best responses; by default soft policy iteration.
        config: learning rates, schedules and bounds.
        seed: seed of a Monte Carlo estimator; unused by exact gradients.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default 0, projected onto X.

    Raises:
        ValueError: the id is unknown; x0 is outside X; tau is 0 for a penalty that needs tau > 0; the penalty does not suit the
            problem; a solved follower lacks the value penalty or a leader reward; or a Monte Carlo estimator is used where J_L
            is not a return.

    Example:
        >>> from bilevel_gym.agents import NikaidoIsodaPenalty, TabularPBRL
        >>> leader = TabularPBRL("bilevel_gym/StackelbergGame-v0", env_kwargs={"n_states": 10}).learn(20)
        >>> leader.evaluate().leader_return > leader.evaluate().gap
        True
        >>> leader = TabularPBRL("bilevel_gym/incentive_design_v0", penalty=NikaidoIsodaPenalty(lam=10.0)).learn(100)
        >>> leader.evaluate().gap < 0.2
        True
    """

    def __init__(
        self,
        problem: ProblemSource,
        *,
        penalty: Penalty | None = None,
        oracle: Oracle | None = None,
        config: TabularPBRLConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
        **settings: Any,
    ) -> None:
        config = configured(type(self), TabularPBRLConfig, config, settings)
        Leader.__init__(self, TabularPBRLMethod(problem, penalty, oracle, config, env_kwargs), seed, x0)
