"""Demand Layering's architectures against the delays and buffers that the paper gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError
from penstock.planning import Call, Plan, Problem, make_plan
from penstock.planning.strategies import get

from .random_problems import chain

BLOCK = 512
ARCHITECTURES = ["sequential", "synchronous", "asynchronous", "two-stage"]
blocks = st.lists(st.integers(1, 9), min_size=2, max_size=9)
durations = st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0])


def _problem(sizes: Sequence[int], seconds: Sequence[float], budget_nbytes: int) -> Problem:
    """A chain whose layers are whole blocks; a block takes a second to read and half of one to copy."""
    problem = chain([size * BLOCK for size in sizes], list(seconds), budget_nbytes, bytes_per_second=BLOCK)
    return replace(problem, storage=replace(problem.storage, copy_bytes_per_second=2.0 * BLOCK))


def _least(name: str, problem: Problem) -> Plan:
    return make_plan(replace(problem, budget_nbytes=get(name).needed_nbytes(problem)), name)


@pytest.mark.parametrize(
    ("name", "buffers"), [("sequential", 2), ("synchronous", 4), ("asynchronous", 2), ("two-stage", 1)]
)
@given(sizes=blocks)
@settings(max_examples=30, deadline=None)
def test_the_least_buffers_are_the_tables(name: str, buffers: int, sizes: list[int]) -> None:
    problem = _problem(sizes, [1.0] * len(sizes), 1)
    assert get(name).needed_nbytes(problem) == buffers * max(sizes) * BLOCK
    plan = _least(name, problem)
    assert plan.arena_nbytes + plan.staging_nbytes == buffers * max(sizes) * BLOCK
    with pytest.raises(BudgetInfeasibleError, match=name):
        make_plan(replace(problem, budget_nbytes=buffers * max(sizes) * BLOCK - 1), name)


@given(st.lists(st.tuples(st.integers(1, 9), durations), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_sequential_takes_the_sum_of_everything(layers: list[tuple[int, float]]) -> None:
    plan = _least("sequential", _problem([size for size, _ in layers], [k for _, k in layers], 1))
    total = sum(size + size / 2 + k for size, k in layers)
    assert plan.prediction.warm_seconds == pytest.approx(total)
    assert plan.prediction.cold_seconds == pytest.approx(total)


@given(st.lists(st.tuples(st.integers(1, 9), durations), min_size=2, max_size=10).filter(lambda one: len(one) % 2 == 0))
@settings(max_examples=50, deadline=None)
def test_synchronous_takes_the_longest_stage_of_every_cycle(layers: list[tuple[int, float]]) -> None:
    r, k = [float(size) for size, _ in layers], [seconds for _, seconds in layers]
    c = [read / 2 for read in r]
    count = len(layers)
    plan = _least("synchronous", _problem([size for size, _ in layers], k, 1))
    cycles = [max(r[(t + 2) % count], c[(t + 1) % count], k[t]) for t in range(count)]
    assert plan.prediction.warm_seconds == pytest.approx(sum(cycles))
    # Two cycles before the first compute; the pass ends with its last compute, not with that cycle.
    assert plan.prediction.cold_seconds == pytest.approx(r[0] + max(r[1], c[0]) + sum(cycles[:-1]) + k[-1])


def test_lockstep_lets_a_short_layer_wait_for_a_long_neighbour_where_the_ring_does_not() -> None:
    problem = _problem([1, 8] * 4, [8.0, 1.0] * 4, 1)
    wide = replace(problem, budget_nbytes=2 * 36 * BLOCK)
    assert make_plan(wide, "asynchronous").prediction.warm_seconds == pytest.approx(36.0)
    assert make_plan(wide, "synchronous").prediction.warm_seconds > 36.0


def _recurrence(count: int, read: float, copy: float, kernel: float, staging: float, arena: int) -> float:
    """The end of the last of equal layers in circular buffers of so many layers; without staging nothing is copied."""
    reads: list[float] = []
    copies: list[float] = []
    kernels: list[float] = []
    for index in range(count):
        unstaged = copies[index - int(staging)] if index >= staging else 0.0
        freed = kernels[index - arena] if index >= arena else 0.0
        reads.append(max(reads[-1] if reads else 0.0, unstaged if copy else freed) + read)
        copies.append(max(copies[-1] if copies else 0.0, reads[-1], freed) + copy if copy else reads[-1])
        kernels.append(max(kernels[-1] if kernels else 0.0, copies[-1]) + kernel)
    return kernels[-1]


@given(st.integers(1, 5), st.integers(1, 4), durations, st.integers(2, 12))
@settings(max_examples=50, deadline=None)
def test_asynchronous_and_two_stage_follow_the_recurrences(size: int, slots: int, k: float, count: int) -> None:
    problem = _problem([size] * count, [k] * count, 1)
    in_ring = make_plan(replace(problem, budget_nbytes=slots * size * BLOCK), "two-stage")
    used = in_ring.arena_nbytes // (size * BLOCK)
    assert in_ring.prediction.cold_seconds == pytest.approx(_recurrence(count, size, 0.0, k, float("inf"), used))
    staged = make_plan(replace(problem, budget_nbytes=2 * slots * size * BLOCK), "asynchronous")
    assert staged.staging_nbytes == staged.arena_nbytes
    assert used <= slots
    used = staged.arena_nbytes // (size * BLOCK)
    assert staged.prediction.cold_seconds == pytest.approx(_recurrence(count, size, size / 2, k, used, used))
    if count % slots == 0:  # else a smaller ring may meet itself at the end of a pass at a better moment
        assert used == slots


@pytest.mark.parametrize("name", ["asynchronous", "two-stage"])
def test_a_larger_buffer_takes_less_time_and_never_more_memory_than_is_of_use(name: str) -> None:
    sizes, seconds = [1, 2, 1, 9, 1, 1, 4, 1, 1, 9], [4.0, 1.0, 4.0, 2.0, 4.0, 4.0, 2.0, 4.0, 4.0, 1.0]
    problem = _problem(sizes, seconds, 1)
    plans = [make_plan(replace(problem, budget_nbytes=count * BLOCK), name) for count in range(18, 90, 6)]
    delays = [plan.prediction.warm_seconds for plan in plans]
    assert delays == sorted(delays, reverse=True)
    assert delays[0] > delays[-1] == pytest.approx(30.0)
    assert plans[-1].arena_nbytes <= sum(sizes) * BLOCK
    assert plans[-1].staging_nbytes <= sum(sizes) * BLOCK


def test_preload_reads_everything_first_and_then_only_computes() -> None:
    problem = _problem([3, 4, 5], [1.0, 2.0, 3.0], 12 * BLOCK)
    plan = make_plan(problem, "preload")
    assert plan.prediction.cold_seconds == pytest.approx(12.0 + 6.0)
    assert plan.prediction.warm_seconds == pytest.approx(6.0)
    with pytest.raises(BudgetInfeasibleError) as refusal:
        make_plan(replace(problem, budget_nbytes=12 * BLOCK - 1), "preload")
    assert refusal.value.needed_nbytes == 12 * BLOCK


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_small_weights_stay_where_that_fits(name: str) -> None:
    problem = replace(_problem([9, 1] * 6, [1.0] * 12, 60 * BLOCK), tiny_nbytes=BLOCK)
    plan = make_plan(problem, name)
    assert {slot.weight for slot in plan.resident} == set(range(1, 12, 2))
    least = _least(name, problem)
    assert not least.resident
    assert len(least.loads) == 12


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_weight_that_nested_calls_share_is_loaded_once_for_all_of_them(name: str) -> None:
    base = _problem([4, 2, 2], [1.0] * 3, 40 * BLOCK)
    calls = (Call("outer", 1.0, (0,), 2), Call("inner", 1.0, (1, 0), 1), Call("other", 1.0, (0, 2), 2))
    plan = make_plan(replace(base, calls=calls), name)
    stays = [(load.weight, load.first_call, load.last_call) for load in plan.loads]
    assert stays == [(0, 0, 2), (1, 1, 1), (2, 2, 2)]
    assert get("two-stage").needed_nbytes(replace(base, calls=calls)) == 6 * BLOCK


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tables_are_left_to_the_calls(name: str) -> None:
    base = _problem([4, 2, 9], [1.0] * 3, 40 * BLOCK)
    table = replace(base.weights[2], rows_only=True, row_seconds=0.25)
    plan = make_plan(replace(base, weights=(*base.weights[:2], table)), name)
    assert plan.rows == (2,)
    assert plan.prediction.warm_seconds >= 3.25


def test_staging_is_told_apart_from_streaming_space() -> None:
    text = make_plan(_problem([4] * 6, [1.0] * 6, 16 * BLOCK), "asynchronous").explain()
    rows = dict(line.rsplit(maxsplit=2)[:2] for line in text.splitlines()[1:8])
    assert (rows["  staging"], rows["  streaming space"], rows["  not needed"]) == ("4.0", "4.0", "0")


def test_preload_keeps_tables_where_there_is_room() -> None:
    base = _problem([4, 2, 9], [1.0] * 3, 15 * BLOCK)
    problem = replace(base, weights=(*base.weights[:2], replace(base.weights[2], rows_only=True, row_seconds=0.25)))
    assert make_plan(problem, "preload").rows == ()
    assert make_plan(replace(problem, budget_nbytes=15 * BLOCK - 1), "preload").rows == (2,)
