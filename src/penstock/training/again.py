"""One saved storage of the present iteration that is given up, and computed again when it is asked for."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import numpy as np
import torch

from penstock.budget import format_size
from penstock.errors import StreamStateError
from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.runtime.storage import BLOCK_NBYTES
from penstock.training.entry import Entry, Kept
from penstock.training.mover import Mover, Place
from penstock.training.recompute import Recipe, Source, laid

SavedAt = Mapping[int, weakref.ref[Kept]]
"""What autograd keeps, by the event by which it was saved, as long as it does."""


def checksum(storage: torch.UntypedStorage) -> int:
    """The sum of its bytes, eight at a time: whether what was computed again is the same to the last bit."""
    flat = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    words = len(flat) // 8 * 8
    return int(flat[:words].view(np.uint64).sum(dtype=np.uint64)) + int(flat[words:].sum(dtype=np.uint64))


def _identity(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor._version, tensor.untyped_storage()._cdata


class EntryAgain(Entry):
    """A storage that autograd saved, and that may be computed again from others that it saved.

    Args:
        storage: its memory.
        mover: for sources that are away, after all.
        place: where it comes back to.
        recipe: how it is computed.
        saved_at: what of others is kept.
    """

    is_computed = True

    def __init__(
        self, storage: torch.UntypedStorage, mover: Mover, place: Place, recipe: Recipe, saved_at: SavedAt
    ) -> None:
        super().__init__(storage, mover, -1, place)
        self._recipe, self._saved_at = recipe, saved_at
        self._nbytes, self._lead_nbytes = storage.nbytes(), storage.data_ptr() % BLOCK_NBYTES
        self._sources: dict[int, Kept] = {}
        self._stay: list[tuple[torch.Tensor, tuple[int, int]]] = []  # with their versions and storages
        self._sum = 0

    def leave(self) -> None:
        """Give it up, if all that it is computed from is there."""
        if self.storage is None or self._stays:
            return
        sources: dict[int, Kept] = {}
        stay: list[tuple[torch.Tensor, tuple[int, int]]] = []
        for source in self._recipe.sources():
            if source.stays is not None:
                stay.append((source.stays, _identity(source.stays)))
            else:
                reference = self._saved_at.get(source.saved)
                kept = reference() if reference is not None else None
                if kept is None:
                    return
                sources[source.saved] = kept
        self._sources, self._stay, self._sum = sources, stay, checksum(self.storage)
        self._give_up()

    def begin_to_return(self) -> None:
        """It will be computed when it is asked for."""

    def _bring(self) -> torch.UntypedStorage:
        storage = self.place.room(self._nbytes, self._lead_nbytes)
        if storage is None:
            room = self._nbytes + BLOCK_NBYTES
            storage = Place(CpuArena(room), 0, room).room(self._nbytes, self._lead_nbytes)
        assert storage is not None, "memory of its own is free"
        is_same = all(_identity(tensor) == known for tensor, known in self._stay)
        if is_same:
            with torch.no_grad():
                self._recipe.compute(self._tensor_of, laid(storage, self._recipe.where))
            self._sources = {}
        if not is_same or checksum(storage) != self._sum:
            raise StreamStateError(
                f"an activation of {format_size(self._nbytes)} that was computed again is not what it was: what the "
                "iteration computes has changed since it was recorded, a number, a parameter or a branch; leave "
                "recompute=True out"
            )
        return storage

    def _tensor_of(self, source: Source) -> torch.Tensor:
        tensor, _ = self._sources[source.saved].take()
        return laid(tensor.untyped_storage(), source.where)
