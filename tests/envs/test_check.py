"""``check_leader_env`` says nothing of the registered environments, and names what is wrong with broken ones."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
import torch

import bilevel_gym
from bilevel_gym.envs import check_leader_env, incentive_design_v0
from bilevel_gym.envs.check import EXEMPT
from bilevel_gym.envs.check_draws import check_table
from bilevel_gym.envs.mdp import ArrayProblem, LeaderSet, TabularMDP
from bilevel_gym.envs.tabular import TabularEnv
from bilevel_gym.wrappers import Attribute, DrawnAttribute, EventPayments, LinearReward, ObserveCommitment, ShapedReward
from tests.envs.broken_envs import BROKEN
from tests.envs.leader_envs import Lottery, Toll, TollModel, Wind, WindModel

assert bilevel_gym.__version__
GAME = "bilevel_gym/incentive_design_v0"
IDS = [
    name
    for name in [*(name for name in gym.registry if name.startswith("bilevel_gym/")), GAME]
    if name not in EXEMPT and ("Hopper" not in name or importlib.util.find_spec("mujoco"))
]


def check(env: Any, **kwargs: Any) -> None:
    """Check, where nothing may be left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_leader_env(env, **kwargs)


# --- right environments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_registered_environments_pass_and_keep_their_x(name: str) -> None:
    env: Any = pettingzoo.make("parallel", name) if name == GAME else gym.make(name)
    get = env.__getattribute__ if name == GAME else env.get_wrapper_attr
    start, space = get("leader_x"), get("leader_space")
    get("set_leader")(x := 0.99 * start + 0.005 * (space.low + space.high))
    check(env)
    np.testing.assert_array_equal(get("leader_x"), x)


