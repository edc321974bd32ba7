"""Killed runs: SIGKILL at random moments, and whether the final files are equal to the bit.

A process learns with a ``Checkpoint`` and is killed after a random time; the next one loads the file, resumes, and is killed
again. The last one finishes. Its files (the leader with its followers, replay buffers, generators and records) and its log are
then compared with those of a process that was never killed.
"""

from __future__ import annotations

import inspect
import io
import json
import multiprocessing
import signal
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.logger import configure
from tqdm.auto import tqdm

from bilevel_gym.agents import (
    CMAES,
    PBRL,
    BellmanPenalty,
    Checkpoint,
    CMAESConfig,
    Hypergradient,
    PBRLConfig,
    PreferenceConfig,
    PreferencePBRL,
    Rollouts,
    TabularPBRL,
)

from .runs import Data

KILLS = 20
GAME, LQ = "bilevel_gym/StackelbergGame-v0", "bilevel_gym/LQStackelberg-v0"
SMALL = PBRLConfig(n_envs=4, follower_steps=64, warmup_steps=64, estimator=Rollouts(n_envs=8), eval_every=5)
ASKED = PreferenceConfig(
    labels=40, first_labels=8, length=5, first_steps=64, follower_steps=64, n_envs=4, epochs=2, first_epochs=5
)


@dataclass(frozen=True)
class Run:
    """A run that will be killed.

    Attributes:
        leader: class of the leader.
        arguments: positional arguments of the leader.
        named: keyword arguments of the leader.
        total: argument of ``learn``.
        every: outer iterations between checkpoints.
    """

    leader: type[Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    total: int
    every: int

    def make(self) -> Any:
        """Build the leader."""
        return self.leader(*self.arguments, **self.named)

    def load(self, path: Path) -> Any:
        """Load the leader from its file; followers that are functions are passed again."""
        return self.leader.load(path, *filter(inspect.isfunction, self.arguments))


def small(algorithm: type[DQN | SAC], gamma: float) -> Callable[[Any], DQN | SAC]:
    """A small follower with a small buffer."""
    settings: dict[str, Any] = {"learning_starts": 64, "batch_size": 64, "buffer_size": 4000}
    return lambda venv: algorithm("MlpPolicy", venv, gamma=gamma, policy_kwargs={"net_arch": [16]}, **settings)


DQN_9, SAC_95 = small(DQN, 0.9), small(SAC, 0.95)
GAME_20: dict[str, Any] = {"env_kwargs": {"n_states": 20, "reward_unit": 1.0}}
GAME_5: dict[str, Any] = {"config": SMALL, "env_kwargs": {"n_states": 5, "reward_unit": 1.0}}
IN_PROCESSES = replace(SMALL, vec_env="subproc", n_envs=2, estimator=Rollouts(2))
OF_A_GAME = PBRLConfig.for_a_game(n_envs=4, follower_steps=64, warmup_steps=64, estimator=Rollouts(8))
SEARCH = CMAESConfig(follower_steps=256, n_envs=4, rollout_envs=8)
RUNS: dict[str, Run] = {
    "TabularPBRL": Run(TabularPBRL, (GAME,), GAME_20, 100, 3),
    "Hypergradient": Run(Hypergradient, (GAME,), GAME_20, 100, 3),
    "PBRL, A2C": Run(PBRL, (GAME, A2C), GAME_5, 20_000, 2),
    "PBRL, DQN": Run(PBRL, (GAME, DQN_9), GAME_5, 12_000, 2),
    "PBRL, DQN, Bellman penalty": Run(PBRL, (GAME, DQN_9), GAME_5 | {"penalty": BellmanPenalty(lam=4.0)}, 12_000, 2),
    "PBRL, SAC": Run(PBRL, (LQ, SAC_95), {"config": SMALL, "env_kwargs": {"gamma": 0.95}}, 12_000, 1),
    "PBRL, PPO in worker processes": Run(PBRL, (GAME, PPO), GAME_5 | {"config": IN_PROCESSES}, 6_000, 1),
    "PBRL over a game, A2C": Run(PBRL, ("bilevel_gym/incentive_design_v0", A2C), {"config": OF_A_GAME}, 30_000, 2),
    "PreferencePBRL, A2C": Run(PreferencePBRL, ("bilevel_gym/RewardGrid-v0", A2C), {"config": ASKED}, 4_000, 1),
    "CMAES, A2C": Run(CMAES, ("bilevel_gym/TwoState-v0", A2C), {"config": SEARCH}, 40_000, 1),
}


def work(name: str, folder: Path, connection: Any) -> None:
    """Start a run or resume it from its checkpoint, in its own process; ``connection`` receives each iteration."""
    torch.set_num_threads(1)
    run, path = RUNS[name], folder / "leader.zip"
    resumed = path.exists()
    leader = run.load(path) if resumed else run.make()
    leader.set_logger(configure(str(folder / "log"), ["csv"]))
    callbacks = [Checkpoint(path, every=run.every), lambda one: connection.send(one.iteration)]
    connection.send(leader.iteration)
    if resumed:
        leader.resume(callbacks)
    else:
        leader.learn(run.total, callbacks)
    leader.save(folder / "final.zip", replay=True)
    if hasattr(leader, "close"):
        leader.close()


@dataclass(frozen=True)
class Lived:
    """The life of one process.

    Attributes:
        first: iterations at its start.
        last: the last iteration that it reported.
        killed: whether it was killed.
        seconds: seconds from its start to its end, without imports.
        exit_code: exit code of the process.
    """

    first: int
    last: int
    killed: bool
    seconds: float
    exit_code: int | None


def live(name: str, folder: Path, kill: tuple[int, float] | None) -> Lived:
    """Start a process that runs or resumes, and kill it after this many iterations and seconds of learning."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.survival"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(name, folder, theirs))
    process.start()
    theirs.close()
    told: list[int] = []
    start = time.monotonic()
    try:
        told.append(ours.recv())
        start = time.monotonic()
        while kill is None or told[-1] < told[0] + kill[0]:
            told.append(ours.recv())
        time.sleep(kill[1])
        process.kill()
        while True:
            told.append(ours.recv())
    except EOFError:
        seconds = time.monotonic() - start
    process.join()
    ours.close()
    killed = process.exitcode == -signal.SIGKILL
    return Lived(told[0] if told else -1, told[-1] if told else -1, killed, seconds, process.exitcode)


def contents(path: Path) -> dict[str, Any]:
    """The header, tensors and arrays of a leader file."""
    readers: dict[str, Any] = {".json": json.load, ".pt": partial(torch.load, weights_only=True)}
    with zipfile.ZipFile(path) as archive:
        files = {name: io.BytesIO(archive.read(name)) for name in archive.namelist()}
    return {name: readers.get(Path(name).suffix, np.load)(file) for name, file in files.items()}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested structures differ by a bit."""
    if type(one) is not type(other):
        return [f"{where} ({type(one).__name__}, {type(other).__name__})"]
    if isinstance(one, torch.Tensor):
        one, other = one.numpy(), other.numpy()
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        return [] if same else [where]
    if isinstance(one, (list, tuple)):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where} {sorted(one.keys() ^ other.keys())}"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}/{key}")]
    return [] if one == other or (one != one and other != other) else [f"{where} ({one}, {other})"]


