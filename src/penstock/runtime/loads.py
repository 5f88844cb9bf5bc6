"""One load as the pipeline executes it, and which loads cannot be in memory together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.checkpoint import Piece, WeightSource
from penstock.layout import sliced
from penstock.runtime.devices.base import Expected
from penstock.runtime.events import NotedLoad

_NO_BYTES = WeightSource("uint8", (0,), ())


@dataclass(frozen=True, slots=True)
class PlannedLoad:
    """One load: bytes, address, and the extent of whole blocks that it fills.

    Attributes:
        resident: loaded once, never given up.
        staging_offset: where it goes first, on its way to `offset`; None: straight there.
        is_ebb: it brings nothing: its place is empty while others have the memory.
    """

    source: WeightSource
    offset: int
    extent_begin: int
    extent_end: int
    realign: bool
    resident: bool = False
    staging_offset: int | None = None
    is_ebb: bool = False

    @classmethod
    def ebb(cls, offset: int, nbytes: int) -> PlannedLoad:
        """What stands for an ebb among loads."""
        return cls(_NO_BYTES, offset, offset, offset + nbytes, realign=False, is_ebb=True)

    @property
    def extent_nbytes(self) -> int:
        """The bytes of its blocks."""
        return self.extent_end - self.extent_begin

    def noted(self, name: str) -> NotedLoad:
        """As events know it, under the name of its weight."""
        return NotedLoad(name, self.extent_nbytes, self.resident, self.is_ebb)


def part_of(source: WeightSource, first_byte: int, nbytes: int) -> WeightSource:
    """Bytes `first_byte` and following of `source`, as bytes."""
    pieces = sliced(source.pieces, first_byte, first_byte + nbytes)
    moved = (Piece(p.file, p.file_offset, p.nbytes, p.weight_offset - first_byte) for p in pieces)
    return WeightSource("uint8", (nbytes,), tuple(moved))


def begin_of(source: WeightSource) -> int:
    """Where in its file `source` begins, which is in one piece."""
    return min(piece.file_offset for piece in source.pieces)


def spanning(sources: Sequence[WeightSource]) -> WeightSource:
    """All bytes from the begin of the first source to the end of the last, as bytes.

    Each is in one piece of one file, and they are in its order.
    """
    begin, last = begin_of(sources[0]), sources[-1]
    nbytes = begin_of(last) + last.nbytes - begin
    return WeightSource("uint8", (nbytes,), (Piece(sources[0].pieces[0].file, begin, nbytes, 0),))


def expected(loads: Sequence[PlannedLoad], order: Sequence[int]) -> list[Expected]:
    """Those of `order` that go through staging, as a queue wants them."""
    staged = ((index, loads[index].staging_offset) for index in order)
    return [
        (index, loads[index].source, offset)
        for index, offset in staged
        if offset is not None and loads[index].source.nbytes
    ]


def conflicts(loads: Sequence[PlannedLoad]) -> list[tuple[int, ...]]:
    """For each load, the others whose extents overlap its own. O(n log n + overlaps)."""
    by_begin = sorted(range(len(loads)), key=lambda i: loads[i].extent_begin)
    found: list[list[int]] = [[] for _ in loads]
    active: list[int] = []
    for i in by_begin:
        active = [j for j in active if loads[j].extent_end > loads[i].extent_begin]
        for j in active:
            found[i].append(j)
            found[j].append(i)
        active.append(i)
    return [tuple(sorted(others)) for others in found]
