"""One choice of residents, laid out and simulated."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from penstock.planning.costs import row_stalls
from penstock.planning.ebbs import EbbStay
from penstock.planning.lifetimes import Use, list_uses
from penstock.planning.problem import Problem
from penstock.planning.ring import place_alternating, place_everywhere, release_moments, release_parts
from penstock.planning.simulate import Clock, Schedule
from penstock.planning.strategies.chunks import Chunk, split, whole
from penstock.planning.strategies.ebbing import Ebbing
from penstock.planning.strategies.fifo import Stream, estimate_seconds

STORAGE_SLOWDOWN = 2.0
"""Storage is seldom as steady as when it was measured: drives and hosts give half of it from one moment to the next."""
_SETTLING_PASSES = 2
_MOST_PLACED = 1500  # ways to lay out what streams, where it is little
_TIGHT = 2.5  # times the least region: in less, layers by turns at both ends may do better than a ring


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice that works.

    Attributes:
        seconds: of a warm pass.
        score: the same, plus `Bench`'s share of the seconds with slower storage.
        streamed_seconds: that the storage is busy in one pass.
        residents: weights that stay, beside those that stay in every candidate.
        uses, extents, starts, chunks: what streams, and ebbs; the bytes that it takes, where in the region they begin,
            and in which loads it comes.
        stalls: seconds that each call waits, by call.
    """

    seconds: float
    score: float
    streamed_seconds: float
    residents: frozenset[int]
    uses: Sequence[Use]
    extents: Sequence[int]
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
        uses: every stay of a weight that may stream, in load order, where nothing else is resident; `extents` (bytes)
            and `seconds` of storage run parallel to it.
        capacity_nbytes: for the streaming region and the residents that are chosen.
        is_ebbing: whether part of the memory is the activations' from time to time.
        extent: bytes of each weight that may stream; `saved` the storage seconds that it saves as a resident.

    Args:
        patience: for how many times its own bytes a weight stays between two uses (see `lifetimes.list_uses`).
        stays: when part of the memory is the activations'.
        steadiness: how much a pass with slow storage counts, beside one with storage as it was measured.
    """

    def __init__(
        self,
        problem: Problem,
        capacity_nbytes: int,
        fixed: Collection[int],
        rows: Collection[int],
        *,
        patience: float = 0.0,
        stays: Sequence[EbbStay] = (),
        steadiness: float = 0.0,
    ) -> None:
        self._problem = problem
        self.call_count = len(problem.calls)
        self.capacity_nbytes = capacity_nbytes
        self._excluded, self._patience = frozenset({*fixed, *rows}), patience
        self._fixed_nbytes = sum(problem.extent_nbytes(weight) for weight in fixed)
        self.uses = list_uses(problem, patience=patience, without=self._excluded)
        self.extent = {use.weight: problem.extent_nbytes(use.weight) for use in self.uses}
        self.extents = [self.extent[use.weight] for use in self.uses]
        self._load_seconds = {weight: problem.load_seconds(weight) for weight in self.extent}
        self.seconds = [self._load_seconds[use.weight] for use in self.uses]
        self.saved = dict.fromkeys(self.extent, 0.0)
        for use, seconds in zip(self.uses, self.seconds, strict=True):
            self.saved[use.weight] += seconds
        stalls = row_stalls(problem, rows)
        self.call_seconds = [call.seconds + stall for call, stall in zip(problem.calls, stalls, strict=True)]
        self.bytes_per_second = problem.storage.bytes_per_second
        self._ebbing = Ebbing(problem, stays)
        self._steadiness = steadiness
        self.is_ebbing = bool(stays)
        self._tried: dict[frozenset[int], Candidate | None] = {}

    def _uses_beside(self, residents: Collection[int]) -> list[Use]:
        if self._patience:  # what is resident is not read in between two uses
            return list_uses(self._problem, patience=self._patience, without=self._excluded.union(residents))
        return [use for use in self.uses if use.weight not in residents]

    def least_region_nbytes(self, residents: Collection[int]) -> int:
        """What streaming all but `residents` takes at least."""
        return self._ebbing.least_nbytes(self._uses_beside(residents))

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
        stream = self._stream(residents)
        calls, left_nbytes = self._call_seconds(stream.uses, stream.seconds), region_nbytes - self._ebbing.mean_nbytes
        seconds = estimate_seconds(stream, left_nbytes, calls)
        if not self._steadiness:
            return seconds
        slower = replace(stream, seconds=[STORAGE_SLOWDOWN * load for load in stream.seconds])
        return seconds + self._steadiness * estimate_seconds(slower, left_nbytes, calls)

    def try_residents(self, residents: frozenset[int]) -> Candidate | None:
        """The candidate that keeps `residents`, or None if the rest of the capacity cannot hold what streams then."""
        if residents not in self._tried:
            self._tried[residents] = self._try(residents)
        return self._tried[residents]

    def try_everywhere(self, residents: frozenset[int], seconds: float) -> Candidate | None:
        """The best candidate with `residents`, of many ways to lay out the rest; None if none takes below `seconds`.

        Nothing may ebb.
        """
        region_nbytes = self.capacity_nbytes - sum(self.extent[weight] for weight in residents)
        stream = self._stream(residents)
        uses, extents = stream.uses, stream.extents
        if max(math.fsum(stream.seconds), math.fsum(self._call_seconds(uses, stream.seconds))) >= seconds:
            return None
        distinct: dict[tuple[int, ...], list[int]] = {}
        for starts in islice(place_everywhere(uses, extents, region_nbytes), _MOST_PLACED):
            moments = release_moments(uses, extents, starts, region_nbytes, self.call_count)
            distinct.setdefault(tuple(moments), starts)
        ways = [way for starts in distinct.values() for way in self._ways(uses, extents, starts)]
        best = min(ways, key=lambda way: way.seconds, default=None)
        return self._candidate(residents, best) if best is not None and best.seconds < seconds else None

    def try_least(self) -> Candidate:
        """The candidate that streams everything in the least space. Only without patience."""
        stack = self._ebbing.place_stack(self.uses, self.extents, self._fixed_nbytes)
        return self._candidate(frozenset(), min(self._ways(*stack), key=lambda way: way.seconds))

    def _try(self, residents: frozenset[int]) -> Candidate | None:
        region_nbytes = self.capacity_nbytes - sum(self.extent[weight] for weight in residents)
        stream = self._stream(residents)
        uses, extents = stream.uses, stream.extents
        if region_nbytes < max(extents, default=0):
            return None
        placed = []
        ring = self._ebbing.place_earliest(uses, extents, region_nbytes)
        if ring is not None:
            placed.append(ring)
        least_nbytes = self._ebbing.least_nbytes(uses)
        if not self.is_ebbing and least_nbytes <= region_nbytes < _TIGHT * least_nbytes:
            blocks_nbytes = region_nbytes - region_nbytes % self._problem.storage.block_nbytes
            starts = place_alternating(uses, extents, blocks_nbytes)
            if all(start + nbytes <= blocks_nbytes for start, nbytes in zip(starts, extents, strict=True)):
                placed.append((uses, extents, starts))  # uses with patience need not nest, and may be stacked too high
        ways = [way for placement in placed for way in self._ways(*placement)]
        return self._candidate(residents, min(ways, key=lambda way: way.seconds)) if ways else None

    def _ways(self, uses: Sequence[Use], extents: Sequence[int], starts: Sequence[int]) -> list[_Way]:
        """One placement with whole loads and with loads in parts; none where something is in the way of another."""
        if min(starts, default=0) < 0:
            return []
        region_nbytes = max((start + nbytes for start, nbytes in zip(starts, extents, strict=True)), default=0)
        parts = release_parts(uses, extents, starts, region_nbytes, self.call_count)
        moments = [max(moment for _, moment in pieces) for pieces in parts]
        if any(moment >= use.first for moment, use in zip(moments, uses, strict=True)):
            return []
        ways = [whole(uses, extents, moments)]
        chunks = split(self._problem, uses, starts, parts)
        if len(chunks) > len(ways[0]):
            ways.append(chunks)
        return [self._simulate(uses, extents, starts, region_nbytes, chunks) for chunks in ways]

    def _simulate(
        self,
        uses: Sequence[Use],
        extents: Sequence[int],
        starts: Sequence[int],
        region_nbytes: int,
        chunks: Sequence[Chunk],
    ) -> _Way:
        seconds = [self._seconds(uses[chunk.use].weight, chunk.end - chunk.begin) for chunk in chunks]
        release = [max(chunk.moment, -self.call_count) + self.call_count for chunk in chunks]
        needed = [0] * self.call_count
        for index, chunk in enumerate(chunks):
            needed[uses[chunk.use].first] = index + 1
        calls = self._call_seconds((uses[chunk.use] for chunk in chunks), seconds)
        schedule = Schedule(calls, needed, seconds, release)
        warm, stalls = self._warm_seconds(schedule)
        return _Way(warm, stalls, schedule, uses, extents, starts, chunks, region_nbytes)

    def _candidate(self, residents: frozenset[int], way: _Way) -> Candidate:
        slower = replace(way.schedule, load_seconds=[STORAGE_SLOWDOWN * load for load in way.schedule.load_seconds])
        slow_seconds, _ = self._warm_seconds(slower)
        return Candidate(
            seconds=way.seconds,
            score=way.seconds + self._steadiness * slow_seconds,
            streamed_seconds=math.fsum(way.schedule.load_seconds),
            residents=residents,
            uses=way.uses,
            extents=way.extents,
            starts=way.starts,
            chunks=way.chunks,
            region_nbytes=way.region_nbytes,
            stalls=way.stalls,
        )

    def _stream(self, residents: Collection[int]) -> Stream:
        """What streams beside `residents`."""
        uses = self._uses_beside(residents)
        return Stream(uses, [self.extent[use.weight] for use in uses], [self._load_seconds[use.weight] for use in uses])

    def _seconds(self, weight: int, nbytes: int) -> float:
        """Storage seconds of a load of so many bytes of `weight`."""
        if nbytes == self.extent[weight]:
            return self._load_seconds[weight]
        requests = -(-self._problem.weights[weight].requests * nbytes // self.extent[weight])
        return requests * self._problem.storage.request_seconds + nbytes / self.bytes_per_second

    def _call_seconds(self, uses: Iterable[Use], seconds: Iterable[float]) -> list[float]:
        """What calls take where loads of so many seconds serve `uses`."""
        calls = list(self.call_seconds)
        for use, duration in zip(uses, seconds, strict=True):
            calls[use.first] += self._problem.storage.lost_seconds(duration)
        return calls

    def _warm_seconds(self, schedule: Schedule) -> tuple[float, Sequence[float]]:
        """Seconds of a warm pass, and what each call waits in it."""
        calls = schedule.call_seconds
        clock = Clock(self.call_count)
        for _ in range(_SETTLING_PASSES):
            clock.advance(schedule)
        begin = clock.compute
        clock.advance(schedule)
        ends = clock.ends[self.call_count - 1 : 2 * self.call_count]
        stalls = [end - before - own for before, end, own in zip(ends, ends[1:], calls, strict=False)]
        return max(clock.compute - begin, math.fsum(schedule.load_seconds), math.fsum(calls)), stalls


@dataclass(frozen=True, slots=True)
class _Way:
    """One placement with one division into loads, and how long a pass takes."""

    seconds: float
    stalls: Sequence[float]
    schedule: Schedule
    uses: Sequence[Use]
    extents: Sequence[int]
    starts: Sequence[int]
    chunks: Sequence[Chunk]
    region_nbytes: int
