"""The search for the best residents of a `Bench`: a grid of evenly spread choices, then exchanges.

A choice is made by four numbers: how many of the largest weights stay (one that dwarfs the others would dictate the
streaming region), how large the region is, which share of the other residents goes to weights that cost most storage
time per byte (read several times, or small), and how much credit a weight needs to stream (see `diffusion`). The best
value of each is looked for in turn, until none changes or the work is spent.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from penstock.planning.strategies.candidates import Bench, Candidate
from penstock.planning.strategies.diffusion import spread

_GRID: dict[str, tuple[float, ...]] = {
    "region": (2.0, 2.5, 3.0, 1.5, 4.0, 5.5, 1.25, 8.0, 1.0, 12.0, 20.0, 40.0),
    "largest": (0, 1, 2, 4, 8),
    "costly": (0.0, 0.25, 0.5, 0.75, 1.0),
    "threshold": (1.0, 0.5),
}
_ROUNDS = 3
_GRID_SHARE = 0.7  # of the work; the rest is for exchanges
_GOOD_ENOUGH = 1.001


@dataclass(frozen=True, slots=True)
class _Choice:
    """`largest` weights that stay, `region` in multiples of the least that works, and so on: see the module."""

    region: float = 2.0
    largest: float = 0
    costly: float = 0.0
    threshold: float = 1.0


def search(bench: Bench, bound: float, work: int) -> Candidate | None:
    """The best candidate found with `work` placed uses; none can score below `bound`. None if none was found."""
    by_cost = sorted(bench.saved, key=lambda weight: (-bench.saved[weight] / bench.extent[weight], weight))
    by_size = sorted(bench.extent, key=lambda weight: (-bench.extent[weight], weight))
    goal = bound * _GOOD_ENOUGH
    best: Candidate | None = None
    choice = _Choice()
    for _ in range(_ROUNDS):
        before = choice
        for name, values in _GRID.items():
            for value in values:
                if bench.work > work * _GRID_SHARE or (best is not None and best.score <= goal):
                    break
                variant = replace(choice, **{name: value})
                candidate = _try_choice(bench, variant, by_cost, by_size)
                if candidate is not None and (best is None or candidate.rank < best.rank):
                    best, choice = candidate, variant
        if choice == before:
            break
    return None if best is None else _exchange(bench, best, goal, work)


def _try_choice(bench: Bench, choice: _Choice, by_cost: list[int], by_size: list[int]) -> Candidate | None:
    kept = set(by_size[: int(choice.largest)])
    left_nbytes = bench.capacity_nbytes - sum(bench.extent[weight] for weight in kept)
    least_nbytes = bench.least_region_nbytes(kept)
    region_nbytes = min(int(least_nbytes * choice.region), left_nbytes)
    if region_nbytes < least_nbytes:
        return None
    left_nbytes = int((left_nbytes - region_nbytes) * choice.costly)
    for weight in by_cost:
        if left_nbytes < bench.extent[weight]:
            break
        if weight not in kept:
            kept.add(weight)
            left_nbytes -= bench.extent[weight]
    return bench.try_residents(spread(bench, region_nbytes, frozenset(kept), choice.threshold))


def _exchange(bench: Bench, best: Candidate, goal: float, work: int) -> Candidate:
    """Improve `best` by small changes drawn at random, from a fixed seed: keep a weight, let one go, swap two."""
    draw = random.Random(0)
    weights = sorted(bench.extent)
    for _ in range(work):  # most changes cost work; those that were tried before cost none
        if bench.work > work or best.score <= goal:
            break
        residents = set(best.residents)
        kind = draw.random()
        leaving = draw.choice(weights)
        coming = draw.choice(weights)
        if kind < 0.7 and leaving in residents:
            residents.discard(leaving)
        if kind > 0.3:
            residents.add(coming)
        candidate = bench.try_residents(frozenset(residents))
        if candidate is not None and candidate.rank < best.rank:
            best = candidate
    return best