@pytest.mark.parametrize("name", ["bilevel_gym/TwoState-v0", "bilevel_gym/ShapedCartPole-v0", GAME])
def test_an_id_is_made_again_and_again(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", EXEMPT)
def test_environments_without_a_parameter_are_exempt_by_name(name: str) -> None:
    for env in (name, gym.make(name)):
        with pytest.warns(UserWarning, match=f"{name} has no parameter to set"):
            check_leader_env(env)


@pytest.mark.parametrize("make", [Toll, Lottery, Wind])
def test_environments_from_nothing_pass(make: Any) -> None:
    check(make)
    check(gym.wrappers.TimeLimit(make(), 30))


def test_games_pass_in_both_interfaces() -> None:
    check(incentive_design_v0.parallel_env(seed=3))
    check(incentive_design_v0, steps=500)
    check(incentive_design_v0.env(n_states=3), steps=500)
    check(pettingzoo.make("parallel", GAME, n_actions_1=2), steps=500)
    check(lambda: incentive_design_v0.raw_env(n_states=4), steps=500)


def small_problem(P: Any = None, **fields: Any) -> ArrayProblem:
    """Two states; x, with a budget, is paid to the follower."""
    base = TabularMDP(
        torch.full((2, 2, 2), 0.5) if P is None else P, torch.eye(2), torch.tensor([0.5, 0.5]), 0.9, **fields
    )
    X = LeaderSet.box(4, -1, 1).intersect(budget=0.5)
    return ArrayProblem(base, X, lambda x: base.r + x[0] - x[3], lambda x: base.r - x[1])


def test_a_budget_masks_and_terminal_states_pass() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    check(lambda: TabularEnv(small_problem(mask=mask, terminal=torch.tensor([False, True]))))


def above(obs: Any, action: Any, next_obs: Any) -> bool:
    return bool(next_obs[0] > 0.0)


def test_the_wrappers_environments_pass() -> None:
    shaped = ShapedReward(gym.make("CartPole-v1"), EventPayments([above]), leader_pays=1.0)
    gravity = DrawnAttribute(gym.make("Pendulum-v1"), [Attribute("g", 2.0, 20.0, (0.5, 2.0))], show_draw=True)
    for env in (shaped, ObserveCommitment(shaped), gym.wrappers.TimeLimit(gravity, 100)):
        check(env)
    check(ObserveCommitment(gym.make("bilevel_gym/StackelbergGame-v0", n_states=5)), steps=1000)
    check(ObserveCommitment(gym.make("bilevel_gym/LQStackelberg-v0")), steps=1000)


def test_a_leader_over_an_environment_that_has_one_is_checked_alone() -> None:
    """The problem inside is that of the leader inside."""
    both = LinearReward(lambda s, a, z: [float(a), float(z)], size=2)
    check(lambda: ShapedReward(gym.make("bilevel_gym/TwoState-v0"), both))


class SmallUnits(Toll):
    """Rewards in units of a billionth."""

    class model(TollModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            return tuple(1e-9 * part for part in super().forward(obs, action, draw, next_obs))

    def step(self, action: Any) -> Any:
        obs, reward, *rest, info = super().step(action)
        return (obs, 1e-9 * reward, *rest, {**info, "leader_reward": 1e-9 * info["leader_reward"]})


class Parameters(Toll):
    """x is no vector of a Box."""

    leader_space = None  # type: ignore[assignment]

    def check(self, x: Any) -> Any:
        x = np.array(x, dtype=np.float64)
        if x.shape != (1,) or not np.isfinite(x).all():
            raise ValueError("x: expected a finite number")
        return x


class TollWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """A leader environment that a wrapper makes, with no base class of this library's."""

    leader_space, gamma, commitment_size = gym.spaces.Box(-1.0, 1.0, (2,), np.float64), 0.9, 2

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._x = np.zeros(2)

    @property
    def leader_x(self) -> Any:
        return self._x.copy()

    def set_leader(self, x: Any) -> None:
        x = np.array(x, dtype=np.float64)
        if x.shape != (2,) or not self.leader_space.contains(x):
            raise ValueError("x: expected a point of X")
        self._x = x

    def leader_model(self) -> Any:
        class Module(TollModel):
            def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
                paid = self.x[action]
                return draw - paid, draw + paid, 0.0 * paid

        return Module(self._x)

    def commitment(self, obs: Any) -> Any:
        return self._x.astype(np.float32)

    def step(self, action: Any) -> Any:
        obs, r, *rest, info = self.env.step(action)
        paid = self._x[action]
        return (obs, float(r) - paid, *rest, {**info, "leader_reward": float(r) + paid, "leader_draw": float(r)})


def test_a_wrapper_of_a_user_s_passes() -> None:
    for env in (TollWrapper(gym.make("CartPole-v1")), gym.wrappers.TimeLimit(TollWrapper(gym.make("CartPole-v1")), 9)):
        check(env)


def test_units_are_no_matter_and_x_may_be_a_module_s() -> None:
    check(SmallUnits)
    with pytest.warns(UserWarning, match="could not check membership in X, for leader_space is None"):
        check_leader_env(Parameters)


def test_an_id_takes_arguments() -> None:
    check("bilevel_gym/StackelbergGame-v0", env_kwargs={"n_states": 4})
    with pytest.raises(ValueError, match=r"^env_kwargs: expected none where env is no id"):
        check_leader_env(Toll, env_kwargs={"n_states": 4})


class WaitModel(WindModel):
    """log p of a wait with rate exp(x)."""

    def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
        r_f, r_l, _ = super().forward(obs, action, draw, next_obs)
        log_p = self.x[0] - draw[..., 1] * self.x[0].exp()
        return r_f, r_l, draw[..., 0] * torch.where(draw[..., 1] >= 0.0, log_p, -torch.inf)


class Wait(Wind):
    """What is drawn is exponential, and 0 where the density has a jump."""

    model = WaitModel

    def reset(self, **kwargs: Any) -> Any:
        answer = super().reset(**kwargs)
        self._wind = float(self.np_random.exponential(np.exp(-self._x[0])))
        return answer


class Gusts(Wind):
    """The wind is as strong as the weather, which the draw holds, too."""

    class model(WindModel):  # noqa: N801
        def forward(self, obs: Any, action: Any, draw: Any, next_obs: Any) -> Any:
            r_f, r_l, _ = super().forward(obs, action, draw, next_obs)
            first, wind, weather = draw.unbind(-1)
            return r_f, r_l, first * (-0.5 * ((wind - self.x[0]) / weather) ** 2 - weather.log())

    def reset(self, **kwargs: Any) -> Any:
        answer = super().reset(**kwargs)
        self._weather = float(self.np_random.uniform(0.5, 2.0))
        self._wind = float(self._x[0] + self._weather * self.np_random.standard_normal())
        return answer

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        return (*rest, {**info, "leader_draw": np.append(info["leader_draw"], self._weather)})


def test_real_draws_of_any_density_pass() -> None:
    check(Wait)
    with pytest.warns(UserWarning, match="could not check the whole distribution of real draws"):
        check_leader_env(Gusts)


def test_what_could_not_be_checked_is_said() -> None:
    class NotCopied(Toll):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("a simulator in C")

    with pytest.warns(
        UserWarning, match=r"TypeError: a simulator in C; whether x leaks .* \(give an id, or a callable"
    ):
        check_leader_env(NotCopied())
    with pytest.warns(UserWarning, match="could not check copies"):
        check_leader_env(NotCopied)


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1]  # type: ignore[index]
    check(Lottery)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


# --- broken environments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=lambda part: getattr(part, "__name__", ""))
def test_what_is_wrong_is_named(broken: type[Toll], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_leader_env(broken)


# --- problems that are not the environment ----------------------------------------------------------------------------

MASK, LAST = torch.tensor([[True, False], [True, True]]), torch.tensor([False, True])
OTHER_P = torch.tensor([[[0.3, 0.7], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])


def test_a_problem_that_is_the_environment_passes() -> None:
    check(lambda: Telling(small_problem(), small_problem()))


class Telling(TabularEnv):
    """A simulator of one problem that tells another."""

    def __init__(self, problem: Any, told: Any) -> None:
        super().__init__(problem)
        self.simulated, self.problem = problem, told

    def leader_model(self) -> Any:
        told, self.problem = self.problem, self.simulated
        try:
            return super().leader_model()
        finally:
            self.problem = told


def rich() -> Any:
    problem: Any = small_problem()
    problem._leader_reward = lambda x: problem.base.r + 1.0 - x[1]
    return problem


def elsewhere() -> Any:
    problem: Any = small_problem()
    problem.leader_set = LeaderSet.box(4, -1, 2)
    return problem


def greedy() -> Any:
    problem: Any = small_problem()
    problem._follower_reward = lambda x: problem.base.r + 2.0 * x[0] - x[3]
    return problem


def starts_in_one() -> Any:
    problem = small_problem()
    base = TabularMDP(problem.base.P, problem.base.r, torch.tensor([0.1, 0.9]), 0.9)
    return ArrayProblem(base, problem.leader_set, lambda x: base.r + x[0] - x[3], lambda x: base.r - x[1])


def patient() -> Any:
    problem = small_problem()
    base = TabularMDP(problem.base.P, problem.base.r, problem.base.rho, 0.95)
    return ArrayProblem(base, problem.leader_set, lambda x: base.r + x[0] - x[3], lambda x: base.r - x[1])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (greedy, "^problem: expected the follower's reward of a step to be"),
        (rich, "^problem: expected the leader's reward of a step to be"),
        (lambda: small_problem(OTHER_P), "^problem: expected next state drawn by the problem's probabilities"),
        (
            lambda: small_problem(torch.eye(2).expand(2, 2, 2)),
            "^problem: expected next state .* whose probability is 0",
        ),
        (starts_in_one, "^problem: expected first state drawn by"),
        (
            lambda: small_problem(mask=MASK),
            r"^action_masks: expected \[ True False\] in state 0, .*got \[ True  True\]",
        ),
        (lambda: small_problem(terminal=LAST), "^problem: expected terminated = True after a step in state 1"),
        (elsewhere, "^problem: expected a leader_set with the bounds of leader_space"),
        (patient, "^gamma: expected that of the problem, 0.95"),
    ],
)
def test_a_problem_that_is_not_the_environment_is_named(told: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_leader_env(lambda: Telling(small_problem(), told()))


def test_a_problem_whose_simulator_draws_otherwise_is_named() -> None:
    """follower_mdp is what exact methods solve, the kernel what is simulated."""
    problem: Any = small_problem()
    mdp = problem.follower_mdp
    problem.kernel = lambda x: type(problem).kernel(problem, x)
    check(TabularEnv(problem), steps=500)
    kernel = problem.kernel(problem.start_x())
    problem.kernel = lambda x: type(kernel)(
        kernel.draw, kernel.P, (mdp(x).r + 1.0).unsqueeze(-1), kernel.r_leader - x[1]
    )
    with pytest.raises(ValueError, match=r"^problem: expected r of follower_mdp equal to the mean over the kernel's"):
        check_leader_env(TabularEnv(problem))


@pytest.mark.parametrize(
    ("field", "factor", "message"),
    [
        ("A", 1.1, "^problem: expected the next state drawn from the problem's Gaussian"),
        ("noise", 1.5, "^problem: expected the next state drawn from the problem's Gaussian"),
        ("start", 3.0, "^problem: expected the first state drawn from the problem's Gaussian"),
    ],
)
def test_a_plant_that_is_another_is_named(field: str, factor: float, message: str) -> None:
    env: Any = gym.make("bilevel_gym/LQStackelberg-v0")
    told, dynamics = copy.copy(env.unwrapped.problem), env.unwrapped.problem.dynamics
    object.__setattr__(told, "dynamics", replace(dynamics, **{field: factor * getattr(dynamics, field)}))
    env.unwrapped.problem = told
    with pytest.raises(ValueError, match=message):
        check_leader_env(env)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("r_id", "^leader_model: expected the leader's reward in a step"),
        ("P", "^problem: expected next state drawn by the problem's probabilities"),
        ("rho", "^problem: expected first state drawn by the problem's probabilities"),
    ],
)
def test_a_game_that_is_another_is_named(field: str, message: str) -> None:
    env: Any = incentive_design_v0.parallel_env(n_states=3)
    values = getattr(env.problem, field).flip(0)
    if field == "rho":
        values = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    env.problem = replace(env.problem, **{field: values})
    with pytest.raises(ValueError, match=message):
        check_leader_env(env)


