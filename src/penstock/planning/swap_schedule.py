"""When chosen storages leave and come back, and what that costs (AutoSwap, arXiv 1903.06631, section on scheduling).

Writes go one after another, each as early as its last use allows; reads one after another, each as late as it may be
for its next use and the read after it. Two schedules: *stick to the limit*, whose segments wait until there is room,
and *no overhead*, in which nothing waits and the limit may be missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from penstock.planning.swap_plan import Swap, SwapPlan
from penstock.planning.swap_problem import Absence, SwapProblem

SLACK = 4
"""A write that nothing waits for may end so many segments late before the place that it leaves is given to others."""


@dataclass(frozen=True)
class Schedule:
    """Swaps in the order of writing; how many of them are written before each segment; when the iteration ends."""

    swaps: tuple[Swap, ...]
    gone: tuple[int, ...]
    peak_nbytes: int
    seconds: float


def stick_to_limit(problem: SwapProblem, chosen: Iterable[Absence]) -> Schedule | None:
    """The schedule that is within the limit at any moment, however slow the links; None if there is none."""
    order = _in_order(chosen)
    reads = _latest_reads(problem, order)
    away = problem.away_nbytes(order, reads)
    for segment in np.flatnonzero(problem.load_nbytes - away > problem.limit_nbytes):
        lacking = int(problem.load_nbytes[segment] - away[segment]) - problem.limit_nbytes
        early = [i for i, a in enumerate(order) if reads[i] <= segment < a.returns and a.leaves <= segment]
        for index in sorted(early, key=lambda i: -order[i].returns):  # what is needed last is delayed first
            if lacking <= 0:
                break
            lacking -= order[index].nbytes
            away[reads[index] : segment + 1] += order[index].nbytes
            reads[index] = int(segment) + 1
        if lacking > 0:
            return None
    swaps = _swaps(order, reads)
    gone = writes_before(problem, swaps)
    peak_nbytes = int((problem.load_nbytes - away).max())
    return Schedule(swaps, gone, peak_nbytes, simulate_swaps(problem, swaps, gone))


def no_overhead(problem: SwapProblem, chosen: Iterable[Absence]) -> Schedule:
    """The schedule in which nothing waits; what cannot be written and read in time stays."""
    order = _in_order(chosen)
    while True:
        reads, written = _latest_reads(problem, order), problem.written_seconds((a.leaves, a.nbytes) for a in order)
        late = [i for i, a in enumerate(order) if written[i] > problem.starts[reads[i]] or reads[i] <= a.leaves]
        if not late:
            break
        del order[late[0]]
    swaps = _swaps(order, reads)
    gone = (0,) * len(problem.seconds)
    present_nbytes = problem.load_nbytes.copy()
    for swap, first in zip(swaps, np.searchsorted(problem.starts, written), strict=True):
        present_nbytes[first : swap.reads_at] -= swap.nbytes
    return Schedule(swaps, gone, int(present_nbytes.max()), simulate_swaps(problem, swaps, gone))


def _in_order(chosen: Iterable[Absence]) -> list[Absence]:
    return sorted(chosen, key=lambda absence: (absence.leaves, -absence.nbytes, absence.storage))


def _swaps(order: Sequence[Absence], reads: Sequence[int]) -> tuple[Swap, ...]:
    """Those that are ever away."""
    pairs = zip(order, reads, strict=True)
    return tuple(Swap(a.storage, a.nbytes, a.leaves, read, a.returns) for a, read in pairs if read > a.leaves)


def _latest_reads(problem: SwapProblem, order: Sequence[Absence]) -> list[int]:
    """For each absence the last segment at whose start its reading may begin, so that no use waits."""
    reads = [0] * len(order)
    free = float("inf")  # when the read after it has to begin
    for index in sorted(range(len(order)), key=lambda i: (-order[i].returns, i)):
        absence = order[index]
        free = min(problem.starts[absence.returns], free) - problem.back.seconds(absence.nbytes)
        segment = int(np.searchsorted(problem.starts, free, side="right")) - 1
        reads[index] = min(max(segment, absence.leaves), absence.returns)
    return reads


def writes_before(problem: SwapProblem, swaps: Sequence[Swap]) -> tuple[int, ...]:
    """For each segment, how many of the first swaps have to be written before it, so that there is room for it."""
    gone: list[int] = []
    for segment, load_nbytes in enumerate(problem.load_nbytes):
        lacking, count = int(load_nbytes) - problem.limit_nbytes, 0
        for index, swap in enumerate(swaps):
            if lacking <= 0 or swap.leaves > segment:
                break
            if swap.reads_at > segment:
                lacking -= swap.nbytes
                count = index + 1
        gone.append(count)
    return tuple(gone)


def gone_in_time(problem: SwapProblem, plan: SwapPlan) -> SwapPlan:
    """`plan`, in which every write is waited for where others get its place: a little later than it should end.

    Where no room is needed the plan waits for nothing; places planned beforehand need to know.
    """
    gone = list(plan.gone)
    written = problem.written_seconds((swap.leaves, swap.nbytes) for swap in plan.swaps)
    for index, (swap, expected) in enumerate(zip(plan.swaps, np.searchsorted(problem.starts, written), strict=True)):
        first = min(max(int(expected) + SLACK, swap.leaves + 1), swap.reads_at)
        for segment in range(first, len(gone)):
            gone[segment] = max(gone[segment], index + 1)
    return replace(plan, gone=tuple(gone))


def gone_by(plan: SwapPlan) -> tuple[int, ...]:
    """For each swap the segment at whose start it has left for certain."""
    return tuple(
        next((segment for segment, count in enumerate(plan.gone) if count > index), swap.reads_at)
        for index, swap in enumerate(plan.swaps)
    )


def simulate_swaps(problem: SwapProblem, swaps: Sequence[Swap], gone: Sequence[int]) -> float:
    """Seconds that an iteration takes: segments wait for room and for what they use, links for their last transfer."""
    leaving = by_segment(swap.leaves for swap in swaps)
    reading = by_segment(swap.reads_at for swap in swaps)
    using = by_segment(swap.returns for swap in swaps)
    written: list[float] = []
    back: dict[int, float] = {}
    now = write_free = read_free = 0.0
    for segment, seconds in enumerate(problem.seconds):
        for index in leaving.get(segment, ()):
            write_free = max(now, write_free) + problem.out.seconds(swaps[index].nbytes)
            written.append(write_free)
        if gone[segment]:
            now = max(now, written[gone[segment] - 1])
        for index in reading.get(segment, ()):
            if written[index] > now:  # still there
                back[index] = written[index]
            else:
                read_free = max(now, read_free) + problem.back.seconds(swaps[index].nbytes)
                back[index] = read_free
        for index in using.get(segment, ()):
            now = max(now, back[index])
        now += seconds
    last = [back[index] for index in using.get(len(problem.seconds), ()) if index in back]
    return max([now, *last])


def by_segment(segments: Iterable[int]) -> dict[int, list[int]]:
    """For each segment that is named, where."""
    found: dict[int, list[int]] = {}
    for index, segment in enumerate(segments):
        found.setdefault(segment, []).append(index)
    return found
