"""Which weights to cut: those that are large beside the memory that there is, into slices of about one size."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.planning.lifetimes import needed_nbytes
from penstock.planning.problem import Problem
from penstock.planning.slicing import Cut, Divided, cut_evenly, divide, slice_limit
from penstock.planning.strategies.whole import capacity_nbytes

_SHARES = (4, 12, 36)  # of the memory for weights, what slices may have at most


def list_divisions(problem: Problem) -> Iterator[tuple[tuple[Cut, ...], Divided]]:
    """Cuts in which the problem has a plan, the coarsest first, and the problem that they make."""
    tried: set[tuple[Cut, ...]] = set()
    capacity = capacity_nbytes(problem)
    is_found = False
    for share in (*_SHARES, None):
        cuts = _cut_above(problem, 0 if share is None else capacity // share)
        if not cuts or cuts in tried or (share is None and is_found):
            continue
        tried.add(cuts)
        divided = divide(problem, cuts)
        if needed_nbytes(divided.problem, sliced=False) <= problem.budget_nbytes:
            is_found = True
            yield cuts, divided


def _cut_above(problem: Problem, limit_nbytes: int) -> tuple[Cut, ...]:
    """Every weight above the limit in slices below it, or as fine as they can be."""
    cuts = []
    for index in sorted({weight for call in problem.calls for weight in call.reads}):
        weight = problem.weights[index]
        if weight.rows_only or weight.nbytes <= limit_nbytes:
            continue
        count = min(slice_limit(weight), -(-weight.nbytes // max(limit_nbytes, 1)))
        if count > 1:
            cuts.append(cut_evenly(weight, index, count))
    return tuple(cuts)
