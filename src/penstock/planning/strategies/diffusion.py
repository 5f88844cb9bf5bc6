"""A first choice of residents: streamed bytes spread evenly over compute time, by error diffusion.

The storage earns credit while calls compute, up to what the streaming region holds, and each streamed weight spends its
load's seconds. A weight that finds too little credit stays resident, and its share goes to those behind it: Bresenham's
line, drawn through the weights. Evenly interleaved residents are what Demand Layering's successors found best.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from penstock.planning.strategies.candidates import Bench

_BISECTIONS = 14


def spread(bench: Bench, region_nbytes: int, kept: frozenset[int], threshold: float) -> frozenset[int]:
    """Residents, `kept` among them, that leave `region_nbytes` of the capacity to the stream, as evenly as can be.

    `threshold` is the share of its load's seconds that a weight needs as credit.
    """
    limit_nbytes = bench.capacity_nbytes - region_nbytes
    cap_seconds = region_nbytes / bench.bytes_per_second
    earned = _earned(bench)
    low, high = 0.0, 1.0
    best: frozenset[int] | None = None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # Rates from nothing to without limit; 1/2 is the one that would just stream everything.
        residents = _diffuse(bench, earned, middle / (1 - middle), cap_seconds, kept, threshold)
        if sum(bench.extent[weight] for weight in residents) <= limit_nbytes:
            best, high = residents, middle
        else:
            low = middle
    return kept if best is None else best


def _earned(bench: Bench) -> list[float]:
    """Share of the pass's compute time from one use to the next, times the seconds that all loads take."""
    begins = [0.0, *accumulate(bench.call_seconds)]
    total = begins[-1]
    if total <= 0:  # no compute to hide anything under: spread over the order of calls instead
        begins, total = [float(call) for call in range(bench.call_count + 1)], float(bench.call_count)
    scale = sum(bench.seconds) / total
    places = [begins[use.first] for use in bench.uses]
    previous = [places[-1] - total, *places] if places else []
    return [(place - before) * scale for place, before in zip(places, previous, strict=False)]


def _diffuse(
    bench: Bench, earned: Sequence[float], rate: float, cap_seconds: float, kept: frozenset[int], threshold: float
) -> frozenset[int]:
    credit = cap_seconds
    residents: set[int] = set()
    for _ in range(2):  # the second pass begins with the credit that the first one left
        residents = set(kept)
        streamed: set[int] = set()
        for use, gain, seconds in zip(bench.uses, earned, bench.seconds, strict=True):
            credit = min(cap_seconds, credit + rate * gain)
            weight = use.weight
            if weight in residents:
                continue
            if weight in streamed or credit >= threshold * seconds:
                streamed.add(weight)
                credit -= seconds
            else:
                residents.add(weight)
    return frozenset(residents)
