"""A quick look at a choice of residents: the streaming region as a circular buffer of bytes, without addresses.

The buffer of Ji et al., "Demand Layering", RTSS 2022, filled byte by byte: a load goes on as far as what was released
leaves space, and the last of it waits for the one release that makes the rest fit. Addresses, with the gaps that they
leave, make a pass a little longer; `candidates` tells how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.planning.lifetimes import Use
from penstock.planning.simulate import Clock, Schedule

_PASSES = 3


@dataclass(frozen=True, slots=True)
class Stream:
    """What streams, in load order: uses, what each takes of the region in bytes, and of storage in seconds."""

    uses: Sequence[Use]
    extents: Sequence[int]
    seconds: Sequence[float]


class _FifoClock(Clock):
    """A clock whose loads have, beside their own seconds, a tail that begins only when the space is free."""

    def __init__(self, call_count: int, tails: Sequence[float]) -> None:
        super().__init__(call_count)
        self._tails = tails

    def advance(self, schedule: Schedule) -> None:
        """Run one more pass."""
        ends, compute, server = self.ends, self.compute, self.server
        count = len(schedule.call_seconds)
        ends[:count] = ends[count : 2 * count]
        position = 0
        for call, stop in enumerate(schedule.needed):
            if stop > position:
                for load in range(position, stop):
                    end = ends[schedule.release[load]] + self._tails[load]
                    server += schedule.load_seconds[load]
                    if end > server:
                        server = end
                position = stop
                if server > compute:
                    compute = server
            compute += schedule.call_seconds[call]
            ends[count + call] = compute
        self.compute, self.server = compute, server


def estimate_seconds(stream: Stream, region_nbytes: int, call_seconds: Sequence[float]) -> float:
    """A warm pass in a region of so many bytes, addresses apart; infinite where it is too small."""
    count = len(call_seconds)
    found = _releases(stream, region_nbytes, count)
    if found is None:
        return math.inf
    release, tails = found
    needed = [0] * count
    for index, use in enumerate(stream.uses):
        needed[use.first] = index + 1
    schedule = Schedule(call_seconds, needed, stream.seconds, release)
    clock = _FifoClock(count, tails)
    for _ in range(_PASSES):
        begin = clock.compute
        clock.advance(schedule)
    return max(clock.compute - begin, math.fsum(stream.seconds), math.fsum(call_seconds))


def _releases(stream: Stream, region_nbytes: int, count: int) -> tuple[list[int], list[float]] | None:
    """For each load the call whose end makes it fit, as an index of `Clock.ends`, and the seconds of its tail."""
    uses, extents, seconds = stream.uses, stream.extents, stream.seconds
    total = len(uses)
    release, tails = [2 * count] * total, [0.0] * total
    oldest, inside = -total, sum(extents)  # the pass before lies there, from its first load on
    latest = -count - 1  # the last release so far, as a moment
    for index, use in enumerate(uses):
        inside += extents[index]
        freed = 1
        while inside > region_nbytes:
            if oldest >= index:
                return None
            last = uses[oldest].last if oldest >= 0 else uses[oldest + total].last - count
            latest = max(latest, last)
            freed = extents[oldest]
            inside -= freed
            oldest += 1
        if latest >= use.first:
            return None
        if latest >= -count:
            release[index] = latest + count
            tails[index] = seconds[index] * min(1.0, freed / extents[index])
    return release, tails
