"""What a swap plan has happen as each segment begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.planning.swap_plan import SwapPlan
from penstock.planning.swap_simulation import by_segment

BySegment = Mapping[int, Sequence[int]]
"""Numbers of swaps."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """Swaps by the segment of an iteration.

    Attributes:
        leaving: are written from its start on.
        gone_by: have to be written before it.
        gone_before: had to be before the one before it.
        reading: are read from its start on.
        due: are used in it.
    """

    leaving: BySegment
    gone_by: BySegment
    gone_before: BySegment
    reading: BySegment
    due: BySegment

    @classmethod
    def of(cls, plan: SwapPlan) -> Timetable:
        """The one of a plan."""
        swaps, count = plan.swaps, plan.segments
        return cls(
            by_segment(swap.leaves for swap in swaps),
            by_segment(swap.gone_by % count for swap in swaps),
            by_segment((swap.gone_by + 1) % count for swap in swaps),
            by_segment(swap.reads_at % count for swap in swaps),
            by_segment(swap.returns % count for swap in swaps),
        )
