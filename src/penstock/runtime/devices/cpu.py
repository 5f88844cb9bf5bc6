"""The CPU as a device: its memory, and queues with or without a copy stage."""

from __future__ import annotations

from typing import Any

import torch

from penstock.runtime.devices.base import Arena, Completion, Device, TransferQueue
from penstock.runtime.devices.cpu_queue import READ_NBYTES, THREADS, CpuArena, CpuQueue
from penstock.runtime.devices.staged import StagedQueue
from penstock.runtime.storage import Storage


class CpuDevice(Device):
    """The processor and its memory."""

    torch_device = torch.device("cpu")

    def allocate(self, nbytes: int) -> CpuArena:
        return CpuArena(nbytes)

    def open_queue(
        self, arena: Arena, storage: Storage, done: Completion, *, staging: Arena | None = None, **tuning: Any
    ) -> TransferQueue:
        threads, read_nbytes = tuning.get("threads", THREADS), tuning.get("read_nbytes", READ_NBYTES)
        if not isinstance(arena, CpuArena):
            raise TypeError(f"the CPU queue fills a CpuArena, not a {type(arena).__name__}")
        if staging is None:
            return CpuQueue(arena, storage, done, threads=threads, read_nbytes=read_nbytes)
        if not isinstance(staging, CpuArena):
            raise TypeError(f"the CPU queue stages in a CpuArena, not a {type(staging).__name__}")
        return StagedQueue(arena, staging, storage, done, threads=threads, read_nbytes=read_nbytes)
