"""SwapNet's partition: layers in order, cut into blocks of which two are in memory.

Wang et al., "SwapNet", IEEE TMC 2024 (arXiv 2401.16757). A block i takes t_in[i] = a bytes + b requests to swap in and
t_ex[i] to execute; swapping it out drops references, t_out = 0 here, as that is part of what calls are measured to
take. With s[i] + s[i+1] within the budget, the exposed delay is
t_in[0] + sum of max(0, t_in[i+1] + t_out[i-1] - t_ex[i]).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from penstock.planning.costs import row_stalls
from penstock.planning.lifetimes import Use
from penstock.planning.problem import Problem

_Floats = npt.NDArray[np.float64]
_MOST_CELLS = 1_000_000  # of the table that the search for cuts fills for each number of blocks
_PATIENCE = 12  # numbers of blocks without a better one, after which the search ends


@dataclass(frozen=True, slots=True)
class Unit:
    """Calls `first` to `last` that cannot be cut, and the weights that stream in them, in order of first use."""

    first: int
    last: int
    weights: tuple[int, ...]


def list_units(problem: Problem, uses: Sequence[Use]) -> list[Unit]:
    """The smallest blocks: every stay lies in one of them, and each streams something."""
    units: list[Unit] = []
    for use in uses:  # in order of first call
        if units and use.first <= units[-1].last:
            before = units[-1]
            weights = tuple(dict.fromkeys((*before.weights, use.weight)))
            units[-1] = Unit(before.first, max(before.last, use.last), weights)
        else:
            units.append(Unit(use.first, use.last, (use.weight,)))
    ends = [unit.first - 1 for unit in units[1:]] + [len(problem.calls) - 1]
    begins = [0, *(end + 1 for end in ends)]
    return [Unit(begin, end, unit.weights) for begin, end, unit in zip(begins, ends, units, strict=False)]


class Partition:
    """Ways of cutting units into blocks such that any two that follow one another fit `limit_nbytes`.

    A cut is the unit with which a block begins; the first one's, 0, is left out.
    """

    def __init__(self, problem: Problem, units: Sequence[Unit], rows: Sequence[int], limit_nbytes: int) -> None:
        self._problem, self._units, self.limit_nbytes = problem, units, limit_nbytes
        calls = zip(problem.calls, row_stalls(problem, rows), strict=True)
        until = list(accumulate((call.seconds + stall for call, stall in calls), initial=0.0))
        self._executed = [until[unit.first] for unit in units] + [until[-1]]

    def sizes(self, begin: int) -> Iterator[int]:
        """What blocks that begin with unit `begin` take, one unit longer each time, while one fits."""
        seen: set[int] = set()
        nbytes = 0
        for unit in self._units[begin:]:
            new = [weight for weight in unit.weights if weight not in seen]
            seen.update(new)
            nbytes += sum(self._problem.extent_nbytes(weight) for weight in new)
            if nbytes > self.limit_nbytes:
                return
            yield nbytes

    def any_cuts(self) -> list[int] | None:
        """Some cuts that fit, or None if there are none.

        Of all ways to cut what comes before a unit, the one whose last block takes least leaves most to the next.
        """
        count = len(self._units)
        least: list[int | None] = [0] + [None] * count
        begun = [0] * (count + 1)
        for begin in range(count):
            before = least[begin]
            for length, nbytes in enumerate(self.sizes(begin) if before is not None else (), start=1):
                if before is None or before + nbytes > self.limit_nbytes:
                    break
                known = least[begin + length]
                if known is None or nbytes < known:
                    least[begin + length], begun[begin + length] = nbytes, begin
        if least[count] is None:
            return None
        cuts, end = [], count
        while end:
            end = begun[end]
            cuts.append(end)
        return cuts[-2::-1]

    def tabulate(self) -> list[tuple[float, list[int]]]:
        """For each number of blocks, as far as more of them help, the least exposed delay in seconds and its cuts."""
        sizes, loading = self._blocks()
        costs = self._costs(sizes, loading)
        count, longest = sizes.shape
        lengths = np.arange(1, longest + 1)
        before = np.arange(count)[:, None] - lengths[None, :]  # where a block of that length begins that ends here
        exposed = np.full_like(sizes, np.inf)
        exposed[0] = loading[0]
        ways: list[npt.NDArray[np.int16]] = []
        found: list[tuple[float, list[int]]] = []
        last = [(begin, count - begin - 1) for begin in range(max(0, count - longest), count)]
        best, waited = np.inf, 0
        while len(ways) < count - 1 and waited < _PATIENCE:
            arriving = np.where(before >= 0, exposed[before, lengths[None, :] - 1], np.inf)
            totals = arriving[:, :, None] + costs
            ways.append(totals.argmin(axis=1).astype(np.int16))
            exposed = totals.min(axis=1)
            seconds, begin = min((float(exposed[block]), block[0]) for block in last)
            if np.isfinite(seconds):
                found.append((seconds, self._trace(ways, begin, count - begin - 1)))
                best, waited = (seconds, 0) if seconds < best else (best, waited + 1)
        return found

    def _blocks(self) -> tuple[_Floats, _Floats]:
        """Bytes and seconds of loading of each block, by first unit and length less one; infinite where none fits."""
        count = len(self._units)
        rows = [list(self.sizes(begin)) for begin in range(count)]
        longest = max(1, min(max(map(len, rows), default=1), int((_MOST_CELLS / count) ** 0.5)))
        sizes, loading = np.full((count, longest), np.inf), np.full((count, longest), np.inf)
        for begin, row in enumerate(rows):
            seen: set[int] = set()
            seconds = 0.0
            for length, nbytes in enumerate(row[:longest]):
                new = set(self._units[begin + length].weights) - seen
                seen |= new
                seconds += sum(self._problem.load_seconds(weight) for weight in new)
                sizes[begin, length], loading[begin, length] = nbytes, seconds
        return sizes, loading

    def _costs(self, sizes: _Floats, loading: _Floats) -> _Floats:
        """What a block exposes after another, by its first unit, the other's length less one, and its own."""
        count, longest = sizes.shape
        executed = np.array(self._executed)
        begins = np.arange(count)[:, None] - np.arange(1, longest + 1)[None, :]
        other = np.where(begins >= 0, sizes[begins, np.arange(longest)[None, :]], np.inf)
        hidden = executed[:count, None] - executed[begins]
        costs = np.maximum(0.0, loading[:, None, :] - hidden[:, :, None])
        return np.where(other[:, :, None] + sizes[:, None, :] <= self.limit_nbytes, costs, np.inf)

    def _trace(self, ways: Sequence[npt.NDArray[np.int16]], begin: int, length: int) -> list[int]:
        cuts = []
        for way in reversed(ways):
            cuts.append(begin)
            before = int(way[begin, length])
            begin, length = begin - before - 1, before
        return cuts[::-1]


def exposed_seconds(loading: Sequence[float], executing: Sequence[float]) -> float:
    """The paper's exposed delay of blocks that take so long to swap in and to execute."""
    waits = (after - during for during, after in zip(executing, loading[1:], strict=False))
    return loading[0] + sum(max(0.0, wait) for wait in waits) if loading else 0.0


def cut_blocks(units: Sequence[Unit], cuts: Sequence[int]) -> list[Unit]:
    """The blocks: units together, from cut to cut."""
    bounds = [0, *cuts, len(units)]
    return [
        Unit(
            units[begin].first,
            units[end - 1].last,
            tuple(dict.fromkeys(weight for unit in units[begin:end] for weight in unit.weights)),
        )
        for begin, end in pairwise(bounds)
    ]
