"""A memory cgroup of one's own (v1 or v2): a cap that the kernel enforces, and a peak that includes the page cache.

Used by the demo, the benchmarks and the tests, not by the library. The group is a child of the process's own group, so
every limit that holds outside holds inside. On v2 a group with processes can have no such child; there it is a sibling,
provided that the own group has no limit of its own to escape from.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_numbers = itertools.count()


class CgroupUnavailableError(OSError):
    """No memory cgroup can be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One memory cgroup that this process may use."""

    path: Path
    version: int

    def set_limit(self, nbytes: int | None) -> None:
        """The most bytes that its processes may use, page cache included; None lifts the cap.

        Raises:
            OSError: the kernel refuses it: more is in use and cannot be reclaimed.
        """
        name, nothing = ("memory.max", "max") if self.version == 2 else ("memory.limit_in_bytes", "-1")
        (self.path / name).write_text(nothing if nbytes is None else str(nbytes))
        # Swapped bytes would not count.
        with contextlib.suppress(OSError):
            if self.version == 2:
                (self.path / "memory.swap.max").write_text("max" if nbytes is None else "0")
            else:
                (self.path / "memory.swappiness").write_text("60" if nbytes is None else "0")

    def enter(self, pid: int = 0) -> None:
        """Moves a process in, by default this one; what it has used already stays with its old group."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def usage_nbytes(self) -> int:
        """Bytes charged to it now."""
        return self._read("memory.current" if self.version == 2 else "memory.usage_in_bytes")

    def peak_nbytes(self) -> int:
        """The most bytes charged to it since it was made or since `reset_peak`."""
        return self._read("memory.peak" if self.version == 2 else "memory.max_usage_in_bytes")

    def anonymous_nbytes(self) -> int:
        """Bytes of it now that are the processes' own memory, page cache excluded."""
        key = "anon" if self.version == 2 else "rss"
        for line in (self.path / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
        raise OSError(errno.ENODATA, f"{self.path}/memory.stat has no {key}")

    def reset_peak(self) -> bool:
        """Lowers the peak to what is in use; False where the kernel cannot (v2 before Linux 6.12)."""
        # On v2 a reset holds only for the descriptor that wrote it, so a later `peak_nbytes` would not see it.
        if self.version == 2:
            return False
        (self.path / "memory.max_usage_in_bytes").write_text("0")
        return True

    def drop_cache(self) -> None:
        """Gives back the page cache charged to it, as far as the kernel can."""
        with contextlib.suppress(OSError):
            if self.version == 2:
                (self.path / "memory.reclaim").write_text(str(2**40))
            else:
                (self.path / "memory.force_empty").write_text("0")

    def _read(self, name: str) -> int:
        return int((self.path / name).read_text())


@contextlib.contextmanager
def memory_group(limit_nbytes: int | None = None) -> Iterator[MemoryGroup]:
    """A new, empty memory cgroup; at the end its processes return to where this one was, and it is removed.

    Raises:
        CgroupUnavailableError: none can be made (no permission, no memory controller, a sandbox).
    """
    own, version = _own_group()
    group = _make(own, version)
    try:
        group.set_limit(limit_nbytes)
        yield group
    finally:
        _remove(group.path, own)


def _make(own: Path, version: int) -> MemoryGroup:
    reason = ""
    for parent in _parents(own, version):
        path = parent / f"penstock-{os.getpid()}-{next(_numbers)}"
        try:
            path.mkdir()
        except OSError as error:
            reason = reason or f"{parent}: {error.strerror}"
            continue
        group = MemoryGroup(path, version)
        try:
            group.peak_nbytes()
            group.set_limit(None)
        except (OSError, ValueError):
            reason = reason or f"{parent}: it hands no memory controller on"
            _remove(path, own)
        else:
            return group
    raise CgroupUnavailableError(f"no memory cgroup can be made below {reason}")


def _parents(own: Path, version: int) -> Iterator[Path]:
    if version == 2:
        with contextlib.suppress(OSError):
            (own / "cgroup.subtree_control").write_text("+memory")
    yield own
    with contextlib.suppress(OSError):
        if version == 2 and (own / "memory.max").read_text().strip() == "max":
            yield own.parent


def unavailable_reason() -> str | None:
    """Why no memory cgroup can be made here, or None if one can."""
    try:
        with memory_group():
            return None
    except CgroupUnavailableError as error:
        return str(error)


def _own_group() -> tuple[Path, int]:
    """The folder of this process's memory cgroup and the version of its hierarchy."""
    try:
        memberships = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError as error:
        raise CgroupUnavailableError(f"the kernel names no cgroup of this process: {error.strerror}") from error
    paths = {}
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    for fields in mounts:
        kind = fields[fields.index("-") + 1]
        if kind == "cgroup" and "memory" in paths and "memory" in fields[-1].split(","):
            return _below_mount(fields, paths["memory"]), 1
    for fields in mounts:
        if fields[fields.index("-") + 1] == "cgroup2" and "" in paths and "memory" not in paths:
            return _below_mount(fields, paths[""]), 2
    raise CgroupUnavailableError("no cgroup file system with a memory controller is mounted")


def _below_mount(fields: list[str], path: str) -> Path:
    """`path` as seen through a mount: in a container the mount shows only the container's part of the hierarchy."""
    root, mount_point = fields[3], Path(fields[4])
    return mount_point / path.removeprefix(root if root != "/" else "").lstrip("/")


def _remove(path: Path, parent: Path) -> None:
    """Moves what still runs in `path` to `parent`, then removes it; the kernel may take a moment to let go."""
    for attempt in range(50):
        with contextlib.suppress(OSError):
            for pid in (path / "cgroup.procs").read_text().split():
                (parent / "cgroup.procs").write_text(pid)
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.002 * (attempt + 1))
        else:
            return
