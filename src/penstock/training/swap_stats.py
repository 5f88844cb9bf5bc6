"""What happened while a swap plan was followed, and how long its segments took."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from penstock.planning.swap_problem import Floats


@dataclass(slots=True)
class SwapStats:
    """What happened so far.

    Attributes:
        iterations: that followed the plan from begin to end.
        departed: that did not.
        swapped_nbytes: bytes that were away once.
        room_seconds: waited for writes, so that there was room.
        late_seconds: waited for reads.
        recompute_seconds: computed again.
    """

    iterations: int = 0
    departed: int = 0
    swapped_nbytes: int = 0
    room_seconds: float = 0.0
    late_seconds: float = 0.0
    recompute_seconds: float = 0.0


class SegmentClock:
    """Times segments, and stands while something is waited for or computed again.

    Args:
        segments: in an iteration.
        stats: that it keeps.

    Attributes:
        seconds: (segments,) the shortest that each took so far; not finite: none did.
        waits: for each iteration that followed the plan, the seconds for which it stood.
    """

    def __init__(self, segments: int, stats: SwapStats) -> None:
        self.seconds: Floats = np.full(segments, np.inf)
        self.waits: list[float] = []
        self._stats = stats
        self._stood = self._stood_before = 0.0
        self._began: float | None = None

    def begin(self, segment: int) -> None:
        """A segment begins, and the one before it has ended."""
        now = perf_counter() - self._stood
        if self._began is not None:
            before = segment - 1  # the last one, where the iteration begins
            self.seconds[before] = min(self.seconds[before], now - self._began)
        self._began = now

    def end_iteration(self, *, is_followed: bool) -> None:
        """An iteration has ended."""
        if is_followed:
            self.waits.append(self._stood - self._stood_before)
        self._stood_before = self._stood

    def depart(self) -> None:
        """What comes is no segment."""
        self._began = None

    def wait_late(self, seconds: float) -> None:
        """It was waited for a read."""
        self._stood += seconds
        self._stats.late_seconds += seconds

    def wait_for_room(self, seconds: float) -> None:
        """It was waited for a write."""
        self._stood += seconds
        self._stats.room_seconds += seconds

    def compute_again(self, seconds: float) -> None:
        """Something was computed again."""
        self._stood += seconds
        self._stats.recompute_seconds += seconds
