"""What no plan can beat, whichever weights it keeps or cuts and wherever it puts them.

Four facts hold for every plan. A pass computes all of its calls. What has to be read and was not in memory has been
loaded. The arena holds no more than its size. Storage loads one thing after another, each for `Problem.load_seconds`;
in parts it takes no less. The bounds below follow from these alone; that a call may not begin before its weights are
there makes windows of calls bind, not only whole passes.

A weight that can be sliced may still arrive while its layer computes, so there its bytes count at the layer's end.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from penstock.planning.ebbs import capacity_nbytes
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
    A weight of which some slices stay still takes a load for the others: more than the knapsack counts.

    *Each weight once.* A weight that several calls read counts at the first of them: by then it has been in the arena,
    however often it is loaded. Tables that can be read by rows do not count, since a plan may never load them.

    *Activations.* At the moment when i begins, the arena is at most what the budget leaves beside i's own activations.
    """
    compute = np.array([call.seconds for call in problem.calls], dtype=np.float64)
    loads, is_late = _due(problem)
    if not loads.any():
        return problem.compute_seconds
    arena = _arena_nbytes(problem)
    tightest = int(np.argmin(arena))
    lost = {weight: problem.storage.lost_seconds(problem.load_seconds(weight)) for weight in _whole(problem)}
    lost_seconds = sum(lost.values()) - float(_most_kept(problem, lost, arena[tightest : tightest + 1])[0])
    best = problem.compute_seconds + max(0.0, lost_seconds - _ROUNDING * sum(lost.values()))
    kept = _most_kept(problem, {weight: problem.load_seconds(weight) for weight in _whole(problem)}, arena)
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
    loads, is_late = _due(problem)
    after = np.cumsum(compute[::-1])[::-1]
    sums = np.cumsum(loads) + after - np.where(is_late, compute, 0.0)
    return max(problem.compute_seconds, float(sums.max()) * (1 - _ROUNDING))


def _due(problem: Problem) -> tuple[_Floats, npt.NDArray[np.bool_]]:
    """Load seconds of what each call is the first to read, and whether some of it may come while the call computes."""
    loads, is_late = np.zeros(len(problem.calls)), np.zeros(len(problem.calls), dtype=np.bool_)
    seen: set[int] = set()
    for index, call in enumerate(problem.calls):
        for weight in call.reads:
            if weight not in seen and not problem.weights[weight].rows_only:
                seen.add(weight)
                loads[index] += problem.load_seconds(weight)
                is_late[index] |= problem.weights[weight].rows > 1
    return loads, is_late


def _whole(problem: Problem) -> set[int]:
    """The weights that calls read, but for tables."""
    return {weight for call in problem.calls for weight in call.reads if not problem.weights[weight].rows_only}


def _arena_nbytes(problem: Problem) -> _Floats:
    """The most that the arena can be as each call begins."""
    return np.array([capacity_nbytes(problem, call) for call in range(len(problem.calls))], dtype=np.float64)


def _most_kept(problem: Problem, seconds: Mapping[int, float], arena_nbytes: _Floats) -> _Floats:
    """The most of `seconds`, by weight, that arenas of such sizes can hold: the fractional knapsack of each."""
    costs = sorted(
        ((cost, problem.extent_nbytes(weight)) for weight, cost in seconds.items()),
        key=lambda cost: -cost[0] / cost[1],
    )
    saved, nbytes = (np.concatenate(([0.0], np.cumsum(column))) for column in zip(*costs, strict=True))
    return np.interp(arena_nbytes, nbytes, saved)
