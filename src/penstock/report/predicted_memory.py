"""All memory over the predicted passes of a plan, by kind, moment by moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from penstock.planning import Plan, Timeline
from penstock.planning.memory import CallMemory, memory_over_time
from penstock.report.timeline import MemoryMoment, Occupancy


def memory_moments(plan: Plan, timeline: Timeline, occupancy: Sequence[Occupancy]) -> Iterator[MemoryMoment]:
    """What is in memory whenever a call begins or something comes into the arena or leaves it.

    A call's activations count from the end of the call before it, so also while it waits for its weights. The arena is
    in memory as a whole, if not yet in the cold pass, in which the system gives its pages as they are first written.
    """
    calls = memory_over_time(plan)
    changes: list[tuple[float, CallMemory | Occupancy]] = [(each.seconds, each) for each in occupancy]
    for previous, one in zip((None, *timeline.passes), timeline.passes, strict=False):
        before = previous.call_end[-1] if previous is not None and previous.call_end else 0.0
        changes += zip((before, *one.call_end), calls, strict=False)
    present, about = Occupancy(0.0, 0, 0), calls[0] if calls else None
    for seconds, together in groupby(sorted(changes, key=lambda item: item[0]), key=lambda item: item[0]):
        for _, change in together:
            if isinstance(change, Occupancy):
                present = change
            else:
                about = change
        if about is not None:
            yield MemoryMoment(seconds, _at(plan, about, present).by_kind)


def _at(plan: Plan, about: CallMemory, present: Occupancy) -> CallMemory:
    taken_nbytes = present.resident_nbytes + present.streamed_nbytes
    return replace(
        about,
        resident_nbytes=present.resident_nbytes,
        streamed_nbytes=present.streamed_nbytes,
        free_nbytes=max(plan.arena_nbytes - about.lent_nbytes - taken_nbytes, 0),
    )
