"""SwapNet's blocks against every way of cutting small models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError
from penstock.planning import Call, Problem, make_plan
from penstock.planning.lifetimes import streamable_uses
from penstock.planning.strategies import get
from penstock.planning.strategies.blocks import Partition, Unit, cut_blocks, exposed_seconds, list_units

from .random_problems import chain, problems

BLOCK = 512
layers = st.lists(st.tuples(st.integers(1, 6), st.sampled_from([0.0, 0.5, 2.0, 5.0])), min_size=2, max_size=7)


def _problem(layers: Sequence[tuple[int, float]], budget_nbytes: int) -> Problem:
    """A block of storage takes a second to load."""
    sizes = [size * BLOCK for size, _ in layers]
    return chain(sizes, [seconds for _, seconds in layers], budget_nbytes, bytes_per_second=BLOCK)


def _all_cuts(count: int) -> Iterator[tuple[int, ...]]:
    for number in range(1, count):
        yield from combinations(range(1, count), number)


def _exposed(layers: Sequence[tuple[int, float]], cuts: Sequence[int]) -> float:
    bounds = list(pairwise([0, *cuts, len(layers)]))
    loading = [float(sum(size for size, _ in layers[begin:end])) for begin, end in bounds]
    return exposed_seconds(loading, [sum(seconds for _, seconds in layers[begin:end]) for begin, end in bounds])


def _widest(layers: Sequence[tuple[int, float]], cuts: Sequence[int]) -> int:
    sizes = [sum(size for size, _ in layers[begin:end]) for begin, end in pairwise([0, *cuts, len(layers)])]
    return max(one + other for one, other in pairwise(sizes))


def test_the_exposed_delay_is_the_papers() -> None:
    assert exposed_seconds([4.0, 3.0, 5.0], [1.0, 9.0, 1.0]) == 4.0 + (3.0 - 1.0) + 0.0
    assert exposed_seconds([], []) == 0.0


@given(layers, st.integers(2, 30))
@settings(max_examples=110, deadline=None)
def test_for_each_number_of_blocks_the_cuts_are_the_best_there_are(layers: list[tuple[int, float]], limit: int) -> None:
    problem = _problem(layers, limit * BLOCK)
    partition = Partition(problem, list_units(problem, streamable_uses(problem)), (), limit * BLOCK)
    best: dict[int, float] = {}
    for cuts in _all_cuts(len(layers)):
        if _widest(layers, cuts) <= limit:
            best[len(cuts)] = min(best.get(len(cuts), float("inf")), _exposed(layers, cuts))
    found = {len(cuts): (seconds, cuts) for seconds, cuts in partition.tabulate()}
    assert {number: seconds for number, (seconds, _) in found.items()} == pytest.approx(best)
    for seconds, cuts in found.values():
        assert _exposed(layers, cuts) == pytest.approx(seconds)
        assert _widest(layers, cuts) <= limit
    assert (partition.any_cuts() is None) == (not best and sum(size for size, _ in layers) > limit)


@given(layers)
@settings(max_examples=60, deadline=None)
def test_the_least_budget_is_the_widest_pair_of_the_finest_cut(layers: list[tuple[int, float]]) -> None:
    problem = _problem(layers, 1)
    least = min(_widest(layers, cuts) for cuts in _all_cuts(len(layers)))
    assert get("swapnet").needed_nbytes(problem) == least * BLOCK
    with pytest.raises(BudgetInfeasibleError):
        make_plan(replace(problem, budget_nbytes=least * BLOCK - 1), "swapnet")
    make_plan(replace(problem, budget_nbytes=least * BLOCK), "swapnet")


def test_a_block_waits_for_all_of_its_weights_and_is_released_as_a_whole() -> None:
    plan = make_plan(_problem([(2, 2.0)] * 12, 12 * BLOCK), "swapnet")
    stays = sorted({(load.first_call, load.last_call) for load in plan.loads})
    assert [last + 1 for _, last in stays[:-1]] == [first for first, _ in stays[1:]]
    assert stays[0][0] == 0
    assert stays[-1][1] == 11
    assert dict(plan.details)["blocks"] == str(len(stays))
    assert all(
        len([load for load in plan.loads if load.first_call == first]) == last - first + 1 for first, last in stays
    )


@given(problems(budget_from=0.2))
@settings(max_examples=90, deadline=None)
def test_never_more_than_two_blocks_are_in_memory(problem: Problem) -> None:
    try:
        plan = make_plan(problem, "swapnet")
    except BudgetInfeasibleError:
        return
    blocks: dict[int, int] = {}
    for load in plan.loads:
        blocks[load.first_call] = blocks.get(load.first_call, 0) + problem.extent_nbytes(load.weight)
    kept = sum(problem.extent_nbytes(slot.weight) for slot in plan.resident)
    left_nbytes = problem.budget_nbytes - problem.reserve.total_nbytes - kept
    sizes = [blocks[call] for call in sorted(blocks)]
    assert all(one + other <= left_nbytes for one, other in pairwise(sizes))
    waits = {load.first_call: load.after_call for load in reversed(plan.loads) if load.after_pass == 0}
    order = sorted(blocks)
    for before, block in zip(order, order[2:], strict=False):
        assert waits[block] >= before  # the first of a block's loads waits for the block two before it


def test_the_table_of_cuts_goes_with_the_plan() -> None:
    plan = make_plan(_problem([(2, 2.0)] * 12, 12 * BLOCK), "swapnet")
    table = json.loads(dict(plan.details)["cuts"])
    numbers = [row["blocks"] for row in table]
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= 3
    assert all(len(row["first_calls"]) == row["blocks"] - 1 for row in table)
    assert "cuts" in plan.explain()


def test_a_call_around_others_is_not_cut_through() -> None:
    base = _problem([(1, 1.0)] * 8, 6 * BLOCK)
    calls = list(base.calls)
    calls[2] = Call("outer", 1.0, (2,), 4)
    plan = make_plan(replace(base, calls=tuple(calls)), "swapnet")
    firsts = {load.first_call for load in plan.loads}
    assert not firsts & {3, 4}
    assert len(firsts) > 2


def test_what_is_around_everything_stays_where_there_is_no_room_for_that() -> None:
    base = _problem([(1, 1.0)] * 8, 5 * BLOCK)
    plan = make_plan(replace(base, calls=(Call("root", 1.0, (0,), 7), *base.calls[1:])), "swapnet")
    assert [slot.weight for slot in plan.resident] == [0]
    assert len({load.first_call for load in plan.loads}) > 2
    assert get("swapnet").needed_nbytes(replace(base, calls=(Call("root", 1.0, (0,), 7), *base.calls[1:]))) == 3 * BLOCK


def test_layers_that_share_all_of_their_weights_are_one_block() -> None:
    base = _problem([(4, 1.0), (1, 1.0)], 5 * BLOCK)
    calls = tuple(Call(f"c{index}", 1.0, (0,), index) for index in range(6))
    problem = replace(base, calls=calls)
    assert get("swapnet").needed_nbytes(problem) == 4 * BLOCK
    assert make_plan(problem, "swapnet").loads == ()


def test_neighbours_that_share_a_weight_are_in_one_block_where_that_takes_less() -> None:
    base = _problem([(4, 1.0), (3, 1.0), (3, 1.0)], 7 * BLOCK)
    calls = tuple(Call(f"c{index}", 1.0, (weight,), index) for index, weight in enumerate((0, 0, 1, 2)))
    problem = replace(base, calls=calls)
    assert get("swapnet").needed_nbytes(problem) == 7 * BLOCK
    assert sorted({load.first_call for load in make_plan(problem, "swapnet").loads}) == [0, 2, 3]


def test_units_join_calls_without_weights_to_those_before() -> None:
    base = _problem([(1, 1.0)] * 6, 1)
    calls = [replace(call, reads=call.reads if index in (1, 3) else ()) for index, call in enumerate(base.calls)]
    problem = replace(base, calls=tuple(calls))
    assert list_units(problem, streamable_uses(problem)) == [Unit(0, 2, (1,)), Unit(3, 5, (3,))]
    assert cut_blocks(list_units(problem, streamable_uses(problem)), []) == [Unit(0, 5, (1, 3))]
