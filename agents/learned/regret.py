r"""How far a follower's policy falls short of its best response, as far as challengers find out.

For any policy pi' at hand,

    V_f*(x) - V_f(x, pi)  >=  V_f(x, pi') - V_f(x, pi)

so that a better policy refutes a best response, and says by how much at least. That no better policy was found proves nothing:
at small stakes several newly trained followers may agree and all be wrong.

Policies are compared in episodes with common random numbers, in two halves. On the first half the best challenger is chosen, on
the second it is measured: the largest of several noisy means is too large, its mean in other episodes is not. Every policy plays
greedily and with its exploration, and the better way counts. Returns are discounted sums over the episode, cut at the same step
for all policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from ...envs.mdp.checks import as_float64, check_count, check_number, check_size, require
from ...wrappers import set_leader
from ...wrappers.vec_env import leader_model
from ..estimators.rollouts import Rollout, collect, discounts
from ..followers.sb3 import SB3Follower
from ..followers.spec import AlgorithmSpec, Answering, FollowerSpec, at_fixed_x
from ..leader import Leader
from ..sources import is_game, makes_one
from .pool import episodes_of, far_corner
from .worlds import EnvSpec, Worlds

Floats = NDArray[np.float64]
Policy = dict[str, Any] | Callable[[Any], Any]
"""The weights of an :class:`SB3Follower` (``policy_state()``), or a function from observations ``[n, ...]`` to actions."""

KINDS = ("untrained", "earlier", "larger stakes", "fresh", "warm")
"""Kinds of challenger, in the order in which they are tried."""
FOUND = 2.0
"""Standard errors by which the regret found must exceed 0 to refute a best response."""


@dataclass(frozen=True)
class RegretFound:
    """What challengers found at one x. It refutes a best response, or it does not; it never proves one.

    Attributes:
        regret: the gain of the best challenger over the follower, at least 0: up to noise, a lower bound of
            ``V_f*(x) - V_f(x, pi)``.
        stderr: standard error of that gain.
        share: the regret found as a share of ``V_f(best known) - V_f(untrained)``; infinite where an untrained policy is the best
            known.
        share_stderr: its standard error.
        kind: kind of the challenger that gained most, chosen on other episodes than those that measured it.
        kinds: all kinds that were tried.
        follower_return: the follower's own return.
        untrained_return: the return of an untrained policy.
        steps: environment steps spent, in training and in episodes; for several x those of all together.
    """

    regret: float
    stderr: float
    share: float
    share_stderr: float
    kind: str
    kinds: tuple[str, ...]
    follower_return: float
    untrained_return: float
    steps: int

    @property
    def refuted(self) -> bool:
        """Whether the regret found exceeds 0 by two standard errors."""
        return self.regret > FOUND * self.stderr

    def __str__(self) -> str:
        if not self.refuted:
            return f"nothing better found by these: {', '.join(self.kinds)} (standard error {self.stderr:.3g})"
        found = f"{self.regret:.3g} +- {self.stderr:.2g}, {100.0 * self.share:.0f}% of what is known to be gained"
        return f"better by {found}: {self.kind}; tried: {', '.join(self.kinds)}"


class PairedEpisodes:
    """Episodes of several policies with common random numbers, in two halves.

    Args:
        actor: a follower of the policies' kind; it takes their weights and plays.
        venv: parallel environments at x, as many as there are episodes in each half.
        horizon: number of steps at which episodes are cut.
        gamma: the discount.
        seed: seed of the episodes.
        price: from a policy's episodes to the follower's returns at m points, ``[m, N]``. Default: None, what the episodes paid,
            ``[1, N]``.

    Attributes:
        kinds: kind of each policy by name, in the order in which they were added.
        steps: environment steps spent.
    """

    def __init__(
        self,
        actor: SB3Follower,
        venv: VecEnv,
        horizon: int,
        gamma: float,
        seed: int,
        price: Callable[[Rollout], Floats] | None = None,
    ) -> None:
        self.actor, self.venv, self.horizon, self.gamma, self.price = actor, venv, horizon, gamma, price
        self.seeds = [int(s) % 2**31 for s in np.random.SeedSequence(seed).generate_state(2)]
        self.policies: dict[str, Policy] = {}
        self.kinds: dict[str, str] = {}
        self.steps = 0
        self._played: dict[tuple[str, int, bool], Floats] = {}

    def add(self, name: str, kind: str, policy: Policy) -> None:
        """Add a policy and play the first half by it."""
        self.policies[name], self.kinds[name] = policy, kind
        for greedily in (True, False):
            self._returns(name, 0, greedily)

    def best(self, names: Sequence[str], i: int = 0) -> str:
        """Return which of several policies is the best in the first half, each in its better way, at the i-th point."""
        return max(names, key=lambda name: max(float(F.mean()) for F in self._both(name, 0, i)))

    def regret(self, follower: str, challengers: Sequence[str], untrained: str, i: int = 0) -> RegretFound:
        """Choose the best challenger in the first half and measure it in the second.

        Args:
            follower: name of the policy that is to be refuted.
            challengers: names of the policies that try to.
            untrained: name of an untrained policy, for the share.
            i: number of the point. Default: 0.
        """
        chosen = self.best(challengers, i)
        # The follower's better way is that of the second half, so that no regret comes from a wrong choice of the way.
        own = max(self._both(follower, 1, i), key=lambda F: float(F.mean()))
        theirs, idle = self._measured(chosen, i), self._measured(untrained, i)
        gain, root = theirs - own, np.sqrt(len(own))
        regret, stderr = max(float(gain.mean()), 0.0), float(gain.std(ddof=1) / root)
        span = max((own, theirs, idle), key=lambda F: float(F.mean())) - idle
        whole, share, share_stderr = float(span.mean()), 0.0, 0.0
        if whole > 0.0:  # the error of a ratio of two means
            share = regret / whole
            share_stderr = float((gain - share * span).std(ddof=1) / root / whole)
        elif regret > 0.0:
            share = np.inf
        kinds = tuple(dict.fromkeys(self.kinds[name] for name in challengers))
        kind, returned = self.kinds[chosen], (float(own.mean()), float(idle.mean()))
        return RegretFound(regret, stderr, share, share_stderr, kind, kinds, *returned, self.steps)

    def _both(self, name: str, half: int, i: int) -> list[Floats]:
        return [self._returns(name, half, greedily)[i] for greedily in (True, False)]

    def _measured(self, name: str, i: int) -> Floats:
        """Return a policy's returns in the second half, ``[N]``, in the way that was better in the first."""
        greedy, exploring = (float(F.mean()) for F in self._both(name, 0, i))
        returns: Floats = self._returns(name, 1, greedy >= exploring)[i]
        return returns

    @torch.no_grad()
    def _returns(self, name: str, half: int, greedily: bool) -> Floats:
        """Play a policy's episodes, unless they were played; return the follower's returns, ``[m, N]``."""
        policy, key = self.policies[name], (name, half, greedily)
        if not isinstance(policy, dict):  # a function plays in one way
            key = (name, half, True)
        if key in self._played:
            return self._played[key]
        actor, state = self.actor, self.actor.generators.state
        act: Callable[[Any], Any] = policy  # type: ignore[assignment]
        if isinstance(policy, dict):
            actor.take_policy(policy)
            act = actor.player(self.venv, greedily)
        with actor.generators.active():
            rollout = collect(self.venv, act, self.horizon, self.seeds[half])
        actor.generators.state = state  # the same random numbers for all
        self.steps += rollout.steps
        paid: Floats = (discounts(rollout, self.gamma) * rollout.r_follower).sum(0)[None]
        self._played[key] = paid if self.price is None else self.price(rollout)
        return self._played[key]


