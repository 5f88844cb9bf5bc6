"""The CPU: storage is read straight to the weight's final address by a few threads.

Python threads suffice: the interpreter lock is released inside `preadv` and inside every torch kernel.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
from bisect import insort
from dataclasses import dataclass
from queue import SimpleQueue

import torch

from penstock.checkpoint import WeightSource
from penstock.errors import StorageError
from penstock.runtime.devices.base import Arena, Completion, TransferQueue, settled_offset
from penstock.runtime.requests import ReadRequest, read_requests
from penstock.runtime.storage import Storage

READ_NBYTES = 4 << 20
THREADS = 2
HUGE_PAGE_NBYTES = 2 << 20
_LIBC = ctypes.CDLL(None)
_IN_MEMORY = bytes(page & 1 for page in range(256))


class CpuArena(Arena):
    """Anonymous memory outside the allocator, in huge pages where the system grants them.

    It begins on such a page, so that offsets tell where they begin: of a part of one nothing goes back. The kernel's
    count of this process's memory sinks for a part, too, but a memory cgroup's does not (Linux 6.18).
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, max(nbytes, 1) + HUGE_PAGE_NBYTES - mmap.PAGESIZE, flags=flags)
        begin = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
        self._lead = -begin % HUGE_PAGE_NBYTES
        if hasattr(mmap, "MADV_HUGEPAGE") and nbytes:  # fewer pages to pin for each direct read; none beyond the end
            self._memory.madvise(mmap.MADV_HUGEPAGE, self._lead, nbytes)
        self.address = begin + self._lead
        self.view = memoryview(self._memory)[self._lead : self._lead + nbytes]

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        count = 1
        for size in shape:
            count *= size
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        with torch.inference_mode(False):  # a weight that is an inference tensor takes other kernels
            return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self._lead + offset).view(shape)

    def resident_nbytes(self) -> int:
        pages = (ctypes.c_ubyte * -(-self.nbytes // mmap.PAGESIZE))()
        if self.nbytes and _LIBC.mincore(ctypes.c_void_p(self.address), ctypes.c_size_t(self.nbytes), pages):
            return self.nbytes
        return bytes(pages).translate(_IN_MEMORY).count(1) * mmap.PAGESIZE

    def give_back(self, offset: int, nbytes: int) -> None:
        begin, end = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end:
            self._memory.madvise(mmap.MADV_DONTNEED, self._lead + begin, end - begin)

    def holds(self, tensor: torch.Tensor) -> bool:
        if tensor.layout is not torch.strided or tensor.is_meta:
            return False
        return self.address <= tensor.data_ptr() < self.address + self.nbytes

    def move(self, offset: int, to: int, nbytes: int) -> None:
        """Move bytes within the arena; the interpreter lock is free meanwhile."""
        ctypes.memmove(self.address + to, self.address + offset, nbytes)

    def copy_from(self, other: CpuArena, offset: int, to: int, nbytes: int) -> None:
        """Copy bytes from `offset` of another arena; the interpreter lock is free meanwhile."""
        ctypes.memmove(self.address + to, other.address + offset, nbytes)

    def close(self) -> None:
        # The mapping ends with its last tensor: unmapping under a live tensor would be a use after free.
        self.view = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Transfer:
    """How one weight comes to its place in the arena."""

    offset: int
    nbytes: int
    requests: tuple[ReadRequest, ...]
    realign: bool

    @classmethod
    def of(cls, source: WeightSource, offset: int, storage: Storage, read_nbytes: int, *, realign: bool) -> Transfer:
        """Of `source` to `offset`, by reads of at most `read_nbytes`."""
        requests = read_requests(source, offset, block_nbytes=storage.block_nbytes, read_nbytes=read_nbytes)
        return cls(offset, source.nbytes, tuple(requests), realign)


class Filler:
    """One thread's way into an arena: straight to the place where that can be, else over a bounce buffer of its own."""

    def __init__(self, arena: CpuArena, storage: Storage) -> None:
        self._arena, self._storage = arena, storage
        self._bounce: mmap.mmap | None = None

    def fill(self, transfer: Transfer) -> None:
        """Have the weight where it is computed with when this returns.

        Raises:
            StorageError: it cannot be read.
        """
        for request in transfer.requests:
            self.read(request)
        self.settle(transfer)

    def read(self, request: ReadRequest) -> None:
        """One of the reads that `fill` makes; errors as there."""
        if request.skip_nbytes is None:
            target = self._arena.view[request.arena_offset : request.arena_offset + request.nbytes]
            self._storage.read(request.file, request.file_offset, target, request.needed_nbytes)
        else:
            self._bounced(request, request.skip_nbytes)

    def settle(self, transfer: Transfer) -> None:
        """What `fill` does when everything has been read."""
        settled = settled_offset(transfer.offset, realign=transfer.realign)
        if settled != transfer.offset:
            self._arena.move(transfer.offset, settled, transfer.nbytes)

    def _bounced(self, request: ReadRequest, skip_nbytes: int) -> None:
        if self._bounce is None or len(self._bounce) < request.nbytes:
            self._bounce = mmap.mmap(-1, request.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with memoryview(self._bounce) as whole, whole[: request.nbytes] as block:
            self._storage.read(request.file, request.file_offset, block, request.needed_nbytes)
            with block[skip_nbytes : request.needed_nbytes] as kept:
                self._arena.view[request.arena_offset : request.arena_offset + len(kept)] = kept


class _Halt:
    """Holds up every reader that takes it, until all have."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.go_on = threading.Event()


@dataclass(slots=True)
class _Filling:
    """A transfer under way. `begun` reads of it have been taken up, and `ended` of them are done with."""

    number: int
    ticket: int
    transfer: Transfer
    begun: int = 0
    ended: int = 0
    error: BaseException | None = None


class CpuQueue(TransferQueue):
    """Reader threads over one storage and one arena.

    One reader draws what the drive gives, and each waking costs computing time, so another one is woken only by another
    transfer. It first helps with those before: two transfers at once would share the drive, and the one that is needed
    first would take twice as long.
    """

    def __init__(self, arena: CpuArena, storage: Storage, done: Completion, *, threads: int, read_nbytes: int) -> None:
        self._arena, self._storage = arena, storage
        self._done: Completion = done
        self._read_nbytes = read_nbytes
        self._transfers: dict[int, Transfer] = {}
        self._numbers = itertools.count()
        self._waiting: SimpleQueue[_Filling | _Halt | None] = SimpleQueue()
        self._open: list[_Filling] = []  # taken up and with reads left to begin, in order of submission
        self._closing = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"penstock-reader-{i}", daemon=True) for i in range(threads)
        ]
        self._process, self._serving = os.getpid(), threads
        self._lock = threading.Lock()
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        ticket: int,
        source: WeightSource,
        offset: int,
        *,
        realign: bool = False,
        staging_offset: int | None = None,
    ) -> None:
        transfer = self._transfers.get(ticket)
        if transfer is None:  # the same transfer comes again in every pass
            transfer = Transfer.of(source, offset, self._storage, self._read_nbytes, realign=realign)
            self._transfers[ticket] = transfer
        if self._closing:
            raise StorageError("the transfer queue is closed")
        if transfer.requests:
            self._waiting.put(_Filling(next(self._numbers), ticket, transfer))
        else:
            self._done(ticket, None)

    def is_serving(self) -> bool:
        """Whether the calling thread is one of its readers."""
        return threading.current_thread() in self._threads

    def _serve(self) -> None:
        filler = Filler(self._arena, self._storage)
        while (waiting := self._waiting.get()) is not None:
            if isinstance(waiting, _Halt):
                waiting.reached.release()
                waiting.go_on.wait()
                continue
            with self._lock:
                insort(self._open, waiting, key=lambda filling: filling.number)
            del waiting  # or it would be kept, with its error, until another one comes
            while (taken := self._take()) is not None:
                self._read(filler, *taken)
        with self._lock:
            self._serving -= 1
            is_last = not self._serving
        if is_last:
            self._storage.close()

    def _take(self) -> tuple[_Filling, ReadRequest] | None:
        """The next read of the first transfer that has one left."""
        with self._lock:
            if not self._open:
                return None
            filling = self._open[0]
            requests = filling.transfer.requests
            request, is_first = requests[filling.begun], not filling.begun
            filling.begun += 1
            if filling.begun == len(requests):
                del self._open[0]
        events = self.events
        if is_first and events is not None:
            events.read_begun(filling.ticket)
        return filling, request

    def _read(self, filler: Filler, filling: _Filling, request: ReadRequest) -> None:
        """Do one read, and what the last one of its transfer has to do."""
        try:
            if filling.error is None:
                filler.read(request)
        except BaseException as caught:  # whatever it is must reach the thread that waits for this weight
            filling.error = caught
        with self._lock:
            filling.ended += 1
            is_last = filling.ended == len(filling.transfer.requests)
        if is_last:
            self._finish(filler, filling)

    def _finish(self, filler: Filler, filling: _Filling) -> None:
        try:
            if filling.error is None:
                filler.settle(filling.transfer)
        except BaseException as caught:
            filling.error = caught
        error, filling.error = filling.error, None  # whose traceback knows the filling
        try:
            self._done(filling.ticket, error)
        finally:
            del error

    def drain(self) -> None:
        halt = _Halt()
        try:
            for _ in self._threads:
                self._waiting.put(halt)  # behind what is in flight
            for _ in self._threads:
                halt.reached.acquire()
        finally:
            halt.go_on.set()

    def close(self) -> None:
        if os.getpid() == self._process:  # a forked child has neither the threads nor the holder of the lock
            if not self._closing:
                self._closing = True
                for _ in self._threads:
                    self._waiting.put(None)  # behind what is in flight
            # Garbage may be collected, and this called, by a reader itself while it holds what another waits for.
            if self.is_serving():
                return
            for thread in self._threads:
                thread.join()
        self._threads.clear()
        self._done = _nobody  # or queue and owner would keep each other, and the arena, until garbage is collected
        self._storage.close()


def _nobody(ticket: int, error: BaseException | None) -> None:
    """Nobody waits any more."""
