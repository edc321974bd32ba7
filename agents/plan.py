"""Plan what a budget buys before any step is spent: iterations, the steps of each part, and when records are made.

It also warns of runs whose steps cannot cross X, and of runs that learned nothing.

A method gives the cost of its parts (``first_steps``, ``iteration_steps``, ``record_steps`` of :class:`~.leader.Method`),
including SB3's rounding up to whole rollouts; :func:`plan_of` simulates the loop of ``learn`` with these numbers.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from ..envs.mdp.checks import ArgumentError, check_size, require

CADENCE = 10
"""Default number of iterations between records that cost no steps."""
FAR = 0.75
"""Share of the distance from x's start to the farther end of X that a run should be able to cover."""
NOISE = 2.0
"""Number of standard errors within which a mean gradient counts as 0."""
SHARE = 3
"""By default, records take at most the budget divided by this."""


class Cost(NamedTuple):
    """Environment steps of one iteration.

    Attributes:
        followers: steps of the followers' training.
        leader: steps of the leader's own episodes, which estimate x's gradient.
        certain: whether the numbers are exact; for algorithms that train for whole episodes they are approximate.
        whole: whether x moves; False where the remaining steps end before that.
    """

    followers: int = 0
    leader: int = 0
    certain: bool = True
    whole: bool = True

    @property
    def steps(self) -> int:
        """Both together."""
        return self.followers + self.leader


class RecordCost(NamedTuple):
    """Environment steps of a record, i.e. of an evaluation at the best response.

    Attributes:
        first: steps of the next record.
        later: steps of each record after it, which compares more policies.
        certain: whether the numbers are exact.
    """

    first: int = 0
    later: int = 0
    certain: bool = True

    def steps(self, n: int) -> int:
        """Return the environment steps of n records."""
        return self.first + (n - 1) * self.later if n > 0 else 0


@dataclass(frozen=True)
class Cadence:
    """When a run makes records.

    Attributes:
        every: number of iterations between records; 0 for none in between.
        start: whether the run's initial x gets a record.
        end: whether the run's last x gets a record.
        reserved: steps of the budget reserved for the last record.
    """

    every: int = CADENCE
    start: bool = True
    end: bool = True
    reserved: int = 0


SILENT = Cadence(0, start=False, end=False)
"""No records."""


@dataclass(frozen=True)
class Plan:
    """What a budget buys.

    Attributes:
        leader: the leader's class.
        unit: unit of the budget, ``"total_timesteps"`` or ``"num_iterations"``.
        total: the budget.
        iterations: number of outer iterations, i.e. updates of x; None where the method does not know their cost.
        first_steps: environment steps before the first iteration, e.g. random play.
        follower_steps: environment steps of the followers' training, including a warm-up.
        leader_steps: environment steps of the leader's own episodes.
        record: cost of a record.
        records: number of records.
        cadence: when they are made.
        least: the smallest budget that buys an iteration: the cost of the first one and of all before it.
        certain: whether the numbers are exact.
    """

    leader: str
    unit: str
    total: int
    iterations: int | None
    first_steps: int = 0
    follower_steps: int = 0
    leader_steps: int = 0
    record: RecordCost = field(default_factory=lambda: RecordCost())
    records: int = 0
    cadence: Cadence = field(default_factory=lambda: Cadence())
    least: int = 1
    certain: bool = True

    @property
    def evaluation_steps(self) -> int:
        """Environment steps of all records."""
        return self.record.steps(self.records)

    @property
    def spent(self) -> int:
        """Total environment steps; the last iteration and record may exceed the budget."""
        return self.first_steps + self.follower_steps + self.leader_steps + self.evaluation_steps

    def require_iteration(self) -> None:
        """Raise ``ValueError`` where the budget buys no iteration."""
        about = "" if self.certain else "about "
        costs = f"one iteration costs {about}{self.least:,} steps, including all before the first one"
        expected = f"at least {self.least} ({costs}; see leader.plan)"
        require(self.iterations is None or self.total >= self.least, self.unit, expected, self.total)

    def __str__(self) -> str:
        unit = "step" if self.unit == "total_timesteps" else "iteration"
        if self.iterations is None or unit == "iteration":
            return f"{self.leader}: {self.total:,} {unit}{'' if self.total == 1 else 's'}"
        about = "" if self.certain else "about "
        if self.records:
            each = f"{self.records:,} record{'s' if self.records > 1 else ''}"
            records = (
                f"{each} of {self.record.later:,}" if self.record.later else f"{each} from the model, which cost none"
            )
        elif self.record.later:
            records = f"no record: one costs {self.record.later:,}, more than a third of the budget"
        else:
            records = "no records"
        parts = {
            "before the first iteration": (self.first_steps, ""),
            "followers' training": (self.follower_steps, ""),
            "leader's own episodes": (self.leader_steps, ""),
            "evaluation": (self.evaluation_steps, f"  ({records})"),
            "in all": (self.spent, ""),
        }
        shown = {name: part for name, part in parts.items() if part[0] or name in ("evaluation", "in all")}
        lines = [f"  {name:<27}{steps:>14,} steps{note}" for name, (steps, note) in shown.items()]
        n = f"{self.iterations:,} iteration{'' if self.iterations == 1 else 's'}"
        return "\n".join([f"{self.leader}: {self.total:,} steps buy {about}{n}", *lines])


