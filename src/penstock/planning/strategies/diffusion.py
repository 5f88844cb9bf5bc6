"""A first choice of residents: streamed bytes spread evenly over compute time, by error diffusion.

The storage earns credit while calls compute, up to what the streaming region holds, and each streamed weight spends its
load's seconds. A weight that finds too little credit stays resident, and its share goes to those behind it: Bresenham's
line, drawn through the weights. Evenly interleaved residents are what Demand Layering's successors found best.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate

from penstock.planning.strategies.candidates import Bench

_BISECTIONS = 10


class Spreader:
    """Spreads the streamed weights of one bench."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._earned = _earned(bench)

    def spread(self, region_nbytes: int, kept: frozenset[int], threshold: float) -> frozenset[int]:
        """Residents, `kept` among them, that leave `region_nbytes` of the capacity, streaming as evenly as can be.

        `threshold` is the share of its load's seconds that a weight needs as credit.
        """
        bench = self._bench
        limit_nbytes = bench.capacity_nbytes - region_nbytes - sum(bench.extent[weight] for weight in kept)
        cap = region_nbytes / bench.bytes_per_second
        low, high, credit = 0.0, 1.0, cap
        best: Collection[int] = ()
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            # Rates from nothing to without limit; 1/2 is the one that would just stream everything.
            rate = middle / (1 - middle)
            residents, nbytes, credit = self._diffuse(rate, cap, credit, kept, threshold)
            if nbytes <= limit_nbytes:
                best, high = residents, middle
            else:
                low = middle
        return kept.union(best)

    def _diffuse(
        self, rate: float, cap: float, credit: float, kept: frozenset[int], threshold: float
    ) -> tuple[set[int], int, float]:
        """Residents beside `kept`, their bytes, and the credit that is left, with which the next pass begins."""
        residents: set[int] = set()
        streamed: set[int] = set()
        extent, nbytes = self._bench.extent, 0
        for use, gain, seconds in zip(self._bench.uses, self._earned, self._bench.seconds, strict=True):
            credit += rate * gain
            if credit > cap:
                credit = cap
            weight = use.weight
            if weight in residents or weight in kept:
                continue
            if credit >= threshold * seconds or weight in streamed:
                streamed.add(weight)
                credit -= seconds
            else:
                residents.add(weight)
                nbytes += extent[weight]
        return residents, nbytes, credit


def _earned(bench: Bench) -> Sequence[float]:
    """Share of the pass's compute time from one use to the next, times the seconds that all loads take."""
    begins = [0.0, *accumulate(bench.call_seconds)]
    total = begins[-1]
    if total <= 0:  # no compute to hide anything under: spread over the order of calls instead
        begins, total = [float(call) for call in range(bench.call_count + 1)], float(bench.call_count)
    scale = sum(bench.seconds) / total
    places = [begins[use.first] for use in bench.uses]
    previous = [places[-1] - total, *places] if places else []
    return [(place - before) * scale for place, before in zip(places, previous, strict=False)]
