"""What exact leaders share: a tabular problem, tau on a schedule, exact evaluation, files."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import pettingzoo
import torch
from pettingzoo import ParallelEnv
from pettingzoo.env_registry.exceptions import PettingZooRegistryError
from torch import Tensor

from ...envs.mdp import BilevelProblem, GameProblem, LinearQuadraticProblem, SparseMDP, TabularMDP, TabularProblem
from ...envs.mdp.checks import check_size, check_tau, require
from ..estimators import MonteCarlo
from ..files import reading
from ..followers import MirrorDescent, PolicyGradient, SoftPolicyIteration
from ..penalties import BellmanPenalty, NikaidoIsodaPenalty, ValuePenalty, WeightedPenalty
from ..schedules import Geometric, Quench, Schedule, as_schedule
from .evaluation import Evaluation
from .leader import Callback, Leader, LeaderConfig
from .lower_level import LowerLevel, Policies, TabularLevel, lower_level
from .policies import Softmax
from .projected_step import Projection, projected_step
from .storage import decode, encode, read_leader, storable, write_leader

for _cls in (
    MonteCarlo,
    ValuePenalty,
    BellmanPenalty,
    NikaidoIsodaPenalty,
    SoftPolicyIteration,
    MirrorDescent,
    PolicyGradient,
):
    storable(_cls)

Self = TypeVar("Self", bound="TabularLeader")
ProblemSource = BilevelProblem | gym.Env[Any, Any] | ParallelEnv[Any, Any, Any] | str
"""A problem, an environment that has one, or its id."""


@dataclass(frozen=True, eq=False)
class TabularLeaderConfig(LeaderConfig):
    """What every exact leader can be told.

    Attributes:
        tau: temperature, a number or a schedule; None takes the leader's default for the problem.
    """

    tau: float | Schedule | None = None


@dataclass(frozen=True)
class Source:
    """Where a problem came from, so that a leader file can build it again.

    Attributes:
        env_id: a registered id, or None for an object that only the caller can give again.
        env_kwargs: arguments of the id.
    """

    env_id: str | None
    env_kwargs: dict[str, Any]

    @staticmethod
    def of(given: Any, env_kwargs: dict[str, Any] | None) -> Source:
        """Of what a user gives: an id, or an object.

        Raises:
            ValueError: arguments that are no dict of names.
        """
        named = isinstance(env_kwargs, dict) and all(isinstance(name, str) for name in env_kwargs)
        require(env_kwargs is None or named, "env_kwargs", "a dict of arguments by name", repr(env_kwargs))
        return Source(given, dict(env_kwargs or {})) if isinstance(given, str) else Source(None, {})


def make_env(env_id: str, env_kwargs: dict[str, Any] | None, name: str = "env") -> gym.Env[Any, Any]:
    """``gym.make`` whose error names the argument.

    Raises:
        ValueError: an id that is not registered.
    """
    try:
        return gym.make(env_id, **(env_kwargs or {}))
    except (gym.error.Error, ModuleNotFoundError) as error:
        known = sorted(name for name in gym.registry if name.startswith("bilevel_gym/"))
        raise ValueError(
            f"{name}: expected a registered environment id such as {known}, got {env_id!r} ({error})"
        ) from error


def is_game_id(env_id: str) -> bool:
    """Whether PettingZoo knows the id as that of a parallel environment."""
    try:
        pettingzoo.spec("parallel", env_id)
    except PettingZooRegistryError:
        return False
    return True


def problem_of(source: Any) -> Any:
    """The problem that an environment has, or None; a problem is its own."""
    if isinstance(source, gym.Env):
        return source.get_wrapper_attr("problem") if source.has_wrapper_attr("problem") else None
    return source if isinstance(source, BilevelProblem) else getattr(source, "problem", None)


def plays_a_game(problem: Any) -> bool:
    """Whether a problem, an environment or an id is that of a zero-sum game."""
    return is_game_id(problem) if isinstance(problem, str) else isinstance(problem_of(problem), GameProblem)


Kinds = tuple[type[BilevelProblem], ...]
"""Kinds of problems that a leader takes."""


def resolve_problem(
    problem: Any, env_kwargs: dict[str, Any] | None, kinds: Kinds = (TabularProblem,)
) -> tuple[Any, Source]:
    """A problem of one of these kinds from itself, from an environment that has one, or from an environment's id.

    Raises:
        ValueError: an unknown id, or an environment without such a problem.
    """
    source = Source.of(problem, env_kwargs)
    if isinstance(problem, str):
        if is_game_id(problem):
            problem = pettingzoo.make("parallel", problem, **(env_kwargs or {}))
        else:
            problem = make_env(problem, env_kwargs, "problem")
    else:
        require(
            not env_kwargs, "env_kwargs", "none beside a problem or an environment that is already made", env_kwargs
        )
    found = problem_of(problem)
    wanted = f"a {' or a '.join(kind.__name__ for kind in kinds)}, an environment that has one, or its id"
    require(isinstance(found, kinds), "problem", wanted, repr(problem))
    return found, source


def _waves(parts: list[Tensor]) -> list[float]:
    """One number a tensor, which nearly every change of an entry moves."""
    return [float(torch.cos(torch.arange(t.numel(), dtype=torch.float64)) @ t.detach().reshape(-1)) for t in parts]


def _game_fingerprint(problem: GameProblem, x: Tensor) -> list[float]:
    game = problem.game(x).detach()
    pair = [torch.softmax(torch.cos(torch.arange(n, dtype=torch.float64)), -1) for n in game.n_actions]
    pi1, pi2 = (pi.expand(*game.batch_shape, game.n_states, -1) for pi in pair)
    parts = [game.P, game.r, game.rho, torch.tensor([problem.tau]), problem.leader_return(x, (pi1, pi2))]
    sizes = [float(problem.leader_dim), float(game.n_states), *(float(n) for n in game.n_actions), game.gamma]
    return sizes + _waves([part.double() for part in parts])


def _linear_fingerprint(problem: LinearQuadraticProblem) -> list[float]:
    records = (problem.dynamics, problem.leader_cost, problem.follower_cost)
    parts = [part for record in records for part in vars(record).values()]
    sizes = [float(size) for size in problem.sizes]
    return [*sizes, problem.gamma, problem.sigma, *_waves([*parts, problem.action_bound])]


def _judgement(problem: TabularProblem, x: Tensor, mdp: TabularMDP) -> Tensor:
    """The leader's reward, or where J_L is no return J_L at one policy."""
    reward = problem.leader_reward(x)
    if reward is not None:
        return reward
    waves = torch.cos(torch.arange(mdp.r.shape[-2:].numel(), dtype=torch.float64)).view(mdp.r.shape[-2:])
    return problem.leader_return(x, Softmax().policy(waves.expand(*mdp.batch_shape, -1, -1), mdp))


