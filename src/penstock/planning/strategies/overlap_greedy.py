"""FlashMem's overlap plan by hand: where the solver starts from, and what is left where it finds nothing."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.planning.strategies.overlap import Overlap, Overlapped

_SHARES = (0.0, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the cap, tried for weights that are preloaded from the outset


def best_greedy(overlap: Overlap) -> Overlapped:
    """The best of a few greedy solutions: one that keeps to capacity and cap if any does, then by objective."""
    solutions = [Greedy(overlap, share).solve() for share in _SHARES]
    return min(solutions, key=lambda one: (not one.keeps(overlap), on_demand(overlap, one), one.objective(overlap)))


def on_demand(overlap: Overlap, solution: Overlapped) -> int:
    """How many stays their own calls wait for."""
    return sum(item.first in moves for item, moves in solution.pairs(overlap))


class Greedy:
    """Goes through the calls from the last one back, and always ends with a plan.

    During each call, what is needed after it moves, the stay with the fewest chunks left first. Seen backward in time
    that is shortest remaining time first, which makes the sum of distances least where nothing else binds. Where a
    stay cannot begin earlier it joins W, and where what is still to be moved has no memory the largest weight there, if
    it fits; else chunks go beyond the capacity, or are loaded on demand. The cap has to hold what one moment needs.
    """

    def __init__(self, overlap: Overlap, share: float = 0.0) -> None:
        """Begin with `share` of the cap for weights that would otherwise have to be begun long before."""
        self._overlap = overlap
        self._items = overlap.items
        self._call = len(overlap.capacity_nbytes)  # those from here on are done
        self._free = list(overlap.cap_nbytes)
        self._solution = Overlapped(moves=[{} for _ in self._items])
        self._active: dict[int, int] = {}  # stays that are still to be moved, and how many of their chunks
        self._stays: dict[int, list[int]] = {}
        for index, item in enumerate(self._items):
            self._stays.setdefault(item.weight, []).append(index)
            self._hold(range(item.first, item.last + 1), item.held_nbytes)
        limit = int(min(overlap.cap_nbytes, default=0) * share)
        for weight in self._by_cost() if share else ():
            if self._nbytes(weight) <= limit and self._fits(weight):
                limit -= self._nbytes(weight)
                self._preload(weight)

    def solve(self) -> Overlapped:
        """The solution."""
        begun: dict[int, list[int]] = {}
        for index, item in enumerate(self._items):
            if item.earliest < item.first:
                begun.setdefault(item.first - 1, []).append(index)
            elif item.weight not in self._solution.preloaded and not self._join([index]):
                self._solution.moves[index] = {item.first: item.chunks}  # there is no call before it
        for call in reversed(range(len(self._free))):
            new = [index for index in begun.get(call, ()) if self._items[index].weight not in self._solution.preloaded]
            self._active.update((index, self._items[index].chunks) for index in new)
            self._keep_cap(call)
            self._call = call
            self._move(call)
            self._end_ways(call)
        return self._solution

    def _keep_cap(self, call: int) -> None:
        """Find memory for what is to be moved during `call` or before."""
        while sum(map(self._left_nbytes, self._active)) > self._free[call]:
            if not self._join(self._active):
                index = max(self._active, key=lambda index: (self._left_nbytes(index), index))
                self._record(index, self._items[index].first, self._active[index])
        for index in self._active:
            self._hold([call], self._left_nbytes(index))

    def _move(self, call: int) -> None:
        left_nbytes = self._overlap.capacity_nbytes[call]
        for index in sorted(self._active, key=lambda index: (self._left_nbytes(index), index)):
            item = self._items[index]
            if chunks := min(self._active[index], left_nbytes // item.chunk_nbytes):
                left_nbytes -= chunks * item.chunk_nbytes
                self._record(index, call, chunks)

    def _end_ways(self, call: int) -> None:
        """Stays that cannot be begun before `call` and are not moved yet join W, or move now beyond the capacity."""
        for index in [index for index in self._active if self._items[index].earliest == call]:
            if not self._join([index]):
                self._record(index, call, self._active[index])

    def _record(self, index: int, call: int, chunks: int) -> None:
        """Move `chunks` of what is left of stay `index` during `call`: its own if on demand."""
        moves, item = self._solution.moves[index], self._items[index]
        moves[call] = moves.get(call, 0) + chunks
        self._active[index] -= chunks
        if call == item.first:
            self._hold(range(self._call, item.first), -chunks * item.chunk_nbytes)
        if not self._active[index]:
            del self._active[index]

    def _join(self, stays: Iterable[int]) -> bool:
        """Preload the largest weight of `stays` that can be in memory throughout, if there is one."""
        weights = {self._items[index].weight for index in stays}
        for weight in sorted(weights, key=lambda weight: (-self._nbytes(weight), weight)):
            if self._fits(weight):
                self._preload(weight)
                return True
        return False

    def _by_cost(self) -> Iterable[int]:
        """Weights by the distance that preloading each saves, per byte."""
        distance: dict[int, float] = {}
        for item in self._items:
            least = self._overlap.least_distance(item)
            distance[item.weight] = distance.get(item.weight, 0.0) + (1e9 if least is None else least)
        return sorted(distance, key=lambda weight: (-distance[weight] / self._nbytes(weight), weight))

    def _fits(self, weight: int) -> bool:
        """Whether `weight` can be in memory throughout."""
        nbytes = self._nbytes(weight)
        own = [0] * len(self._free)
        for index in self._stays[weight]:
            for call, held_nbytes in self._held(index):
                own[call] += held_nbytes
        return all(free + held >= nbytes for free, held in zip(self._free, own, strict=True))

    def _preload(self, weight: int) -> None:
        for index in self._stays[weight]:
            for call, nbytes in self._held(index):
                self._hold([call], -nbytes)
            self._solution.moves[index] = {}
            self._active.pop(index, None)
        self._solution.preloaded.add(weight)
        self._hold(range(len(self._free)), self._nbytes(weight))

    def _held(self, index: int) -> list[tuple[int, int]]:
        """Calls that are done, and those that need it, and what stay `index` takes during each."""
        item, moves = self._items[index], self._solution.moves[index]
        found = [(call, item.held_nbytes) for call in range(item.first, item.last + 1)]
        left = item.chunks - moves.get(item.first, 0)
        for call in range(item.first - 1, self._call - 1, -1):
            found.append((call, left * item.chunk_nbytes))
            left -= moves.get(call, 0)
        return found

    def _hold(self, calls: Iterable[int], nbytes: int) -> None:
        for call in calls:
            self._free[call] -= nbytes

    def _left_nbytes(self, index: int) -> int:
        return self._active[index] * self._items[index].chunk_nbytes

    def _nbytes(self, weight: int) -> int:
        return self._items[self._stays[weight][0]].held_nbytes
