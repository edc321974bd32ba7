r"""Stacks several problems of the same kind and size into one, which is solved and sampled as a batch.

A stack of N problems has a leading axis N on every table. Its x is (x_1, .., x_N), its X the product of the problems' sets, and
its objective ``(1/N) sum_i J_i(x_i, pi_i)``. The problems do not interact: a gradient step with N times the
learning rate is each problem's own gradient step, and a step of Adam, which is independent of scale, is each problem's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .checks import require
from .incentive import IncentiveDesignProblem
from .stackelberg import StackelbergProblem

StackableT = TypeVar("StackableT", StackelbergProblem, IncentiveDesignProblem)


def stack_problems(problems: Sequence[StackableT]) -> StackableT:
    """Stack N Stackelberg games, or N incentive design problems, into one problem.

    Raises:
        ValueError: there are no problems; they differ in kind, sizes, gamma or tau; or one is itself a stack.
    """
    require(len(problems) >= 1, "problems", "at least one", "none")
    head = problems[0]
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(head):
        values: list[Any] = [getattr(problem, field.name, None) for problem in problems]
        first = values[0]
        for i, (problem, value) in enumerate(zip(problems, values, strict=True)):
            name = f"problems[{i}]"
            require(type(problem) is type(head), name, f"a {type(head).__name__}", type(problem).__name__)
            if isinstance(first, Tensor):
                expected, found = tuple(first.shape), tuple(value.shape)
                require(found == expected, name, f"{field.name} of shape {expected}", f"shape {found}")
            else:
                require(value == first, name, f"{field.name} of {first}", value)
        columns[field.name] = torch.stack(values) if isinstance(first, Tensor) else first
    return type(head)(**columns)
