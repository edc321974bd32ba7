r"""PBRL with the Bellman penalty, sampled, for followers with a Q-network over discrete actions.

States are weighted by the occupancy ``d_y(s) = sum_t gamma^t Pr(s_t = s)`` of pi_y, which its episodes draw, and not by a
fixed mu:

    p(x,y) = tau sum_s d_y(s) KL( pi_y(.|s) || pi*_x(.|s) ),      pi*_x = softmax(Q*_x / tau),  tau > 0

**Identity.** With ``V* = tau log sum_a exp(Q*/tau)`` the term of a state is ``V* - <pi_y,Q*> + tau h(pi_y)``. Along an episode
of pi_y these telescope, by ``Q* = r_x + gamma E V*``:

    p(x,y) = V_tau*(rho) - V_tau^{pi_y}(rho)

Weighted by the occupancy, the Bellman penalty *is* the value penalty of the regularised problem. So its gradient in x is
Lemma 6's, also where x moves the dynamics and with them d_y:

    grad_x p = grad_x V_tau^{pi}(rho) |_{pi = pi*}  -  grad_x V_tau^{pi_y}(rho)

Where x enters the reward alone, that is ``E_{s~d_y}[ E_{a~pi*} grad_x Q*(s,a) - E_{a~pi_y} grad_x Q*(s,a) ]``, and remains so
whatever policy stands for pi*.

**What differs** from PBRL with a value penalty is how pi_y is found. min_y F_lam is reinforcement learning on the leader's
reward, kept near pi* by a relative entropy (:mod:`..followers.soft_q`): pi_y is never paid r_f, so that it shares the best
response's errors and adds none of that kind, and tends to pihat as lam grows. In that limit ``lam grad_x p`` is the second term
of HPGD (:mod:`.hpgd`), negated.

tau is ``PBRLConfig.q_temperature``: the followers' problem is regularised at its current value, and so are the watch over the
oracle and, where a model is known, the records' gap. SAC and TQC are not taken: over continuous actions the normaliser of pi_y
is an integral, and their actors are no softmax of Q.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ...envs.mdp import solve_soft, suboptimality
from ...envs.mdp.checks import require
from ...envs.mdp.problem import EVALUATION_TAU
from ...wrappers import RewardMixing
from ..common.evaluation import Evaluation, leader_return_at_best_response
from ..common.soft_gradients import SoftModelGradient, SoftRolloutGradient, lived_mdp
from ..followers.sb3 import SB3Follower
from ..followers.soft_q import SoftQFollower
from ..followers.spec import Answering
from ..penalties import BellmanPenalty, WeightedPenalty
from ..schedules import as_schedule
from .pbrl import PBRL


class BellmanPBRL(PBRL):
    """The penalty method with the sampled Bellman penalty; see :class:`PBRL`, which makes it, for the arguments.

    Raises:
        ValueError: as :class:`PBRL`; a penalty with weights mu; a follower without a Q-network over discrete actions.
    """

    best_response: SoftQFollower
    penalised: SoftQFollower
    _estimators = (SoftRolloutGradient, SoftModelGradient)

    def _checked(self, penalty: WeightedPenalty | None) -> WeightedPenalty:
        assert isinstance(penalty, BellmanPenalty)
        expected = "None over learned followers: states are weighted as pi_y visits them"
        require(penalty.mu is None, "mu", expected, penalty.mu)
        return penalty

    def _make_followers(self, seeds: list[int]) -> None:
        require(
            not self.config.side_by_side,
            "side_by_side",
            "False: the penalised follower waits for the best response",
            self.config.side_by_side,
        )
        x, problem = self._x.detach(), self.worlds.problem
        self.worlds.require_sampled_return(x)
        last = as_schedule(self.config.q_temperature, "q_temperature", positive=True)(0.0)
        if problem is not None and problem.tau > EVALUATION_TAU and last != problem.tau:
            warnings.warn(
                f"the environment's follower is regularised at tau={problem.tau:g}, the leader return of the records too, "
                f"PBRL's followers end at PBRLConfig.q_temperature={last:g}",
                stacklevel=4,
            )
        self._prior: SoftQFollower | None = None
        best = self._new_follower(seeds[0] % 2**31, leader_weight=0.0)
        assert isinstance(best, SoftQFollower)
        self.best_response = self._prior = best
        penalised = self._new_follower(seeds[1] % 2**31, leader_weight=1.0, own_weight=0.0)
        assert isinstance(penalised, SoftQFollower)
        self.penalised = penalised
        self._tell_lam()
        self.worlds.require_every_action(x, self.best_response)
        self.gradient = self._estimator()

    def _built(self, venv: RewardMixing, seed: int, answering: Answering) -> SB3Follower:
        w, prior = self.worlds, self._prior if venv.own_weight == 0.0 else None
        return SoftQFollower(self.follower_spec, venv, w.gamma, seed, w.linear, answering, prior)

    def _tell_lam(self) -> None:
        self.penalised.lam = self.lam

    @torch.no_grad()
    def _evaluate_exactly(self, x: Tensor) -> Evaluation:
        problem, tau = self.worlds.problem, self.best_response.temperature
        assert problem is not None
        mdp = lived_mdp(problem, x)
        pi_y = self.worlds.policy(self.penalised, x).reshape(mdp.r.shape)
        gap = float(problem.over_contexts(suboptimality(mdp, pi_y, tau, solve_soft(mdp, tau))))
        at_pi_y = float(problem.leader_return(x, pi_y))
        return self._evaluation(leader_return_at_best_response(problem, x), 0.0, at_pi_y, gap, gap)

    def _evaluation(self, best: float, stderr: float, at_pi_y: float, gap: float, penalty: float | None) -> Evaluation:
        record = super()._evaluation(best, stderr, at_pi_y, gap, penalty)
        return replace(record, tau=self.best_response.temperature)
