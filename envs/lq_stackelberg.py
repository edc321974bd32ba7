"""Linear-quadratic Stackelberg game: the leader's cost depends on a quantity that only the follower can move."""

from __future__ import annotations

from .core import FromArguments
from .linear_quadratic import LinearQuadraticEnv
from .mdp.linear_quadratic import steering_game


class LQStackelbergEnv(FromArguments, LinearQuadraticEnv, problem=steering_game):
    """A leader commits to a linear feedback policy, and a follower with quadratic costs responds; all spaces are continuous.

    ## Description
    The state is (p, q), w is Gaussian noise:

        p' = 0.8 p             + 0.5 u_f + w_p
        q' = 0.7 q + 0.5 u_l   + 0.5 u_f + w_q

    The follower's cost keeps q near 0; the leader wants p near 0, but its input affects q only. It commits to
    ``u_l ~ N(-K s, sigma^2)``. A leader without foresight does nothing (K = 0). A leader with foresight makes q depend on p, so
    that the follower also controls p when it controls q. For a given K the best response is ``u_f = -F s``, from a Riccati
    equation (``problem.best_response(x)``); ``problem.optimum()`` is the leader's best K. For games with other matrices, use
    ``LinearQuadraticEnv(problem)``.

    ## Action Space
    ``Box(-1, 1, (1,), float32)``: ``u_f = problem.action_bound * a``, where a is clipped to [-1, 1]. The best response exceeds
    the bounds with probability below 1e-6 per step (``problem.saturation_probability(x)``).

    ## Observation Space
    ``Box(-inf, inf, (2,), float64)``: (p, q).

    ## Leader Space
    ``Box([-1.5, 0], [0, 1.5], (2,), float64)``: K. ``info["leader_draw"]`` is u_l, ``[1]``; ``commitment(s)`` is K.

    ## Rewards
    The follower's ``-(q^2 + follower_effort u_f^2)``; the leader's ``-(p^2 + leader_effort u_l^2)``, undiscounted, in
    ``info["leader_reward"]``.

    ## Starting State
    p and q are normal with mean 0 and standard deviation 0.5.

    ## Episode End
    It does not terminate; the registered environment truncates after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``gamma``: discount of both players, in [0, 1) (0.9).
    - ``leader_effort``, ``follower_effort``: weights of the inputs in the costs, positive (0.2, 0.5).
    - ``sigma``: standard deviation of the leader's input around -K s, positive (0.3).
    - ``noise``: standard deviation of w, positive (0.3).
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``: path of the state, K as a heat map, the follower's inputs.

    ## Version History
    - v0: first version.

    ## References
    The mathematics is in ``bilevel_gym.envs.mdp.linear_quadratic``; the instance is this library's own.
    """


vector_env = LQStackelbergEnv.vector
