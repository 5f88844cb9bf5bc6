"""When chosen storages leave and come back, and what that costs (AutoSwap, arXiv 1903.06631, section on scheduling).

Writes go one after another, each as early as its last use allows; reads one after another, each as late as it may be
for its next use and the read after it. Two schedules: *stick to the limit*, whose segments wait until there is room,
and *no overhead*, in which nothing waits and the limit may be missed. Iterations follow each other: what one has begun
goes on in the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from penstock.planning.swap_plan import Swap, SwapPlan
from penstock.planning.swap_problem import Absence, Ints, SwapProblem
from penstock.planning.swap_simulation import simulate_swaps

SLACK = 4
"""A write that nothing waits for may end so many segments late before the place that it leaves is given to others."""


@dataclass(frozen=True)
class Schedule:
    """Swaps in the order of writing; the most that is in memory; how long an iteration takes."""

    swaps: tuple[Swap, ...]
    peak_nbytes: int
    seconds: float


def stick_to_limit(problem: SwapProblem, chosen: Iterable[Absence]) -> Schedule | None:
    """The schedule that is within the limit at any moment, however slow the links; None if there is none."""
    order = _in_order(chosen)
    reads = _latest_reads(problem, order)
    away = problem.away_nbytes(order, reads)
    for segment in np.flatnonzero(problem.load_nbytes - away > problem.limit_nbytes):
        if not _delay_reads(problem, order, reads, away, int(segment)):
            return None
    swaps = _swaps(problem, order, reads)
    peak_nbytes = int((problem.load_nbytes - away).max())
    return Schedule(swaps, peak_nbytes, simulate_swaps(problem, swaps).seconds)


def _delay_reads(problem: SwapProblem, order: Sequence[Absence], reads: list[int], away: Ints, segment: int) -> bool:
    """Have fewer bytes back in this segment, until it is within the limit; whether it is. Changes `reads`, `away`."""
    lacking = int(problem.load_nbytes[segment] - away[segment]) - problem.limit_nbytes
    early = {i: at for i, a in enumerate(order) if reads[i] <= (at := _at(problem, a, segment)) < a.returns}
    for index, at in sorted(early.items(), key=lambda pair: pair[1] - order[pair[0]].returns):
        if lacking <= 0:  # what is needed last is delayed first
            break
        lacking -= order[index].nbytes
        delayed = np.arange(reads[index], at + 1) % problem.count
        away[delayed] += order[index].nbytes
        reads[index] = at + 1
    return lacking <= 0


def _at(problem: SwapProblem, absence: Absence, segment: int) -> int:
    """The segment's number after the begin of the absence."""
    return segment if segment >= absence.leaves else segment + problem.count


def no_overhead(problem: SwapProblem, chosen: Iterable[Absence]) -> Schedule:
    """The schedule in which nothing waits; what cannot be written and read in time stays."""
    order = _in_order(chosen)
    while True:
        reads, written = _latest_reads(problem, order), problem.written_seconds([(a.leaves, a.nbytes) for a in order])
        late = [i for i, a in enumerate(order) if written[i] > problem.start(reads[i]) or reads[i] <= a.leaves]
        if not late:
            break
        del order[late[0]]
    swaps = tuple(Swap(a.storage, a.nbytes, a.leaves, r, r, a.returns) for a, r in zip(order, reads, strict=True))
    gone = [replace(a, returns=r) for a, r in zip(order, reads, strict=True)]
    late_nbytes = problem.away_nbytes(gone, [_first_after(problem, seconds) for seconds in written])
    peak_nbytes = int((problem.load_nbytes - problem.away_nbytes(gone) + late_nbytes).max())
    return Schedule(swaps, peak_nbytes, simulate_swaps(problem, swaps).seconds)


def _first_after(problem: SwapProblem, seconds: float) -> int:
    """The first segment that starts then or later."""
    segment = problem.segment_at(seconds)
    return segment if problem.start(segment) >= seconds else segment + 1


def _in_order(chosen: Iterable[Absence]) -> list[Absence]:
    return sorted(chosen, key=lambda absence: (absence.leaves, -absence.nbytes, absence.storage))


def _swaps(problem: SwapProblem, order: Sequence[Absence], reads: Sequence[int]) -> tuple[Swap, ...]:
    """Those that are ever away, with what has to be written when so that there is room."""
    away = [i for i, absence in enumerate(order) if reads[i] > absence.leaves]
    gone_by = {i: reads[i] if order[i].recompute_seconds is None else order[i].leaves for i in away}
    for segment in np.flatnonzero(problem.load_nbytes > problem.limit_nbytes):
        lacking = int(problem.load_nbytes[segment]) - problem.limit_nbytes
        left = {i: at for i in away if (at := _at(problem, order[i], int(segment))) < reads[i]}
        lacking -= sum(order[i].nbytes for i in left if order[i].recompute_seconds is not None)
        moved = [i for i in left if order[i].recompute_seconds is None]
        for index in sorted(moved, key=lambda i: order[i].leaves - left[i]):  # the one that left first is written first
            if lacking <= 0:
                break
            lacking -= order[index].nbytes
            gone_by[index] = min(gone_by[index], left[index])
    return tuple(
        Swap(a.storage, a.nbytes, a.leaves, gone_by[i], reads[i], a.returns, a.recompute_seconds)
        for i in away
        for a in (order[i],)
    )


def _latest_reads(problem: SwapProblem, order: Sequence[Absence]) -> list[int]:
    """For each absence the last segment at whose start its reading may begin, so that no use waits."""
    count = problem.count
    reads = [0] * len(order)
    by_return = sorted(range(len(order)), key=lambda i: (-(order[i].returns % count), i))
    free = float("inf")  # when the read after it has to begin
    for _ in range(2):  # the first time finds what those of the next iteration need
        for index in by_return:
            absence, returns = order[index], order[index].returns % count
            if absence.recompute_seconds is not None:
                reads[index] = absence.returns
                continue
            free = min(problem.start(returns), free) - problem.back.seconds(absence.nbytes)
            segment = problem.segment_at(free) + absence.returns - returns
            reads[index] = min(max(segment, absence.leaves), absence.returns)
        free += problem.compute_seconds
    return reads


def gone_in_time(problem: SwapProblem, plan: SwapPlan) -> SwapPlan:
    """`plan`, in which every write is waited for where others get its place: a little later than it should end.

    Where no room is needed the plan waits for nothing; places planned beforehand need to know.
    """
    moved = [swap for swap in plan.swaps if swap.recompute_seconds is None]
    written = dict(zip(moved, problem.written_seconds([(swap.leaves, swap.nbytes) for swap in moved]), strict=True))
    swaps = []
    for swap in plan.swaps:
        seconds = written.get(swap, problem.start(swap.leaves))
        expected = max(_first_after(problem, seconds) + SLACK, swap.leaves + 1)
        swaps.append(replace(swap, gone_by=min(swap.gone_by, expected)))
    return replace(plan, swaps=tuple(swaps))
