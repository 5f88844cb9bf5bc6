"""The planned pool, where its library is preloaded: what it records, and what it follows."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.cache import cache_dir
from penstock.errors import PlanError
from penstock.planning.swap_problem import Ints
from penstock.runtime.devices.cpu_queue import CpuArena

LEAST_NBYTES = 256 << 10
"""Smaller allocations are left to the allocator: they lie in its heap without loss."""

PAGE_NBYTES = 4096
ALLOCATED, RELEASED, MARKED = 1, 2, 3
_ENTRIES, _SLOTS = 1 << 20, 1 << 16
_kept: list[tuple[CpuArena, npt.NDArray[np.uint8], list[Ints]]] = []
"""Arenas that blocks may still lie in, which pages of each are taken, and what else the library looks at."""


class CompilerMissingError(PlanError):
    """There is no C compiler to build the pool with."""


def library() -> Path:
    """The pool's library, built on the first use with the C compiler of this machine, and kept in the cache folder.

    Raises:
        CompilerMissingError: there is no compiler, or it fails.
    """
    source = resources.files("penstock.training").joinpath("pool.c").read_bytes()
    path = cache_dir() / f"pool-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CompilerMissingError("no C compiler (cc, gcc or clang) is installed, so there is no pool: install one")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    command = [compiler, "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(part), "-ldl", "-lpthread"]
    done = subprocess.run(command, input=source, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace")[-500:]
        raise CompilerMissingError(f"{compiler} could not build the pool: {reason}")
    part.replace(path)
    return path


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Allocations that got their planned place; that were not in the plan; and whose place was still taken."""

    followed: int
    departed: int
    taken: int


class Pool:
    """The preloaded library, for the thread that calls."""

    def __init__(self, functions: ctypes.PyDLL) -> None:
        self._functions = functions
        for name, result in (("recorded", ctypes.c_int64), ("ordinal", ctypes.c_int64), ("take", ctypes.c_int)):
            getattr(functions, f"penstock_pool_{name}").restype = result
        self._ordinal = functions.penstock_pool_ordinal
        self._ordinal.argtypes = [ctypes.c_void_p]
        self.mark = functions.penstock_pool_mark
        self.mark.argtypes, self.mark.restype = [ctypes.c_int64], None
        self.seek = functions.penstock_pool_seek
        self.seek.argtypes, self.seek.restype = [ctypes.c_int64], None
        self._take = functions.penstock_pool_take
        self._take.argtypes = [ctypes.c_int64, ctypes.c_int64]
        self._entries = np.zeros((0, 2), dtype=np.int64)
        self._table: list[Ints] = []
        self._is_following = False

    @classmethod
    def preloaded(cls) -> Pool | None:
        """The pool of this process; None where it is not preloaded."""
        functions = ctypes.PyDLL(None)  # keeps the interpreter's lock: calls take less than giving it up does
        return cls(functions) if hasattr(functions, "penstock_pool_record") else None

    # -- recording --

    def record(self) -> None:
        """Begin to record this thread's allocations."""
        self._entries = np.zeros((_ENTRIES, 2), dtype=np.int64)
        self._table = [np.zeros(_SLOTS, dtype=np.int64), np.zeros(_SLOTS, dtype=np.int64)]
        self._functions.penstock_pool_record(
            _pointer(self._entries), ctypes.c_int64(_ENTRIES), ctypes.c_int64(LEAST_NBYTES),
            _pointer(self._table[0]), _pointer(self._table[1]), ctypes.c_int64(_SLOTS),
        )  # fmt: skip

    def ordinal(self, address: int) -> int:
        """Which recorded allocation lies at an address; -1 if none does."""
        return int(self._ordinal(address))

    def recorded(self) -> Ints:
        """End the recording: (n, 2) kinds and values, in the order in which they happened."""
        count = self._functions.penstock_pool_recorded()
        entries, self._entries = self._entries[: min(count, _ENTRIES)].copy(), np.zeros((0, 2), dtype=np.int64)
        return entries if count <= _ENTRIES else entries[:0]

    # -- following --

    def follow(self, nbytes: int, sizes: Ints, offsets: Ints) -> CpuArena:
        """Give allocations of these sizes, in this order, these places in a new arena; -1: no place.

        Raises:
            PlanError: there were too many plans in this process.
        """
        pages = -(-nbytes // PAGE_NBYTES)
        arena = CpuArena(pages * PAGE_NBYTES)
        taken, counts = np.zeros(pages + 1, dtype=np.uint8), np.zeros(pages + 1, dtype=np.int64)
        sizes, offsets = np.ascontiguousarray(sizes), np.ascontiguousarray(offsets)
        kept = arena, taken, [counts, sizes, offsets]
        _kept.append(kept)
        # Tensors may be freed when the interpreter has cleared its modules.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        is_room = self._functions.penstock_pool_follow(
            ctypes.c_void_p(arena.address), ctypes.c_int64(arena.nbytes), ctypes.c_int64(LEAST_NBYTES),
            _pointer(taken), _pointer(counts), _pointer(sizes), _pointer(offsets), ctypes.c_int64(len(sizes)),
        )  # fmt: skip
        if not is_room:
            raise PlanError("this process has planned its memory too often: begin a new one")
        self._is_following = True
        return arena

    def retire(self) -> None:
        """Give the system back what is free in the arenas of earlier plans, or of the present one after `leave`."""
        for arena, taken, _ in _kept[: -1 if self._is_following else None]:
            edges = np.flatnonzero(np.diff(np.concatenate([[1], taken[: arena.nbytes // PAGE_NBYTES], [1]])))
            for first, end in edges.reshape(-1, 2):
                arena.give_back(int(first) * PAGE_NBYTES, int(end - first) * PAGE_NBYTES)

    def is_followed(self, arena: CpuArena) -> bool:
        """Whether it is the arena of the plan that is followed."""
        return self._is_following and _kept[-1][0] is arena

    def take(self, offset: int, nbytes: int) -> bool:
        """Take a place in the arena that no allocation has; `give` gives it back."""
        return bool(self._take(offset, nbytes))

    def give(self, arena: CpuArena, offset: int) -> None:
        """Give a place back that was taken."""
        self._functions.free(ctypes.c_void_p(arena.address + offset))

    def leave(self) -> None:
        """Allocate no more by plan."""
        self._functions.penstock_pool_leave()
        self._is_following = False

    def stats(self) -> PoolStats:
        """What happened since `follow`."""
        values = [ctypes.c_int64() for _ in range(3)]
        self._functions.penstock_pool_counts(*(ctypes.byref(value) for value in values))
        return PoolStats(*(value.value for value in values))


def _pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
