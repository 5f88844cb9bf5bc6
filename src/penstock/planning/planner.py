"""The way from a problem to a plan that is proved to fit."""

from __future__ import annotations

from dataclasses import replace

from penstock.budget import format_size
from penstock.errors import BudgetInfeasibleError
from penstock.planning.bounds import least_cold_seconds, least_warm_seconds
from penstock.planning.check import check
from penstock.planning.objectives import best_plan
from penstock.planning.options import PlanOptions
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.strategies import configured


def make_plan(problem: Problem, strategy: str = "auto", *, options: PlanOptions | None = None) -> Plan:
    """A plan for `problem`, made by the named strategy and accepted by `check`.

    Where `options` ask for little memory, the plan's budget is smaller than the problem's.

    Raises:
        BudgetInfeasibleError: no plan of this strategy fits the budget; `needed_nbytes` is the smallest that one fits.
        PlanError: there is no such strategy, it does not take these options, or what they ask for cannot be reached.
    """
    options = options or PlanOptions()
    chosen = configured(strategy, options)
    needed = chosen.needed_nbytes(problem)
    if problem.budget_nbytes < needed:
        reserve = problem.reserve
        in_slices = configured(strategy, replace(options, exact=False)).needed_nbytes(problem)
        cause, remedy = "", ""
        if in_slices < needed:
            cause, remedy = " with no layer in slices", f", or {in_slices} bytes with exact=False"
        raise BudgetInfeasibleError(
            f"a budget of {problem.budget_nbytes} bytes ({format_size(problem.budget_nbytes)}) cannot work: "
            f"the weights that one moment of a pass by strategy {chosen.name!r}{cause} needs take "
            f"{format_size(needed - reserve.total_nbytes)}, activations "
            f"{format_size(reserve.activations_nbytes)}, I/O and bookkeeping "
            f"{format_size(reserve.io_nbytes + reserve.bookkeeping_nbytes)}; give at least {needed} bytes{remedy}",
            needed_nbytes=needed,
        )
    plan = best_plan(problem, chosen, options)
    check(problem, plan)
    return bounded(problem, plan)


def bounded(problem: Problem, plan: Plan) -> Plan:
    """`plan` with what no plan for `problem` in so much memory can beat."""
    within = replace(problem, budget_nbytes=plan.budget_nbytes)
    prediction = replace(
        plan.prediction,
        lower_bound_seconds=least_warm_seconds(within),
        cold_bound_seconds=least_cold_seconds(within),
    )
    return replace(plan, prediction=prediction)
