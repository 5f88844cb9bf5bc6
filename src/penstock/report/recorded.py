"""Passes that really ran, as tracks: what was noted while they did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.report.sizes import size_text
from penstock.report.timeline import COMPUTE, COPY, PASSES, STALLS, STORAGE, Occupancy, Span, Tracks
from penstock.runtime.events import MOST_EVENTS, Event, EventLog, Kind

UNATTENDED = "(not streamed)"
"""What computes between layers that wait for weights: resident layers, and the module's own code."""

_ROWS = "rows of a table"


class Recording:
    """What a stream does while it is recorded, and did once it is not any more."""

    def __init__(self, log: EventLog, title: str) -> None:
        self._log, self._title = log, title

    def tracks(self) -> Tracks:
        """What was noted so far."""
        return recorded_tracks(self._log, self._title)

    def to_chrome_trace(self) -> dict[str, Any]:
        """One JSON object that ui.perfetto.dev and chrome://tracing open."""
        return self.tracks().to_chrome_trace()

    def save(self, path: str | Path) -> None:
        """Write `to_chrome_trace` into a file."""
        self.tracks().save(path)


def recorded_tracks(log: EventLog, title: str) -> Tracks:
    """The tracks of what `log` holds; the first note is the begin of time."""
    events = sorted(log.events, key=lambda event: event.seconds)
    reader = _Reader(log, min((event.since or event.seconds for event in events), default=0.0))
    for event in events:
        reader.read(event)
    remarks = (f"{log.dropped} events beyond {MOST_EVENTS} were not kept",) if log.dropped else ()
    spans = (*reader.spans, *_unattended(reader.spans))
    return Tracks(title, reader.arena_nbytes, spans, tuple(reader.occupancy), remarks)


class _Reader:
    """Turns notes into spans, one after the other. What an exception cut off has no end, and no span."""

    def __init__(self, log: EventLog, begin: float) -> None:
        self._loads, self._begin = log.loads, begin
        self.arena_nbytes = 0
        self.spans: list[Span] = []
        self.occupancy: list[Occupancy] = []
        self._passes = 0
        self._pass_begun = 0.0
        self._called = ""  # the layer that gets its weights just now
        self._layers: list[tuple[str, float]] = []
        self._waits: dict[int, float] = {}
        self._reads: dict[int, float] = {}
        self._staged: set[int] = set()
        self._copies: dict[int, float] = {}
        self._places: dict[int, int] = {}

    def read(self, event: Event) -> None:
        """Take the next event in."""
        now, subject = event.seconds - self._begin, event.subject
        if isinstance(subject, str):
            self._layer(event.kind, subject, now)
        elif event.kind in (Kind.PASS_BEGUN, Kind.PASS_ENDED, Kind.LAYER_ENDED):
            self._boundary(event.kind, now)
        elif event.kind is Kind.ROWS_READ:
            self._rows(subject, event.since - self._begin, now)
        elif event.kind is Kind.PLAN_TAKEN:
            self.arena_nbytes = max(self.arena_nbytes, subject)
            self._places.clear()
            self._note_occupancy(now)
        elif event.kind in (Kind.PLACE_TAKEN, Kind.PLACE_FREED):
            self._place(event.kind, subject, now)
        else:
            self._transfer(event.kind, subject, now)

    def _layer(self, kind: Kind, name: str, now: float) -> None:
        self._called = name
        if kind is Kind.LAYER_BEGUN:
            self._layers.append((name, now))

    def _boundary(self, kind: Kind, now: float) -> None:
        if kind is Kind.LAYER_ENDED:
            if self._layers:
                name, begun = self._layers.pop()
                self.spans.append(Span(COMPUTE, name, begun, now))
            return
        self._layers.clear()
        self._waits.clear()
        if kind is Kind.PASS_BEGUN:
            self._passes, self._pass_begun = self._passes + 1, now
        elif self._passes:
            self.spans.append(Span(PASSES, f"pass {self._passes}", self._pass_begun, now))

    def _rows(self, nbytes: int, since: float, now: float) -> None:
        name = self._layers[-1][0] if self._layers else _ROWS
        self.spans.append(Span(STORAGE, _ROWS, since, now, {"size": size_text(nbytes)}))
        self.spans.append(Span(STALLS, name, since, now, {"waits for": _ROWS}))

    def _place(self, kind: Kind, load: int, now: float) -> None:
        if kind is Kind.PLACE_TAKEN:
            self._places[load] = self._loads[load].nbytes
            if load not in self._staged:
                self._reads.setdefault(load, now)  # a reader may have begun already, or may yet say that it does
        else:
            self._places.pop(load, None)
        self._note_occupancy(now)

    def _transfer(self, kind: Kind, load: int, now: float) -> None:
        if kind is Kind.WAIT_BEGUN:
            self._waits[load] = now
        elif kind is Kind.WAIT_ENDED and load in self._waits:
            details = {"waits for": self._loads[load].name}
            self.spans.append(Span(STALLS, self._called, self._waits.pop(load), now, details))
        elif kind is Kind.READ_BEGUN:
            self._reads[load] = now
            self._staged.discard(load)
        elif kind is Kind.READ_ENDED:
            self._end_read(load, now)
            self._staged.add(load)
        elif kind is Kind.COPY_BEGUN:
            self._staged.discard(load)
            self._copies[load] = now
        elif kind is Kind.COPY_ENDED and load in self._copies:
            self._add_load(COPY, load, self._copies.pop(load), now)
        elif kind is Kind.ARRIVED:
            self._end_read(load, now)

    def _end_read(self, load: int, now: float) -> None:
        if load in self._reads:
            self._add_load(STORAGE, load, self._reads.pop(load), now)

    def _add_load(self, track: str, load: int, begun: float, now: float) -> None:
        about = self._loads[load]
        if about.is_ebb:
            return
        details: dict[str, object] = {"size": size_text(about.nbytes)}
        if now > begun:
            details["GB/s"] = round(about.nbytes / (now - begun) / 1e9, 2)
        if about.is_resident:
            details["stays"] = True
        self.spans.append(Span(track, about.name, begun, now, details))

    def _note_occupancy(self, now: float) -> None:
        places = [(self._loads[load], nbytes) for load, nbytes in self._places.items()]
        resident = sum(nbytes for about, nbytes in places if about.is_resident)
        streamed = sum(nbytes for about, nbytes in places if not about.is_resident and not about.is_ebb)
        self.occupancy.append(Occupancy(now, resident, streamed))


def _unattended(spans: list[Span]) -> Iterator[Span]:
    """The parts of each pass in which no attended layer runs and nothing waits."""
    passes = sorted((span.begin_seconds, span.end_seconds) for span in spans if span.track == PASSES)
    busy = sorted((span.begin_seconds, span.end_seconds) for span in spans if span.track in (COMPUTE, STALLS))
    position = 0
    for begin, end in passes:
        free_from = begin
        while position < len(busy) and busy[position][0] < end:
            busy_begin, busy_end = busy[position]
            position += 1
            if busy_begin > free_from:
                yield Span(COMPUTE, UNATTENDED, free_from, busy_begin)
            free_from = max(free_from, busy_end)
        if free_from < end:
            yield Span(COMPUTE, UNATTENDED, free_from, end)
