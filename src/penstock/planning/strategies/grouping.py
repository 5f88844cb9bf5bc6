"""Which weights to join: small ones that calls read one after another and that lie close together in storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.planning.joining import MOST_MEMBERS, Join, joinable
from penstock.planning.problem import Problem

_SIZES_NBYTES = (4 << 20, 2 << 20)
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
    """What successive calls read, call by call, as long as all of that may be joined and no call goes on around it.

    Tiny weights do not count: they stay, if anything does.
    """
    may_join = joinable(problem)
    run: list[tuple[int, ...]] = []
    for index, call in enumerate(problem.calls):
        read = tuple(
            weight
            for weight in call.reads
            if problem.weights[weight].nbytes > problem.tiny_nbytes and not problem.weights[weight].rows_only
        )
        if call.last == index and may_join.issuperset(read):
            if read:
                run.append(read)
        elif run:
            yield run
            run = []
    if run:
        yield run


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
    first, last = problem.weights[members[0]], problem.weights[members[-1]]
    reach_nbytes = last.file_offset + last.nbytes - first.file_offset
    filled_nbytes = sum(problem.weights[weight].nbytes for weight in members)
    return (
        len(members) <= MOST_MEMBERS
        and len({problem.weights[weight].file for weight in members}) == 1
        and _LEAST_FILLED * reach_nbytes <= filled_nbytes <= reach_nbytes <= limit_nbytes
    )
