"""A sweep asks every strategy about every budget that makes sense, and says what it could not learn."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from penstock.errors import BudgetError, BudgetInfeasibleError, PlanError
from penstock.planning import Problem, make_plan
from penstock.planning.strategies import get, names
from penstock.report import sweep
from penstock.report.measured import spread
from penstock.report.sweeping import choose_budgets, find_budgets

from ..planning.random_problems import chain, problems  # noqa: TID252
from .curves import MIB, make, posed

PROBLEM = chain([2 * MIB] * 12, [1e-3] * 12, 1, bytes_per_second=1e9)


@given(problems())
@settings(max_examples=20)
def test_budgets_begin_with_the_least_that_works_and_end_with_everything_resident(problem: Problem) -> None:
    at = posed(problem)
    budgets = find_budgets(at)
    assert budgets == sorted(set(budgets))
    assert not make_plan(at(budgets[-1])).loads
    make_plan(at(budgets[0]))
    if budgets[0] > 1:
        with pytest.raises(BudgetInfeasibleError):
            make_plan(at(int(budgets[0] * 0.85)))


@pytest.mark.parametrize(("least", "full"), [(28 * MIB, 260 * MIB), (430 * MIB, 540 * MIB), (5 * MIB, 90 * MIB)])
def test_about_sixteen_budgets_are_chosen(least: int, full: int) -> None:
    budgets = choose_budgets(least, full)
    assert 10 <= len(budgets) <= 17
    assert (budgets[0], budgets[-1]) == (least, full)


def test_the_least_and_the_full_budget_may_be_one() -> None:
    assert choose_budgets(1, 1) == [1]
    assert choose_budgets(7 * MIB, 6 * MIB) == [7 * MIB]


@given(problems())
@settings(max_examples=20)
def test_the_bound_never_rises_with_the_budget_and_lies_below_every_prediction(problem: Problem) -> None:
    curve = sweep(posed(problem))
    bounds = curve.bound()
    assert [budget for budget, _ in bounds] == list(curve.budgets)
    assert [seconds for _, seconds in bounds] == sorted((seconds for _, seconds in bounds), reverse=True)
    for point in curve.points:
        if point.predicted_seconds is not None and point.lower_bound_seconds is not None:
            assert point.lower_bound_seconds <= point.predicted_seconds * (1 + 1e-9)


def test_every_strategy_has_a_point_at_every_budget_infeasible_or_not() -> None:
    at = posed(PROBLEM)
    curve = sweep(at, budgets=[8 * MIB, 64 * MIB], strategies=["lean", "greedy"], make=make)
    assert [(p.budget_nbytes // MIB, p.strategy) for p in curve.points] == [
        (8, "lean"),
        (8, "greedy"),
        (64, "lean"),
        (64, "greedy"),
    ]
    refused = curve.points[1]
    assert refused.predicted_seconds is refused.lower_bound_seconds is None
    assert refused.needed_nbytes is not None
    assert curve.needs() == {"greedy": refused.needed_nbytes}
    make(at(int(refused.needed_nbytes * 65 / 64) + 1), "greedy")


def test_budgets_begin_where_the_leanest_strategy_does() -> None:
    at = posed(PROBLEM)
    both = find_budgets(at, ["greedy", "lean"], make)
    assert both[0] == find_budgets(at, ["lean"], make)[0] < find_budgets(at, ["greedy"], make)[0]


def test_a_strategy_that_fails_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.report.sweeping.names", lambda: ("lean", "broken"))
    curve = sweep(posed(PROBLEM), make=make)
    assert curve.strategies == ("lean",)
    assert len(curve.remarks) == 1
    assert curve.remarks[0].startswith("broken is left out")
    assert "its solver is not installed" in curve.remarks[0]


def test_a_strategy_that_was_asked_for_and_fails_is_an_error() -> None:
    with pytest.raises(PlanError, match="solver"):
        sweep(posed(PROBLEM), strategies=["lean", "broken"], make=make)


def test_nothing_to_sweep_is_an_error_that_says_so() -> None:
    with pytest.raises(BudgetError, match="no budgets"):
        sweep(posed(PROBLEM), budgets=[])
    with pytest.raises(PlanError, match="no strategies"):
        sweep(posed(PROBLEM), strategies=[])
    with pytest.raises(PlanError, match="fastest"):
        sweep(posed(PROBLEM), strategies=["fastest"])


def test_progress_is_told_step_by_step() -> None:
    told: list[tuple[int, int]] = []
    sweep(posed(PROBLEM), budgets=[8 * MIB, 64 * MIB], progress=lambda done, total: told.append((done, total)))
    assert told == [(step, 2 * len(names())) for step in range(2 * len(names()))]


def test_a_handful_of_budgets_are_measured_from_the_first_to_the_last() -> None:
    assert spread(range(100, 116)) == [100, 104, 108, 111, 115]
    assert spread([1, 2]) == [1, 2]


def test_every_name_is_a_strategys_and_the_default_is_among_them() -> None:
    assert [get(name).name for name in names()] == list(names())
    assert get("auto").name in names()
