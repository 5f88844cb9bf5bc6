from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning import Call, Problem, Weight, check, make_plan
from penstock.planning.bounds import least_warm_seconds
from penstock.planning.ebbs import page_nbytes
from penstock.planning.strategies import get

from .random_problems import chain, problems

MEGABYTE = 1 << 20


def _least_nbytes(problem: Problem) -> int:
    """The reserve and the most bytes that calls hold at one moment, counted call by call."""
    most = 0
    for moment in range(len(problem.calls)):
        held = {
            weight
            for index, call in enumerate(problem.calls[: moment + 1])
            if call.last >= moment
            for weight in call.reads
            if not problem.weights[weight].rows_only
        }
        activations_nbytes = problem.reserve.activations_nbytes
        if max(call.activations_nbytes for call in problem.calls) == activations_nbytes:  # calls tell when
            activations_nbytes = problem.calls[moment].activations_nbytes
        most = max(most, activations_nbytes + sum(problem.extent_nbytes(weight) for weight in held))
    reserve = problem.reserve
    return max(1, reserve.io_nbytes + reserve.bookkeeping_nbytes + most)


def _slack_nbytes(problem: Problem) -> int:
    """By how much less than a whole page the least budget may be above what the hardest call needs."""
    return page_nbytes(problem) - 1


@given(problems())
@settings(max_examples=130, deadline=None)
def test_a_plan_is_right_or_the_budget_is_refused_with_the_true_minimum(problem: Problem) -> None:
    least_nbytes = _least_nbytes(problem)
    needed_nbytes = get("optimal").needed_nbytes(problem)
    assert least_nbytes <= needed_nbytes <= least_nbytes + _slack_nbytes(problem)
    if problem.budget_nbytes < needed_nbytes:
        with pytest.raises(BudgetInfeasibleError) as refusal:
            make_plan(problem)
        assert refusal.value.needed_nbytes == needed_nbytes
    else:
        plan = make_plan(problem)
        check(problem, plan)
        assert plan.prediction.peak_nbytes <= problem.budget_nbytes


@given(problems())
@settings(max_examples=60, deadline=None)
def test_the_minimum_works_and_one_byte_less_does_not(problem: Problem) -> None:
    needed_nbytes = get("optimal").needed_nbytes(problem)
    assert _least_nbytes(problem) <= needed_nbytes <= _least_nbytes(problem) + _slack_nbytes(problem)
    plan = make_plan(replace(problem, budget_nbytes=needed_nbytes))
    check(replace(problem, budget_nbytes=needed_nbytes), plan)
    if needed_nbytes > 1:
        with pytest.raises(BudgetInfeasibleError) as refusal:
            make_plan(replace(problem, budget_nbytes=needed_nbytes - 1))
        assert refusal.value.needed_nbytes == needed_nbytes
        assert str(needed_nbytes) in str(refusal.value)


@given(problems(budget_from=0.1))
@settings(max_examples=30, deadline=None)
def test_planning_twice_gives_the_same_plan(problem: Problem) -> None:
    try:
        assert make_plan(problem) == make_plan(problem)
    except BudgetInfeasibleError:
        return


def test_everything_is_resident_where_it_fits() -> None:
    plan = make_plan(chain([1000] * 10, [1e-3] * 10, 10 * 1024))
    assert plan.loads == ()
    assert len(plan.resident) == 10
    assert plan.prediction.stall_seconds == pytest.approx(0.0, abs=1e-12)


def test_residents_are_spread_evenly() -> None:
    # Streaming everything would take twice as long as computing; half of the layers fit.
    plan = make_plan(chain([MEGABYTE] * 60, [1e-3] * 60, 33 * MEGABYTE, bytes_per_second=MEGABYTE / 2e-3))
    streamed = [load.first_call for load in plan.loads]
    assert 27 <= len(streamed) <= 32
    for window in range(0, 60, 10):
        assert 3 <= sum(window <= call < window + 10 for call in streamed) <= 7


