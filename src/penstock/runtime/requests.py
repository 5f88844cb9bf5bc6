"""Which reads bring one weight into the arena: a pure function from its source and address.

Direct I/O moves whole blocks between block-aligned places, so a read may go straight to its final address
only where file offset and address are congruent modulo the block. A weight that lies in one piece is placed
congruently by its plan, and its extent owns the blocks at both ends. A weight stacked from several pieces
shares blocks between neighbours: its whole blocks still go straight there, the partial ones and any
incongruent piece go through a small bounce buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.checkpoint import Piece, WeightSource


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """One read of whole blocks.

    Attributes:
        file: index of the file in its checkpoint.
        file_offset: where to read, a multiple of the block.
        nbytes: how much, a multiple of the block; the end of the file may cut it short.
        needed_nbytes: how much of it must arrive.
        arena_offset: where in the arena the bytes belong; with `skip_nbytes` set, where the kept bytes belong.
        skip_nbytes: None to read straight to the arena; else bounce, and drop that many leading bytes.
    """

    file: int
    file_offset: int
    nbytes: int
    needed_nbytes: int
    arena_offset: int
    skip_nbytes: int | None = None


def coalesced(pieces: tuple[Piece, ...]) -> list[Piece]:
    """`pieces` in weight order, neighbours that also lie side by side in their file made one."""
    merged: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: p.weight_offset):
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.file == piece.file
            and last.file_offset + last.nbytes == piece.file_offset
            and last.weight_offset + last.nbytes == piece.weight_offset
        ):
            merged[-1] = Piece(last.file, last.file_offset, last.nbytes + piece.nbytes, last.weight_offset)
        elif piece.nbytes:
            merged.append(piece)
    return merged


def read_requests(source: WeightSource, arena_offset: int, *, block_nbytes: int, read_nbytes: int) -> list[ReadRequest]:
    """The reads that put `source` at `arena_offset`, none larger than `read_nbytes` (a multiple of the block)."""
    pieces = coalesced(source.pieces)
    if len(pieces) == 1 and (arena_offset - pieces[0].file_offset) % block_nbytes == 0:
        return list(_owned_extent(pieces[0], arena_offset, block_nbytes, read_nbytes))
    return [request for piece in pieces for request in _shared_extent(piece, arena_offset, block_nbytes, read_nbytes)]


def bounce_nbytes(source: WeightSource, *, block_nbytes: int, read_nbytes: int) -> int:
    """The largest bounce buffer that reading `source` takes when its first piece is placed congruently."""
    pieces = coalesced(source.pieces)
    offset = pieces[0].file_offset % block_nbytes if pieces else 0
    requests = read_requests(source, offset, block_nbytes=block_nbytes, read_nbytes=read_nbytes)
    return max((r.nbytes for r in requests if r.skip_nbytes is not None), default=0)


def _owned_extent(piece: Piece, arena_offset: int, block: int, limit: int) -> Iterator[ReadRequest]:
    lead = piece.file_offset % block
    start, needed_end = piece.file_offset - lead, piece.file_offset + piece.nbytes
    end = -(-needed_end // block) * block
    for at in range(start, end, limit):
        stop = min(at + limit, end)
        yield ReadRequest(piece.file, at, stop - at, min(stop, needed_end) - at, arena_offset - lead + at - start)


def _shared_extent(piece: Piece, arena_offset: int, block: int, limit: int) -> Iterator[ReadRequest]:
    target = arena_offset + piece.weight_offset
    begin, end = piece.file_offset, piece.file_offset + piece.nbytes
    shift = target - begin
    if shift % block:
        yield from _bounced(piece.file, begin, end, shift, block, limit)
        return
    inner_begin, inner_end = -(-begin // block) * block, end // block * block
    if inner_begin >= inner_end:
        yield from _bounced(piece.file, begin, end, shift, block, limit)
        return
    yield from _bounced(piece.file, begin, inner_begin, shift, block, limit)
    for at in range(inner_begin, inner_end, limit):
        stop = min(at + limit, inner_end)
        yield ReadRequest(piece.file, at, stop - at, stop - at, at + shift)
    yield from _bounced(piece.file, inner_end, end, shift, block, limit)


def _bounced(file: int, begin: int, end: int, shift: int, block: int, limit: int) -> Iterator[ReadRequest]:
    at = begin
    while at < end:
        start = at // block * block
        stop = min(end, start + limit)
        nbytes = -(-stop // block) * block - start
        yield ReadRequest(file, start, nbytes, stop - start, at + shift, skip_nbytes=at - start)
        at = stop
