"""Storages on their way out of memory and back: one thread for each direction, in the order asked for."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from time import perf_counter
from typing import TypeVar

import torch

from penstock.errors import StorageError
from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.training.pool import Pool
from penstock.training.swapfile import SwapFile, Written

_Job = Callable[[], None]
T = TypeVar("T")


class Mover:
    """Writes and reads of one swap file.

    Attributes:
        write_seconds, read_seconds: that transfers have taken so far.
    """

    def __init__(self, file: SwapFile) -> None:
        self.file = file
        self.write_seconds = self.read_seconds = 0.0
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
            began = perf_counter()
            _settle(future, lambda: self.file.write(held.pop(), offset))
            self.write_seconds += perf_counter() - began

        self._queues[0].put(job)
        return future

    def read(self, written: Written, into: torch.UntypedStorage) -> Future[None]:
        """Begin to read what was written, into a storage that a `Place` opened for it."""
        future: Future[None] = Future()

        def job() -> None:
            began = perf_counter()
            _settle(future, lambda: self.file.read(written, into.data_ptr()))
            self.read_seconds += perf_counter() - began

        self._queues[1].put(job)
        return future

    def close(self) -> None:
        """Finish what was asked for, end the threads, close the file. Safe to call twice."""
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()
        self.file.close()


def _work(queue: SimpleQueue[_Job | None]) -> None:
    while (job := queue.get()) is not None:
        job()
        del job  # or the last storage would stay


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except StorageError as error:
        future.set_exception(error)
    except BaseException as error:  # a thread that dies would leave its caller waiting
        future.set_exception(StorageError(f"moving an activation failed ({error!r})"))


class Place:
    """Where in an arena a storage comes back to; free again when the last tensor over it is gone."""

    def __init__(self, arena: CpuArena, offset: int, nbytes: int) -> None:
        self.arena, self.offset, self.nbytes = arena, offset, nbytes
        self._held: weakref.ref[torch.UntypedStorage] | None = None

    def open(self, written: Written) -> torch.UntypedStorage | None:
        """Memory for these bytes to come back to; None while the place is taken."""
        if not self._take():
            return None
        tensor = self.arena.tensor(self.offset + written.lead_nbytes, torch.uint8, (written.nbytes,))
        storage = tensor.untyped_storage()
        self._held = weakref.ref(storage)
        weakref.finalize(storage, self._give_back)
        return storage

    def _take(self) -> bool:
        return self._held is None or self._held() is None

    def _give_back(self) -> None:
        with contextlib.suppress(ValueError):  # the arena is gone already
            self.arena.give_back(self.offset, self.nbytes)


class PoolPlace(Place):
    """A place in the pool's arena, whose memory stays."""

    def __init__(self, pool: Pool, arena: CpuArena, offset: int, nbytes: int) -> None:
        super().__init__(arena, offset, nbytes)
        self._pool = pool

    def _take(self) -> bool:
        return self._pool.take(self.offset, self.nbytes)

    def _give_back(self) -> None:
        self._pool.give(self.arena, self.offset)
