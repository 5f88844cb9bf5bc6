"""What two allocators that know no plan would reserve for a recorded iteration: CnMem, and torch's for CUDA.

Both are simulated on the lifetimes of its blocks, repeated, one allocation and release after another. Both take the
smallest free block that holds a request, the lowest one of several, split it, and join free neighbours of one segment
again; they differ in which requests share segments, how large those are, and when a block is split. Neither gives
anything back to the system: there is no limit that would make them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from penstock.training.lifetimes import Lifetimes

ITERATIONS = 3
"""Iterations that are simulated where nothing else is said: what wraps meets itself from the second on."""

GRANULARITY_NBYTES = 512
"""Sizes are multiples of it, in both allocators."""

SMALL_NBYTES = 1 << 20
SMALL_SEGMENT_NBYTES = 2 << 20
OWN_SEGMENT_NBYTES = 10 << 20
LARGE_SEGMENT_NBYTES = 20 << 20
OWN_ROUNDING_NBYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a block lay in one iteration.

    Attributes:
        block: its index in the lifetimes.
        lower, upper: half-open, on the clock that goes on from one iteration to the next.
        address, nbytes: what it had, segments follow one another; it may be more than it asked for.
    """

    block: int
    lower: int
    upper: int
    address: int
    nbytes: int

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.address + self.nbytes


class System:
    """Memory without end, of which segments are handed out one after another.

    Attributes:
        nbytes: that were handed out.
    """

    def __init__(self) -> None:
        self.nbytes = 0

    def reserve(self, nbytes: int) -> int:
        """The address of a new segment."""
        self.nbytes += nbytes
        return self.nbytes - nbytes


class BestFit:
    """A pool of free blocks in segments of the system.

    Args:
        system: where segments come from.
        segment_nbytes: how large a new one is, for a block of so many bytes.
        least_rest_nbytes: what is left of a free block is split off from this size on.
    """

    def __init__(self, system: System, segment_nbytes: Callable[[int], int], least_rest_nbytes: int) -> None:
        self._system, self._segment_nbytes, self._least_rest = system, segment_nbytes, least_rest_nbytes
        self._segments: set[int] = set()  # where each begins
        self._free: list[tuple[int, int]] = []  # bytes and address, the best fit first
        self._nbytes: dict[int, int] = {}  # of the free block at an address
        self._begins: dict[int, int] = {}  # of the free block that ends at an address

    def grow(self, nbytes: int) -> None:
        """Add a segment, all of it free."""
        address = self._system.reserve(nbytes)
        self._segments.add(address)
        self._give(address, nbytes)

    def allocate(self, nbytes: int) -> tuple[int, int]:
        """Address and bytes of a block for `nbytes`, which are a multiple of the granularity."""
        at = bisect_left(self._free, (nbytes, 0))
        if at == len(self._free):
            self.grow(self._segment_nbytes(nbytes))
            at = bisect_left(self._free, (nbytes, 0))
        address = self._free[at][1]
        found = self._take(address)
        rest = found - nbytes
        if rest < self._least_rest:
            return address, found
        self._give(address + nbytes, rest)
        return address, nbytes

    def release(self, address: int, nbytes: int) -> None:
        """Free a block that `allocate` gave, together with free neighbours in its segment."""
        end = address + nbytes
        if end in self._nbytes and end not in self._segments:
            nbytes += self._take(end)
        if address in self._begins and address not in self._segments:
            address = self._begins[address]
            nbytes += self._take(address)
        self._give(address, nbytes)

    def _give(self, address: int, nbytes: int) -> None:
        insort(self._free, (nbytes, address))
        self._nbytes[address] = nbytes
        self._begins[address + nbytes] = address

    def _take(self, address: int) -> int:
        nbytes = self._nbytes.pop(address)
        del self._begins[address + nbytes]
        del self._free[bisect_left(self._free, (nbytes, address))]
        return nbytes


def cnmem_footprint(lifetimes: Lifetimes, *, first_nbytes: int = 0, iterations: int = ITERATIONS) -> int:
    """The most bytes that CnMem reserves.

    Args:
        lifetimes: of one iteration.
        first_nbytes: reserved at the beginning. The library always does so, half of a device if it is told no number.
            Where the pool need not grow, only what lies below the highest byte that was used counts.
        iterations: that are simulated.
    """
    places = cnmem_places(lifetimes, first_nbytes=first_nbytes, iterations=iterations)
    return max((place.end for place in places), default=0)


