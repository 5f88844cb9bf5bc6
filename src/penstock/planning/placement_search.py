"""Our own search: beams that keep the lower or the upper end of a placement, and search for the rest anew.

A beam from nothing finds good placements in some hundreds of milliseconds, but rarely the best. So most beams keep what
lies lowest in a placement, or, as turning it upside down makes another, what lies highest, with other weights each
time. Where that has not helped for long, another placement from nothing takes its turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.planning.placement_beam import Beam, Tuning
from penstock.planning.placement_buffers import Ints
from penstock.planning.placement_lattice import Lattice
from penstock.planning.placement_parts import Part

LARGEST_PART = 1 << 26  # buffers by moments; above it tables take too much memory
LARGEST_SUM = 1 << 50  # units of all sizes; above it sums of some of them would overflow
_WIDTH = 30  # of beams half or twice as wide, placements were higher in the same time
_FIRST_WIDTH = 2  # of the first beams, which so are soon better than heuristics
_AS_WIDE = 4  # so many beams are; then they are twice as wide
_FAIR = 1.02  # by the load: of a start that is no higher beams keep an end, as of what beams found
_STATES = 1 << 17  # buffers by states that a step may look at: a beam for thousands of buffers is narrower
_FRESH = 0.1  # the share of beams that begin with nothing
_EQUAL = 0.8  # the share of the others that may end as high as what they began with: that leads elsewhere
_PATIENCE = 400  # beams without success after which to begin anew
_ANEW = (0.1, 0.8)  # the share of buffers that get new places, at least and at most
_GOAL = 0.15  # the highest goal


class PartSearch:
    """The lowest placement found so far of one part, and how to find lower ones.

    Attributes:
        offsets: (n,) by buffer of the part, in units.
        height: units.
        bound: no placement is lower, in units.
        is_searchable: whether it is small enough for beams.
    """

    def __init__(self, part: Part, offsets: Ints, seed: int = 0) -> None:
        self.part, self.bound = part, part.least
        self.offsets, self.height = offsets, part.height(offsets)
        self._present = offsets if self.height <= _FAIR * self.bound else None  # what beams keep an end of
        self._beams = self._failures = 0
        self.is_searchable = len(part.size) * part.moments <= LARGEST_PART and int(part.size.sum()) <= LARGEST_SUM
        self._random = np.random.default_rng(seed)

    @property
    def is_proved(self) -> bool:
        """Whether no placement is lower."""
        return self.height <= self.bound

    def improve(self, deadline: float) -> None:
        """One beam; it ends at `deadline`, on the monotonic clock, if not before.

        It finds what is lower than the present placement, sometimes what is as high.
        """
        random, part = self._random, self.part
        low = high = np.zeros(0, dtype=np.int64)
        present = part.height(self._present) if self._present is not None else round(1.5 * self.height)
        limit = present - 1
        if self._present is not None and random.random() >= _FRESH:
            low, high = self._kept(self._present)
            limit += random.random() < _EQUAL
        elif random.random() < 0.5:
            highest = min(limit, round(1.1 * self.height))
            limit = round(part.least + (highest - part.least) * random.uniform(0.3, 1.0))
        self._beams += 1
        self._failures += 1
        found = self._between(low, high, limit, self._tuning(present), deadline)
        if found is not None:
            self.take(settled(part, found))
        elif self._failures > _PATIENCE:
            self._present, self._failures = None, 0

    def _between(self, low: Ints, high: Ints, limit: int, tuning: Tuning, deadline: float) -> Ints | None:
        """Offsets of all, those of `low` and `high` kept at either end, the lower and the higher first."""
        part = self.part
        is_open = np.ones(len(part.size), dtype=bool)
        is_open[low] = is_open[high] = False
        lattice = Lattice(part, np.flatnonzero(is_open))
        offsets, below = fallen(part, low.tolist())
        from_top, above = fallen(part, high.tolist())
        found = Beam(lattice, tuning, limit, self._random).search(below, above, deadline)
        if found is None:
            return None
        offsets[high] = limit - from_top[high] - part.size[high]
        offsets[lattice.order] = found
        return offsets

    def take(self, offsets: Ints) -> None:
        """Go on from `offsets`."""
        height = self.part.height(offsets)
        if self._present is None or height < self.part.height(self._present):
            self._failures = 0
        self._present = offsets
        if height < self.height:
            self.offsets, self.height = offsets, height

    def _kept(self, offsets: Ints) -> tuple[Ints, Ints]:
        """What keeps its place at the lower end, lowest first, and at the upper, highest first."""
        count, random = len(offsets), self._random
        kept = count - max(1, round(count * random.uniform(*_ANEW)))
        low = round(kept * random.choice([0.0, 1.0, random.uniform()]))
        rising = np.argsort(offsets, kind="stable")
        falling = np.argsort(-(offsets + self.part.size), kind="stable")
        falling = falling[~np.isin(falling, rising[:low])]
        return rising[:low], falling[: kept - low]

    def _tuning(self, height: int) -> Tuning:
        random = self._random
        return Tuning(
            width=max(
                2, min(_WIDTH, _FIRST_WIDTH << min(self._beams // _AS_WIDE, 9), _STATES // (3 * len(self.part.size)))
            ),
            goal=min(height / self.part.least - 1, _GOAL) * random.uniform(),
            softness=float(np.exp(random.uniform(np.log(0.01), np.log(0.3)))),
            eagerness=float(random.choice([0.0, 0.01, 0.02, 0.05, 0.1, 0.2])),
            peakedness=float(random.choice([0.0, 0.0, 0.05, 0.1, 0.3])),
            noise=float(random.choice([0.0, 0.0, 0.2, 0.5])),
        )


def settled(part: Part, offsets: Ints) -> Ints:
    """`offsets` after all has fallen up to the top and down again, as long as that makes the placement lower."""
    height = part.height(offsets)
    while True:
        up, _ = fallen(part, np.argsort(-(offsets + part.size), kind="stable").tolist())
        turned = part.height(up) - up - part.size
        down, _ = fallen(part, np.argsort(turned, kind="stable").tolist())
        lower = part.height(down)
        if lower >= height:
            return offsets
        offsets, height = down, lower


def fallen(part: Part, order: Sequence[int]) -> tuple[Ints, Ints]:
    """Buffers put down in `order`, each on top of those that it meets.

    Returns:
        (n,) offsets, 0 for those that `order` leaves out, and (moments,) the height reached at each.
    """
    moments = part.moments
    first, past, size = part.first.tolist(), part.past.tolist(), part.size.tolist()
    tops, offsets = [0] * moments, [0] * len(size)
    for index in order:
        begin, end = first[index], min(past[index], moments)
        rest = past[index] - end
        offset = max(tops[begin:end])
        if rest:
            offset = max(offset, *tops[:rest])
        offsets[index] = offset
        tops[begin:end] = [offset + size[index]] * (end - begin)
        tops[:rest] = [offset + size[index]] * rest
    return np.array(offsets, dtype=np.int64), np.array(tops, dtype=np.int64)
