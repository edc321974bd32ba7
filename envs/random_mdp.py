r"""Random MDP with a leader's objective that is not a return, and whose minimum is known.

Source: Yang, Gao and Yuan, *Bilevel Reinforcement Learning via the Development of Hyper-gradient without Lower-Level
Convexity*, arXiv 2405.19697 (AISTATS 2025). x in R^d is coupled to the follower's reward through one quadratic form,

    r_x(s,a) = c(s,a) x^T M x,      c(s,a) = u_{sa} u'_{sa} with u, u' uniform on [0,1],      M standard normal

and the leader minimises

    f(x, pi) = |x|^2 / 2 + |pi|^2 / 2,      |pi|^2 = sum_{s,a} pi(a|s)^2

Each (s,a) leads to a random set of 1 to S-1 states (its size uniform), with uniform weights, normalised. The source
states no start distribution, and f depends on none; rho is uniform here.

**Optimum.** |pi|^2 >= S/A with equality at the uniform policy, and at x = 0 all rewards are 0, so the follower is
uniform: x = 0 minimises f, ``f = S / (2A)``, at every temperature.

**Rate.** The soft-optimal policy depends on x through ``q = x^T M x`` alone and f's second part is smallest at q = 0, so the
Hessian of ``F(x) = f(x, pi*(x))`` at 0 is the identity: gradient descent with step alpha ends at the linear rate |1 - alpha|.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .core import FromArguments
from .mdp import LeaderSet, Optimum, TabularMDP, TabularProblem
from .mdp.checks import check_gamma, check_seed, check_size, check_tau
from .tabular import TabularEnv

BOUND = 100.0
"""X is the box [-100, 100]^d where the source has all of R^d. It never binds: a method that does not raise f above its start
stays within ``|x|^2 <= |x_0|^2 + S``, and a coordinate of 100 would need ``|x_0|^2 + S >= 10^4``."""


class RandomMDPProblem(TabularProblem):
    """The random MDP problem (see the module).

    Args:
        n_states: number of states S.
        n_actions: number of actions A.
        dim: number of coordinates d of x.
        gamma: discount factor, in [0, 1).
        tau: default temperature.
        seed: seed of the problem and of the initial x; None draws a random problem.

    Attributes:
        c: coefficients of the rewards, ``[S, A]``.
        M: the quadratic form, ``[d, d]``, not symmetric.
        leader_set: X; see ``BOUND``.

    Raises:
        ValueError: a size is below 1, gamma lies outside [0, 1), or tau is negative.
    """

    batched_kernel: ClassVar[bool] = True

    def __init__(
        self,
        n_states: int = 10,
        n_actions: int = 5,
        dim: int = 100,
        gamma: float = 0.5,
        tau: float = 1.0,
        seed: int | None = 0,
    ) -> None:
        S, A, d = check_size(n_states, "n_states"), check_size(n_actions, "n_actions"), check_size(dim, "dim")
        self.gamma, self.tau = check_gamma(gamma, endless=True), check_tau(tau)
        check_seed(seed)
        rng = np.random.default_rng(seed)
        P = np.zeros((S * A, S))
        for row in P:
            reached = rng.choice(S, size=rng.integers(1, max(S, 2)), replace=False)
            weights = 1.0 - rng.uniform(size=len(reached))  # in (0, 1]
            row[reached] = weights / weights.sum()
        self._P = torch.from_numpy(P).view(S, A, S)
        self._rho = torch.full((S,), 1.0 / S, dtype=torch.float64)
        self.c = torch.from_numpy(rng.uniform(size=(2, S, A)).prod(0))
        self.M = torch.from_numpy(rng.standard_normal((d, d)))
        self._start = torch.from_numpy(rng.standard_normal(d))
        self.leader_set = LeaderSet.box(d, -BOUND, BOUND)

    def start_x(self) -> Tensor:
        """Return the initial x, ``[d]``, which was drawn from a standard normal once."""
        return self._start.clone()

    def follower_mdp(self, x: Tensor) -> TabularMDP:
        """Return M(x) for x ``[..., d]``."""
        q = ((x @ self.M) * x).sum(-1)
        return TabularMDP(self._P, q[..., None, None] * self.c, self._rho, self.gamma, validate=False)

    def leader_reward(self, x: Tensor) -> None:
        """Return None, because f is not a discounted return."""
        return None

    def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
        """Return the leader's return -f(x, pi), a scalar, for x ``[d]`` and pi ``[S, A]``."""
        return -0.5 * (x.square().sum() + pi.square().sum())

    def optimum(self, tau: float | None = None) -> Optimum:
        """Return the optimum, which is x = 0 and the uniform policy at any temperature."""
        check_tau(self.tau if tau is None else tau)
        pi = torch.full_like(self.c, 1.0 / self.c.shape[1])
        return Optimum(torch.zeros_like(self._start), pi, -0.5 * self.c.shape[0] / self.c.shape[1])


class RandomMDPEnv(FromArguments, TabularEnv, problem=RandomMDPProblem):
    """A random MDP whose rewards are scaled by a quadratic form of x; the leader wants a small x and a near-uniform policy.

    ## Description
    In state ``s`` the follower takes action ``a``, earns ``c(s,a) x^T M x`` and moves to one of a random set of states.
    The leader minimises ``|x|^2/2 + |pi|^2/2``, which is not a return: it depends on the policy itself, not on episodes.
    ``problem.optimum()`` is x = 0, where the follower is uniform.

    ## Action Space
    ``Discrete(n_actions)``.

    ## Observation Space
    ``Discrete(n_states)``: the state.

    ## Leader Space
    ``Box(-100, 100, (dim,), float64)``. The source leaves x free; these bounds never bind (see the module). The start is
    a standard normal draw. ``commitment(s)`` is x, ``info["leader_draw"]`` 0.

    ## Rewards
    The follower's: ``c(s,a) x^T M x``. The leader has none: ``info["leader_reward"]`` is 0.

    ## Starting State
    Uniform over the states.

    ## Episode End
    It does not terminate; the registered environment truncates after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``n_states``, ``n_actions``: sizes (10, 5).
    - ``dim``: size of x (100).
    - ``gamma``: discount, in [0, 1) (0.5).
    - ``tau``: default temperature of the follower (1.0).
    - ``seed``: seed of the problem and of the initial x, not of the episodes (0); None draws a random problem.
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``.

    ## Version History
    - v0: first version.

    ## References
    Yang, Gao and Yuan, Bilevel Reinforcement Learning via the Development of Hyper-gradient without Lower-Level
    Convexity, arXiv 2405.19697.
    """


vector_env = RandomMDPEnv.vector
