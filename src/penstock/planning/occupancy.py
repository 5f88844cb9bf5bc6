"""How much of the arena streamed weights take during each call, by the simulated timeline of a warm pass."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from penstock.planning.plan import Load
from penstock.planning.timeline import PassTimeline


def streamed_over_calls(
    loads: Sequence[Load], extents: Sequence[int], now: PassTimeline, following: PassTimeline
) -> tuple[int, ...]:
    """The most bytes of streamed weights that are in the arena during each call of the pass `now`.

    A load takes its extent when it begins (its copy, where it is staged) and until its last call has ended; loads of
    the pass `following` begin while this one computes.
    """
    count = len(now.call_end)
    change = [0] * (count + 1)
    for first, last, nbytes in _stays(loads, extents, now, following):
        if first < count:
            change[first] += nbytes
            change[last + 1] -= nbytes
    return tuple(accumulate(change[:count]))


def _stays(
    loads: Sequence[Load], extents: Sequence[int], now: PassTimeline, following: PassTimeline
) -> Iterator[tuple[int, int, int]]:
    """First and last call of `now` during which a load's extent is taken, and its bytes."""
    last_call = len(now.call_end) - 1
    for load, nbytes, begin in zip(loads, extents, now.copy_begin or now.load_begin, strict=True):
        first = bisect_right(now.call_end, begin)
        if load.after_pass == 0:
            first = max(first, load.after_call + 1)  # the same but for rounding
        yield min(first, load.first_call), load.last_call, nbytes
    for load, nbytes, begin in zip(loads, extents, following.copy_begin or following.load_begin, strict=True):
        first = bisect_right(now.call_end, begin)
        if load.after_pass == -1:
            yield max(first, load.after_call + 1), last_call, nbytes
