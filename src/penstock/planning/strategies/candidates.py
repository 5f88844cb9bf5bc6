"""One choice of residents, laid out and simulated."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from penstock.planning.lifetimes import largest_live_nbytes, list_uses
from penstock.planning.problem import Problem
from penstock.planning.simulate import Clock, Schedule, load_seconds, row_stalls
from penstock.planning.strategies.layout import Layout, lay_out, lay_out_least

STORAGE_SLOWDOWN = 2.0
"""Storage is seldom as steady as when it was measured: drives and hosts give half of it from one moment to the next."""
SLOW_SHARE = 0.5
READ_SHARE = 0.04
"""Of the seconds that storage is busy, what computing loses to it: 0.05 s of processor time per GB, on two cores."""

_SETTLING_PASSES = 2

LOAD_SECONDS = 1e-4
"""What computing loses to each load, however small, in waking a reader and binding a weight: measured."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice that works.

    Attributes:
        score: seconds per pass, plus a share of the seconds with slower storage.
        streamed_seconds: that the storage is busy in one pass.
        residents: weights that stay, beside those that stay in every candidate.
    """

    score: float
    streamed_seconds: float
    residents: frozenset[int]
    layout: Layout

    @property
    def rank(self) -> tuple[float, float]:
        """Less is better."""
        return (self.score, self.streamed_seconds)


class Bench:
    """Tries choices of residents for one problem.

    Attributes:
        uses: every stay of a weight that may stream, in load order; `extents` (bytes) and `seconds` of storage run
            parallel to it.
        capacity_nbytes: for the streaming region and the residents that are chosen.
        extent: bytes of each weight that may stream; `saved` the storage seconds that it saves as a resident.
        work: how many uses were placed and simulated so far.
    """

    def __init__(
        self, problem: Problem, capacity_nbytes: int, fixed: Collection[int], rows: Collection[int], *, merged: bool
    ) -> None:
        self._problem = problem
        self.call_count = len(problem.calls)
        self.capacity_nbytes = capacity_nbytes
        excluded = {*fixed, *rows}
        self.uses = [use for use in list_uses(problem, merged=merged) if use.weight not in excluded]
        self.extent = {use.weight: problem.extent_nbytes(use.weight) for use in self.uses}
        self.extents = [self.extent[use.weight] for use in self.uses]
        self.seconds = [load_seconds(problem, use.weight) for use in self.uses]
        self.saved = dict.fromkeys(self.extent, 0.0)
        for use, seconds in zip(self.uses, self.seconds, strict=True):
            self.saved[use.weight] += seconds
        stalls = row_stalls(problem, rows)
        self.call_seconds = [call.seconds + stall for call, stall in zip(problem.calls, stalls, strict=True)]
        self.bytes_per_second = problem.storage.bytes_per_second
        self.work = 0
        self._tried: dict[frozenset[int], Candidate | None] = {}

    def least_region_nbytes(self, residents: Collection[int]) -> int:
        """What streaming all but `residents` takes at least."""
        return largest_live_nbytes(self._problem, self.uses, residents)

    def try_residents(self, residents: frozenset[int]) -> Candidate | None:
        """The candidate that keeps `residents`, or None if the rest of the capacity cannot hold what streams then."""
        if residents not in self._tried:
            self._tried[residents] = self._try(residents)
        return self._tried[residents]

    def try_least(self) -> Candidate:
        """The candidate that streams everything in the least space. Only for uses that are not merged."""
        layout = lay_out_least(self.uses, self.extents, self.call_count)
        return self._simulate(frozenset(), layout, self.seconds)

    def _try(self, residents: frozenset[int]) -> Candidate | None:
        region_nbytes = self.capacity_nbytes - sum(self.extent[weight] for weight in residents)
        kept = [index for index, use in enumerate(self.uses) if use.weight not in residents]
        extents = [self.extents[index] for index in kept]
        if region_nbytes < max(extents, default=0):
            return None
        self.work += len(kept)
        layout = lay_out([self.uses[index] for index in kept], extents, region_nbytes, self.call_count)
        if layout is None:
            return None
        return self._simulate(residents, layout, [self.seconds[index] for index in kept])

    def _simulate(self, residents: frozenset[int], layout: Layout, seconds: Sequence[float]) -> Candidate:
        score = self._warm_seconds(layout, seconds)
        score += SLOW_SHARE * self._warm_seconds(layout, [STORAGE_SLOWDOWN * load for load in seconds])
        streamed_seconds = math.fsum(seconds)
        score += READ_SHARE * streamed_seconds + LOAD_SECONDS * len(seconds)
        return Candidate(score, streamed_seconds, residents, layout)

    def _warm_seconds(self, layout: Layout, seconds: Sequence[float]) -> float:
        count = self.call_count
        needed = [0] * count
        for index, use in enumerate(layout.uses):
            needed[use.first] = index + 1
        release = [max(moment, -count) + count for moment in layout.moments]
        schedule = Schedule(self.call_seconds, needed, seconds, release)
        clock = Clock(count)
        for _ in range(_SETTLING_PASSES):
            clock.advance(schedule)
        begin = clock.compute
        clock.advance(schedule)
        return max(clock.compute - begin, math.fsum(seconds), math.fsum(self.call_seconds))
