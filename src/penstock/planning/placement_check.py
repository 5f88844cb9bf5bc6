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
    begins, ends = np.asarray(lower, dtype=np.int64), np.asarray(upper, dtype=np.int64)
    bottoms, tops = np.asarray(offsets).tolist(), []
    for index, nbytes in enumerate(np.asarray(size).tolist()):  # Python's numbers: none overflows
        tops.append(bottoms[index] + nbytes)
        if bottoms[index] < 0 or tops[index] > height:
            _refuse(f"buffer {index} lies at {bottoms[index]} to {tops[index]}, outside 0 to {height}")
        if period is not None and not 0 <= begins[index] < period:
            _refuse(f"buffer {index} lives from {begins[index]} on, outside 0 to {period - 1}")
    firsts, pasts = np.array(bottoms, dtype=np.int64), np.array(tops, dtype=np.int64)
    for index in range(count):
        after = slice(index + 1, count)
        shares = (firsts[after] < pasts[index]) & (firsts[index] < pasts[after])
        together = (begins[after] < ends[index]) & (begins[index] < ends[after])
        if period is not None:  # one lives on when the other's next pass begins
            together |= (begins[after] + period < ends[index]) | (begins[index] + period < ends[after])
        wrong = np.flatnonzero(shares & together)
        if wrong.size:
            other = index + 1 + int(wrong[0])
            _refuse(
                f"buffers {index} and {other} overlap: both live at some moment, and lie at {bottoms[index]} to "
                f"{tops[index]} and {bottoms[other]} to {tops[other]}"
            )


def _refuse(message: str) -> NoReturn:
    raise PlanError(f"{message}: place the buffers again")
