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
    allowed = {
        (absence.storage, absence.leaves, absence.returns, absence.recompute_seconds): absence
        for absence in (*problem.absences, *problem.recomputable)
    }
    if plan.segments != count:
        _refuse(f"it has {plan.segments} segments and the iteration {count}")
    present_nbytes = [int(nbytes) for nbytes in problem.load_nbytes]
    seen: set[tuple[int, int]] = set()
    for index, swap in enumerate(plan.swaps):
        absence = allowed.get((swap.storage, swap.leaves, swap.returns, swap.recompute_seconds))
        if absence is None or absence.nbytes != swap.nbytes:
            _refuse(f"swaps[{index}] is {swap}, and no storage of the iteration is unused then")
        if not swap.leaves <= swap.gone_by <= swap.reads_at <= swap.returns or swap.leaves == swap.reads_at:
            _refuse(
                f"swaps[{index}] leaves at {swap.leaves}, is gone by {swap.gone_by} and read at {swap.reads_at} for "
                f"{swap.returns}"
            )
        if (swap.storage, swap.leaves) in seen:
            _refuse(f"swaps[{index}] takes away what is away already")
        if index and swap.leaves < plan.swaps[index - 1].leaves:
            _refuse(f"swaps[{index}] leaves before the one that is written before it")
        seen.add((swap.storage, swap.leaves))
        if swap.recompute_seconds is not None and swap.reads_at != swap.returns:
            _refuse(f"swaps[{index}] is computed again before it is used")
        for other in plan.swaps:
            is_away = (swap.returns - other.leaves) % count < other.returns - other.leaves
            if other.storage in absence.sources and is_away:
                _refuse(f"swaps[{index}] is computed from storage {other.storage}, which is away then")
        for segment in range(swap.gone_by, swap.reads_at):
            present_nbytes[segment % count] -= swap.nbytes
    if keeps_limit:
        for segment, nbytes in enumerate(present_nbytes):
            if nbytes > plan.limit_nbytes:
                _refuse(f"segment {segment} has {nbytes} bytes in memory and the limit is {plan.limit_nbytes}")


def _refuse(what: str) -> NoReturn:
    raise PlanError(f"this swap plan is not for this iteration: {what}; record and plan anew")
