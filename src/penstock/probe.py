"""Measuring one file's read bandwidth as the runtime reads: `O_DIRECT` into anonymous memory, from Python threads."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

_HUGE_PAGE_NBYTES = 2 << 20
_COPY_NBYTES = 32 << 20  # beyond what caches hold
_REGAIN_NBYTES = (
    128 << 20
)  # the system gives the pages out first that it was given back last: caches hold 32 MiB of them


@dataclass(frozen=True, slots=True)
class Rate:
    """The bandwidth of reads of one size from a number of threads."""

    read_nbytes: int
    threads: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Probe:
    """A file open for measuring.

    Attributes:
        block_nbytes: what a direct read's address, offset and length must be multiples of.
        direct: whether reads bypass the page cache; if not, what they leave there is dropped at once.
    """

    descriptor: int
    nbytes: int
    block_nbytes: int
    direct: bool


@contextlib.contextmanager
def open_probe(path: Path) -> Iterator[Probe]:
    """Opens `path` for measuring, with direct I/O where the file system has it.

    Raises:
        OSError: it cannot be read.
    """
    descriptor, block_nbytes = _open_direct(path)
    direct = descriptor >= 0
    if not direct:
        descriptor, block_nbytes = os.open(path, os.O_RDONLY | os.O_CLOEXEC), 512
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        nbytes = os.fstat(descriptor).st_size // block_nbytes * block_nbytes
        if nbytes == 0:
            raise OSError(errno.ENODATA, "it has less than one block")
        yield Probe(descriptor, nbytes, block_nbytes, direct)
    finally:
        os.close(descriptor)


def _open_direct(path: Path) -> tuple[int, int]:
    """A direct descriptor and its block size, or -1 where direct I/O is refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return -1, 0
    # Some file systems accept the flag and refuse the reads; sizes are tried because Python 3.11 has no statx.
    with mmap.mmap(-1, 16 * 2**10) as memory, memoryview(memory) as view:
        for block_nbytes in (512, 4096):
            try:
                with view[block_nbytes : 2 * block_nbytes] as block:
                    os.preadv(descriptor, [block], block_nbytes)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    os.close(descriptor)
                    raise
            else:
                return descriptor, block_nbytes
    os.close(descriptor)
    return -1, 0


def measure_rates(
    probe: Probe,
    cells: list[tuple[int, int]],
    *,
    seconds: float,
    rounds: int,
    progress: Progress | None = None,
) -> list[Rate]:
    """The median bandwidth of every cell `(threads, read_nbytes)` over `rounds` rounds of `seconds` each.

    The rounds go around all cells, since a drive's speed changes from one moment to the next. It uses memory for one
    read only: every thread reads into the same bytes, which nobody looks at, and that costs no bandwidth.

    Raises:
        OSError: a read failed.
    """
    measured: list[list[float]] = [[] for _ in cells]
    with anonymous_memory(max(read_nbytes for _, read_nbytes in cells)) as memory, memoryview(memory) as view:
        for number in range(rounds):
            for index, (threads, read_nbytes) in enumerate(cells):
                with view[: min(read_nbytes, probe.nbytes)] as target:
                    measured[index].append(_bytes_per_second(probe, target, threads, seconds))
                if progress is not None:
                    progress(number * len(cells) + index + 1, rounds * len(cells))
    return [
        Rate(read_nbytes, threads, statistics.median(rates))
        for (threads, read_nbytes), rates in zip(cells, measured, strict=True)
    ]


def anonymous_memory(nbytes: int) -> mmap.mmap:
    """Memory like the arena: reads into huge pages are twice as fast and take a fifth of the processor time."""
    memory = mmap.mmap(-1, -(-nbytes // _HUGE_PAGE_NBYTES) * _HUGE_PAGE_NBYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _bytes_per_second(probe: Probe, target: memoryview, threads: int, seconds: float) -> float:
    numbers = itertools.count()  # shared by the threads: `next` on it is atomic
    reads_in_file = probe.nbytes // target.nbytes
    totals = [0] * threads
    failures: list[OSError] = []
    started = time.perf_counter()

    def read(thread: int) -> None:
        try:
            while not failures and (totals[thread] == 0 or time.perf_counter() < started + seconds):
                offset = next(numbers) % reads_in_file * target.nbytes
                done = os.preadv(probe.descriptor, [target], offset)
                if done != target.nbytes:
                    raise OSError(errno.EIO, f"{done} of {target.nbytes} bytes at {offset}: it became shorter")
                totals[thread] += done
                if not probe.direct:
                    os.posix_fadvise(probe.descriptor, offset, target.nbytes, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            failures.append(error)

    workers = [threading.Thread(target=read, args=(i,), name=f"penstock-probe-{i}") for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(totals) / (time.perf_counter() - started)


def fill(descriptor: int, nbytes: int) -> None:
    """Writes random bytes, since drives and file systems may compress or leave out zeros, and drops them from memory.

    Raises:
        OSError: no room, or the file cannot be written.
    """
    chunk = os.urandom(4 * 2**20)
    for offset in range(0, nbytes, len(chunk)):
        written = os.pwrite(descriptor, chunk, offset)
        if written != len(chunk):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, offset, len(chunk), os.POSIX_FADV_DONTNEED)


def page_nbytes() -> int:
    """Of memory in huge pages where the system grants them, what can be given back to it by itself."""
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    with contextlib.suppress(OSError, ValueError):
        if "[never]" not in (folder / "enabled").read_text():
            return max(int((folder / "hpage_pmd_size").read_text()), mmap.PAGESIZE)
    return mmap.PAGESIZE


def measure_regain(*, rounds: int) -> float:
    """Bytes per second at which memory that was given back to the system comes again: the median of `rounds`.

    It comes page by page as it is first written, here by one thread that writes a byte of each.
    """
    seconds = []
    with anonymous_memory(_REGAIN_NBYTES) as memory, memoryview(memory) as view, view[:: mmap.PAGESIZE] as pages:
        for _ in range(rounds + 1):
            began = time.perf_counter()
            pages[:] = bytes(len(pages))
            seconds.append(time.perf_counter() - began)
            memory.madvise(mmap.MADV_DONTNEED)
    return _REGAIN_NBYTES / statistics.median(seconds[1:])


def measure_copy(*, rounds: int) -> float:
    """Bytes per second from memory to memory, one thread: the median of `rounds` copies after one that faults pages."""
    seconds = []
    with mmap.mmap(-1, _COPY_NBYTES) as source, mmap.mmap(-1, _COPY_NBYTES) as target:
        for _ in range(rounds + 1):
            began = time.perf_counter()
            target[:] = memoryview(source)
            seconds.append(time.perf_counter() - began)
    return _COPY_NBYTES / statistics.median(seconds[1:])
