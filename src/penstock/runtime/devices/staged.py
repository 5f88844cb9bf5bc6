"""A copy stage: storage is read into staging memory, and from there each weight is copied to its place.

Reads run ahead as far as staging has space: what is expected next is read before its place in the arena is free. The
asynchronous pipeline of Ji et al., "Demand Layering", RTSS 2022. A device with memory of its own works like this, its
copies being transfers; on the CPU it shows what the copy costs.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from penstock.checkpoint import WeightSource
from penstock.errors import StorageError
from penstock.runtime.devices.base import Completion, Expected, TransferQueue, settled_offset
from penstock.runtime.devices.cpu_queue import CpuArena, CpuQueue, Filler, Transfer
from penstock.runtime.storage import Storage

_READING, _STAGED, _DOOMED = "reading", "staged", "doomed"


@dataclass(slots=True)
class _Stay:
    """What a ticket's bytes do in staging, and the whole blocks that they take there."""

    begin: int
    end: int
    state: str = _READING
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Copy:
    """A transfer that was submitted."""

    ticket: int
    source: WeightSource
    offset: int
    realign: bool
    staging_offset: int | None


class StagedQueue(TransferQueue):
    """Reader threads into staging, and one thread that copies from there in the order of submission.

    A transfer without a place in staging is read straight to the arena, by the copying thread.
    """

    def __init__(
        self, arena: CpuArena, staging: CpuArena, storage: Storage, done: Completion, *, threads: int, read_nbytes: int
    ) -> None:
        self._arena, self._staging, self._storage, self._done = arena, staging, storage, done
        self._read_nbytes, self._most_reads = read_nbytes, threads + 1
        self._stays: dict[int, _Stay] = {}
        self._copies: deque[_Copy] = deque()
        self._order: Sequence[Expected] = ()
        self._then: Sequence[Expected] = ()
        self._next = 0
        self._is_copying = self._closing = False
        self._process = os.getpid()
        self._changed = threading.Condition(threading.RLock())
        self._reader = CpuQueue(staging, storage, self._arrived, threads=threads, read_nbytes=read_nbytes)
        self._copier = threading.Thread(target=self._serve, name="penstock-copier", daemon=True)
        self._copier.start()

    def submit(
        self,
        ticket: int,
        source: WeightSource,
        offset: int,
        *,
        realign: bool = False,
        staging_offset: int | None = None,
    ) -> None:
        with self._changed:
            if self._closing:
                raise StorageError("the transfer queue is closed")
            self._copies.append(_Copy(ticket, source, offset, realign, staging_offset if source.nbytes else None))
            self._read_ahead()
            self._changed.notify_all()

    def expect(self, order: Sequence[Expected], then: Sequence[Expected]) -> None:
        with self._changed:
            submitted = {copy.ticket for copy in self._copies}
            for ticket, stay in list(self._stays.items()):
                if ticket not in submitted:
                    self._give_up(ticket, stay)
            self._order, self._then, self._next = order, then, 0
            self._read_ahead()

    def drain(self) -> None:
        self._reader.drain()
        with self._changed:
            self._read_ahead()  # an interrupt may have come before it
            self._changed.wait_for(lambda: not self._is_busy() or self._closing)

    def close(self) -> None:
        if os.getpid() != self._process:
            self._reader.close()
            return
        with self._changed:
            self._closing = True
            self._order = self._then = ()
            self._changed.notify_all()
        # Garbage may be collected, and this called, by one of these threads while it holds what another waits for.
        if threading.current_thread() is self._copier or self._reader.is_serving():
            return
        self._copier.join()
        self._done = _nobody
        self._reader.close()

    # -- below: called with the lock held --

    def _is_busy(self) -> bool:
        is_reading = any(stay.state != _STAGED for stay in self._stays.values())
        return bool(self._copies) or self._is_copying or is_reading

    def _give_up(self, ticket: int, stay: _Stay) -> None:
        """Free its space in staging, at once or when its read has ended."""
        if stay.state == _STAGED:
            del self._stays[ticket]
        else:
            stay.state = _DOOMED

    def _read_ahead(self) -> None:
        """Begin every read that may begin: what was submitted first, then what is expected, in order."""
        before: set[int] = set()
        for copy in self._copies:
            if copy.staging_offset is not None and copy.ticket not in self._stays:
                self._make_way(copy.source, copy.staging_offset, before)
                if not self._begin(copy.ticket, copy.source, copy.staging_offset):
                    return
            before.add(copy.ticket)
        while not self._closing:
            if self._next == len(self._order):
                self._order, self._next = self._then, 0
                if not self._order:
                    return
            ticket, source, staging_offset = self._order[self._next]
            reads = sum(stay.state != _STAGED for stay in self._stays.values())
            if reads >= self._most_reads or ticket in self._stays or not self._begin(ticket, source, staging_offset):
                return
            self._next += 1

    def _make_way(self, source: WeightSource, staging_offset: int, before: Collection[int]) -> None:
        """Give up what is in the way and not needed `before`: it is read again in its turn."""
        for ticket in self._in_the_way(source, staging_offset):
            if ticket not in before:
                self._give_up(ticket, self._stays[ticket])

    def _begin(self, ticket: int, source: WeightSource, staging_offset: int) -> bool:
        """Read into staging if the place is free."""
        if self._in_the_way(source, staging_offset):
            return False
        self._reader.events = self.events
        self._reader.submit(ticket, source, staging_offset)
        # Its arrival waits for the lock; an interrupt before this leaves nothing.
        self._stays[ticket] = _Stay(*self._extent(source, staging_offset))
        return True

    def _in_the_way(self, source: WeightSource, staging_offset: int) -> list[int]:
        begin, end = self._extent(source, staging_offset)
        return [ticket for ticket, stay in self._stays.items() if stay.begin < end and begin < stay.end]

    def _extent(self, source: WeightSource, staging_offset: int) -> tuple[int, int]:
        block = self._storage.block_nbytes
        return staging_offset - staging_offset % block, -(-(staging_offset + source.nbytes) // block) * block

    def _arrived(self, ticket: int, error: BaseException | None) -> None:
        if self.events is not None:
            self.events.read_ended(ticket)
        with self._changed:
            stay = self._stays.get(ticket)
            if stay is not None and stay.state == _DOOMED:
                del self._stays[ticket]
            elif stay is not None:
                stay.state, stay.error = _STAGED, error
            self._read_ahead()
            self._changed.notify_all()

    # -- the copying thread --

    def _serve(self) -> None:
        filler = Filler(self._arena, self._storage)
        while (copy := self._take()) is not None:
            error: BaseException | None = None
            try:
                self._bring(filler, copy)
            except BaseException as caught:  # whatever it is must reach the thread that waits for this weight
                error = caught
            with self._changed:
                self._stays.pop(copy.ticket, None)
                self._copies.popleft()
                self._read_ahead()
            self._done(copy.ticket, error)
            with self._changed:
                self._is_copying = False
                self._changed.notify_all()
        self._reader.close()

    def _take(self) -> _Copy | None:
        """The first submitted transfer once it can be copied; None when nothing is left to do for good."""
        with self._changed:
            self._changed.wait_for(lambda: self._can_copy() or (self._closing and not self._copies))
            if not self._copies:
                return None
            self._is_copying = True
            return self._copies[0]

    def _can_copy(self) -> bool:
        if not self._copies:
            return False
        stay = self._stays.get(self._copies[0].ticket)
        return self._copies[0].staging_offset is None or (stay is not None and stay.state == _STAGED)

    def _bring(self, filler: Filler, copy: _Copy) -> None:
        if copy.staging_offset is None:
            filler.fill(Transfer.of(copy.source, copy.offset, self._storage, self._read_nbytes, realign=copy.realign))
            return
        stay = self._stays[copy.ticket]
        if stay.error is not None:
            raise stay.error
        settled, events = settled_offset(copy.offset, realign=copy.realign), self.events
        if events is not None:
            events.copy_begun(copy.ticket)
        self._arena.copy_from(self._staging, copy.staging_offset, settled, copy.source.nbytes)
        if events is not None:
            events.copy_ended(copy.ticket)


def _nobody(ticket: int, error: BaseException | None) -> None:
    """Nobody waits any more."""
