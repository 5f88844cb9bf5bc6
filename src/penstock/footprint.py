"""What this process holds beyond its baseline: the physical side of the budget.

Arena and tensors are counted exactly by the plan. What a pass takes besides them, the kernels' own workspaces,
the allocator's rounding and retention, Python's objects, can only be measured, and is: a pass whose trace is known
runs once under the kernel's high-water mark, and the difference is kept with the trace.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass


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


EAGER_NBYTES = 32 << 20
"""Below such a budget what the C allocator retains matters more than the page faults that retaining it saves, which can
be many: a ResNet-152 inside 46 MiB computes more than twice as long without."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc
_EAGER = {_M_MMAP_THRESHOLD: 256 << 10, _M_TRIM_THRESHOLD: 1 << 20, _M_TOP_PAD: 64 << 10}
_STEADY = {_M_MMAP_THRESHOLD: 4 << 20, _M_TRIM_THRESHOLD: 8 << 20}
"""Left alone, glibc raises these with what is freed, up to 32 and 64 MiB; a GPT-2 of the same budget then took 57 MiB
in one process and 95 in the next."""


def retain_little(budget_nbytes: int) -> None:
    """Have glibc's allocator give large blocks back at once; for the whole process, and for good."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in (_EAGER if budget_nbytes < EAGER_NBYTES else _STEADY).items():
            mallopt(parameter, value)


class Footprint:
    """Growth of this process since a baseline, without the arena and what its owner allocated between passes.

    Attributes:
        arena_nbytes: tells how much of the arena is in memory: it fills page by page, also between passes.
        is_measuring: whether `enter` and `leave` do anything; reading the kernel's account takes longer than a layer.

    Args:
        held_nbytes: of what the process holds already, this much is about to be given up: the module's own weights.
    """

    def __init__(self, held_nbytes: int = 0) -> None:
        self.arena_nbytes: Callable[[], int] = lambda: 0
        self.is_measuring = True
        self._base = self._now() - held_nbytes
        self._left: int | None = None
        self._begun: Memory | None = None

    def _now(self) -> int:
        memory = read_memory()
        return memory.anonymous_nbytes - self.arena_nbytes() if memory is not None else 0

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """What a process allocates only once, whatever its models, belongs to its baseline: imports, mostly."""
        before = self._now()
        yield
        if self._now() > before:
            return_free_memory()
            self._base += max(self._now() - before, 0)

    def leave(self) -> None:
        """Our work ends here for now; what is allocated until `enter` is not ours."""
        self._left = self._now() if self.is_measuring else None

    def enter(self) -> None:
        """Our work begins again."""
        if self.is_measuring:
            self._begun = read_memory() if reset_peak() else None
            if self._left is not None:
                self._base += self._foreign_growth_nbytes(self._left)

    def _foreign_growth_nbytes(self, left: int) -> int:
        """What others have allocated since we left. What was freed was ours first, as a pass's output is."""
        grown = self._now() - left
        return grown if grown >= 0 else min(grown + max(left - self._base, 0), 0)

    def peak_growth_nbytes(self) -> int | None:
        """Most anonymous bytes beyond baseline and arena since `enter`; None where it cannot be known."""
        memory, begun = read_memory(), self._begun
        if memory is None or begun is None:
            return None
        file_nbytes = max(memory.file_nbytes, begun.file_nbytes)
        return max(memory.peak_nbytes - file_nbytes - self.arena_nbytes() - self._base, 0)
