"""Curves to test with: one made by hand, and problems whose reserve grows with the budget as real ones' does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning import Plan, Problem, Reserve, make_plan
from penstock.report import Curve, Point

MIB = 2**20


def posed(problem: Problem) -> Callable[[int], Problem]:
    """The problem at any budget, with a reserve of its own and a share of the budget."""

    def at(budget_nbytes: int) -> Problem:
        reserve = Reserve(problem.reserve.total_nbytes, 0, budget_nbytes // 64)
        return replace(problem, budget_nbytes=budget_nbytes, reserve=reserve, fingerprint=f"at {budget_nbytes}")

    return at


def make(problem: Problem, strategy: str) -> Plan:
    """Three strategies: `lean` plans as the default does, `greedy` wants everything resident, `broken` fails."""
    if strategy == "broken":
        raise PlanError("its solver is not installed")
    plan = make_plan(problem)
    if strategy == "greedy" and plan.loads:
        read = {weight for call in problem.calls for weight in call.reads}
        needed = problem.reserve.total_nbytes + sum(map(problem.extent_nbytes, read))
        raise BudgetInfeasibleError("greedy", needed_nbytes=needed + 1)
    return replace(plan, strategy=strategy)


def some_curve(model: str = "Model, x 1×16") -> Curve:
    """Two strategies at five budgets, one of them without a plan for the two smallest; two points measured."""
    points: list[Point] = []
    for step, mib in enumerate((24, 40, 64, 96, 128)):
        bound = 0.1 - 0.015 * step
        points.append(Point(mib * MIB, "optimal", bound * 1.05, bound, None, bound * 1.1 if step in (0, 4) else None))
        if step < 2:
            points.append(Point(mib * MIB, "sequential", None, None, 55 * MIB))
        else:
            points.append(Point(mib * MIB, "sequential", 0.15, bound))
    return Curve(model, 120 * MIB, 0.04, 2.5e9, True, tuple(points), ("flashmem is left out: no solver",))
