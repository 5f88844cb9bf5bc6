from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from penstock.checkpoint import FileIdentity, WeightSource
from penstock.errors import StorageError
from penstock.runtime.devices.base import Arena, Completion, Device, TransferQueue
from penstock.runtime.devices.cpu import CpuDevice
from penstock.runtime.storage import FileStorage, Storage

from ..adversary import AdversarialDevice  # noqa: TID252
from .device import BLOCK, NBYTES, DeviceConformance, FailingStorage, Reports, piece_source


class _MeetingStorage(FileStorage):
    """The first two reads go on when both have begun; `begun` has where each one did."""

    def __init__(self, file: Path) -> None:
        super().__init__([FileIdentity.of(file)])
        self.begun: list[int] = []
        self.has_begun = threading.Event()
        self._meeting = threading.Barrier(2)

    def read(self, file: int, offset: int, into: memoryview, needed_nbytes: int) -> None:
        self.begun.append(offset)
        self.has_begun.set()
        if len(self.begun) <= 2:
            self._meeting.wait(timeout=60)
        super().read(file, offset, into, needed_nbytes)


class TestCpuDevice(DeviceConformance):
    def make(self) -> Device:
        return CpuDevice()

    def test_readers_help_the_first_transfer_before_they_begin_the_next(self, tmp_path: Path, content: bytes) -> None:
        reports = Reports()
        device, storage = CpuDevice(), _MeetingStorage(tmp_path / "weights")
        arena = device.allocate(NBYTES)
        queue = device.open_queue(arena, storage, reports, threads=2, read_nbytes=16 * BLOCK)
        queue.submit(0, piece_source(0, NBYTES // 2), 0)
        assert storage.has_begun.wait(timeout=60)
        queue.submit(1, piece_source(NBYTES // 2, NBYTES // 2), NBYTES // 2)
        reports.wait_for(2)
        queue.close()
        assert set(reports.errors.values()) == {None}
        assert sorted(storage.begun[:2]) == [0, 16 * BLOCK]
        assert bytes(arena.tensor(0, torch.uint8, (NBYTES,)).tolist()) == content
        arena.close()

    def test_a_transfer_of_which_several_reads_fail_is_reported_once_and_spares_the_others(
        self, tmp_path: Path, content: bytes
    ) -> None:
        reports = Reports()
        device, storage = CpuDevice(), FailingStorage([FileIdentity.of(tmp_path / "weights")])
        arena = device.allocate(NBYTES)
        queue = device.open_queue(arena, storage, reports, threads=2, read_nbytes=16 * BLOCK)
        queue.submit(0, piece_source(NBYTES // 4, NBYTES // 2), NBYTES // 4)
        queue.submit(1, piece_source(0, NBYTES // 4), 0)
        reports.wait_for(2)
        queue.close()
        assert reports.count == 2
        assert isinstance(reports.errors[0], StorageError)
        assert reports.errors[1] is None
        assert bytes(arena.tensor(0, torch.uint8, (NBYTES // 4,)).tolist()) == content[: NBYTES // 4]
        arena.close()


class _AlwaysStaged(CpuDevice):
    """The CPU, every transfer by way of a staging memory in which only one of them has place at a time."""

    def open_queue(self, arena: Arena, storage: Storage, done: Completion, **tuning: Any) -> TransferQueue:
        queue = super().open_queue(arena, storage, done, staging=self.allocate(NBYTES + BLOCK), **tuning)
        submit = queue.submit

        def staged(ticket: int, source: WeightSource, offset: int, *, realign: bool = False) -> None:
            submit(ticket, source, offset, realign=realign, staging_offset=offset % BLOCK)

        queue.submit = staged  # type: ignore[assignment, method-assign]
        return queue


class TestStagedCpuDevice(DeviceConformance):
    def make(self) -> Device:
        return _AlwaysStaged()


class TestAdversarialDevice(DeviceConformance):
    """The device that tests the runtime has to be a proper device itself."""

    gives_memory_back = False  # it poisons it

    def make(self) -> Device:
        return AdversarialDevice(seed=1)
