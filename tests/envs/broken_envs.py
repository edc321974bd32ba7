"""Leader environments, each broken in one place, and what the check says of it."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch

from bilevel_gym.envs.mdp import LeaderSet
from bilevel_gym.envs.tabular import TabularVectorEnv
from bilevel_gym.envs.two_state import TwoStateEnv
from tests.envs.leader_envs import Lottery, LotteryModel, Toll, TollModel, Wind, WindModel


class Deaf(Toll):
    def set_leader(self, x: Any) -> None: ...


class Constant(Toll):
    """x is kept and told, and nothing depends on it."""

    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            paid = 0.5 * action.double() + 0.0 * self.x[0]
            return -paid, paid, 0.0 * paid

    def step(self, action: Any) -> Any:
        paid = 0.5 * float(action)
        return (*super().step(action)[:1], -paid, False, False, {"leader_reward": paid, "leader_draw": 0})


class OnlyTheLeader(Constant):
    """x is what the leader alone is paid by."""

    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            return -0.5 * action.double(), action.double() * self.x[0], 0.0 * self.x[0] * action.double()

    def step(self, action: Any) -> Any:
        info = {"leader_reward": float(action * self._x[0]), "leader_draw": 0}
        return (*super().step(action)[:4], info)


class NotCopied(Toll):
    def set_leader(self, x: Any) -> None:
        self.check(x)
        self._x = x


class ItsOwnArray(Toll):
    @property
    def leader_x(self) -> Any:
        return self._x


class Shared(Toll):
    """x of all instances, in the class."""

    of_all: ClassVar[Any] = np.full(1, 0.5)

    @property
    def leader_x(self) -> Any:
        return Shared.of_all.copy()

    def set_leader(self, x: Any) -> None:
        Shared.of_all = self._x = self.check(x)


class SharedTable(Toll):
    """Each instance tells its own x; what is paid stands in the class."""

    price: ClassVar[float] = 0.5

    def set_leader(self, x: Any) -> None:
        super().set_leader(x)
        SharedTable.price = float(self._x[0])

    def step(self, action: Any) -> Any:
        paid = float(action * SharedTable.price)
        return (*super().step(action)[:1], -paid, False, False, {"leader_reward": paid, "leader_draw": 0})


class NextBegins(Toll):
    """A new instance begins at the x that another was given last."""

    last: ClassVar[Any] = np.full(1, 0.5)

    def __init__(self) -> None:
        self._x = NextBegins.last.copy()

    def set_leader(self, x: Any) -> None:
        super().set_leader(x)
        NextBegins.last = self._x


class Silent(Toll):
    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], {"leader_reward": 0.0})


class Unpaid(Toll):
    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], {"leader_draw": 0})


class Vectors(Toll):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return (obs, np.array([reward, 1.0]), *rest)


class NotANumber(Toll):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return (obs, reward if obs else float("nan"), *rest)


class Blind(Toll):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        return (np.full(1, np.nan, dtype=np.float32), *super().step(action)[1:])


class Dearer(Toll):
    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            return tuple(2.0 * part for part in super().forward(obs, action, draw, next_obs))


class LeaderDearer(Toll):
    def step(self, action: Any) -> Any:
        obs, reward, *rest, info = super().step(action)
        return (obs, reward, *rest, {**info, "leader_reward": 2.0 * info["leader_reward"]})


class Detached(Toll):
    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            return tuple(part.detach() for part in super().forward(obs, action, draw, next_obs))


class HalfDetached(Toll):
    """The follower's reward knows x as a number."""

    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            r_f, r_l, log_p = super().forward(obs, action, draw, next_obs)
            return r_f.detach(), r_l, log_p


class WrongSlope(Toll):
    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            r_f, r_l, log_p = super().forward(obs, action, draw, next_obs)
            return r_f, 1.01 * r_l - 0.01 * r_l.detach(), log_p


class Elsewhere(Toll):
    def leader_model(self) -> torch.nn.Module:
        return TollModel(0.0 * self._x)


class OthersX(Toll):
    """The model reads the environment's x in place of its Parameter."""

    def leader_model(self) -> torch.nn.Module:
        module: Any = TollModel(self._x)
        forward, own = module.forward, torch.nn.Parameter(torch.tensor(self._x))

        def read(*args: Any) -> Any:
            kept, module.x = module.x, own
            try:
                return tuple(part + 0.0 * kept.sum() for part in forward(*args))
            finally:
                module.x = kept

        module.forward = read
        return module  # type: ignore[no-any-return]


