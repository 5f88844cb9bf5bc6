"""FlashMem's overlap plan in plain numbers: which chunk of which weight moves during which call.

Shu et al., "FlashMem", ASPLOS 2026 (arXiv 2602.15379), overlap plan generation. What differs here: bytes count against
the cap for as long as they are in memory, not only while they move; and a weight that is read again later in a pass is
moved again, each stay by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

Moves = dict[int, int]
"""Chunks of one stay, by the call during which they move. During the stay's own first call: on demand, it waits."""


@dataclass(frozen=True, slots=True)
class Item:
    """A stay of a weight: `chunks` of `chunk_nbytes`, whole blocks, the last one maybe smaller.

    Calls `first` to `last` need it, and it may be moved from call `earliest` on.
    """

    weight: int
    first: int
    last: int
    earliest: int
    chunks: int
    chunk_nbytes: int

    @property
    def held_nbytes(self) -> int:
        """What it counts once it is there: whole chunks."""
        return self.chunks * self.chunk_nbytes


@dataclass(frozen=True)
class Overlap:
    """The problem.

    Attributes:
        items: in order of first call.
        capacity_nbytes: C, what may be moved during each call.
        cap_nbytes: M_peak, what may be in memory during each call.
        lam: lambda, the cost of a preloaded weight. The rest of 1 is the cost of each call between the begin
            of a stay's first move and the call that needs it.
    """

    items: tuple[Item, ...]
    capacity_nbytes: tuple[int, ...]
    cap_nbytes: tuple[int, ...]
    lam: float

    def relaxed(self, factor: float | None) -> Overlap:
        """With `factor` times the load capacity, or without a limit to it."""
        total_nbytes = sum(item.held_nbytes for item in self.items)
        capacity = (total_nbytes if factor is None else int(nbytes * factor) for nbytes in self.capacity_nbytes)
        return replace(self, capacity_nbytes=tuple(capacity))

    def held_by(self) -> dict[int, int]:
        """What each weight takes when it is preloaded."""
        return {item.weight: item.held_nbytes for item in self.items}

    def most_chunks(self, item: Item, call: int) -> int:
        """The most chunks of `item` that can move during `call`."""
        return min(item.chunks, self.capacity_nbytes[call] // item.chunk_nbytes)

    def least_distance(self, item: Item) -> int | None:
        """The fewest calls that `item` can be begun before its own; None where they do not suffice."""
        possible = 0
        for call in range(item.first - 1, item.earliest - 1, -1):
            possible += self.most_chunks(item, call)
            if possible >= item.chunks:
                return item.first - call
        return None

    def least_objective(self) -> float:
        """What no solution can beat: every weight by itself at its cheapest."""
        streamed: dict[int, float] = {}
        for item in self.items:
            distance = self.least_distance(item)
            cost = float("inf") if distance is None else (1 - self.lam) * distance
            streamed[item.weight] = streamed.get(item.weight, 0.0) + cost
        return sum(min(self.lam, cost) for cost in streamed.values())

    def is_hopeless(self) -> bool:
        """Whether what cannot be preloaded is more than can be moved: there is no solution."""
        left_nbytes = sum(self.held_by().values()) - min(self.cap_nbytes, default=0)
        return left_nbytes > sum(self.capacity_nbytes)


@dataclass
class Overlapped:
    """A solution: the weights W that are preloaded, and the moves of every item, none for those of W."""

    preloaded: set[int] = field(default_factory=set)
    moves: list[Moves] = field(default_factory=list)

    def pairs(self, overlap: Overlap) -> Iterator[tuple[Item, Moves]]:
        """Every item with its moves."""
        return zip(overlap.items, self.moves, strict=True)

    def objective(self, overlap: Overlap) -> float:
        """Return lambda |W| + (1 - lambda) sum(i_w - z_w), as printed."""
        distance = sum(item.first - min(moves) for item, moves in self.pairs(overlap) if moves)
        return overlap.lam * len(self.preloaded) + (1 - overlap.lam) * distance

    def held_nbytes(self, overlap: Overlap) -> list[int]:
        """What is in memory during each call."""
        held_by = overlap.held_by()
        change = [0] * (len(overlap.capacity_nbytes) + 1)
        change[0] = sum(held_by[weight] for weight in self.preloaded)
        for item, moves in self.pairs(overlap):
            for call, chunks in moves.items():
                change[call] += chunks * item.chunk_nbytes
            change[item.last + 1] -= sum(moves.values()) * item.chunk_nbytes
        return list(accumulate(change))[:-1]

    def moved_nbytes(self, overlap: Overlap) -> list[int]:
        """What is moved during each call."""
        moved = [0] * len(overlap.capacity_nbytes)
        for item, moves in self.pairs(overlap):
            for call, chunks in moves.items():
                moved[call] += chunks * item.chunk_nbytes
        return moved

    def keeps(self, overlap: Overlap) -> bool:
        """Whether it is a solution as the paper wants it: all moved, before its call, within capacity and cap."""
        pairs = list(self.pairs(overlap))
        return (
            all(sum(moves.values()) == item.chunks * (item.weight not in self.preloaded) for item, moves in pairs)
            and all(item.earliest <= call < item.first for item, moves in pairs for call in moves)
            and _is_within(self.moved_nbytes(overlap), overlap.capacity_nbytes)
            and _is_within(self.held_nbytes(overlap), overlap.cap_nbytes)
        )


def _is_within(nbytes: Sequence[int], limits: Sequence[int]) -> bool:
    return all(one <= limit for one, limit in zip(nbytes, limits, strict=True))
