"""One storage that autograd saved, or an optimizer keeps: in memory, on its way, or away."""

from __future__ import annotations

import logging
import math
import weakref
from concurrent.futures import Future
from time import perf_counter

import torch

from penstock.errors import StorageError
from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.training.mover import Mover, Place
from penstock.training.recompute import geometry, laid
from penstock.training.swapfile import Written, room_nbytes

logger = logging.getLogger("penstock")


class Entry:
    """A storage that autograd saved and that may be away for a while.

    Attributes:
        storage: its memory, while it has any.
        place: where it comes back to.
        is_computed: whether it does so by being computed.
    """

    is_computed = False

    def __init__(self, storage: torch.UntypedStorage, mover: Mover, offset: int, place: Place) -> None:
        self.storage: torch.UntypedStorage | None = storage
        self.place = place
        self._mover, self._offset = mover, offset
        self._writing: Future[Written] | None = None
        self._written: Written | None = None
        self._reading: Future[None] | None = None
        self._returning: torch.UntypedStorage | None = None
        self._elsewhere: weakref.ref[torch.UntypedStorage] | None = None
        self._versions: list[int] = []
        self._stays = False
        # Tensors that hold the storage, too, and what each is to be like without it.
        self._aliases: list[tuple[torch.Tensor, torch.Tensor]] = []

    def hold(self, tensor: torch.Tensor, hollow: torch.Tensor) -> None:
        """This tensor is a view of the storage, which it is to give up with it and be like `hollow`."""
        self._aliases.append((tensor, hollow))

    def hide(self) -> None:
        """Have the tensors that hold it give it up now, so that nobody writes to what is on its way."""
        while self._aliases:
            alias, hollow = self._aliases.pop()
            alias.data = hollow  # it still knows its version

    def leave(self) -> None:
        """Begin to write it."""
        if self.storage is not None and not self._stays:
            self._versions = [tensor._version for tensor, _ in self._aliases]
            self._writing = self._mover.write(self.storage, self._offset)

    @property
    def is_leaving(self) -> bool:
        """Whether it is being written, to be given up then."""
        return self._writing is not None and not self._stays

    def stay(self) -> None:
        """Keep what is in memory there, written or not."""
        self._stays = True

    def settle(self, *, wait: bool) -> bool:
        """Give its memory up if it is written; with `wait`, once it is. Whether there is nothing more to wait for.

        Raises:
            StorageError: it could not be written. It is in memory, and stays.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return self._writing is None
        writing, self._writing = self._writing, None
        try:
            written = writing.result()
        except BaseException:
            self._stays = True
            raise
        finally:
            del writing  # which has the error, which has this frame
        if not self._stays and self._versions == [tensor._version for tensor, _ in self._aliases]:
            self._written = written
            self._give_up()
        return True

    def _give_up(self) -> None:
        self._elsewhere = weakref.ref(self.storage) if self.storage is not None else None
        self.storage = None
        self.hide()

    @property
    def is_held_elsewhere(self) -> bool:
        """Whether it was given up, and is in memory all the same, because somebody else has it."""
        return self._elsewhere is not None and self._elsewhere() is not None

    def begin_to_return(self) -> None:
        """Begin to read it, if it is away and its place is free."""
        self._stays = True
        self._find()
        if self._written is not None and self._reading is None:
            self._read_to(self.place)

    def _find(self) -> None:
        """Somebody else may have held it all the time: then it never was away."""
        found = self._elsewhere() if self._elsewhere is not None and self._reading is None else None
        if found is not None:
            self.storage, self._written = found, None

    def _read_to(self, place: Place) -> None:
        assert self._written is not None, "what is not in memory was written"
        self._returning = place.open(self._written)
        if self._returning is not None:
            self._reading = self._mover.read(self._written, self._returning)

    def present(self) -> tuple[torch.UntypedStorage, float]:
        """Its memory, with its bytes in it, and for how long that had to be waited for.

        Raises:
            StorageError: it could not be read.
        """
        self._stays = True
        self._find()
        if self.storage is not None:
            return self.storage, 0.0
        began = perf_counter()
        self.storage = self._bring()
        return self.storage, perf_counter() - began

    def bring(self) -> float:
        """Have it in memory; the seconds that it was waited for.

        Raises:
            StorageError: it could not be read.
        """
        return self.present()[1]

    def _bring(self) -> torch.UntypedStorage:
        if self._reading is not None:
            try:
                return self._read()
            except StorageError as error:
                logger.warning("%s: trying once more", error)
        return self._read()

    def _read(self) -> torch.UntypedStorage:
        assert self._written is not None, "what is not in memory was written"
        if self._reading is None:  # unforeseen, or its place was taken
            self._read_to(self.place)
        if self._reading is None:
            nbytes = room_nbytes(self._written.nbytes)
            self._read_to(Place(CpuArena(nbytes), 0, nbytes))
        assert self._reading is not None, "memory of its own is free"
        reading, self._reading = self._reading, None
        storage, self._returning = self._returning, None
        try:
            reading.result()
        finally:
            del reading  # which has the error, which has this frame
        self._written = None
        assert storage is not None, "what is read goes somewhere"
        return storage


def is_movable(saved: object) -> bool:
    """Whether what autograd saves may leave memory."""
    if type(saved) is not torch.Tensor or saved.layout is not torch.strided or saved.device.type != "cpu":
        return False
    return not (saved.is_conj() or saved.is_neg())  # which are no part of the bytes


class Kept:
    """What autograd keeps in the place of a saved tensor, which knows whether that was written to since.

    With hooks, torch itself does not look (2.13), and gradients would be silently wrong.
    """

    __slots__ = ("__weakref__", "_tensor", "_version")

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor, self._version = tensor, tensor._version

    @property
    def is_computed(self) -> bool:
        """Whether it is computed again when it is taken."""
        return False

    @property
    def nbytes(self) -> int:
        """Of its storage."""
        return self._tensor.untyped_storage().nbytes()

    def take(self) -> tuple[torch.Tensor, float]:
        """The tensor, and the seconds that it was waited for.

        Raises:
            RuntimeError: it was written to, as torch says it without hooks.
            StorageError: it could not be read.
        """
        if self._tensor._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self._tensor.type()} {self._shape()}] is at version {self._tensor._version}; expected version "
                f"{self._version} instead."
            )
        return self._tensor, 0.0

    def _shape(self) -> list[int]:
        return list(self._tensor.shape)


class Handle(Kept):
    """What is kept of a tensor whose storage may be away: which part of it it was."""

    __slots__ = ("_entry", "_nbytes", "_where")

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor)
        self._entry: Entry | None = None
        self._nbytes = tensor.untyped_storage().nbytes()
        self._where = geometry(tensor)

    def is_of(self, storage: torch.UntypedStorage) -> bool:
        """Whether it is of this memory, which may have come back."""
        mine = self._entry.storage if self._entry is not None else self._tensor.untyped_storage()
        return mine is not None and mine._cdata == storage._cdata

    def left_with(self, entry: Entry) -> bool:
        """Whether the storage comes back by this entry."""
        return self._entry is entry

    def leave_with(self, entry: Entry) -> None:
        """The storage comes back by this entry from now on."""
        self._entry = entry
        entry.hold(self._tensor, torch.empty(0, dtype=self._tensor.dtype))

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def is_computed(self) -> bool:
        return self._entry is not None and self._entry.is_computed

    def take(self) -> tuple[torch.Tensor, float]:
        tensor, _ = super().take()
        if self._entry is None:
            return tensor, 0.0
        storage, seconds = self._entry.present()
        if tensor.numel() or not math.prod(self._where[1]):
            return tensor, seconds
        return laid(storage, self._where), seconds

    def _shape(self) -> list[int]:
        return list(self._where[1])
