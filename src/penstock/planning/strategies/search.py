"""The search for the best residents of a `Bench`: a descent along a few numbers, then exchanges where a pass stalls.

A choice is made by five numbers: up to which size all weights stay (each load costs as much to begin, so large ones
take fewer for as many bytes), how many of the largest stay (one that dwarfs the others would dictate the streaming
region), how large the region is, which share of the other residents goes to weights that cost most storage time per
byte (read several times, or small), and how much credit a weight needs to stream (see `diffusion`). The best value of
each is looked for in turn by a quick estimate (see `fifo`), and what looks best is laid out and simulated.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import combinations

from penstock.planning.ebbs import NOTHING
from penstock.planning.strategies.candidates import Bench, Candidate
from penstock.planning.strategies.diffusion import Spreader

_GRID: dict[str, tuple[float, ...]] = {
    "region": (2.0, 1.5, 2.5, 3.0, 4.0, 5.5, 1.25, 8.0, 1.0, 12.0, 20.0, 40.0),
    "small_nbytes": (0, 256 << 10, 1 << 20, 2 << 20, 4 << 20),
    "largest": (0, 1, 2, 4, 8),
    "costly": (0.0, 0.25, 0.5, 0.75, 1.0),
    "threshold": (1.0, 0.5),
}
_ROUNDS = 2
_LAID_OUT = 5  # of what looks best
_GOOD_ENOUGH = 1.001
FEW = 8
"""Uses: then every choice of residents is tried."""
_FEW_PLACED = 6  # uses: then they are laid out in many ways, too
_NEAR = 12  # uses before a stall among which one may be kept instead


@dataclass(frozen=True, slots=True)
class _Choice:
    """`largest` weights that stay, `region` in multiples of the least that works, and so on: see the module."""

    region: float = 2.0
    small_nbytes: float = 0
    largest: float = 0
    costly: float = 0.0
    threshold: float = 1.0


class Search:
    """The search on one bench; no candidate scores less than `goal`."""

    def __init__(self, bench: Bench, goal: float) -> None:
        self._bench, self._goal = bench, goal * _GOOD_ENOUGH
        self._spreader = Spreader(bench)
        self._by_cost = sorted(bench.saved, key=lambda weight: (-bench.saved[weight] / bench.extent[weight], weight))
        self._by_size = sorted(bench.extent, key=lambda weight: (-bench.extent[weight], weight))
        self._estimates: dict[frozenset[int], float] = {}
        self._tried: dict[_Choice, float] = {}
        self._best: Candidate | None = None

    def run(self, trials: int) -> Candidate | None:
        """The best candidate found, after `trials` exchanges at most; None if there is none."""
        if len(self._bench.uses) <= FEW:
            self._try_all()
            return self._best
        choice = _Choice()
        for _ in range(_ROUNDS):
            before = choice
            for name, values in _GRID.items():
                variants = [replace(choice, **{name: value}) for value in values]
                choice = min(variants, key=self._estimate)
                if self._lay_out(1):
                    return self._best
            if choice == before:
                break
        if not self._lay_out(_LAID_OUT):
            self._exchange(trials)
        return self._best

    def _try_all(self) -> None:
        """Lay out every choice of residents, and where few are left to stream, those in many ways."""
        bench, weights = self._bench, sorted(self._bench.extent)
        choices = [frozenset(some) for count in range(len(weights) + 1) for some in combinations(weights, count)]
        for residents in choices:
            self._keep(bench.try_residents(residents))
        for residents in () if bench.is_ebbing else choices:
            if self._best is not None and self._best.score <= self._goal:
                return
            limit = math.inf if self._best is None else self._best.seconds
            streamed = sum(use.weight not in residents for use in bench.uses)
            if streamed <= _FEW_PLACED and bench.lacking_nbytes(residents) <= 0:
                self._keep(bench.try_everywhere(residents, limit))

    def _estimate(self, choice: _Choice) -> float:
        if choice not in self._tried:
            residents = self._residents(choice)
            seconds = float("inf")
            if residents is not None:
                seconds = self._estimates[residents] = self._bench.estimate(residents)
            self._tried[choice] = seconds
        return self._tried[choice]

    def _lay_out(self, count: int) -> bool:
        """Lay out what looks best; whether one of them is as good as can be."""
        for residents in sorted(self._estimates, key=lambda residents: self._estimates[residents])[:count]:
            self._keep(self._bench.try_residents(residents))
        return self._best is not None and self._best.score <= self._goal

    def _keep(self, candidate: Candidate | None) -> None:
        if candidate is not None and (self._best is None or candidate.rank < self._best.rank):
            self._best = candidate

    def _residents(self, choice: _Choice) -> frozenset[int] | None:
        bench = self._bench
        kept = set(self._by_size[: int(choice.largest)])
        kept.update(weight for weight in bench.extent if bench.nbytes(weight) <= choice.small_nbytes)
        left_nbytes = bench.capacity_nbytes - sum(bench.extent[weight] for weight in kept)
        least_nbytes = bench.least_region_nbytes(kept)
        region_nbytes = min(int(least_nbytes * choice.region), left_nbytes)
        if region_nbytes < least_nbytes:
            return None
        left_nbytes = int((left_nbytes - region_nbytes) * choice.costly)
        for weight in self._by_cost if left_nbytes else ():
            if left_nbytes < bench.extent[weight]:
                break
            if weight not in kept:
                kept.add(weight)
                left_nbytes -= bench.extent[weight]
        return self._spreader.spread(region_nbytes, frozenset(kept), choice.threshold)

    def _exchange(self, trials: int) -> None:
        """Improve the best by small changes, from a fixed seed: near a stall keep a weight, elsewhere let one go."""
        draw = random.Random(0)
        bench = self._bench
        for _ in range(trials):
            best = self._best
            streamed = [use for use in best.uses if use.weight != NOTHING] if best is not None else []
            if best is None or not streamed or best.score <= self._goal:
                return
            residents = set(best.residents)
            stalled = draw.choices(range(len(best.stalls)), [max(stall, 1e-12) for stall in best.stalls])[0]
            before = [use.weight for use in streamed if use.first <= stalled] or [use.weight for use in streamed]
            coming = draw.choice(before[-_NEAR:])
            if draw.random() < 0.8:
                residents.add(coming)
            lacking = bench.lacking_nbytes(residents)
            leaving = sorted(best.residents)
            while leaving and (lacking > 0 or draw.random() < 0.2):
                weight = leaving.pop(draw.randrange(len(leaving)))
                residents.discard(weight)
                lacking -= bench.extent[weight]
            self._keep(bench.try_residents(frozenset(residents)))
