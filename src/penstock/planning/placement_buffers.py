"""What is to be placed: buffers with sizes and lifetimes, checked, and how they meet in time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.errors import PlanError

Ints = npt.NDArray[np.int64]
_LARGEST = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, eq=False)
class Buffers:
    """Buffers, one per index; `checked` makes them.

    Attributes:
        lower: (n,) first moment of each lifetime.
        upper: (n,) moment past the last, above `lower`. With a period it may lie beyond it.
        size: (n,) in bytes, above zero.
        period: the moments after which everything begins again, or None.
    """

    lower: Ints
    upper: Ints
    size: Ints
    period: int | None = None

    def __len__(self) -> int:
        return len(self.size)

    def meeting(self, index: int, others: Ints) -> npt.NDArray[np.bool_]:
        """(len(others),) which of `others` live at a moment at which `index` lives too."""
        together: npt.NDArray[np.bool_]
        if self.period is None:
            together = (self.lower[others] < self.upper[index]) & (self.lower[index] < self.upper[others])
        else:
            later = (self.lower[others] - self.lower[index]) % self.period
            earlier = (self.lower[index] - self.lower[others]) % self.period
            together = later < self.upper[index] - self.lower[index]
            together |= earlier < self.upper[others] - self.lower[others]
        return together


def checked(lower: Any, upper: Any, size: Any, period: Any = None) -> Buffers:
    """Buffers from what a caller gives.

    Raises:
        PlanError: they make no sense; says which, why, and what to give instead.
    """
    arrays = {name: _integers(name, values) for name, values in (("lower", lower), ("upper", upper), ("size", size))}
    if len({len(values) for values in arrays.values()}) != 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in arrays.items())
        raise PlanError(f"lengths differ ({lengths}): give one of each for every buffer")
    buffers = Buffers(**arrays, period=_period(period))
    _refuse_where(buffers.size < 1, "size", buffers.size, "not above zero: leave out buffers without bytes")
    _refuse_where(
        buffers.upper <= buffers.lower,
        "upper",
        buffers.upper,
        "not above its lower: a lifetime is half-open, not empty",
    )
    if (total := sum(buffers.size.tolist())) > _LARGEST:
        raise PlanError(f"size adds up to {total}, above {_LARGEST}: give sizes in a larger unit")
    if buffers.period is not None:
        outside = (buffers.lower < 0) | (buffers.lower >= buffers.period)
        _refuse_where(outside, "lower", buffers.lower, f"outside 0 to {buffers.period - 1}: give it modulo the period")
        too_long = buffers.upper - buffers.lower > buffers.period
        _refuse_where(
            too_long, "upper", buffers.upper, f"more than the period of {buffers.period} after its lower: end it there"
        )
    return buffers


def checked_seconds(seconds: Any) -> float:
    """A duration above zero.

    Raises:
        PlanError: it is none.
    """
    is_number = isinstance(seconds, int | float | np.integer | np.floating) and not isinstance(seconds, bool)
    if not is_number or not math.isfinite(seconds) or seconds <= 0:
        raise PlanError(f"seconds is {seconds!r}, not a duration above zero: give how long to search")
    return float(seconds)


def _integers(name: str, values: Any) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise PlanError(f"{name} is of {array.ndim} dimensions and {array.dtype}: give a one-dimensional integer array")
    if array.size and int(array.max()) > _LARGEST:
        raise PlanError(f"{name} has {int(array.max())}, above {_LARGEST}: give numbers that 64 bits hold")
    return array.astype(np.int64)


def _period(period: Any) -> int | None:
    if period is None:
        return None
    if isinstance(period, bool) or not isinstance(period, int | np.integer) or not 1 <= period <= _LARGEST // 2:
        raise PlanError(f"period is {period!r}, not between 1 and {_LARGEST // 2}: give the moments of a pass, or None")
    return int(period)


def _refuse_where(wrong: npt.NDArray[np.bool_], name: str, values: Ints, what: str) -> None:
    if wrong.any():
        index = int(wrong.argmax())
        raise PlanError(f"{name}[{index}] is {values[index]}, {what}")
