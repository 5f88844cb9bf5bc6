"""Addresses for FlashMem's moves, and the loads that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.planning.lifetimes import Use
from penstock.planning.plan import Load
from penstock.planning.problem import Problem
from penstock.planning.ring import place_earliest, place_stack, release_moments
from penstock.planning.strategies.overlap import Item, Moves

_SIZES = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)  # times the bytes in memory at once: what the region may take, tried in turn


def lay_out_moves(
    problem: Problem, streamed: Sequence[tuple[Item, Moves]], least_nbytes: int, limit_nbytes: int
) -> tuple[list[Load], int, int]:
    """Loads in order of begin, the region that they take, and how many have to begin later than planned.

    The plan counts bytes, `least_nbytes` at once; an address also takes that they lie together. Where that frees a
    place later than planned, the load waits for it. The region is no larger than keeps most loads from waiting.
    """
    block = problem.storage.block_nbytes
    sizes = {min(-(-int(least_nbytes * size) // block) * block, limit_nbytes) for size in _SIZES}
    layouts = [_lay_out(problem, streamed, nbytes) for nbytes in sorted({*sizes, limit_nbytes})]
    return min(layouts, key=lambda layout: layout[2])


def _lay_out(
    problem: Problem, streamed: Sequence[tuple[Item, Moves]], region_nbytes: int
) -> tuple[list[Load], int, int]:
    count = len(problem.calls)
    uses, extents = [_use(item) for item, _ in streamed], [problem.extent_nbytes(item.weight) for item, _ in streamed]
    starts = place_earliest(uses, extents, region_nbytes, count) or place_stack(uses, extents)
    region_nbytes = max((start + nbytes for start, nbytes in zip(starts, extents, strict=True)), default=0)
    placed = zip(streamed, starts, strict=True)
    pieces = [piece for (item, moves), start in placed for piece in _cut(problem, item, moves, start)]
    moments = release_moments(
        [_use(piece.item) for piece in pieces],
        [piece.end - piece.begin for piece in pieces],
        [piece.start + piece.begin for piece in pieces],
        region_nbytes,
        count,
    )
    waits = [max(piece.call - 1, moment) for piece, moment in zip(pieces, moments, strict=True)]
    order = sorted(range(len(pieces)), key=lambda index: (waits[index], pieces[index].item.first, index))
    late = sum(wait >= piece.call for wait, piece in zip(waits, pieces, strict=True))
    return [_to_load(problem, pieces[index], waits[index]) for index in order], region_nbytes, late


@dataclass(frozen=True, slots=True)
class _Piece:
    """Chunks of one stay that move together: bytes `begin` to `end` of its extent, which is at `start`."""

    item: Item
    call: int
    start: int
    begin: int
    end: int


def _cut(problem: Problem, item: Item, moves: Moves, start: int) -> list[_Piece]:
    pieces, chunk = [], 0
    for call in sorted(moves):
        begin, chunk = chunk * item.chunk_nbytes, chunk + moves[call]
        end = min(chunk * item.chunk_nbytes, problem.extent_nbytes(item.weight))
        pieces.append(_Piece(item, call, start, begin, end))
    return pieces


def _to_load(problem: Problem, piece: _Piece, wait: int) -> Load:
    weight = problem.weights[piece.item.weight]
    first_byte = max(0, piece.begin - weight.offset_in_block)
    return Load(
        weight=piece.item.weight,
        offset=piece.start + weight.offset_in_block,
        first_call=piece.item.first,
        last_call=piece.item.last,
        after_call=wait if wait >= 0 else len(problem.calls) - 1,
        after_pass=0 if wait >= 0 else -1,
        first_byte=first_byte,
        nbytes=min(piece.end - weight.offset_in_block, weight.nbytes) - first_byte,
    )


def _use(item: Item) -> Use:
    return Use(item.weight, item.first, item.last)
