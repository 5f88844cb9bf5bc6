"""Addresses for buffers with lifetimes: dynamic storage allocation, of one pass or of passes that repeat.

Buffers that live at the same moment must not share a byte; how high the highest of them ends is to be as little as can
be. No placement is lower than the load: the most bytes that live at one moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.planning.placement_buffers import Ints, checked, checked_seconds
from penstock.planning.placement_check import check_placement
from penstock.planning.placement_heuristics import smartpool
from penstock.planning.placement_parts import split


@dataclass(frozen=True, eq=False)
class Placement:
    """Where buffers lie.

    Attributes:
        offsets: (n,) int64, first byte of each buffer.
        height: bytes that hold all of them.
        load: the most bytes that live at one moment, so no height is below it.
        proved_optimal: no height is below `height`.
    """

    offsets: Ints
    height: int
    load: int
    proved_optimal: bool

    @property
    def ratio(self) -> float:
        """Height by load: 1.0 is the best there is."""
        return self.height / self.load if self.load else 1.0


def place(lower: Any, upper: Any, size: Any, *, seconds: float = 10.0, period: int | None = None) -> Placement:
    """The lowest placement that is found in about `seconds`, checked; sooner where it is proved that none is lower.

    Args:
        lower: (n,) integers, the first moment of each buffer's lifetime.
        upper: (n,) integers, the moment after its last, above `lower`: lifetimes are half-open.
        size: (n,) integers above zero, in bytes.
        seconds: how long to search, on the clock.
        period: the moments of one pass, where passes repeat and buffers keep their places: `lower` lies in
            [0, period), and a buffer with `upper` above the period lives in [lower, period) and, of the next pass, in
            [0, upper - period). A lifetime is no longer than the period; one as long meets every buffer.

    Raises:
        PlanError: arguments make no sense; says which.
    """
    buffers = checked(lower, upper, size, period)
    deadline = time.monotonic() + checked_seconds(seconds)
    if len(buffers) == 0:
        return Placement(np.zeros(0, dtype=np.int64), 0, 0, True)
    parts = split(buffers)
    load = parts[0].least * parts[0].unit
    offsets = smartpool(buffers)
    del deadline
    height = int((offsets + buffers.size).max())
    check_placement(buffers.lower, buffers.upper, buffers.size, offsets, height, period)
    return Placement(offsets, height, load, height == load)
