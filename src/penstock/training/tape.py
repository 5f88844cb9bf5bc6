"""Records iterations of training: every storage's allocation, uses and release, between what the runtime can act at.

Storages are what is recorded, not tensors: views and aliases share theirs. Operations are seen at torch's dispatcher,
forward, backward and optimizer alike. What the runtime will see without a dispatcher are *events*: a tensor that
autograd saves or takes back, and an optimizer's step, before it, before each of its parts, and after it. An event
begins a *segment*.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.training.recompute import REPEATED, Geometry, geometry

SAVED, TAKEN = "saved", "taken"
STEP_BEGINS, STEP_PART, STEP_ENDED = "step begins", "step part", "step ended"
PARAMETERS, BUFFERS, GRADIENTS = "parameters", "buffers", "gradients"
STATE, ACTIVATIONS, TEMPORARIES = "optimizer state", "saved activations", "temporaries"


@dataclass(frozen=True, slots=True)
class Event:
    """One moment at which the runtime can act.

    Attributes:
        kind: one of `SAVED`, `TAKEN`, `STEP_BEGINS`, `STEP_PART`, `STEP_ENDED`.
        nbytes: of the storage that is saved or taken back.
        optimizer: of a step, whose.
        part: of a step, which.
    """

    kind: str
    nbytes: int = 0
    optimizer: int = 0
    part: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """By which operation a storage got its bytes, if that can be repeated.

    Attributes:
        at: its number among all operations.
        arguments, keywords: as it was called; in the place of tensors, the record of their storage and where they are.
        where: of the result in its storage.
        seconds: that it took.
    """

    at: int
    operation: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    where: Geometry
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A tensor that an operation read, which must not be held."""

    record: StorageRecord
    where: Geometry


