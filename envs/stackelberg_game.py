"""Stackelberg Markov game with random rewards and transitions."""

from __future__ import annotations

from .core import FromArguments
from .mdp import random_stackelberg
from .tabular import TabularEnv


class StackelbergGameEnv(FromArguments, TabularEnv, problem=random_stackelberg):
    """A leader commits to a policy in a random Markov game, and the follower learns a best response to it.

    ## Description
    In each state the leader draws an action ``a_l`` from its policy ``pi_x(.|s)``, the follower chooses ``a_f``, both receive
    their rewards, and the next state is drawn from ``P(s'|s, a_l, a_f)``. The follower does not see ``a_l`` before it acts:
    it faces the MDP averaged over the leader's policy. Rewards are drawn once, uniformly from [0, 1], and those below
    ``sparsity`` are set to 0; transition probabilities are uniform numbers, normalised, over all
    states or, with ``branching``, over a few random ones.

    ## Action Space
    ``Discrete(n_follower_actions)``: the follower's action.

    ## Observation Space
    ``Discrete(n_states)``: the state.

    ## Leader Space
    ``Box(-10, 10, (n_states * n_leader_actions,), float64)``: the logits of ``pi_x``, ``[S, A_l]`` flattened; 0 is
    the uniform policy. ``info["leader_draw"]`` is ``a_l``; ``commitment(s)`` is ``pi_x(.|s)``.

    ## Rewards
    The follower's ``r_f(s, a_l, a_f)``; the leader's ``r_l(s, a_l, a_f)``, undiscounted, in ``info["leader_reward"]``.

    ## Starting State
    Uniform over the states.

    ## Episode End
    It does not terminate; the registered environment truncates after 100 steps (``max_episode_steps``).

    ## Arguments
    - ``n_states``, ``n_leader_actions``, ``n_follower_actions``: sizes (100, 5, 5).
    - ``gamma``: discount of both players, in [0, 1) (0.9).
    - ``tau``: default temperature of the follower (0.001).
    - ``sparsity``: rewards below it become 0 (0.7).
    - ``seed``: seed of the game's rewards and transitions, not of the episodes (0); None draws a random game.
    - ``reward_unit``: the unit of rewards; default temperatures, also that of evaluation, are multiples of it (None: it is
      measured, about 1).
    - ``branching``: number of random states that can follow a state and pair of actions (None: all). With all of them each row
      of transition probabilities is nearly uniform over many states, and a follower loses little that takes them as equal.
    - ``render_mode``: None, ``"ansi"`` or ``"rgb_array"``.

    The sizes, ``sparsity`` and ``tau`` are our defaults; the published experiment may use others.

    ## Version History
    - v0: first version.

    ## References
    Shen, Yang and Chen, Principled Penalty-based Methods for Bilevel Reinforcement Learning and RLHF, arXiv 2402.06886.
    """


vector_env = StackelbergGameEnv.vector
