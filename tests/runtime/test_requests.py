"""Reads bring exactly a weight's bytes, whatever pieces it is made of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.checkpoint import Piece, WeightSource
from penstock.runtime.requests import ReadRequest, bounce_nbytes, coalesced, read_requests

BLOCK = 16
FILES = [bytes((7 * i + file) % 251 for i in range(1000 + 13 * file)) for file in range(3)]


@st.composite
def sources(draw: st.DrawFn) -> WeightSource:
    pieces, offset = [], 0
    for _ in range(draw(st.integers(0, 6))):
        file = draw(st.integers(0, 2))
        begin = draw(st.integers(0, len(FILES[file]) - 1))
        nbytes = draw(st.integers(0, min(200, len(FILES[file]) - begin)))
        pieces.append(Piece(file, begin, nbytes, offset))
        offset += nbytes
        if draw(st.booleans()) and begin + 2 * nbytes < len(FILES[file]):  # a neighbour that can be read along
            pieces.append(Piece(file, begin + nbytes, nbytes, offset))
            offset += nbytes
    return WeightSource("uint8", (offset,), tuple(draw(st.permutations(pieces))))


def expected(source: WeightSource) -> bytes:
    content = bytearray(source.nbytes)
    for piece in source.pieces:
        data = FILES[piece.file][piece.file_offset : piece.file_offset + piece.nbytes]
        content[piece.weight_offset : piece.weight_offset + piece.nbytes] = data
    return bytes(content)


def execute(requests: list[ReadRequest], arena: bytearray) -> None:
    """What a device does with them; reading past the end of a file brings nothing, so 0xEE stays."""
    for request in requests:
        assert request.file_offset % BLOCK == 0
        assert request.nbytes % BLOCK == 0
        available = FILES[request.file][request.file_offset : request.file_offset + request.nbytes]
        assert len(available) >= request.needed_nbytes
        block = available + b"\xee" * (request.nbytes - len(available))
        if request.skip_nbytes is None:
            assert request.arena_offset % BLOCK == 0
            arena[request.arena_offset : request.arena_offset + request.nbytes] = block
        else:
            kept = block[request.skip_nbytes : request.needed_nbytes]
            arena[request.arena_offset : request.arena_offset + len(kept)] = kept


@given(source=sources(), before=st.integers(0, 3), limit=st.integers(1, 5))
def test_requests_assemble_the_weight_within_its_extent(source: WeightSource, before: int, limit: int) -> None:
    pieces = coalesced(source.pieces)
    lead = pieces[0].file_offset % BLOCK if pieces else 0
    offset = before * BLOCK + lead
    end = -(-(offset + source.nbytes) // BLOCK) * BLOCK
    arena = bytearray(b"\xdd" * (end + 3 * BLOCK))
    requests = read_requests(source, offset, block_nbytes=BLOCK, read_nbytes=limit * BLOCK)
    execute(requests, arena)
    assert bytes(arena[offset : offset + source.nbytes]) == expected(source)
    assert set(arena[: before * BLOCK]) <= {0xDD}, "bytes before the extent were touched"
    assert set(arena[end:]) <= {0xDD}, "bytes after the extent were touched"
    assert all(request.nbytes <= limit * BLOCK for request in requests if request.skip_nbytes is None)


@given(source=sources(), limit=st.integers(1, 5))
def test_a_bounce_buffer_is_as_large_as_said(source: WeightSource, limit: int) -> None:
    pieces = coalesced(source.pieces)
    lead = pieces[0].file_offset % BLOCK if pieces else 0
    requests = read_requests(source, lead, block_nbytes=BLOCK, read_nbytes=limit * BLOCK)
    bounced = [request.nbytes for request in requests if request.skip_nbytes is not None]
    assert max(bounced, default=0) == bounce_nbytes(source, block_nbytes=BLOCK, read_nbytes=limit * BLOCK)


@given(offset=st.integers(0, 300), nbytes=st.integers(1, 300))
def test_a_weight_in_one_piece_goes_straight_to_its_place(offset: int, nbytes: int) -> None:
    source = WeightSource("uint8", (nbytes,), (Piece(0, offset, nbytes, 0),))
    requests = read_requests(source, offset % BLOCK, block_nbytes=BLOCK, read_nbytes=4 * BLOCK)
    assert all(request.skip_nbytes is None for request in requests)


@given(source=sources())
def test_neighbours_are_read_together_and_nothing_is_lost(source: WeightSource) -> None:
    merged = coalesced(source.pieces)
    assert sum(piece.nbytes for piece in merged) == source.nbytes
    assert all(piece.nbytes for piece in merged)
    again = coalesced(tuple(merged))
    assert again == merged