def budget(leader: Any, total: Any, **words: Any) -> int:
    """Return the budget of a call of ``learn`` or ``plan``: the first argument, or the one named by the leader's unit.

    Args:
        leader: the leader.
        total: the first argument, or None.
        words: ``total_timesteps`` and ``num_iterations``, None where not given.

    Raises:
        ValueError: no budget or two are given, or one that is not an integer of at least 1, or in the unit of other leaders.
    """
    word, name = leader.method.counts, type(leader).__name__
    named = {key: value for key, value in words.items() if value is not None}
    for wrong in [key for key in named if key != word]:
        raise ArgumentError(f"{wrong}: expected {word}, which is what {name} counts, got {wrong}={named[wrong]!r}")
    given = [value for value in (total, *named.values()) if value is not None]
    if len(given) != 1:
        raise ArgumentError(f"{word}: expected one number, got {given if given else 'none'}")
    return check_size(given[0], word)


def plan_of(leader: Any, total: int, afresh: bool) -> Plan:
    """Plan a call of ``learn(total)``.

    Args:
        leader: the leader, whose state shows whether the warm-up is done.
        total: the budget of the call.
        afresh: whether counting starts again at 0.
    """
    method, state, run = leader.method, leader.state, leader.run
    done, gone = (0, 0) if afresh else (state.num_timesteps, run.iteration)
    limit, first = done + total, method.first_steps(state)
    steps, record = method.counts == "total_timesteps", method.record_steps(state) if method.judges else RecordCost()
    # The cost of an iteration, in units of the budget: its steps, or 1.
    cost: Callable[..., Cost] = partial(method.iteration_steps, state) if steps else lambda *_: Cost(1)
    wanted = method.config.eval_every if method.judges else None
    cadence = Cadence(wanted or CADENCE) if method.judges else SILENT
    plan = Plan(type(leader).__name__, method.counts, total, None, first, record=record, cadence=cadence)
    if cost(limit, True).steps == 0:  # a method that does not know its cost
        return plan

    def looped(cadence: Cadence) -> dict[str, Any]:
        """Simulate the loop of ``learn``; return its counts."""
        begins = cadence.start and (afresh or run.kept is None)

        def made(n: int) -> int:
            """Return the number of records made in the first n iterations."""
            return (gone + n) // every - gone // every if every else 0

        at, records, spent = done + first + record.steps(begins), int(begins), list[Cost]()
        enough, every = limit - cadence.reserved, cadence.every
        if at < enough:
            spent.append(cost(limit, True, limit - at))
            at = done + first + spent[0].steps + record.steps(begins + made(1))
        one = cost(limit, False)
        if at < enough:
            # Further iterations with their records; the last iteration may end early.
            def spends(m: int) -> int:
                return m * one.steps + record.steps(begins + made(1 + m)) - record.steps(begins + made(1))

            n = 1 + bisect_left(range(1 + -(-(enough - at) // one.steps)), enough - at, key=spends)
            last = cost(limit, False, limit - at - spends(n - 2))
            spent += [Cost((n - 2) * one.followers, (n - 2) * one.leader, one.certain), last]
        else:
            n = len(spent)
        records += made(n) + (cadence.end and not (n and every and (gone + n) % every == 0))
        whole = n - (n > 0 and not spent[-1].whole)
        steps = {"follower_steps": sum(c.followers for c in spent), "leader_steps": sum(c.leader for c in spent)}
        return {"iterations": whole, "records": records, **steps, "certain": all(c.certain for c in (record, *spent))}

    # Records: as the config says; else every ten iterations if they cost no steps, or as often as a third of the budget allows.
    if method.judges and wanted is None and record.later > 0:
        k = total // SHARE // record.later
        n = looped(replace(SILENT, reserved=k * record.later))["iterations"]
        cadence = SILENT if k == 0 else Cadence(math.ceil(n / (k - 1)) if k > 1 else 0, k > 1, True, record.later)
    # The smallest budget for the first iteration and all before it; a smaller budget has a shorter warm-up.
    before = first + (record.first if cadence.start and wanted is not None else 0)
    least = before + cost(0, True).steps
    while least < (longer := before + cost(least, True).steps):
        least = longer
    found = looped(cadence) | ({} if steps else {"follower_steps": 0})
    return replace(plan, cadence=cadence, least=least, **found)


def warn_of_reach(leader: Any, plan: Plan) -> None:
    """Warn before a run if its steps can move x neither across X nor by the scale of X."""
    if plan.iterations is None or not leader.method.judges:
        return
    X, x = leader.method.leader_set, leader.state.x.detach()
    reach = leader.method.reach(plan.iterations)
    farthest = float(torch.maximum(X.high - x, x - X.low).clamp(max=2.0 * X.budget).max())
    rate = "learning_rate" if leader.config.learning_rate is None else f"learning_rate={leader.config.learning_rate}"
    if reach < min(FAR * farthest, X.scale):
        warnings.warn(
            f"x cannot cross X: {plan.iterations:,} steps of x move it by at most {reach:.3g}, but X extends {farthest:.3g} from "
            f"the initial x. Raise the learning rate ({rate}) or the budget, or bound X by low and high",
            stacklevel=4,
        )


def warn_of_end(leader: Any) -> None:
    """Warn after a run if x is where it started, or if its gradient estimates were noise and no record is better."""
    run, signal = leader.run, leader.gradient_signal
    if not leader.method.judges or run.start is None:
        return
    noise = signal is not None and 0.0 < signal < NOISE  # exactly 0 where every estimate was
    told = f"the estimates of its gradient are noise (their mean is {signal:.2g} standard errors)" if noise else ""
    exact, zero = leader.method.counts == "num_iterations", "its gradient is 0 there, or points out of X"
    effort = "more steps of the followers, more episodes of the estimator, or a larger budget (see leader.plan)"
    remedy = (
        effort
        if noise
        else "another initial x (x0), or more iterations"
        if exact
        else f"another initial x (x0), {effort}"
    )
    if np.array_equal(leader.x, run.start.numpy()):
        if np.array_equal(leader.last_x, run.start.numpy()):
            why = told or (zero if exact else f"{zero}, or x waited for the best response")
        else:
            later = f"no later record is better than the first, although last_x is {leader.moved:.2g} of X's width away"
            why = later + (f"; {told}" if told else "")
        warnings.warn(f"x ends where it began: {why}. What may help: {remedy}", stacklevel=4)
    elif noise and not _improved(run):
        warnings.warn(f"x may be no better than its start: {told}. What may help: {remedy}", stacklevel=4)


def _improved(run: Any) -> bool:
    """Whether the best record is better than the initial one by more than their errors."""
    first = run.history[0] if run.history else None
    if first is None or first.iteration > 0 or run.kept is None:
        return False
    best = run.kept.evaluation
    error = math.hypot(first.leader_return_stderr or 0.0, best.leader_return_stderr or 0.0)
    return bool(best.leader_return > first.leader_return + NOISE * error)