# --- challengers --------------------------------------------------------------------------------------------------------


def find_regret(
    env: EnvSpec,
    follower: SB3Follower | BaseAlgorithm | Leader | Callable[[Any], Any],
    x: ArrayLike,
    kinds: Sequence[str] | None = None,
    *,
    earlier: Sequence[SB3Follower | BaseAlgorithm] = (),
    challenger: FollowerSpec | None = None,
    fresh_steps: int = 80_000,
    warm_steps: int = 30_000,
    episodes: int = 256,
    n_envs: int = 32,
    tail: float = 0.01,
    seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
) -> RegretFound | tuple[RegretFound, ...]:
    """Look for a policy that serves the follower better at x than its own: a lower bound of its regret.

    Challengers are trained by the follower's algorithm, with its own network and the library's settings for a fixed x:

    ==================  ====================================================================================================
    ``untrained``       new weights
    ``earlier``         policies at hand: those of ``earlier``, and what else a leader holds
    ``larger stakes``   new weights, trained at the corner of X farthest from x; and the same trained on at x
    ``fresh``           new weights, trained at x
    ``warm``            the best policy at hand (the follower's own or one of the above), trained on with its exploration
                        restored; a function is first imitated, and its imitation competes too
    ==================  ====================================================================================================

    Where nothing is found, that is no proof: it says only that these found nothing better.

    Args:
        env: a leader environment: an id, an environment (it is copied), a callable that makes one, or a problem.
        follower: a trained follower: an SB3 model, an :class:`SB3Follower`, a leader (its best response; for ``ResponsePool`` the
            pool's best policy at x), or a function from observations ``[n, ...]`` to actions ``[n, ...]``.
        x: a point of X, ``[dim]``. Where x enters rewards only and the follower does not observe it also several, ``[m, dim]``:
            the same episodes give the returns at all of them.
        kinds: kinds of challenger, in any order. Default: None, all for which there are policies.
        earlier: further trained followers, of the same algorithm and network.
        challenger: an SB3 class or a callable ``VecEnv -> BaseAlgorithm`` with the follower's network, which trains the
            challengers instead. Default: None, as above; PPO where the follower is a function.
        fresh_steps: training steps of a challenger with new weights; SB3 rounds up to whole rollouts.
        warm_steps: training steps of a challenger that starts from a trained policy.
        episodes: number of episodes of each policy, at least 4; half of them choose the challenger, half measure it.
        n_envs: number of parallel environments in which a challenger is trained.
        tail: discount at which episodes are cut, in (0, 1), at the latest at the environment's time limit.
        seed: seed of all random numbers.
        env_kwargs: arguments of the environment, where ``env`` is an id.

    Returns:
        The regret found; for several points one for each.

    Raises:
        ValueError: no kinds or an unknown one, a kind for which there is no policy to start from, x outside X, several x where
            they need other episodes, too few episodes, a follower that is not trained, fits another environment or is not alone
            (a game).

    Example:
        >>> from stable_baselines3 import A2C
        >>> from bilevel_gym.agents import find_regret
        >>> model = A2C("MlpPolicy", gym.make("bilevel_gym/TwoState-v0"), gamma=0.9, seed=0)
        >>> found = find_regret("bilevel_gym/TwoState-v0", model, [0.5], ["fresh"], fresh_steps=4_000)
        >>> found.kinds
        ('fresh',)
    """
    asked = KINDS if kinds is None else tuple(kinds)
    require(not isinstance(kinds, str) and len(asked) > 0, "kinds", f"at least one of {list(KINDS)}", repr(kinds))
    unknown = [kind for kind in asked if kind not in KINDS]
    require(not unknown, "kinds", f"some of {list(KINDS)}", unknown)
    for name, number in (("fresh_steps", fresh_steps), ("warm_steps", warm_steps), ("n_envs", n_envs)):
        check_size(number, name)
    check_count(episodes, "episodes", 4)
    check_number(tail, "tail", low=0.0, high=1.0, open_low=True, open_high=True)
    seed = check_count(seed, "seed")
    game = is_game(env) or (makes_one(env) and is_game(env()))  # type: ignore[operator]
    require(not game, "env", "an environment with one follower, not a game of several players", repr(env))

    # What is to be refuted, and at which points.
    worlds, model = _world(env, env_kwargs, follower)
    given = as_float64(x, "x").detach()
    require(given.ndim != 2 or len(given) > 0, "x", "at least one point", "none")
    points = (
        worlds.leader_set.check_rows(given, len(given)) if given.ndim == 2 else worlds.leader_set.check(given)[None]
    )
    alike = len(points) == 1 or (not worlds.observe_commitment and worlds.only_rewards_move)
    one = "one point [dim]: several share their episodes only where x enters rewards alone and the follower does not see it"
    require(alike, "x", one, f"{len(points)} points")
    training, stage = worlds.make(n_envs), worlds.make(episodes // 2)
    set_leader(stage, points[0].numpy())
    try:
        if model is not None:
            spaces = f"a model on {training.observation_space} and {training.action_space}"
            seen = model.observation_space.shape == training.observation_space.shape
            fits = seen and model.action_space == training.action_space
            require(fits, "follower", spaces, f"one on {model.observation_space} and {model.action_space}")
        others = {f"earlier {k}": _weights(policy) for k, policy in enumerate(earlier)}
        like: Any = next((getattr(policy, "model", policy) for policy in earlier), None) if model is None else model
        spec, rng = _spec(follower, like, challenger, training), np.random.default_rng(seed)
        actor = SB3Follower(spec, training, worlds.gamma, int(rng.integers(2**31)), False, Answering())
        worlds.require_every_action(points[0], actor)
        held, accused = _held(follower, points)
        held |= others
        for name, policy in held.items():
            _require_network(actor, name, policy)
        lacks = (
            "other kinds, or earlier policies" if "earlier" in asked else "other kinds for a follower without weights"
        )
        starts = any(isinstance(policy, dict) for policy in held.values()) or _imitates(actor)
        has = {"earlier": len(held) > 1, "warm": starts or bool({"fresh", "larger stakes"} & set(asked))}
        lacking = [kind for kind in asked if not has.get(kind, True)]
        require(kinds is None or not lacking, "kinds", lacks, list(asked))
        asked = tuple(kind for kind in KINDS if kind in asked and kind not in lacking)
        price = None if len(points) == 1 else _repriced(worlds, points)
        seed = int(rng.integers(2**31))
        paired = PairedEpisodes(actor, stage, worlds.horizon(tail), worlds.gamma, seed, price)
        _challenge(paired, spec, training, worlds, points, held, asked, (fresh_steps, warm_steps), rng)

        # At each point all policies but the follower's own compete, however they came about.
        reports = []
        for i, own in enumerate(accused):
            rivals = [name for name, kind in paired.kinds.items() if kind in asked and name != own]
            reports.append(paired.regret(own, rivals, "untrained", i))
        reports = [replace(report, kinds=asked, steps=paired.steps) for report in reports]
        return tuple(reports) if given.ndim == 2 else reports[0]
    finally:
        training.close()
        stage.close()


def _challenge(
    paired: PairedEpisodes,
    spec: FollowerSpec,
    training: VecEnv,
    worlds: Worlds,
    points: Tensor,
    held: Mapping[str, Policy],
    asked: Sequence[str],
    steps: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """Add the policies at hand and train challengers of the kinds that are asked for, at each point."""
    fresh, warm = steps

    def train(x: Tensor, steps: int, start: Policy | None = None) -> Policy:
        set_leader(training, x.numpy())
        challenger = SB3Follower(spec, training, worlds.gamma, int(rng.integers(2**31)), False, Answering())
        if isinstance(start, dict):
            challenger.take_policy(start)
            challenger.explore_again()
        if steps:
            paired.steps += challenger.train_alone(steps)
        return challenger.policy_state()

    paired.add("untrained", "untrained", train(points[0], 0))
    for name, policy in held.items():
        paired.add(name, "earlier", policy)
    if "larger stakes" in asked:
        corners = [far_corner(worlds.leader_set, x) for x in points]
        for i, corner in enumerate(corners):
            first = next(k for k, other in enumerate(corners) if torch.equal(other, corner))
            if first == i:
                paired.add(f"corner {i}", "larger stakes", train(corner, fresh))
            paired.add(f"corner {i}, at x", "larger stakes", train(points[i], warm, paired.policies[f"corner {first}"]))
    if "fresh" in asked:
        for i, x in enumerate(points):
            paired.add(f"fresh {i}", "fresh", train(x, fresh))
    if "warm" in asked:
        for name, policy in held.items():
            if not isinstance(policy, dict) and _imitates(paired.actor):
                pupil = SB3Follower(spec, training, worlds.gamma, int(rng.integers(2**31)), False, Answering())
                set_leader(paired.venv, points[0].numpy())
                n = -(-IMITATION.episodes // paired.venv.num_envs)
                seeds = rng.integers(2**31, size=n).tolist()  # other episodes than those that compare policies
                rollouts = [collect(paired.venv, policy, paired.horizon, seed, seen=True) for seed in seeds]
                paired.steps += sum(rollout.steps for rollout in rollouts)
                paired.add(f"{name}, imitated", "warm", imitation(pupil, rollouts))
        known = [name for name, policy in paired.policies.items() if isinstance(policy, dict) and name != "untrained"]
        for i, x in enumerate(points):
            paired.add(f"warm {i}", "warm", train(x, warm, paired.policies[paired.best(known, i)]))


@dataclass(frozen=True)
class Imitation:
    """How a policy is fitted to another one's episodes.

    Attributes:
        episodes: number of episodes.
        epochs: passes over their steps.
        batch: steps in a minibatch.
        rate: Adam's learning rate.
    """

    episodes: int = 256
    epochs: int = 20
    batch: int = 512
    rate: float = 3e-3


IMITATION = Imitation()


def _imitates(follower: SB3Follower) -> bool:
    """Whether a follower's policy has a likelihood that can be fitted."""
    return isinstance(follower.model.policy, ActorCriticPolicy) and not (follower.recurrent or follower.takes_masks)


@torch.enable_grad()
def imitation(follower: SB3Follower, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Fit an actor and its critic to episodes of another policy, by likelihood and by squares; return the weights.

    Args:
        follower: an untrained follower with an actor-critic policy.
        rollouts: the episodes.
    """
    policy: Any = follower.model.policy
    gamma = float(follower.model.gamma)  # type: ignore[attr-defined]
    columns: list[list[NDArray[Any]]] = [[], [], []]
    for rollout in rollouts:
        # The return to go of each step, from the last one on.
        to_go, later = np.zeros_like(rollout.r_follower), np.zeros(rollout.r_follower.shape[1])
        for t in range(len(to_go) - 1, -1, -1):
            to_go[t] = later = rollout.r_follower[t] + gamma * later * rollout.alive[min(t + 1, len(to_go) - 1)]
        live = rollout.flat("alive") > 0.0
        for column, steps in zip(
            columns, (rollout.flat("obs"), rollout.flat("action"), to_go.reshape(-1)), strict=True
        ):
            column.append(steps[live])
    seen, played, earned = (np.concatenate(column) for column in columns)
    obs, _ = policy.obs_to_tensor(follower._seen(seen))
    actions, values = torch.as_tensor(played), torch.as_tensor(earned, dtype=torch.float32)
    scale = values.var().clamp_min(1e-12)
    optimiser = torch.optim.Adam(policy.parameters(), lr=IMITATION.rate)
    with follower.generators.active():
        for _ in range(IMITATION.epochs):
            for rows in torch.randperm(len(actions)).split(IMITATION.batch):
                V, log_p, _ = policy.evaluate_actions(obs[rows], actions[rows])
                loss = 0.5 * (V.flatten() - values[rows]).square().mean() / scale - log_p.mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return follower.policy_state()


def _world(env: EnvSpec, env_kwargs: dict[str, Any] | None, follower: Any) -> tuple[Worlds, BaseAlgorithm | None]:
    """Return the environment as the follower sees it, and the follower's model; None where it is a pool or a function."""
    model: BaseAlgorithm | None = follower if isinstance(follower, BaseAlgorithm) else None
    if isinstance(follower, Leader):
        holds = isinstance(getattr(follower.method, "worlds", None), Worlds)
        own = getattr(follower, "follower", None) if holds else None
        pool = holds and hasattr(follower, "responses")
        expected = "a leader that holds one trained follower (PBRL) or a pool of them (ResponsePool)"
        require(isinstance(own, SB3Follower) or pool, "follower", expected, type(follower).__name__)
        require(not pool or bool(follower.responses), "follower", "a leader that has learned", "one without policies")
        follower = own
    if isinstance(follower, SB3Follower):
        model = follower.model
    trained = model is not None or (callable(follower) and not isinstance(follower, type)) or follower is None
    expected = "a trained SB3 model, an SB3Follower, a leader, or a function from observations to actions"
    require(trained, "follower", expected, repr(follower))
    worlds = Worlds(env, env_kwargs, observe_commitment=False)
    base = worlds.base_space
    vector = isinstance(base, gym.spaces.Discrete) or len(base.shape or ()) == 1
    if model is not None and vector and model.observation_space.shape != base.shape:
        worlds = Worlds(env, env_kwargs, observe_commitment=True)
    return worlds, model


def _spec(follower: Any, model: BaseAlgorithm | None, challenger: FollowerSpec | None, venv: VecEnv) -> FollowerSpec:
    """Return what challengers are made of: a model's algorithm and network, with the settings for a fixed x."""
    if challenger is not None:
        return at_fixed_x(challenger, venv)
    if model is None or isinstance(getattr(follower, "responses", None), Sequence):
        return at_fixed_x(follower.method.follower_spec if isinstance(follower, Leader) else PPO, venv)
    held: Any = model
    own = {"policy": held.policy_class, "policy_kwargs": held.policy_kwargs}
    own |= {"use_sde": True} if getattr(held, "use_sde", False) else {}
    spec = at_fixed_x(AlgorithmSpec(type(model), own), venv)
    scaling = model.get_vec_normalize_env()
    if scaling is None:
        return spec
    assert isinstance(spec, AlgorithmSpec)
    options = {name: getattr(scaling, name) for name in ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma")}
    settings = spec.settings | {"gamma": held.gamma, "device": "cpu"}
    return lambda venv: type(model)(env=VecNormalize(venv, **options), **settings)


def _held(follower: Any, points: Tensor) -> tuple[dict[str, Policy], list[str]]:
    """Return the policies at hand by name, and the name of the follower's own at each point."""
    if not isinstance(follower, Leader):
        function = not isinstance(follower, (SB3Follower, BaseAlgorithm))
        return {"follower": follower if function else _weights(follower)}, ["follower"] * len(points)
    state: Any = follower.state
    if hasattr(follower, "responses"):
        names = [f"{response.kind} policy {k}" for k, response in enumerate(state.responses)]
        best = follower.method.pool(state).believe(points).best.tolist()
        policies = {name: response.weights for name, response in zip(names, state.responses, strict=True)}
        return policies, [names[k] for k in best]
    policies = {role: _weights(own) for role, own in state.followers.items()}
    policies |= {"best of the last record": state.earlier} if state.earlier else {}
    return policies, [next(iter(policies))] * len(points)


def _weights(follower: SB3Follower | BaseAlgorithm) -> dict[str, Any]:
    """Return the weights of a follower and the moments that scale its observations, as ``policy_state()`` does."""
    named = isinstance(follower, (SB3Follower, BaseAlgorithm))
    require(named, "earlier", "trained SB3 models and SB3Followers", repr(follower))
    policy, model = (
        (follower.policy, follower.model) if isinstance(follower, SB3Follower) else (follower.policy, follower)
    )
    weights = {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}
    scaling, moments = model.get_vec_normalize_env(), []
    if scaling is not None:  # also where their training has ended
        several: list[Any] = [*([scaling.obs_rms] if scaling.norm_obs else []), scaling.ret_rms]
        moments = [(torch.tensor(s.mean), torch.tensor(s.var), float(s.count)) for s in several]
    return {"weights": weights, "moments": moments}


def _require_network(actor: SB3Follower, name: str, policy: Policy) -> None:
    """Raise ``ValueError`` where a policy's weights do not fit the challengers' network."""
    if isinstance(policy, dict):
        try:
            actor.take_policy(policy)
        except (RuntimeError, ValueError) as error:
            what, reason = type(actor.model).__name__, str(error).splitlines()[0]
            raise ValueError(f"{name}: expected weights of the challengers' {what}, got others ({reason})") from error


def _repriced(worlds: Worlds, points: Tensor) -> Callable[[Rollout], Floats]:
    """Return the function from a policy's episodes to its follower returns at all points, ``[m, N]``."""
    model = leader_model(worlds.env, worlds.start_x().numpy())

    def price(rollout: Rollout) -> Floats:
        episodes = episodes_of(worlds, rollout, np.random.default_rng(0))
        returns: Floats = episodes.returns(points, model)[0].numpy()
        return returns

    return price
