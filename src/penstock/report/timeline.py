"""What storage, copies, compute and stalls did over time, as tracks for a trace viewer (ui.perfetto.dev, chrome://tracing).

The format is Chrome's Trace Event Format, which both read: one process; a thread for each track; complete events (`X`);
counters (`C`) for what is in the arena, and for all memory by kind.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.cache import atomic_write

PASSES, COMPUTE, STALLS, COPY, STORAGE = "passes", "compute", "stalls", "copy", "storage"
TRACKS = (PASSES, COMPUTE, STALLS, COPY, STORAGE)
"""In the order in which a viewer shows them."""

_PROCESS = 1
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took a while, in seconds since the begin of the timeline."""

    track: str
    name: str
    begin_seconds: float
    end_seconds: float
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What is in the arena from a moment on: places of resident and of streamed weights, whole blocks."""

    seconds: float
    resident_nbytes: int
    streamed_nbytes: int


@dataclass(frozen=True, slots=True)
class MemoryMoment:
    """All memory from a moment on: bytes by kind, which add up to the whole."""

    seconds: float
    nbytes: Mapping[str, int]


@dataclass(frozen=True)
class Tracks:
    """One or several passes.

    Attributes:
        title: the model, the budget, and whether this is a prediction.
        arena_nbytes: size of the arena; of the largest one where the plan changed meanwhile.
        spans: in any order; those of `COMPUTE` nest as layers do.
        occupancy: by time.
        remarks: what is missing.
        memory: by time; empty where only the arena is known.
    """

    title: str
    arena_nbytes: int
    spans: tuple[Span, ...]
    occupancy: tuple[Occupancy, ...]
    remarks: tuple[str, ...] = ()
    memory: tuple[MemoryMoment, ...] = ()

    def to_chrome_trace(self) -> dict[str, Any]:
        """These tracks as one JSON object in the Trace Event Format."""
        events: list[dict[str, Any]] = [_metadata("process_name", 0, {"name": self.title})]
        threads = itertools.count(_PROCESS + 1)  # the thread with its process's number is taken for the main one
        for track in TRACKS:
            spans = [span for span in self.spans if span.track == track]
            for lane, members in enumerate(_lanes(spans) or [[]]):
                thread = next(threads)
                events.append(_metadata("thread_name", thread, {"name": f"{track} {lane + 1}" if lane else track}))
                events.append(_metadata("thread_sort_index", thread, {"sort_index": thread}))
                events += _complete_events(members, thread)
        events += self._counter_events()
        about = {"arena_nbytes": self.arena_nbytes, "remarks": list(self.remarks)}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}

    def save(self, path: str | Path) -> None:
        """Write `to_chrome_trace` into the file `path`, whole or not at all."""
        with atomic_write(Path(path)) as file:
            file.write(json.dumps(self.to_chrome_trace()).encode())

    def _counter_events(self) -> Iterator[dict[str, Any]]:
        for moment in self.occupancy:
            sizes = {"resident": moment.resident_nbytes, "streamed": moment.streamed_nbytes}
            yield _counter("arena (MiB)", moment.seconds, sizes)
        for each in self.memory:
            yield _counter("memory (MiB)", each.seconds, each.nbytes)


def _metadata(name: str, thread: int, args: dict[str, object]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": _PROCESS, "tid": thread, "args": args}


def _counter(name: str, seconds: float, nbytes: Mapping[str, int]) -> dict[str, Any]:
    """A viewer stacks the numbers of one counter."""
    sizes = {kind: each / _MIB for kind, each in nbytes.items()}
    return {"name": name, "ph": "C", "pid": _PROCESS, "ts": _nanoseconds(seconds) / 1e3, "args": sizes}


def _complete_events(spans: Sequence[Span], thread: int) -> Iterator[dict[str, Any]]:
    """Times in whole nanoseconds, so that what ends where the next begins does not overlap it after rounding."""
    for span in spans:
        begin, end = _nanoseconds(span.begin_seconds), _nanoseconds(span.end_seconds)
        event = {"name": span.name, "cat": span.track, "ph": "X", "pid": _PROCESS, "tid": thread}
        yield {**event, "ts": begin / 1e3, "dur": (end - begin) / 1e3, "args": dict(span.details)}


def _lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans by time, in as few lanes as they need to not overlap within one; layers nest, so one does for them.

    What takes no time is left out.
    """
    lanes: list[list[Span]] = []
    ends: list[int] = []
    for span in sorted(spans, key=lambda span: (_nanoseconds(span.begin_seconds), -_nanoseconds(span.end_seconds))):
        begin, end = _nanoseconds(span.begin_seconds), _nanoseconds(span.end_seconds)
        if begin == end:
            continue
        lane = next((lane for lane in range(len(lanes)) if ends[lane] <= begin or span.track == COMPUTE), len(lanes))
        if lane == len(lanes):
            lanes.append([])
            ends.append(0)
        lanes[lane].append(span)
        ends[lane] = end
    return lanes


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
