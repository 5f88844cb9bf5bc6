"""Optimizer state that lies idle while a model computes: away from the begin of an iteration until its step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from penstock.planning.swap_problem import Absence
from penstock.runtime.binding import unreadable
from penstock.training.entry import Entry
from penstock.training.iteration import LEAST_NBYTES
from penstock.training.tape import STEP_BEGINS, Event


class State:
    """One tensor of an optimizer's state, which stays the same object: its memory goes and comes.

    Args:
        tensor: as the optimizer holds it.

    Attributes:
        entry: of the present iteration, if it may be away in it.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.entry: Entry | None = None
        self._geometry = tensor.storage_offset(), tensor.size(), tensor.stride()
        self._hollow = unreadable(tuple(tensor.shape), tensor.dtype, tensor.device, tensor.stride())

    def enter(self, entry: Entry) -> None:
        """A new iteration: this is what its memory goes and comes by."""
        self.entry = entry
        entry.hold(self.tensor, self._hollow)

    def present(self) -> float:
        """Have it in memory; the seconds that it was waited for.

        Raises:
            StorageError: it could not be read.
        """
        if self.entry is None:
            return 0.0
        storage, seconds = self.entry.present()
        if self.tensor.is_meta or self.tensor.untyped_storage()._cdata != storage._cdata:
            self.tensor.data = torch.empty(0, dtype=self.tensor.dtype).set_(storage, *self._geometry)
        return seconds


def idle_states(
    optimizers: Sequence[torch.optim.Optimizer], events: Sequence[Event]
) -> Iterator[tuple[Absence, torch.Tensor]]:
    """What could be away from the begin of an iteration until its optimizer steps, and when.

    Its numbers as storages follow those of the events.
    """
    number = len(events)
    for index, optimizer in enumerate(optimizers):
        step = Event(STEP_BEGINS, index)
        returns = events.index(step) if step in events else 0
        seen: set[int] = set()
        for state in optimizer.state.values():
            for value in state.values():
                if returns and _can_leave(value) and value.untyped_storage()._cdata not in seen:
                    seen.add(value.untyped_storage()._cdata)
                    yield Absence(number, value.untyped_storage().nbytes(), 0, returns), value
                    number += 1


def _can_leave(value: object) -> bool:
    return (
        type(value) is torch.Tensor
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() == value.numel() * value.element_size() >= LEAST_NBYTES
    )