def test_residents_go_where_bytes_come_faster_than_storage_gives_them() -> None:
    # As in a ResNet: first compute with few bytes, then bytes with little compute.
    sizes = [MEGABYTE // 8] * 20 + [2 * MEGABYTE] * 20
    plan = make_plan(chain(sizes, [4e-3] * 20 + [1e-3] * 20, 22 * MEGABYTE, bytes_per_second=1e9))
    late = sum(slot.weight >= 20 for slot in plan.resident)
    assert late >= 5


def test_small_weights_stay_resident() -> None:
    problem = chain([100, 4096] * 10, [1e-4] * 20, 20_000, tiny_nbytes=100)
    resident = {slot.weight for slot in make_plan(problem).resident}
    assert resident >= set(range(0, 20, 2))


def test_a_weight_that_dwarfs_the_others_does_not_dictate_the_streaming_space() -> None:
    sizes = [4 * MEGABYTE] * 40 + [64 * MEGABYTE]
    seconds = [4e-3] * 40 + [1e-3]
    plan = make_plan(chain(sizes, seconds, 90 * MEGABYTE))
    assert 40 in {slot.weight for slot in plan.resident}
    assert plan.prediction.warm_seconds <= 1.05 * plan.prediction.lower_bound_seconds


def test_a_weight_read_again_and_again_is_resident_before_others() -> None:
    problem = chain([MEGABYTE] * 20, [1e-4] * 20, 6 * MEGABYTE, bytes_per_second=1e9)
    calls = []
    for call in problem.calls:
        calls += [replace(call, last=len(calls)), Call("again", 1e-4, (0,), len(calls) + 1)]
    calls[0] = replace(calls[0], reads=(1,))
    assert 0 in {slot.weight for slot in make_plan(replace(problem, calls=tuple(calls))).resident}


def test_adjacent_reads_share_one_load() -> None:
    problem = chain([MEGABYTE] * 8, [1e-4] * 8, 3 * MEGABYTE)
    calls = [Call(f"c{index}", 1e-4, (index // 2,), index) for index in range(16)]
    plan = make_plan(replace(problem, calls=tuple(calls)))
    assert len(plan.loads) == len({load.weight for load in plan.loads})


def test_a_weight_that_stays_between_two_uses_does_not_push_others_out_of_the_arena() -> None:
    problem = chain([1, 3, 3, 1], [2.0, 2.0, 2.0, 2.0], 6, bytes_per_second=4.0, block_nbytes=1)
    reads = [(2, 0), (3,), (), (0, 1)]
    calls = tuple(replace(call, reads=read) for call, read in zip(problem.calls, reads, strict=True))
    problem = replace(problem, calls=calls)
    check(problem, make_plan(problem))


@pytest.mark.parametrize(("row_seconds", "resident"), [(0.0, False), (5e-3, True)])
def test_a_table_is_resident_only_where_that_is_faster(row_seconds: float, resident: bool) -> None:
    problem = chain([MEGABYTE] * 12, [2e-3] * 12, 8 * MEGABYTE, bytes_per_second=1e9)
    table = Weight("table", 2 * MEGABYTE, rows_only=True, row_seconds=row_seconds)
    calls = (replace(problem.calls[0], reads=(0, 12)), *problem.calls[1:])
    plan = make_plan(replace(problem, weights=(*problem.weights, table), calls=calls))
    assert (12 in {slot.weight for slot in plan.resident}) is resident
    assert (12 in plan.rows) is not resident


def _vision_transformer(budget_nbytes: int, bytes_per_second: float) -> Problem:
    sizes = [12 * MEGABYTE, 4 * MEGABYTE, 16 * MEGABYTE, 16 * MEGABYTE] * 24
    total = sum(sizes)
    return chain(sizes, [0.75 * size / total for size in sizes], budget_nbytes, bytes_per_second=bytes_per_second)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("bytes_per_second", [0.8e9, 1.5e9, 2.5e9])
def test_a_transformer_streams_at_the_larger_of_compute_and_storage_time(share: float, bytes_per_second: float) -> None:
    problem = _vision_transformer(int(share * 24 * 48 * MEGABYTE), bytes_per_second)
    prediction = make_plan(problem).prediction
    reading_seconds = prediction.streamed_nbytes / bytes_per_second
    assert prediction.warm_seconds <= 1.02 * max(problem.compute_seconds, reading_seconds)
    assert prediction.lower_bound_seconds == least_warm_seconds(problem)
    assert prediction.warm_seconds <= 1.06 * prediction.lower_bound_seconds


def test_strategies_are_found_by_name() -> None:
    assert get("auto") is get("optimal")
    assert make_plan(chain([1], [0.0], 512)).strategy == "optimal"
    with pytest.raises(PlanError, match="balanced"):
        get("imbalanced")


def test_a_pass_without_calls_or_weights_has_a_plan() -> None:
    problem = replace(chain([10], [0.0], 100), calls=())
    plan = make_plan(problem)
    assert plan.arena_nbytes == 0
    assert plan.prediction.warm_seconds == 0.0