class HalfPrecision(Toll):
    def leader_model(self) -> torch.nn.Module:
        return TollModel(self._x).float()


class Short(Toll):
    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            return tuple(part[:, None] for part in super().forward(obs, action, draw, next_obs))


class Shy(Toll):
    commitment_size = 2


class Stale(Toll):
    """What is shown of x is its first value."""

    def commitment(self, obs: Any) -> Any:
        return np.full(1, 0.5, dtype=np.float32)


class NoDistribution(Toll):
    commitment_is_distribution = True


class Single(Toll):
    leader_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)


class Endless(Toll):
    leader_space = gym.spaces.Box(0.0, np.inf, (1,), np.float64)


class Counting(Toll):
    leader_space = gym.spaces.Discrete(3)  # type: ignore[assignment]


class Unchecked(Toll):
    def set_leader(self, x: Any) -> None:
        self._x = np.array(x, dtype=np.float64)


class Clipped(Toll):
    """A point outside X is moved without a word."""

    def set_leader(self, x: Any) -> None:
        self._x = self.check(np.clip(x, 0.0, 1.0))


class TakesNaN(Toll):
    def check(self, x: Any) -> Any:
        x = np.array(x, dtype=np.float64)
        if x.shape != (1,) or x[0] < 0.0 or x[0] > 1.0:
            raise ValueError("x")
        return x


class TakesShapes(Toll):
    def check(self, x: Any) -> Any:
        return super().check(np.atleast_1d(x)[:1])


class Asserts(Toll):
    def check(self, x: Any) -> Any:
        assert self.leader_space.contains(np.asarray(x))
        return np.array(x)


class KeepsRefused(Toll):
    def set_leader(self, x: Any) -> None:
        self._x = np.array(x, dtype=np.float64)
        self._x = self.check(x)


class Holed(Toll):
    """X is two intervals."""

    leader_set = LeaderSet.box(1, 0.0, 1.0)

    def check(self, x: Any) -> Any:
        x = super().check(x)
        if 0.55 < x[0] < 0.75:
            raise ValueError("x: expected no point of the hole")
        return x


class SmallerX(Toll):
    """Half of leader_space is refused, and no leader_set says so."""

    def check(self, x: Any) -> Any:
        x = super().check(x)
        if x[0] > 0.55:
            raise ValueError("x: expected at most 0.55")
        return x


class Undrawn(Toll):
    """A generator of its own that no seed reaches."""

    def step(self, action: Any) -> Any:
        return (int(np.random.default_rng().integers(3)), *super().step(action)[1:])


class OneArray(Wind):
    def step(self, action: Any) -> Any:
        obs, *rest, info = super().step(action)
        if not hasattr(self, "_kept"):
            self._kept = np.zeros(2)
        self._kept[:] = info["leader_draw"]
        return (obs, *rest, {**info, "leader_draw": self._kept})


class Late(Toll):
    """x holds from the next reset on."""

    def reset(self, **kwargs: Any) -> Any:
        self._held = float(self._x[0])
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        paid = float(action * self._held)
        return (*super().step(action)[:1], -paid, False, False, {"leader_reward": paid, "leader_draw": 0})


class Forgets(Toll):
    """A reset gives the leader its first x back."""

    def reset(self, **kwargs: Any) -> Any:
        if getattr(self, "_begun", False):
            self._x = np.full(1, 0.5)
        self._begun = True
        return super().reset(**kwargs)


class SilentDynamics(Toll):
    """x moves the transitions, and log_p does not say so."""

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return (int(self.np_random.random() < self._x[0]), *rest)


class Uniform(Lottery):
    """Draws do not know x."""

    def p(self) -> Any:
        return np.full(3, 1 / 3)


class Biased(Lottery):
    """Draws follow another function of x than log_p."""

    def p(self) -> Any:
        weights = np.exp(0.5 * self._x)
        return weights / weights.sum()


class Favoured(Lottery):
    """The last draw comes half as often again as log_p says."""

    def p(self) -> Any:
        weights = super().p() * np.array([1.0, 1.0, 1.5])
        return weights / weights.sum()


class LateDraws(Lottery):
    """Draws are from the x that the episode began with."""

    def reset(self, **kwargs: Any) -> Any:
        self._held = super().p()
        return super().reset(**kwargs)

    def p(self) -> Any:
        return self._held


