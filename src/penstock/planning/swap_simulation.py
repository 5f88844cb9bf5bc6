"""An iteration that follows swaps, in time: when segments compute and wait, and when links are busy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from penstock.planning.swap_plan import Swap
from penstock.planning.swap_problem import SwapProblem

Transfer = tuple[int, float, float]
"""Which swap, and the seconds at which its transfer begins and ends."""


@dataclass(slots=True)
class SimulatedSwaps:
    """An iteration after one that was like it. Its begin is second zero.

    Attributes:
        segments: when each begins to compute and ends, and how long before it something was waited for or recomputed.
        writes, reads: in the order in which they begin.
        seconds: that it takes.
    """

    segments: list[tuple[float, float, float]] = field(default_factory=list)
    writes: list[Transfer] = field(default_factory=list)
    reads: list[Transfer] = field(default_factory=list)
    seconds: float = 0.0


def simulate_swaps(problem: SwapProblem, swaps: Sequence[Swap]) -> SimulatedSwaps:
    """The second of two iterations: segments wait for room and for what they use, links for their last transfer."""
    count = problem.count
    leaving = by_segment(swap.leaves for swap in swaps)
    gone = by_segment(swap.gone_by % count for swap in swaps)
    reading = by_segment(swap.reads_at % count for swap in swaps)
    using = by_segment(swap.returns % count for swap in swaps)
    compute_seconds = problem.seconds.tolist()
    written: dict[int, float] = {}
    back: dict[int, float] = {}
    found = SimulatedSwaps()
    now = write_free = read_free = 0.0
    for _ in range(2):
        # The second one begins at zero; what the first began goes on.
        written = {index: end - now for index, end in written.items()}
        back = {index: end - now for index, end in back.items()}
        write_free, read_free, now, found = write_free - now, read_free - now, 0.0, SimulatedSwaps()
        for segment, seconds in enumerate(compute_seconds):
            began = now
            for index in leaving.get(segment, ()):
                if swaps[index].recompute_seconds is not None:
                    continue
                begin = max(now, write_free)
                written[index] = write_free = begin + problem.out.seconds(swaps[index].nbytes)
                found.writes.append((index, begin, write_free))
            for index in gone.get(segment, ()):
                if swaps[index].gone_by < swaps[index].reads_at:
                    now = max(now, written.get(index, now))
            for index in reading.get(segment, ()):
                if written.get(index, float("inf")) <= now:  # else it is still there
                    begin = max(now, read_free)
                    back[index] = read_free = begin + problem.back.seconds(swaps[index].nbytes)
                    found.reads.append((index, begin, read_free))
            for index in using.get(segment, ()):
                now = max(now, back.pop(index, now)) + (swaps[index].recompute_seconds or 0.0)
            found.segments.append((now, now + seconds, now - began))
            now += seconds
        found.seconds = now
    return found


def by_segment(segments: Iterable[int]) -> dict[int, list[int]]:
    """For each segment that is named, where."""
    found: dict[int, list[int]] = {}
    for index, segment in enumerate(segments):
        found.setdefault(segment, []).append(index)
    return found
