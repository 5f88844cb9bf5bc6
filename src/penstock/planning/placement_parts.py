"""Time, made small: only moments that matter, and parts of it that have no buffer in common.

Two buffers meet somewhere exactly if they meet at a moment whose set of live buffers is within no other's; what is true
of all buffers at such moments is true at all times. In their number a time axis has no more moments than buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.planning.placement_buffers import Buffers, Ints


@dataclass(frozen=True, eq=False)
class Part:
    """Buffers that meet no others. Moments are numbered from 0; what lives across the last one goes on at 0.

    Attributes:
        indices: (n,) which buffers they are.
        first: (n,) the first moment of each, below `moments`.
        past: (n,) the one after its last, at most `first + moments`.
        size: (n,) in units of `unit` bytes.
        unit: bytes; all sizes are multiples of it.
        load: (moments,) sum of the sizes that live at each.
    """

    indices: Ints
    first: Ints
    past: Ints
    size: Ints
    unit: int
    load: Ints

    @property
    def moments(self) -> int:
        """How many there are."""
        return len(self.load)

    @property
    def least(self) -> int:
        """No placement is lower, in units."""
        return int(self.load.max())

    def height(self, offsets: Ints) -> int:
        """How high a placement is, both in units."""
        return int((offsets + self.size).max())


def split(buffers: Buffers) -> list[Part]:
    """The parts, the one of the highest load first."""
    lower, upper, length = _without_gaps(buffers)
    kept = _telling_moments(lower, upper, length)
    before = np.concatenate([[0], np.cumsum(np.concatenate([kept, kept]))])  # of a time, telling moments before it
    first, past, moments = before[lower], before[upper], int(before[length])
    if buffers.period is None:
        moments = int(past.max())
    first, past = _rotated(first, past, moments)
    unit = int(np.gcd.reduce(buffers.size))
    crossed = np.zeros(moments + 1, dtype=np.int64)  # buffers that live on both sides of the begin of a moment
    np.add.at(crossed, np.minimum(first + 1, moments), 1)
    np.add.at(crossed, np.minimum(past, moments), -1)
    is_cut = np.cumsum(crossed)[:moments] == 0
    is_cut[0] = True
    if past.max() > moments:  # something lives across every moment's begin, and rotation found no better
        is_cut[1:] = False
    number = np.cumsum(is_cut) - 1
    begins = np.flatnonzero(is_cut)
    ends = np.append(begins[1:], moments)
    parts = []
    for part, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        indices = np.flatnonzero(number[first] == part)
        parts.append(
            _part(indices, first[indices] - begin, past[indices] - begin, buffers.size[indices], unit, end - begin)
        )
    return sorted(parts, key=lambda part: -part.least)


def _without_gaps(buffers: Buffers) -> tuple[Ints, Ints, int]:
    """Begins, ends and the length of the time axis in moments at which something begins or ends."""
    if buffers.period is None:
        times = np.unique(np.concatenate([buffers.lower, buffers.upper]))
        return np.searchsorted(times, buffers.lower), np.searchsorted(times, buffers.upper), len(times)
    period = buffers.period
    times = np.unique(np.concatenate([buffers.lower, buffers.upper % period]))
    lower = np.searchsorted(times, buffers.lower)
    upper = np.searchsorted(times, buffers.upper % period)
    return lower, np.where(upper <= lower, upper + len(times), upper), len(times)


def _telling_moments(lower: Ints, upper: Ints, length: int) -> Ints:
    """(length,) 1 for moments before which, since the last end, something has begun, and after which something ends."""
    begins, ends = np.zeros(length, dtype=bool), np.zeros(length, dtype=bool)
    begins[lower] = True
    ends[(upper - 1) % length] = True
    kept = np.zeros(length, dtype=np.int64)
    has_begun = False  # where something lives on into moment 0, something begins there or the last moment tells more
    for moment in range(length):
        has_begun |= bool(begins[moment])
        kept[moment] = has_begun and ends[moment]
        has_begun &= not ends[moment]
    return kept


def _rotated(first: Ints, past: Ints, moments: int) -> tuple[Ints, Ints]:
    """The same with moment 0 where fewest buffers live on: without any, there is no circle."""
    if not (past > moments).any():
        return first, past
    crossing = np.zeros(2 * moments + 1, dtype=np.int64)
    np.add.at(crossing, first + 1, 1)
    np.add.at(crossing, past, -1)
    crossing = np.cumsum(crossing)[: 2 * moments].reshape(2, moments).sum(axis=0)
    start = int(crossing.argmin())
    rotated = (first - start) % moments
    return rotated, rotated + past - first


def _part(indices: Ints, first: Ints, past: Ints, size: Ints, unit: int, moments: int) -> Part:
    scaled = size // unit
    change = np.zeros(2 * moments + 1, dtype=np.int64)
    np.add.at(change, first, scaled)
    np.add.at(change, past, -scaled)
    load = np.cumsum(change)[: 2 * moments].reshape(2, moments).sum(axis=0)
    return Part(indices, first, past, scaled, unit, load)
