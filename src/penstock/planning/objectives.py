"""What a plan is to be best at: delay within the budget, or memory. Any strategy serves, by other budgets."""

from __future__ import annotations

from dataclasses import replace

from penstock.budget import format_size
from penstock.errors import PlanError
from penstock.planning.options import PlanOptions
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.strategies import Strategy

_CLOSE = 0.01  # of the budget found, by which a smaller one might do
_MOST_PLANS = 12
_ROUNDING = 1 + 1e-9


def best_plan(problem: Problem, strategy: Strategy, options: PlanOptions) -> Plan:
    """The plan by `strategy` that is best at what `options` ask for; its budget may be smaller than the problem's.

    Raises:
        PlanError: no plan has so little overhead; the message names the least.
    """
    if options.least_memory:
        return strategy.plan(replace(problem, budget_nbytes=strategy.needed_nbytes(problem)))
    if options.max_overhead is None:
        return strategy.plan(problem)
    return _least_memory(problem, strategy, options.max_overhead)


def _least_memory(problem: Problem, strategy: Strategy, max_overhead: float) -> Plan:
    """The plan for the smallest budget that halving finds in which passes have no more overhead."""
    limit_seconds = (1 + max_overhead) * problem.compute_seconds * _ROUNDING
    best = strategy.plan(problem)
    if best.prediction.warm_seconds > limit_seconds:
        raise PlanError(
            f"a max_overhead of {max_overhead:g} is out of reach within {format_size(problem.budget_nbytes)}: "
            f"strategy {strategy.name!r} gets to {_overhead(problem, best)} at best; allow that or give a larger budget"
        )
    low_nbytes = strategy.needed_nbytes(problem)
    middle_nbytes = low_nbytes  # the least at all may do
    for _ in range(_MOST_PLANS):
        high_nbytes = min(best.budget_nbytes, best.prediction.peak_nbytes)
        if high_nbytes - low_nbytes <= _CLOSE * high_nbytes:
            break
        plan = strategy.plan(replace(problem, budget_nbytes=middle_nbytes))
        if plan.prediction.warm_seconds <= limit_seconds:
            best = plan
        else:
            low_nbytes = middle_nbytes
        middle_nbytes = (low_nbytes + min(best.budget_nbytes, best.prediction.peak_nbytes)) // 2
    return replace(best, budget_nbytes=max(1, best.prediction.peak_nbytes))


def _overhead(problem: Problem, plan: Plan) -> str:
    if not problem.compute_seconds:
        return f"{plan.prediction.warm_seconds:.3g} s on no compute at all"
    return f"{plan.prediction.warm_seconds / problem.compute_seconds - 1:.4f}"
