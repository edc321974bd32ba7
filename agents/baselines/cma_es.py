r"""Nested black box: CMA-ES over x, the follower trained afresh for every trial.

Each generation draws x_1 .. x_k ~ N(m, sigma^2 C), asks for the leader's return at a follower that knows nothing of earlier
trials, and moves m, sigma and C by the ranking (Hansen and Ostermeier 2001; the search is pycma's). The search runs in
coordinates in which the box around X is [0, 1]^dim; bounds are pycma's, a budget is met by projecting each trial. The leader's
x is the mean m: in many dimensions it is better than any one trial, and no maximum over noisy returns.

:class:`TabularCMAES` solves the follower exactly for every trial and counts trials; :class:`CMAES` trains an SB3 follower from
scratch and counts its steps. Needs the extra ``search``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...envs.mdp import LeaderSet, TabularMDP, TabularProblem, solve_soft
from ...envs.mdp.checks import check_count, check_number, check_size, require
from ...wrappers import set_leader
from ..common.evaluation import Evaluation, leader_return_at_best_response
from ..common.leader import Callback, Leader, LeaderConfig
from ..common.many_returns import leader_returns
from ..common.rollout_gradient import episode_returns
from ..common.rollouts import collect
from ..common.storage import decode, encode, read_leader, storable, write_leader
from ..common.tabular import TabularLeader, TabularLeaderConfig, check_fingerprint, fingerprint, source_of_file
from ..common.worlds import EnvSpec, Worlds
from ..files import reading
from ..oracles.sb3 import Answering, FollowerSpec, SB3Follower, follower_name, follower_of_file


def _check_search(config: TabularCMAESConfig | CMAESConfig) -> None:
    check_number(config.sigma, "sigma", low=0.0, open_low=True)
    if config.population is not None:
        require(check_size(config.population, "population") >= 2, "population", "at least 2", config.population)
    defaults = LeaderConfig()
    for name in ("learning_rate", "optimizer_class", "optimizer_kwargs"):
        value = getattr(config, name)
        require(value == getattr(defaults, name), name, "none: CMA-ES takes no gradient steps (see sigma)", repr(value))


@storable
@dataclass(frozen=True, eq=False)
class TabularCMAESConfig(TabularLeaderConfig):
    """How :class:`TabularCMAES` searches; the optimiser's settings of other leaders are not used.

    Attributes:
        tau: the follower's temperature; None takes that of honest evaluation.
        sigma: standard deviation at the start, as a share of X's width in each coordinate.
        population: trials a generation; None takes pycma's ``4 + 3 log dim``.
        eval_every: generations between honest evaluations.
    """

    sigma: float = 0.1
    population: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_search(self)


@storable
@dataclass(frozen=True, eq=False)
class CMAESConfig(LeaderConfig):
    """How :class:`CMAES` searches; the optimiser's settings of other leaders are not used.

    Attributes:
        sigma: standard deviation at the start, as a share of X's width in each coordinate.
        population: trials a generation; None takes pycma's ``4 + 3 log dim``.
        eval_every: generations between honest evaluations.
        follower_steps: steps that each trial's follower trains from scratch (SB3 rounds up to whole rollouts).
        n_envs: copies of the world that it trains in.
        rollout_envs: episodes by which a trial's leader return is measured.
        rollout_tail: discount at which they are cut; a critic of these episodes stands for the rest.
        evaluation_steps: steps of honest evaluation's follower, where the environment is not tabular.
    """

    sigma: float = 0.1
    population: int | None = None
    follower_steps: int = 20_000
    n_envs: int = 64
    rollout_envs: int = 64
    rollout_tail: float = 0.05
    evaluation_steps: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_search(self)
        for name in ("follower_steps", "n_envs", "rollout_envs", "evaluation_steps"):
            check_size(getattr(self, name), name)
        check_number(self.rollout_tail, "rollout_tail", low=0.0, high=1.0, open_low=True, open_high=True)


def _pycma() -> Any:
    try:
        import cma
    except ImportError as error:
        raise ImportError('CMA-ES needs pycma: pip install "bilevel-gym[search]"') from error
    return cma


class Search:
    """pycma's search over X; it draws from its own generator.

    pycma keeps no state that is fit for a file which runs no code. What the search was told is: from the same seed it then goes
    the same way again.

    Args:
        leader_set: X.
        mean: where it starts, a point of X.
        sigma: standard deviation of every coordinate at the start, as a share of X's width.
        population: trials a generation, or None.
        entropy: words that seed its generator.

    Raises:
        ImportError: pycma is not installed.
    """

    def __init__(
        self, leader_set: LeaderSet, mean: Tensor, sigma: float, population: int | None, entropy: list[int]
    ) -> None:
        self._cma, self._set = _pycma(), leader_set
        self._low, self._width = leader_set.low, leader_set.high - leader_set.low
        self._start, self._sigma, self._population, self._entropy = mean.clone(), sigma, population, entropy
        self._begin()

    def _begin(self) -> None:
        rng = np.random.default_rng(self._entropy)
        unit = torch.where(self._width > 0, (self._start - self._low) / self._width, 0.5)
        options = {
            "bounds": [0.0, 1.0],
            "seed": np.nan,  # leaves numpy's global generator alone
            "randn": lambda *shape: rng.standard_normal(shape),
            "verbose": -9,
            "verb_log": 0,
            "CMA_stds": torch.full_like(unit, self._sigma).numpy(),
            **({} if self._population is None else {"popsize": self._population}),
            **(
                {"maxstd": np.inf} if len(unit) == 1 else {}
            ),  # pycma 4.5 fails where one coordinate reaches its bound on it
        }
        self._es = self._cma.CMAEvolutionStrategy(unit.clamp(0.0, 1.0).numpy(), 1.0, options)
        self._asked: list[NDArray[np.float64]] = []
        self._told: list[list[float] | None] = []

    def _point(self, unit: Any) -> Tensor:
        return self._set.project(self._low + torch.as_tensor(np.asarray(unit), dtype=torch.float64) * self._width)

    def ask(self) -> Tensor:
        """A generation's trials, points of X, ``[population, dim]``."""
        self._told.append(None)
        self._asked = self._es.ask()
        return self._point(np.stack(self._asked))

    def tell(self, returns: list[float]) -> None:
        """The leader's returns at the trials last asked for."""
        self._told[-1] = [float(value) for value in returns]
        self._es.tell(self._asked, [-value for value in returns])

    @property
    def mean(self) -> Tensor:
        """m, projected on X, ``[dim]``."""
        return self._point(self._es.result.xfavorite)

    def state(self) -> dict[str, Any]:
        """Seed and start of the search, and what it was told of each generation (None: it was given up)."""
        return {"entropy": self._entropy, "start": self._start, "told": self._told}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave: the same search is made again, without the trials."""
        self._entropy = [int(word) for word in state["entropy"]]
        self._start = self._set.check(state["start"], "start")
        self._begin()
        for returns in state["told"]:
            asked = self.ask()
            if returns is not None:
                require(len(returns) == len(asked), "told", f"{len(asked)} returns", len(returns))
                self.tell([float(value) for value in returns])


class TabularCMAES(TabularLeader):
    """CMA-ES on F(x) = J_L(x, pi*_tau(x)), the follower solved for every trial.

    Args:
        problem: a tabular problem, an environment that has one, or its id.
        config: the search, bounds.
        seed: of the search.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default 0, projected on X.

    Attributes:
        evaluations: trials so far; honest evaluations come on top.

    Raises:
        ImportError: pycma is not installed.
    """

    config: TabularCMAESConfig

    def __init__(
        self,
        problem: TabularProblem | gym.Env[Any, Any] | str,
        config: TabularCMAESConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        self.evaluations = 0
        self._V: Tensor | None = None
        config = TabularCMAESConfig() if config is None else config
        super().__init__(problem, config, seed, env_kwargs, x0, positive_tau=False)
        entropy = [int(word) for word in np.random.SeedSequence(seed).generate_state(4)]
        self.search = Search(self.leader_set, self._x.detach(), config.sigma, config.population, entropy)

    def _default_tau(self) -> float:
        return self.problem.tau0

    def _descend(self, progress_remaining: float) -> dict[str, float]:
        points = self.search.ask()
        values, V = leader_returns(self.problem, points, self.tau, self._V)
        self._V = V.mean(0)
        self.search.tell(values.tolist())
        self.evaluations += len(points)
        with torch.no_grad():
            self._x.copy_(self.search.mean)  # no gradient: the step that follows leaves it there
        return {"evaluations": float(self.evaluations), "best_trial": float(values.max())}

    def _pi_y(self, mdp: TabularMDP) -> Tensor:
        return solve_soft(mdp, self.tau).pi

    def _state(self) -> dict[str, Any]:
        return {"V": self._V, "evaluations": self.evaluations, "search": self.search.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        self._V, self.evaluations = state["V"], check_count(state["evaluations"], "evaluations")
        self.search.restore(state["search"])


class CMAES(Leader):
    """CMA-ES on the leader's return at an SB3 follower, trained from scratch for every trial.

    Args:
        env: a leader environment: its id, an environment (it is copied), or a callable that makes one.
        follower: an SB3 class, or a callable ``VecEnv -> BaseAlgorithm``.
        config: the search, the trials, bounds.
        seed: of the search, the followers and their worlds.
        env_kwargs: arguments of an id.
        x0: start, ``[dim]``; by default the environment's own.

    Attributes:
        trials: followers trained so far.
        num_timesteps: their environment steps, those of measuring returns included.

    Raises:
        ImportError: pycma is not installed.
        ValueError: as :class:`PBRL`.
    """

    config: CMAESConfig
    _unit = "step"

    def __init__(
        self,
        env: EnvSpec,
        follower: FollowerSpec,
        config: CMAESConfig | None = None,
        seed: int | None = 0,
        env_kwargs: dict[str, Any] | None = None,
        x0: Any = None,
    ) -> None:
        config = CMAESConfig() if config is None else config
        require(isinstance(config, CMAESConfig), "config", "a CMAESConfig", repr(config))
        self.worlds = Worlds(env, env_kwargs, observe_commitment=False)
        super().__init__(self.worlds.leader_set, self.worlds.start_x(), config, x0, seed)
        self.worlds.require_sampled_return(self._x.detach())
        self.follower_spec, self.trials = follower, 0
        self._entropy = [int(word) for word in np.random.SeedSequence(seed).generate_state(4)]
        self.search = Search(self.leader_set, self._x.detach(), config.sigma, config.population, self._entropy)
        self._training, self._rollouts = self.worlds.make(config.n_envs), self.worlds.make(config.rollout_envs)
        first = self._new_follower(0)  # what does not fit shows before any work
        self.worlds.require_every_action(self._x.detach(), first)

    def _new_follower(self, seed: int) -> SB3Follower:
        return SB3Follower(self.follower_spec, self._training, self.worlds.gamma, seed, self.worlds.linear, Answering())

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> CMAES:
        """Search until the followers have spent this many environment steps, all counted.

        Args:
            total_timesteps: steps of all trials together; the last trial is finished, and a generation that the steps
                do not suffice for is given up.
            callback: called with the leader after every generation; False stops.
            progress_bar: show one.
            reset_num_timesteps: False goes on counting.
        """
        total = check_size(total_timesteps, "total_timesteps")
        self._learn(total, callback, progress_bar, reset_num_timesteps)
        return self

    def _iterate(self, progress_remaining: float) -> dict[str, float]:
        points, returns = self.search.ask(), []
        for x in points:
            if self.num_timesteps >= self._total:
                return {"trials": float(self.trials)}
            returns.append(float(self.trial(x.numpy(), self.config.follower_steps, self.trials).mean()))
            self.trials += 1
        self.search.tell(returns)
        with torch.no_grad():
            self._x.copy_(self.search.mean)
        return {"trials": float(self.trials), "best_trial": max(returns)}

    def trial(self, x: NDArray[np.float64], steps: int, *number: int) -> NDArray[np.float64]:
        """Train a follower from scratch at x; the leader's return in each of a few fresh episodes of it, ``[n]``.

        Args:
            x: a point of X, ``[dim]``.
            steps: environment steps of training.
            number: of which its seed is drawn.
        """
        seed, w = int(np.random.default_rng([*self._entropy, *number]).integers(2**31)), self.worlds
        for venv in (self._training, self._rollouts):
            set_leader(venv, x)
        follower = self._new_follower(seed)
        self.num_timesteps += follower.train(steps, steps)
        with follower.generators.active():
            player = follower.player(self._rollouts, greedily=True)
            episodes = collect(self._rollouts, player, w.horizon(self.config.rollout_tail), seed)
        self.num_timesteps += episodes.steps
        _, leader = episode_returns(episodes, w.base_space, w.gamma)
        return leader

    def _evaluate(self, x: Tensor) -> Evaluation:
        """Exact where the environment is tabular; else by one more trial, whose steps count."""
        value, stderr = float("nan"), 0.0
        if self.worlds.problem is not None:
            value = leader_return_at_best_response(self.worlds.problem, x)
        else:
            returns = self.trial(x.numpy(), self.config.evaluation_steps, self.iteration, 1)
            value, stderr = float(returns.mean()), float(returns.std(ddof=1) / np.sqrt(len(returns)))
        return Evaluation(value, None, None, None, None, 0.0, self.num_timesteps, self.iteration, stderr)

    # --- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, replay: bool = False) -> Path:
        """Write the leader to a zip, whole or not at all: x, what the search was told, the best x, records.

        A follower given as a class is named in the file; a callable is not stored and has to be given again.

        Args:
            path: the file, ``.zip`` where it has no suffix.
            replay: nothing here; followers are trained from scratch.

        Returns:
            The path written.

        Raises:
            OSError: a file that cannot be written; what was there before still is.
            TypeError: a config that no file can hold.
        """
        source = self.worlds.source
        header = {
            "leader": type(self).__name__,
            "source": {"env_id": source.env_id, "env_kwargs": encode(source.env_kwargs)},
            "fingerprint": self._fingerprint(),
            "follower": follower_name(self.follower_spec),
            "entropy": self._entropy,
            **self._header(),
        }
        return write_leader(path, header, {**self._tensors(), "search": self.search.state()})

    def _fingerprint(self) -> list[float]:
        problem = self.worlds.problem
        return [float(self.leader_set.dim), self.worlds.gamma] if problem is None else fingerprint(problem)

    @classmethod
    def load(cls, path: str | Path, follower: FollowerSpec | None = None, env: EnvSpec | None = None) -> CMAES:
        """Read a leader back, ready to evaluate, to :meth:`resume`, or to learn on with ``reset_num_timesteps=False``.

        Args:
            path: the file.
            follower: needed where it was a callable; else the class named in the file is taken.
            env: needed where the environment was given as an object and not as an id.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a truncated file, that of another leader or environment, a follower that is missing or another.
        """
        header, tensors = read_leader(path, cls.__name__)
        with reading(path):
            env, kwargs = source_of_file(header, env, "env")
            assert env is not None
            spec = follower_of_file(header["follower"], follower, path)
            leader = cls(env, spec, decode(header["config"]), header["seed"], kwargs)
            if leader.worlds.problem is not None:
                check_fingerprint(header["fingerprint"], leader.worlds.problem, path)
            else:
                require(
                    leader._fingerprint() == header["fingerprint"], "env", f"the environment of {path}", "another one"
                )
            leader._take_back(header, tensors)
            leader._entropy = [int(word) for word in header["entropy"]]
            leader.search.restore(tensors["search"])
        return leader

    _counters = (*Leader._counters, "trials")
