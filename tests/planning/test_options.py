"""What a plan is asked to be best at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning import PlanOptions, Problem, check, make_plan
from penstock.planning.lifetimes import needed_nbytes
from penstock.planning.strategies import get, names

from .random_problems import chain, problems

MEGABYTE = 1 << 20


def _problem(budget_nbytes: int = 60 * MEGABYTE) -> Problem:
    """Twenty layers of two megabytes; one takes as long to load as to compute, less a fifth."""
    problem = chain([2 * MEGABYTE] * 20, [1e-3] * 20, budget_nbytes, bytes_per_second=2 * MEGABYTE / 8e-4)
    return replace(problem, storage=replace(problem.storage, copy_bytes_per_second=1e12))


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "flashmem":
        pytest.importorskip("ortools", reason="flashmem plans with ortools, which is not installed")
    return str(request.param)


@pytest.mark.parametrize(
    ("given_options", "named"),
    [
        ({"max_overhead": 0.1, "least_memory": True}, "max_overhead and least_memory"),
        ({"max_overhead": -0.1}, "max_overhead is -0.1"),
        ({"max_overhead": float("nan")}, "max_overhead is nan"),
        ({"max_overhead": float("inf")}, "max_overhead is inf"),
        ({"max_overhead": "much"}, "max_overhead is 'much'"),
        ({"max_overhead": True}, "max_overhead is True"),
        ({"least_memory": 1}, "least_memory is 1"),
        ({"exact": 0.5}, "exact is 0.5"),
        ({"lam": 1.5}, "lam is 1.5"),
        ({"lam": -0.5}, "lam is -0.5"),
        ({"peak_nbytes": 0}, "peak_nbytes is 0"),
        ({"peak_nbytes": 1.5}, "peak_nbytes is 1.5"),
        ({"time_limit_seconds": 0}, "time_limit_seconds is 0"),
        ({"time_limit_seconds": float("inf")}, "time_limit_seconds is inf"),
    ],
)
def test_options_that_make_no_sense_are_refused(given_options: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        PlanOptions(**given_options)


@pytest.mark.parametrize("options", [{"lam": 0.5}, {"peak_nbytes": 1}, {"time_limit_seconds": 1.0}])
def test_a_strategy_without_a_solver_takes_no_options_for_one(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=rf"{next(iter(options))}: only strategy 'flashmem'.*'swapnet'"):
        make_plan(_problem(), "swapnet", options=PlanOptions(**options))


def _with_a_head(budget_nbytes: int) -> Problem:
    """`_problem` and a head of twelve megabytes that can be computed in slices."""
    problem = chain([2 * MEGABYTE] * 8 + [12 * MEGABYTE], [1e-3] * 9, budget_nbytes)
    return replace(problem, weights=(*problem.weights[:-1], replace(problem.weights[-1], rows=12)))


def test_an_exact_plan_cuts_nothing_where_another_would() -> None:
    problem = _with_a_head(13 * MEGABYTE)
    assert make_plan(problem).cuts
    exact = make_plan(problem, options=PlanOptions(exact=True))
    assert not exact.cuts
    check(problem, exact)
    least = make_plan(problem, options=PlanOptions(exact=True, least_memory=True))
    assert not least.cuts
    assert least.budget_nbytes == needed_nbytes(problem, sliced=False) == 12 * MEGABYTE


def test_a_budget_that_takes_slices_is_refused_to_an_exact_plan_with_both_minima() -> None:
    problem = _with_a_head(5 * MEGABYTE)
    assert make_plan(problem).cuts
    in_slices = needed_nbytes(problem, sliced=True)
    said = rf"with no layer in slices needs.*give at least {12 * MEGABYTE} bytes, or {in_slices} bytes with exact=False"
    with pytest.raises(BudgetInfeasibleError, match=said) as refusal:
        make_plan(problem, options=PlanOptions(exact=True))
    assert refusal.value.needed_nbytes == 12 * MEGABYTE
    with pytest.raises(BudgetInfeasibleError) as refusal:
        make_plan(replace(problem, budget_nbytes=in_slices - 1))
    assert "exact" not in str(refusal.value)


def test_every_strategy_takes_exact(name: str) -> None:
    problem = _with_a_head(100 * MEGABYTE)
    plan = make_plan(problem, name, options=PlanOptions(exact=True))
    assert not plan.cuts
    with pytest.raises(BudgetInfeasibleError) as refusal:
        make_plan(replace(problem, budget_nbytes=1), name, options=PlanOptions(exact=True))
    assert ("exact=False" in str(refusal.value)) == (name == "optimal")


def test_least_memory_is_what_the_strategy_needs(name: str) -> None:
    problem = _problem()
    plan = make_plan(problem, name, options=PlanOptions(least_memory=True))
    needed_nbytes = get(name).needed_nbytes(problem)
    assert plan.prediction.peak_nbytes <= plan.budget_nbytes == needed_nbytes
    check(problem, plan)
    with pytest.raises(BudgetInfeasibleError):
        make_plan(replace(problem, budget_nbytes=needed_nbytes - 1), name)


def test_an_overhead_is_kept_with_less_memory_than_there_is(name: str) -> None:
    problem = _problem()
    limit = 0.5 if name == "flashmem" else None
    first = make_plan(problem, name, options=PlanOptions(time_limit_seconds=limit))
    reached = first.prediction.warm_seconds / problem.compute_seconds - 1
    plan = make_plan(problem, name, options=PlanOptions(max_overhead=reached + 0.05, time_limit_seconds=limit))
    assert plan.prediction.warm_seconds <= (1 + reached + 0.05) * problem.compute_seconds * (1 + 1e-6)
    assert plan.budget_nbytes < problem.budget_nbytes
    check(problem, plan)


@pytest.mark.parametrize("name", ["two-stage", "asynchronous", "swapnet", "optimal"])
def test_a_tenth_less_memory_would_not_keep_the_overhead(name: str) -> None:
    problem = replace(
        _problem(), calls=tuple(replace(c, seconds=c.seconds * (1 + i % 3)) for i, c in enumerate(_problem().calls))
    )
    plan = make_plan(problem, name, options=PlanOptions(max_overhead=0.001))
    less_nbytes = int(plan.prediction.peak_nbytes * 0.9)
    try:
        smaller = make_plan(replace(problem, budget_nbytes=less_nbytes), name)
    except BudgetInfeasibleError:
        return
    assert smaller.prediction.warm_seconds > 1.001 * problem.compute_seconds


def test_more_overhead_takes_no_more_memory() -> None:
    problem = _problem()
    budgets = [
        make_plan(problem, "optimal", options=PlanOptions(max_overhead=share)).budget_nbytes
        for share in (0.0, 0.02, 0.2, 1.0)
    ]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] == 2 * MEGABYTE < budgets[0]


def test_an_overhead_out_of_reach_says_the_best_there_is() -> None:
    problem = _problem(2 * MEGABYTE)
    best = make_plan(problem, "two-stage").prediction.warm_seconds / problem.compute_seconds - 1
    assert best == pytest.approx(0.8)
    with pytest.raises(PlanError, match=r"max_overhead of 0.1 is out of reach.*'two-stage' gets to 0\.8000"):
        make_plan(problem, "two-stage", options=PlanOptions(max_overhead=0.1))


def test_an_overhead_on_no_compute_at_all_says_so() -> None:
    problem = chain([MEGABYTE] * 4, [0.0] * 4, 2 * MEGABYTE)
    with pytest.raises(PlanError, match="no compute"):
        make_plan(problem, "two-stage", options=PlanOptions(max_overhead=0.1))
    assert make_plan(replace(problem, budget_nbytes=4 * MEGABYTE), "preload", options=PlanOptions(max_overhead=0.0))


def test_a_plan_for_less_memory_is_within_the_budget_and_one_for_more_is_not() -> None:
    problem = _problem()
    plan = make_plan(problem, "two-stage", options=PlanOptions(least_memory=True))
    check(problem, plan)
    with pytest.raises(PlanError, match="another budget"):
        check(replace(problem, budget_nbytes=plan.budget_nbytes - 1), plan)
    with pytest.raises(PlanError, match="do not fit the budget"):
        check(problem, replace(plan, budget_nbytes=plan.budget_nbytes - 1))


@given(problems(budget_from=0.3))
@settings(max_examples=60, deadline=None)
def test_any_objective_has_a_plan_or_a_reason(problem: Problem) -> None:
    for name in ("two-stage", "swapnet", "synchronous"):
        for options in (PlanOptions(max_overhead=0.5), PlanOptions(least_memory=True)):
            try:
                plan = make_plan(problem, name, options=options)
            except BudgetInfeasibleError:
                continue
            except PlanError:  # out of reach: then it is for the plan with the least delay, too
                assert make_plan(problem, name).prediction.warm_seconds > 1.5 * problem.compute_seconds
                continue
            assert plan.budget_nbytes <= problem.budget_nbytes
            if options.max_overhead is not None:
                assert plan.prediction.warm_seconds <= 1.5 * problem.compute_seconds * (1 + 1e-6)