class Unnormalised(Lottery):
    class model(LotteryModel):  # noqa: N801
        def log_p(self, draw: Any) -> Any:
            return self.x[draw.long()]


class Impossible(Lottery):
    """log_p has a draw for impossible that comes."""

    class model(LotteryModel):  # noqa: N801
        def log_p(self, draw: Any) -> Any:
            return super().log_p(draw) + torch.where(draw == 2, -torch.inf, 0.0)


class Midway(Wind):
    """The wind turns when x is set, in the middle of an episode."""

    def set_leader(self, x: Any) -> None:
        super().set_leader(x)
        self._wind = float(self._x[0])


class Windless(Wind):
    """The wind is drawn around the first x."""

    def reset(self, **kwargs: Any) -> Any:
        x, self._x = self._x, np.zeros(1)
        try:
            return super().reset(**kwargs)
        finally:
            self._x = x


class TwiceAsStrong(Wind):
    class model(WindModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            r_f, r_l, _ = super().forward(obs, action, draw, next_obs)
            return r_f, r_l, -0.5 * draw[..., 0] * (draw[..., 1] - 0.8 * self.x[0]) ** 2


class Wild(Wind):
    """The wind varies a third more than log_p says."""

    def blow(self) -> float:
        return 1.33 * float(self.np_random.standard_normal())


class Calm(Wind):
    """The wind varies a third less than log_p says."""

    def blow(self) -> float:
        return 0.67 * float(self.np_random.standard_normal())


class TwoSides(Wind):
    """The wind has the mean and the variance that log_p says, and two sides that it comes from."""

    def blow(self) -> float:
        return float(self.np_random.choice([-1.0, 1.0]) + 0.1 * self.np_random.standard_normal())


class Stubborn(Toll):
    """Steps pay by the x that the environment began with."""

    def step(self, action: Any) -> Any:
        paid = 0.5 * float(action)
        return (*super().step(action)[:1], -paid, False, False, {"leader_reward": paid, "leader_draw": 0})


class OneWind(Wind):
    """The wind of all instances stands in the class."""

    shared: ClassVar[float] = 0.0

    def reset(self, **kwargs: Any) -> Any:
        answer = super().reset(**kwargs)
        OneWind.shared = self._wind
        return answer

    def step(self, action: Any) -> Any:
        self._wind = OneWind.shared
        return super().step(action)


class Wordy(Toll):
    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], {"leader_reward": 0.0, "leader_draw": None})


class Raises(Toll):
    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            if len(obs) > 1:
                raise KeyError(len(obs))
            return super().forward(obs, action, draw, next_obs)


class DearInSmallUnits(Toll):
    """Rewards in units of a millionth, of which the model is wrong by a tenth."""

    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            r_f, r_l, log_p = super().forward(obs, action, draw, next_obs)
            return 1.1e-6 * r_f, 1e-6 * r_l, log_p

    def step(self, action: Any) -> Any:
        obs, reward, *rest, info = super().step(action)
        return (obs, 1e-6 * reward, *rest, {**info, "leader_reward": 1e-6 * info["leader_reward"]})


class OneXForAll(TwoStateEnv):
    """A simulator in parallel whose environments all have the first one's x."""

    class vector_class(TabularVectorEnv):  # noqa: N801
        def _load(self, x: Any) -> None:
            super()._load(x if x.ndim == 1 else x[:1].expand_as(x).contiguous())


class PaysAllAlike(TwoStateEnv):
    """A simulator in parallel that tells each its x, and pays by the first one's."""

    class vector_class(TabularVectorEnv):  # noqa: N801
        def _load(self, x: Any) -> None:
            super()._load(x)
            self._tables.load(x if x.ndim == 1 else x[:1].expand_as(x).contiguous())


