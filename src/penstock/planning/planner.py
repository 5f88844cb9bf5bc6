"""The way from a problem to a plan that is proved to fit."""

from __future__ import annotations

from penstock.budget import format_size
from penstock.errors import BudgetInfeasibleError
from penstock.planning.check import check
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.strategies import get


def make_plan(problem: Problem, strategy: str = "auto") -> Plan:
    """A plan for `problem`, made by the named strategy and accepted by `check`.

    Raises:
        BudgetInfeasibleError: no plan fits the budget; `needed_nbytes` is the smallest that one fits.
        PlanError: there is no such strategy.
    """
    chosen = get(strategy)
    needed = chosen.needed_nbytes(problem)
    if problem.budget_nbytes < needed:
        reserve = problem.reserve
        raise BudgetInfeasibleError(
            f"a budget of {problem.budget_nbytes} bytes ({format_size(problem.budget_nbytes)}) cannot work: "
            f"the weights that one moment needs take {format_size(needed - reserve.total_nbytes)}, activations "
            f"{format_size(reserve.activations_nbytes)}, I/O and bookkeeping "
            f"{format_size(reserve.io_nbytes + reserve.bookkeeping_nbytes)}; give at least {needed} bytes",
            needed_nbytes=needed,
        )
    plan = chosen.plan(problem)
    check(problem, plan)
    return plan
