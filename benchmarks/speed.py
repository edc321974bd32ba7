"""Speed: followers inside the leader's loop, the native simulator, an exact iteration.

The first and the last table show CPU time of one thread, which other work on the machine hardly affects, and wall time. Runs that
are compared alternate in one process, and the median over repetitions is reported.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from tqdm.auto import tqdm

from bilevel_gym.agents import PBRL, BellmanPenalty, TabularPBRL, TabularPBRLConfig
from bilevel_gym.agents.exact import ExactLeader
from bilevel_gym.agents.followers.spec import build_model
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.agents.learned.worlds import Worlds
from bilevel_gym.envs.mdp import random_stackelberg
from bilevel_gym.wrappers import RewardMixing, set_leader

from .runs import Data

ENV_ID = "bilevel_gym/StackelbergGame-v0"
ALGORITHMS = ("PPO", "A2C", "DQN")
SIZES = (20, 100)
STEPS = 60_000
"""Environment steps per repetition, of both followers together."""
REPEATS = 7
COPIES, SIMULATOR_REPEATS = (64, 4096), 9
WRAPPED = ("ShapedCartPole-v0", "DesignedPendulum-v0")
ITERATIONS = 100
RATIO, NATIVE_US, NATIVE_RATIO, EXACT_MS = 0.95, 0.05, 75.0, 3.0


@dataclass
class Clock:
    """A context manager that measures CPU and wall seconds."""

    cpu: float = 0.0
    wall: float = 0.0
    _start: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def __enter__(self) -> Clock:
        self._start = (time.process_time(), time.perf_counter())
        return self

    def __exit__(self, *exception: object) -> None:
        self.cpu += time.process_time() - self._start[0]
        self.wall += time.perf_counter() - self._start[1]


def follower_steps(leader: PBRL) -> int:
    """Steps that both followers have trained."""
    return int(leader.best_response.num_timesteps + leader.penalised.num_timesteps)


def plain_model(leader: PBRL) -> BaseAlgorithm:
    """The same algorithm with the same settings and wrappers, with its environments at x + noise as in the loop."""
    venv = RewardMixing(leader.worlds.make(leader.config.n_envs), 1.0 / leader.lam)
    set_leader(venv, leader.neighbourhood(leader.state))
    return build_model(leader.follower_spec, venv, leader.worlds.gamma, seed=0, linear=leader.worlds.linear)


def loop_speed(leader: PBRL, steps: int) -> Data:
    """Frames per second of the followers while the leader learns, and their share of the total time."""
    clock, whole, before, level = Clock(), Clock(), follower_steps(leader), leader.level

    def train(*arguments: Any) -> Any:
        with clock:
            return type(level).train(level, *arguments)

    level.train = train
    with whole:
        while follower_steps(leader) - before < steps:
            leader.learn(steps // 4, reset_num_timesteps=False)
    del level.train
    done = follower_steps(leader) - before
    return {"cpu": done / clock.cpu, "wall": done / clock.wall, "follower_share": clock.cpu / whole.cpu}


def plain_speed(model: BaseAlgorithm, steps: int) -> Data:
    """Frames per second of one long call of ``learn``."""
    before = model.num_timesteps
    with Clock() as clock:
        model.learn(steps, reset_num_timesteps=False)
    done = model.num_timesteps - before
    return {"cpu": done / clock.cpu, "wall": done / clock.wall}


def medians(records: list[Data]) -> Data:
    """The median of every key."""
    return {key: statistics.median(r[key] for r in records) for key in records[0]}


def follower_speed(algorithm: str, size: int, steps: int, repeats: int) -> Data:
    """Row 1: frames per second in the leader's loop and in plain ``learn``, measured alternately."""
    leader = PBRL(ENV_ID, getattr(stable_baselines3, algorithm), env_kwargs={"n_states": size})
    model = plain_model(leader)
    leader.learn(2 * int(leader.config.warmup_steps))
    plain_speed(model, int(leader.config.warmup_steps))
    loop, plain = [], []
    for _ in range(repeats):
        loop.append(loop_speed(leader, steps))
        plain.append(plain_speed(model, steps))
    return {
        "algorithm": algorithm,
        "n_states": size,
        "follower_steps": leader.config.follower_steps,
        "n_envs": leader.config.n_envs,
        "loop": medians(loop),
        "plain": medians(plain),
        **medians([{f"ratio_{key}": a[key] / b[key] for key in b} for a, b in zip(loop, plain, strict=True)]),
        "hand_over_ms": hand_over_ms(leader),
        "repetitions": {"loop": loop, "plain": plain},
    }


