"""Which storages leave, when they come back, and what that costs."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning.swap import METHODS, least_seconds, plan_swaps
from penstock.planning.swap_check import check_swaps
from penstock.planning.swap_plan import Swap, SwapPlan
from penstock.planning.swap_problem import Absence, Link, SwapProblem
from penstock.planning.swap_schedule import no_overhead, stick_to_limit
from penstock.planning.swap_scores import (
    SCORES,
    area_of_absence,
    by_submodular_duration,
    duration_of_absence,
    normalised,
    order_by,
    weighted_duration,
)

FAST = Link(0.0, 100.0)


def problem(limit_nbytes: int = 100, *, out: Link = FAST, back: Link = FAST) -> SwapProblem:
    """Three layers forward and backward: 40, 50 and 30 bytes are saved and taken back in the opposite order."""
    load = np.array([40, 90, 120, 120, 90, 40], dtype=np.int64)
    absences = (Absence(0, 40, 1, 5), Absence(1, 50, 2, 4), Absence(2, 30, 3, 4))
    return SwapProblem(np.ones(6), load, absences, out, back, limit_nbytes)


@st.composite
def problems(draw: st.DrawFn) -> SwapProblem:
    count = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
    gaps = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    length = 2 * count + 2
    load = np.zeros(length, dtype=np.int64)
    absences = []
    for index, (size, gap) in enumerate(zip(sizes, gaps, strict=True)):
        leaves, returns = min(index + 1 + gap, length - 2), length - 1 - index
        load[index:] += size
        load[returns + 1 :] -= size
        if leaves < returns:
            absences.append(Absence(index, size, leaves, returns))
    for index, size in enumerate(draw(st.lists(st.integers(1, 60), max_size=2)), start=count):  # state of an optimizer
        load += size
        used = draw(st.integers(0, length - 2))
        absences.append(Absence(index, size, used + 1, used + length))
    seconds = np.array(draw(st.lists(st.integers(0, 5), min_size=length, max_size=length)), dtype=np.float64)
    out, back = (Link(draw(st.sampled_from([0.0, 0.5])), draw(st.sampled_from([5.0, 20.0, 1e3]))) for _ in range(2))
    again = []
    for absence in absences[:count]:
        if absence.storage < count and draw(st.booleans()):
            others = [other.storage for other in absences if other.storage != absence.storage]
            sources = tuple(draw(st.lists(st.sampled_from(others), max_size=2, unique=True))) if others else ()
            again.append(replace(absence, recompute_seconds=draw(st.sampled_from([0.0, 0.5, 3.0])), sources=sources))
    made = SwapProblem(seconds, load, tuple(absences), out, back, 1, tuple(again))
    least = max(made.least_nbytes(), 1)
    return replace(made, limit_nbytes=draw(st.integers(least, max(made.peak_nbytes, least))))


def test_scores_are_the_papers() -> None:
    made = problem(100)
    first, second, third = made.absences
    assert duration_of_absence(made, first) == pytest.approx(4 - 0.8)
    assert area_of_absence(made, second) == pytest.approx((2 - 1.0) * 50)
    slow = problem(out=Link(0.0, 20.0))
    assert area_of_absence(slow, second) == pytest.approx((2 - 2.5 - 0.5) / 50)  # below zero: divided
    assert weighted_duration(made, first) == pytest.approx(20 + 20)
    assert weighted_duration(made, third) == pytest.approx(20)


def test_the_submodular_score_counts_what_is_left_after_each_choice() -> None:
    load = np.array([100, 110, 110, 101], dtype=np.int64)
    absences = (Absence(0, 10, 1, 3), Absence(1, 10, 1, 3), Absence(2, 5, 3, 4))
    made = SwapProblem(np.ones(4), load, absences, FAST, FAST, 100)
    assert by_submodular_duration(made)[:2] == (absences[0], absences[2])  # the second is worth nothing after the first
    assert order_by(made, (0, 0, 1, 0), normalised(made))[:2] == absences[:2]
    assert normalised(made).min() == 0
    assert normalised(made).max() == 1


def test_only_what_has_to_leaves_and_it_is_back_in_time() -> None:
    plan = plan_swaps(problem(100))
    assert [swap.storage for swap in plan.swaps] in ([0], [2], [1])
    assert plan.peak_nbytes <= 100 < plan.full_peak_nbytes == 120
    assert plan.overhead == 0
    (swap,) = plan.swaps
    assert swap.gone_by == 2  # there is room before the third segment


def test_what_lies_idle_from_one_iteration_to_the_next_is_away_but_for_its_use() -> None:
    load = np.array([50, 90, 50, 90, 50, 50], dtype=np.int64)
    state = Absence(7, 40, 5, 10)  # used in the fifth segment of each iteration
    made = SwapProblem(np.ones(6), load, (state,), FAST, FAST, 50)
    plan = plan_swaps(made)
    (swap,) = plan.swaps
    assert (swap.leaves, swap.returns) == (5, 10)
    assert 6 < swap.gone_by <= 7  # before the second segment of the next iteration
    assert swap.reads_at == 10  # there is no room any earlier
    assert plan.predicted_seconds == pytest.approx(6 + 0.4)  # it is waited for
    assert replace(made, limit_nbytes=90).away_nbytes([state]).tolist() == [40, 40, 40, 40, 0, 40]
    with pytest.raises(BudgetInfeasibleError):
        plan_swaps(replace(made, limit_nbytes=49))


def test_with_room_for_all_nothing_leaves() -> None:
    plan = plan_swaps(problem(120))
    assert plan.swaps == ()
    assert plan.predicted_seconds == plan.compute_seconds == plan.bound_seconds == 6


def test_slow_links_are_waited_for_and_the_limit_is_kept() -> None:
    made = problem(60, out=Link(0.0, 10.0), back=Link(0.0, 10.0))
    plan = plan_swaps(made)
    assert plan.predicted_seconds > plan.compute_seconds
    assert plan.peak_nbytes <= 60
    assert plan.bound_seconds <= plan.predicted_seconds


def test_where_transfers_would_be_waited_for_what_is_cheap_is_computed_again() -> None:
    slow = problem(90, out=Link(0.0, 10.0), back=Link(0.0, 10.0))
    second = slow.absences[1]
    again = replace(second, recompute_seconds=0.25)
    plan = plan_swaps(replace(slow, recomputable=(again,)))
    assert [swap.storage for swap in plan.swaps] == [1]
    (swap,) = plan.swaps
    assert swap.recompute_seconds == 0.25
    assert (swap.leaves, swap.gone_by, swap.reads_at, swap.returns) == (2, 2, 4, 4)
    assert plan.predicted_seconds == pytest.approx(6.25)
    assert (plan.swapped_nbytes, plan.recomputed_nbytes) == (0, 50)
    dear = replace(slow, recomputable=(replace(second, recompute_seconds=99.0),))
    assert plan_swaps(dear).recomputed_nbytes == 0
    assert plan_swaps(replace(slow, recomputable=(again,)), scores="doa").recomputed_nbytes == 0


def test_what_is_computed_again_has_its_sources_in_memory() -> None:
    slow = problem(40, out=Link(0.0, 40.0), back=Link(0.0, 40.0))
    load = np.array([40, 90, 90, 90, 90, 40], dtype=np.int64)
    source, made = Absence(0, 40, 1, 5), Absence(1, 50, 2, 4)
    again = replace(made, recompute_seconds=0.0, sources=(0,))
    both = replace(slow, load_nbytes=load, absences=(source, made), recomputable=(again,), limit_nbytes=50)
    plan = plan_swaps(both)
    assert not {(0, None), (1, 0.0)} <= {(swap.storage, swap.recompute_seconds) for swap in plan.swaps}
    swaps = (Swap(0, 40, 1, 1, 5, 5), Swap(1, 50, 2, 2, 4, 4, 0.0))
    with pytest.raises(PlanError, match="computed from storage 0, which is away"):
        check_swaps(both, replace(plan, swaps=swaps))


def test_without_overhead_the_limit_may_be_missed() -> None:
    slow = problem(60, out=Link(0.0, 30.0), back=Link(0.0, 30.0))
    plan = plan_swaps(slow, schedule="no-overhead")
    assert plan.overhead == 0
    assert 60 < plan.peak_nbytes <= 120
    assert no_overhead(problem(), ()).peak_nbytes == 120


def test_a_limit_that_nothing_can_keep_is_refused_with_the_least() -> None:
    with pytest.raises(BudgetInfeasibleError) as caught:
        plan_swaps(problem(45))
    assert caught.value.needed_nbytes == problem().least_nbytes() == 50
    assert plan_swaps(problem(50)).peak_nbytes <= 50


@settings(deadline=None)
@given(problems(), st.sampled_from(METHODS))
def test_every_method_keeps_the_limit_and_no_plan_beats_the_bound(made: SwapProblem, scores: str) -> None:
    plan = plan_swaps(made, scores=scores, seconds=0.2)
    assert plan.peak_nbytes <= made.limit_nbytes
    assert plan.predicted_seconds >= plan.bound_seconds - 1e-9
    check_swaps(made, plan)
    assert SwapPlan.from_json(plan.to_json()) == plan


@given(problems())
def test_the_best_is_no_slower_than_any_score_and_near_the_best_choice_there_is(made: SwapProblem) -> None:
    best = plan_swaps(made, seconds=1.0)
    for scores in SCORES:
        assert best.predicted_seconds <= plan_swaps(made, scores=scores).predicted_seconds + 1e-9
    oracle = min(
        found.seconds
        for chosen in choices(made)
        if (found := stick_to_limit(made, chosen)) is not None and is_allowed(made, chosen)
    )
    assert oracle >= least_seconds(made) - 1e-9
    most = 1.4 if made.recomputable else 1.25  # of 3000 problems 1.29 was the worst, with something to compute again
    assert best.predicted_seconds <= oracle * most + 1e-9


def choices(made: SwapProblem) -> Iterator[tuple[Absence, ...]]:
    """Each absence used, or not, or computed again."""
    again = {absence.storage: absence for absence in made.recomputable}
    ways = [
        [None, absence, *([again[absence.storage]] if absence.storage in again else [])] for absence in made.absences
    ]
    for chosen in itertools.product(*ways):
        yield tuple(absence for absence in chosen if absence is not None)


def is_allowed(made: SwapProblem, chosen: tuple[Absence, ...]) -> bool:
    return not any(
        other.storage in absence.sources and made.covers(other, absence.returns)
        for absence in chosen
        for other in chosen
    )


@pytest.mark.parametrize(
    "link", [(0.0, 0.0), (0.0, -1.0), (0.0, float("nan")), (0.0, float("inf")), (-1.0, 1.0), (float("nan"), 1.0)]
)
def test_absurd_links_are_refused(link: tuple[float, float]) -> None:
    with pytest.raises(PlanError, match="measure it again"):
        Link(*link)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": np.zeros(0), "load_nbytes": np.zeros(0, dtype=np.int64)},
        {"load_nbytes": np.zeros(5, dtype=np.int64)},
        {"seconds": np.array([1, 1, 1, 1, 1, np.nan])},
        {"seconds": np.array([1, 1, 1, 1, 1, -1.0])},
        {"load_nbytes": np.array([1, 1, 1, 1, 1, -1])},
        {"absences": (Absence(0, 40, 5, 3),)},
        {"absences": (Absence(0, 40, 1, 9),)},
        {"absences": (Absence(0, 40, 6, 7),)},
        {"recomputable": (Absence(0, 40, 1, 5),)},
        {"recomputable": (Absence(0, 40, 1, 4, 0.5),)},
        {"recomputable": (Absence(0, 40, 1, 5, -0.5),)},
        {"absences": (Absence(0, 0, 1, 3),)},
    ],
)
def test_iterations_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        replace(problem(), **change)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=10)
@given(problems())
def test_the_combined_score_is_no_slower_than_any_single_one(made: SwapProblem) -> None:
    weighted = plan_swaps(made, scores="weighted", seconds=2.0)
    for scores in SCORES:
        assert weighted.predicted_seconds <= plan_swaps(made, scores=scores).predicted_seconds + 1e-9


def test_without_optuna_the_combined_score_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(PlanError, match=r"penstock\[weights\]"):
        plan_swaps(problem(), scores="weighted")
    assert plan_swaps(problem()).swaps


@pytest.mark.parametrize("arguments", [{"scores": "luck"}, {"schedule": "sometimes"}])
def test_unknown_names_are_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(PlanError, match=next(iter(arguments.values()))):
        plan_swaps(problem(), **arguments)  # type: ignore[arg-type]


def test_a_plan_for_another_iteration_is_refused() -> None:
    made = problem(80)
    plan = plan_swaps(made)
    swap = plan.swaps[0]
    wrong = [
        replace(plan, segments=plan.segments - 1),
        replace(plan, swaps=(replace(swap, gone_by=swap.leaves - 1), *plan.swaps[1:])),
        replace(plan, swaps=tuple(replace(each, gone_by=each.reads_at) for each in plan.swaps)),
        replace(plan, swaps=(replace(swap, nbytes=swap.nbytes + 1), *plan.swaps[1:])),
        replace(plan, swaps=(replace(swap, reads_at=swap.leaves), *plan.swaps[1:])),
        replace(plan, swaps=(replace(swap, reads_at=swap.returns + 1), *plan.swaps[1:])),
        replace(plan, swaps=(swap, *plan.swaps)),
        replace(plan, swaps=plan.swaps[::-1]) if len(plan.swaps) > 1 else replace(plan, swaps=()),
        replace(plan, swaps=()),
    ]
    for other in wrong:
        with pytest.raises(PlanError, match="not for this iteration"):
            check_swaps(made, other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 2}', '{"version": 3}', "[" * 100_000])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        SwapPlan.from_json(text)


@pytest.mark.parametrize("change", [{"swaps": [{"storage": 0}]}, {"segments": "x"}, {"peak_nbytes": 1.5}, {"more": 1}])
def test_plans_with_wrong_fields_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        SwapPlan.from_json(json.dumps(json.loads(plan_swaps(problem(80)).to_json()) | change))
