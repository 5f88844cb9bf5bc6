"""What this process holds beyond its baseline: the physical side of the budget.

Arena and tensors are counted exactly by the plan. What a pass takes besides them, the kernels' own workspaces,
the allocator's rounding and retention, Python's objects, can only be measured, and is: a pass whose trace is known
runs once under the kernel's high-water mark, and the difference is kept with the trace.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
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


class Footprint:
    """Growth of this process since a baseline, without what its owner allocated between passes.

    Attributes:
        is_measuring: whether `enter` and `leave` do anything.

    Args:
        held_nbytes: of what the process holds already, this much is about to be given up: the module's own weights.
    """

    def __init__(self, held_nbytes: int = 0) -> None:
        memory = read_memory()
        self._base = memory.anonymous_nbytes - held_nbytes if memory is not None else 0
        self.is_measuring = True  # reading the kernel's account takes longer than a small layer
        self._last_end: int | None = None
        self._begun: Memory | None = None

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """What a process allocates only once, imports and caches of a dry run, belongs to its baseline."""
        before = read_memory()
        yield
        return_free_memory()
        after = read_memory()
        if before is not None and after is not None:
            self._base += max(after.anonymous_nbytes - before.anonymous_nbytes, 0)

    def leave(self) -> None:
        """Our work ends here for now; what is allocated until `enter` is not ours."""
        memory = read_memory() if self.is_measuring else None
        self._last_end = memory.anonymous_nbytes if memory is not None else None

    def enter(self) -> None:
        """Our work begins again."""
        if not self.is_measuring:
            return
        self._begun = read_memory() if reset_peak() else None
        if self._begun is not None and self._last_end is not None:
            self._base += self._begun.anonymous_nbytes - self._last_end

    def peak_growth_nbytes(self) -> int | None:
        """Most anonymous bytes beyond the baseline since `enter`; None where it cannot be known."""
        memory, begun = read_memory(), self._begun
        if memory is None or begun is None:
            return None
        file_growth = max(memory.file_nbytes - begun.file_nbytes, 0)
        return max(memory.peak_nbytes - begun.file_nbytes - file_growth - self._base, 0)
