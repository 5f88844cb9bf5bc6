from __future__ import annotations

from typing import Any

from penstock.checkpoint import WeightSource
from penstock.runtime.devices.base import Arena, Completion, Device, TransferQueue
from penstock.runtime.devices.cpu import CpuDevice
from penstock.runtime.storage import Storage

from ..adversary import AdversarialDevice  # noqa: TID252
from .device import BLOCK, NBYTES, DeviceConformance


class TestCpuDevice(DeviceConformance):
    def make(self) -> Device:
        return CpuDevice()


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
