"""Your own penalty in one file: a follower who is content with a nearly optimal return.

    p(x, y) = max( V*(rho) - V^{pi_y}(rho) - slack, 0 )

People often stop improving once they are near the optimum, and a leader may rely on it: a regret up to the slack has no penalty.
The policies that are learned and the returns in x's gradient are data (roles and terms); here they are the value penalty's.

    python penalty.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bilevel_gym.agents import TabularPBRL, TabularPBRLConfig, ValuePenalty
from bilevel_gym.agents.held_policies import Softmax
from bilevel_gym.agents.records import storable


@storable  # a file names it by its module, and takes it from there once that is imported
@dataclass(frozen=True, eq=False)
class ContentPenalty(ValuePenalty):
    """The value penalty beyond a slack.

    Attributes:
        slack: what the follower does not mind losing, in its return.
    """

    slack: float = 0.2

    solvable: ClassVar[bool] = False  # min_y F_lam is no MDP any more: y is moved by gradients

    def value(self, level: Any, model: Any, pi: tuple[Tensor, ...], best: tuple[Tensor, ...], tau: float) -> Tensor:
        return (self.shortfall(level, model, pi, best, tau) - self.slack).clamp_min(0.0)


def learned(slack: float, iterations: int = 120) -> TabularPBRL:
    """A leader of the game below that relies on this slack."""
    penalty = ContentPenalty(lam=20.0, slack=slack)
    config = TabularPBRLConfig(follower=Softmax(0.2), tau=0.01)
    return TabularPBRL(
        "bilevel_gym/StackelbergGame-v0", penalty=penalty, config=config, env_kwargs={"n_states": 10}
    ).learn(iterations)


if __name__ == "__main__":
    for slack in (0.0, 0.2, 0.5):
        record = learned(slack).evaluate_last()
        print(
            f"slack {slack}: {record.leader_return_at_pi_y:.3f} if the follower is that content, "
            f"{record.leader_return:.3f} at its best response; it loses {record.penalty:.3f}"
        )
