"""Memory over time is what the simulated timeline has in the arena, and what each call needs beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError
from penstock.planning import Plan, Problem, Reserve, make_plan, simulate
from penstock.planning.costs import extent_nbytes
from penstock.planning.memory import KINDS, memory_over_time, peak_call, peak_nbytes
from penstock.planning.slicing import as_planned
from penstock.planning.strategies import names

from .random_problems import chain, problems


def _plan(problem: Problem, strategy: str) -> Plan:
    try:
        return make_plan(problem, strategy)
    except BudgetInfeasibleError:
        assume(False)
        raise


@given(problem=problems(budget_from=0.1), strategy=st.sampled_from(names()))
@settings(max_examples=60, deadline=None)
def test_every_call_stays_within_the_predicted_peak(problem: Problem, strategy: str) -> None:
    plan = _plan(problem, strategy)
    over_time = memory_over_time(plan)
    for call, memory in zip(problem.calls, over_time, strict=True):
        of_arena = (memory.resident_nbytes, memory.streamed_nbytes, memory.free_nbytes, memory.lent_nbytes)
        assert sum(of_arena) == plan.arena_nbytes
        assert memory.activations_nbytes == call.activations_nbytes
        assert memory.total_nbytes <= plan.prediction.peak_nbytes <= problem.budget_nbytes
        assert tuple(memory.by_kind) == KINDS
    if any(call.activations_nbytes == problem.reserve.activations_nbytes for call in problem.calls):
        peak = peak_call(plan)
        assert peak is not None
        assert over_time[peak].total_nbytes == plan.prediction.peak_nbytes


@given(problem=problems(budget_from=0.1), strategy=st.sampled_from(names()))
@settings(max_examples=60, deadline=None)
def test_streamed_bytes_are_those_that_the_timeline_has_in_the_arena(problem: Problem, strategy: str) -> None:
    plan = _plan(problem, strategy)
    passes = simulate(problem, plan, 60).passes[-2:]
    assume(_is_steady(problem, plan))
    begins = [one.copy_begin or one.load_begin for one in passes]
    problem = as_planned(problem, plan.joins, plan.cuts)
    for call, found in enumerate(plan.prediction.call_streamed_nbytes):
        end = passes[0].call_end[call]
        held = [load for load in plan.loads if load.first_call <= call <= load.last_call]
        near = 1e-6 * (1 + end)
        least = sum(extent_nbytes(problem, load) for load in held)
        most = least
        for load, now, following in zip(plan.loads, *begins, strict=True):
            nbytes = extent_nbytes(problem, load)
            if load not in held:
                least += nbytes * (now < end - near and call < load.first_call) + nbytes * (following < end - near)
                most += nbytes * (now < end + near and call < load.first_call) + nbytes * (following < end + near)
            else:
                least, most = least + nbytes * (following < end - near), most + nbytes * (following < end + near)
        assert least <= found <= most


def _is_steady(problem: Problem, plan: Plan) -> bool:
    """Whether every late pass is like the one before: of others, the prediction shows one that need not be the last."""
    last = simulate(problem, plan, 62).passes[-6:]
    lengths = [[end - one.call_end[-1] for end in (*one.load_begin, *one.call_end)] for one in last]
    return all(other == pytest.approx(lengths[0], abs=1e-7) for other in lengths)


def test_a_reserve_that_no_call_is_said_to_need_counts_beside_the_whole_arena() -> None:
    problem = replace(chain([4096] * 3, [1.0] * 3, 100_000), reserve=Reserve(5000, 20, 3))
    plan = make_plan(problem)
    assert plan.prediction.peak_nbytes == 3 * 4096 + 5023
    busy = replace(problem, calls=tuple(replace(call, activations_nbytes=5000) for call in problem.calls))
    assert make_plan(busy).prediction.peak_nbytes == 3 * 4096 + 5023


def test_a_saved_plan_shows_which_call_needs_most_and_of_what() -> None:
    calls = chain([1 << 20] * 4, [1.0] * 4, 1).calls
    calls = tuple(
        replace(call, activations_nbytes=(3 << 20 if index == 2 else 1 << 20)) for index, call in enumerate(calls)
    )
    problem = replace(chain([1 << 20] * 4, [1.0] * 4, 7 << 20), calls=calls, reserve=Reserve(3 << 20, 0, 1 << 20))
    plan = Plan.from_json(make_plan(problem).to_json())
    assert peak_call(plan) == 2
    assert peak_nbytes(plan) == 7 << 20
    text = plan.explain()
    peak = text[text.index("Memory at its peak") : text.index("Weights")]
    assert [line.split()[-2:] for line in peak.splitlines() if "activations" in line] == [["3.0", "MiB"]]
    assert "during            c2" in peak
    assert [line.split()[2:4] for line in peak.splitlines() if "all together" in line] == [["7.0", "MiB"]]
    assert [line.split()[1:] for line in peak.splitlines() if "least" in line] == [["5.0", "MiB", "(during", "c0)"]]
