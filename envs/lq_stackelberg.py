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

    The follower is paid to hold q at 0, the leader wants p held at 0; the leader's input reaches q alone. It commits to
    ``u_l ~ N(-K s, sigma^2)``. A leader who does not reckon with the follower does nothing (K = 0); one who does lets p show in
    q, so that the follower, holding q, holds p too. For a given K the follower's best answer is ``u_f = -F s`` by a Riccati
    equation: ``problem.best_response(x)``; ``problem.optimum()`` is the leader's best K. Games of other matrices:
    ``LinearQuadraticEnv(problem)``.

    ## Action Space
    ``Box(-1, 1, (1,), float32)``: ``u_f = problem.action_bound * a``; what lies beyond is clipped. The best response leaves the
    bounds with probability under 1e-6 a step (``problem.saturation_probability(x)``).

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
