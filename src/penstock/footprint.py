"""What this process holds beyond its baseline: the physical side of the budget.

Arena and tensors are counted exactly by the plan. What a pass takes besides them, the kernels' own workspaces,
the allocator's rounding and retention, Python's objects, can only be measured, and is: a pass whose trace is known
runs once under the kernel's high-water mark, and the difference is kept with the trace.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from mmap import PAGESIZE
from time import perf_counter


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of this process, by what backs them, and the high-water mark of their sum."""

    anonymous_nbytes: int
    file_nbytes: int
    peak_nbytes: int


def read_memory() -> Memory | None:
    """The kernel's account of this process; None where it keeps none."""
    fields: dict[str, int] = {}
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/self/status", encoding="ascii", errors="replace") as file,
    ):
        for line in file:
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile", "VmHWM"):
                fields[name] = int(value.split()[0]) * 1024
    if len(fields) < 3:
        return None
    return Memory(fields["RssAnon"], fields["RssFile"], fields["VmHWM"])


def _anonymous_nbytes() -> int:
    """What `read_memory` says, in a tenth of the time and short by what threads have not accounted for yet; or 0."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * PAGESIZE
    return 0


def reset_peak() -> bool:
    """Start the high-water mark anew; False where that is not allowed."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def return_free_memory() -> None:
    """Give pages that the C allocator keeps free back to the system, where it is glibc's."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


LOOK_SECONDS = 0.2
"""Once everything is measured, memory is looked at no more often: it takes as long as a small layer."""

GUARD_SECONDS = 0.01
"""Within a pass, whether too much is in memory is looked at no more often: it takes some microseconds."""

GIVEN_BACK_SECONDS = 0.05
"""After it has helped, it is not looked at again so soon: what layers take anew costs page faults."""

USELESS_SECONDS = 2.0
"""After giving back what is free has not helped, it is not tried again so soon: each time costs page faults."""

LEAST_MAPPED_NBYTES, MOST_MAPPED_NBYTES = 1 << 20, 32 << 20
MAPPED_SHARE = 32
"""Blocks from one part in `MAPPED_SHARE` of the budget on, between these limits, are mapped one by one and unmapped at
once when they are freed. Smaller ones live in the allocator's heap, where some space between them is always lost, a
quarter or so. Each mapping costs page faults: a ResNet-152 computes a quarter longer with a limit of 1 MiB, and a batch
of four, with activations of 12 MiB, a tenth longer with one of 4 MiB than with one of 32. But with an eighth of the
budget a VGG-16 in a fifth of its memory loses 40 MiB to the heap. More than 32 MiB glibc does not take."""

KEPT_SHARE = 2
"""The heap gives its end back when more than one part in so many of the budget is free there. With less it gives pages
back and asks for them again within a pass: with 8 MiB a ResNet-152 took 200 instead of 145 ms."""

EAGER_NBYTES = 32 << 20
EAGER_MAPPED_NBYTES, EAGER_KEPT_NBYTES = 256 << 10, 1 << 20
"""Below such a budget what the heap keeps matters more than time: these are its limits then."""

FIRST_MAPPED_NBYTES = 128 << 10
"""In a pass that may leave something for good: see `without_holes`."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc


