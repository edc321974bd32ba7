"""Exact methods, for known problems: tau follows a schedule, x takes one projected step per iteration."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..envs.mdp.checks import require
from .config import LeaderConfig, configured
from .evaluation import Evaluation
from .leader import Leader, Method, Progress, Projection, State, projected_step
from .lower_levels import Policies, lower_level
from .lower_levels.base import LowerLevel
from .records import storable
from .schedules import Geometric, Quench, Schedule, as_schedule
from .sources import ProblemSource, resolve_problem

HOT = 0.4
"""Initial temperature of leaders that start with a high one, in reward units."""

LEAST_TAU = 0.003
"""Final temperature of annealing where the problem has none of its own, in reward units."""


@storable
@dataclass(frozen=True, eq=False, kw_only=True)
class ExactConfig(LeaderConfig):
    """Options shared by all exact leaders.

    Attributes:
        tau: temperature in units of the follower's reward, a number or a schedule; None takes the leader's default, a
            multiple of the problem's ``reward_unit``.
    """

    tau: float | Schedule | None = None


@dataclass
class ExactState(State):
    """The state that an exact method continues from; methods add fields.

    Attributes:
        optimizer: optimiser of x and of any other parameters of the method.
        tau: the latest temperature.
        evaluation_V: values at the last evaluation, ``[..., S]``, where the next one starts.
    """

    optimizer: Any = None
    tau: float = 0.0
    evaluation_V: Tensor | None = None


class ExactMethod(Method):
    """A method for known problems. Subclasses define ``descend``, and ``policies`` where they have a follower of their own.

    Args:
        problem: a problem, an environment that has one, or an environment's id.
        config: the settings; None takes the defaults of ``config_class``.
        env_kwargs: arguments of the environment, where an id is given.

    Attributes:
        problem: the bilevel problem.
        level: its lower level.
        unit: the problem's ``reward_unit``; default temperatures are multiples of it.
        leader_unit: the problem's ``leader_reward_unit``, which divides gradients for optimisers that rescale them, e.g. Adam.

    Raises:
        ValueError: the id is unknown, the problem's lower level is not in ``levels``, or tau does not suit the method.
    """

    config: Any
    level: Any
    config_class: ClassVar[type[ExactConfig]] = ExactConfig
    state_class: ClassVar[type[ExactState]] = ExactState
    levels: ClassVar[tuple[str, ...] | None] = ("single",)
    """Kinds of lower levels that the method supports; None for any tabular one."""
    positive_tau: ClassVar[bool] = False

    def __init__(
        self, problem: ProblemSource, config: ExactConfig | None = None, env_kwargs: dict[str, Any] | None = None
    ) -> None:
        self.config = self.config_class() if config is None else config
        require(isinstance(self.config, self.config_class), "config", f"a {self.config_class.__name__}", repr(config))
        self.problem, self.source = resolve_problem(problem, env_kwargs)
        kind = getattr(self.problem, "lower_level", None)
        fits = kind is not None and (kind in self.levels if self.levels is not None else kind != "regulator")
        names = {"single": "TabularProblem", "zero_sum": "GameProblem", "regulator": "LinearQuadraticProblem"}
        wanted = " or a ".join(names[level] for level in self.levels or ("single", "zero_sum"))
        require(fits, "problem", f"a {wanted}, an environment that has one, or its id", repr(problem))
        self.level: LowerLevel = lower_level(self.problem)
        self.leader_set = self.config.cut(self.problem.leader_set)
        self.unit, self.leader_unit = self.problem.reward_unit, self.problem.leader_reward_unit
        tau = self.default_tau() if self.config.tau is None else self.config.tau
        self.schedule = as_schedule(tau, "tau", positive=self.positive_tau and self.level.takes_tau)
        zero = self.schedule(1.0) == self.schedule(0.0) == 0.0
        require(zero or self.level.takes_tau, "tau", "0: this problem's follower is not regularised", tau)
        rate = self.default_rate() if self.config.learning_rate is None else self.config.learning_rate
        self._rate = as_schedule(rate, "learning_rate", positive=True)

    # --- what a method defines ------------------------------------------------------------------------------------------

    @abstractmethod
    def descend(self, state: Any, progress: Progress) -> dict[str, float]:
        """Set the parameters' gradients of the objective to minimise; return what to log."""

    def policies(self, state: Any, model: Any) -> Policies:
        """Return the method's own policies at x, one per player, ``[..., S, A_i]``, detached; by default the level's solution."""
        return self.level.policies(self.level.solve(model, state.tau))  # type: ignore[no-any-return]

    def lam_now(self, state: Any) -> float | None:
        """Return the current penalty coefficient; None for a method without a penalty."""
        return None

    def response(self, state: Any, own: Policies) -> Policies | None:
        """Return the policies used as best responses; None before any. By default, without a penalty, the method's own."""
        return own

    def sampled_steps(self, state: Any) -> int:
        """Return the number of environment steps so far."""
        return 0

    def default_tau(self) -> float | Schedule:
        """Return the temperature where the config gives none: the problem's own."""
        return self.problem.tau  # type: ignore[no-any-return]

    def default_rate(self) -> Schedule:
        """Return the learning rate of x where the config gives none."""
        raise ValueError("learning_rate: expected a number or a schedule, got None")

    def parameters(self, state: Any) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups, x's first."""
        return [{"params": [state.x]}]

    def projections(self, state: Any) -> list[Projection]:
        """Return the projection of each group of :meth:`parameters`."""
        return [self.leader_set.project if self.config.narrows else self.problem.project]

    def prepare(self, state: Any, seed: int | None) -> None:
        """Fill in the rest of a new state, before its optimiser is made."""

    def jumped(self, state: Any) -> None:
        """React to a jump in tau, which changes the problem: continue with a fresh optimiser."""
        state.optimizer = self.config.optimizer(self.parameters(state), self._rate(1.0))

    # --- shared by all methods ------------------------------------------------------------------------------------------

    def final_tau(self) -> float:
        """Return the temperature of evaluation, or 0.003 reward units where that is lower and not part of the problem."""
        tau0 = float(self.problem.tau0)
        return tau0 if tau0 == self.problem.tau else max(tau0, LEAST_TAU * self.unit)

    def annealed(self, start: float) -> Schedule:
        """Return a schedule from ``start`` reward units to the final temperature, by geometric interpolation."""
        end = self.final_tau()
        return Geometric(max(start * self.unit, end), end)

    def quenched(self) -> Schedule:
        """Return a schedule: ``HOT`` reward units for a sixth of training, then the final temperature."""
        end = self.final_tau()
        return Quench(max(HOT * self.unit, end), end)

    def start_x(self) -> Tensor:
        return self.problem.start_x()  # type: ignore[no-any-return]

    def init(self, x: Tensor, seed: int | None) -> Any:
        state = self.state_class(x, tau=self.schedule(1.0))
        self.prepare(state, seed)
        state.optimizer = self.config.optimizer(self.parameters(state), self._rate(1.0))
        return state

    def reach(self, iterations: int) -> float:
        return float(self.config.reach(self._rate, iterations))

    def step(self, state: Any, progress: Progress) -> tuple[Any, dict[str, float]]:
        tau = self.schedule(progress.remaining)
        if isinstance(self.schedule, Quench) and tau != state.tau:
            self.jumped(state)
        state.tau = tau
        state.optimizer.param_groups[0]["lr"] = self._rate(progress.remaining)
        state.optimizer.zero_grad(set_to_none=True)
        found = self.descend(state, progress)
        self.move(state)
        state.num_timesteps += 1
        return state, found

    def move(self, state: Any) -> None:
        """Take a projected step; gradients are scaled by the unit of the leader's rewards, except for plain descent."""
        if not isinstance(state.optimizer, torch.optim.SGD):
            for group in state.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad /= self.leader_unit
        projected_step(state.optimizer, self.projections(state))

    @torch.no_grad()
    def evaluate(self, state: Any, x: Tensor, iteration: int) -> Evaluation:
        level, problem, tau = self.level, self.problem, state.tau
        model = level.model(x)
        # The leader is evaluated at the level's solution, and the method's own policies against their best responses.
        solution = level.solve(model, problem.tau0, state.evaluation_V)
        state.evaluation_V = solution.V
        own = self.policies(state, model)
        best = level.best_responses(model, own, tau, solution)
        lam, response = self.lam_now(state), self.response(state, own)

        shortfall = float(problem.over_contexts(level.gap(model, own, tau, best)))
        regret = None if response is None else shortfall
        if response is not None and response is not own:
            gap = level.gap(model, response, tau, level.best_responses(model, response, tau, solution))
            regret = float(problem.over_contexts(gap))
        return Evaluation(
            leader_return=float(level.leader_return(x, level.policies(solution))),
            leader_return_at_pi_y=float(level.leader_return(x, own)),
            follower_regret=regret,
            penalty=None if lam is None else shortfall,
            lam=lam,
            tau=tau,
            steps=self.sampled_steps(state),
            iteration=iteration,
        )

    def fingerprint(self) -> list[float]:
        return self.level.fingerprint()  # type: ignore[no-any-return]

    def room(self, state: Any) -> int:
        """Return a bound on the size of a state in bytes: warm starts, and up to eight float64 tables per player."""
        return sum(64 * math.prod((*view.batch_shape, view.n_states, view.n_actions)) for view in self.level.views)

    def loaded(self, state: Any, replay: bool, path: Path) -> None:
        views = self.level.views
        if not views:
            return
        # Values, policies and Q must have this problem's sizes.
        values = self.level.value_shapes
        actions = [*((view.n_actions,) for view in views), tuple(view.n_actions for view in views)]
        policies = {(*shape, *n) for shape in values for n in actions}
        for name, table in _tables(state):
            shapes = values if name.endswith("V") or name == "u" else policies
            require(table.shape in shapes, name, f"a shape of {sorted(shapes)}", table.shape)


