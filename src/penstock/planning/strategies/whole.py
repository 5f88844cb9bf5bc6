"""What the published strategies share: weights that stream whole, tables that do not, small weights that stay.

None of the papers has small weights or tables in its plan. Weights up to `Problem.tiny_nbytes` stay resident where
that fits, as in Demand Layering's code, which streams large layers only: each would cost a request for next to nothing.
Tables of which calls read a few rows are left to the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from penstock.planning.lifetimes import Use
from penstock.planning.problem import Problem


def list_tables(problem: Problem) -> list[int]:
    """The tables that calls read by rows."""
    read = {weight for call in problem.calls for weight in call.reads}
    return sorted(weight for weight in read if problem.weights[weight].rows_only)


def capacity_nbytes(problem: Problem) -> int:
    """What the budget leaves for weights, in whole blocks."""
    left_nbytes = problem.budget_nbytes - problem.reserve.total_nbytes
    return left_nbytes - left_nbytes % problem.storage.block_nbytes


def extents_nbytes(problem: Problem, weights: Iterable[int]) -> int:
    """What `weights` take together."""
    return sum(problem.extent_nbytes(weight) for weight in weights)


def keep_tiny(problem: Problem, uses: Sequence[Use], least_nbytes: Callable[[Sequence[Use]], int]) -> frozenset[int]:
    """The smallest of the tiny weights, as many as leave what streaming the rest takes at least."""
    capacity = capacity_nbytes(problem)
    tiny = {use.weight for use in uses if problem.weights[use.weight].nbytes <= problem.tiny_nbytes}
    order = sorted(tiny, key=lambda weight: (problem.extent_nbytes(weight), weight))
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        kept = frozenset(order[:middle])
        rest = [use for use in uses if use.weight not in kept]
        if extents_nbytes(problem, kept) + least_nbytes(rest) <= capacity:
            low = middle
        else:
            high = middle - 1
    return frozenset(order[:low])
