"""What storage gives at a moment, and taking files out of the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from penstock import Stream
from penstock.probe import open_probe
from penstock.runtime.devices.cpu_queue import CpuArena
from penstock.runtime.pipeline import READY
from penstock.runtime.requests import read_requests
from penstock.runtime.storage import BLOCK_NBYTES

READ_NBYTES = 4 << 20
THREADS = 2
HUGE_PAGE_NBYTES = 2 << 20
PROBE_NBYTES = 128 << 20
LEAST_NBYTES = 1 << 20  # smaller reads measure requests, not bandwidth
LEAST_COVERED_NBYTES = 32 << 20  # or threads meet at the same pages, and wait for one another
_MADV_DONTNEED = 4


@dataclass(frozen=True, slots=True)
class Read:
    """One direct read of whole blocks."""

    file: Path
    offset: int
    target: memoryview


class BandwidthProbe:
    """Direct reads as Penstock reads: two threads, 4 MiB each.

    Each measurement goes on where the last one ended, so that no cache below the file system answers it.

    Args:
        position: where that was, if it was of another probe.
    """

    def __init__(self, reads: Sequence[Read], position: int = 0) -> None:
        self._reads, self.position = reads, position

    @classmethod
    def of_file(cls, file: Path) -> BandwidthProbe:
        """All of `file`, into a few huge pages: into scattered small ones a drive may give less than half."""
        memory = mmap.mmap(-1, (THREADS + 2) * READ_NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory[:] = bytes(len(memory))  # page faults are not the drive's
        begin = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE_NBYTES
        view = memoryview(memory)[begin:]
        with open_probe(file) as probe:
            nbytes = min(READ_NBYTES, probe.nbytes)
            offsets = range(0, probe.nbytes - nbytes + 1, nbytes)
        targets = [view[i * READ_NBYTES :][:nbytes] for i in range(THREADS + 1)]
        return cls([Read(file, offset, targets[i % len(targets)]) for i, offset in enumerate(offsets)])

    @classmethod
    def in_place(cls, handle: Stream, position: int = 0) -> BandwidthProbe:
        """What is in the arena of `handle` now, over itself; to be made anew when passes have run.

        The same bytes come to the same addresses, so nothing changes, and it is the very memory that weights stream
        into: in a virtual machine the same drive fills some memory at 1.3 GB/s and other memory at 2.9 (measured),
        depending on the pages that the host has put behind it.
        """
        installation = handle._deployment.installation  # a benchmark may look inside
        if installation is None:
            return cls([])
        pipeline, arena = installation.pipeline, installation.pipeline.arena
        present = [load for load, state in zip(pipeline._loads, pipeline.states, strict=True) if state == READY]
        reads = []
        for load in present:
            if load.realign or not isinstance(arena, CpuArena):
                continue
            for request in read_requests(load.source, load.offset, block_nbytes=BLOCK_NBYTES, read_nbytes=READ_NBYTES):
                if request.skip_nbytes is None and request.nbytes >= LEAST_NBYTES:
                    target = arena.view[request.arena_offset : request.arena_offset + request.nbytes]
                    reads.append(Read(handle.checkpoint.files[request.file].path, request.file_offset, target))
        covers_enough = sum(read.target.nbytes for read in reads) >= LEAST_COVERED_NBYTES
        return cls(reads if covers_enough else [], position)

    def measure(self) -> float:
        """Bytes per second now, over about 130 MB; 0.0 where there is nothing to read."""
        chosen: list[Read] = []
        while self._reads and sum(read.target.nbytes for read in chosen) < PROBE_NBYTES:
            chosen.append(self._reads[self.position % len(self._reads)])
            self.position += 1
        if not chosen:
            return 0.0
        descriptors = {file: os.open(file, os.O_RDONLY | os.O_DIRECT) for file in {read.file for read in chosen}}
        try:
            return sum(read.target.nbytes for read in chosen) / _seconds(chosen, descriptors)
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)


def _seconds(reads: Sequence[Read], descriptors: dict[Path, int]) -> float:
    with ThreadPoolExecutor(THREADS) as readers:
        began = time.perf_counter()
        done = [readers.submit(os.preadv, descriptors[read.file], [read.target], read.offset) for read in reads]
        for read in done:
            read.result()
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
