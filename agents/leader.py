"""A leader learns x in X by a method. This class alone has SB3's methods, files, callbacks, logging and the best x so far.

A :class:`Method` only defines one iteration: ``init`` and ``step`` over a state record (:class:`State`). Attributes of the state
and of the method are also attributes of the leader: ``leader.lam``, ``leader.problem``.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..envs.mdp import LeaderSet
from ..envs.mdp.checks import check_seed, require
from .checkpoint import read_arrays, read_header, read_state, size_of, write_leader
from .evaluation import Evaluation
from .files import reading
from .plan import Cost, Plan, RecordCost, budget, plan_of, warn_of_end, warn_of_reach
from .records import decode, encode, restore, snapshot
from .run import Callback, Gradients, Kept, Run, entered
from .sources import Source, source_of_file

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import VecEnv

Projection = Callable[[Tensor], Tensor]
Self = TypeVar("Self", bound="Leader")


class Progress(NamedTuple):
    """The progress of a run, in the unit that ``learn`` counts: environment steps or iterations."""

    done: int
    total: int

    @property
    def remaining(self) -> float:
        """The remaining share of the run, from 1 at the start to 0 at the end: the argument of schedules."""
        return 1.0 - self.done / self.total


@dataclass
class State:
    """The state that a method continues from; a file holds all of it, according to its annotations. Methods add fields.

    Fields are tensors, numbers, generators and objects with ``state_dict`` and ``load_state_dict``.

    Attributes:
        x: the leader's parameter, ``[dim]``.
        num_timesteps: the count of ``learn``: environment steps, or iterations.
    """

    x: Tensor
    num_timesteps: int = 0


class Method(ABC):
    """A method: what a leader does in one iteration, without loops, files and logging.

    Attributes:
        config: the settings.
        leader_set: X, restricted to the config's bounds and budget.
        counts: the unit of ``learn`` and the name of its argument: ``"num_iterations"`` or ``"total_timesteps"``.
        judges: whether x is evaluated during learning and the best kept.
        estimates: whether x's gradient, which a step leaves at ``x.grad``, is an estimate from random draws.
        source: how the environment was given.
        follower_spec: the follower that the user gave, where followers are learned.
    """

    config: Any
    leader_set: LeaderSet
    counts: ClassVar[str] = "num_iterations"
    judges: ClassVar[bool] = True
    estimates: bool = False
    source: Source

    @abstractmethod
    def start_x(self) -> Tensor | None:
        """Return the initial x, ``[dim]``; None where :meth:`init` draws it."""

    @abstractmethod
    def init(self, x: Any, seed: int | None) -> Any:
        """Return the initial state.

        Args:
            x: the initial point of X, ``[dim]``, which requires a gradient and becomes the state's x. None where :meth:`start_x`
                returns None.
            seed: seed of all random numbers; None for an arbitrary one.
        """

    @abstractmethod
    def step(self, state: Any, progress: Progress) -> tuple[Any, dict[str, float]]:
        """Run one outer iteration; return the next state (x moved, ``num_timesteps`` advanced), and what to log."""

    @abstractmethod
    def evaluate(self, state: Any, x: Tensor, iteration: int) -> Any:
        """Return the record of x, ``[dim]``, at the follower's best response."""

    def final(self, state: Any, x: Tensor, record: Any, iteration: int) -> Any:
        """Return the final record of x; ``record`` is the one by which x was chosen, or None."""
        return self.evaluate(state, x, iteration) if record is None else record

    def begin(self, state: Any, progress: Progress, afresh: bool) -> None:  # noqa: B027
        """Prepare for the first iteration of a call of ``learn``; ``afresh``: counting starts again at 0."""

    def first_steps(self, state: Any) -> int:
        """Return the environment steps of :meth:`begin`."""
        return 0

    def iteration_steps(self, state: Any, total: int, first: bool, left: float = math.inf) -> Cost:
        """Return the environment steps of an iteration; 0 where the method does not know.

        Args:
            state: the state before the call of ``learn``.
            total: count at which the call ends.
            first: whether it is the call's first iteration.
            left: remaining budget before the iteration, for methods that can stop within one.
        """
        return Cost()

    def record_steps(self, state: Any) -> RecordCost:
        """Return the environment steps of :meth:`evaluate`."""
        return RecordCost()

    def reach(self, iterations: int) -> float:
        """Return how far a coordinate of x can move in these iterations; infinite where unknown."""
        return math.inf

    def end(self, state: Any, iterations: int) -> None:  # noqa: B027
        """Finish a call of ``learn`` after this number of iterations, e.g. with a warning."""

    def ended(self, state: Any) -> bool:
        """Whether the method has ended by itself, before the budget."""
        return False

    def checkpoint_on(self, error: Exception) -> str | Path | None:
        """Return where to save the leader when an iteration fails with this error; None for nowhere."""
        return None

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments besides the environment, the follower and the seed, for a file."""
        return {"config": self.config}

    def fingerprint(self) -> list[float]:
        """Return a few numbers that differ between environments, up to rounding."""
        return []

    def room(self, state: Any) -> int:
        """Return how many bytes a file's arrays may hold beyond those of a fresh state, e.g. for collected data."""
        return 0

    def replay(self, state: Any, whole: bool = False) -> dict[str, npt.NDArray[Any]]:
        """Return large arrays of the state by name, e.g. replay buffers; ``whole`` returns whole arrays, to read into."""
        return {}

    def place(self, state: Any) -> Any:
        """Return the environments' current states, as numbers and arrays, which are saved with the arrays of :meth:`replay`."""
        return None

    def stand(self, state: Any, place: Any, path: Path) -> None:  # noqa: B027
        """Restore the environments' states of :meth:`place`; called before the arrays of :meth:`replay` are read."""

    def loaded(self, state: Any, replay: bool, path: Path) -> None:  # noqa: B027
        """Finish loading a state; ``replay``: whether the file holds the arrays of :meth:`replay`."""

    def close(self, state: Any) -> None:  # noqa: B027
        """Close what the state holds open."""


