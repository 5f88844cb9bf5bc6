"""What a stream did while it was recorded: loads, copies, waits, layers and passes, each noted as it happens.

Where nothing is recorded, this costs the test of an attribute that is None. Where something is, a note is one append to
a list, which several threads may make at once.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

MOST_EVENTS = 200_000
"""What comes after that many is only counted: at about a hundred bytes each, they lie outside the budget."""


class Kind(enum.Enum):
    """What happened. The subject of an event is a load's number unless said otherwise."""

    PLAN_TAKEN = enum.auto()  # its arena's bytes; nothing of an earlier plan is in memory
    PASS_BEGUN = enum.auto()  # nothing
    PASS_ENDED = enum.auto()  # nothing
    LAYER_CALLED = enum.auto()  # its name; it may wait for weights from here on
    LAYER_BEGUN = enum.auto()  # its name; it computes
    LAYER_ENDED = enum.auto()  # nothing; the one that began last
    WAIT_BEGUN = enum.auto()
    WAIT_ENDED = enum.auto()
    PLACE_TAKEN = enum.auto()  # submitted: its bytes may be written from here on
    READ_BEGUN = enum.auto()  # before its place is taken, perhaps, where it is read to staging memory
    READ_ENDED = enum.auto()  # noted only where a copy follows
    COPY_BEGUN = enum.auto()
    COPY_ENDED = enum.auto()
    ARRIVED = enum.auto()
    PLACE_FREED = enum.auto()
    ROWS_READ = enum.auto()  # bytes of rows that a layer asked for, and read by itself since `since`


class Event(NamedTuple):
    """One note: `seconds` on the clock of `time.perf_counter`."""

    seconds: float
    kind: Kind
    subject: int | str = 0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class NotedLoad:
    """A load that events name by its number: the weight, the bytes of its place, and whether it stays there.

    An ebb is named like a load, and is none: nothing lies in its place.
    """

    name: str
    nbytes: int
    is_resident: bool
    is_ebb: bool = False


class EventLog:
    """Events in the order in which they were noted, and what their numbers mean.

    Args:
        layer_names: the path of each module of the stream, by `id`.

    Attributes:
        loads: of every plan that was in force meanwhile, one behind the other.
        dropped: events beyond `MOST_EVENTS`.
    """

    def __init__(self, layer_names: Mapping[int, str]) -> None:
        self._layer_names = layer_names
        self._base = 0
        self.loads: list[NotedLoad] = []
        self.events: list[Event] = []
        self.dropped = 0

    def _note(self, kind: Kind, subject: int | str = 0, since: float = 0.0) -> None:
        if len(self.events) < MOST_EVENTS:
            self.events.append(Event(perf_counter(), kind, subject, since))
        else:
            self.dropped += 1

    def plan_taken(self, loads: Sequence[NotedLoad], present: Iterable[int], arena_nbytes: int) -> None:
        """Loads that are named by their index in `loads` from now on; those of `present` are in the arena."""
        self._base = len(self.loads)
        self.loads += loads
        self._note(Kind.PLAN_TAKEN, arena_nbytes)
        for load in present:
            self.place_taken(load)

    def pass_begun(self) -> None:
        """A pass begins, its plan in force."""
        self._note(Kind.PASS_BEGUN)

    def pass_ended(self) -> None:
        """The pass has ended, by an exception perhaps."""
        self._note(Kind.PASS_ENDED)

    def layer_called(self, module: object) -> None:
        """A layer is about to get its weights."""
        self._note(Kind.LAYER_CALLED, self._layer_names.get(id(module), ""))

    def layer_begun(self, module: object) -> None:
        """It has them and computes."""
        self._note(Kind.LAYER_BEGUN, self._layer_names.get(id(module), ""))

    def layer_ended(self) -> None:
        """The layer that began last has computed."""
        self._note(Kind.LAYER_ENDED)

    def wait_begun(self, load: int) -> None:
        """A layer waits for a load."""
        self._note(Kind.WAIT_BEGUN, self._base + load)

    def wait_ended(self, load: int) -> None:
        """The load is there. Of one that fails, nothing is noted."""
        self._note(Kind.WAIT_ENDED, self._base + load)

    def place_taken(self, load: int) -> None:
        """A load is submitted: its place is its own."""
        self._note(Kind.PLACE_TAKEN, self._base + load)

    def read_begun(self, load: int) -> None:
        """A reader has taken the load up."""
        self._note(Kind.READ_BEGUN, self._base + load)

    def read_ended(self, load: int) -> None:
        """The load has been read to staging memory, or has failed."""
        self._note(Kind.READ_ENDED, self._base + load)

    def copy_begun(self, load: int) -> None:
        """The load is copied from staging memory to its place from here on."""
        self._note(Kind.COPY_BEGUN, self._base + load)

    def copy_ended(self, load: int) -> None:
        """It has been copied."""
        self._note(Kind.COPY_ENDED, self._base + load)

    def arrived(self, load: int) -> None:
        """The load has come, or has failed."""
        self._note(Kind.ARRIVED, self._base + load)

    def place_freed(self, load: int) -> None:
        """Its place may be taken by others."""
        self._note(Kind.PLACE_FREED, self._base + load)

    def rows_read(self, nbytes: int, since: float) -> None:
        """A layer has read rows of a table by itself, since the moment `since` of `time.perf_counter`."""
        self._note(Kind.ROWS_READ, nbytes, since)