def survive(name: str, kills: int, seed: int = 0) -> Data:
    """Kill a run this many times and report the result."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        whole.mkdir()
        broken.mkdir()
        unbroken = live(name, whole, None)
        assert unbroken.exit_code == 0
        lives: list[Lived] = []
        half_written = 0
        for to_come in range(kills, 0, -1):  # so many iterations that some are left for each kill
            remaining = unbroken.last - (lives[-1].first if lives else 0)
            most = max(1, min(2 * remaining // (to_come + 2), remaining // 2))
            kill = int(rng.integers(most)), float(rng.uniform(0.0, unbroken.seconds / unbroken.last))
            lives.append(live(name, broken, kill))
            half_written += len(list(broken.glob("*.part")))
        lives.append(live(name, broken, None))
        found = {
            file: differences(contents(whole / file), contents(broken / file)) for file in ("leader.zip", "final.zip")
        }
        logs = [(place / "log" / "progress.csv").read_bytes() for place in (whole, broken)]
        found["log"] = [] if logs[0] == logs[1] else ["progress.csv"]
        size = (whole / "leader.zip").stat().st_size
        left = sorted(entry.name for entry in broken.iterdir())
    starts = [life.first for life in lives[1:]]
    return {
        "run": name,
        "kills": sum(life.killed for life in lives),
        "half_written": half_written,
        "iterations": unbroken.last,
        "iterations_again": sum(max(0, life.last - start) for life, start in zip(lives, starts, strict=False)),
        "every": RUNS[name].every,
        "seconds": round(unbroken.seconds, 2),
        "bytes": size,
        "differences": found,
        "left": left,
        "exit_code": lives[-1].exit_code,
    }


def run(quick: bool, jobs: int) -> Data:
    """Kill every run."""
    names = list(RUNS)[:3] if quick else list(RUNS)
    return {"runs": [survive(name, 3 if quick else KILLS) for name in tqdm(names, desc="runs")]}


def equal(row: Data) -> bool:
    """Whether the files and logs equal those of the run that was not killed, and no other files are left."""
    clean = row["left"] == ["final.zip", "leader.zip", "log"] and row["exit_code"] == 0
    return clean and not any(row["differences"].values())
