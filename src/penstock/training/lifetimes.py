"""What the allocator saw of an iteration: the lifetimes of its blocks, kernels' workspaces included, on one clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.planning.placement import Placement, place
from penstock.planning.swap_plan import SwapPlan
from penstock.planning.swap_problem import Ints
from penstock.training.pool import ALLOCATED, MARKED, PAGE_NBYTES, RELEASED
from penstock.training.swapfile import room_nbytes


@dataclass(frozen=True, eq=False)
class Lifetimes:
    """The blocks of one iteration in the order in which they are allocated.

    Attributes:
        nbytes: (n,) what was asked for.
        lower, upper: (n,) on the clock, half-open; `upper` may lie in the next iteration. Equal: lives on for longer.
        marks: (segments + 1,) when each segment begins, and the iteration ends.
        period: the clock's length.
        first_ordinal: which recorded allocation the first is, of the iteration after it.
        again_nbytes: of blocks that live for longer than an iteration, such as a batch that lives until the next one
            is there: what lies beside them of their like, at the worst moment.
    """

    nbytes: Ints
    lower: Ints
    upper: Ints
    marks: Ints
    period: int
    first_ordinal: int
    again_nbytes: int

    @property
    def first_allocations(self) -> list[int]:
        """For each segment the first block that is allocated in it or later."""
        return [int(found) for found in np.searchsorted(self.lower, self.marks[:-1])]

    def mark(self, segment: int) -> int:
        """When a segment begins, of this iteration or the next."""
        count = len(self.marks) - 1
        return int(self.marks[segment % count]) + segment // count * self.period

    def segment_peaks(self) -> Ints:
        """(segments,) the most bytes that these blocks hold at one moment of each."""
        change = np.zeros(2 * self.period + 2, dtype=np.int64)
        np.add.at(change, self.lower, self.nbytes)
        np.add.at(change, self.upper, -self.nbytes)
        live = np.cumsum(change)
        whole = live[: self.period] + live[self.period : 2 * self.period]  # what wraps lives at the beginning
        return np.array(
            [whole[begin : max(end, begin + 1)].max() for begin, end in zip(self.marks, self.marks[1:], strict=False)]
        )


def read_lifetimes(entries: Ints, segments: int, events: int) -> Lifetimes | None:
    """The last iteration but one of a recording; None where the last two were not alike to the allocator.

    Args:
        entries: (n, 2) kinds and values, in order.
        segments: in an iteration.
        events: that were marked, the last one included.
    """
    kinds, values = entries[:, 0], entries[:, 1]
    at = {int(values[i]): int(i) for i in np.flatnonzero(kinds == MARKED)}
    first, second = at.get(events - 2 * segments), at.get(events - segments)
    if first is None or second is None:
        return None
    allocated = np.flatnonzero(kinds == ALLOCATED)
    released = {int(values[i]): int(i) for i in np.flatnonzero(kinds == RELEASED)}
    ordinals = range(int(np.searchsorted(allocated, first)), int(np.searchsorted(allocated, second)))
    after = range(ordinals.stop, min(ordinals.stop + len(ordinals), len(allocated)))
    sizes = values[allocated]
    if not np.array_equal(sizes[ordinals.start : ordinals.start + len(after)], sizes[after.start : after.stop]):
        return None
    period = second - first
    lower = allocated[ordinals.start : ordinals.stop] - first
    for ordinal, before in zip(ordinals, range(ordinals.start - len(ordinals), ordinals.start), strict=True):
        # A batch that the next iteration got after the last step is still there: it goes when the one before it went.
        is_left = ordinal not in released and allocated[ordinal] >= at[events - segments - 1]
        if is_left and before in released and sizes[before] == sizes[ordinal]:
            released[ordinal] = released[before] + period
    upper = np.array([released.get(ordinal, -1) - first for ordinal in ordinals], dtype=np.int64).reshape(-1)
    lives_on = (upper < 0) | (upper - lower > period)
    more = np.where(upper < 0, 0, (upper - lower) // period)
    again_nbytes = int((more * sizes[ordinals.start : ordinals.stop]).sum())
    upper = np.where(lives_on, lower, upper)
    marks = np.array([at[events - 2 * segments + i] - first for i in range(segments + 1)], dtype=np.int64)
    return Lifetimes(sizes[ordinals.start : ordinals.stop], lower, upper, marks, period, ordinals.stop, again_nbytes)


@dataclass(frozen=True, eq=False)
class PoolPlan:
    """Where the blocks of an iteration lie.

    Attributes:
        nbytes, offsets: (n,) of each allocation in order; -1: none.
        returns: for each swap, where what is read back lies.
        placement: of both together.
    """

    nbytes: Ints
    offsets: Ints
    returns: tuple[int, ...]
    placement: Placement


def plan_pool(
    lifetimes: Lifetimes,
    plan: SwapPlan,
    allocations: Sequence[int | None],
    stays: Sequence[int],
    *,
    seconds: float = 2.0,
) -> PoolPlan:
    """Addresses for all blocks, with those that leave in two places: before, and after.

    Args:
        lifetimes: of an iteration of which nothing left.
        plan: what is to leave.
        allocations: for each swap, which block it is; None: none of this iteration.
        stays: for each swap, the segment at whose start nothing has it any more, or it is gone again.
        seconds: for the search.
    """
    lower, upper = lifetimes.lower.copy(), lifetimes.upper.copy()
    size = -(-lifetimes.nbytes // PAGE_NBYTES) * PAGE_NBYTES
    back = np.zeros((len(plan.swaps), 3), dtype=np.int64)
    for index, (swap, block, end) in enumerate(zip(plan.swaps, allocations, stays, strict=True)):
        begin = lifetimes.mark(swap.reads_at)
        until = lifetimes.mark(end)
        if block is not None:
            until = min(until, int(lifetimes.upper[block]))
            upper[block] = min(int(upper[block]), max(lifetimes.mark(swap.gone_by), int(lower[block]) + 1))
        back[index] = begin, max(until, begin + 1), room_nbytes(swap.nbytes)
    is_placed = upper > lower
    blocks = np.stack([lower, upper, size], axis=1)[is_placed]
    begins, ends, sizes = np.concatenate([blocks, back]).T
    within = begins % lifetimes.period
    found = place(within, ends - begins + within, sizes, seconds=seconds, period=lifetimes.period, solver=False)
    offsets = np.full(len(lower), -1, dtype=np.int64)
    count = int(is_placed.sum())
    offsets[is_placed] = found.offsets[:count]
    return PoolPlan(lifetimes.nbytes, offsets, tuple(int(offset) for offset in found.offsets[count:]), found)
