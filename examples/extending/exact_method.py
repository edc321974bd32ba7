"""Your own method in one file: conditional gradient (Frank and Wolfe 1956) on F(x) = J_L(x, pi*_tau(x)).

    x <- x + 2/(k+2) ( corner - x ),      corner = argmax_{z in X} <grad F(x), z>

It needs no step size and no projection: every x is a convex combination of corners of the box X.

    python exact_method.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bilevel_gym.agents.exact import ExactLeader, ExactMethod, ExactState
from bilevel_gym.agents.leader import Progress
from bilevel_gym.agents.leaders.hypergradient import hypergradient
from bilevel_gym.agents.schedules import Schedule


@dataclass
class ConditionalGradientState(ExactState):
    """x and the number of corners in it; files store both, so that a loaded leader continues to the bit."""

    corners: int = 0


class ConditionalGradientMethod(ExactMethod):
    """One iteration; the leader provides the loop, files, logging and the best x."""

    state_class = ConditionalGradientState
    positive_tau = True

    def default_tau(self) -> Schedule:
        return self.annealed(0.2)

    def descend(self, state: Any, progress: Progress) -> dict[str, float]:
        _, gradient, _ = hypergradient(self.problem, state.x, state.tau)
        corner = torch.where(gradient > 0.0, self.leader_set.high, self.leader_set.low)
        # The duality gap: what a step to the corner would gain, to first order; 0 at a stationary point.
        gap = float(gradient @ (corner - state.x.detach()))
        with torch.no_grad():
            state.x.add_(corner - state.x, alpha=2.0 / (state.corners + 2.0))
        state.corners += 1
        return {"duality_gap": gap}


class ConditionalGradient(ExactLeader):
    """Conditional gradient on F, with the arguments of every exact leader: problem, config, seed, env_kwargs, x0."""

    method_class = ConditionalGradientMethod


if __name__ == "__main__":
    leader = ConditionalGradient("bilevel_gym/TwoState-v0")
    before = leader.evaluate().leader_return
    leader.learn(50)
    print(f"leader's return at the best response: {before:.3f} before, {leader.evaluate().leader_return:.3f} after")
    again = ConditionalGradient.load(leader.save("conditional_gradient.zip"))
    print(f"loaded: x = {again.x}, {again.corners} corners")
