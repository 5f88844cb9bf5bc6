"""Every plan of a tiny problem, by brute force, each run pass after pass until passes repeat exactly.

It knows a problem's numbers, and nothing of how plans are made, laid out or simulated. Two kinds of opponents:

- *placed*: any residents, and whole loads at any addresses, on a grid of blocks;
- *buffered*: any residents, and the rest of the memory as a buffer of bytes without addresses: space counts as free
  byte by byte, so a load never waits for more than its next byte, and what one call's activations leave beyond
  another's is free while it runs. Weights may be cut into single rows, without rounding to blocks. No real pipeline
  does as well.

A weight that is read several times may stay in between, or come again. Times are whole ticks, to compare exactly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, combinations, product
from typing import NamedTuple

from penstock.planning import Problem

_MOST_PASSES = 600
_MOST_PERIOD = 3
_MOST_AHEAD = 3  # passes: whoever may run further ahead than that is bound by something else


class Step(NamedTuple):
    """A call, or what one row of a cut weight computes of it. `reads` are parts, held until step `last` has ended."""

    ticks: int
    reads: tuple[int, ...]
    last: int


class Part(NamedTuple):
    """A weight or a row of one."""

    size: int
    load_ticks: int
    lost_ticks: int


class Stay(NamedTuple):
    part: int
    first: int
    last: int


class Load(NamedTuple):
    """`wait` is the step after which it may begin, counted from the first one of its own pass; most are below zero."""

    ticks: int
    first: int
    wait: int


@dataclass(frozen=True)
class Best:
    """Of all opponents, in seconds; infinite where there is none."""

    warm_seconds: float
    cold_seconds: float


class _Pass:
    """One pass in whole numbers, the weights `cut` row by row."""

    def __init__(self, problem: Problem, cut: Collection[int]) -> None:
        self.activations: list[int] = []
        self.calls: list[tuple[Fraction, tuple[int, ...], int]] = []
        self.weights: list[tuple[Fraction, Fraction, Fraction]] = []
        parts_of = {index: self._add_weight(problem, index, index in cut) for index in range(len(problem.weights))}
        for call in problem.calls:
            assert call.last == problem.calls.index(call), "calls have to be leaves"
            rows = [part for weight in call.reads if weight in cut for part in parts_of[weight]]
            held = tuple(parts_of[weight][0] for weight in call.reads if weight not in cut)
            seconds, here = Fraction(call.seconds), len(self.calls)
            self.calls.append((Fraction(0) if rows else seconds, held, here + len(rows)))
            self.activations += [call.activations_nbytes] * (1 + len(rows))
            for row in rows:
                share = seconds / len(rows) + Fraction(problem.slice_seconds)
                self.calls.append((share, (row,), len(self.calls)))
        self._to_integers(problem)

    def _add_weight(self, problem: Problem, index: int, is_cut: bool) -> range:
        count = problem.weights[index].rows if is_cut else 1
        storage, load = problem.storage, Fraction(problem.load_seconds(index)) / count
        lost = Fraction(storage.load_compute_seconds) + Fraction(storage.read_compute_share) * load
        self.weights += [(Fraction(problem.extent_nbytes(index)) / count, load, lost)] * count
        return range(len(self.weights) - count, len(self.weights))

    def _to_integers(self, problem: Problem) -> None:
        left = problem.budget_nbytes - problem.reserve.io_nbytes - problem.reserve.bookkeeping_nbytes
        grain = Fraction(1, math.lcm(*(size.denominator for size, _, _ in self.weights)))
        sizes = [int(size / grain) for size, _, _ in self.weights]
        room = [int((left - nbytes) / grain) for nbytes in self.activations]
        common = math.gcd(*sizes, *room)
        self.sizes, self.room = [size // common for size in sizes], [nbytes // common for nbytes in room]
        times = [call[0] for call in self.calls] + [time for _, *both in self.weights for time in both]
        # Loads in parts of any size are whole ticks, too.
        self.ticks_per_second = math.lcm(*(time.denominator for time in times)) * math.lcm(*self.sizes)
        self.steps = [Step(int(s * self.ticks_per_second), reads, last) for s, reads, last in self.calls]
        self.parts = [
            Part(size, int(load * self.ticks_per_second), int(lost * self.ticks_per_second))
            for size, (_, load, lost) in zip(self.sizes, self.weights, strict=True)
        ]
        self.read = sorted({part for step in self.steps for part in step.reads})

    def choices(self) -> Iterator[tuple[frozenset[int], list[Stay], int]]:
        """Residents, the stays of everything else in load order, and what the residents leave."""
        subsets = chain.from_iterable(combinations(self.read, count) for count in range(len(self.read) + 1))
        for chosen in subsets:
            left = min(self.room) - sum(self.parts[part].size for part in chosen)
            if left >= 0:
                ways = [self._ways_to_stay(part) for part in self.read if part not in chosen]
                for stays in product(*ways):
                    yield frozenset(chosen), sorted(chain(*stays), key=self._load_order), left

    def _load_order(self, stay: Stay) -> tuple[int, int]:
        return stay.first, self.steps[stay.first].reads.index(stay.part)

    def _ways_to_stay(self, part: int) -> list[list[Stay]]:
        reads = [Stay(part, index, step.last) for index, step in enumerate(self.steps) if part in step.reads]
        ways = [[reads[0]]]
        for read in reads[1:]:
            again = [[*way, read] for way in ways]
            kept = [[*way[:-1], way[-1]._replace(last=read.last)] for way in ways]
            ways = again + kept
        return ways

    def ticks_of_steps(self, loads: Sequence[tuple[int, int]]) -> list[int]:
        """What each step computes; it bears what is lost to the loads (part, first step) that come for it."""
        ticks = [step.ticks for step in self.steps]
        for part, first in loads:
            ticks[first] += self.parts[part].lost_ticks
        return ticks

    def first_uses(self, residents: Collection[int]) -> list[tuple[int, int]]:
        """Residents and the steps that read them first."""
        return [(part, next(i for i, step in enumerate(self.steps) if part in step.reads)) for part in residents]


def best_buffered(problem: Problem) -> Best:
    """The best that a perfect buffer does, with all, any or no weights cut that can be."""
    sliceable = [index for index, weight in enumerate(problem.weights) if weight.rows > 1]
    cuts = {frozenset(), frozenset(sliceable), *(frozenset({index}) for index in sliceable)}
    every = [_best(_Pass(problem, cut), placed=False) for cut in sorted(cuts, key=sorted)]
    return Best(min(best.warm_seconds for best in every), min(best.cold_seconds for best in every))


def best_placed(problem: Problem) -> Best:
    """The best of all plans with whole loads at fixed addresses, weights not cut."""
    return _best(_Pass(problem, ()), placed=True)


def _best(one: _Pass, *, placed: bool) -> Best:
    warm = cold = math.inf
    for residents, stays, left in one.choices():
        ticks = one.ticks_of_steps([(stay.part, stay.first) for stay in stays])
        cold_ticks = one.ticks_of_steps([*((s.part, s.first) for s in stays), *one.first_uses(residents)])
        reading = sum(one.parts[stay.part].load_ticks for stay in stays)
        cold_reading = reading + sum(one.parts[part].load_ticks for part in residents)
        if max(sum(ticks), reading) >= warm and max(sum(cold_ticks), cold_reading) >= cold:
            continue
        for loads in _placed(one, stays, left) if placed else _buffered(one, stays, left):
            cold = min(cold, _cold_ticks(one, cold_ticks, loads, residents))
            if max(sum(ticks), reading) < warm:
                warm = min(warm, _warm_ticks(ticks, loads))
    return Best(float(warm / one.ticks_per_second), float(cold / one.ticks_per_second))


def _buffered(one: _Pass, stays: Sequence[Stay], left: int) -> list[list[Load]]:
    """The stays' loads in pieces, each waiting for the step that frees its bytes; none if one waits for itself.

    Steps with fewer activations than others leave more: `left` beside the most.
    """
    total, count = sum(one.parts[stay.part].size for stay in stays), len(one.steps)
    limits = []  # of all bytes ever loaded, this pass's first one being zero, while each step of some passes runs
    for number in range(-_MOST_AHEAD, 2):
        freed = number * total
        for index in range(count):
            limits.append((left + one.room[index] - min(one.room) + freed, number * count + index))
            freed += sum(one.parts[stay.part].size for stay in stays if stay.last == index)
    loads, place = [], 0
    for stay in stays:
        part = one.parts[stay.part]
        end = place + part.size
        while place < end:
            latest = max((index for index, (limit, _) in enumerate(limits) if limit <= place), default=0)
            wait, until = limits[latest][1], min((limit for limit, _ in limits[latest + 1 :]), default=place)
            if wait >= stay.first:
                return []
            piece = min(end, until) - place
            loads.append(Load(part.load_ticks // part.size * piece, stay.first, wait))
            place += piece
    return [loads]


def _placed(one: _Pass, stays: Sequence[Stay], capacity: int) -> list[list[Load]]:
    """The loads for every way to lay out the stays that makes a difference."""
    grain = math.gcd(*(part.size for part in one.parts))
    sizes = [one.parts[stay.part].size for stay in stays]
    found: set[tuple[int, ...]] = set()

    def place(spans: tuple[tuple[int, int], ...]) -> None:
        index = len(spans)
        if index == len(stays):
            found.add(_waits(stays, spans, len(one.steps)))
            return
        free = capacity - sizes[index]
        for start in range(0, (free if index else free // 2) + 1, grain):  # what is mirrored is the same
            end = start + sizes[index]
            if all(
                other_end <= start or other_start >= end or stay.last < stays[index].first
                for stay, (other_start, other_end) in zip(stays, spans, strict=False)
            ):
                place((*spans, (start, end)))

    place(())
    return [
        [Load(one.parts[stay.part].load_ticks, stay.first, wait) for stay, wait in zip(stays, waits, strict=True)]
        for waits in sorted(found)
        if all(wait < stay.first for stay, wait in zip(stays, waits, strict=True))
    ]


def _waits(stays: Sequence[Stay], spans: Sequence[tuple[int, int]], count: int) -> tuple[int, ...]:
    """For each stay the last step, of this pass or the one before, of those that lie where it will."""
    waits = []
    for index, (start, end) in enumerate(spans):
        latest = -count
        for other, (other_start, other_end) in enumerate(spans):
            if other_start < end and start < other_end:
                latest = max(latest, stays[other].last - (0 if other < index else count))
        waits.append(latest)
    return tuple(waits)


def _cold_ticks(one: _Pass, ticks: Sequence[int], loads: Sequence[Load], residents: Collection[int]) -> int:
    """A first pass: the residents come in order of first use, too, each before what streams to the same step."""
    coming = [Load(one.parts[part].load_ticks, first, -1) for part, first in one.first_uses(residents)]
    return _run(ticks, sorted([*coming, *loads], key=lambda load: load.first), [], 0)[0][-1]


def _warm_ticks(ticks: Sequence[int], loads: Sequence[Load]) -> Fraction | float:
    """What a pass takes once passes repeat exactly, one by one or two or three at a time."""
    count = len(ticks)
    if not loads:
        return Fraction(sum(ticks))
    ends: list[int] = []
    reads = [0]
    window = (_MOST_AHEAD + 1) * count
    for _ in range(_MOST_PASSES):
        ends, read_end = _run(ticks, loads, ends, reads[-1])
        reads.append(read_end)
        for period in range(1, _MOST_PERIOD + 1):
            back = period * count
            if len(ends) < window + back:
                break
            shift = ends[-1] - ends[-1 - back]
            if reads[-1] - reads[-1 - period] == shift and all(
                end - before == shift for end, before in zip(ends[-window:], ends[-window - back : -back], strict=True)
            ):
                return Fraction(shift, period)
    raise AssertionError(f"passes of {ticks} with {loads} never repeat")


def _run(ticks: Sequence[int], loads: Sequence[Load], ends: list[int], read_end: int) -> tuple[list[int], int]:
    """One more pass: a load begins when the one before it and the step it waits for have ended, and so do steps."""
    base, position = len(ends), 0
    now = ends[-1] if ends else 0
    for step, duration in enumerate(ticks):
        while position < len(loads) and loads[position].first == step:
            load = loads[position]
            free = ends[base + load.wait] if base + load.wait >= 0 else 0
            read_end = max(read_end, free) + load.ticks
            position += 1
            now = max(now, read_end)
        now += duration
        ends.append(now)
    return ends, read_end
