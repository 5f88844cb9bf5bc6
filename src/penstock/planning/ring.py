"""Addresses for streamed weights, fixed for good, and the release that each load has to wait for.

Extents are in bytes from the begin of the streaming region, and whole blocks. A moment is a call's index: c for the end
of call c of this pass, c - call_count for its end in the pass before, so that moments of both compare.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

from penstock.planning.lifetimes import Use


class Occupants:
    """Which moment releases each byte of the region: segments by address, for the last occupant of each."""

    def __init__(self, region_nbytes: int, moment: int) -> None:
        self.starts = [0]
        self.moments = [moment]
        self.region_nbytes = region_nbytes

    def released(self, start: int, end: int) -> int:
        """The moment that releases all of [start, end)."""
        low = bisect_right(self.starts, start) - 1
        return max(self.moments[low : bisect_left(self.starts, end, low + 1)])

    def parts(self, start: int, end: int) -> list[tuple[int, int]]:
        """Where [start, end) is released piece by piece: the end of each piece and the moment that releases it."""
        low = bisect_right(self.starts, start) - 1
        high = bisect_left(self.starts, end, low + 1)
        return list(zip([*self.starts[low + 1 : high], end], self.moments[low:high], strict=True))

    def count(self, start: int, end: int, moment: int) -> int:
        """How many bytes of [start, end) `moment` releases."""
        low = bisect_right(self.starts, start) - 1
        found = 0
        for index in range(low, bisect_left(self.starts, end, low + 1)):
            past = self.starts[index + 1] if index + 1 < len(self.starts) else self.region_nbytes
            if self.moments[index] == moment:
                found += min(past, end) - max(self.starts[index], start)
        return found

    def occupy(self, start: int, end: int, moment: int) -> None:
        """Give [start, end) to an occupant that `moment` releases."""
        starts, moments = self.starts, self.moments
        low = bisect_right(starts, start) - 1
        high = bisect_left(starts, end, low + 1)
        new_starts, new_moments = [start], [moment]
        if starts[low] < start:
            new_starts, new_moments = [starts[low], start], [moments[low], moment]
        past = starts[high] if high < len(starts) else self.region_nbytes
        if end < past:
            new_starts.append(end)
            new_moments.append(moments[high - 1])
        starts[low:high] = new_starts
        moments[low:high] = new_moments

    def earliest(self, nbytes: int, end_nbytes: int) -> tuple[int, int]:
        """Moment and start of the `nbytes` below `end_nbytes` that are released first; the lowest of several."""
        starts, moments = self.starts, self.moments
        count = len(starts)
        best_moment, best_start = moments[0] + (1 << 60), 0
        limit = end_nbytes - nbytes
        for low in range(count):
            start = starts[low]
            if start > limit:
                break
            moment = moments[low]
            if moment >= best_moment:
                continue
            end, high = start + nbytes, low + 1
            while high < count and starts[high] < end:
                if moments[high] > moment:
                    moment = moments[high]
                high += 1
            if moment < best_moment:
                best_moment, best_start = moment, start
        if limit >= 0 and (last := self.released(limit, end_nbytes)) < best_moment:
            return last, limit
        return best_moment, best_start

    def next_pass(self, call_count: int) -> None:
        """Shift all moments to be seen from the next pass."""
        self.moments = [moment - call_count for moment in self.moments]


def place_earliest(
    uses: Sequence[Use],
    extents: Sequence[int],
    region_nbytes: int,
    call_count: int,
    rounds: int = 2,
    fixed: Mapping[int, int] | None = None,
) -> list[int] | None:
    """Starts of the uses' extents: each goes to the space that is released first, a ring that bends round obstacles.

    Later rounds know how the pass before leaves the region. None where some use finds no space in time. Uses that are
    `fixed`, by index, have their starts: others stay below them as long as both are there.
    """
    fixed = fixed or {}
    ends = _ends(uses, region_nbytes, fixed)
    occupants = Occupants(region_nbytes, -2 * call_count - 1)
    starts: list[int] = []
    for _ in range(rounds):
        starts = []
        for index, (use, nbytes) in enumerate(zip(uses, extents, strict=True)):
            if index in fixed:
                start = fixed[index]
                moment = occupants.released(start, start + nbytes)
            else:
                moment, start = occupants.earliest(nbytes, ends[index])
            if moment >= use.first:
                return None
            occupants.occupy(start, start + nbytes, use.last)
            starts.append(start)
        occupants.next_pass(call_count)
    return starts


def _ends(uses: Sequence[Use], region_nbytes: int, fixed: Mapping[int, int]) -> list[int]:
    """Where the space ends that each use may have."""
    return [
        min(
            (
                start
                for other, start in fixed.items()
                if uses[other].first <= use.last and use.first <= uses[other].last
            ),
            default=region_nbytes,
        )
        for use in uses
    ]


def place_stack(uses: Sequence[Use], extents: Sequence[int]) -> list[int]:
    """Starts for uses that nest: each on top of those around it. The least memory, and little overlap."""
    starts: list[int] = []
    open_uses: list[tuple[int, int]] = []
    for use, nbytes in zip(uses, extents, strict=True):
        while open_uses and open_uses[-1][0] < use.first:
            open_uses.pop()
        start = open_uses[-1][1] if open_uses else 0
        starts.append(start)
        open_uses.append((use.last, start + nbytes))
    return starts


def place_alternating(uses: Sequence[Use], extents: Sequence[int], region_nbytes: int) -> list[int]:
    """Starts for uses that nest, layer by layer: one on the region's begin, the next below its end, and so on.

    A layer is the uses of one first call. Those that are around it, on its own end, it is put on top of. Where the
    region holds any two layers that follow one another, with all that is around them, no two of them share space.
    """
    starts: list[int] = []
    ends: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])  # last call and height of what is open
    side, layer = 1, -1
    for use, nbytes in zip(uses, extents, strict=True):
        if use.first != layer:
            side, layer = 1 - side, use.first
        open_uses = ends[side]
        while open_uses and open_uses[-1][0] < use.first:
            open_uses.pop()
        height = open_uses[-1][1] if open_uses else 0
        starts.append(region_nbytes - height - nbytes if side else height)
        open_uses.append((use.last, height + nbytes))
    return starts


def place_everywhere(uses: Sequence[Use], extents: Sequence[int], region_nbytes: int) -> Iterator[list[int]]:
    """Starts for few uses: every way to lay them out that might be better than all others.

    Pushed down as far as those below allow, each starts where a choice of the others would end, one upon another, and
    whoever shared no space shares none then. As many ways as a power of the number of uses.
    """
    if not uses:
        return
    sums = [
        _sums([*extents[:index], *extents[index + 1 :]], region_nbytes - extents[index]) for index in range(len(uses))
    ]
    starts: list[int] = []

    def is_free(start: int) -> bool:
        index = len(starts)
        return all(
            uses[other].last < uses[index].first or start >= place + extents[other] or place >= start + extents[index]
            for other, place in enumerate(starts)
        )

    def place() -> Iterator[list[int]]:
        if len(starts) == len(uses):
            yield list(starts)
            return
        for start in sums[len(starts)]:
            if is_free(start):
                starts.append(start)
                yield from place()
                starts.pop()

    yield from place()


def _sums(extents: Sequence[int], limit_nbytes: int) -> list[int]:
    """What any of `extents` are together, up to a limit, ascending."""
    sums = {0}
    for nbytes in extents:
        sums |= {total + nbytes for total in sums}
    return sorted(total for total in sums if total <= limit_nbytes)


def release_moments(
    uses: Sequence[Use], extents: Sequence[int], starts: Sequence[int], region_nbytes: int, call_count: int
) -> list[int]:
    """For each use the moment that frees its extent: the latest end of those that lay there before.

    The last occupant of a byte is enough: it had to wait for the one before.
    """
    parts = release_parts(uses, extents, starts, region_nbytes, call_count)
    return [max(moment for _, moment in pieces) for pieces in parts]


def release_parts(
    uses: Sequence[Use], extents: Sequence[int], starts: Sequence[int], region_nbytes: int, call_count: int
) -> list[list[tuple[int, int]]]:
    """The same piece by piece: for each use the end of each piece of its extent, an address, and what frees that."""
    occupants = Occupants(region_nbytes, -2 * call_count - 1)
    for use, nbytes, start in zip(uses, extents, starts, strict=True):
        occupants.occupy(start, start + nbytes, use.last)
    occupants.next_pass(call_count)
    parts = []
    for use, nbytes, start in zip(uses, extents, starts, strict=True):
        parts.append(occupants.parts(start, start + nbytes))
        occupants.occupy(start, start + nbytes, use.last)
    return parts
