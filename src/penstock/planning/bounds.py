"""What no plan can beat, whichever weights it keeps or cuts and wherever it puts them.

Four facts hold for every plan. A pass computes all of its calls. What has to be read and was not in memory has been
loaded. The arena holds no more than its size. Storage loads one thing after another, each for `Problem.load_seconds`;
in parts it takes no less. The bounds below follow from these alone; that a call may not begin before its weights are
there makes windows of calls bind, not only whole passes.

A weight that can be sliced may still arrive while its layer computes, so there its bytes count at the layer's end. One
that can be joined with others (see `joining`) may share with them the blocks at its ends and all that a load costs
besides its bytes, so only the bytes count, and of what a load costs computing their part of a join that is full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from penstock.planning.ebbs import capacity_nbytes
from penstock.planning.joining import JOIN_NBYTES, joinable
from penstock.planning.problem import Problem

_Floats = npt.NDArray[np.float64]
_WINDOWS = 512  # window begins tried; any subset of them gives a bound
_ROUNDING = 1e-12  # of what was added and subtracted


def least_warm_seconds(problem: Problem) -> float:
    """A warm pass of any plan takes at least this long, in seconds, passes following one another at once.

    *Compute.* A pass takes at least the sum of its calls: the thread that computes does one after another.

    *Windows.* Let calls i to j follow one another, cyclically, and no more of them than a pass has. When j begins,
    every weight that i to j read has been in the arena since i began; at that moment the arena held at most its size
    of them. Storage has loaded the rest since, one after another. After that, j and the calls up to the next i compute,
    and from i to the next i is one pass. So it takes at least

        load seconds of what i to j read - the most load seconds that the arena can hold + compute from j to the next i.

    What the arena can hold is at most the fractional knapsack: the weights that take longest per byte, the last in
    part. Of weights that can be sliced, the last slice has to be there when *it* is computed, so for a window that ends
    with such a call only the compute after j counts. With i to j a whole pass this is what cannot stay over bandwidth;
    with j = i it is compute alone.

    *Loading costs computing.* A weight that is not in memory all the time comes in at least one load in each pass, and
    the thread that computes loses to each load what `Storage.lost_seconds` says, beside the sum of the calls. What
    stays fits the arena at the moment when it is smallest; so at most a fractional knapsack of these losses is saved.
    A weight of which some slices stay still takes a load for the others: more than the knapsack counts. A join costs
    what one load costs and is at most `JOIN_NBYTES` long, so each of its bytes bears at least that part of it.

    *Each weight once.* A weight that several calls read counts at the first of them: by then it has been in the arena,
    however often it is loaded. Tables that can be read by rows do not count, since a plan may never load them.

    *Activations.* At the moment when i begins, the arena is at most what the budget leaves beside i's own activations.
    """
    compute = np.array([call.seconds for call in problem.calls], dtype=np.float64)
    costs = _costs(problem)
    loads, is_late = _due(problem, costs)
    if not loads.any():
        return problem.compute_seconds
    arena = _arena_nbytes(problem)
    tightest = int(np.argmin(arena))
    lost = [(cost.lost_seconds, cost.nbytes) for cost in costs.values()]
    all_lost = sum(seconds for seconds, _ in lost)
    lost_seconds = all_lost - float(_most_kept(lost, arena[tightest : tightest + 1])[0])
    best = problem.compute_seconds + max(0.0, lost_seconds - _ROUNDING * all_lost)
    kept = _most_kept([(cost.load_seconds, cost.nbytes) for cost in costs.values()], arena)
    for first in {tightest, *range(0, len(compute), max(1, len(compute) // _WINDOWS))}:
        loaded = np.cumsum(np.roll(loads, -first))
        own = np.roll(compute, -first)
        after = np.cumsum(own[::-1])[::-1] - np.where(np.roll(is_late, -first), own, 0.0)
        rounding = _ROUNDING * (loaded[-1] + after[0])
        best = max(best, float((loaded - kept[first] + after).max()) - rounding)
    return best


def least_cold_seconds(problem: Problem) -> float:
    """A first pass, nothing in memory, takes at least this long, in seconds.

    When call j begins, all that calls up to j read has been loaded, one after another; then j and the calls behind it
    compute. The longest such sum binds: with the first call it is the fill before anything computes, with the last one
    everything over bandwidth. Weights that can be sliced, and tables, count as in `least_warm_seconds`.
    """
    if not problem.calls:
        return 0.0
    compute = np.array([call.seconds for call in problem.calls], dtype=np.float64)
    loads, is_late = _due(problem, _costs(problem))
    after = np.cumsum(compute[::-1])[::-1]
    sums = np.cumsum(loads) + after - np.where(is_late, compute, 0.0)
    return max(problem.compute_seconds, float(sums.max()) * (1 - _ROUNDING))


class _Cost(NamedTuple):
    """The least that a weight takes: of storage for each load, of the computing thread, and of the arena."""

    load_seconds: float
    lost_seconds: float
    nbytes: int


def _costs(problem: Problem) -> dict[int, _Cost]:
    """Of each weight that calls read, but for tables."""
    storage, may_join = problem.storage, joinable(problem)
    costs = {}
    for weight in {weight for call in problem.calls for weight in call.reads}:
        item = problem.weights[weight]
        if weight in may_join:
            seconds = item.nbytes / storage.bytes_per_second
            part = item.nbytes / JOIN_NBYTES
            lost_seconds = storage.load_compute_seconds * part + storage.read_compute_share * seconds
            costs[weight] = _Cost(seconds, lost_seconds, item.nbytes)
        elif not item.rows_only:
            seconds = problem.load_seconds(weight)
            costs[weight] = _Cost(seconds, storage.lost_seconds(seconds), problem.extent_nbytes(weight))
    return costs


def _due(problem: Problem, costs: Mapping[int, _Cost]) -> tuple[_Floats, npt.NDArray[np.bool_]]:
    """Load seconds of what each call is the first to read, and whether some of it may come while the call computes."""
    loads, is_late = np.zeros(len(problem.calls)), np.zeros(len(problem.calls), dtype=np.bool_)
    seen: set[int] = set()
    for index, call in enumerate(problem.calls):
        for weight in call.reads:
            if weight not in seen and weight in costs:
                seen.add(weight)
                loads[index] += costs[weight].load_seconds
                is_late[index] |= problem.weights[weight].rows > 1
    return loads, is_late


def _arena_nbytes(problem: Problem) -> _Floats:
    """The most that the arena can be as each call begins."""
    return np.array([capacity_nbytes(problem, call) for call in range(len(problem.calls))], dtype=np.float64)


def _most_kept(items: Sequence[tuple[float, int]], arena_nbytes: _Floats) -> _Floats:
    """The most seconds, of items with so many each and their bytes, that arenas of such sizes can hold.

    The fractional knapsack of each.
    """
    dearest_first = sorted(items, key=lambda item: -item[0] / item[1])
    saved, nbytes = (np.concatenate(([0.0], np.cumsum(column))) for column in zip(*dearest_first, strict=True))
    return np.interp(arena_nbytes, nbytes, saved)
