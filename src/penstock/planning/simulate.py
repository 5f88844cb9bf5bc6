"""The exact timeline of a plan: one storage server, one computing thread, space freed by calls that ended.

The two-stage pipeline of Ji et al., "Demand Layering", RTSS 2022 (arXiv 2210.04024):
R[i] = max(R[i-1], when its space is free) + r[i] and K[k] = max(K[k-1], R of what call k reads) + seconds[k],
here carried on over the end of a pass, so that the loads of the next pass start while this one still computes. A
planned begin is a moment before which space does not count as free. `staged` has the pipelines with a copy between.
A call has ended here when the next one begins: what an outer call computes after inner ones is counted with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from penstock.planning.costs import all_seconds, call_seconds, extent_nbytes, losses, row_stalls
from penstock.planning.memory import peak_nbytes
from penstock.planning.occupancy import streamed_over_calls
from penstock.planning.plan import LOCKSTEP, PLANNED, PRELOAD, Load, Plan, Prediction
from penstock.planning.problem import Problem
from penstock.planning.slicing import as_planned
from penstock.planning.staged import LockstepClock, StagedClock, Stages
from penstock.planning.timeline import PassTimeline, Timeline

_CONVERGED = 1e-9  # relative change of every event's distance to its own a pass before
_PASSES = 48  # far above what real models need to settle; a bound covers the rest


@dataclass(frozen=True, slots=True)
class Schedule:
    """A plan as flat numbers for the inner loop.

    Attributes:
        call_seconds: compute and row stalls of each call.
        needed: how many loads, counted from the first, must have ended before each call; 0 for no new ones.
        load_seconds: of each load.
        release: for each load the event that frees its space, an index into `Clock.ends`.
        order: for each load its index in the plan, -1 for a resident's; only what stages asks for it.
    """

    call_seconds: Sequence[float]
    needed: Sequence[int]
    load_seconds: Sequence[float]
    release: Sequence[int]
    order: Sequence[int] = ()


class Clock:
    """Where a run of passes stands.

    `ends` holds, for n calls, their ends in the pass before (0 to n-1), their ends in this pass (n to 2n-1), and the
    begin of time (2n), for loads that wait for nothing.
    """

    copy_ends: Sequence[float] = ()  # nothing is copied
    copying_seconds = 0.0

    def __init__(self, call_count: int) -> None:
        self.ends = [0.0] * (2 * call_count + 1)
        self.load_ends: list[float] = []
        self.compute = 0.0
        self.server = 0.0

    def advance(self, schedule: Schedule) -> None:
        """Run one more pass."""
        seconds, load_seconds, release = schedule.call_seconds, schedule.load_seconds, schedule.release
        ends, compute, server = self.ends, self.compute, self.server
        count = len(seconds)
        ends[:count] = ends[count : 2 * count]
        self.load_ends = load_ends = [0.0] * len(load_seconds)
        position = 0
        for call, stop in enumerate(schedule.needed):
            if stop > position:
                for load in range(position, stop):
                    released = ends[release[load]]
                    server = (released if released > server else server) + load_seconds[load]
                    load_ends[load] = server
                position = stop
                if server > compute:
                    compute = server
            compute += seconds[call]
            ends[count + call] = compute
        self.compute, self.server = compute, server


AnyClock = Clock | StagedClock


def warm_schedule(problem: Problem, plan: Plan) -> Schedule:
    """The flat numbers of a pass of `plan` in which all residents are there."""
    count, loads = len(problem.calls), plan.loads
    needed = [0] * count
    for index, load in enumerate(loads):
        needed[load.first_call] = index + 1  # loads come in order, so all before it have
    durations = all_seconds(problem, loads, plan.ebbs)
    first_calls = [load.first_call for load in loads]
    return Schedule(
        call_seconds=call_seconds(problem, plan.rows, first_calls, losses(problem, plan, durations)),
        needed=needed,
        load_seconds=durations,
        release=[_release(load, count) for load in loads],
        order=range(len(loads)),
    )


def simulate(problem: Problem, plan: Plan, passes: int = 4) -> Timeline:
    """Run `passes` passes of a plan, the first one cold. The plan must be one that `check` accepts for the problem."""
    problem = as_planned(problem, plan.joins, plan.cuts)
    clock = _clock(problem, plan)
    cold, resident_position, load_position = _cold_schedule(problem, plan)
    warm = warm_schedule(problem, plan)
    stalls = row_stalls(problem, plan.rows)
    timelines = []
    resident_end: tuple[float, ...] = ()
    for index in range(passes):
        clock.advance(warm if index else cold)
        load_ends = clock.load_ends
        if index == 0:
            resident_end = tuple(load_ends[position] for position in resident_position)
            load_ends = [load_ends[position] for position in load_position]
        timeline = _pass_timeline(problem, clock, stalls, load_ends, warm.load_seconds)
        timelines.append(_with_copies(problem, plan, timeline, clock.copy_ends))
    return Timeline(tuple(timelines), resident_end)


def predict(problem: Problem, plan: Plan) -> Prediction:
    """The steady state and the cold pass of a plan that `check` accepts; what bounds them, `bounded` says."""
    problem = as_planned(problem, plan.joins, plan.cuts)
    clock = _clock(problem, plan)
    clock.advance(_cold_schedule(problem, plan)[0])
    cold_seconds = clock.compute
    schedule = warm_schedule(problem, plan)
    streamed_nbytes = sum(extent_nbytes(problem, load) for load in plan.loads)
    compute_seconds = problem.compute_seconds
    warm_seconds = max(compute_seconds, steady_seconds(schedule, clock, _PASSES))
    call_stall_seconds = _call_stalls(schedule, clock, row_stalls(problem, plan.rows))
    call_streamed_nbytes = _call_streamed(problem, plan, schedule, clock)
    return Prediction(
        warm_seconds=warm_seconds,
        stall_seconds=warm_seconds - compute_seconds,
        cold_seconds=cold_seconds,
        streamed_nbytes=streamed_nbytes,
        peak_nbytes=peak_nbytes(plan),
        lower_bound_seconds=0.0,
        cold_bound_seconds=0.0,
        call_stall_seconds=call_stall_seconds,
        call_streamed_nbytes=call_streamed_nbytes,
    )


def steady_seconds(schedule: Schedule, clock: AnyClock, passes: int) -> float:
    """Seconds per pass in the long run, from at most `passes` more passes on `clock`.

    None of storage, copies and the computing thread can take less than its own work, even where a full buffer still
    hides that; what else binds settles within a few passes.
    """
    bound = max(math.fsum(schedule.load_seconds), math.fsum(schedule.call_seconds), clock.copying_seconds)
    ends = [clock.compute]
    previous: list[float] = []
    for _ in range(passes):
        clock.advance(schedule)
        ends.append(clock.compute)
        events = [*clock.ends[len(schedule.needed) : -1], *clock.load_ends, *clock.copy_ends]
        if previous and _is_steady(previous, events, ends[-1] - ends[-2]):
            return max(bound, ends[-1] - ends[-2])
        previous = events
    recent = max(1, passes // 2)  # a mean, for pass times that take turns
    return max(bound, (ends[-1] - ends[-1 - recent]) / recent)


def _is_steady(previous: list[float], events: list[float], pass_seconds: float) -> bool:
    """Whether every event was exactly one pass after its own a pass before: then so will be all that follow."""
    tolerance = _CONVERGED * pass_seconds
    return all(abs(now - before - pass_seconds) <= tolerance for before, now in zip(previous, events, strict=True))


def _clock(problem: Problem, plan: Plan) -> AnyClock:
    """What the passes of `plan` run on."""
    count = len(problem.calls)
    if not plan.staging_nbytes or not plan.loads:
        return Clock(count)
    extents = [extent_nbytes(problem, load) for load in plan.loads]
    begin = [_release(load, count) if plan.pacing == PLANNED else 2 * count for load in plan.loads]
    stages = Stages.of(problem, plan, extents, begin)
    return LockstepClock(count, stages, plan.loads) if plan.pacing == LOCKSTEP else StagedClock(count, stages)


def _release(load: Load, call_count: int) -> int:
    if load.after_call < 0:
        return 2 * call_count
    return load.after_call + (call_count if load.after_pass == 0 else 0)


def _cold_schedule(problem: Problem, plan: Plan) -> tuple[Schedule, list[int], list[int]]:
    """The first pass, and where in its load order each resident and each load is.

    Residents are loaded once, among the loads, in order of first use: before the loads of the same call. Where all is
    preloaded, they come first, and the first call waits for them.
    """
    count = len(problem.calls)
    first_use: dict[int, int] = {}
    for index, call in enumerate(problem.calls):
        for weight in call.reads:
            first_use.setdefault(weight, index)
    if plan.pacing == PRELOAD:
        first_use = dict.fromkeys(first_use, 0)
    entries = [(first_use.get(slot.weight, count), 0, index) for index, slot in enumerate(plan.resident)]
    before = count
    for index in reversed(range(len(plan.loads))):  # a load of a later call may come before one of an earlier call
        before = min(before, plan.loads[index].first_call)
        entries.append((before, 1, index))
    entries.sort()
    needed = [0] * count
    positions: tuple[list[int], list[int]] = ([0] * len(plan.resident), [0] * len(plan.loads))
    durations, release, first_calls, lost = [], [], [], []
    of_loads = all_seconds(problem, plan.loads, plan.ebbs)
    lost_to_loads = losses(problem, plan, of_loads)
    for position, (first_call, kind, index) in enumerate(entries):
        positions[kind][index] = position
        durations.append(of_loads[index] if kind else problem.load_seconds(plan.resident[index].weight))
        lost.append(lost_to_loads[index] if kind else problem.storage.lost_seconds(durations[-1]))
        release.append(_release(plan.loads[index], count) if kind else 2 * count)
        first_call = plan.loads[index].first_call if kind else first_call
        first_calls.append(first_call)
        if first_call < count:
            needed[first_call] = position + 1
    order = [index if kind else -1 for _, kind, index in entries]
    seconds = call_seconds(problem, plan.rows, first_calls, lost)
    schedule = Schedule(seconds, needed, durations, release, order)
    return schedule, positions[0], positions[1]


def _pass_timeline(
    problem: Problem, clock: AnyClock, stalls: Sequence[float], load_ends: Sequence[float], durations: Sequence[float]
) -> PassTimeline:
    count = len(problem.calls)
    call_end = tuple(clock.ends[count : 2 * count])
    call_begin = tuple(end - call.seconds for end, call in zip(call_end, problem.calls, strict=True))
    previous_end = [clock.ends[count - 1] if count else 0.0, *call_end]
    waits = (begin - end for begin, end in zip(call_begin, previous_end, strict=False))
    return PassTimeline(
        call_begin=call_begin,
        call_end=call_end,
        call_stall=tuple(max(wait, stall) for wait, stall in zip(waits, stalls, strict=True)),
        load_begin=tuple(end - seconds for end, seconds in zip(load_ends, durations, strict=True)),
        load_end=tuple(load_ends),
    )


def _with_copies(problem: Problem, plan: Plan, timeline: PassTimeline, ends: Sequence[float]) -> PassTimeline:
    """`timeline` with the copies that ended at `ends`, if there are any."""
    speed = problem.storage.copy_bytes_per_second
    begins = (end - extent_nbytes(problem, load) / speed for end, load in zip(ends, plan.loads, strict=False))
    return replace(timeline, copy_begin=tuple(begins), copy_end=tuple(ends))


def _call_streamed(problem: Problem, plan: Plan, schedule: Schedule, clock: AnyClock) -> tuple[int, ...]:
    """The arena that streamed weights take during each call of the last pass on `clock`, which goes on for one more."""
    extents, stalls = [extent_nbytes(problem, load) for load in plan.loads], row_stalls(problem, plan.rows)
    timelines = []
    for _ in range(2):
        timeline = _pass_timeline(problem, clock, stalls, clock.load_ends, schedule.load_seconds)
        timelines.append(_with_copies(problem, plan, timeline, clock.copy_ends))
        clock.advance(schedule)
    return streamed_over_calls(plan.loads, extents, *timelines)


def _call_stalls(schedule: Schedule, clock: AnyClock, stalls: Sequence[float]) -> tuple[float, ...]:
    """What each call waited in the last pass on `clock`."""
    count = len(schedule.call_seconds)
    ends = clock.ends[count - 1 : 2 * count] if count else [0.0]
    return tuple(
        max(0.0, end - begin - seconds) + stall
        for begin, end, seconds, stall in zip(ends, ends[1:], schedule.call_seconds, stalls, strict=False)
    )
