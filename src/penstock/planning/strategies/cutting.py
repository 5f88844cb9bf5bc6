"""Which weights to cut, into slices of about one size: those whose loads are long beside a pass, or do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from penstock.planning.ebbs import needed_with
from penstock.planning.problem import Problem
from penstock.planning.slicing import SLICE_NBYTES, Cut, Divided, cut_evenly, divide, slice_limit

_SHARES = (0.01, 0.005)
"""Of a pass, what loading a slice takes. The streaming region holds about two slices, whose memory keeps no resident;
each slice costs computing a moment. Between the two shares the loss is least, for all of a dozen models."""
_PARTS = (1, 2, 6)  # of the largest slices that fit: where those of a share do not, and where memory is tight


def list_divisions(problem: Problem, pass_seconds: float) -> Iterator[tuple[tuple[Cut, ...], Divided]]:
    """Cuts in which the problem has a plan, and the problem that they make; `pass_seconds` as a pass may take."""
    wanted = [int(share * pass_seconds * problem.storage.bytes_per_second) for share in _SHARES]
    most_nbytes = _most_feasible_nbytes(problem)
    feasible = [limit for limit in wanted if limit <= most_nbytes]
    limits = [*feasible, *(most_nbytes // part for part in _PARTS[len(feasible) :])]
    tried: set[tuple[Cut, ...]] = {()}
    for limit_nbytes in limits:
        cuts = _cut_above(problem, max(limit_nbytes, min(SLICE_NBYTES, most_nbytes)))
        if cuts not in tried:
            tried.add(cuts)
            yield cuts, divide(problem, cuts)


def _most_feasible_nbytes(problem: Problem) -> int:
    """A size of slices, the largest or half of it, with which the problem has a plan."""
    limit_nbytes = problem.budget_nbytes
    while limit_nbytes > 0:
        if needed_with(problem, partial(_extent, problem, limit_nbytes)) <= problem.budget_nbytes:
            return limit_nbytes
        limit_nbytes //= 2
    return 0  # as fine as can be


def _extent(problem: Problem, limit_nbytes: int, index: int) -> int:
    """What the largest slice of a weight may take, wherever in its block it begins."""
    weight, block = problem.weights[index], problem.storage.block_nbytes
    count = _slices(problem, index, limit_nbytes)
    if count == 1:
        return problem.extent_nbytes(index)
    nbytes = -(-weight.rows // count) * (weight.nbytes // weight.rows)
    return -(-(nbytes + block - 1) // block) * block


def _slices(problem: Problem, index: int, limit_nbytes: int) -> int:
    """Into how many slices a weight is cut so that they stay below the limit, or as far as that can be."""
    weight = problem.weights[index]
    if weight.rows_only or weight.nbytes <= limit_nbytes:
        return 1
    return min(slice_limit(weight), -(-weight.nbytes // max(limit_nbytes, 1)))


def _cut_above(problem: Problem, limit_nbytes: int) -> tuple[Cut, ...]:
    """Every weight above the limit in slices below it."""
    read = sorted({weight for call in problem.calls for weight in call.reads})
    counts = [(index, _slices(problem, index, limit_nbytes)) for index in read]
    return tuple(cut_evenly(problem.weights[index], index, count) for index, count in counts if count > 1)