class DeafGame(incentive_design_v0.IncentiveDesignEnv):
    def _load(self, x: Any) -> None:
        super()._load(x)
        self._payoffs = self.problem.game(0.0 * x).r.reshape(-1).numpy()


class SharedGame(incentive_design_v0.IncentiveDesignEnv):
    table: ClassVar[Any] = None

    def _load(self, x: Any) -> None:
        super()._load(x)
        SharedGame.table = self._payoffs

    def step(self, actions: Any) -> Any:
        self._payoffs = SharedGame.table
        return super().step(actions)


class UnfairGame(incentive_design_v0.IncentiveDesignEnv):
    def step(self, actions: Any) -> Any:
        obs, rewards, *rest = super().step(actions)
        return (obs, {**rewards, "player_2": 0.5 * rewards["player_2"]}, *rest)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            DeafGame,
            "^set_leader: expected rewards that depend on the x that was set .*got the follower's rewards at x = ",
        ),
        (SharedGame, "^set_leader: expected the x of other environments to stay unchanged"),
        (UnfairGame, "^leader_model: expected the follower's reward in a step"),
    ],
)
def test_a_broken_game_is_named(broken: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_leader_env(lambda: broken(incentive_design_v0.parallel_env(n_states=3).problem))


def test_false_alarms_are_as_rare_as_is_said() -> None:
    """The tests' statistic is at the most 1 in the mean where the draws are right, over many seeds."""
    p = np.array([0.9, 0.06, 0.04])
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = rng.choice(3, 300, p=p)
        check_table("problem", ["row"] * 300, np.tile(p, (300, 1)), drawn, "state", [np.tile(p[::-1], (300, 1))])
    with pytest.raises(ValueError, match="explains"):
        check_table("problem", ["row"] * 300, np.tile(p, (300, 1)), rng.choice(3, 300, p=[0.7, 0.2, 0.1]), "state")


# --- what is no leader environment ------------------------------------------------------------------------------------


def test_an_environment_without_a_leader_is_named() -> None:
    for given in ("CartPole-v1", lambda: gym.make("CartPole-v1"), gym.make("CartPole-v1")):
        with pytest.raises(ValueError, match=r"^env: expected a leader environment, with the attribute leader_space"):
            check_leader_env(given)
    for other in (3, lambda: 3, None):
        with pytest.raises(ValueError, match=r"^env: expected a Gymnasium environment or a PettingZoo game"):
            check_leader_env(other)
    with pytest.raises(ValueError, match=r"^env: expected a registered id, got 'Nowhere-v0'"):
        check_leader_env("Nowhere-v0")
    with pytest.raises(ValueError, match=r"^steps: expected a whole number >= 40"):
        check_leader_env(Toll, steps=3)
