"""Each way in which a plan can be wrong is caught, by plans that are right but for that one thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning import Call, Ebb, Load, Plan, Problem, Reserve, Slot, check, make_plan

from .ebbing import ring_plan
from .random_problems import BLOCK, chain, problems


def _problem() -> Problem:
    return chain([4096] * 10, [1e-5] * 10, 5 * 4096)


def _with_load(plan: Plan, index: int, **changes: Any) -> Plan:
    loads = list(plan.loads)
    loads[index] = replace(loads[index], **changes)
    return replace(plan, loads=tuple(loads))


@pytest.fixture
def plan() -> Plan:
    plan = make_plan(_problem())
    assert len(plan.loads) >= 3
    assert len(plan.resident) >= 2
    return plan


def test_a_shifted_offset_is_caught(plan: Plan) -> None:
    with pytest.raises(PlanError, match="congruent"):
        check(_problem(), _with_load(plan, 1, offset=plan.loads[1].offset + 1))
    with pytest.raises(PlanError, match=r"overlaps|holds its space"):
        check(_problem(), _with_load(plan, 1, offset=plan.loads[1].offset + 512))


def test_an_offset_outside_the_arena_is_caught(plan: Plan) -> None:
    with pytest.raises(PlanError, match="past the arena"):
        check(_problem(), _with_load(plan, 1, offset=plan.arena_nbytes))
    with pytest.raises(PlanError, match="congruent"):
        check(_problem(), _with_load(plan, 1, offset=-512))


def test_a_dropped_load_is_caught(plan: Plan) -> None:
    with pytest.raises(PlanError, match="0 loads"):
        check(_problem(), replace(plan, loads=plan.loads[1:]))


def test_a_doubled_load_is_caught(plan: Plan) -> None:
    with pytest.raises(PlanError, match="do not join"):
        check(_problem(), replace(plan, loads=(plan.loads[0], *plan.loads)))


def test_a_swapped_order_is_caught(plan: Plan) -> None:
    first, *others, last = plan.loads
    with pytest.raises(PlanError, match=r"cannot end before|holds its space"):
        check(_problem(), replace(plan, loads=(last, *others, first)))


def test_a_load_that_waits_for_its_own_call_is_caught(plan: Plan) -> None:
    last = plan.loads[-1]
    with pytest.raises(PlanError, match="cannot end before"):
        check(_problem(), _with_load(plan, len(plan.loads) - 1, after_call=last.first_call, after_pass=0))


def test_a_load_without_a_condition_is_caught_even_where_it_only_follows_itself(plan: Plan) -> None:
    with pytest.raises(PlanError, match="holds its space"):
        check(_problem(), _with_load(plan, 0, after_call=-1, after_pass=0))


def test_an_arena_over_budget_is_caught(plan: Plan) -> None:
    with pytest.raises(PlanError, match="budget"):
        check(_problem(), replace(plan, arena_nbytes=_problem().budget_nbytes + 1))
    with pytest.raises(PlanError, match="another budget"):
        check(replace(_problem(), budget_nbytes=4 * 4096), plan)


def test_a_predicted_peak_that_leaves_something_out_is_caught(plan: Plan) -> None:
    with pytest.raises(PlanError, match="peak"):
        check(_problem(), replace(plan, prediction=replace(plan.prediction, peak_nbytes=plan.arena_nbytes - 1)))


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"peak_nbytes": 5 * 4096 + 1}, "exceeds the budget"), ({"call_streamed_nbytes": (0, 1 << 20)}, "arena")],
)
def test_a_prediction_of_more_than_there_is_is_caught(plan: Plan, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(PlanError, match=match):
        check(_problem(), replace(plan, prediction=replace(plan.prediction, **changes)))


def test_overlapping_residents_are_caught(plan: Plan) -> None:
    first, second, *others = plan.resident
    moved = Slot(second.weight, first.offset)
    with pytest.raises(PlanError, match="overlap"):
        check(_problem(), replace(plan, resident=(first, moved, *others)))


def test_a_resident_in_the_way_of_a_load_is_caught(plan: Plan) -> None:
    first, *others = plan.resident
    moved = Slot(first.weight, plan.loads[0].offset)
    with pytest.raises(PlanError, match="overlaps the load"):
        check(_problem(), replace(plan, resident=(moved, *others)))


def test_a_weight_that_is_both_resident_and_streamed_is_caught(plan: Plan) -> None:
    first, *others = plan.resident
    with pytest.raises(PlanError, match="given twice"):
        check(_problem(), replace(plan, resident=(Slot(plan.loads[0].weight, first.offset), *others)))


def test_reading_rows_of_a_weight_that_calls_read_whole_is_caught(plan: Plan) -> None:
    with pytest.raises(PlanError, match="by rows"):
        check(_problem(), replace(plan, loads=plan.loads[1:], rows=(plan.loads[0].weight,)))


def test_a_plan_for_another_problem_is_caught(plan: Plan) -> None:
    other = chain([4096] * 9 + [4095], [1e-5] * 10, 5 * 4096)
    for problem in (replace(_problem(), fingerprint="other"), other, chain([4096] * 9, [1e-5] * 9, 5 * 4096)):
        with pytest.raises(PlanError, match="plan"):
            check(problem, plan)


@pytest.mark.parametrize(
    "changes",
    [
        *({"weight": 99}, {"weight": -1}, {"first_call": 99}, {"last_call": -1}, {"after_call": 99}, {"after_pass": 1}),
        *({"first_byte": -1}, {"first_byte": 1}, {"nbytes": 0}, {"nbytes": 4097}),
    ],
)
def test_indices_out_of_range_are_caught(plan: Plan, changes: dict[str, int]) -> None:
    with pytest.raises(PlanError, match=r"names weight|serves calls|waits for|brings bytes"):
        check(_problem(), _with_load(plan, 0, **changes))


def test_an_outer_weight_released_before_its_call_ends_is_caught() -> None:
    problem = chain([4096, 4096, 4096, 8192], [1e-5] * 4, 2 * 4096)
    problem = replace(problem, calls=(Call("outer", 1e-5, (0,), 2), *problem.calls[1:]))
    plan = make_plan(problem)
    index = next(index for index, load in enumerate(plan.loads) if load.weight == 0)
    assert plan.loads[index].last_call == 2
    with pytest.raises(PlanError, match="0 loads over call 0"):
        check(problem, _with_load(plan, index, last_call=1))


def _in_two(plan: Plan, at: int) -> Plan:
    """The first load in two parts."""
    whole, *others = plan.loads
    parts = replace(whole, nbytes=at), replace(whole, first_byte=at, nbytes=whole.nbytes - at)
    return replace(plan, loads=(*parts, *others))


def test_a_stay_may_take_several_loads_that_join_on_blocks(plan: Plan) -> None:
    check(_problem(), _in_two(plan, 1024))
    with pytest.raises(PlanError, match="do not join"):
        check(_problem(), _in_two(plan, 1000))
    half = _in_two(plan, 1024)
    with pytest.raises(PlanError, match="of its 4096 bytes"):
        check(_problem(), replace(half, loads=(half.loads[0], *half.loads[2:])))
    with pytest.raises(PlanError, match=r"do not join|overlaps"):
        check(_problem(), _with_load(half, 1, offset=half.loads[1].offset + 512))


def test_a_weight_that_is_moved_comes_in_one_load(plan: Plan) -> None:
    problem = _problem()
    moved = replace(problem, weights=tuple(replace(weight, is_moved=True) for weight in problem.weights))
    check(moved, plan)
    with pytest.raises(PlanError, match="is moved"):
        check(moved, _in_two(plan, 1024))


def test_an_unknown_pacing_is_caught(plan: Plan) -> None:
    with pytest.raises(PlanError, match="pacing"):
        check(_problem(), replace(plan, pacing="whenever"))


def test_staging_counts_and_its_addresses_lie_within(plan: Plan) -> None:
    roomy = replace(_problem(), budget_nbytes=6 * 4096)
    staged = replace(plan, budget_nbytes=6 * 4096, staging_nbytes=4096)
    counted = replace(staged, prediction=replace(plan.prediction, peak_nbytes=6 * 4096))
    check(roomy, counted)
    with pytest.raises(PlanError, match="peak"):
        check(roomy, staged)
    with pytest.raises(PlanError, match="staging"):
        check(roomy, replace(counted, staging_nbytes=4097))
    with pytest.raises(PlanError, match="past the staging memory"):
        check(roomy, _with_load(counted, 0, staging_offset=512))
    with pytest.raises(PlanError, match="congruent"):
        check(roomy, _with_load(counted, 0, staging_offset=7))


def _lockstep() -> tuple[Problem, Plan]:
    problem = replace(_problem(), budget_nbytes=4 * 4096)
    plan = make_plan(problem, "synchronous")
    assert plan.pacing == "lockstep"
    return problem, plan


def test_lockstep_goes_layer_by_layer_through_staging_with_places_of_their_own() -> None:
    problem, plan = _lockstep()
    check(problem, plan)
    with pytest.raises(PlanError, match="no staging memory"):
        check(problem, replace(plan, staging_nbytes=0))
    calls = (replace(problem.calls[0], reads=(0, 1)), replace(problem.calls[1], reads=()), *problem.calls[2:])
    problem = replace(problem, calls=calls, budget_nbytes=8 * 4096)
    plan = make_plan(problem, "synchronous")
    check(problem, plan)
    with pytest.raises(PlanError, match="shares staging memory with others of call 0"):
        check(problem, _with_load(plan, 1, staging_offset=plan.loads[0].staging_offset))


def test_lockstep_takes_layers_in_order() -> None:
    problem = chain([4096] * 3, [1e-5] * 3, 12 * 4096)
    plan = make_plan(problem, "two-stage")
    assert plan.arena_nbytes == 3 * 4096
    staged = [replace(load, staging_offset=index * 4096) for index, load in enumerate(plan.loads)]
    staged = [replace(load, after_call=-1 if load.after_pass == 0 else load.after_call) for load in staged]
    peak = replace(plan.prediction, peak_nbytes=6 * 4096)
    plan = replace(plan, pacing="lockstep", staging_nbytes=3 * 4096, prediction=peak, loads=tuple(staged))
    check(problem, plan)
    with pytest.raises(PlanError, match="loads call 1 before 0"):
        check(problem, replace(plan, loads=(staged[1], staged[0], staged[2])))


def test_what_is_preloaded_has_no_loads_for_later(plan: Plan) -> None:
    with pytest.raises(PlanError, match="loaded first"):
        check(_problem(), replace(plan, pacing="preload"))


def _earlier(load: Load, call_count: int) -> Load | None:
    """The same load, allowed to start one call earlier."""
    if load.after_call > 0:
        return replace(load, after_call=load.after_call - 1)
    if load.after_pass == 0:
        return replace(load, after_call=call_count - 1, after_pass=-1)
    return None


@given(problems(budget_from=0.1), st.data())
@settings(max_examples=60, deadline=None)
def test_no_load_may_start_one_call_earlier_than_planned(problem: Problem, data: st.DataObject) -> None:
    try:
        plan = make_plan(problem)
    except BudgetInfeasibleError:
        return
    assume(plan.loads)
    index = data.draw(st.integers(0, len(plan.loads) - 1))
    earlier = _earlier(plan.loads[index], len(problem.calls))
    assume(earlier is not None)
    loads = tuple(earlier if position == index else load for position, load in enumerate(plan.loads))
    with pytest.raises(PlanError, match="holds its space"):
        check(problem, replace(plan, loads=loads))


@given(problems(budget_from=0.1), st.data())
@settings(max_examples=60, deadline=None)
def test_no_load_can_be_left_out_or_moved_off_its_block(problem: Problem, data: st.DataObject) -> None:
    try:
        plan = make_plan(problem)
    except BudgetInfeasibleError:
        return
    assume(plan.loads)
    index = data.draw(st.integers(0, len(plan.loads) - 1))
    with pytest.raises(PlanError, match="0 loads"):
        check(problem, replace(plan, loads=plan.loads[:index] + plan.loads[index + 1 :]))
    shift = data.draw(st.integers(1, BLOCK - 1))
    with pytest.raises(PlanError, match="congruent"):
        check(problem, _with_load(plan, index, offset=plan.loads[index].offset + shift))


EBBING = (2 * 4096, 4096, 4096)


def _ebbing() -> tuple[Problem, Plan]:
    """Ten weights of a block; the first three calls have activations, and their plan an ebb, and one weight stays."""
    problem = chain([4096] * 10, [1e-5] * 10, 5 * 4096, block_nbytes=4096)
    calls = tuple(
        replace(call, activations_nbytes=EBBING[index] if index < 3 else 0) for index, call in enumerate(problem.calls)
    )
    problem = replace(problem, calls=calls, reserve=Reserve(max(EBBING), 0, 0))
    plan = ring_plan(problem, 0, {9})
    assert plan is not None
    return problem, plan


def test_a_plan_with_an_ebb_has_more_arena_than_activations_leave_beside_them() -> None:
    problem, plan = _ebbing()
    check(problem, plan)
    assert [(ebb.nbytes, ebb.first_call, ebb.last_call) for ebb in plan.ebbs] == [(2 * 4096, 0, 2)]
    assert plan.arena_nbytes + problem.reserve.total_nbytes > problem.budget_nbytes
    with pytest.raises(PlanError, match="do not fit the budget"):
        check(problem, replace(plan, ebbs=()))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"last_call": 0}, "do not fit the budget"),
        ({"first_call": 1}, "do not fit the budget"),
        ({"nbytes": 4096}, "do not fit the budget"),
        ({"first_call": -1}, "of calls -1"),
        ({"last_call": 10}, "of calls 0 to 10"),
        ({"first_call": 3}, "of calls 3 to 2"),
        ({"offset": -4096}, "outside the arena"),
        ({"offset": 4 * 4096}, "outside the arena"),
        ({"nbytes": 0}, "outside the arena"),
        ({"offset": 512}, "whole pages"),
        ({"nbytes": 4096 + 512}, "whole pages"),
    ],
)
def test_an_ebb_that_cannot_be_is_caught(changes: dict[str, int], match: str) -> None:
    problem, plan = _ebbing()
    with pytest.raises(PlanError, match=match):
        check(problem, replace(plan, ebbs=(replace(plan.ebbs[0], **changes),)))


def test_what_lies_where_memory_is_given_back_is_caught() -> None:
    problem, plan = _ebbing()
    (ebb,) = plan.ebbs
    longest = replace(ebb, last_call=9)
    with pytest.raises(PlanError, match=r"gives bytes back while w\d holds them"):
        check(problem, replace(plan, ebbs=(longest,)))
    on_resident = replace(ebb, offset=plan.resident[0].offset - 4096)
    with pytest.raises(PlanError, match="while w9 holds them"):
        check(problem, replace(plan, ebbs=(on_resident,)))
    with pytest.raises(PlanError, match="the same bytes back"):
        check(problem, replace(plan, ebbs=(ebb, replace(ebb, nbytes=4096, first_call=2))))
    index = next(index for index, load in enumerate(plan.loads) if load.offset == ebb.offset)
    last_call = plan.loads[index].last_call
    with pytest.raises(PlanError, match="gives bytes back while"):
        check(_roomy(problem), replace(_roomy(plan), ebbs=(Ebb(ebb.offset, 4096, last_call, last_call),)))
    early = replace(plan.loads[index], after_call=ebb.last_call - 1)
    loads = (*plan.loads[:index], early, *plan.loads[index + 1 :])
    with pytest.raises(PlanError, match="gives bytes back while"):
        check(problem, replace(plan, loads=loads))


def _roomy(item: Any) -> Any:
    """A problem or a plan whose budget holds everything, ebbs or not."""
    if isinstance(item, Plan):
        prediction = replace(item.prediction, peak_nbytes=1 << 20)
        return replace(item, budget_nbytes=1 << 20, prediction=prediction)
    return replace(item, budget_nbytes=1 << 20)


def test_memory_is_given_back_by_plans_only_whose_loads_can_wait_for_it() -> None:
    problem, plan = _ebbing()
    for changes in ({"pacing": "lockstep"}, {"pacing": "preload"}, {"staging_nbytes": 4096}):
        with pytest.raises(PlanError, match="gives memory back"):
            check(problem, replace(plan, **changes))


def test_activations_that_are_not_the_problems_are_caught() -> None:
    problem, plan = _ebbing()
    with pytest.raises(PlanError, match="other activations"):
        check(problem, replace(plan, call_activations_nbytes=(0,) * 10))
