"""Tensors that somebody other than autograd holds, and whose memory goes and comes: state, weights, gradients."""

from __future__ import annotations

import weakref
from typing import ClassVar

import torch
from torch import nn

from penstock.errors import StreamStateError
from penstock.runtime.binding import unreadable
from penstock.runtime.storage import BLOCK_NBYTES
from penstock.training.entry import Entry, Handle
from penstock.training.iteration import LEAST_NBYTES
from penstock.training.mover import Mover, Place
from penstock.training.recompute import Geometry, geometry, laid
from penstock.training.swapfile import room_nbytes


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """What it is without memory.

    torch ignores copies into tensors of a meta device, but not where shapes differ: with one more dimension it raises.
    """
    stride = (*tensor.stride(), 1)
    return unreadable((*tensor.shape, 1), tensor.dtype, tensor.device, stride)


def can_leave(value: object) -> bool:
    """Whether it is a large tensor that has a storage in memory to itself."""
    return (
        type(value) in (torch.Tensor, nn.Parameter)
        and isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() == value.numel() * value.element_size() >= LEAST_NBYTES
    )


class Movable:
    """One tensor, which stays the same object while its memory goes and comes.

    Args:
        parameter: whose it is.
        nbytes: of its storage.

    Attributes:
        entry: by which its memory has gone, or goes; None where it has come back since.
        is_state: whether the optimizer asks for it.
    """

    is_state: ClassVar[bool] = False

    def __init__(self, parameter: torch.Tensor, nbytes: int) -> None:
        self.parameter, self.nbytes = parameter, nbytes
        self.entry: Entry | None = None
        self._offset: int | None = None  # in the file
        self._gone: weakref.ref[torch.Tensor] | None = None
        self._version = 0
        self._where: Geometry | None = None  # in the storage that has gone

    def _current(self) -> torch.Tensor | None:
        """The tensor as it is now."""
        raise NotImplementedError

    def allot(self, mover: Mover) -> None:
        """Have room in the file, for as long as there is one.

        Raises:
            StorageError: the disk has none.
        """
        if self._offset is None:
            self._offset = mover.file.allot(room_nbytes(self.nbytes))

    def leave(self, mover: Mover, place: Place) -> Entry | None:
        """Begin to write it; what it comes back by. None where it is away, or on its way, already, or has to stay."""
        assert self._offset is not None, "there is room for it"
        if self.entry is not None and (self.entry.storage is None or self.entry.is_leaving):
            self.entry.place = place
            return None
        self.bring()  # where it was written in vain
        tensor = self._current()
        if tensor is None or not can_leave(tensor) or tensor.untyped_storage().nbytes() != self.nbytes:
            return None
        self._gone, self._version, self._where = weakref.ref(tensor), tensor._version, geometry(tensor)
        entry = self.entry = Entry(tensor.untyped_storage(), mover, self._offset, place)
        entry.hold(tensor, _hollow(tensor))
        self._hold(entry, tensor.untyped_storage())
        entry.hide()
        entry.leave()
        return entry

    def move_to(self, place: Place) -> None:
        """Have it in this place, if it is in memory, and nobody else has that.

        Between two iterations, when graphs have none of it.
        """
        tensor = self._current()
        if self.entry is not None or tensor is None or not can_leave(tensor):
            return
        held, where = weakref.ref(tensor.untyped_storage()), geometry(tensor)
        room = place.room(self.nbytes, tensor.data_ptr() % BLOCK_NBYTES)
        if room is None:
            return
        tensor.data = laid(room, where).copy_(tensor.detach())
        previous = held()
        if previous is not None:  # somebody else has it
            tensor.data = laid(previous, where)

    def _hold(self, entry: Entry, storage: torch.UntypedStorage) -> None:
        """Whatever else has its memory is to give it up, too."""

    def bring(self) -> float:
        """Have it in memory; the seconds that it was waited for.

        Raises:
            StorageError: it could not be read.
            StreamStateError: it was written to while it had no memory, and what was written is lost.
        """
        entry, tensor = self.entry, self._gone() if self._gone is not None else None
        if entry is None or self._where is None:
            return 0.0
        if tensor is None or not tensor.is_meta:  # it is nobody's any more, or has other data
            self._give_up(entry)
            self.release()
            return 0.0
        storage, seconds = entry.present()
        tensor.data = laid(storage, self._where)
        is_written = tensor._version != self._version
        self.release()
        if is_written:
            raise StreamStateError(
                f"a tensor of shape {list(tensor.shape)} was written to while it was away, and that is lost: write to "
                "weights, gradients and state in each iteration or by load_state_dict, or leave parameters=True out"
            )
        return seconds

    def _give_up(self, entry: Entry) -> None:
        """What left by this entry does not come back."""

    def release(self) -> None:
        """Forget how it left."""
        self.entry = self._gone = None


class State(Movable):
    """A tensor of an optimizer's state."""

    is_state = True

    def __init__(self, tensor: torch.Tensor, parameter: torch.Tensor) -> None:
        super().__init__(parameter, tensor.untyped_storage().nbytes())
        self._tensor = tensor

    def _current(self) -> torch.Tensor:
        return self._tensor


class Gradient(Movable):
    """Whatever gradient a parameter has; another one in each iteration, or none."""

    def _current(self) -> torch.Tensor | None:
        return self.parameter.grad


class Weight(Movable):
    """A parameter, of which autograd saves views.

    Args:
        by_storage: all weights, by the storages that they have; is kept.
    """

    def __init__(self, parameter: torch.Tensor, nbytes: int, by_storage: dict[int, Weight]) -> None:
        super().__init__(parameter, nbytes)
        self._by_storage = by_storage
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._know()

    def _know(self) -> None:
        if not self.parameter.is_meta:
            self._by_storage[self.parameter.untyped_storage()._cdata] = self

    def _current(self) -> torch.Tensor:
        return self.parameter

    def move_to(self, place: Place) -> None:
        super().move_to(place)
        self._know()

    def has(self, storage: torch.UntypedStorage) -> bool:
        """Whether this is its memory."""
        return not self.parameter.is_meta and self.parameter.untyped_storage()._cdata == storage._cdata

    def saved(self, tensor: torch.Tensor) -> Handle:
        """What autograd is to keep of a view of it."""
        handle = Handle(tensor)
        self._handles.add(handle)
        return handle

    def _hold(self, entry: Entry, storage: torch.UntypedStorage) -> None:
        self._by_storage.pop(storage._cdata, None)
        for handle in list(self._handles):
            if handle.is_of(storage):
                handle.leave_with(entry)

    def _give_up(self, entry: Entry) -> None:
        if any(handle.left_with(entry) for handle in list(self._handles)):
            entry.present()  # graphs still want it, and its place in the file may be written to

    def bring(self) -> float:
        seconds = super().bring()
        self._know()
        return seconds
