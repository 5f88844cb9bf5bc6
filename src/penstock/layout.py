"""Byte pieces of a row-major weight under reshape, concatenation and slicing: plain arithmetic, no tensor."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

from penstock.checkpoint import Piece

MAX_PIECES = 65536
"""More pieces than this in one weight: reading it in place costs more requests than it is worth."""


class ScatteredError(Exception):
    """A layout whose bytes lie in too many small pieces to be read in place."""


def joined(parts: Iterable[Sequence[Piece]]) -> tuple[Piece, ...]:
    """The pieces of `parts` laid one after another, neighbours in one file merged."""
    result: list[Piece] = []
    position = 0
    for part in parts:
        for piece in part:
            last = result[-1] if result else None
            if last and last.file == piece.file and last.file_offset + last.nbytes == piece.file_offset:
                result[-1] = replace(last, nbytes=last.nbytes + piece.nbytes)
            elif len(result) == MAX_PIECES:
                raise ScatteredError
            else:
                result.append(replace(piece, weight_offset=position))
            position += piece.nbytes
    return tuple(result)


def sliced(pieces: Sequence[Piece], begin: int, end: int) -> list[Piece]:
    """The pieces of bytes `begin` to `end` of a weight; their `weight_offset` still counts from the whole weight."""
    result = []
    first = bisect_right(pieces, begin, key=lambda piece: piece.weight_offset) - 1
    for index in range(max(first, 0), len(pieces)):
        piece = pieces[index]
        if piece.weight_offset >= end:
            break
        skip = max(begin - piece.weight_offset, 0)
        nbytes = min(end - piece.weight_offset, piece.nbytes) - skip
        if nbytes > 0:
            result.append(Piece(piece.file, piece.file_offset + skip, nbytes, piece.weight_offset + skip))
    return result


def concatenated(
    weights: Sequence[tuple[tuple[Piece, ...], tuple[int, ...]]], dim: int, itemsize: int
) -> tuple[Piece, ...]:
    """The pieces of weights, each given as (pieces, shape), concatenated along `dim`.

    Raises:
        ScatteredError: they are too many.
    """
    outer = prod(weights[0][1][:dim])
    if outer * len(weights) > MAX_PIECES:
        raise ScatteredError
    rows = [(pieces, prod(shape[dim:]) * itemsize) for pieces, shape in weights]
    return joined(sliced(pieces, row * nbytes, (row + 1) * nbytes) for row in range(outer) for pieces, nbytes in rows)


def narrowed(
    pieces: tuple[Piece, ...], shape: tuple[int, ...], dim: int, start: int, length: int, itemsize: int
) -> tuple[Piece, ...]:
    """The pieces of `length` indices from `start` on along `dim` of a weight of `shape`.

    Raises:
        ScatteredError: they are too many.
    """
    outer = prod(shape[:dim])
    if outer > MAX_PIECES:
        raise ScatteredError
    inner = prod(shape[dim + 1 :]) * itemsize
    row = shape[dim] * inner
    spans = ((index * row + start * inner, index * row + (start + length) * inner) for index in range(outer))
    return joined(sliced(pieces, begin, end) for begin, end in spans)
