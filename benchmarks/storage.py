"""What storage gives at a moment, and taking files out of the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from pathlib import Path

from penstock.probe import open_probe

READ_NBYTES = 4 << 20
THREADS = 2
HUGE_PAGE_NBYTES = 2 << 20
PROBE_NBYTES = 128 << 20
_MADV_DONTNEED = 4


class BandwidthProbe:
    """Direct reads of one file as Penstock reads: two threads, 4 MiB each, into whole huge pages.

    The pages matter: into scattered small ones the same drive may give less than half, as each becomes a segment of a
    request. Each measurement goes on where the last one ended, so that no cache below the file system answers it.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._next = file, 0
        memory = mmap.mmap(-1, (THREADS + 1) * READ_NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory[:] = bytes(len(memory))  # page faults are not the drive's
        begin = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE_NBYTES
        view = memoryview(memory)[begin:]
        self._targets = [view[i * READ_NBYTES : (i + 1) * READ_NBYTES] for i in range(THREADS)]

    def measure(self) -> float:
        """Bytes per second now, over about 130 MB."""
        with open_probe(self._file) as probe:
            read_nbytes = min(READ_NBYTES, probe.nbytes)
            in_file = probe.nbytes // read_nbytes
            count = max(THREADS, min(PROBE_NBYTES // read_nbytes, in_file))
            offsets = [(self._next + i) % in_file * read_nbytes for i in range(count)]
            self._next = (self._next + count) % in_file
            return count * read_nbytes / self._seconds(probe.descriptor, offsets, read_nbytes)

    def _seconds(self, descriptor: int, offsets: list[int], read_nbytes: int) -> float:
        left = iter(offsets)  # shared by the threads: `next` on it is atomic
        failures: list[OSError] = []

        def read(target: memoryview) -> None:
            try:
                for offset in left:
                    os.preadv(descriptor, [target[:read_nbytes]], offset)
            except OSError as error:
                failures.append(error)

        workers = [threading.Thread(target=read, args=(target,)) for target in self._targets]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failures:
            raise failures[0]
        return time.perf_counter() - began


def files_in(folder: Path) -> list[Path]:
    """All files below `folder`."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def drop(folder: Path) -> None:
    """Takes the files below `folder` out of the page cache, and out of this process's page tables first.

    The kernel keeps pages that somebody has mapped, so a process has to do it for what it maps itself. Nothing else in
    the page cache is touched: code pages that an arm shares with others stay as they are.
    """
    unmap = ctypes.CDLL(None, use_errno=True).madvise
    unmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and Path(fields[5]).is_relative_to(folder):
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            unmap(begin, end - begin, _MADV_DONTNEED)
    for file in files_in(folder):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_nbytes(folder: Path) -> int:
    """Bytes of the files below `folder` that are in the page cache now."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    page_nbytes, pages = mmap.PAGESIZE, 0
    for file in files_in(folder):
        nbytes = file.stat().st_size
        if nbytes == 0:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), nbytes, flags=mmap.MAP_PRIVATE) as memory:
            residency = ctypes.create_string_buffer(-(-nbytes // page_nbytes))
            anchor = ctypes.c_char.from_buffer(memory)
            if mincore(ctypes.addressof(anchor), nbytes, residency) == 0:
                pages += sum(flag & 1 for flag in residency.raw)
            del anchor
    return pages * page_nbytes
