"""What no plan can beat, whichever weights it keeps and wherever it puts them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penstock.planning.problem import Problem
from penstock.planning.simulate import load_seconds

_WINDOWS = 512  # window begins tried; any subset of them gives a bound


def least_warm_seconds(problem: Problem, *, storage_slowdown: float = 1.0) -> float:
    """A warm pass of any plan takes at least this long, in seconds, with loads `storage_slowdown` times as slow.

    Take the calls from i to j, cyclically. When j begins, everything that i to j read has been in the arena; when i
    began, the arena held at most its size of it. So the storage has loaded the rest in between, and then j and the
    calls up to the next i compute. The largest such sum binds: the whole pass and pure compute are among them. Each
    weight counts at one of its reads; tables that can be read by rows do not count.
    """
    compute = np.array([call.seconds for call in problem.calls], dtype=np.float64)
    loads = _load_seconds(problem) * storage_slowdown
    kept_seconds = _most_kept_seconds(problem) * storage_slowdown
    best = float(compute.sum())
    readers = np.flatnonzero(loads)
    for first in readers[:: max(1, len(readers) // _WINDOWS)]:
        loaded = np.cumsum(np.roll(loads, -first))
        computed_after = np.cumsum(np.roll(compute, -first)[::-1])[::-1]
        best = max(best, float((loaded - kept_seconds + computed_after).max()))
    return best


def _load_seconds(problem: Problem) -> npt.NDArray[np.float64]:
    """Storage seconds of the weights that each call is the first to read."""
    loads = np.zeros(len(problem.calls))
    seen: set[int] = set()
    for index, call in enumerate(problem.calls):
        for weight in call.reads:
            if weight not in seen and not problem.weights[weight].rows_only:
                seen.add(weight)
                loads[index] += load_seconds(problem, weight)
    return loads


def _most_kept_seconds(problem: Problem) -> float:
    """The most storage seconds that the arena can hold at once: the slowest weights per byte, the last one in part."""
    left_nbytes = problem.budget_nbytes - problem.reserve.total_nbytes
    kept_seconds = 0.0
    read = {weight for call in problem.calls for weight in call.reads if not problem.weights[weight].rows_only}
    costs = [(load_seconds(problem, weight), problem.extent_nbytes(weight)) for weight in read]
    for seconds, nbytes in sorted(costs, key=lambda cost: -cost[0] / cost[1]):
        part = min(1.0, left_nbytes / nbytes)
        if part <= 0:
            break
        kept_seconds += part * seconds
        left_nbytes -= nbytes
    return kept_seconds