def hand_over_ms(leader: PBRL, repeats: int = 50) -> float:
    """Milliseconds, within the above, to draw x + noise and set it in one follower's environments."""
    with Clock() as clock:
        for _ in range(repeats):
            set_leader(leader.best_response.venv, leader.neighbourhood(leader.state))
    return clock.cpu / repeats * 1e3


def microseconds_per_step(env: gym.vector.VectorEnv[Any, Any, Any], steps: int) -> float:
    """Median microseconds per environment step, counted once per parallel environment."""
    rng = np.random.default_rng(0)
    actions = rng.integers(env.single_action_space.n, size=(steps, env.num_envs))  # type: ignore[attr-defined]
    env.reset(seed=0)
    env.step(actions[0])
    times = []
    for _ in range(SIMULATOR_REPEATS):
        with Clock() as clock:
            for row in actions:
                env.step(row)
        times.append(clock.wall)
    return statistics.median(times) / (steps * env.num_envs) * 1e6


def simulator_speed() -> dict[str, float]:
    """Row 2: ``native_<n>_us`` and ``ratio_<n>`` for n parallel environments, ``sync_us`` and ``set_leader_us``.

    SyncVectorEnv is measured with 64 environments: each holds its own game, and the time of one hardly depends on their number.
    """
    sync = gym.make_vec(ENV_ID, num_envs=64, vectorization_mode="sync")
    results = {"sync_us": microseconds_per_step(sync, steps=100)}
    sync.close()
    for n in COPIES:
        results[f"native_{n}_us"] = microseconds_per_step(gym.make_vec(ENV_ID, num_envs=n), steps=300)
        results[f"ratio_{n}"] = results["sync_us"] / results[f"native_{n}_us"]
    env: Any = gym.make(ENV_ID).unwrapped
    x, times = np.linspace(-1.0, 1.0, env.leader_space.shape[0]), []
    for _ in range(200):
        with Clock() as clock:
            env.set_leader(x)
        times.append(clock.wall)
    return results | {"set_leader_us": statistics.median(times) * 1e6}


def wrapped_speed() -> list[Data]:
    """CPU microseconds per step of 64 environments of Gymnasium's with a leader, native and in SB3's DummyVecEnv."""
    rows = []
    for name in WRAPPED:
        env, found = gym.make(f"bilevel_gym/{name}"), {}
        for kind, steps in (("native", 300), ("dummy", 30)):
            venv = Worlds(env, None, False, kind).make(64)  # type: ignore[arg-type]
            rng = np.random.default_rng(0)
            shape = (steps, 64, *(venv.action_space.shape or ()))
            actions = rng.uniform(-2.0, 2.0, shape).astype(np.float32) if shape[2:] else rng.integers(2, size=shape)
            venv.seed(0)
            venv.reset()
            times = []
            for _ in range(SIMULATOR_REPEATS):
                with Clock() as clock:
                    for row in actions:
                        venv.step(row)
                times.append(clock.cpu)
            found[f"{kind}_us"] = statistics.median(times) / (64 * steps) * 1e6
            venv.close()
        rows.append({"name": name, **found})
    return rows


EXACT: dict[str, Callable[[Any], ExactLeader]] = {
    "value, follower solved (default)": TabularPBRL,
    "value, joint softmax steps": lambda problem: TabularPBRL(problem, config=TabularPBRLConfig(follower=Softmax())),
    "Bellman, joint softmax steps (default)": lambda problem: TabularPBRL(problem, penalty=BellmanPenalty()),
}


def exact_speed(label: str, iterations: int, repeats: int) -> Data:
    """Row 3: milliseconds per exact iteration with 100 states and 5 x 5 actions, evaluations included."""
    problem, times = random_stackelberg(100, 5, 5), []
    EXACT[label](problem).learn(5)
    for _ in range(repeats):
        leader = EXACT[label](problem)
        with Clock() as clock:
            leader.learn(iterations)
        times.append({"cpu_ms": clock.cpu / iterations * 1e3, "wall_ms": clock.wall / iterations * 1e3})
    return {"label": label, "iterations": iterations, **medians(times)}


def run(quick: bool, jobs: int) -> Data:
    """Measure everything, one after another for any ``jobs``."""
    steps, repeats, iterations = (8_000, 2, 20) if quick else (STEPS, REPEATS, ITERATIONS)
    tasks = [(name, size) for size in SIZES for name in ALGORITHMS]
    return {
        "seeds": [0],
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "repeats": repeats,
        "exact": [exact_speed(label, iterations, repeats) for label in tqdm(EXACT, desc="exact iteration")],
        "vector_env": simulator_speed(),
        "wrapped": wrapped_speed(),
        "followers": [follower_speed(name, size, steps, repeats) for name, size in tqdm(tasks, desc="followers")],
    }
