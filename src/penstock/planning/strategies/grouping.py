"""Which weights to join: small ones that calls read one after another and that lie close together in storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from penstock.planning.joining import JOIN_NBYTES, MOST_MEMBERS, Join, joinable
from penstock.planning.problem import Call, Problem

_SIZES_NBYTES = (JOIN_NBYTES, JOIN_NBYTES // 2)
"""Of a join at most. Larger ones save more loads, and take more space while one of their layers computes."""
_LEAST_FILLED = 0.9  # of what a join reads, what is not read in vain


def list_joins(problem: Problem) -> Iterator[tuple[Join, ...]]:
    """Ways to join weights, the largest joins first; none where there is nothing to join."""
    runs = list(_runs(problem))
    tried: set[tuple[Join, ...]] = {()}
    for limit_nbytes in _SIZES_NBYTES:
        joins = tuple(item for run in runs for item in _join_run(problem, run, limit_nbytes))
        if joins not in tried:
            tried.add(joins)
            yield joins


def _runs(problem: Problem) -> Iterator[list[tuple[int, ...]]]:
    """What successive calls read, call by call, as long as all of that may be joined.

    No call begins or ends around some of them only: then stays nest as calls do, with joins, too. Tiny weights do not
    count: they stay, if anything does.
    """
    may_join = joinable(problem)
    run: list[tuple[int, ...]] = []
    around: list[int] = []  # the last call of each call that goes on
    for index, call in enumerate(problem.calls):
        is_outside = bool(around) and around[-1] < index
        while around and around[-1] < index:
            around.pop()
        read = _read_whole(problem, call)
        if run and (is_outside or call.last > index or not may_join.issuperset(read)):
            yield run
            run = []
        if call.last > index:
            around.append(call.last)
        elif read and may_join.issuperset(read):
            run.append(read)
    if run:
        yield run


def _read_whole(problem: Problem, call: Call) -> tuple[int, ...]:
    weights = ((weight, problem.weights[weight]) for weight in call.reads)
    return tuple(index for index, weight in weights if weight.nbytes > problem.tiny_nbytes and not weight.rows_only)


def _join_run(problem: Problem, run: Sequence[tuple[int, ...]], limit_nbytes: int) -> Iterator[Join]:
    """Joins of neighbours in a run; each takes all that a call reads, so that their stays do not cross."""
    members: tuple[int, ...] = ()
    for read in run:
        together = _in_order(problem, (*members, *read))
        if _is_close(problem, together, limit_nbytes):
            members = together
            continue
        if len(members) > 1:
            yield Join(members)
        alone = _in_order(problem, read)
        members = alone if _is_close(problem, alone, limit_nbytes) else ()
    if len(members) > 1:
        yield Join(members)


def _in_order(problem: Problem, members: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(members, key=lambda weight: problem.weights[weight].file_offset))


def _is_close(problem: Problem, members: Sequence[int], limit_nbytes: int) -> bool:
    """Whether `members`, in order of place, lie close together in one file and are few and small enough."""
    weights = [problem.weights[weight] for weight in members]
    reach_nbytes = weights[-1].file_offset + weights[-1].nbytes - weights[0].file_offset
    return (
        len(members) <= MOST_MEMBERS
        and len({weight.file for weight in weights}) == 1
        and all(one.file_offset + one.nbytes <= other.file_offset for one, other in pairwise(weights))
        and _LEAST_FILLED * reach_nbytes <= sum(weight.nbytes for weight in weights)
        and reach_nbytes <= limit_nbytes
    )
