"""One choice of residents, laid out and simulated."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from penstock.planning.lifetimes import Use, largest_live_nbytes, list_uses
from penstock.planning.problem import Problem
from penstock.planning.ring import place_alternating, place_earliest, place_everywhere, place_stack, release_moments
from penstock.planning.simulate import Clock, Schedule, row_stalls
from penstock.planning.strategies.chunks import Chunk, split, whole
from penstock.planning.strategies.fifo import Stream, estimate_seconds

STORAGE_SLOWDOWN = 2.0
"""Storage is seldom as steady as when it was measured: drives and hosts give half of it from one moment to the next."""
SLOW_SHARE = 0.02
"""How much a pass with storage so slow counts: of plans that are as fast when all is well, the steadier one wins."""

_SETTLING_PASSES = 2
_MOST_PLACED = 1500  # ways to lay out what streams, where it is little
_TIGHT = 2.5  # times the least region: in less, layers by turns at both ends may do better than a ring


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice that works.

    Attributes:
        seconds: of a warm pass.
        score: the same, plus a share of the seconds with slower storage.
        streamed_seconds: that the storage is busy in one pass.
        residents: weights that stay, beside those that stay in every candidate.
        uses, starts, chunks: what streams, where it lies in the region, and in which loads it comes.
        stalls: seconds that each call waits, by call.
    """

    seconds: float
    score: float
    streamed_seconds: float
    residents: frozenset[int]
    uses: Sequence[Use]
    starts: Sequence[int]
    chunks: Sequence[Chunk]
    region_nbytes: int
    stalls: Sequence[float]

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
        self.seconds = [problem.load_seconds(use.weight) for use in self.uses]
        self.saved = dict.fromkeys(self.extent, 0.0)
        for use, seconds in zip(self.uses, self.seconds, strict=True):
            self.saved[use.weight] += seconds
        stalls = row_stalls(problem, rows)
        self.call_seconds = [call.seconds + stall for call, stall in zip(problem.calls, stalls, strict=True)]
        self.bytes_per_second = problem.storage.bytes_per_second
        self._tried: dict[frozenset[int], Candidate | None] = {}

    def least_region_nbytes(self, residents: Collection[int]) -> int:
        """What streaming all but `residents` takes at least."""
        return largest_live_nbytes(self._problem, self.uses, residents)

    def nbytes(self, weight: int) -> int:
        """Of the weight itself."""
        return self._problem.weights[weight].nbytes

    def lacking_nbytes(self, residents: Collection[int]) -> int:
        """What streaming all but `residents` takes at least beyond what they leave; negative where they leave more."""
        kept_nbytes = sum(self.extent[weight] for weight in residents)
        return kept_nbytes + self.least_region_nbytes(residents) - self.capacity_nbytes

    def estimate(self, residents: frozenset[int]) -> float:
        """Roughly the score of the candidate that keeps `residents`; infinite if the rest cannot hold what streams."""
        region_nbytes = self.capacity_nbytes - sum(self.extent[weight] for weight in residents)
        kept = [index for index, use in enumerate(self.uses) if use.weight not in residents]
        stream = Stream(*([column[index] for index in kept] for column in (self.uses, self.extents, self.seconds)))
        return estimate_seconds(stream, region_nbytes, self._call_seconds(stream.uses, stream.seconds))

    def try_residents(self, residents: frozenset[int]) -> Candidate | None:
        """The candidate that keeps `residents`, or None if the rest of the capacity cannot hold what streams then."""
        if residents not in self._tried:
            self._tried[residents] = self._try(residents)
        return self._tried[residents]

    def try_everywhere(self, residents: frozenset[int], seconds: float) -> Candidate | None:
        """The best candidate that keeps `residents`, of many ways to lay out the rest; None if none is below `seconds`."""
        region_nbytes = self.capacity_nbytes - sum(self.extent[weight] for weight in residents)
        kept = [index for index, use in enumerate(self.uses) if use.weight not in residents]
        uses, extents = [self.uses[index] for index in kept], [self.extents[index] for index in kept]
        durations = [self.seconds[index] for index in kept]
        if max(math.fsum(durations), math.fsum(self._call_seconds(uses, durations))) >= seconds:
            return None
        ways: dict[tuple[int, ...], list[int]] = {}
        for starts in islice(place_everywhere(uses, extents, region_nbytes), _MOST_PLACED):
            moments = release_moments(uses, extents, starts, region_nbytes, self.call_count)
            ways.setdefault(tuple(moments), starts)
        found = [one for starts in ways.values() for one in self._ways(residents, uses, extents, starts)]
        return min((one for one in found if one.seconds < seconds), key=lambda one: one.rank, default=None)

    def try_least(self) -> Candidate:
        """The candidate that streams everything in the least space. Only for uses that are not merged."""
        stack = place_stack(self.uses, self.extents)
        return min(self._ways(frozenset(), self.uses, self.extents, stack), key=lambda candidate: candidate.rank)

    def _try(self, residents: frozenset[int]) -> Candidate | None:
        region_nbytes = self.capacity_nbytes - sum(self.extent[weight] for weight in residents)
        kept = [index for index, use in enumerate(self.uses) if use.weight not in residents]
        uses, extents = [self.uses[index] for index in kept], [self.extents[index] for index in kept]
        if region_nbytes < max(extents, default=0):
            return None
        placed = []
        ring = place_earliest(uses, extents, region_nbytes, self.call_count)
        if ring is not None:
            placed.append(ring)
        least_nbytes = largest_live_nbytes(self._problem, uses)
        if least_nbytes <= region_nbytes < _TIGHT * least_nbytes:
            blocks_nbytes = region_nbytes - region_nbytes % self._problem.storage.block_nbytes
            starts = place_alternating(uses, extents, blocks_nbytes)
            if all(start + nbytes <= blocks_nbytes for start, nbytes in zip(starts, extents, strict=True)):
                placed.append(starts)  # merged uses need not nest, and may then be stacked too high
        found = [candidate for starts in placed for candidate in self._ways(residents, uses, extents, starts)]
        return min(found, key=lambda candidate: candidate.rank, default=None)

    def _ways(
        self, residents: frozenset[int], uses: Sequence[Use], extents: Sequence[int], starts: Sequence[int]
    ) -> list[Candidate]:
        """One placement with whole loads and with loads in parts; none where something is in the way of another."""
        if min(starts, default=0) < 0:
            return []
        region_nbytes = max((start + nbytes for start, nbytes in zip(starts, extents, strict=True)), default=0)
        moments = release_moments(uses, extents, starts, region_nbytes, self.call_count)
        if any(moment >= use.first for moment, use in zip(moments, uses, strict=True)):
            return []
        ways = [whole(uses, extents, moments)]
        parts = split(self._problem, uses, extents, starts, region_nbytes)
        if len(parts) > len(uses):
            ways.append(parts)
        return [self._simulate(residents, uses, starts, region_nbytes, chunks) for chunks in ways]

    def _simulate(
        self,
        residents: frozenset[int],
        uses: Sequence[Use],
        starts: Sequence[int],
        region_nbytes: int,
        chunks: Sequence[Chunk],
    ) -> Candidate:
        seconds = [self._seconds(uses, chunk) for chunk in chunks]
        release = [max(chunk.moment, -self.call_count) + self.call_count for chunk in chunks]
        needed = [0] * self.call_count
        for index, chunk in enumerate(chunks):
            needed[uses[chunk.use].first] = index + 1
        calls = self._call_seconds((uses[chunk.use] for chunk in chunks), seconds)
        warm, stalls = self._warm_seconds(calls, needed, seconds, release)
        slow, _ = self._warm_seconds(calls, needed, [STORAGE_SLOWDOWN * load for load in seconds], release)
        score = warm + SLOW_SHARE * slow
        return Candidate(warm, score, math.fsum(seconds), residents, uses, starts, chunks, region_nbytes, stalls)

    def _seconds(self, uses: Sequence[Use], chunk: Chunk) -> float:
        """Storage seconds of one load."""
        weight, nbytes = uses[chunk.use].weight, chunk.end - chunk.begin
        whole_nbytes = self.extent[weight]
        if nbytes == whole_nbytes:
            return self._problem.load_seconds(weight)
        requests = -(-self._problem.weights[weight].requests * nbytes // whole_nbytes)
        return requests * self._problem.storage.request_seconds + nbytes / self.bytes_per_second

    def _call_seconds(self, uses: Iterable[Use], seconds: Iterable[float]) -> list[float]:
        """What calls take where loads of so many seconds serve `uses`."""
        calls = list(self.call_seconds)
        for use, duration in zip(uses, seconds, strict=True):
            calls[use.first] += self._problem.storage.lost_seconds(duration)
        return calls

    def _warm_seconds(
        self, calls: Sequence[float], needed: Sequence[int], seconds: Sequence[float], release: Sequence[int]
    ) -> tuple[float, Sequence[float]]:
        """Seconds of a warm pass, and what each call waits in it."""
        schedule = Schedule(calls, needed, seconds, release)
        clock = Clock(self.call_count)
        for _ in range(_SETTLING_PASSES):
            clock.advance(schedule)
        begin = clock.compute
        clock.advance(schedule)
        ends = clock.ends[self.call_count - 1 : 2 * self.call_count]
        stalls = [end - before - own for before, end, own in zip(ends, ends[1:], calls, strict=False)]
        return max(clock.compute - begin, math.fsum(seconds), math.fsum(calls)), stalls
