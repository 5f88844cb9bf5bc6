"""FlashMem's overlap plan against every plan of tiny models, and its ladder to the last rung."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning import Call, Plan, PlanOptions, Problem, check, make_plan
from penstock.planning.strategies.flashmem import FlashMem, _load_capacity
from penstock.planning.strategies.overlap import Item, Moves, Overlap, Overlapped
from penstock.planning.strategies.overlap_greedy import Greedy, best_greedy, on_demand
from penstock.planning.strategies.overlap_solver import INFEASIBLE, OPTIMAL, solve

from .random_problems import chain, problems

MEGABYTE = 1 << 20


@pytest.fixture
def _solver() -> None:
    pytest.importorskip("ortools", reason="flashmem plans with ortools, which is not installed")


solver = pytest.mark.usefixtures("_solver")


@st.composite
def overlaps(draw: st.DrawFn, calls: int = 5, most: int = 4, lookback: int = 5) -> Overlap:
    """Up to `most` stays, of up to two chunks; a weight may be read more than once."""
    items: list[Item] = []
    ended: dict[int, int] = {}
    chunks = {weight: draw(st.integers(1, 2)) for weight in range(most)}
    for first in range(calls):
        if len(items) == most or not draw(st.booleans()):
            continue
        weight = draw(st.sampled_from([weight for weight in range(most) if ended.get(weight, -1) < first]))
        last = draw(st.integers(first, min(first + 1, calls - 1)))
        earliest = max(ended.get(weight, -1) + 1, first - lookback)
        items.append(Item(weight, first, last, earliest, chunks[weight], 10 + 5 * (weight % 2)))
        ended[weight] = last
    capacity = tuple(draw(st.sampled_from([0, 10, 15, 30, 60])) for _ in range(calls))
    live = [sum(item.held_nbytes for item in items if item.first <= call <= item.last) for call in range(calls)]
    cap = draw(st.integers(max(live), max(live) + 40))
    return Overlap(tuple(items), capacity, (cap,) * calls, draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])))


def _all_moves(item: Item) -> Iterator[Moves]:
    calls = range(item.earliest, item.first)
    for counts in product(range(item.chunks + 1), repeat=len(calls)):
        if sum(counts) == item.chunks:
            yield {call: count for call, count in zip(calls, counts, strict=True) if count}


def _is_sound(overlap: Overlap, preloaded: set[int], moves: list[Moves]) -> bool:
    """Capacity and cap, counted chunk by chunk."""
    sizes = {item.weight: item.chunks * item.chunk_nbytes for item in overlap.items}
    for call in range(len(overlap.capacity_nbytes)):
        moved = held = 0
        for item, one in zip(overlap.items, moves, strict=True):
            moved += one.get(call, 0) * item.chunk_nbytes
            if call <= item.last:
                held += sum(count for when, count in one.items() if when <= call) * item.chunk_nbytes
        held += sum(sizes[weight] for weight in preloaded)
        if moved > overlap.capacity_nbytes[call] or held > overlap.cap_nbytes[call]:
            return False
    return True


def _best_objective(overlap: Overlap) -> float:
    """Of every solution; infinite where there is none."""
    weights = sorted({item.weight for item in overlap.items})
    best = float("inf")
    for chosen in product([False, True], repeat=len(weights)):
        preloaded = {weight for weight, is_in in zip(weights, chosen, strict=True) if is_in}
        ways = [[{}] if item.weight in preloaded else list(_all_moves(item)) for item in overlap.items]
        for moves in product(*ways):
            distance = sum(item.first - min(one) for item, one in zip(overlap.items, moves, strict=True) if one)
            objective = overlap.lam * len(preloaded) + (1 - overlap.lam) * distance
            if objective < best and _is_sound(overlap, preloaded, list(moves)):
                best = objective
    return best


@solver
@given(overlaps())
@settings(max_examples=90, deadline=None)
def test_the_solver_finds_the_best_of_all_plans(overlap: Overlap) -> None:
    solved = solve(overlap, best_greedy(overlap), 30.0)
    best = _best_objective(overlap)
    if best == float("inf"):
        assert solved.status == INFEASIBLE
        return
    assert solved.status == OPTIMAL
    assert solved.solution is not None
    assert solved.solution.keeps(overlap)
    assert solved.solution.objective(overlap) == pytest.approx(best, abs=1e-9)
    assert solved.bound == pytest.approx(best, abs=1e-6)
    assert overlap.least_objective() <= best + 1e-9
    assert not overlap.is_hopeless()


@given(overlaps(calls=12, most=10, lookback=3), st.floats(0.0, 1.0))
@settings(max_examples=90, deadline=None)
def test_by_hand_there_is_always_a_plan_and_it_says_whether_it_keeps_the_limits(overlap: Overlap, share: float) -> None:
    found = Greedy(overlap, share).solve()
    for item, moves in found.pairs(overlap):
        assert sum(moves.values()) == (0 if item.weight in found.preloaded else item.chunks)
        assert all(item.earliest <= call <= item.first for call in moves)
    assert max(found.held_nbytes(overlap)) <= overlap.cap_nbytes[0]
    is_sound = _is_sound(overlap, found.preloaded, found.moves) and not on_demand(overlap, found)
    assert found.keeps(overlap) == is_sound


def test_what_is_needed_first_and_fits_is_preloaded() -> None:
    overlap = Overlap((Item(0, 0, 0, 0, 1, 10), Item(1, 1, 1, 0, 1, 10)), (10, 10), (20, 20), 0.9)
    assert Greedy(overlap).solve() == Overlapped({0}, [{}, {0: 1}])


def _streaming(budget_nbytes: int = 8 * MEGABYTE) -> Problem:
    """Twenty layers of a megabyte; one takes half as long to load as to compute."""
    return chain([MEGABYTE] * 20, [2e-3] * 20, budget_nbytes, bytes_per_second=MEGABYTE / 1e-3)


def _bytes_in_memory(problem: Problem, plan: Plan) -> list[int]:
    """During each call: residents, and loads from when they may begin until they are released."""
    held = [sum(problem.extent_nbytes(slot.weight) for slot in plan.resident)] * len(problem.calls)
    for load in plan.loads:
        for call in range(load.after_call + 1 if load.after_pass == 0 else 0, load.last_call + 1):
            held[call] += load.nbytes
    return held


@solver
@given(problems(budget_from=0.1))
@settings(max_examples=60, deadline=None)
def test_bytes_in_memory_never_exceed_the_cap(problem: Problem) -> None:
    try:
        plan = make_plan(problem, "flashmem")
    except BudgetInfeasibleError:
        return
    assert max(_bytes_in_memory(problem, plan)) <= problem.budget_nbytes - problem.reserve.total_nbytes
    assert plan.pacing == "planned"


def _with_capacity(problem: Problem, load_nbytes: int) -> Problem:
    return replace(problem, calls=tuple(replace(call, load_nbytes=load_nbytes) for call in problem.calls))


@solver
@given(problems(budget_from=0.1), st.sampled_from([64, 128, 320]))
@settings(max_examples=60, deadline=None)
def test_chunks_join_on_blocks_wherever_a_weight_begins(problem: Problem, chunk_nbytes: int) -> None:
    strategy = FlashMem(chunk_nbytes=chunk_nbytes, lam=0.8)
    problem = _with_capacity(problem, chunk_nbytes)
    if problem.budget_nbytes >= strategy.needed_nbytes(problem):
        check(problem, strategy.plan(problem))


@solver
def test_what_chunks_round_up_does_not_count_against_the_least_budget() -> None:
    problem = chain([3 * 512] * 3, [1.0] * 3, 3 * 512)
    check(problem, FlashMem(chunk_nbytes=2 * 512).plan(problem))


@solver
def test_chunks_of_a_weight_move_during_several_calls_within_their_capacity() -> None:
    strategy = FlashMem(lam=0.99, chunk_nbytes=MEGABYTE // 4)
    problem = _with_capacity(_streaming(), MEGABYTE // 2)
    plan = strategy.plan(problem)
    check(problem, plan)
    assert dict(plan.details)["step"] != "solver"  # a megabyte a call does not fit through half of one
    problem = _with_capacity(_streaming(), MEGABYTE + MEGABYTE // 4)
    plan = replace(strategy, lam=1.0).plan(problem)
    check(problem, plan)
    assert dict(plan.details)["step"] == "solver"
    moved: dict[int, int] = {}
    for load in plan.loads:
        moved[load.after_call] = moved.get(load.after_call, 0) + load.nbytes
    assert max(moved.values()) <= MEGABYTE + MEGABYTE // 4
    assert len(plan.loads) >= 19
    assert {slot.weight for slot in plan.resident} == {0}


@solver
def test_lambda_trades_memory_for_moves() -> None:
    problem = chain([MEGABYTE] * 20, [2e-3] * 20, 30 * MEGABYTE, bytes_per_second=MEGABYTE / 1e-4)
    peaks = []
    for lam in (0.0, 0.25, 0.9):
        plan = make_plan(problem, "flashmem", options=PlanOptions(lam=lam))
        peaks.append(plan.prediction.peak_nbytes)
    assert peaks[0] == peaks[1] == 20 * MEGABYTE
    assert peaks[2] < 5 * MEGABYTE


@solver
def test_m_peak_caps_the_weights_in_memory() -> None:
    problem = _streaming(30 * MEGABYTE)
    plan = make_plan(problem, "flashmem", options=PlanOptions(peak_nbytes=6 * MEGABYTE))
    assert plan.arena_nbytes <= 6 * MEGABYTE
    assert plan.budget_nbytes == 6 * MEGABYTE
    with pytest.raises(PlanError, match=r"peak_nbytes.*1048576"):
        make_plan(problem, "flashmem", options=PlanOptions(peak_nbytes=1000))


@solver
def test_classes_say_how_much_a_call_may_be_slowed_down_where_nothing_was_measured() -> None:
    problem = _streaming()
    kinds = ("reusable", "elemental", "hierarchical")
    calls = [replace(call, kind=kind) for call, kind in zip(problem.calls, kinds, strict=False)]
    calls.append(replace(problem.calls[3], load_nbytes=17))
    capacity = [_load_capacity(problem, call) for call in calls]
    assert capacity == pytest.approx([0.4 * MEGABYTE, 6 * MEGABYTE, 0, 17], abs=2)


@solver
def test_a_solver_that_runs_out_of_time_still_ends_with_a_plan() -> None:
    sizes = [MEGABYTE * (1 + index % 7) for index in range(200)]
    problem = chain(sizes, [1e-3] * 200, 150 * MEGABYTE, bytes_per_second=2e9)
    plan = make_plan(problem, "flashmem", options=PlanOptions(time_limit_seconds=1e-9))
    details = dict(plan.details)
    assert details["status"] == "FEASIBLE"
    assert float(details["bound"]) <= float(details["objective"])
    check(problem, plan)


@solver
def test_a_long_model_is_solved_in_a_rolling_window() -> None:
    problem = chain([MEGABYTE] * 200, [2e-3] * 200, 60 * MEGABYTE, bytes_per_second=MEGABYTE / 2e-4)
    plan = make_plan(problem, "flashmem", options=PlanOptions(time_limit_seconds=2.0))
    details = dict(plan.details)
    assert details["step"].startswith("solver")
    assert float(details["objective"]) >= float(details["bound"]) > 0


@solver
def test_where_nothing_fits_beside_a_layer_it_is_loaded_on_demand() -> None:
    problem = _streaming(MEGABYTE)
    plan = make_plan(problem, "flashmem")
    details = dict(plan.details)
    assert details["step"] == "by hand, with loads on demand"
    assert int(details["on demand"]) == 20
    assert [load.after_call for load in plan.loads[1:]] == list(range(19))


@solver
def test_a_weight_that_is_read_twice_is_moved_for_each_stay_or_preloaded_for_both() -> None:
    base = _streaming(4 * MEGABYTE)
    problem = replace(base, calls=(*base.calls, Call("again", 2e-3, (3,), 20)))
    plan = make_plan(problem, "flashmem", options=PlanOptions(lam=0.99))
    stays = {(load.first_call, load.last_call) for load in plan.loads if load.weight == 3}
    assert stays in ({(3, 3), (20, 20)}, set())


def test_without_the_solver_the_message_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(PlanError, match=r"pip install 'penstock\[solver\]'"):
        make_plan(_streaming(), "flashmem")