def cnmem_places(lifetimes: Lifetimes, *, first_nbytes: int = 0, iterations: int = ITERATIONS) -> Iterator[Placed]:
    """Where CnMem has each block, in the order of allocation: one pool, which grows by what it lacks.

    The rules are those of NVIDIA/cnmem, src/cnmem.cpp, for one stream.
    """
    pool = BestFit(System(), lambda nbytes: nbytes, GRANULARITY_NBYTES)
    if first_nbytes:
        pool.grow(_rounded(first_nbytes, GRANULARITY_NBYTES))
    return _places(lifetimes, iterations, lambda _: pool)


def caching_footprint(lifetimes: Lifetimes, *, iterations: int = ITERATIONS) -> int:
    """The most bytes that torch's caching allocator reserves on a CUDA device, as `max_memory_reserved` counts them.

    Args:
        lifetimes: of one iteration.
        iterations: that are simulated.
    """
    system = System()
    for _ in _places(lifetimes, iterations, _caching_pools(system)):
        pass
    return system.nbytes


def caching_places(lifetimes: Lifetimes, *, iterations: int = ITERATIONS) -> Iterator[Placed]:
    """Where the caching allocator has each block, in the order of allocation.

    The rules are those of c10/cuda/CUDACachingAllocator.cpp with the settings that torch 2.13 has where none are made
    (c10/core/AllocatorConfig.h), for one stream: blocks of up to 1 MiB share segments of 2 MiB, larger ones below
    10 MiB those of 20 MiB, and what is larger still gets one of its own where no free block holds it. What a small
    block leaves is always split off, what a larger one leaves if it is above 1 MiB.
    """
    return _places(lifetimes, iterations, _caching_pools(System()))


def _caching_pools(system: System) -> Callable[[int], BestFit]:
    """Which of the two pools is for a block of so many bytes."""
    small = BestFit(system, lambda _: SMALL_SEGMENT_NBYTES, GRANULARITY_NBYTES)
    large = BestFit(system, _large_segment_nbytes, SMALL_NBYTES + 1)
    return lambda nbytes: small if nbytes <= SMALL_NBYTES else large


def _large_segment_nbytes(nbytes: int) -> int:
    return LARGE_SEGMENT_NBYTES if nbytes < OWN_SEGMENT_NBYTES else _rounded(nbytes, OWN_ROUNDING_NBYTES)


def _places(lifetimes: Lifetimes, iterations: int, pool_of: Callable[[int], BestFit]) -> Iterator[Placed]:
    """Each block's place in each iteration; what lives on for longer, or is empty, has none."""
    blocks = [int(i) for i in np.flatnonzero((lifetimes.upper > lifetimes.lower) & (lifetimes.nbytes > 0))]
    live: dict[tuple[int, int], Placed] = {}
    for _, is_allocation, iteration, block in sorted(_calls(lifetimes, blocks, iterations)):
        asked = _rounded(int(lifetimes.nbytes[block]), GRANULARITY_NBYTES)
        if not is_allocation:
            place = live.pop((iteration, block))
            pool_of(asked).release(place.address, place.nbytes)
            continue
        address, nbytes = pool_of(asked).allocate(asked)
        before = iteration * lifetimes.period
        lower, upper = int(lifetimes.lower[block]) + before, int(lifetimes.upper[block]) + before
        live[iteration, block] = place = Placed(block, lower, upper, address, nbytes)
        yield place


def _calls(lifetimes: Lifetimes, blocks: list[int], iterations: int) -> Iterator[tuple[int, bool, int, int]]:
    """Moment, whether it is an allocation, iteration and block: in this order, what ends goes before what begins."""
    for iteration in range(iterations):
        for block in blocks:
            yield int(lifetimes.lower[block]) + iteration * lifetimes.period, True, iteration, block
            yield int(lifetimes.upper[block]) + iteration * lifetimes.period, False, iteration, block


def _rounded(nbytes: int, multiple: int) -> int:
    return -(-nbytes // multiple) * multiple
