"""When what happens while a plan is followed: what the simulation tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PassTimeline:
    """When what happened in one pass, in seconds since the first pass began; calls and loads by index.

    Attributes:
        call_begin, call_end: a call computes from begin to end.
        call_stall: what it waited before, from the end of the call before it.
        load_begin, load_end: the reads, in plan order; on the cold pass the residents' loads are in
            `Timeline.resident_end`.
        copy_begin, copy_end: of each load, from staging to the arena; empty where nothing is staged.
    """

    call_begin: tuple[float, ...]
    call_end: tuple[float, ...]
    call_stall: tuple[float, ...]
    load_begin: tuple[float, ...]
    load_end: tuple[float, ...]
    copy_begin: tuple[float, ...] = ()
    copy_end: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Timeline:
    """Passes that follow one another at once; the first one is cold.

    Attributes:
        resident_end: when each resident weight was there, in the order of `Plan.resident`.
    """

    passes: tuple[PassTimeline, ...]
    resident_end: tuple[float, ...]

    @property
    def pass_seconds(self) -> tuple[float, ...]:
        """How long each pass took; the first is the cold one."""
        ends = [timeline.call_end[-1] if timeline.call_end else 0.0 for timeline in self.passes]
        return tuple(end - begin for begin, end in zip([0.0, *ends], ends, strict=False))
