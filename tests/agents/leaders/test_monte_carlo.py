"""Leaders with Monte Carlo gradients: a step is that of the truncated objective on average, seeds, files, refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor

from bilevel_gym.agents import (
    BellmanPenalty,
    Geometric,
    IndependentPolicyGradient,
    MirrorDescent,
    MonteCarlo,
    NikaidoIsodaPenalty,
    TabularPBRL,
    TabularPBRLConfig,
    ValuePenalty,
    leader_return_at_best_response,
)
from bilevel_gym.agents.baselines.independent_policy_gradient import IndependentPolicyGradientConfig
from bilevel_gym.agents.held_policies import Direct, Softmax, Solved
from bilevel_gym.envs.mdp import (
    ArrayProblem,
    GameProblem,
    IncentiveDesignProblem,
    LeaderSet,
    SparseMDP,
    StackelbergProblem,
    TabularMDP,
    ZeroSumGame,
    action_value,
    best_responses,
    negative_entropy,
    player_mdp,
    random_incentive_design,
    random_stackelberg,
    solve_soft,
    stack_problems,
    suboptimality,
    truncated_return,
    truncated_value,
)
from bilevel_gym.envs.two_state import TwoStateProblem
from tests.problems import F64, PROBLEMS, assert_unbiased, autograd, generator, random_x

LENGTH, TAU, LAM, ALPHA = 3, 0.3, 2.0, 1e-3
COPIES, BATCH = 300, 200
ESTIMATOR = MonteCarlo(LENGTH, BATCH)


def game() -> StackelbergProblem:
    return random_stackelberg(3, 3, 2, gamma=0.8, sparsity=0.3, seed=1)


def design() -> IncentiveDesignProblem:
    return random_incentive_design(3, 2, 2, gamma=0.8, seed=1)


def steps_of(leader: Any, ys: list[Tensor], x_0: Tensor) -> list[Tensor]:
    """Where one step of plain gradient ascent of length ``ALPHA`` went, one row a copy: in x, then in each y."""
    held = leader.held.ys
    with torch.no_grad():
        for y, start in zip(held, ys, strict=True):
            y.copy_(start)
    leader.learn(1)
    moved = [torch.from_numpy(leader.last_x).view(COPIES, -1) - x_0]
    moved += [(y.detach() - start).flatten(1) for y, start in zip(held, ys, strict=True)]
    return [COPIES * m / ALPHA for m in moved]  # a stack's objective is the mean over its copies


def common(**kwargs: Any) -> dict[str, Any]:
    return {
        "follower": Softmax(), "learning_rate": ALPHA, "tau": TAU, "optimizer_class": torch.optim.SGD,
        "keep_best": False, "estimator": ESTIMATOR,
    } | kwargs  # fmt: skip


def truncated_penalty(kind: str, mdp: TabularMDP, pi: Tensor, star: Tensor) -> Tensor:
    if kind == "value":
        return truncated_return(mdp, star, LENGTH, TAU) - truncated_return(mdp, pi, LENGTH, TAU)
    Q = action_value(mdp, truncated_value(mdp, star, LENGTH - 1, TAU))
    return sum(sign * ((p * Q).sum(-1) - TAU * negative_entropy(p)) for sign, p in ((1, star), (-1, pi))).mean(-1)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["value", "Bellman", "independent"])
def test_a_step_on_a_follower_is_unbiased(kind: str) -> None:
    """Three hundred copies of one game, stacked: each takes its own step of Algorithm 1."""
    problem = game()
    x_0, y_0 = (torch.randn(n, generator=generator(n), dtype=F64) for n in (9, 6))
    star = solve_soft(problem.follower_mdp(x_0), TAU).pi

    def leaders(x: Tensor, y: Tensor) -> Tensor:
        mdp, pi = problem.follower_mdp(x), torch.softmax(y.view(3, 2), -1)
        return truncated_return(mdp.with_reward(problem.leader_reward(x)), pi, LENGTH)

    def objective(x: Tensor, y: Tensor) -> Tensor:
        pi = torch.softmax(y.view(3, 2), -1)
        return leaders(x, y) - LAM * truncated_penalty(kind, problem.follower_mdp(x), pi, star)

    def own(y: Tensor) -> Tensor:
        return truncated_return(problem.follower_mdp(x_0), torch.softmax(y.view(3, 2), -1), LENGTH, TAU)

    stack, start = stack_problems([problem] * COPIES), x_0.repeat(COPIES).numpy()
    if kind == "independent":
        leader: Any = IndependentPolicyGradient(stack, config=IndependentPolicyGradientConfig(**common()), x0=start)
        expected = autograd(lambda x: leaders(x, y_0), x_0), autograd(own, y_0)
    else:
        penalty = ValuePenalty(LAM) if kind == "value" else BellmanPenalty(LAM)
        leader = TabularPBRL(stack, penalty=penalty, config=TabularPBRLConfig(**common()), x0=start)
        expected = autograd(lambda x: objective(x, y_0), x_0), autograd(lambda y: objective(x_0, y), y_0)
    for got, gradient in zip(steps_of(leader, [y_0.view(3, 2).expand(COPIES, 3, 2)], x_0), expected, strict=True):
        assert_unbiased(got, gradient)


@pytest.mark.parametrize("kind", ["Nikaido-Isoda", "independent"])
def test_a_step_on_a_game_is_unbiased(kind: str) -> None:
    problem = design()
    x_0 = torch.randn(12, generator=generator(0), dtype=F64)
    ys = [torch.randn(6, generator=generator(i), dtype=F64) for i in (1, 2)]

    def pair(*ys: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(ys[0].view(3, 2), -1), torch.softmax(ys[1].view(3, 2), -1)

    def value(game: ZeroSumGame, pi: tuple[Tensor, Tensor], tau: float) -> Tensor:
        return truncated_return(player_mdp(game, 1, pi[1], tau), pi[0], LENGTH, tau)

    first, second = (answer.pi for answer in best_responses(problem.game(x_0), *pair(*ys), TAU))

    def objective(x: Tensor, y1: Tensor, y2: Tensor) -> Tensor:
        at, (pi1, pi2) = problem.game(x), pair(y1, y2)
        psi = value(at, (first, pi2), TAU) - value(at, (pi1, second), TAU)
        return value(problem.designer, (pi1, pi2), 0.0) - LAM * psi

    stack, start = stack_problems([problem] * COPIES), x_0.repeat(COPIES).numpy()
    if kind == "independent":
        leader: Any = IndependentPolicyGradient(stack, config=IndependentPolicyGradientConfig(**common()), x0=start)
        at = problem.game(x_0)
        expected = [
            torch.zeros(12, dtype=F64),  # the designer's return does not hold x
            autograd(lambda y: value(at, pair(y, ys[1]), TAU), ys[0]),
            -autograd(lambda y: value(at, pair(ys[0], y), TAU), ys[1]),
        ]
    else:
        leader = TabularPBRL(stack, penalty=NikaidoIsodaPenalty(LAM), config=TabularPBRLConfig(**common()), x0=start)
        expected = [
            autograd(lambda x: objective(x, *ys), x_0),
            autograd(lambda y: objective(x_0, y, ys[1]), ys[0]),
            autograd(lambda y: objective(x_0, ys[0], y), ys[1]),
        ]
    moved = steps_of(leader, [y.view(3, 2).expand(COPIES, 3, 2) for y in ys], x_0)
    for got, gradient in zip(moved, expected, strict=True):
        if not bool(gradient.any()):
            assert not bool(got.any())
        else:
            assert_unbiased(got, gradient)


@pytest.mark.parametrize("name", ["dynamics", "terminal, masked", "contexts"])
def test_a_step_is_unbiased_where_x_moves_the_dynamics(name: str) -> None:
    """Over the leader's seeds; contexts are each played and averaged by their probabilities."""
    problem = PROBLEMS[name](1)
    x_0 = random_x(problem, 1)
    mdp_0 = problem.follower_mdp(x_0)
    y_0, star = Softmax().start(mdp_0), solve_soft(mdp_0, TAU).pi
    pi = Softmax().policy(y_0, mdp_0)

    def objective(x: Tensor) -> Tensor:
        mdp, reward = problem.follower_mdp(x), problem.leader_reward(x)
        assert reward is not None
        earned = truncated_return(mdp.with_reward(reward), pi, LENGTH)
        return problem.over_contexts(earned - LAM * truncated_penalty("value", mdp, pi, star))

    config = TabularPBRLConfig(**common(eval_every=100, estimator=MonteCarlo(LENGTH, 400)))
    steps = []
    for seed in range(100):
        leader = TabularPBRL(problem, penalty=ValuePenalty(LAM), config=config, seed=seed, x0=x_0.numpy()).learn(1)
        steps.append((torch.from_numpy(leader.last_x) - x_0) / ALPHA)
    assert_unbiased(torch.stack(steps), autograd(objective, x_0))


