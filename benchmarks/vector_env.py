"""Speed of the native simulator on the Stackelberg game of 100 states, infos included, against SyncVectorEnv.

Run ``OMP_NUM_THREADS=1 python benchmarks/vector_env.py``.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import gymnasium as gym
import numpy as np

import bilevel_gym

assert bilevel_gym.__version__  # importing it registers the environments

ENV_ID = "bilevel_gym/StackelbergGame-v0"
SIZES = (64, 4096)
REPEATS = 9


def microseconds_per_step(env: gym.vector.VectorEnv[Any, Any, Any], steps: int, repeats: int) -> float:
    """Microseconds an environment step, a copy counted once: the median over ``repeats`` of runs of ``steps``."""
    rng = np.random.default_rng(0)
    actions = rng.integers(env.single_action_space.n, size=(steps, env.num_envs))  # type: ignore[attr-defined]
    env.reset(seed=0)
    env.step(actions[0])
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for row in actions:
            env.step(row)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / (steps * env.num_envs) * 1e6


def run() -> dict[str, float]:
    """Measure; the keys are ``native_<n>_us`` and ``ratio_<n>`` for n copies, ``sync_us`` and ``set_leader_us``.

    SyncVectorEnv is measured at 64 copies: each copy holds its own game, and its time a copy hardly depends on their
    number.
    """
    results: dict[str, float] = {}
    sync = gym.make_vec(ENV_ID, num_envs=64, vectorization_mode="sync")
    results["sync_us"] = microseconds_per_step(sync, steps=100, repeats=REPEATS)
    sync.close()
    for n in SIZES:
        native = gym.make_vec(ENV_ID, num_envs=n)
        results[f"native_{n}_us"] = microseconds_per_step(native, steps=300, repeats=REPEATS)
        results[f"ratio_{n}"] = results["sync_us"] / results[f"native_{n}_us"]
    env = gym.make(ENV_ID).unwrapped
    x = np.linspace(-1.0, 1.0, env.leader_space.shape[0])  # type: ignore[attr-defined]
    times = []
    for _ in range(200):
        start = time.perf_counter()
        env.set_leader(x)  # type: ignore[attr-defined]
        times.append(time.perf_counter() - start)
    results["set_leader_us"] = statistics.median(times) * 1e6
    return results


def main() -> None:
    """Print a table."""
    results = run()
    print(f"{'copies':>8}{'native, us a step':>20}{'SyncVectorEnv':>16}{'ratio':>8}")
    for n in SIZES:
        print(f"{n:>8}{results[f'native_{n}_us']:>20.4f}{results['sync_us']:>16.2f}{results[f'ratio_{n}']:>8.0f}")
    print(f"set_leader: {results['set_leader_us']:.0f} us")


if __name__ == "__main__":
    main()
