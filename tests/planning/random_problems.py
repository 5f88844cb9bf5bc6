"""Random planning problems for Hypothesis: nested calls, shared weights, odd offsets, tiny weights, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from penstock.planning import Call, Problem, Reserve, Storage, Weight
from penstock.planning.kinds import SLOWDOWNS

BLOCK = 64


@st.composite
def weights(draw: st.DrawFn, index: int) -> Weight:
    rows_only = draw(st.integers(0, 9)) == 0
    return Weight(
        name=f"w{index}",
        nbytes=draw(st.one_of(st.integers(1, 40), st.integers(1, 2000))),
        offset_in_block=draw(st.integers(0, BLOCK - 1)),
        requests=draw(st.integers(1, 3)),
        rows_only=rows_only,
        row_seconds=draw(st.sampled_from([0.0, 0.01, 5.0])) if rows_only else 0.0,
        is_moved=draw(st.integers(0, 4)) == 0,
    )


def _nested_lasts(draw: st.DrawFn, count: int) -> list[int]:
    """For each call the index of the last one within it, as a call stack leaves them."""
    lasts: list[int] = []
    open_until: list[int] = []
    for index in range(count):
        while open_until and open_until[-1] < index:
            open_until.pop()
        limit = open_until[-1] if open_until else count - 1
        last = draw(st.integers(index, limit)) if draw(st.integers(0, 4)) == 0 else index
        lasts.append(last)
        open_until.append(last)
    return lasts


def _in_one_file(items: Sequence[Weight], gap_nbytes: int) -> tuple[Weight, ...]:
    """The same weights one behind the other in a file."""
    placed, begin = [], 7
    for item in items:
        placed.append(replace(item, offset_in_block=begin % BLOCK, file=0, file_offset=begin))
        begin += item.nbytes + gap_nbytes
    return tuple(placed)


@st.composite
def problems(draw: st.DrawFn, budget_from: float = 0.0) -> Problem:
    """Problems whose budget lies between `budget_from` and 1.2 times the bytes of all weights, feasible or not."""
    items = tuple(draw(weights(index)) for index in range(draw(st.integers(1, 14))))
    if draw(st.booleans()):
        items = _in_one_file(items, draw(st.sampled_from([0, 3, 500])))
    lasts = _nested_lasts(draw, draw(st.integers(1, 16)))
    reserve = Reserve(draw(st.integers(0, 300)), draw(st.integers(0, 100)), draw(st.integers(0, 100)))
    calls = tuple(
        Call(
            name=f"c{index}",
            seconds=draw(st.sampled_from([0.0, 0.1, 0.5, 2.0])),
            reads=tuple(draw(st.lists(st.integers(0, len(items) - 1), max_size=3, unique=True))),
            last=last,
            activations_nbytes=draw(st.sampled_from([0, reserve.activations_nbytes // 2, reserve.activations_nbytes])),
            kind=draw(st.sampled_from(sorted(SLOWDOWNS))),
            load_nbytes=draw(st.sampled_from([None, 0, 300, 5000])),
        )
        for index, last in enumerate(lasts)
    )
    total_nbytes = sum(item.nbytes + 2 * BLOCK for item in items)
    share = draw(st.floats(budget_from, 1.2))
    return Problem(
        weights=items,
        calls=calls,
        storage=Storage(
            draw(st.sampled_from([500.0, 2000.0, 20000.0])),
            draw(st.sampled_from([0.0, 0.01])),
            BLOCK,
            load_compute_seconds=draw(st.sampled_from([0.0, 0.0, 0.02])),
            read_compute_share=draw(st.sampled_from([0.0, 0.0, 0.125])),
            copy_compute_share=draw(st.sampled_from([0.0, 0.0, 0.5])),
            regain_bytes_per_second=draw(st.sampled_from([3000.0, 1e10])),
            page_nbytes=draw(st.sampled_from([BLOCK, 3 * BLOCK])),
        ),
        budget_nbytes=1 + reserve.total_nbytes + int(share * total_nbytes),
        reserve=reserve,
        fingerprint="random",
        tiny_nbytes=draw(st.sampled_from([0, 30, 300])),
    )


def chain(
    sizes: list[int],
    seconds: list[float],
    budget_nbytes: int,
    *,
    bytes_per_second: float = 1e9,
    block_nbytes: int = 512,
    tiny_nbytes: int = 0,
) -> Problem:
    """One weight per call, no nesting, no request time and no reserve."""
    return Problem(
        weights=tuple(Weight(f"w{index}", nbytes) for index, nbytes in enumerate(sizes)),
        calls=tuple(Call(f"c{index}", each, (index,), index) for index, each in enumerate(seconds)),
        storage=Storage(bytes_per_second, 0.0, block_nbytes),
        budget_nbytes=budget_nbytes,
        reserve=Reserve(0, 0, 0),
        fingerprint="chain",
        tiny_nbytes=tiny_nbytes,
    )