def allocator_limits(budget_nbytes: int) -> tuple[int, int]:
    """For so large a budget: the size from which on blocks are mapped, and how much free space the heap keeps."""
    if budget_nbytes < EAGER_NBYTES:
        return EAGER_MAPPED_NBYTES, EAGER_KEPT_NBYTES
    mapped_nbytes = min(max(budget_nbytes // MAPPED_SHARE, LEAST_MAPPED_NBYTES), MOST_MAPPED_NBYTES)
    return mapped_nbytes, min(budget_nbytes // KEPT_SHARE, 2**31 - 1)


class _Limits:
    """The limits of glibc's allocator, which are the process's: those of the last budget, and lower in first passes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits_nbytes: tuple[int, int] | None = None
        self._first_passes = 0

    def set(self, mapped_nbytes: int, kept_nbytes: int) -> None:
        with self._lock:
            self._limits_nbytes = mapped_nbytes, kept_nbytes
            self._apply()

    def count_first_passes(self, change: int) -> None:
        with self._lock:
            self._first_passes += change
            self._apply()

    def _apply(self) -> None:
        mapped_nbytes, kept_nbytes = self._limits_nbytes or (MOST_MAPPED_NBYTES, 2 * MOST_MAPPED_NBYTES)
        _limit(_M_MMAP_THRESHOLD, FIRST_MAPPED_NBYTES if self._first_passes else mapped_nbytes)
        _limit(_M_TRIM_THRESHOLD, kept_nbytes)


_limits = _Limits()


def retain_little(budget_nbytes: int) -> None:
    """Have glibc's allocator give large blocks back at once; for the whole process, the last budget counts.

    Left alone, glibc raises the limit with what is freed, up to 32 MiB, so that a pass may take half as much again in
    one process as in the next (57 and 95 MiB of a GPT-2), and no plan can know which.
    """
    limit_allocator(*allocator_limits(budget_nbytes))


def limit_allocator(mapped_nbytes: int, kept_nbytes: int) -> None:
    """Have glibc's allocator map blocks from so many bytes on, and keep no more free at the end of its heap."""
    _limits.set(mapped_nbytes, kept_nbytes)


@contextlib.contextmanager
def without_holes() -> Iterator[None]:
    """A pass in which kernels may make what they keep for good; the limits set last count again after it.

    oneDNN keeps a kernel for every shape that it has met, some kilobytes each. Made in the heap between the tensors of
    a pass, these hold holes open for as long as the process lives, and each later pass touches more of them: a
    DenseNet-201, with activations of 8 MiB, took 54 MiB. With all but its smallest tensors mapped one by one in the
    first pass, which takes 232 ms for 142, what is kept lies together, and the other passes take 20 MiB and a tenth
    less time.
    """
    return_free_memory()  # else tensors would begin with what the heap has free
    _limits.count_first_passes(1)
    try:
        yield
    finally:
        _limits.count_first_passes(-1)


def _limit(option: int, nbytes: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(option, nbytes)


class Footprint:
    """Growth of this process since a baseline, without the arena and what its owner allocated between passes.

    Attributes:
        arena_nbytes: tells how much of the arena is in memory: it fills page by page, also between passes.
        is_measuring: whether passes are measured now; reading the kernel's account takes longer than a small layer.

    Args:
        held_nbytes: of what the process holds already, this much is about to be given up: the module's own weights.
    """

    def __init__(self, held_nbytes: int = 0) -> None:
        self.arena_nbytes: Callable[[], int] = lambda: 0
        self.is_measuring = True
        self._base = self._now() - held_nbytes
        self._left: int | None = None
        self._looked = self._guarded = 0.0
        self._transient_nbytes = 0  # what a pass takes and gives back at once
        self._begun: Memory | None = None

    def _now(self) -> int:
        memory = read_memory()
        return memory.anonymous_nbytes - self.arena_nbytes() if memory is not None else 0

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """What a process allocates only once, whatever its models, belongs to its baseline: imports, mostly."""
        before = self._now()
        try:
            yield
        finally:
            if self._now() > before:
                return_free_memory()
                self._base += max(self._now() - before, 0)

    def leave(self) -> None:
        """Our work ends here for now; what is allocated until `enter` is not ours."""
        if self.is_measuring:
            self._left = self._now()
            self._transient_nbytes = max((self.peak_growth_nbytes() or 0) - (self._left - self._base), 0)

    def enter(self, room_nbytes: int) -> None:
        """Our work begins again, with so much room besides the arena.

        Free blocks between used ones pile up in the allocator's heap over passes. Where another such pass would need
        more than the room, what is free goes back to the system first; that costs page faults, so not as a habit.
        """
        if self.is_measuring:
            self._go_on()
        elif perf_counter() < self._looked + LOOK_SECONDS:
            return
        self._looked = perf_counter()
        if self._now() - self._base + self._transient_nbytes > room_nbytes:
            return_free_memory()
            if not self.is_measuring:  # what does not go back is no free block of ours
                self._base += max(self._now() - self._base + self._transient_nbytes - room_nbytes, 0)
        if self.is_measuring:
            self._begin_measuring()

    def guard(self, most_nbytes: Callable[[], int]) -> None:
        """Within a pass: beyond `most_nbytes`, arena included, what the allocator keeps free goes back at once.

        From process to process it keeps more or less, and what a pass was measured to take is exceeded now and then.
        Called before every layer, so what the limit is, is asked only when it is time to look.
        """
        now = perf_counter()
        if now < self._guarded:
            return
        self._guarded = now + GUARD_SECONDS
        limit_nbytes = self._base + most_nbytes()
        if _anonymous_nbytes() > limit_nbytes:
            return_free_memory()
            is_useless = _anonymous_nbytes() > limit_nbytes
            self._guarded = now + (USELESS_SECONDS if is_useless else GIVEN_BACK_SECONDS)

    def measure_again(self) -> None:
        """Another kind of call is to be measured: what was allocated since the last such pass is not ours."""
        self.is_measuring = True
        return_free_memory()
        self._go_on()
        self._begin_measuring()

    def _begin_measuring(self) -> None:
        self._begun = read_memory() if reset_peak() else None

    def _go_on(self) -> None:
        if self._left is not None:
            self._base += self._foreign_growth_nbytes(self._left)
        self._left = None  # a pass that is refused must not count it twice

    def _foreign_growth_nbytes(self, left: int) -> int:
        """What others have allocated since we left. What was freed was ours first, as a pass's output is."""
        grown = self._now() - left
        return grown if grown >= 0 else min(grown + max(left - self._base, 0), 0)

    def growth_nbytes(self) -> int:
        """Anonymous bytes beyond baseline and arena now; 0 where it cannot be known."""
        return max(self._now() - self._base, 0)

    def peak_growth_nbytes(self) -> int | None:
        """Most anonymous bytes beyond baseline and arena since `enter`; None where it cannot be known."""
        memory, begun = read_memory(), self._begun
        if memory is None or begun is None:
            return None
        file_nbytes = max(memory.file_nbytes, begun.file_nbytes)
        return max(memory.peak_nbytes - file_nbytes - self.arena_nbytes() - self._base, 0)
