"""The simulation of every pacing against a pipeline that is stepped from event to event."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning import Plan, Problem, check, make_plan, simulate
from penstock.planning.simulate import predict

from .pipeline_oracle import Pipeline
from .random_problems import chain, problems

PASSES = 4
SIMPLE = ["optimal", "sequential", "synchronous", "asynchronous", "two-stage", "preload", "swapnet"]


def _random_plan(problem: Problem, data: st.DataObject) -> tuple[Problem, Plan]:
    """Some strategy's plan for `problem`, with a random copy speed and maybe less haste than it could have."""
    name = data.draw(st.sampled_from(SIMPLE))
    speed = data.draw(st.sampled_from([300.0, 2000.0, 1e6]))
    problem = replace(problem, storage=replace(problem.storage, copy_bytes_per_second=speed))
    try:
        plan = make_plan(problem, name)
    except BudgetInfeasibleError:
        assume(False)
    assume(not plan.ebbs)  # the pipeline does not know what pages cost that come back
    if plan.pacing == "eager" and plan.loads and data.draw(st.booleans()):
        plan = _with_later_begins(problem, plan, data)
    return problem, replace(plan, prediction=predict(problem, plan))


def _with_later_begins(problem: Problem, plan: Plan, data: st.DataObject) -> Plan:
    """`plan`, where loads begin at a call of their own choice, as far as that is sound."""
    loads = list(plan.loads)
    for index, load in enumerate(loads):
        later = data.draw(st.integers(0, len(problem.calls) - 1))
        loads[index] = replace(load, after_call=later, after_pass=0)
        try:
            check(problem, replace(plan, loads=tuple(loads), pacing="planned"))
        except PlanError:
            loads[index] = load
    return replace(plan, loads=tuple(loads), pacing="planned")


@given(problems(budget_from=0.1), st.data())
@settings(max_examples=90, deadline=None)
def test_every_pacing_is_simulated_as_events_make_it(problem: Problem, data: st.DataObject) -> None:
    problem, plan = _random_plan(problem, data)
    check(problem, plan)
    timeline = simulate(problem, plan, passes=PASSES)
    pipeline = Pipeline(problem, plan, PASSES)
    simulated = [end for one in timeline.passes for end in one.call_end]
    assert simulated == pytest.approx(pipeline.run(), rel=1e-9, abs=1e-9)
    for number, one in enumerate(timeline.passes[:-1]):  # what comes after the last call is not stepped through
        loads = pipeline.loads[number * len(plan.loads) : (number + 1) * len(plan.loads)]
        assert one.load_end == pytest.approx([item.read_end for item in loads])
        assert len(one.copy_end) == (len(loads) if plan.staging_nbytes else 0)
        if one.copy_end:
            assert one.copy_end == pytest.approx([item.copy_end for item in loads])
            for begin, end, item in zip(one.copy_begin, one.copy_end, loads, strict=True):
                assert end - begin == pytest.approx(item.copy_seconds)


@given(problems(budget_from=0.1), st.data())
@settings(max_examples=90, deadline=None)
def test_the_prediction_of_every_pacing_is_its_long_run(problem: Problem, data: st.DataObject) -> None:
    problem, plan = _random_plan(problem, data)
    seconds = simulate(problem, plan, passes=81).pass_seconds
    assert seconds[0] == pytest.approx(plan.prediction.cold_seconds)
    assert sum(seconds[41:]) / 40 == pytest.approx(plan.prediction.warm_seconds, rel=0.02, abs=1e-9)
    assert plan.prediction.peak_nbytes == plan.arena_nbytes + plan.staging_nbytes + plan.reserve.total_nbytes


def test_a_planned_load_is_not_read_before_its_call_even_where_there_is_space() -> None:
    problem = chain([512] * 4, [1.0] * 4, 6 * 512, bytes_per_second=5120.0)
    plan = make_plan(problem, "two-stage")
    late = tuple(replace(load, after_call=load.first_call - 1, after_pass=0) for load in plan.loads[1:])
    planned = replace(plan, loads=(plan.loads[0], *late), pacing="planned")
    check(problem, planned)
    one = simulate(problem, planned, passes=2).passes[1]
    assert one.load_begin[1:] == pytest.approx(one.call_end[:3])


def test_a_copy_takes_as_long_as_its_blocks_over_the_copy_speed() -> None:
    problem = chain([1000] * 4, [1.0] * 4, 8192)
    problem = replace(problem, storage=replace(problem.storage, copy_bytes_per_second=4096.0))
    one = simulate(problem, make_plan(problem, "sequential"), passes=2).passes[1]
    assert [end - begin for begin, end in zip(one.copy_begin, one.copy_end, strict=True)] == [pytest.approx(0.25)] * 4
