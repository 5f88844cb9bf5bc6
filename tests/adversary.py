"""A device that does all it may to break the runtime: completions late and in any order, freed space poisoned."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from mmap import PAGESIZE
from typing import Any

from penstock.runtime.devices.base import Arena, Completion, TransferQueue
from penstock.runtime.devices.cpu import CpuDevice
from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.runtime.storage import Storage

POISON = 0xFF  # NaN in every floating dtype, nonsense in the others


class _PoisonedArena(CpuArena):
    """Poison from the beginning, and wherever memory is given back: a weight that lay there would be gone for good."""

    def __init__(self, nbytes: int, note: Callable[[int], None]) -> None:
        super().__init__(nbytes)
        self._note = note
        self.view[:] = bytes([POISON]) * nbytes

    def give_back(self, offset: int, nbytes: int) -> None:
        super().give_back(offset, nbytes)
        begin, end = -(-offset // PAGESIZE) * PAGESIZE, (offset + nbytes) // PAGESIZE * PAGESIZE
        if begin < end:
            self._note(end - begin)
            self.view[begin:end] = bytes([POISON]) * (end - begin)


class AdversarialDevice(CpuDevice):
    """The CPU, with every completion delayed and reordered, and poison in space that holds nothing.

    Args:
        seed: decides how many completions are held back and in which order they come.
        read_nbytes: the most that one read brings; small, so that weights take several.
    """

    def __init__(self, seed: int = 0, read_nbytes: int = 64 << 10) -> None:
        self._random = random.Random(seed)
        self._read_nbytes = read_nbytes
        self.freed_nbytes = self.given_back_nbytes = 0

    def allocate(self, nbytes: int) -> CpuArena:
        return _PoisonedArena(nbytes, self._note_given_back)

    def _note_given_back(self, nbytes: int) -> None:
        self.given_back_nbytes += nbytes

    def open_queue(self, arena: Arena, storage: Storage, done: Completion, **tuning: Any) -> TransferQueue:
        return _HoldingQueue(
            lambda report: CpuDevice.open_queue(
                self, arena, storage, report, **{"read_nbytes": self._read_nbytes, **tuning}
            ),
            done,
            random.Random(self._random.random()),
        )

    def freed(self, arena: Arena, offset: int, nbytes: int) -> None:
        if not isinstance(arena, CpuArena):
            raise TypeError("not an arena of this device")
        self.freed_nbytes += nbytes
        arena.view[offset : offset + nbytes] = bytes([POISON]) * nbytes


class _HoldingQueue(TransferQueue):
    """Holds finished transfers back; a helper lets one go at random once enough are held or nothing else is coming."""

    def __init__(self, open_inner: Any, done: Completion, chance: random.Random) -> None:
        self._done, self._random = done, chance
        self._changed = threading.Condition()
        self._held: list[tuple[int, BaseException | None]] = []
        self._running = self._wanted = 0
        self._closing = self._is_giving = False
        self._inner: TransferQueue = open_inner(self._hold)
        self._helper = threading.Thread(target=self._let_go, name="penstock-adversary", daemon=True)
        self._helper.start()

    def submit(
        self,
        ticket: int,
        source: Any,
        offset: int,
        *,
        realign: bool = False,
        staging_offset: int | None = None,
    ) -> None:
        with self._changed:
            self._running += 1
        self._inner.submit(ticket, source, offset, realign=realign, staging_offset=staging_offset)

    def expect(self, order: Any, then: Any) -> None:
        self._inner.expect(order, then)

    def _hold(self, ticket: int, error: BaseException | None) -> None:
        with self._changed:
            self._running -= 1
            self._held.append((ticket, error))
            self._changed.notify_all()

    def _let_go(self) -> None:
        while True:
            with self._changed:
                self._wanted = self._random.randint(1, 4)
                self._changed.wait_for(lambda: len(self._held) >= self._wanted or not self._running)
                if not self._held:
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._held or self._running or self._closing)
                    continue
                ticket, error = self._held.pop(self._random.randrange(len(self._held)))
                self._is_giving = True
            self._done(ticket, error)
            with self._changed:
                self._is_giving = False
                self._changed.notify_all()

    def drain(self) -> None:
        self._inner.drain()
        with self._changed:
            self._changed.wait_for(lambda: not (self._held or self._running or self._is_giving))

    def close(self) -> None:
        self._inner.close()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._helper is not threading.current_thread():
            self._helper.join()