def test_a_solved_follower_s_step_in_x_is_unbiased() -> None:
    problem = game()
    x_0 = torch.randn(9, generator=generator(9), dtype=F64)
    mdp = problem.follower_mdp(x_0)
    star = solve_soft(mdp, TAU).pi
    pi = solve_soft(mdp.with_reward(mdp.r + problem.leader_reward(x_0) / LAM), TAU).pi

    def objective(x: Tensor) -> Tensor:
        mdp = problem.follower_mdp(x)
        earned = truncated_return(mdp.with_reward(problem.leader_reward(x)), pi, LENGTH)
        return earned - LAM * truncated_penalty("value", mdp, pi, star)

    config = TabularPBRLConfig(**common(follower=Solved()))
    stack = stack_problems([problem] * COPIES)
    leader = TabularPBRL(stack, penalty=ValuePenalty(LAM), config=config, x0=x_0.repeat(COPIES).numpy()).learn(1)
    got = COPIES * (torch.from_numpy(leader.last_x).view(COPIES, -1) - x_0) / ALPHA
    assert_unbiased(got, autograd(objective, x_0))


def test_it_learns_as_exact_gradients_do() -> None:
    """The stack of five games, Adam: more of the leader's return at the best response than half of what exact ones bring."""
    stack = stack_problems([random_stackelberg(5, 3, 3, seed=seed) for seed in range(5)])
    gains = {}
    for name, estimator in (("exact", None), ("sampled", MonteCarlo(20, 64))):
        config = TabularPBRLConfig(follower=Softmax(), estimator=estimator, keep_best=False, eval_every=100)
        leader = TabularPBRL(stack, penalty=ValuePenalty(5.0), config=config).learn(200)
        gains[name] = leader.history[-1].leader_return - leader.history[0].leader_return
    assert gains["exact"] > 1.0
    assert gains["sampled"] > 0.5 * gains["exact"]


