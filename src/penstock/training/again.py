"""One saved storage of the present iteration that is given up, and computed again when it is asked for."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch

from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.training.entry import Entry, Kept
from penstock.training.mover import Mover, Place
from penstock.training.recompute import Recipe, Source, laid

SavedAt = Mapping[int, weakref.ref[Kept]]
"""What autograd keeps, by the event by which it was saved, as long as it does."""


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
        self._nbytes = storage.nbytes()
        self._sources: dict[int, Kept] = {}

    def leave(self) -> None:
        """Give it up, if all that it is computed from is there."""
        if self.storage is None or self._stays:
            return
        sources: dict[int, Kept] = {}
        for source in self._recipe.sources():
            if source.stays is None:
                reference = self._saved_at.get(source.saved)
                kept = reference() if reference is not None else None
                if kept is None:
                    return
                sources[source.saved] = kept
        self._sources = sources
        self._give_up()

    def begin_to_return(self) -> None:
        """It will be computed when it is asked for."""

    def _bring(self) -> torch.UntypedStorage:
        storage = self.place.room(self._nbytes)
        if storage is None:
            storage = Place(CpuArena(self._nbytes), 0, self._nbytes).room(self._nbytes)
        assert storage is not None, "memory of its own is free"
        with torch.no_grad():
            self._recipe.compute(self._read, laid(storage, self._recipe.where))
        self._sources = {}
        return storage

    def _read(self, source: Source) -> torch.Tensor:
        tensor, _ = self._sources[source.saved].take()
        return laid(tensor.untyped_storage(), source.where)
