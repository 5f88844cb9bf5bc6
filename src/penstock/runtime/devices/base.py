"""What the runtime asks of a device: fixed memory, and a queue that fills it from storage.

The CPU reads straight into its arena. A device with memory of its own reads into host staging and copies
from there; its queue reports a transfer done when the copy's completion event has fired. The runtime sees
no difference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from penstock.checkpoint import WeightSource
from penstock.runtime.events import EventLog
from penstock.runtime.storage import Storage

Completion = Callable[[int, BaseException | None], None]
Expected = tuple[int, WeightSource, int]
"""Ticket, source and staging offset of a transfer that is to come."""


class Arena(ABC):
    """One allocation of fixed size; every chunk has its address in it."""

    nbytes: int

    @abstractmethod
    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor over the bytes from `offset`: no copy, with a storage of exactly its own bytes."""

    def resident_nbytes(self) -> int:
        """How much of it is in memory already, where that happens page by page as it is first written."""
        return self.nbytes

    @abstractmethod
    def give_back(self, offset: int, nbytes: int) -> None:
        """Let others have the memory of these bytes, which hold nothing, until they are written again.

        Only whole pages go back, where pages are huge whole huge ones. What is read there in between is undefined.
        """

    @abstractmethod
    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's bytes lie in this memory."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back once no tensor points into it. Safe to call twice."""


class TransferQueue(ABC):
    """Transfers from storage into one arena, several in flight, begun in the order submitted.

    Attributes:
        events: where to note when a ticket's bytes begin to be read or copied, if anywhere.
    """

    events: EventLog | None = None

    @abstractmethod
    def submit(
        self,
        ticket: int,
        source: WeightSource,
        offset: int,
        *,
        realign: bool = False,
        staging_offset: int | None = None,
    ) -> None:
        """Begin to bring `source` to `offset`; the completion callback gets `ticket` exactly once.

        Args:
            ticket: the caller's name for this transfer; the same name always means the same source and offset.
            source: the weight's bytes.
            offset: arena offset of its first byte, congruent to its first file offset modulo the block.
            realign: move the bytes down to the next multiple of `ALIGNMENT_NBYTES` when they have arrived.
            staging_offset: where it goes first in the staging memory, congruent likewise; None: not through staging.
        """

    def expect(self, order: Sequence[Expected], then: Sequence[Expected]) -> None:  # noqa: B027  (may be no use)
        """What will be submitted next, in this order, and then again and again; it replaces what was expected before.

        A queue with staging memory reads it ahead.
        """

    @abstractmethod
    def drain(self) -> None:
        """Wait until nothing is in flight and all of it has been reported."""

    @abstractmethod
    def close(self) -> None:
        """Wait for what is in flight, end every thread, close the storage. Safe to call twice."""


class Device(ABC):
    """A place where layers compute."""

    torch_device: torch.device

    @abstractmethod
    def allocate(self, nbytes: int) -> Arena:
        """Fixed memory of `nbytes`."""

    @abstractmethod
    def open_queue(
        self, arena: Arena, storage: Storage, done: Completion, *, staging: Arena | None = None, **tuning: Any
    ) -> TransferQueue:
        """A queue into `arena` that owns `storage` and calls `done(ticket, error or None)` from any thread.

        With `staging`, memory from `allocate`, transfers that have a place in it are copied from there.
        """

    def freed(self, arena: Arena, offset: int, nbytes: int) -> None:  # noqa: B027  (a hook, not a duty)
        """Told when the bytes at `offset` hold nothing any more. Tests poison them."""


ALIGNMENT_NBYTES = 16
"""Matrix-vector kernels give other last bits for addresses that are no multiple of this (measured on MKL)."""


def settled_offset(offset: int, *, realign: bool) -> int:
    """Where a transfer to `offset` ends up."""
    return offset - offset % ALIGNMENT_NBYTES if realign else offset
