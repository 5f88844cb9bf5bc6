"""Whether what a plan gives back of the arena is free at that time, and can be given back: part of `check`."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import numpy.typing as npt

from penstock.errors import PlanError
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem

_Ints = npt.NDArray[np.int64]


def check_places(problem: Problem, plan: Plan) -> None:
    """Ebbs lie on whole pages within the arena, in calls that there are, apart from one another.

    Raises:
        PlanError: with the first violation found.
    """
    if plan.ebbs and (plan.staging_nbytes or plan.pacing not in ("eager", "planned")):
        _refuse(f"a plan of pacing {plan.pacing!r} with {plan.staging_nbytes} bytes of staging gives memory back")
    page = problem.storage.page_nbytes
    for index, ebb in enumerate(plan.ebbs):
        if not 0 <= ebb.first_call <= ebb.last_call < len(problem.calls):
            _refuse(f"ebbs[{index}] is of calls {ebb.first_call} to {ebb.last_call} of {len(problem.calls)}")
        if ebb.offset < 0 or ebb.nbytes < 1 or ebb.offset + ebb.nbytes > plan.arena_nbytes:
            _refuse(f"ebbs[{index}] of {ebb.nbytes} bytes at {ebb.offset} is outside the arena of {plan.arena_nbytes}")
        if ebb.offset % page or ebb.nbytes % page:
            _refuse(f"ebbs[{index}] of {ebb.nbytes} bytes at {ebb.offset} is not of whole pages of {page} bytes")
    first, last = _column([ebb.first_call for ebb in plan.ebbs]), _column([ebb.last_call for ebb in plan.ebbs])
    begin = _column([ebb.offset for ebb in plan.ebbs])
    end = begin + _column([ebb.nbytes for ebb in plan.ebbs])
    for ebb in plan.ebbs:
        shares = (begin < ebb.offset + ebb.nbytes) & (end > ebb.offset)
        meets = np.flatnonzero(shares & (first <= ebb.last_call) & (last >= ebb.first_call))
        if meets.size > 1:
            _refuse(f"ebbs[{int(meets[0])}] and ebbs[{int(meets[1])}] give the same bytes back at the same time")


def check_emptiness(problem: Problem, plan: Plan, starts: _Ints, ends: _Ints) -> None:
    """Nothing lies, or may already be loaded, where memory is given back.

    `starts` and `ends` are the first and past-the-end bytes of residents and then of loads.

    Raises:
        PlanError: with the first violation found.
    """
    weights = [*(slot.weight for slot in plan.resident), *(load.weight for load in plan.loads)]
    count, resident_count = len(problem.calls), len(plan.resident)
    # A moment is a call of this pass, or one of the pass before minus `count`: a load may lie there from the call
    # behind the one that it waits for until its last call; a resident always.
    first = _column([-count] * resident_count + [_wait(plan, index, count) + 1 for index in range(len(plan.loads))])
    last = _column([count] * resident_count + [load.last_call for load in plan.loads])
    for index, ebb in enumerate(plan.ebbs):
        shares = (starts < ebb.offset + ebb.nbytes) & (ends > ebb.offset)
        for back in (0, count):
            meets = np.flatnonzero(shares & (first <= ebb.last_call - back) & (last >= ebb.first_call - back))
            if meets.size:
                name = plan.weight_names[weights[int(meets[0])]]
                _refuse(f"ebbs[{index}] gives bytes back while {name} holds them or may be loaded there")


def _wait(plan: Plan, index: int, count: int) -> int:
    """The moment when load `index` may start."""
    load = plan.loads[index]
    if load.after_call < 0:
        return -count - 1
    return load.after_call - (count if load.after_pass else 0)


def _column(values: list[int]) -> _Ints:
    return np.array(values, dtype=np.int64)


def _refuse(message: str) -> NoReturn:
    raise PlanError(f"{message}: make the plan again")