class Leader:
    """A leader that learns x in X by a method.

    Args:
        method: the method.
        seed: seed of all random numbers.
        x0: initial x, ``[dim]``; by default the method's.

    Attributes:
        method: the method.
        state: the method's state; its fields are also attributes of the leader.
        num_timesteps: the count of ``learn``: outer iterations for exact leaders, environment steps for sampled ones.
        iteration: number of outer iterations so far.
        kept: the best x so far by evaluation at the best response, with its record.
        history: all records since counting began.
    """

    given: ClassVar[tuple[str, ...]] = ("problem",)
    """Arguments of :meth:`load` after the path, in order: the environment, as ``problem`` or ``env``, and what files lack."""

    method: Any

    def __init__(self, method: Method, seed: int | None = 0, x0: Any = None) -> None:
        self.method, self.seed = method, check_seed(seed)
        first = method.start_x() if x0 is None else method.leader_set.check(x0, "x0")
        if first is not None:
            first = method.leader_set.project(first) if x0 is None else first
            first = first.detach().clone().requires_grad_()
        self.state = method.init(first, self.seed)
        self.run = Run()
        self._logger: Logger | None = None

    def __getattr__(self, name: str) -> Any:
        """Look up an attribute of the method's state or of the method."""
        if not name.startswith("_") and name not in ("state", "method", "run"):
            for holder in (self.state, self.method, self.run):
                if hasattr(holder, name):
                    return getattr(holder, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def x(self) -> npt.NDArray[np.float64]:
        """The leader's parameter, ``[dim]``: the best evaluated so far (with ``keep_best``), the initial one before any."""
        return np.array((self.state.x if self.run.kept is None else self.run.kept.x).detach().numpy())

    @property
    def last_x(self) -> npt.NDArray[np.float64]:
        """The latest iterate of x, ``[dim]``, from which learning continues."""
        return np.array(self.state.x.detach().numpy())

    @property
    def remaining_timesteps(self) -> int:
        """Remaining budget of the latest call of ``learn``, in its unit; 0 if it was completed."""
        return int(max(0, self.run.total - self.state.num_timesteps))

    # --- learning -----------------------------------------------------------------------------------------------------

    def learn(
        self: Self,
        total: int | None = None,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
        *,
        total_timesteps: int | None = None,
        num_iterations: int | None = None,
    ) -> Self:
        """Learn x; the last iteration is always completed.

        Pass the budget first or by the name of its unit: ``learn(total_timesteps=300_000)``, ``learn(num_iterations=60)``.

        Args:
            total: the budget, in the unit of :attr:`num_timesteps`.
            callback: called with the leader after every iteration; returning False stops learning.
            progress_bar: whether to show a progress bar. Default: False.
            reset_num_timesteps: False continues counting; schedules then run over the sum, as in SB3. Default: True.
            total_timesteps: the budget of a sampled leader: environment steps of all followers and of the leader's own episodes.
            num_iterations: the budget of an exact leader: outer iterations.

        Raises:
            ValueError: the budget is missing, not an integer of at least 1, in the unit of other leaders, or too small for one
                iteration (see :meth:`plan`).
        """
        asked = budget(self, total, total_timesteps=total_timesteps, num_iterations=num_iterations)
        return self._learn(asked, callback, progress_bar, reset_num_timesteps)

    def plan(self, total: int, reset_num_timesteps: bool = True) -> Plan:
        """Return what ``learn(total)`` would do: iterations, environment steps of each part, records. It spends no steps.

        Args:
            total: the budget, in the unit of :attr:`num_timesteps`.
            reset_num_timesteps: as in ``learn``.
        """
        return plan_of(self, budget(self, total), reset_num_timesteps)

    def resume(self: Self, callback: Callback | None = None, progress_bar: bool = False) -> Self:
        """Continue the latest call of ``learn`` if it ended early, e.g. the one in which a file was saved.

        On the same machine the result is bitwise that of an uninterrupted call (see ``Checkpoint``).

        Args:
            callback: called with the leader after every iteration; returning False stops learning.
            progress_bar: whether to show a progress bar. Default: False.
        """
        return self._learn(self.remaining_timesteps, callback, progress_bar, False)

    def _learn(self: Self, total: int, callback: Callback | None, progress_bar: bool, afresh: bool) -> Self:
        method, run, plan = self.method, self.run, plan_of(self, total, afresh) if total else None
        if plan is not None and afresh:
            plan.require_iteration()
        if afresh:
            self.state.num_timesteps = 0
            self.run = run = Run(total=run.total)
        done, before = self.state.num_timesteps, run.iteration
        if method.judges and run.start is None:
            run.start = self.state.x.detach().clone()
        if plan is not None:  # None where a completed run is resumed
            # A call with the same end as the last one finishes that one, with the records planned for it.
            run.cadence = run.cadence if not afresh and run.total == done + total else plan.cadence
            run.total = done + total
            if progress_bar:
                tqdm.write(str(plan), file=sys.stderr)
            if afresh:
                warn_of_reach(self, plan)
        unit = "step" if method.counts == "total_timesteps" else "it"
        try:
            with entered(callback, self) as called, tqdm(total=total, disable=not progress_bar, unit=unit) as bar:
                method.begin(self.state, Progress(done, run.total), afresh)
                if run.cadence.start and run.kept is None:
                    self._judge()
                while self.state.num_timesteps < run.total - run.cadence.reserved and not method.ended(self.state):
                    self.state, found = method.step(self.state, Progress(self.state.num_timesteps, run.total))
                    run.iteration += 1
                    if method.estimates and self.state.x.grad is not None:
                        self._weigh(self.state.x.grad, run.gradients)
                    bar.n = min(self.state.num_timesteps, run.total) - done
                    bar.update(0)
                    every = run.cadence.every
                    if every == 0:
                        bar.set_postfix({key: f"{found[key]:.3f}" for key in list(found)[:2]})
                        self.record(found)
                    elif run.iteration % every == 0:
                        self._judge(found)
                        bar.set_postfix({"best leader return": f"{run.kept.evaluation.leader_return:.3f}"})  # type: ignore[union-attr]
                    if not all([one(self) is not False for one in called]):
                        break
                if run.cadence.end and run.evaluated_at != run.iteration:
                    self._judge()
        except Exception as error:
            path = method.checkpoint_on(error)
            if path is None:
                raise
            raise type(error)(f"{error}; saved in {self.save(path)}") from error
        method.end(self.state, run.iteration - before)
        if run.iteration > before:
            warn_of_end(self)
        return self

    def _judge(self, found: dict[str, float] | None = None) -> None:
        """Evaluate the latest x at the best response, log it, and keep it if its return minus one standard error is the best."""
        run, x = self.run, self.state.x.detach()
        evaluation = self.method.evaluate(self.state, x, run.iteration)
        run.evaluated_at = run.iteration
        run.history.append(evaluation)
        # Of two records that differ by rounding only, keep the earlier.
        tie, held = 1e-12 * abs(evaluation.leader_return), run.kept
        if held is None or not self.config.keep_best or _score(evaluation) > _score(held.evaluation) + tie:
            run.kept = Kept(x.clone(), evaluation)
        told = {"moved": self.moved, "gradient_signal": self.gradient_signal}
        self.record(dataclasses.asdict(evaluation) | (found or {}) | told)

    @property
    def moved(self) -> float:
        """Distance of the latest x from the run's start: the largest over coordinates, as a share of X's width."""
        X, x = self.method.leader_set, self.state.x.detach()
        start = x if self.run.start is None else self.run.start
        return float(((x - start).abs() / torch.where(X.high > X.low, X.high - X.low, 1.0)).max())

    @property
    def gradient_signal(self) -> float | None:
        """Mean of x's estimated gradients over the run, in standard errors: about 1 where they are noise.

        The largest value after 4, 8, 16, ... iterations; None before, and for exact gradients.
        """
        return self.run.gradients.signal if self.run.gradients.n >= 4 else None

    def _weigh(self, gradient: Tensor, held: Gradients) -> None:
        """Update the mean and the spread of x's gradient over the run."""
        before = torch.zeros_like(gradient) if held.mean is None else held.mean
        held.n, held.mean = held.n + 1, before + (gradient - before) / (held.n + 1)
        held.squares += float((gradient - before) @ (gradient - held.mean))
        if held.n >= 4 and held.n & (held.n - 1) == 0:
            stderr, size = math.sqrt(held.squares / held.n / (held.n - 1)), float(held.mean.norm())
            held.signal = max(held.signal, size / stderr if stderr > 0.0 else float(size > 0.0) * 1e9)

    def evaluate(self) -> Any:
        """Evaluate :attr:`x` at the best response; see :class:`~.evaluation.Evaluation`.

        Without a known model each call trains new followers, other than those by which x was chosen; their steps count.
        """
        run = self.run
        if not self.method.judges:
            return self.method.evaluate(self.state, self.state.x, run.iteration)
        x, record = (self.state.x.detach(), None) if run.kept is None else (run.kept.x, run.kept.evaluation)
        return self.method.final(self.state, x, record, run.iteration)

    def evaluate_last(self) -> Any:
        """Evaluate :attr:`last_x`, log the record, and keep it if it is the best."""
        if not self.method.judges:
            return self.evaluate()
        if self.run.evaluated_at != self.run.iteration or not self.run.history:
            self._judge()
        return self.run.history[-1]

    def get_env(self) -> VecEnv | None:
        """Return the follower's parallel environments, for SB3's callbacks; None where there is no follower."""
        return None

    def close(self) -> None:
        """Close the followers' environments and end their processes."""
        self.method.close(self.state)

    # --- logging ------------------------------------------------------------------------------------------------------

    @property
    def logger(self) -> Logger:
        """SB3's logger; by default it writes nothing."""
        if self._logger is None:
            from stable_baselines3.common.logger import Logger

            self._logger = Logger(folder=None, output_formats=[])
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Log records with an SB3 logger, e.g. ``configure(folder, ["csv", "json", "tensorboard"])``.

        Earlier rows, also of the run that a leader was loaded from, are written first to all but the screen, so that the files
        are those of an uninterrupted run.
        """
        from stable_baselines3.common.logger import HumanOutputFormat

        self._logger, formats, screens = logger, logger.output_formats, (sys.stdout, sys.stderr)
        logger.output_formats = [f for f in formats if not (isinstance(f, HumanOutputFormat) and f.file in screens)]
        for step, which, values in self.run.log:
            for (key, excluded), value in zip(self.run.columns[which], values, strict=True):
                logger.record(key, value, tuple(excluded) or None)
            logger.dump(step)
        logger.output_formats = formats

    def record(self, found: dict[str, Any]) -> None:
        """Log these values together with all values recorded by others, and store the row."""
        logger = self.logger
        for key, value in found.items():
            if value is not None:
                logger.record(f"leader/{key}", value)
        logged = {
            key: value if isinstance(value, (bool, int, str)) else float(value)
            for key, value in logger.name_to_value.items()
            if isinstance(value, str) or hasattr(value, "__float__")
        }
        columns = [(key, list(logger.name_to_excluded[key] or ())) for key in logged]
        if columns not in self.run.columns:
            self.run.columns.append(columns)
        self.run.log.append((self.state.num_timesteps, self.run.columns.index(columns), list(logged.values())))
        logger.dump(self.state.num_timesteps)

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, replay: bool = False) -> Path:
        """Write the leader to a zip file, atomically, with all that exact resumption needs.

        A follower given as a class is stored by name; a callable is not stored and must be given again.

        Args:
            path: the file; ``.zip`` is added where there is no suffix.
            replay: whether to store the followers' replay buffers and the place in running episodes. They may be large; without
                them, learning with a replay buffer does not resume bitwise. Default: False.

        Returns:
            The path written.

        Raises:
            OSError: the file cannot be written; an old file is kept.
            TypeError: the config holds something that cannot be stored.
        """
        method = self.method
        header: dict[str, Any] = {
            "leader": type(self).__name__,
            "source": {"env_id": method.source.env_id, "env_kwargs": encode(method.source.env_kwargs)},
            "fingerprint": method.fingerprint(),
            "seed": self.seed,
            "arguments": {name: encode(value) for name, value in method.arguments().items()},
            "replay": replay,
        }
        if hasattr(method, "follower_spec"):
            from .followers.spec import follower_name

            header["follower"] = follower_name(method.follower_spec)
        arrays = method.replay(self.state) if replay else {}
        place = method.place(self.state) if replay else None
        parts = {"run": self.run, "state": self.state, "place": place}
        return write_leader(path, header, {name: snapshot(part) for name, part in parts.items()}, arrays)

    @classmethod
    def load(cls: type[Self], path: str | Path, *given: Any, **named: Any) -> Self:
        """Load a leader to evaluate it, to :meth:`resume`, or to continue learning with ``reset_num_timesteps=False``.

        Args:
            path: the file.
            given: what the file lacks, in the order of :attr:`given`: ``problem`` for exact leaders, ``follower`` and ``env`` for
                sampled ones. Needed are a follower that was a callable, and an environment that was given as an object.
            named: the same by name.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is truncated, or of another version, leader or environment; or an argument is missing or wrong.
        """
        named |= dict(zip(cls.given, given, strict=False))
        unknown = [name for name in named if name not in cls.given]
        if unknown or len(given) > len(cls.given):
            raise TypeError(f"load: expected the path and {', '.join(cls.given)}, got {unknown or list(given)}")
        header = read_header(path, cls.__name__)
        with reading(path):
            name, what = ("problem", "problem") if "problem" in cls.given else ("env", "environment")
            world, kwargs = source_of_file(header["source"], named.get(name), name)
            construct: Callable[..., Self] = cls
            arguments = cls._arguments(header, named, path)
            leader = construct(world, seed=header["seed"], env_kwargs=kwargs, **arguments)
            expected, got = [float(number) for number in header["fingerprint"]], leader.method.fingerprint()
            same = len(got) == len(expected) and bool(np.allclose(got, expected, rtol=1e-6, atol=1e-6))
            require(same, name, f"the {what} of {path}", "another one (its sizes or numbers differ)")
            try:
                leader._take_back(header, path)
            except (KeyError, RuntimeError) as error:
                if named.get("follower") is None:
                    raise
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                wanted = f"the algorithm that {path} was trained with"
                raise ValueError(f"follower: expected {wanted}, got another ({reason})") from error
        return leader

    @classmethod
    def _arguments(cls, header: dict[str, Any], named: dict[str, Any], path: str | Path) -> dict[str, Any]:
        """Return constructor arguments besides environment and seed: the file's, and those given again."""
        arguments = {name: decode(value) for name, value in header["arguments"].items()}
        if "follower" in cls.given:
            from .followers.spec import follower_of_file

            arguments["follower"] = follower_of_file(header["follower"], named.get("follower"), path)
        return arguments

    def _take_back(self, header: dict[str, Any], path: str | Path) -> None:
        """Load the run and the state from what :meth:`save` wrote."""
        method, replay = self.method, bool(header["replay"])
        # Beyond a fresh state's arrays, an optimiser stores two numbers per parameter; a method may collect data.
        tree = read_state(path, header["state"], 3 * size_of(snapshot(self.state)) + method.room(self.state))
        restore(self.state, tree["state"])
        if replay:
            method.stand(self.state, tree["place"], Path(path))
            read_arrays(path, method.replay(self.state, whole=True))
        method.loaded(self.state, replay, Path(path))
        restore(self.run, tree["run"])
        widths = dict(enumerate(map(len, self.run.columns)))
        fits = all(len(values) == widths.get(which) for _, which, values in self.run.log)
        require(fits, "log", "a value for each of its columns", "another number")
        if method.judges:
            self.method.leader_set.check(self.state.x.detach(), "x")
        if self.run.kept is not None:
            self.method.leader_set.check(self.run.kept.x, "kept")
        shape = tuple(self.state.x.shape)
        for name, beside in (("start", self.run.start), ("mean", self.run.gradients.mean)):
            require(beside is None or beside.shape == shape, name, f"shape {shape}, as x", beside)


def _score(record: Evaluation) -> float:
    """Return a record's score: its return minus one standard error, so that no x is chosen by luck."""
    error = record.leader_return_stderr
    return record.leader_return - (error if math.isfinite(error) else 0.0)


# --- a step of x --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def projected_gradient(z: Tensor, alpha: float, project: Projection) -> Tensor:
    """Return (z - Proj(z - alpha g)) / alpha (arXiv 2402.06886, eq. 4.6), the shape of z, with the gradient g in ``z.grad``.

    It is 0 exactly at stationary points, and equals g where the projection changes nothing.

    Raises:
        FloatingPointError: the gradient is not finite.
    """
    assert z.grad is not None
    if not bool(torch.isfinite(z.grad).all()):
        got = "NaN or infinity; look at the rewards at this x"
        raise FloatingPointError(f"gradient: expected finite numbers, got {got}")
    stepped = z - alpha * z.grad
    projected = project(stepped)
    return z.grad if torch.equal(projected, stepped) else (z - projected) / alpha


@torch.no_grad()
def projected_step(optimizer: torch.optim.Optimizer, projections: Sequence[Projection]) -> None:
    """Take an optimiser's step within convex sets; each parameter group has one tensor and its own projection.

    An optimiser that rescales coordinates (Adam) does not combine with a projection that couples them (a simplex, a budget):
    where all gradients point out of the set, Adam's steps are equal, the projection undoes them, and z stays at a point that is
    not stationary. So the optimiser gets the projected gradient. Plain gradient descent is not changed by this.

    Raises:
        FloatingPointError: a gradient is not finite; nothing is moved then.
    """
    pairs = [(group["params"][0], group["lr"], p) for group, p in zip(optimizer.param_groups, projections, strict=True)]
    for z, alpha, project in pairs:
        if z.grad is not None:
            z.grad = projected_gradient(z, alpha, project)
    optimizer.step()
    for z, _, project in pairs:
        z.copy_(project(z))