@dataclass(slots=True, eq=False)
class StorageRecord:
    """One storage.

    Attributes:
        nbytes: its size.
        born: the segment in which it was allocated; -1 where it was there before.
        died: the segment in which it was released; None where it still lives.
        uses: segments in which an operation read or wrote it, ascending.
        touches: segments in which anything had it, views of it included, ascending.
        saves: events, ascending, by which autograd saved it.
        operation: what allocated it, as torch's dispatcher names it.
        writes: numbers of the operations that wrote to it after the first.
        made: how it could be made again, if it could.
        known_as: what it is for, where its owner said so.
        calls: segments in which functions that autograd records got it, ascending.
        accumulated: of a gradient, the segments in which its parameter got it, or more of it.
    """

    nbytes: int
    born: int
    operation: str
    died: int | None = None
    uses: list[int] = field(default_factory=list)
    touches: list[int] = field(default_factory=list)
    saves: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    made: Made | None = None
    known_as: str | None = None
    calls: list[int] = field(default_factory=list)
    accumulated: list[int] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What it is for: one of `PARAMETERS` and so on."""
        return self.known_as or (ACTIVATIONS if self.saves else TEMPORARIES)

    def use(self, segment: int) -> None:
        """An operation reads or writes it."""
        if not self.uses or self.uses[-1] != segment:
            self.uses.append(segment)
        self.touch(segment)

    def touch(self, segment: int) -> None:
        """Something has it, if only to look at its shape."""
        if not self.touches or self.touches[-1] != segment:
            self.touches.append(segment)


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """What was recorded: segment `i` is between event `i` and the next one.

    Attributes:
        events: what began each segment.
        seconds: how long each took.
        peak_nbytes: the most bytes that recorded storages held at one moment of each.
        storages: all that lived.
        operations: how many there were before each event.
        known: tensors of storages that were there before, which stay the same objects.
        gradients: whose they are, in the order in which they came to be.
    """

    events: tuple[Event, ...]
    seconds: tuple[float, ...]
    peak_nbytes: tuple[int, ...]
    storages: tuple[StorageRecord, ...]
    operations: tuple[int, ...]
    known: Mapping[StorageRecord, torch.Tensor]
    gradients: Mapping[StorageRecord, torch.Tensor]


class Recorder(TorchDispatchMode):
    """Active while iterations are recorded."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self._seconds: list[float] = []
        self._peaks: list[int] = []
        self._storages: list[StorageRecord] = []
        self._live: dict[int, StorageRecord] = {}
        self.live_nbytes = self._segment_peak_nbytes = 0
        self._began = perf_counter()
        self._count = 0  # of operations
        self._operations: list[int] = []
        self._known: dict[StorageRecord, torch.Tensor] = {}
        self._gradients: dict[StorageRecord, torch.Tensor] = {}

    # -- what happens --

    def event(self, event: Event, storage: torch.UntypedStorage | None = None) -> None:
        """A segment ends here, and the next one begins."""
        self._end_segment()
        if storage is not None:
            record = self._record(storage, "(before)", born=-1)
            if event.kind == SAVED:
                record.saves.append(len(self.events))
                record.touch(len(self.events))
            else:
                record.use(len(self.events))
        self.events.append(event)
        self._operations.append(self._count)

    def _end_segment(self) -> None:
        if self.events:
            self._seconds.append(perf_counter() - self._began)
            self._peaks.append(self._segment_peak_nbytes)
        self._segment_peak_nbytes = self.live_nbytes
        self._began = perf_counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        began = perf_counter()
        result = func(*args, **kwargs)
        seconds = perf_counter() - began
        self._count += 1
        segment = len(self.events) - 1
        name = func.overloadpacket.__name__
        for storage in _storages((args, kwargs)):
            record = self._record(storage, "(before)", born=-1)
            if func.is_view:
                record.touch(segment)
            else:
                record.use(segment)
        self._note_writes(func._schema, args, kwargs)
        before = len(self._storages)
        for storage in _storages(result):
            self._record(storage, name, born=segment).use(segment)
        if func in REPEATED and len(self._storages) > before:
            self._note_made(func, args, kwargs, result, seconds)
        return result

    def _note_writes(self, schema: Any, args: Any, kwargs: Any) -> None:
        if not schema.is_mutable:
            return
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[index] if index < len(args) else kwargs.get(argument.name)
                for storage in _storages(value):
                    self._record(storage, "(before)", born=-1).writes.append(self._count)

    def _note_made(self, func: Any, args: Any, kwargs: Any, result: Any, seconds: float) -> None:
        made = result[0] if isinstance(result, tuple) else result
        record = self._live.get(made.untyped_storage()._cdata)
        if record is None or record.nbytes != made.numel() * made.element_size():
            return

        def read(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return Read(self._live[value.untyped_storage()._cdata], geometry(value))

        if all(_is_plain(value) for value in (*args, *kwargs.values())):
            keywords = {name: read(value) for name, value in kwargs.items()}
            arguments = tuple(read(value) for value in args)
            record.made = Made(self._count, func, arguments, keywords, geometry(made), seconds)

    def _record(self, storage: torch.UntypedStorage, operation: str, *, born: int) -> StorageRecord:
        key = storage._cdata
        found = self._live.get(key)
        if found is None:
            found = self._live[key] = StorageRecord(storage.nbytes(), born, operation)
            self._storages.append(found)
            weakref.finalize(storage, self._released, key, found).atexit = False
            self.live_nbytes += found.nbytes
            self._segment_peak_nbytes = max(self._segment_peak_nbytes, self.live_nbytes)
        return found

    def _released(self, key: int, record: StorageRecord) -> None:
        record.died = len(self.events) - 1
        self.live_nbytes -= record.nbytes
        if self._live.get(key) is record:
            del self._live[key]

    def know(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """What tensors are for; those that were not seen before live already."""
        for kind, tensor in tensors:
            for storage in _storages(tensor):
                is_new = storage._cdata not in self._live
                record = self._record(storage, "(before)", born=-1)
                record.known_as = kind
                if is_new and kind in (PARAMETERS, BUFFERS):
                    self._known[record] = tensor

    def called(self, arguments: Any) -> None:
        """A function begins, whose operations will be seen."""
        for record in self.seen(arguments):
            record.calls.append(len(self.events) - 1)

    def seen(self, arguments: Any) -> list[StorageRecord]:
        """Somebody looks at these."""
        known = (self._live.get(storage._cdata) for storage in _storages(arguments))
        records = [record for record in known if record is not None]
        for record in records:
            record.touch(len(self.events) - 1)
        return records

    def accumulated(self, parameter: torch.Tensor) -> None:
        """A parameter has got its gradient, or more of it."""
        for storage in _storages(parameter.grad):
            segment = len(self.events) - 1
            record = self._record(storage, "(before)", born=-1)
            record.touch(segment)
            record.known_as = GRADIENTS
            record.accumulated.append(segment)
            self._gradients[record] = parameter

    def forget(self) -> None:
        """Hold no tensor any more; storages outlive this."""
        self._known, self._gradients = {}, {}

    def tape(self) -> Tape:
        """All so far; the last segment, which the last event began, is not over."""
        seconds = (*self._seconds, perf_counter() - self._began)
        peaks = (*self._peaks, self._segment_peak_nbytes)
        operations = tuple(self._operations)
        storages = tuple(self._storages)
        return Tape(tuple(self.events), seconds, peaks, storages, operations, self._known, self._gradients)


def _is_plain(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.layout is torch.strided and value.device.type == "cpu"
    return not isinstance(value, list | tuple) or not any(isinstance(part, torch.Tensor) for part in value)


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided and value.device.type != "meta":
            yield value.untyped_storage()
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _storages(part)
    elif isinstance(value, dict):
        yield from _storages(tuple(value.values()))
