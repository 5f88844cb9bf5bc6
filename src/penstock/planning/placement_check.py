"""Whether a placement is one: an independent judge that shares no code with the solvers.

It knows nothing of how addresses are found. It compares each buffer with every other.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import numpy.typing as npt

from penstock.errors import PlanError

Integers = npt.NDArray[np.integer]


def check_placement(
    lower: Integers,
    upper: Integers,
    size: Integers,
    offsets: Integers,
    height: int,
    period: int | None = None,
) -> None:
    """Accept addresses at which no two buffers share a byte at any moment, and no byte lies at `height` or above.

    Args:
        lower: (n,) first moment of each lifetime.
        upper: (n,) moment past the last; beyond `period` it is in the next pass.
        size: (n,) bytes.
        offsets: (n,) first byte of each.
        height: bytes.
        period: moments of a pass, after which all begins again; None: there is one pass.

    Raises:
        PlanError: with the first violation found; names the buffers.
    """
    count = len(size)
    if not len(lower) == len(upper) == len(offsets) == count:
        _refuse(f"{len(lower)} lower, {len(upper)} upper, {count} sizes and {len(offsets)} offsets")
    if count == 0 and height != 0:
        _refuse(f"the height is {height} without a buffer")
    begins, ends = np.asarray(lower).astype(object), np.asarray(upper).astype(object)
    bottoms = np.asarray(offsets).astype(object)  # Python's numbers: none overflows
    tops = bottoms + np.asarray(size).astype(object)
    for index in range(count):
        if bottoms[index] < 0 or tops[index] > height:
            _refuse(f"buffer {index} lies at {bottoms[index]} to {tops[index]}, outside 0 to {height}")
    for index in range(count):
        after = slice(index + 1, count)
        shares = (bottoms[after] < tops[index]) & (bottoms[index] < tops[after])
        together = (begins[after] < ends[index]) & (begins[index] < ends[after])
        if period is not None:
            for shift in (-period, period):
                together |= (begins[after] + shift < ends[index]) & (begins[index] < ends[after] + shift)
        wrong = np.flatnonzero(shares & together)
        if wrong.size:
            other = index + 1 + int(wrong[0])
            _refuse(
                f"buffers {index} and {other} overlap: both live at some moment, and lie at {bottoms[index]} to "
                f"{tops[index]} and {bottoms[other]} to {tops[other]}"
            )


def _refuse(message: str) -> NoReturn:
    raise PlanError(f"{message}: place the buffers again")
