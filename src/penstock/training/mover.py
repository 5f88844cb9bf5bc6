"""Storages on their way out of memory and back: one thread for each direction, in the order asked for."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import SimpleQueue
from time import perf_counter
from typing import Any, TypeVar

import torch

from penstock.errors import StorageError
from penstock.planning.swap_problem import Link
from penstock.runtime.devices.cpu_queue import HUGE_PAGE_NBYTES, CpuArena
from penstock.training.pool import Pool
from penstock.training.swapfile import SwapFile, Written

_Job = Callable[[], None]
T = TypeVar("T")


@dataclass(slots=True)
class Moved:
    """Transfers in one direction so far, and the seconds that they took together."""

    count: int = 0
    nbytes: int = 0
    seconds: float = 0.0

    def link(self, before: Link) -> Link:
        """What they were like, with the fixed share of each as it was `before`."""
        seconds = max(self.seconds - self.count * before.fixed_seconds, self.seconds / 2)
        return replace(before, bytes_per_second=self.nbytes / seconds) if seconds > 0 else before


class Mover:
    """Writes and reads of one swap file.

    Attributes:
        file: that they go to.
        out, back: what was moved.
    """

    def __init__(self, file: SwapFile) -> None:
        self.file, self.out, self.back = file, Moved(), Moved()
        self._is_closed = False
        self._queues = [SimpleQueue[_Job | None](), SimpleQueue[_Job | None]()]
        self._threads = [
            threading.Thread(target=_work, args=(queue,), name=f"penstock-{name}", daemon=True)
            for queue, name in zip(self._queues, ("write", "read"), strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def write(self, storage: torch.UntypedStorage, offset: int) -> Future[Written]:
        """Begin to write; the storage is kept until the future is done, however it ends."""
        future: Future[Written] = Future()
        held = [storage]  # which has to be free once the future is done
        del storage

        def job() -> None:
            _settle(future, self.out, held[0].nbytes(), lambda: self.file.write(held.pop(), offset))

        self._begin(0, job, future)
        return future

    def read(self, written: Written, into: torch.UntypedStorage) -> Future[None]:
        """Begin to read what was written, into a storage that a `Place` opened for it."""
        future: Future[None] = Future()

        def job() -> None:
            _settle(future, self.back, written.nbytes, lambda: self.file.read(written, into.data_ptr()))

        self._begin(1, job, future)
        return future

    def _begin(self, queue: int, job: _Job, future: Future[Any]) -> None:
        if self._is_closed:
            future.set_exception(StorageError("the block of autoswap has ended, and what was away with it is lost"))
        else:
            self._queues[queue].put(job)

    def close(self) -> None:
        """Finish what was asked for, end the threads, close the file. Safe to call twice."""
        self._is_closed = True
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()
        self.file.close()


def _work(queue: SimpleQueue[_Job | None]) -> None:
    while (job := queue.get()) is not None:
        job()
        del job  # or the last storage would stay


def _settle(future: Future[T], moved: Moved, nbytes: int, work: Callable[[], T]) -> None:
    began = perf_counter()
    try:
        result = work()
        moved.count, moved.nbytes = moved.count + 1, moved.nbytes + nbytes
        moved.seconds += perf_counter() - began
        future.set_result(result)
    except StorageError as error:
        future.set_exception(_without_frames(error))
    except BaseException as error:  # a thread that dies would leave its caller waiting
        future.set_exception(StorageError(f"moving a tensor failed ({error!r})"))


def _without_frames(error: BaseException) -> BaseException:
    """Frames have the future, which has the error: what could not be moved would stay until cycles are collected."""
    if error.__cause__ is not None:
        error.__cause__.with_traceback(None)
    return error.with_traceback(None)


class Place:
    """Where in an arena a storage comes back to; free again when the last tensor over it is gone.

    Args:
        arena: the memory.
        offset, nbytes: of the place; whole huge pages, where places share an arena.
        taken: for each huge page of the arena whether some place has it; one for all its places.
    """

    def __init__(self, arena: CpuArena, offset: int, nbytes: int, taken: bytearray | None = None) -> None:
        self.arena, self.offset, self.nbytes = arena, offset, nbytes
        self._pages = slice(offset // HUGE_PAGE_NBYTES, -(-(offset + nbytes) // HUGE_PAGE_NBYTES))
        self._taken = taken if taken is not None else bytearray(self._pages.stop)

    def open(self, written: Written) -> torch.UntypedStorage | None:
        """Memory for these bytes to come back to; None while the place is taken."""
        return self.room(written.nbytes, written.lead_nbytes)

    def room(self, nbytes: int, lead_nbytes: int = 0) -> torch.UntypedStorage | None:
        """Memory for so many bytes, from so many after a block's begin on; None while the place is taken."""
        if not self._take():
            return None
        tensor = self.arena.tensor(self.offset + lead_nbytes, torch.uint8, (nbytes,))
        storage = tensor.untyped_storage()
        # At exit others may still want what is there.
        weakref.finalize(storage, self._give_back).atexit = False
        return storage

    def _take(self) -> bool:
        if any(self._taken[self._pages]):
            return False
        self._taken[self._pages] = b"\1" * (self._pages.stop - self._pages.start)
        return True

    def _give_back(self) -> None:
        self._taken[self._pages] = bytes(self._pages.stop - self._pages.start)
        with contextlib.suppress(ValueError):  # the arena is gone already
            self.arena.give_back(self.offset, self.nbytes)


class PoolPlace(Place):
    """A place in the pool's arena, whose memory stays."""

    def __init__(self, pool: Pool, arena: CpuArena, offset: int, nbytes: int) -> None:
        super().__init__(arena, offset, nbytes)
        self._pool = pool

    def _take(self) -> bool:
        return self._pool.is_followed(self.arena) and self._pool.take(self.offset, self.nbytes)

    def _give_back(self) -> None:
        self._pool.give(self.arena, self.offset)