def leader_of(kind: str, problem: Any = None, seed: int | None = 0, **kwargs: Any) -> Any:
    options: dict[str, Any] = {"tau": Geometric(0.3, 0.1), "eval_every": 3, "estimator": MonteCarlo(4, 8)} | kwargs
    if kind == "game":
        return TabularPBRL(
            design() if problem is None else problem,
            penalty=NikaidoIsodaPenalty(3.0),
            oracle=MirrorDescent(5.0, 2),
            config=TabularPBRLConfig(follower=Direct(), **options),
            seed=seed,
        )
    problem = game() if problem is None else problem
    if kind == "independent":
        return IndependentPolicyGradient(problem, config=IndependentPolicyGradientConfig(**options), seed=seed)
    return TabularPBRL(problem, penalty=BellmanPenalty(3.0), config=TabularPBRLConfig(**options), seed=seed)


KINDS = ["follower", "game", "independent"]


@pytest.mark.parametrize("kind", KINDS)
def test_learning_on_from_a_file_is_learning_on(kind: str, tmp_path: Path) -> None:
    """Bit for bit, the random numbers included."""
    twin, broken = (leader_of(kind).learn(5) for _ in range(2))
    loaded = type(broken).load(broken.save(tmp_path / "leader"), design() if kind == "game" else game())
    assert loaded.config.estimator == MonteCarlo(4, 8)
    for leader in (twin, loaded):
        leader.learn(6, reset_num_timesteps=False)
    np.testing.assert_array_equal(loaded.last_x, twin.last_x)
    assert loaded.evaluate() == twin.evaluate()
    assert loaded.history == twin.history


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_tells_the_path(kind: str) -> None:
    one, two, three = (leader_of(kind, seed=seed).learn(3).last_x for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, three)
    free = [leader_of(kind, seed=None).learn(1).last_x for _ in range(2)]
    assert not np.array_equal(*free)


