"""The timeline of a plan is the simulation's, and a trace that viewers can read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError
from penstock.planning import Problem, make_plan, simulate
from penstock.planning.strategies import names
from penstock.report.predicted import predicted_tracks
from penstock.report.timeline import COMPUTE, PASSES, STALLS, STORAGE, Occupancy, Span, Tracks

from ..planning.random_problems import chain, problems  # noqa: TID252
from .traces import spans_of

PROBLEM = chain([5120] * 6, [1.0, 3.0] * 3, 3 * 5120, bytes_per_second=2000.0)


@pytest.mark.parametrize("strategy", names())
@given(problem=problems(budget_from=0.05))
@settings(max_examples=30)
def test_any_plan_gives_a_sound_trace_whose_counters_stay_within_the_arena(strategy: str, problem: Problem) -> None:
    try:
        plan = make_plan(problem, strategy)
    except BudgetInfeasibleError:
        return
    tracks = predicted_tracks(problem, plan, "random")
    spans = spans_of(tracks.to_chrome_trace())
    assert bool(spans["copy"]) == bool(plan.staging_nbytes and plan.loads)
    assert "storage 2" not in spans, "one storage server loads one thing at a time"
    if plan.resident or plan.loads:
        assert max(each.resident_nbytes + each.streamed_nbytes for each in tracks.occupancy) > 0


def test_the_tracks_say_what_the_simulation_says() -> None:
    plan = make_plan(PROBLEM)
    timeline = simulate(PROBLEM, plan, 3)
    spans = predicted_tracks(PROBLEM, plan, "chain").spans
    calls = [(span.name, span.begin_seconds, span.end_seconds) for span in spans if span.track == COMPUTE]
    assert calls == [
        (call.name, begin, end)
        for one in timeline.passes
        for call, begin, end in zip(PROBLEM.calls, one.call_begin, one.call_end, strict=True)
    ]
    stalled = sum(span.end_seconds - span.begin_seconds for span in spans if span.track == STALLS)
    assert stalled == pytest.approx(sum(sum(one.call_stall) for one in timeline.passes))
    passes = [span for span in spans if span.track == PASSES]
    assert [span.name for span in passes] == ["pass 1 (cold)", "pass 2", "pass 3"]
    assert [span.end_seconds - span.begin_seconds for span in passes] == pytest.approx(list(timeline.pass_seconds))
    loaded = [span.name for span in spans if span.track == STORAGE]
    assert len(loaded) == len(plan.resident) + 3 * len(plan.loads)
    assert {f"w{load.weight}" for load in plan.loads} <= set(loaded)


@given(problem=problems(budget_from=0.05), strategy=st.sampled_from(names()))
@settings(max_examples=60, deadline=None)
def test_memory_by_kind_is_the_arena_and_what_the_running_call_has_besides(problem: Problem, strategy: str) -> None:
    try:
        plan = make_plan(problem, strategy)
    except BudgetInfeasibleError:
        return
    tracks = predicted_tracks(problem, plan, "random")
    timeline = simulate(problem, plan, 3)
    for one in timeline.passes:
        for call, begin in zip(problem.calls, one.call_begin, strict=True):
            if call.seconds:  # several without compute may begin at one moment
                last = max(
                    (moment for moment in tracks.memory if moment.seconds <= begin + 1e-9), key=lambda at: at.seconds
                )
                assert last.nbytes["activations"] == call.activations_nbytes
    for moment in tracks.memory:
        assert sum(moment.nbytes.values()) <= plan.prediction.peak_nbytes
        in_arena = sum(moment.nbytes[kind] for kind in ("resident weights", "streamed weights", "free arena"))
        assert in_arena == plan.arena_nbytes or (plan.ebbs and in_arena < plan.arena_nbytes)


def test_calls_and_stalls_of_a_pass_fill_it() -> None:
    spans = predicted_tracks(PROBLEM, make_plan(PROBLEM), "chain").spans
    filled = sum(span.end_seconds - span.begin_seconds for span in spans if span.track in (COMPUTE, STALLS))
    assert filled == pytest.approx(max(span.end_seconds for span in spans if span.track == PASSES))


def test_spans_at_the_same_time_get_lanes_of_their_own() -> None:
    spans = (Span(STORAGE, "a", 0.0, 2.0), Span(STORAGE, "b", 1.0, 3.0), Span(STORAGE, "c", 2.0, 4.0))
    tracks = Tracks("lanes", 8, spans, (Occupancy(0.0, 0, 8),))
    found = spans_of(tracks.to_chrome_trace())
    assert [span["name"] for span in found["storage"]] == ["a", "c"]
    assert [span["name"] for span in found["storage 2"]] == ["b"]


def test_a_saved_timeline_is_json_with_a_name_for_every_track(tmp_path: Path) -> None:
    file = tmp_path / "timeline.json"
    predicted_tracks(PROBLEM, make_plan(PROBLEM), "chain within 1 MiB").save(file)
    trace = json.loads(file.read_text())
    assert list(spans_of(trace)) == ["passes", "compute", "stalls", "copy", "storage"]
    assert trace["traceEvents"][0]["args"] == {"name": "chain within 1 MiB"}
    assert trace["displayTimeUnit"] == "ms"


def test_a_plan_in_slices_has_a_timeline_with_a_span_for_each_slice() -> None:
    whole = chain([4096, 64 << 20, 4096], [1e-3] * 3, 24 << 20)
    problem = replace(whole, weights=(whole.weights[0], replace(whole.weights[1], rows=64), whole.weights[2]))
    plan = make_plan(problem)
    assert plan.cuts
    spans = predicted_tracks(problem, plan, "sliced").spans
    slices = {span.name for span in spans if span.track == STORAGE and span.name.startswith("w1[")}
    assert len(slices) == len(plan.cuts[0].rows) + 1
