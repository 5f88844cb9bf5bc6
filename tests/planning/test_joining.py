"""Weights that come in one load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings

from penstock.errors import PlanError
from penstock.planning import Call, Plan, Problem, Reserve, Weight, check, make_plan
from penstock.planning.joining import JOIN_NBYTES, JOINER, MOST_MEMBERS, Join, join, joinable
from penstock.planning.lifetimes import needed_nbytes
from penstock.planning.strategies.grouping import list_joins
from penstock.planning.strategies.optimal import Optimal

from .random_problems import chain, problems

MEGABYTE = 1 << 20


def side_by_side(sizes: Sequence[int], budget_nbytes: int, *, seconds: float = 1.0, load_cost: float = 0.0) -> Problem:
    """Calls that read one weight each, as they lie in one file, 10 bytes apart."""
    base = chain(sizes, [seconds] * len(sizes), budget_nbytes)
    weights, begin = [], 100
    for index, nbytes in enumerate(sizes):
        in_block = begin % base.storage.block_nbytes
        weights.append(Weight(f"w{index}", nbytes, offset_in_block=in_block, file=0, file_offset=begin))
        begin += nbytes + 10
    storage = replace(base.storage, load_compute_seconds=load_cost)
    return replace(base, weights=tuple(weights), storage=storage, tiny_nbytes=0)


def test_a_join_is_one_weight_over_all_of_its_bytes() -> None:
    joined = join(side_by_side([1000, 2000, 3000, 500], 10_000), [Join((1, 2))])
    assert [weight.name for weight in joined.problem.weights] == ["w0", "w1 + w2", "w3"]
    assert [weight.nbytes for weight in joined.problem.weights] == [1000, 5010, 500]
    assert joined.problem.weights[1].offset_in_block == 1110 % 512
    assert joined.members == ((0,), (1, 2), (3,))
    assert [call.reads for call in joined.problem.calls] == [(0,), (1,), (1,), (2,)]


def test_what_is_joined_comes_once_and_stays_until_its_last_call() -> None:
    sizes = [MEGABYTE] * 12
    problem = side_by_side(sizes, 8 * MEGABYTE, load_cost=0.2)
    plan = make_plan(problem)
    check(problem, plan)
    assert plan.joins
    streamed = [load for load in plan.loads if JOINER in plan.weight_names[load.weight]]
    assert streamed
    for load in streamed:
        readers = [
            index for index, call in enumerate(join(problem, plan.joins).problem.calls) if load.weight in call.reads
        ]
        assert (load.first_call, load.last_call) == (readers[0], readers[-1])


def test_joins_save_what_loads_cost() -> None:
    sizes = [MEGABYTE] * 12
    apart = make_plan(replace(side_by_side(sizes, 8 * MEGABYTE, load_cost=0.2), weights=_scattered(sizes)))
    together = make_plan(side_by_side(sizes, 8 * MEGABYTE, load_cost=0.2))
    assert not apart.joins
    assert together.prediction.warm_seconds < 0.98 * apart.prediction.warm_seconds


def test_nothing_is_joined_where_loads_cost_nothing_and_space_is_short() -> None:
    plan = make_plan(side_by_side([MEGABYTE] * 6, 2 * MEGABYTE + 2048))
    assert not plan.joins


def _scattered(sizes: Sequence[int]) -> tuple[Weight, ...]:
    return tuple(Weight(f"w{index}", nbytes) for index, nbytes in enumerate(sizes))


@pytest.mark.parametrize(
    "change",
    [
        {"file": None, "file_offset": 0},
        {"rows_only": True},
        {"is_moved": True},
        {"nbytes": JOIN_NBYTES + 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_some_weights_cannot_be_joined(change: dict[str, object]) -> None:
    problem = side_by_side([1000, 2000], 10_000)
    other = replace(problem, weights=(problem.weights[0], replace(problem.weights[1], **change)))
    assert joinable(problem) == {0, 1}
    assert joinable(other) == {0}
    with pytest.raises(PlanError, match="cannot be joined"):
        join(other, [Join((0, 1))])


def test_what_several_calls_read_or_one_with_calls_within_it_cannot_be_joined() -> None:
    problem = side_by_side([1000, 2000, 3000], 10_000)
    calls = (Call("outer", 1.0, (0,), 1), Call("inner", 1.0, (1,), 1), Call("last", 1.0, (1, 2), 2))
    assert joinable(replace(problem, calls=calls)) == {2}


def test_joins_leave_out_what_lies_far_away_and_what_would_be_read_in_vain() -> None:
    problem = side_by_side([MEGABYTE] * 6, 10 * MEGABYTE)
    weights = list(problem.weights)
    weights[2] = replace(weights[2], file=1)
    weights[5] = replace(weights[5], file_offset=weights[5].file_offset + MEGABYTE)
    assert next(list_joins(replace(problem, weights=tuple(weights)))) == (Join((0, 1)), Join((3, 4)))


def test_a_join_is_in_the_order_of_storage_whatever_that_of_calls_is() -> None:
    problem = side_by_side([MEGABYTE] * 3, 10 * MEGABYTE)
    calls = tuple(replace(call, reads=(2 - index,)) for index, call in enumerate(problem.calls))
    assert next(list_joins(replace(problem, calls=calls))) == (Join((0, 1, 2)),)


def _planned() -> tuple[Problem, Plan]:
    problem = side_by_side([MEGABYTE] * 12, 8 * MEGABYTE, load_cost=0.2)
    return problem, make_plan(problem)


@pytest.mark.parametrize(
    ("joins", "message"),
    [
        ((Join((0, 99)),), "joins weights"),
        ((Join((3,)),), "joins weights"),
        ((Join(tuple(range(MOST_MEMBERS + 1))),), "joins weights"),
        ((Join((0, 1)), Join((1, 2))), "in two joins"),
        ((Join((1, 0)),), "order in storage"),
    ],
)
def test_the_judge_refuses_joins_that_make_no_sense(joins: tuple[Join, ...], message: str) -> None:
    problem, plan = _planned()
    with pytest.raises(PlanError, match=message):
        check(problem, replace(plan, joins=joins))


def test_the_judge_refuses_joins_of_what_is_moved_or_in_another_file() -> None:
    problem, plan = _planned()
    first = plan.joins[0].weights[0]
    for change, message in (({"is_moved": True}, "moved"), ({"file": 7}, "not in one file")):
        weights = list(problem.weights)
        weights[first] = replace(weights[first], **change)
        with pytest.raises(PlanError, match=message):
            check(replace(problem, weights=tuple(weights)), plan)


def test_the_judge_refuses_joins_of_what_another_call_reads_or_holds_around_others() -> None:
    problem, plan = _planned()
    first = plan.joins[0].weights[0]
    other = next(index for index in range(len(problem.calls)) if index != first)
    again = list(problem.calls)
    again[other] = replace(again[other], reads=(*again[other].reads, first))
    around = [
        replace(call, last=max(call.last, first + 1)) if index == first else call
        for index, call in enumerate(problem.calls)
    ]
    for calls, message in ((again, "read by 2 calls"), (around, "has calls within it")):
        with pytest.raises(PlanError, match=message):
            check(replace(problem, calls=tuple(calls)), plan)


def test_a_problem_is_given_without_joins() -> None:
    problem, plan = _planned()
    with pytest.raises(PlanError, match="is_joined"):
        Problem.from_json(join(problem, plan.joins).problem.to_json())
    assert Problem.from_json(problem.to_json()) == problem


def test_no_join_reaches_over_the_end_of_a_call_around_some_of_its_layers() -> None:
    problem = side_by_side([MEGABYTE] * 4, 10 * MEGABYTE)
    calls = (
        Call("outer", 1.0, (0,), 1),
        Call("inner", 1.0, (1,), 1),
        Call("next", 1.0, (2,), 2),
        Call("last", 1.0, (3,), 3),
    )
    assert next(list_joins(replace(problem, calls=calls))) == (Join((2, 3)),)


def test_what_a_call_goes_on_around_is_planned_where_there_is_just_enough_room() -> None:
    """What ends with the outer call and what is joined with a layer behind it do not nest, and stacks need that."""
    base = side_by_side([MEGABYTE] * 3, 12 * MEGABYTE)
    calls = (
        Call("outer", 1.0, (0,), 1),
        Call("inner", 1.0, (1,), 1),
        Call("next", 1.0, (2,), 2, activations_nbytes=9 * MEGABYTE),
    )
    problem = replace(base, calls=calls, reserve=Reserve(9 * MEGABYTE, 0, 0))
    plan = make_plan(problem)
    check(problem, plan)


def test_weights_over_the_same_bytes_are_not_joined() -> None:
    problem = side_by_side([MEGABYTE] * 3, 10 * MEGABYTE)
    second = replace(
        problem.weights[1],
        file_offset=problem.weights[0].file_offset,
        offset_in_block=problem.weights[0].offset_in_block,
    )
    same = replace(problem, weights=(problem.weights[0], second, problem.weights[2]))
    assert all(0 not in item.weights or 1 not in item.weights for joins in list_joins(same) for item in joins)
    check(same, make_plan(same))


def test_nothing_is_joined_where_all_weights_stay() -> None:
    problem = side_by_side([MEGABYTE] * 12, 13 * MEGABYTE, load_cost=0.2)
    plan = make_plan(problem)
    assert not plan.joins
    assert not plan.loads


def test_joins_survive_json() -> None:
    _, plan = _planned()
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(PlanError, match=r"joins\[0\].weights"):
        Plan.from_json(plan.to_json().replace('"joins": [{"weights": [', '"joins": [{"weights": [-1, '))


@given(problems(budget_from=0.3))
@settings(max_examples=90, deadline=None)
def test_whatever_may_be_joined_is_all_there_and_has_a_plan_as_soon_as_it_fits(problem: Problem) -> None:
    for joins in list_joins(problem):
        joined = join(problem, joins)
        assert sorted(weight for members in joined.members for weight in members) == list(range(len(problem.weights)))
        budget_nbytes = max(problem.budget_nbytes, needed_nbytes(joined.problem, sliced=False))
        plan = Optimal(exact=True).plan(replace(joined.problem, budget_nbytes=budget_nbytes))
        check(replace(problem, budget_nbytes=budget_nbytes), replace(plan, joins=joins))
