"""Sizes and times on axes and in tables: one unit for all of them, and nothing shown that does not work when typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

KIB, MIB, GIB = 2**10, 2**20, 2**30


@dataclass(frozen=True, slots=True)
class Scale:
    """A unit, and what to multiply bytes or seconds with to have them in it."""

    unit: str
    factor: float


def size_scale(largest_nbytes: int) -> Scale:
    """MiB for models as they run on ordinary machines; GiB beyond 16 of these."""
    if largest_nbytes < MIB:
        return Scale("KiB", 1 / KIB)
    return Scale("MiB", 1 / MIB) if largest_nbytes < 16 * GIB else Scale("GiB", 1 / GIB)


def time_scale(longest_seconds: float) -> Scale:
    """Milliseconds up to ten seconds."""
    return Scale("ms", 1e3) if longest_seconds < 10 else Scale("s", 1.0)


def size_text(nbytes: int) -> str:
    """`"28.4 MiB"`, `"1278 MiB"`, `"24.5 GiB"`."""
    unit, unit_nbytes, digits = _rounding(nbytes)
    return f"{nbytes / unit_nbytes:.{digits}f} {unit}"


def readable_nbytes(nbytes: int) -> int:
    """The smallest size from `nbytes` on that `size_text` shows exactly: what is read there works as a budget."""
    _, unit_nbytes, digits = _rounding(nbytes)
    return int(math.ceil(nbytes * 10**digits / unit_nbytes) / 10**digits * unit_nbytes)


def time_text(seconds: float) -> str:
    """`"12.3 ms"`, `"123 ms"`, `"12.3 s"`."""
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f} ms"


def size_ticks(budgets: Sequence[int]) -> list[int]:
    """Sizes in bytes to name on a logarithmic axis over `budgets`: powers of two, or rounder steps where few fit."""
    low, high = min(budgets), max(budgets)
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    if len(powers) >= 4:
        return [2**power for power in powers]
    unit_nbytes = round(1 / size_scale(high).factor)
    step = max(1.0, _nice((high - low) / 5 / unit_nbytes) * unit_nbytes)
    return [round(step * number) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _nice(value: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... that is at least `value`, or of these over tens."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)


def _rounding(nbytes: int) -> tuple[str, int, int]:
    """How one size is shown: unit, bytes in it, digits after the point."""
    if nbytes < KIB:
        return "B", 1, 0
    if nbytes < MIB:
        return "KiB", KIB, 1
    if nbytes < 100 * MIB:
        return "MiB", MIB, 1
    return ("MiB", MIB, 0) if nbytes < 16 * GIB else ("GiB", GIB, 1)
