"""Whether a swap plan is right for an iteration: a judge that shares no code with what made the plan."""

from __future__ import annotations

from typing import NoReturn

from penstock.errors import PlanError
from penstock.planning.swap_plan import SwapPlan
from penstock.planning.swap_problem import SwapProblem


def check_swaps(problem: SwapProblem, plan: SwapPlan, *, keeps_limit: bool = True) -> None:
    """Accept a plan that may be followed.

    Args:
        problem: the iteration.
        plan: from anywhere.
        keeps_limit: whether it has to stay within its limit whatever the links do.

    Raises:
        PlanError: with the first violation found.
    """
    count = len(problem.seconds)
    allowed = {(absence.storage, absence.leaves, absence.returns): absence.nbytes for absence in problem.absences}
    if len(plan.gone) != count:
        _refuse(f"it has {len(plan.gone)} segments and the iteration {count}")
    seen: set[tuple[int, int]] = set()
    for index, swap in enumerate(plan.swaps):
        if allowed.get((swap.storage, swap.leaves, swap.returns)) != swap.nbytes:
            _refuse(f"swaps[{index}] is {swap}, and no storage of the iteration is unused then")
        if not swap.leaves < swap.reads_at <= swap.returns:
            _refuse(f"swaps[{index}] leaves at {swap.leaves} and is read at {swap.reads_at} for {swap.returns}")
        if (swap.storage, swap.leaves) in seen:
            _refuse(f"swaps[{index}] takes away what is away already")
        if index and swap.leaves < plan.swaps[index - 1].leaves:
            _refuse(f"swaps[{index}] leaves before the one that is written before it")
        seen.add((swap.storage, swap.leaves))
    for segment in range(count):
        first = plan.gone[segment]
        if not 0 <= first <= len(plan.swaps) or any(swap.leaves > segment for swap in plan.swaps[:first]):
            _refuse(f"segment {segment} waits for {first} writes, which are not all begun then")
        away = sum(swap.nbytes for swap in plan.swaps[:first] if swap.reads_at > segment)
        present_nbytes = int(problem.load_nbytes[segment]) - away
        if keeps_limit and present_nbytes > plan.limit_nbytes:
            _refuse(f"segment {segment} has {present_nbytes} bytes in memory and the limit is {plan.limit_nbytes}")


def _refuse(what: str) -> NoReturn:
    raise PlanError(f"this swap plan is not for this iteration: {what}; record and plan anew")
