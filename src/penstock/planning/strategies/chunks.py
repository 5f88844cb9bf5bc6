"""Loads of parts of a weight: each part as soon as its own space is free.

A weight that is placed where several others lay before finds its space free piece by piece. Brought in one load, it
would wait for the last of them; in parts, the stream never waits for more than it is about to write, as in the circular
buffer of Ji et al., "Demand Layering", RTSS 2022. So the streaming region needs little more than the layer that
computes and what storage brings meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.planning.ebbs import NOTHING
from penstock.planning.lifetimes import Use
from penstock.planning.plan import Load
from penstock.planning.problem import Problem

LEAST_NBYTES = 1 << 20
"""Parts are no smaller: each costs the same to begin, and less than this takes storage as long to find as to read."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `begin` to `end`, whole blocks, of the extent of use number `use`, which may come after `moment`."""

    use: int
    begin: int
    end: int
    moment: int


def split(
    problem: Problem, uses: Sequence[Use], starts: Sequence[int], parts: Sequence[Sequence[tuple[int, int]]]
) -> list[Chunk]:
    """The loads of uses that lie at `starts`, whose space is free in `parts` (see `ring.release_parts`), in order."""
    chunks: list[Chunk] = []
    for index, (use, start, pieces) in enumerate(zip(uses, starts, parts, strict=True)):
        if use.weight == NOTHING:
            continue
        if len(pieces) == 1 or problem.weights[use.weight].is_moved:
            chunks.append(Chunk(index, 0, pieces[-1][0] - start, max(moment for _, moment in pieces)))
        else:
            chunks += _joined(index, start, pieces)
    return chunks


def whole(uses: Sequence[Use], extents: Sequence[int], moments: Sequence[int]) -> list[Chunk]:
    """One load for each use that is no ebb."""
    return [
        Chunk(index, 0, nbytes, moment)
        for index, (use, nbytes, moment) in enumerate(zip(uses, extents, moments, strict=True))
        if use.weight != NOTHING
    ]


def list_loads(problem: Problem, uses: Sequence[Use], starts: Sequence[int], chunks: Sequence[Chunk]) -> list[Load]:
    """`chunks` as loads of a plan."""
    return [_load(problem, uses[chunk.use], starts[chunk.use], chunk) for chunk in chunks]


def _load(problem: Problem, use: Use, start: int, chunk: Chunk) -> Load:
    weight = problem.weights[use.weight]
    first_byte = max(0, chunk.begin - weight.offset_in_block)
    return Load(
        weight=use.weight,
        offset=start + weight.offset_in_block,
        first_call=use.first,
        last_call=use.last,
        after_call=chunk.moment if chunk.moment >= 0 else chunk.moment + len(problem.calls),
        after_pass=0 if chunk.moment >= 0 else -1,
        first_byte=first_byte,
        nbytes=min(weight.nbytes, chunk.end - weight.offset_in_block) - first_byte,
    )


def _joined(use: int, start: int, pieces: Sequence[tuple[int, int]]) -> list[Chunk]:
    """Chunks of one use: neighbouring pieces together until they are large enough, the earliest first."""
    ends, moments = [0], list[int]()
    for end, moment in pieces:
        if moments and (moment == moments[-1] or ends[-1] - ends[-2] < LEAST_NBYTES):
            ends[-1], moments[-1] = end - start, max(moments[-1], moment)
        else:
            ends.append(end - start)
            moments.append(moment)
    if len(moments) > 1 and ends[-1] - ends[-2] < LEAST_NBYTES:
        del ends[-2]
        moments[-2:] = [max(moments[-2:])]
    chunks = [Chunk(use, begin, end, moment) for begin, end, moment in zip(ends, ends[1:], moments, strict=False)]
    return sorted(chunks, key=lambda chunk: (chunk.moment, chunk.begin))
