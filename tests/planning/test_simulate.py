"""The simulator against an event-driven oracle that knows only bytes, calls and one storage server."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings

from penstock.errors import BudgetInfeasibleError
from penstock.planning import Call, Plan, Problem, make_plan, simulate
from penstock.planning.bounds import least_warm_seconds

from .random_problems import chain, problems

PASSES = 4


@dataclass
class _Item:
    """Something that the storage loads once: a resident (last None: never released) or a load of one pass."""

    weight: int
    first: int
    last: int | None
    start: int
    end: int
    seconds: float
    loaded_at: float = math.inf


@dataclass
class _Oracle:
    """Steps through time from event to event; call instances are numbered on over all passes."""

    problem: Problem
    plan: Plan
    ended_at: dict[int, float] = field(default_factory=dict)

    def items(self) -> list[_Item]:
        count = len(self.problem.calls)
        cold = []
        for slot in self.plan.resident:
            first = min(index for index, call in enumerate(self.problem.calls) if slot.weight in call.reads)
            cold.append(((first, 0), self._item(slot.weight, slot.offset, first, None)))
        items = []
        for number in range(PASSES):
            base = number * count
            loads = [
                (
                    (load.first_call, 1),
                    self._item(load.weight, load.offset, base + load.first_call, base + load.last_call),
                )
                for load in self.plan.loads
            ]
            both = sorted(cold + loads, key=lambda pair: pair[0]) if number == 0 else loads
            items += [item for _, item in both]
        return items

    def _item(self, weight: int, offset: int, first: int, last: int | None) -> _Item:
        storage, about = self.problem.storage, self.problem.weights[weight]
        start = offset - about.offset_in_block
        end = offset + about.nbytes
        end += -end % storage.block_nbytes
        seconds = about.requests * storage.request_seconds + (end - start) / storage.bytes_per_second
        return _Item(weight, first, last, start, end, seconds)

    def run(self) -> list[float]:
        """When each call instance ended."""
        items, now, serving, served, call, busy_until = self.items(), 0.0, None, 0, 0, None
        count = len(self.problem.calls)
        while call < count * PASSES:
            if serving is None and served < len(items) and self._has_space(items, served):
                serving = now + items[served].seconds
            if busy_until is None and self._has_weights(items, call, now):
                rows = [self.problem.weights[w].row_seconds for w in self._call(call).reads if w in self.plan.rows]
                lost = [self._lost_seconds(item) for item in items if item.first == call]
                busy_until = now + sum(rows) + sum(lost) + self._call(call).seconds
            events = [time for time in (serving, busy_until) if time is not None]
            assert events, f"deadlock before call {call}"
            now = min(events)
            if serving == now:
                items[served].loaded_at = now
                serving, served = None, served + 1
            if busy_until == now:
                self.ended_at[call] = now
                busy_until, call = None, call + 1
        return [self.ended_at[index] for index in range(call)]

    def _lost_seconds(self, item: _Item) -> float:
        """What the first call that reads it computes longer for its load."""
        storage = self.problem.storage
        return storage.load_compute_seconds + storage.read_compute_share * item.seconds

    def _call(self, instance: int) -> Call:
        return self.problem.calls[instance % len(self.problem.calls)]

    def _has_space(self, items: list[_Item], index: int) -> bool:
        item = items[index]
        return all(
            other.last is not None and other.last in self.ended_at
            for other in items[:index]
            if other.start < item.end and other.end > item.start
        )

    def _has_weights(self, items: list[_Item], instance: int, now: float) -> bool:
        for weight in self._call(instance).reads:
            if weight in self.plan.rows:
                continue
            covering = [
                item
                for item in items
                if item.weight == weight and (item.last is None or item.first <= instance <= item.last)
            ]
            assert len(covering) == 1
            if covering[0].loaded_at > now:
                return False
        return True


@given(problems(budget_from=0.05))
@settings(max_examples=90, deadline=None)
def test_the_simulation_is_what_an_event_driven_oracle_does(problem: Problem) -> None:
    try:
        plan = make_plan(problem)
    except BudgetInfeasibleError:
        return
    assume(not plan.ebbs)  # `test_ebbs` has those
    timeline = simulate(problem, plan, passes=PASSES)
    simulated = [end for one in timeline.passes for end in one.call_end]
    assert simulated == pytest.approx(_Oracle(problem, plan).run(), rel=1e-9, abs=1e-9)


@given(problems(budget_from=0.05))
@settings(max_examples=60, deadline=None)
def test_the_long_run_is_as_predicted_and_no_faster_than_the_bounds(problem: Problem) -> None:
    try:
        plan = make_plan(problem)
    except BudgetInfeasibleError:
        return
    prediction = plan.prediction
    assert prediction.warm_seconds >= prediction.lower_bound_seconds
    assert prediction.warm_seconds >= least_warm_seconds(problem) * (1 - 1e-9)
    assert prediction.stall_seconds == pytest.approx(prediction.warm_seconds - problem.compute_seconds)
    seconds = simulate(problem, plan, passes=121).pass_seconds
    assert seconds[0] == pytest.approx(prediction.cold_seconds)
    assert sum(seconds[61:]) / 60 == pytest.approx(prediction.warm_seconds, rel=0.02, abs=1e-9)


def test_a_resident_plan_never_stalls_once_it_is_warm() -> None:
    problem = chain([1000] * 5, [1e-3] * 5, 1 << 20)
    timeline = simulate(problem, make_plan(problem), passes=2)
    assert sum(timeline.passes[0].call_stall) > 0
    assert timeline.passes[1].call_stall == (0.0,) * 5
    assert len(timeline.resident_end) == 5


def test_loads_of_the_next_pass_start_while_this_one_computes() -> None:
    problem = chain([512] * 12, [1.0] * 12, 4 * 512, bytes_per_second=1024.0)
    plan = make_plan(problem)
    _, warm, after = simulate(problem, plan, passes=3).passes
    assert after.load_begin[0] < warm.call_end[-1]
    assert plan.prediction.stall_seconds == pytest.approx(0.0)


def test_stalls_begins_and_ends_of_a_pass_fit_together() -> None:
    problem = chain([5120] * 6, [1.0, 3.0] * 3, 3 * 5120, bytes_per_second=2000.0)
    for one in simulate(problem, make_plan(problem)).passes:
        for begin, end, call in zip(one.call_begin, one.call_end, problem.calls, strict=True):
            assert end - begin == pytest.approx(call.seconds)
        for before, begin, stall in zip(one.call_end, one.call_begin[1:], one.call_stall[1:], strict=False):
            assert begin - before == pytest.approx(stall)