BROKEN = [
    (Wild, "^leader_model: expected draws that follow its log_p .*got entry 1 of leader_draw 1.3"),
    (Calm, "^leader_model: expected draws that follow its log_p .*got entry 1 of leader_draw 0.6"),
    (TwoSides, "^leader_model: expected draws that follow its log_p .*got entry 1 of leader_draw"),
    (
        Stubborn,
        r"^set_leader: expected rewards that depend on the x that was set .*got the follower's rewards at x = \[0.5\]",
    ),
    (OneWind, "^set_leader: expected the x of other environments to stay unchanged .*got another observation"),
    (Wordy, r"^info\['leader_draw'\]: expected numbers"),
    (Raises, "^leader_model: expected .* for a batch of 20 steps, got KeyError"),
    (DearInSmallUnits, "^leader_model: expected the follower's reward in a step"),
    (OneXForAll, "^vectorised: expected parallel environments that store one x for each"),
    (PaysAllAlike, "^vectorised: expected rewards of each parallel environment at its own x"),
    (Deaf, "^set_leader: expected leader_x = .* after it"),
    (Constant, "^set_leader: expected a follower's reward, an observation or a draw that depends on x"),
    (OnlyTheLeader, "^set_leader: expected a follower's reward, an observation or a draw that depends on x"),
    (NotCopied, "^set_leader: expected leader_x = .* even if the caller changes its array later .*copy x"),
    (ItsOwnArray, "^leader_x: expected a copy of x"),
    (Shared, "^set_leader: expected the x of other environments to stay unchanged .*got x = .* in a copy"),
    (SharedTable, "^set_leader: expected the x of other environments to stay unchanged .*got another reward"),
    (NextBegins, "^leader_x: expected a new environment to start at"),
    (Silent, "^info: expected the key 'leader_draw'"),
    (Unpaid, "^info: expected the key 'leader_reward'"),
    (Vectors, r"^reward: expected one number a step, got an array of shape \(2,\); make one number of it"),
    (Blind, "^observation: expected numbers in every step"),
    (NotANumber, "^reward: expected finite numbers in every step, got nan"),
    (Dearer, "^leader_model: expected the follower's reward in a step"),
    (LeaderDearer, "^leader_model: expected the leader's reward in a step"),
    (Detached, "^leader_model: expected outputs that are differentiable in x"),
    (HalfDetached, "^leader_model: expected a gradient of r_follower equal to the central difference"),
    (WrongSlope, "^leader_model: expected a gradient of r_leader equal to the central difference"),
    (Elsewhere, "^leader_model: expected its Parameter x at the leader's x"),
    (OthersX, "^leader_model: expected r_follower to be a function of its own Parameter x"),
    (HalfPrecision, "^leader_model: expected a Parameter x in float64"),
    (Short, r"^leader_model: expected \(r_follower, r_leader, log_p\) of shapes \(20,\)"),
    (Shy, r"^commitment: expected shape \(2,\)"),
    (Stale, "^commitment: expected entries that depend on x"),
    (NoDistribution, "^commitment: expected rows that are distributions"),
    (Single, "^leader_space: expected a Box of one axis, float64"),
    (Endless, "^leader_space: expected finite bounds, for X must be compact"),
    (Counting, "^leader_space: expected a Box of one axis, float64"),
    (Unchecked, r"^set_leader: expected a ValueError for x of shape \(2,\)"),
    (Clipped, "^set_leader: expected a ValueError for x with an entry inf"),
    (TakesNaN, "^set_leader: expected a ValueError for x with an entry nan"),
    (TakesShapes, r"^set_leader: expected a ValueError for x of shape \(2,\)"),
    (Asserts, "^set_leader: expected a ValueError for x of shape .*got AssertionError"),
    (KeepsRefused, "^set_leader: expected x to stay at"),
    (Holed, "^set_leader: expected .* accepted, which lies between .* X must be convex"),
    (SmallerX, "^set_leader: expected every point of leader_space accepted, or a leader_set"),
    (Undrawn, "^reset: expected the same episode from the same seed twice .*got another observation"),
    (OneArray, r"^info\['leader_draw'\]: expected an object that later steps do not change"),
    (Late, "^set_leader: expected x to hold from the next step on"),
    (Forgets, "^reset: expected x to stay at .*, as set_leader set it"),
    (SilentDynamics, "^leader_model: expected a log_p that depends on x, as the environment does"),
    (Uniform, "^leader_model: expected draws that follow its log_p .*probability 1e-06"),
    (Biased, "^leader_model: expected draws that follow its log_p"),
    (Favoured, "^leader_model: expected draws that follow its log_p"),
    (LateDraws, "^leader_model: expected draws that follow its log_p"),
    (Unnormalised, "^leader_model: expected "),
    (Impossible, "^leader_model: expected a finite log_p of what was drawn"),
    (Midway, r"^set_leader: expected an episode that keeps its draw until the next reset"),
    (Windless, "^set_leader: expected a follower's reward, an observation or a draw that depends on x"),
    (TwiceAsStrong, "^leader_model: expected draws that follow its log_p"),
]
