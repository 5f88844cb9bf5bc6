"""Addresses for buffers with lifetimes: dynamic storage allocation, of one pass or of passes that repeat.

Buffers that live at the same moment must not share a byte; how high the highest of them ends is to be as little as can
be. No placement is lower than the load: the most bytes that live at one moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.planning.placement_buffers import Buffers, Ints, checked, checked_seconds
from penstock.planning.placement_check import check_placement
from penstock.planning.placement_heuristics import as_allocated, by_size_and_lifetime, smartpool
from penstock.planning.placement_parts import split
from penstock.planning.placement_search import PartSearch, settled
from penstock.planning.placement_solver import Companion, load_solver

_ALONE = 20  # beams before the solver joins: from then on what is found depends on who is faster

_MANY = 600  # buffers: of so many a beam takes long, so it matters from where they begin


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


def place(
    lower: Any, upper: Any, size: Any, *, seconds: float = 10.0, period: int | None = None, solver: bool = True
) -> Placement:
    """The lowest placement that is found in about `seconds`, checked; sooner where it is proved that none is lower.

    The same question has the same answer where it is settled before the solver joins (after some twenty beams), as most
    are; later it depends on which of the two is faster.

    Args:
        lower: (n,) integers, the first moment of each buffer's lifetime.
        upper: (n,) integers, the moment after its last, above `lower`: lifetimes are half-open.
        size: (n,) integers above zero, in bytes.
        seconds: how long to search, on the clock.
        period: the moments of one pass, where passes repeat and buffers keep their places: `lower` lies in
            [0, period), and a buffer with `upper` above the period lives in [lower, period) and, of the next pass, in
            [0, upper - period). A lifetime is no longer than the period; one as long meets every buffer.
        solver: whether OR-Tools may join, if it is installed; it takes some 26 MiB of this process's memory.

    Raises:
        PlanError: arguments make no sense; says which.
    """
    buffers = checked(lower, upper, size, period)
    deadline = time.monotonic() + checked_seconds(seconds)
    if len(buffers) == 0:
        return Placement(np.zeros(0, dtype=np.int64), 0, 0, True)
    searches = _search(buffers, deadline, solver)
    offsets = np.zeros(len(buffers), dtype=np.int64)
    for search in searches:
        offsets[search.part.indices] = search.offsets * search.part.unit
    highest = max(searches, key=lambda search: search.height)
    height = highest.height * highest.part.unit
    load = max(search.part.least * search.part.unit for search in searches)
    check_placement(buffers.lower, buffers.upper, buffers.size, offsets, height, period)
    return Placement(offsets, height, load, highest.is_proved or height == load)


def _search(buffers: Buffers, deadline: float, solver: bool) -> list[PartSearch]:
    """The parts, each placed as low as the highest needs it: the beams go to whichever is highest."""
    starts = [smartpool(buffers), as_allocated(buffers)]
    if len(buffers) > _MANY:
        starts += by_size_and_lifetime(buffers)
    searches = []
    for part in split(buffers):
        settle = (settled(part, start[part.indices] // part.unit) for start in starts)
        searches.append(PartSearch(part, min(settle, key=part.height)))
    least = max(search.part.least for search in searches)
    companion: Companion | None = None
    beams = 0
    try:
        while time.monotonic() < deadline:
            highest = max(searches, key=lambda search: search.height)
            if highest.is_proved or highest.height <= least:
                break
            if solver and beams == _ALONE and companion is None and (cp_model := load_solver()) is not None:
                companion = Companion(cp_model, searches, deadline)
            if companion is not None:
                companion.exchange()
            if highest.is_searchable:
                highest.improve(deadline)
                beams += 1
            elif companion is not None:
                companion.wait(deadline - time.monotonic())
            else:
                break
    finally:
        if companion is not None:
            companion.close()
    return searches
