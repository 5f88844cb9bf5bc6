"""Which storages leave memory during an iteration of training, so that it fits and takes as little longer as can be.

AutoSwap (Zhang et al., arXiv 1903.06631) takes absences in the order of a score until the limit is reached. So do we,
for each of its four scores, and then look for something better: where the load is highest, what brings it down for the
least transfer, every peak in turn; what turns out not to be needed is left in memory again, and what is costly is
exchanged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from penstock.budget import format_size
from penstock.errors import BudgetInfeasibleError, PlanError
from penstock.planning.swap_check import check_swaps
from penstock.planning.swap_plan import SwapPlan
from penstock.planning.swap_problem import Absence, SwapProblem
from penstock.planning.swap_schedule import Schedule, no_overhead, stick_to_limit
from penstock.planning.swap_scores import SCORES, excess
from penstock.planning.swap_search import exchanged, reached, reached_by_both, without_needless
from penstock.planning.swap_weights import by_best_weights

WEIGHTED = "weighted"
METHODS = ("best", *SCORES, WEIGHTED)
SCHEDULES = ("stick-to-limit", "no-overhead")


def plan_swaps(
    problem: SwapProblem, *, scores: str = "best", schedule: str = "stick-to-limit", seconds: float = 1.8
) -> SwapPlan:
    """The best plan for `problem` that is found in about `seconds`, checked.

    Args:
        problem: an iteration and its limit.
        scores: one of `METHODS`: a score of the paper; `weighted`, its combination of them by Bayesian optimisation
            (needs Optuna); or `best`, which tries the single scores and its own search.
        schedule: `stick-to-limit` keeps the limit and may wait; `no-overhead` waits for nothing and may miss it.
        seconds: how long `best` may search.

    Raises:
        BudgetInfeasibleError: the limit is below what no plan can do without; says how much that is.
        PlanError: there is no such score or schedule, or Optuna is not installed.
    """
    if scores not in METHODS:
        raise PlanError(f"scores={scores!r} is none of {', '.join(METHODS)}")
    if schedule not in SCHEDULES:
        raise PlanError(f"schedule={schedule!r} is none of {', '.join(SCHEDULES)}")
    least_nbytes = problem.least_nbytes()
    if least_nbytes > problem.limit_nbytes and schedule == "stick-to-limit":
        raise BudgetInfeasibleError(
            f"an iteration has {format_size(least_nbytes)} in memory at one moment that are all in use, and the limit "
            f"is {format_size(problem.limit_nbytes)}: set a larger one, or take smaller batches",
            needed_nbytes=least_nbytes,
        )
    deadline = time.monotonic() + seconds
    chosen = {name: _prefix(problem, order(problem)) for name, order in SCORES.items() if scores in (name, "best")}
    if scores == WEIGHTED:
        found_by = by_best_weights(problem, lambda order: _seconds_with(problem, order, schedule), deadline)
        chosen[WEIGHTED] = _prefix(problem, found_by)
    if scores == "best":
        chosen["search"] = without_needless(problem, reached(problem))
        both = reached_by_both(problem) if problem.recomputable and schedule == SCHEDULES[0] else None
        if both is not None:
            chosen["recompute"] = without_needless(problem, both)
    found = {name: _scheduled(problem, absences, schedule) for name, absences in chosen.items()}
    method = min(found, key=lambda name: _rank(problem, found[name]))
    best = found[method]
    if scores == "best" and schedule == "stick-to-limit":
        for name in sorted(chosen, key=lambda name: _rank(problem, found[name])):  # the best first: time may be short
            better = exchanged(problem, without_needless(problem, chosen[name]), deadline)
            if _rank(problem, better) < _rank(problem, best):
                method, best = "search", better
    plan = SwapPlan(
        swaps=best.swaps,
        segments=problem.count,
        method=method,
        limit_nbytes=problem.limit_nbytes,
        peak_nbytes=best.peak_nbytes,
        full_peak_nbytes=problem.peak_nbytes,
        compute_seconds=problem.compute_seconds,
        predicted_seconds=float(best.seconds),
        bound_seconds=least_seconds(problem),
    )
    check_swaps(problem, plan, keeps_limit=schedule == "stick-to-limit")
    return plan


def least_seconds(problem: SwapProblem) -> float:
    """No iteration within the limit takes less.

    What exceeds the limit during a segment has been written before it, after the first segment at which any of what may
    be away then may leave; and is read after it, before the last segment at which any of it has to be back. If the time
    that computing takes in between is less than the transfers' at full bandwidth, the difference is waited for. Both
    waits add up where they are at different moments, because one is before the segment and the other after it. What
    could be computed again instead counts as if that took no time.
    """
    most = 0.0
    for segment in np.flatnonzero(excess(problem, ())):
        at = int(segment)
        covering = [a for a in problem.absences if problem.covers(a, at)]
        if not covering:
            continue
        again_nbytes = sum(a.nbytes for a in problem.recomputable if problem.covers(a, at))
        nbytes = max(int(problem.load_nbytes[at]) - problem.limit_nbytes - again_nbytes, 0)
        since = [(at - a.leaves) % problem.count for a in covering]
        first = at - max(since)
        last = at + max(a.returns - a.leaves - ago for a, ago in zip(covering, since, strict=True))
        out = nbytes / problem.out.bytes_per_second - (problem.start(at) - problem.start(first))
        back = nbytes / problem.back.bytes_per_second - (problem.start(last) - problem.start(at + 1))
        waits = (max(out, 0.0), max(back, 0.0))
        most = max(most, sum(waits) if last - first <= problem.count else max(waits))
    return problem.compute_seconds + most


def _rank(problem: SwapProblem, schedule: Schedule) -> tuple[float, float, int]:
    missed = max(schedule.peak_nbytes - problem.limit_nbytes, 0)
    return missed, schedule.seconds, sum(swap.nbytes for swap in schedule.swaps)


def _seconds_with(problem: SwapProblem, order: Sequence[Absence], schedule: str) -> float:
    return _scheduled(problem, _prefix(problem, order), schedule).seconds


def _prefix(problem: SwapProblem, order: Sequence[Absence]) -> tuple[Absence, ...]:
    """The fewest first ones of `order` with which the limit can be kept; all where it cannot."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if excess(problem, order[:middle]).any():
            low = middle + 1
        else:
            high = middle
    return tuple(order[:low])


def _scheduled(problem: SwapProblem, chosen: Sequence[Absence], schedule: str) -> Schedule:
    if schedule == "no-overhead":
        return no_overhead(problem, chosen)
    found = stick_to_limit(problem, chosen)
    if found is None:  # cannot be: what is chosen is within the limit when each is away as long as it can
        raise PlanError("what was chosen is not within the limit")
    return found
