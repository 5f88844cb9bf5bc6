"""Many partial placements of one part at once: how high each buffer would lie, how low each moment can still be filled.

Arrays are (buffers, states) or (moments, states). What a buffer asks of all moments of its lifetime, it asks of two
overlapping stretches of them whose length is a power of two, so that one table per power serves all buffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.planning.placement_buffers import Ints
from penstock.planning.placement_parts import Part

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Level:
    """Buffers whose lifetimes are at least `width` moments and less than twice as many."""

    width: int
    rows: slice
    left: Ints
    right: Ints
    sources: Ints
    targets: Ints
    groups: Ints


class Lattice:
    """Some buffers of a part, in another order: shorter lifetimes first.

    Args:
        part: it gives the moments.
        indices: which of its buffers; at least one.

    Attributes:
        order: (n,) of each row, which buffer of the part it is.
        first: (n,) the first moment of each row's lifetime.
        past: (n,) the moment after its last, up to twice `moments`.
        size: (n, 1) of each row.
        load: (moments, 1) the part's, other buffers' too.
        covers: (moments, n) whether the row's buffer lives then.
        infinite: above every offset.
    """

    def __init__(self, part: Part, indices: Ints) -> None:
        length = (part.past - part.first)[indices]
        power = np.array([value.bit_length() - 1 for value in length.tolist()], dtype=np.int64)
        by_power = np.lexsort((part.first[indices], power))
        self.order, power = indices[by_power], power[by_power]
        self.first, self.past = part.first[self.order], part.past[self.order]
        self.moments = part.moments
        self._wrapped = max(0, int(self.past.max()) - self.moments)
        # No height is above the sum of all sizes; what is added to `infinite` is no more than a few of these.
        dtype = np.int32 if int(part.size.sum()) < np.iinfo(np.int32).max // 16 else np.int64
        self.infinite = int(np.iinfo(dtype).max) // 4
        self.size: Array = part.size[self.order].astype(dtype)[:, None]
        self.load: Array = part.load.astype(dtype)[:, None]
        moment = np.arange(self.moments)[:, None]
        self.covers = (moment >= self.first) & (moment < self.past) | (moment + self.moments < self.past)
        self._levels = [self._level(power, exponent) for exponent in range(int(power.max()) + 1)]

    def _level(self, power: Ints, exponent: int) -> _Level:
        begin, end = np.searchsorted(power, [exponent, exponent + 1]).tolist()
        left, right = self.first[begin:end], self.past[begin:end] - (1 << exponent)
        both = np.concatenate([left, right])
        by_place = np.argsort(both, kind="stable")
        targets, groups = np.unique(both[by_place], return_index=True)
        return _Level(
            1 << exponent, slice(begin, end), left, right, begin + by_place % max(end - begin, 1), targets, groups
        )

    def unrolled(self, values: Array) -> Array:
        """`values`, by moment, and again for the moments at which buffers that live across the end go on."""
        return np.concatenate([values, values[: self._wrapped]]) if self._wrapped else values

    def highest(self, values: Array) -> Array:
        """(n, states) the highest of `values` (moments, states) over each buffer's lifetime."""
        out = np.empty((len(self.order), values.shape[1]), dtype=values.dtype)
        table = self.unrolled(values)
        for level in self._levels:
            if level.width > 1:
                half = level.width // 2
                table = np.maximum(table[:-half], table[half:])
            if level.left.size:
                np.maximum(table[level.left], table[level.right], out=out[level.rows])
        return out

    def lowest(self, values: Array) -> Array:
        """(moments, states) the lowest of `values` (n, states) of the buffers that live at each; `infinite` of none."""
        spread: Array | None = None
        for level in reversed(self._levels):
            length = self.moments + self._wrapped - level.width + 1
            table = np.full((length, values.shape[1]), self.infinite, dtype=values.dtype)
            if spread is not None:
                np.minimum(table[: -level.width], spread, out=table[: -level.width])
                np.minimum(table[level.width :], spread, out=table[level.width :])
            if level.left.size:
                found = np.minimum.reduceat(values[level.sources], level.groups, axis=0)
                table[level.targets] = np.minimum(table[level.targets], found)
            spread = table
        assert spread is not None
        if self._wrapped:
            np.minimum(spread[: self._wrapped], spread[self.moments :], out=spread[: self._wrapped])
        return spread[: self.moments]
