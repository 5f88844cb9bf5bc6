"""Layer calls are timed without being recorded; what is known of a call changes only where it matters."""

from __future__ import annotations

import pytest

from penstock import listening
from penstock.listening import Clock
from penstock.trace import Trace, TracedCall


def trace(*seconds: float, is_timed: bool = True) -> Trace:
    calls = tuple(TracedCall(str(i), (i,), (), value, i) for i, value in enumerate(seconds))
    return Trace(tuple("abc"[: len(seconds)]), calls, 0, frozenset(), {}, is_timed)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that each layer of the clock's pass takes; no real time goes by."""
    now = [0.0]
    monkeypatch.setattr(listening, "perf_counter", lambda: now[0])
    return now


def run(clock: Clock, now: list[float], *seconds: float) -> None:
    for index, value in enumerate(seconds):
        clock.begin(str(index))
        now[0] += value
        clock.end()


def test_times_are_measured(passes: list[float]) -> None:
    clock = Clock(frozenset("01"), lambda: 0.0)
    run(clock, passes, 1.0, 2.0)
    timed = clock.timed(trace(9.0, 9.0, is_timed=False), 0.0)
    assert timed is not None
    assert timed.is_timed
    assert [call.seconds for call in timed.calls] == [1.0, 2.0]


def test_the_shorter_of_several_passes_is_shared_by_the_shortest_times(passes: list[float]) -> None:
    clock = Clock(frozenset("01"), lambda: 0.0)
    run(clock, passes, 1.0, 6.5)
    timed = clock.timed(trace(4.0, 5.0), 0.0)
    assert timed is not None
    assert [call.seconds for call in timed.calls] == [1.25, 6.25]


def test_a_longer_pass_tells_nothing_though_one_of_its_layers_was_faster(passes: list[float]) -> None:
    known = trace(4.0, 5.0)
    clock = Clock(frozenset("01"), lambda: 0.0)
    run(clock, passes, 1.0, 9.0)
    assert clock.timed(known, 0.0) == known


def test_times_that_are_hardly_shorter_leave_the_trace_and_so_its_plan_as_they_are(passes: list[float]) -> None:
    known = trace(4.0, 5.0)
    clock = Clock(frozenset("01"), lambda: 0.0)
    run(clock, passes, 3.8, 5.0)
    assert clock.timed(known, 0.0) == known


def test_a_pass_that_lost_much_corrects_no_other(passes: list[float]) -> None:
    known = trace(4.0, 5.0)
    clock = Clock(frozenset("01"), lambda: 0.0)
    run(clock, passes, 4.0, 5.0)
    assert clock.timed(known, 3.0) == known


def test_a_pass_of_other_calls_tells_nothing(passes: list[float]) -> None:
    clock = Clock(frozenset("01"), lambda: 0.0)
    run(clock, passes, 1.0)
    assert clock.timed(trace(4.0, 5.0), 0.0) is None


def test_what_a_pass_lost_to_loads_is_no_time_of_its_layers(passes: list[float]) -> None:
    clock = Clock(frozenset("01"), lambda: 0.0)
    run(clock, passes, 1.0, 3.0)
    timed = clock.timed(trace(9.0, 9.0, is_timed=False), 1.0)
    assert timed is not None
    assert [call.seconds for call in timed.calls] == [0.75, 2.25]
