"""Where activations are small the arena is larger: which calls need an ebb, and plans that have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from penstock.planning import Plan, Problem, Reserve, Storage, check, simulate
from penstock.planning.ebbs import (
    EbbStay,
    capacity_nbytes,
    knows_activations,
    level_candidates,
    list_ebbs,
    live_nbytes,
    needed_nbytes,
    page_nbytes,
    skyline,
    streamable_uses,
)
from penstock.planning.lifetimes import needed_nbytes as needed_without_ebbs
from penstock.planning.memory import memory_over_time
from penstock.planning.regain import regained_nbytes

from .ebbing import least_plan, ring_plan
from .pipeline_oracle import Pipeline
from .random_problems import chain, problems

MIB = 1 << 20


def waves(activations: list[int], seconds: float = 1.0, budget_nbytes: int = 1 << 30) -> Problem:
    """One weight of a MiB a call, and these MiB of activations."""
    base = chain([MIB] * len(activations), [seconds] * len(activations), budget_nbytes)
    calls = tuple(
        replace(call, activations_nbytes=each * MIB) for call, each in zip(base.calls, activations, strict=True)
    )
    return replace(base, calls=calls, reserve=Reserve(max(activations) * MIB, 0, 0))


def test_calls_above_the_level_ebb_by_what_they_have_above_it() -> None:
    problem = waves([8, 6, 1, 1, 1, 3, 1, 5])
    assert list_ebbs(problem, 2 * MIB) == [EbbStay(0, 1, 6 * MIB), EbbStay(5, 5, MIB), EbbStay(7, 7, 3 * MIB)]
    assert list_ebbs(problem, 2 * MIB, top_nbytes=6 * MIB)[0] == EbbStay(0, 1, 4 * MIB)
    assert list_ebbs(problem, 8 * MIB) == []
    assert level_candidates(problem) == [each * MIB for each in (8, 6, 5, 3, 1)]
    assert level_candidates(problem, 3) == [8 * MIB, 5 * MIB, MIB]


def test_an_ebb_is_of_whole_pages() -> None:
    problem = waves([3, 1])
    problem = replace(problem, storage=replace(problem.storage, page_nbytes=2 * MIB))
    assert list_ebbs(problem, 2 * MIB - 1) == [EbbStay(0, 0, 2 * MIB)]


def test_stays_between_which_nothing_could_be_loaded_are_one() -> None:
    for seconds, count in ((1e-3, 1), (0.1, 2)):  # 4 MiB take about 4 ms to read at 1 GB/s
        assert len(list_ebbs(waves([5, 1, 9], seconds), MIB)) == count
    assert list_ebbs(waves([5, 1, 9], 1e-3), MIB) == [EbbStay(0, 2, 8 * MIB)]


def test_where_nobody_knows_when_activations_are_large_nothing_ebbs() -> None:
    problem = replace(waves([8, 1]), reserve=Reserve(9 * MIB, 0, 0))
    assert not knows_activations(problem)
    assert list_ebbs(problem, MIB) == []
    assert level_candidates(problem) == [9 * MIB]
    assert needed_nbytes(problem, sliced=False) == needed_without_ebbs(problem, sliced=False)
    assert capacity_nbytes(problem, 1) == problem.budget_nbytes - 9 * MIB


@given(problems(), st.data())
@settings(max_examples=90, deadline=None)
def test_beside_what_ebbs_every_call_has_room(problem: Problem, data: st.DataObject) -> None:
    level = data.draw(st.sampled_from(level_candidates(problem)))
    stays = list_ebbs(problem, level)
    assume(knows_activations(problem))
    for index, call in enumerate(problem.calls):
        lent_nbytes = sum(stay.nbytes for stay in stays if stay.first <= index <= stay.last)
        assert call.activations_nbytes - lent_nbytes <= level


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_a_skyline_leaves_each_call_its_height(heights: list[int]) -> None:
    found = list(skyline(heights, 6))
    for call, height in enumerate(heights):
        spans = sorted((begin, end) for use, begin, end in found if use.first <= call <= use.last)
        assert [byte for begin, end in spans for byte in range(begin, end)] == list(range(height, 6))


@given(problems())
@settings(max_examples=90, deadline=None)
def test_the_least_budget_has_a_plan_and_is_what_the_hardest_call_needs(problem: Problem) -> None:
    least_nbytes = needed_nbytes(problem, sliced=False)
    plan = least_plan(replace(problem, budget_nbytes=least_nbytes))
    check(replace(problem, budget_nbytes=least_nbytes), plan)
    assert plan.prediction.peak_nbytes <= least_nbytes <= needed_without_ebbs(problem, sliced=False)
    if knows_activations(problem):
        live = live_nbytes(problem, streamable_uses(problem), problem.extent_nbytes)
        hardest_nbytes = max(c.activations_nbytes + nbytes for c, nbytes in zip(problem.calls, live, strict=True))
        hardest_nbytes += problem.reserve.io_nbytes + problem.reserve.bookkeeping_nbytes
        assert hardest_nbytes <= least_nbytes < max(hardest_nbytes, 1) + page_nbytes(problem)


def _random_plan(problem: Problem, data: st.DataObject) -> Plan:
    """Some plan with ebbs, as `problem` allows."""
    level = data.draw(st.sampled_from(level_candidates(problem)[1:] or [0]))
    weights = {use.weight for use in streamable_uses(problem)}
    residents = data.draw(st.sets(st.sampled_from(sorted(weights)))) if weights else set()
    plan = ring_plan(problem, level, residents)
    if plan is None and problem.budget_nbytes >= needed_nbytes(problem, sliced=False):
        plan = least_plan(problem)
    assume(plan is not None and plan.ebbs)
    assert plan is not None
    return plan


@given(problems(budget_from=0.1), st.data())
@settings(max_examples=90, deadline=None)
def test_a_ring_with_ebbs_is_right_and_each_call_stays_within_the_budget(problem: Problem, data: st.DataObject) -> None:
    plan = _random_plan(problem, data)
    check(problem, plan)
    assert Plan.from_json(plan.to_json()) == plan
    for index, memory in enumerate(memory_over_time(plan)):
        lent = sum(ebb.nbytes for ebb in plan.ebbs if ebb.first_call <= index <= ebb.last_call)
        assert memory.lent_nbytes == lent
        in_arena = memory.resident_nbytes + memory.streamed_nbytes + memory.free_nbytes
        assert in_arena + lent == plan.arena_nbytes
        assert memory.total_nbytes <= plan.prediction.peak_nbytes <= problem.budget_nbytes
    assert "lent" in plan.explain()


@given(problems(budget_from=0.1), st.data())
@settings(max_examples=90, deadline=None)
def test_loads_wait_for_ebbs_and_ebbs_for_nothing(problem: Problem, data: st.DataObject) -> None:
    problem = replace(problem, storage=replace(problem.storage, regain_bytes_per_second=1e15))
    plan = _random_plan(problem, data)
    simulated = [end for one in simulate(problem, plan, 4).passes for end in one.call_end]
    assert simulated == pytest.approx(Pipeline(problem, plan, 4).run(), rel=1e-6, abs=1e-9)


@given(problems(budget_from=0.1), st.data())
@settings(max_examples=90, deadline=None)
def test_who_fills_a_place_first_after_an_ebb_pays_for_its_pages(problem: Problem, data: st.DataObject) -> None:
    plan = _random_plan(problem, data)
    assert regained_nbytes(problem, plan.loads, plan.ebbs) == list(_regained(problem, plan))


def _regained(problem: Problem, plan: Plan) -> Iterator[int]:
    """Block by block, in the order of calls: for each load those that an ebb was the last to have."""
    block, count = problem.storage.block_nbytes, len(problem.calls)
    stays: list[tuple[int, int, set[int]]] = []  # the last call of a stay, its load (or -1), its blocks
    for index, load in enumerate(plan.loads):
        begin = (load.offset + load.first_byte) // block
        stays.append(
            (load.last_call, index, set(range(begin, -(-(load.offset + load.first_byte + load.nbytes) // block))))
        )
    stays += [
        (ebb.last_call, -1, set(range(ebb.offset // block, (ebb.offset + ebb.nbytes) // block))) for ebb in plan.ebbs
    ]
    for index, load in enumerate(plan.loads):
        blocks = next(blocks for _, other, blocks in stays if other == index)
        found = 0
        for each in blocks:
            others = [
                (last if last < load.first_call else last - count, number)
                for last, number, held in stays
                if each in held
            ]
            found += max(others)[1] == -1
        yield found * block


def test_pages_that_come_anew_take_their_time() -> None:
    problem = waves([3, 0, 0], budget_nbytes=4 * MIB)
    storage = Storage(MIB / 0.5, 0.0, 4096, regain_bytes_per_second=MIB / 0.25)
    problem = replace(problem, storage=storage)
    plan = ring_plan(problem, 0)
    assert plan is not None
    regained = regained_nbytes(problem, plan.loads, plan.ebbs)
    assert regained == [0, 0, MIB], "the last weight alone lies where memory has ebbed"
    durations = [end - begin for begin, end in zip(*_last_loads(problem, plan), strict=True)]
    assert durations == pytest.approx([0.5 + 0.25 * nbytes / MIB for nbytes in regained])


def _last_loads(problem: Problem, plan: Plan) -> tuple[tuple[float, ...], tuple[float, ...]]:
    last = simulate(problem, plan, 5).passes[-1]
    return last.load_begin, last.load_end
