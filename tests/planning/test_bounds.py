"""What no plan can beat, against every plan of tiny problems."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from penstock.planning import Call, Problem, Reserve, Storage, Weight, check
from penstock.planning.bounds import least_cold_seconds, least_warm_seconds
from penstock.planning.joining import JOIN_NBYTES, Join, join, joinable
from penstock.planning.strategies.optimal import Optimal

from .tiny_oracle import best_buffered, best_placed

ROUNDING = 1 + 1e-9


@st.composite
def tiny_problems(draw: st.DrawFn, *, sliceable: bool, in_one_file: bool = False) -> Problem:
    """Two to five weights of one to three blocks, leaf calls, any budget; times are short binary fractions."""
    block = draw(st.sampled_from([512, 1 << 20]))  # of a megabyte, loads may come in parts
    weights = []
    for index in range(draw(st.integers(2, 4 if sliceable else 5))):
        blocks = draw(st.integers(1, 3))
        rows = blocks if sliceable and draw(st.booleans()) else 1
        weight = Weight(f"w{index}", blocks * block, requests=draw(st.integers(0, 2)), rows=rows)
        begin = sum(before.nbytes for before in weights)
        weights.append(replace(weight, file=0, file_offset=begin) if in_one_file else weight)
    reads = draw(_reads(weights))
    calls = [
        Call(
            f"c{index}",
            draw(st.integers(0, 48)) / 16,
            read,
            index,
            activations_nbytes=draw(st.sampled_from([0, 0, block, block // 2])),
        )
        for index, read in enumerate(reads)
    ]
    sizes = {weight: weights[weight].nbytes // block for read in reads for weight in read}
    least = max(sum(1 if weights[weight].rows > 1 else sizes[weight] for weight in read) for read in reads)
    arena_nbytes = draw(st.integers(2 * least, 2 * sum(sizes.values()))) * block // 2
    activations_nbytes = max(call.activations_nbytes for call in calls)
    storage = Storage(
        bytes_per_second=block * draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])),
        request_seconds=draw(st.sampled_from([0.0, 0.25])),
        block_nbytes=block,
        load_compute_seconds=draw(st.sampled_from([0.0, 0.0, 0.125, 1.0])),
        read_compute_share=draw(st.sampled_from([0.0, 0.0, 0.125, 0.5])),
    )
    return Problem(
        weights=tuple(weights),
        calls=tuple(calls),
        storage=storage,
        budget_nbytes=arena_nbytes + activations_nbytes + 300,
        reserve=Reserve(activations_nbytes, 200, 100),
        fingerprint="tiny",
        tiny_nbytes=0,
        slice_seconds=draw(st.sampled_from([0.0, 0.0625])),
    )


@st.composite
def _reads(draw: st.DrawFn, weights: list[Weight]) -> list[tuple[int, ...]]:
    """What each of two to six calls reads: every weight once, the first one perhaps twice; one sliceable at most."""
    wanted = [*range(len(weights)), *([0] if len(weights) < 5 and draw(st.booleans()) else [])]
    reads: list[list[int]] = [[] for _ in range(draw(st.integers(2, 6)))]
    for weight in wanted:
        free = [
            read
            for read in reads
            if weight not in read and not (weights[weight].rows > 1 and any(weights[other].rows > 1 for other in read))
        ]
        assume(free)
        draw(st.sampled_from(free)).append(weight)
    return [tuple(read) for read in reads]


@given(tiny_problems(sliceable=False) | tiny_problems(sliceable=True))
@settings(max_examples=90, deadline=None)
def test_not_even_a_perfect_buffer_beats_the_bounds(problem: Problem) -> None:
    best = best_buffered(problem)
    assert least_warm_seconds(problem) <= best.warm_seconds * ROUNDING
    assert least_cold_seconds(problem) <= best.cold_seconds * ROUNDING


@given(tiny_problems(sliceable=False, in_one_file=True))
@settings(max_examples=90, deadline=None)
def test_not_even_a_perfect_buffer_for_joined_weights_beats_the_bounds(problem: Problem) -> None:
    may_join = joinable(problem)
    for count in (1, 2, 3):
        for first in range(len(problem.weights) - count + 1):
            members = tuple(range(first, first + count))
            nbytes = sum(problem.weights[weight].nbytes for weight in members)
            if not may_join.issuperset(members) or nbytes > JOIN_NBYTES:
                continue
            joined = join(problem, [Join(members)] if count > 1 else []).problem
            best = best_buffered(joined)
            assert least_warm_seconds(problem) <= best.warm_seconds * ROUNDING
            assert least_cold_seconds(problem) <= best.cold_seconds * ROUNDING


STAYS_PAST_A_RESIDENT = Problem(  # w0, which is read twice, with a larger weight in between that is resident
    weights=tuple(Weight(f"w{index}", blocks * 512) for index, blocks in enumerate((1, 1, 3, 3))),
    calls=tuple(Call(f"c{index}", 0.0, reads, index) for index, reads in enumerate(((2, 0), (3,), (0,), (1,)))),
    storage=Storage(bytes_per_second=256.0, request_seconds=0.0, block_nbytes=512),
    budget_nbytes=7 * 512 + 300,
    reserve=Reserve(0, 200, 100),
    fingerprint="tiny",
    tiny_nbytes=0,
)


@given(tiny_problems(sliceable=False))
@example(STAYS_PAST_A_RESIDENT)
@settings(max_examples=60, deadline=None)
def test_optimal_is_as_fast_as_any_plan_with_whole_loads_and_none_beats_the_bounds(problem: Problem) -> None:
    best = best_placed(problem)
    assert least_warm_seconds(problem) <= best.warm_seconds * ROUNDING
    assert least_cold_seconds(problem) <= best.cold_seconds * ROUNDING
    if best.warm_seconds < math.inf:  # by storage as it is measured; slow moments are the default's to weigh
        plan = Optimal(steadiness=0.0).plan(problem)
        check(problem, plan)
        assert plan.prediction.warm_seconds <= best.warm_seconds * 1.0001