def _tables(part: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Iterate over a state's values, policies and Q by name, which a fresh state may lack."""
    if dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from _tables(getattr(part, field.name), field.name)
    elif isinstance(part, list):
        for item in part:
            yield from _tables(item, name)
    elif isinstance(part, Tensor) and (name.endswith("V") or name in ("u", "pi", "pi1", "pi2", "Q")):
        yield name, part


def generator(seed: int | None) -> torch.Generator:
    """Make a private random generator."""
    made = torch.Generator()
    made.seed() if seed is None else made.manual_seed(seed)
    return made


class ExactLeader(Leader):
    """A leader by an exact method, named by the class attribute ``method_class``.

    Args:
        problem: a problem, an environment that has one, or an environment's id.
        config: the method's settings; None takes them from the keyword arguments.
        seed: seed of all random numbers.
        env_kwargs: arguments of the environment, where an id is given.
        x0: initial x, ``[dim]``; by default the problem's, projected onto X.
        settings: fields of the config by name, e.g. ``learning_rate=0.1``; not allowed with ``config``.

    Raises:
        ValueError: the id is unknown, x0 is outside X, or the problem or config does not suit the method.
    """

    method_class: ClassVar[type[ExactMethod]]

    def __init__(
        self,
        problem: ProblemSource,
        *,
        config: Any = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
        **settings: Any,
    ) -> None:
        config = configured(type(self), self.method_class.config_class, config, settings)
        super().__init__(self.method_class(problem, config, env_kwargs), seed, x0)

    @torch.no_grad()
    def policies(self) -> Policies:
        """The method's own policies at the latest x, one per player, ``[..., S, A_i]``."""
        method, state = self.method, self.state
        return tuple(pi.detach() for pi in method.policies(state, method.level.model(state.x.detach())))