def fingerprint(problem: BilevelProblem) -> list[float]:
    """A few numbers by which two problems can be told apart, up to rounding."""
    x = problem.project(torch.linspace(-1.0, 1.0, problem.leader_dim, dtype=torch.float64))
    if isinstance(problem, GameProblem):
        return _game_fingerprint(problem, x)
    if isinstance(problem, LinearQuadraticProblem):
        return _linear_fingerprint(problem)
    assert isinstance(problem, TabularProblem)
    mdp = problem.follower_mdp(x).detach()
    P = (
        [torch.from_numpy(part) for part in (mdp.P.data, mdp.P.indices.astype(float))]
        if isinstance(mdp, SparseMDP)
        else [mdp.P]
    )
    parts = [*P, mdp.r, mdp.rho, torch.tensor([problem.tau, mdp.terminal_entropy], dtype=torch.float64)] + [
        t.double()
        for t in (mdp.terminal, mdp.mask, _judgement(problem, x, mdp), problem.context_probs)
        if t is not None
    ]
    return [float(problem.leader_dim), float(mdp.n_states), float(mdp.n_actions), mdp.gamma, *_waves(parts)]


class TabularLeader(Leader):
    """A leader that knows the problem.

    A method over one follower says ``_pi_y``; one that takes games too sets ``_kinds`` and says ``_policies``.

    Attributes:
        problem: the bilevel problem.
        tau: the temperature last used.
    """

    config: TabularLeaderConfig
    problem: TabularProblem
    _kinds: ClassVar[Kinds] = (TabularProblem,)

    def __init__(
        self,
        problem: ProblemSource,
        config: TabularLeaderConfig,
        seed: int | None,
        env_kwargs: dict[str, Any] | None,
        x0: Any,
        positive_tau: bool,
    ) -> None:
        require(isinstance(config, TabularLeaderConfig), "config", "a config of this leader", repr(config))
        self.problem, self.source = resolve_problem(problem, env_kwargs, self._kinds)
        self._level: LowerLevel[Any, Any, Any] = lower_level(self.problem)
        super().__init__(self.problem.leader_set, self.problem.start_x(), config, x0, seed)
        tau = self._default_tau() if config.tau is None else config.tau
        self._tau = as_schedule(tau, "tau", positive=positive_tau and self._level.takes_tau)
        zero = self._tau(1.0) == self._tau(0.0) == 0.0
        require(zero or self._level.takes_tau, "tau", "0: this problem's follower is not regularised", tau)
        self.tau = self._tau(1.0)
        self._evaluation_V: Tensor | None = None
        self._restart_optimizer()

    def _default_tau(self) -> float | Schedule:
        """The temperature where the config names none: the problem's own."""
        return self.problem.tau

    def _final_tau(self) -> float:
        """The temperature of honest evaluation; 0.003 where that is lower and no part of the problem."""
        tau0 = self.problem.tau0
        return tau0 if tau0 == self.problem.tau else max(tau0, 0.003)

    def _annealed(self, start: float) -> Schedule:
        """From ``start`` down to the final temperature in equal ratios."""
        end = self._final_tau()
        return Geometric(max(start, end), end)

    def _parameters(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser; the first is x's."""
        return [{"params": [self._x]}]

    def _restart_optimizer(self) -> None:
        self.optimizer = self.config.optimizer_class(
            self._parameters(), lr=self._rate(1.0), **self.config.optimizer_kwargs
        )  # type: ignore[call-arg]

    def learn(
        self: Self,
        iterations: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Learn x for this many outer iterations.

        Args:
            iterations: outer iterations, at least one.
            callback: called with the leader after every iteration; False stops.
            progress_bar: show one.
            reset_num_timesteps: False goes on counting; schedules then run over the sum, as SB3's do.
        """
        self._learn(check_size(iterations, "iterations"), callback, progress_bar, reset_num_timesteps)
        return self

    def _iterate(self, progress_remaining: float) -> dict[str, float]:
        tau = self._tau(progress_remaining)
        if isinstance(self._tau, Quench) and tau != self.tau:
            self._restart_optimizer()
        self.tau = tau
        self.optimizer.param_groups[0]["lr"] = self._rate(progress_remaining)
        self.optimizer.zero_grad(set_to_none=True)
        record = self._descend(progress_remaining)
        projected_step(self.optimizer, self._projections())
        self.num_timesteps += 1
        return record

    @abstractmethod
    def _descend(self, progress_remaining: float) -> dict[str, float]:
        """Leave the gradients of the minimised objective at the parameters; return what to log."""

    def _projections(self) -> list[Projection]:
        """The projection of each group of :meth:`_parameters`."""
        return [self.leader_set.project if self.config.narrows else self.problem.project]

    def _pi_y(self, mdp: TabularMDP) -> Tensor:
        """The method's own follower at x, ``[..., S, A]``, without graph."""
        raise NotImplementedError

    def _policies(self, model: Any) -> Policies:
        """The method's own policies at x, one a player, without graph."""
        return (self._pi_y(model),)

    def _steps(self) -> int:
        """Environment steps drawn so far."""
        return 0

    @torch.no_grad()
    def policies(self) -> Policies:
        """The method's own policies at the last x, one a player, ``[..., S, A_i]``."""
        return tuple(pi.detach() for pi in self._policies(self._level.model(self._x.detach())))

    def _penalty(self) -> tuple[WeightedPenalty, float] | None:
        """The method's penalty and current lam, or None."""
        return None

    @torch.no_grad()
    def _evaluate(self, x: Tensor) -> Evaluation:
        level, problem = self._level, self.problem
        model = level.model(x)
        solution = level.solve(model, problem.tau0, self._evaluation_V)
        self._evaluation_V = solution.V
        own = self._policies(model)
        best = level.best_responses(model, own, self.tau, solution)
        penalised, penalty = self._penalty(), None
        if penalised is not None:
            answers = tuple(response.pi for response in best)
            penalty = float(problem.over_contexts(penalised[0].at(model, own, answers, self.tau)))
        return Evaluation(
            leader_return=float(level.leader_return(x, level.policies(solution))),
            leader_return_at_pi_y=float(level.leader_return(x, own)),
            gap=float(problem.over_contexts(level.gap(model, own, self.tau, best))),
            penalty=penalty,
            lam=None if penalised is None else penalised[1],
            tau=self.tau,
            steps=self._steps(),
            iteration=self.iteration,
        )

    # --- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def _file_kind(cls) -> str:
        """The name under which this leader's files go."""
        return cls.__name__

    def _parts(self) -> dict[str, Any]:
        """Constructor arguments beside the problem, the config and the seed."""
        return {}

    def _state(self) -> dict[str, Any]:
        """Tensors beside x and the optimiser, by name."""
        return {}

    def _restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`_state` gave."""

    def save(self, path: str | Path, replay: bool = False) -> Path:
        """Write the leader to a zip, whole or not at all; no code goes in. Learning on from it is to the bit.

        Args:
            path: the file, ``.zip`` where it has no suffix.
            replay: nothing here; exact leaders have no replay buffers.

        Returns:
            The path written.

        Raises:
            OSError: a file that cannot be written; what was there before still is.
            TypeError: a config, an oracle or a penalty that no file can hold.
        """
        header = {
            "leader": self._file_kind(),
            "source": {"env_id": self.source.env_id, "env_kwargs": encode(self.source.env_kwargs)},
            "fingerprint": fingerprint(self.problem),
            "parts": encode(self._parts()),
            "tau": self.tau,
            **self._header(),
        }
        tensors = {**self._tensors(), "state": self._state(), "evaluation_V": self._evaluation_V}
        return write_leader(path, header, tensors)

    @classmethod
    def load(cls: type[Self], path: str | Path, problem: ProblemSource | None = None) -> Self:
        """Read a leader back, ready to evaluate, to :meth:`resume`, or to learn on with ``reset_num_timesteps=False``.

        Args:
            path: the file.
            problem: the problem it was trained on; needed where that was given as an object and not as an id.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a truncated file, that of another leader, or of another problem.
        """
        header, tensors = read_leader(path, cls._file_kind())
        with reading(path):
            problem, kwargs = source_of_file(header, problem, "problem")
            constructor: Callable[..., Self] = cls
            config, parts = decode(header["config"]), decode(header["parts"])
            leader = constructor(problem, config=config, seed=header["seed"], env_kwargs=kwargs, **parts)
            check_fingerprint(header["fingerprint"], leader.problem, path)
            check_tables(tensors["state"], leader._state(), leader._level)
            check_tables(tensors["evaluation_V"], None, leader._level, "V")
            leader._restore(tensors["state"])
            leader._restart_optimizer()
            leader._take_back(header, tensors)
            leader.tau, leader._evaluation_V = check_tau(header["tau"]), tensors["evaluation_V"]
        return leader


def check_tables(state: Any, fresh: Any, level: LowerLevel[Any, Any, Any], name: str = "state") -> None:
    """Raise ``ValueError`` where a state from a file holds tables of another problem.

    Args:
        state: dicts and lists of tensors, by :meth:`TabularLeader._state`.
        fresh: the same of a leader that has learned nothing; None in it stands for what is not known yet.
        level: whose tables they are.
        name: of the state.
    """
    is_table = fresh is None and (name.endswith("V") or name in ("u", "pi", "Q"))
    require(not is_table or state is None or isinstance(state, Tensor), name, "a table", repr(state))
    if isinstance(state, (dict, list, tuple)):
        pairs = state.items() if isinstance(state, dict) else ((name, part) for part in state)
        for i, (key, part) in enumerate(pairs):
            known = fresh.get(key) if isinstance(fresh, dict) else None
            if isinstance(fresh, (list, tuple)) and len(fresh) == len(state):
                known = fresh[i]
            check_tables(part, known, level, str(key))
        return
    if not isinstance(state, Tensor):
        alike = fresh is None or (isinstance(fresh, (int, float)) and isinstance(state, (int, float)))
        require(alike, name, f"something like {fresh!r}", repr(state))
        return
    if isinstance(fresh, Tensor):
        alike = state.shape == fresh.shape and state.dtype == fresh.dtype
        require(alike, name, f"{fresh.dtype} of shape {tuple(fresh.shape)}", f"{state.dtype} of {tuple(state.shape)}")
    if fresh is None:
        require(state.dtype == torch.float64, name, "float64", state.dtype)
    if state.is_floating_point():
        require(bool(torch.isfinite(state).all()), name, "finite numbers", "others")
    if fresh is None and isinstance(level, TabularLevel):
        view, n_actions = level.views[0], [mdp.n_actions for mdp in level.views]
        values = {(*view.batch_shape, view.n_states), (1, view.n_states)}
        policies = {(*shape, *sizes) for shape in values for sizes in [*((n,) for n in n_actions), tuple(n_actions)]}
        shapes = values if name.endswith("V") or name == "u" else policies
        require(tuple(state.shape) in shapes, name, f"a shape of {sorted(shapes)}", tuple(state.shape))


def source_of_file(header: dict[str, Any], given: Any, name: str) -> tuple[Any, dict[str, Any] | None]:
    """What a leader file was trained on: what is given again, or the id in it with its arguments.

    Raises:
        ValueError: neither; an id that would import a module.
    """
    if given is not None:
        return given, None
    env_id = header["source"]["env_id"]
    what = "problem" if name == "problem" else "environment"
    require(env_id is not None, name, f"the {what} that this leader was trained on (it was given as an object)", None)
    module, colon, _ = str(env_id).partition(":")
    imported = not colon or module in sys.modules
    require(imported, name, f"the {what} {env_id} again, or its module imported: no file makes one import", None)
    return env_id, decode(header["source"]["env_kwargs"])


def check_fingerprint(expected: list[float], problem: BilevelProblem, path: str | Path) -> None:
    """Raise ``ValueError`` unless ``problem`` is the one a file was written for."""
    got = fingerprint(problem)
    expected = [float(number) for number in expected]
    same = len(got) == len(expected) and bool(np.allclose(got, expected, rtol=1e-6, atol=1e-6))
    require(same, "problem", f"the problem of {path}", "another one (its sizes or numbers differ)")
