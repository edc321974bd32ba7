"""Your own environment in one file: a fishery with a tax that depends on the size of the stock.

Stock s in 0..39, effort e in 0..5, catch h = 0.06 e s; the remaining stock grows logistically, with noise. The leader sets a
tax on effort in each of three zones of the stock. It wants fish in the sea and catches, and little tax:

    follower   h - 0.15 e - x_zone e          leader   0.1 s + 0.2 h - 0.3 x_zone e

You only write a tabular problem: the library provides simulators, exact solutions, pictures and every leader.

    python environment.py
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.envs.mdp import LeaderSet, TabularMDP, TabularProblem
from bilevel_gym.envs.tabular import TabularEnv

STOCKS, EFFORTS, ZONES = 40, 6, 3


class FisheryProblem(TabularProblem):
    """The taxes x of three zones, each in [0, 1], together at most 2."""

    def __init__(self, tau: float = 0.0) -> None:
        self.tau = tau
        self.leader_set = LeaderSet(torch.zeros(ZONES), torch.ones(ZONES), budget=2.0)
        s, e = (torch.as_tensor(grid, dtype=torch.float64) for grid in np.mgrid[0:STOCKS, 0:EFFORTS])
        self.catch, self.effort, self.stock = 0.06 * e * s, e, s
        self.zone = torch.clamp(s // 14, max=ZONES - 1).long()
        # What is left and what grows, shared between the two nearest stocks; then a step down, none, or up.
        m = (s + 0.35 * s * (1.0 - s / (STOCKS - 1)) - self.catch).clamp(0.0, STOCKS - 1.0)
        floor = m.floor().clamp(max=STOCKS - 2.0)
        P = torch.zeros(STOCKS, EFFORTS, STOCKS, dtype=torch.float64)
        for near, share in ((floor, 1.0 - (m - floor)), (floor + 1.0, m - floor)):
            for step, chance in ((-1, 0.25), (0, 0.5), (1, 0.25)):
                to = (near + step).clamp(0, STOCKS - 1).long().unsqueeze(-1)
                P.scatter_add_(-1, to, (chance * share).unsqueeze(-1))
        rho = torch.zeros(STOCKS, dtype=torch.float64)
        rho[STOCKS // 2 :] = 2.0 / STOCKS
        self.base = TabularMDP(P, torch.zeros_like(self.catch), rho, gamma=0.95)

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        return self.base.with_reward(self.catch - 0.15 * self.effort - x[self.zone] * self.effort)

    def leader_reward(self, x: Tensor) -> Tensor:
        return 0.1 * self.stock + 0.2 * self.catch - 0.3 * x[self.zone] * self.effort


class FisheryEnv(TabularEnv):
    """The fishery as a Gymnasium environment for the fisher."""

    def __init__(self, tau: float = 0.0, render_mode: str | None = None) -> None:
        super().__init__(FisheryProblem(tau), render_mode)


gym.register("extending/Fishery-v0", FisheryEnv, max_episode_steps=100)  # type: ignore[arg-type]

if __name__ == "__main__":
    from bilevel_gym.agents import Hypergradient

    leader = Hypergradient("extending/Fishery-v0")
    before = leader.evaluate().leader_return
    after = leader.learn(60).evaluate().leader_return
    print(f"leader's return at the best response: {before:.2f} before, {after:.2f} after; taxes {leader.x.round(2)}")
    env = gym.make("extending/Fishery-v0")
    env.get_wrapper_attr("set_leader")(leader.x)
    obs, _ = env.reset(seed=0)
    step = env.step(np.int64(3))
    print(f"a step: the fisher earns {step[1]:.2f}, the leader {step[4]['leader_reward']:.2f}")
