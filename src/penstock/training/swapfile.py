"""The file that storages go to, and the threads that bring them there and back, by direct I/O and without a copy.

Direct I/O wants whole blocks at addresses that are multiples of the block, and torch aligns storages to 64 bytes. So
the blocks inside a storage go to the file, straight from where they are, and the few bytes before and after them stay
in memory; coming back, a storage lies at an address with the same remainder, so that kernels round as they did before.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from penstock.budget import format_size
from penstock.errors import StorageError
from penstock.runtime.storage import BLOCK_NBYTES

_PIECE_NBYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """A storage's bytes outside memory.

    Attributes:
        nbytes: of all of it.
        offset: where the blocks of it begin in the file.
        lead_nbytes: how far after a block's begin the storage began.
        head, tail: the bytes before and after these blocks.
    """

    nbytes: int
    offset: int
    lead_nbytes: int
    head: bytes
    tail: bytes


def room_nbytes(nbytes: int) -> int:
    """What a storage needs in the file, and in the memory that it comes back to."""
    return -(-nbytes // BLOCK_NBYTES) * BLOCK_NBYTES + 2 * BLOCK_NBYTES


class SwapFile:
    """One file without a name, so that nothing stays behind however the process ends.

    Args:
        folder: where; the system's temporary folder if None.

    Attributes:
        nbytes: of the room in it that was allotted.
        direct: whether direct I/O is used.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder if folder is not None else Path(tempfile.gettempdir())
        self.nbytes, self.direct = 0, True
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise StorageError(f"{self.folder}: no file can be made there ({error.strerror}): name a folder") from error

    def allot(self, nbytes: int) -> int:
        """Room at the file's end: where it begins.

        Raises:
            StorageError: the disk has none.
        """
        offset = self.nbytes
        try:
            if nbytes:
                os.posix_fallocate(self._descriptor, offset, nbytes)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: no room for {format_size(nbytes)} ({error.strerror}): free some, or name another one"
            ) from error
        self.nbytes += nbytes
        return offset

    def shrink(self, nbytes: int) -> None:
        """Give back all room but the first `nbytes`."""
        os.ftruncate(self._descriptor, nbytes)
        self.nbytes = nbytes

    def _open(self) -> int:
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="penstock-", suffix=".swap") as file:
            try:
                return os.open(file.name, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
            except OSError:
                self.direct = False
                return os.open(file.name, os.O_RDWR | os.O_CLOEXEC)

    def write(self, storage: torch.UntypedStorage, offset: int) -> Written:
        """Bring a storage's bytes to `offset`, a multiple of the block.

        Raises:
            StorageError: they cannot be written; the storage is as it was.
        """
        address, nbytes = storage.data_ptr(), storage.nbytes()
        first = -(-address // BLOCK_NBYTES) * BLOCK_NBYTES
        end = max((address + nbytes) // BLOCK_NBYTES * BLOCK_NBYTES, first)
        self._move(os.pwritev, first, end - first, offset, "writing")
        head_nbytes = min(first - address, nbytes)
        tail_nbytes = max(address + nbytes - end, 0) if head_nbytes < nbytes else 0
        head, tail = ctypes.string_at(address, head_nbytes), ctypes.string_at(end, tail_nbytes)
        return Written(nbytes, offset, address % BLOCK_NBYTES, head, tail)

    def read(self, written: Written, address: int) -> None:
        """Bring them back to memory at `address`, which is `written.lead_nbytes` after a block's begin.

        Raises:
            StorageError: they cannot be read.
        """
        first = address + len(written.head)
        inside_nbytes = written.nbytes - len(written.head) - len(written.tail)
        self._move(os.preadv, first, inside_nbytes, written.offset, "reading")
        ctypes.memmove(address, written.head, len(written.head))
        ctypes.memmove(first + inside_nbytes, written.tail, len(written.tail))

    def _move(self, how: object, address: int, nbytes: int, offset: int, what: str) -> None:
        done = 0
        while done < nbytes:
            size = min(_PIECE_NBYTES, nbytes - done)
            piece = (ctypes.c_ubyte * size).from_address(address + done)
            try:
                count = how(self._descriptor, [piece], offset + done)  # type: ignore[operator]
            except OSError as error:
                raise StorageError(
                    f"{self.folder}: {what} {format_size(size)} of a tensor failed ({error.strerror})"
                ) from error
            if count <= 0 or (count % BLOCK_NBYTES and self.direct):
                raise StorageError(f"{self.folder}: {what} a tensor stopped after {count} of {size} bytes")
            done += count
        if not self.direct:
            os.posix_fadvise(self._descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Give the disk space back. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