def test_the_path_is_the_leader_s_own() -> None:
    """Neither the global generator nor evaluation enters it."""
    torch.manual_seed(0)
    first = leader_of("follower", eval_every=1).learn(4).last_x
    torch.manual_seed(1)
    before = torch.get_rng_state()
    second = leader_of("follower", eval_every=100).learn(4).last_x
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda leader: pickle.loads(pickle.dumps(leader))])
def test_a_copy_goes_the_same_way(how: Callable[[Any], Any]) -> None:
    leader = leader_of("follower").learn(2)
    twin = how(leader)
    for each in (leader, twin):
        each.learn(3, reset_num_timesteps=False)
    np.testing.assert_array_equal(twin.last_x, leader.last_x)


@pytest.mark.parametrize(("kind", "policies"), [("follower", 3), ("game", 3), ("independent", 1)])
def test_the_steps_are_counted(kind: str, policies: int) -> None:
    """Bellman plays pi_y and two kinds of episode from mu; a game three pairs; the independent gradient one policy."""
    leader = leader_of(kind).learn(5)
    assert leader.history[-1].steps == 5 * policies * 4 * 8
    assert leader.history[0].steps == 0
    assert leader_of(kind, estimator=None).learn(2).history[-1].steps == 0


class NoReturn(TwoStateProblem):
    """J_L is not a return of the follower's MDP."""

    def leader_reward(self, x: Tensor) -> None:  # type: ignore[override]
        return None

    def leader_return(self, x: Tensor, pi: Tensor) -> Tensor:
        return -(x.square().sum()) * pi[..., 1].mean()


class NoReturnOfAGame(GameProblem):
    """A designer who is judged by a probability."""

    def __init__(self) -> None:
        self.base = design()
        self.leader_set = self.base.leader_set

    def game(self, x: Tensor) -> ZeroSumGame:
        return self.base.game(x)

    def leader_return(self, x: Tensor, pi: tuple[Tensor, Tensor]) -> Tensor:
        return pi[0][..., 0].mean()


def test_a_leader_whose_objective_is_no_return_is_refused() -> None:
    for kind, problem in (("follower", NoReturn()), ("independent", NoReturn()), ("game", NoReturnOfAGame())):
        message = (
            rf"^estimator: expected None, exact.* the leader's objective in a {type(problem).__name__} is not a return"
        )
        with pytest.raises(ValueError, match=message):
            leader_of(kind, problem)
        leader_of(kind, problem, estimator=None).learn(1)


@pytest.mark.parametrize("kind", ["follower", "independent"])
def test_a_sparse_model_is_refused(kind: str) -> None:
    base = SparseMDP(csr_array(np.full((4, 2), 0.5)), torch.eye(2, dtype=F64), [0.5, 0.5], 0.9)  # type: ignore[arg-type]
    problem = ArrayProblem(base, LeaderSet.box(2, -1, 1), lambda x: base.r + x, lambda x: base.r - x)
    with pytest.raises(
        ValueError, match=r"^estimator: expected None, exact gradients, for a sparse model, got MonteCarlo"
    ):
        leader_of(kind, problem)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ["monte carlo", 5, MonteCarlo])
def test_an_estimator_of_another_type_is_named(kind: str, estimator: Any) -> None:
    with pytest.raises(ValueError, match=r"^config.estimator: expected MonteCarlo\(...\) or None"):
        leader_of(kind, estimator=estimator)


def test_the_record_is_exact() -> None:
    """Honest evaluation knows the model: nothing in it is sampled."""
    leader = leader_of("follower", keep_best=False).learn(3)
    record, problem, x = leader.evaluate(), game(), torch.from_numpy(leader.x)
    mdp, pi = problem.follower_mdp(x), leader.held.policies()[0].detach()
    slack = suboptimality(mdp, pi, record.tau, solve_soft(mdp, record.tau))
    assert record.leader_return == pytest.approx(leader_return_at_best_response(problem, x), rel=1e-9)
    assert record.leader_return_at_pi_y == pytest.approx(float(problem.leader_return(x, pi)), rel=1e-12)
    assert record.penalty == pytest.approx(float(slack), rel=1e-9)
    assert record.leader_return_stderr == 0.0
