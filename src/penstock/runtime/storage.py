"""Reading blocks of checkpoint files: by direct I/O where the file system allows it, buffered where not.

Direct reads (`O_DIRECT`) go by DMA into the memory that the layer will compute from; the page cache sees
nothing (SwapNet, section on zero-copy swap-in; Demand Layering, section 4). Buffered reads drop what they
brought into the page cache as soon as it is copied.
"""

from __future__ import annotations

import errno
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from penstock.checkpoint import FileIdentity
from penstock.errors import CheckpointError, StorageError

logger = logging.getLogger("penstock")

BLOCK_NBYTES = 4096  # a multiple of every logical block size in use; direct I/O wants its own multiple
_told_of: set[Path | None] = set()
_REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


class Storage(ABC):
    """Open files that whole blocks can be read from, by several threads at once."""

    block_nbytes: int

    @abstractmethod
    def read(self, file: int, offset: int, into: memoryview, needed_nbytes: int) -> None:
        """Fill `into` from byte `offset` of file number `file`; both are whole blocks.

        The end of the file may leave the tail unfilled, but `needed_nbytes` always arrive.

        Raises:
            StorageError: the read failed, or the file ended too early.
        """

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raises CheckpointError if a file was replaced, truncated or rewritten since it was opened."""

    @abstractmethod
    def close(self) -> None:
        """Close every descriptor. Safe to call twice."""


class FileStorage(Storage):
    """Files of a local file system.

    Attributes:
        direct: whether reads bypass the page cache by `O_DIRECT`.
    """

    def __init__(self, files: Sequence[FileIdentity], *, direct: bool = True) -> None:
        """Open `files`.

        Raises:
            CheckpointError: a file is gone or is not the one that was described.
        """
        self.block_nbytes = BLOCK_NBYTES
        self._files = tuple(files)
        self._descriptors: list[int] = []
        self.direct = direct
        try:
            for file in self._files:
                self._descriptors.append(self._open(file))
            self.check_unchanged()
        except BaseException:
            self.close()
            raise
        folder = self._files[0].path.parent if self._files else None
        if direct and not self.direct and folder not in _told_of:
            _told_of.add(folder)
            logger.warning(
                "%s: this file system refuses direct I/O; reading through the page cache and dropping it again, "
                "which costs processor time",
                folder,
            )

    def _open(self, file: FileIdentity) -> int:
        try:
            if self.direct and hasattr(os, "O_DIRECT"):
                try:
                    return os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                except OSError as error:
                    if error.errno not in _REFUSALS:
                        raise
            self.direct = False
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead into the page cache
            return descriptor
        except OSError as error:
            raise CheckpointError(f"{file.path}: cannot be opened ({error.strerror})") from error

    def read(self, file: int, offset: int, into: memoryview, needed_nbytes: int) -> None:
        descriptor, done = self._descriptors[file], 0
        while done < needed_nbytes:
            try:
                count = os.preadv(descriptor, [into[done:]], offset + done)
            except OSError as error:
                raise StorageError(
                    f"{self._files[file].path}: reading {len(into)} bytes at {offset} failed ({error.strerror})"
                ) from error
            # A direct read that is not whole blocks has met the end; a buffered one may be short for other reasons.
            is_end = count == 0 or (self.direct and count % self.block_nbytes != 0)
            if is_end and done + count < needed_nbytes:
                raise StorageError(
                    f"{self._files[file].path}: the file ends at byte {offset + done + count} but "
                    f"{offset + needed_nbytes} are needed: it was cut short while in use; restore the file"
                )
            done += count
        if not self.direct:
            os.posix_fadvise(descriptor, offset, len(into), os.POSIX_FADV_DONTNEED)

    def check_unchanged(self) -> None:
        for file, descriptor in zip(self._files, self._descriptors, strict=True):
            file.check()
            status = os.fstat(descriptor)
            if (status.st_ino, status.st_size, status.st_mtime_ns) != (file.inode, file.nbytes, file.mtime_ns):
                raise CheckpointError(
                    f"{file.path}: changed while it was streamed; put the old file back, or stream the new one "
                    "with a fresh penstock.stream()"
                )

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())
