"""The passes that a plan predicts, as tracks: the simulation that its times come from, made visible."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.planning import PassTimeline, Plan, Problem, Timeline, simulate
from penstock.planning.costs import extent_nbytes
from penstock.planning.slicing import as_planned
from penstock.report.predicted_memory import memory_moments
from penstock.report.sizes import size_text
from penstock.report.timeline import COMPUTE, COPY, PASSES, STALLS, STORAGE, Occupancy, Span, Tracks

PASS_COUNT = 3
"""The cold pass, the one that follows it, and one that follows a warm one."""


def predicted_tracks(problem: Problem, plan: Plan, title: str, passes: int = PASS_COUNT) -> Tracks:
    """The first `passes` passes of a plan that `check` accepts for the problem, the first one cold."""
    timeline = simulate(problem, plan, passes)
    problem = as_planned(problem, plan.joins, plan.cuts)
    spans = [*_resident_spans(problem, plan, timeline)]
    ends = [0.0]
    for number, one in enumerate(timeline.passes):
        end = one.call_end[-1] if one.call_end else ends[-1]
        spans.append(Span(PASSES, f"pass {number + 1}{'' if number else ' (cold)'}", ends[-1], end))
        spans += _call_spans(plan, one, ends[-1])
        spans += _load_spans(problem, plan, one)
        ends.append(end)
    occupancy = tuple(_occupancy(problem, plan, timeline))
    memory = tuple(memory_moments(plan, timeline, occupancy))
    return Tracks(title, plan.arena_nbytes, tuple(spans), occupancy, memory=memory)


def _resident_spans(problem: Problem, plan: Plan, timeline: Timeline) -> Iterator[Span]:
    for slot, end in zip(plan.resident, timeline.resident_end, strict=True):
        details = {"stays": True, "size": size_text(problem.extent_nbytes(slot.weight))}
        begin = end - problem.load_seconds(slot.weight)
        yield Span(STORAGE, plan.weight_names[slot.weight], begin, end, details)


def _load_spans(problem: Problem, plan: Plan, one: PassTimeline) -> Iterator[Span]:
    for load, begin, end in zip(plan.loads, one.load_begin, one.load_end, strict=True):
        details = {"size": size_text(extent_nbytes(problem, load)), "for": plan.call_names[load.first_call]}
        yield Span(STORAGE, plan.weight_names[load.weight], begin, end, details)
    staged = plan.loads if one.copy_begin else ()
    for load, begin, end in zip(staged, one.copy_begin, one.copy_end, strict=True):
        details = {"size": size_text(extent_nbytes(problem, load)), "for": plan.call_names[load.first_call]}
        yield Span(COPY, plan.weight_names[load.weight], begin, end, details)


def _call_spans(plan: Plan, one: PassTimeline, pass_begin: float) -> Iterator[Span]:
    ended = pass_begin
    for name, begin, end, stall in zip(plan.call_names, one.call_begin, one.call_end, one.call_stall, strict=True):
        yield Span(COMPUTE, name, begin, end)
        if stall > 0:
            yield Span(STALLS, name, max(ended, begin - stall), begin)
        ended = end


def _occupancy(problem: Problem, plan: Plan, timeline: Timeline) -> Iterator[Occupancy]:
    """A place is taken when its load begins, or its copy where it is staged, and free when its last call ends."""
    changes: list[tuple[float, int, int]] = []  # moment, resident bytes, streamed bytes; at one moment frees come first
    for slot, end in zip(plan.resident, timeline.resident_end, strict=True):
        changes.append((end - problem.load_seconds(slot.weight), problem.extent_nbytes(slot.weight), 0))
    for number, one in enumerate(timeline.passes):
        for load, begin in zip(plan.loads, one.copy_begin or one.load_begin, strict=True):
            waited_for = timeline.passes[number + load.after_pass] if number + load.after_pass >= 0 else None
            if waited_for is not None and load.after_call >= 0:
                begin = max(begin, waited_for.call_end[load.after_call])  # the same but for rounding
            nbytes = extent_nbytes(problem, load)
            changes += [(begin, 0, nbytes), (one.call_end[load.last_call], 0, -nbytes)]
    resident_nbytes = streamed_nbytes = 0
    for moment, resident, streamed in sorted(changes):
        resident_nbytes, streamed_nbytes = resident_nbytes + resident, streamed_nbytes + streamed
        yield Occupancy(max(moment, 0.0), resident_nbytes, streamed_nbytes)
