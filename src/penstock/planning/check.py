"""Whether a plan is right for a problem: an independent judge that shares no code with planner or simulator.

It knows nothing of how plans are made. It looks at every pair of loads that ever lie in the same bytes, so it is slower
than planning may be clever.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from penstock.errors import PlanError
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem

_Ints = npt.NDArray[np.int64]
_PAIRS_AT_ONCE = 1 << 20


def check(problem: Problem, plan: Plan) -> None:
    """Accept a plan that the runtime may execute for `problem`.

    Raises:
        PlanError: with the first violation found.
    """
    _check_identity(problem, plan)
    _check_indices(problem, plan)
    _check_budget(problem, plan)
    starts, ends = _extents(problem, plan)
    _check_residents(plan, starts, ends)
    _check_order(problem, plan)
    _check_coverage(problem, plan)
    _check_space(problem, plan, starts, ends)


def _check_identity(problem: Problem, plan: Plan) -> None:
    if plan.version != 1:
        _refuse(f"the plan's version is {plan.version}, not 1")
    if plan.problem_fingerprint != problem.fingerprint:
        _refuse(f"the plan is for {plan.problem_fingerprint!r}, not for {problem.fingerprint!r}")
    if plan.weight_names != tuple(weight.name for weight in problem.weights):
        _refuse("the plan's weights are not the problem's")
    if plan.call_names != tuple(call.name for call in problem.calls):
        _refuse("the plan's calls are not the problem's")
    if plan.weight_nbytes and plan.weight_nbytes != tuple(weight.nbytes for weight in problem.weights):
        _refuse("the plan's weights have other sizes than the problem's")


def _check_indices(problem: Problem, plan: Plan) -> None:
    weights, calls = range(len(problem.weights)), range(len(problem.calls))
    for weight in (*(slot.weight for slot in plan.resident), *plan.rows, *(load.weight for load in plan.loads)):
        if weight not in weights:
            _refuse(f"the plan names weight {weight} of {len(weights)}")
    for index, load in enumerate(plan.loads):
        if load.first_call not in calls or load.last_call not in calls or load.first_call > load.last_call:
            _refuse(f"loads[{index}] serves calls {load.first_call} to {load.last_call} of {len(calls)}")
        if load.after_pass not in (-1, 0) or not -1 <= load.after_call < len(calls):
            _refuse(f"loads[{index}] waits for call {load.after_call} of pass {load.after_pass}")


def _check_budget(problem: Problem, plan: Plan) -> None:
    if plan.budget_nbytes != problem.budget_nbytes or plan.reserve != problem.reserve:
        _refuse("the plan is for another budget or reserve than the problem's")
    reserve = plan.reserve
    reserve_nbytes = reserve.activations_nbytes + reserve.io_nbytes + reserve.bookkeeping_nbytes
    if plan.arena_nbytes < 0 or plan.arena_nbytes + reserve_nbytes > problem.budget_nbytes:
        _refuse(
            f"an arena of {plan.arena_nbytes} bytes and a reserve of {reserve_nbytes} do not fit the budget of "
            f"{problem.budget_nbytes}"
        )
    if plan.prediction.peak_nbytes < plan.arena_nbytes + reserve_nbytes:
        _refuse(f"the predicted peak of {plan.prediction.peak_nbytes} bytes leaves out part of arena and reserve")


def _extents(problem: Problem, plan: Plan) -> tuple[_Ints, _Ints]:
    """First and past-the-end byte of what each item occupies, whole blocks: residents first, then loads."""
    block = problem.storage.block_nbytes
    starts, ends = [], []
    for index, offset in _places(plan):
        weight = problem.weights[index]
        if offset < 0 or offset % block != weight.offset_in_block:
            _refuse(f"{weight.name} at {offset} is not congruent to {weight.offset_in_block} modulo {block}")
        start = offset // block * block
        end = (offset + weight.nbytes + block - 1) // block * block
        if end > plan.arena_nbytes:
            _refuse(f"{weight.name} ends at {end}, past the arena's {plan.arena_nbytes} bytes")
        starts.append(start)
        ends.append(end)
    return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)


def _places(plan: Plan) -> list[tuple[int, int]]:
    """Weight and offset of each item in the arena: residents first, then loads."""
    return [(slot.weight, slot.offset) for slot in plan.resident] + [(load.weight, load.offset) for load in plan.loads]


def _check_residents(plan: Plan, starts: _Ints, ends: _Ints) -> None:
    count = len(plan.resident)
    names = [plan.weight_names[weight] for weight, _ in _places(plan)]
    by_start = sorted(range(count), key=lambda index: starts[index])
    for before, after in pairwise(by_start):
        if ends[before] > starts[after]:
            _refuse(f"residents {names[before]} and {names[after]} overlap")
    for index in range(count):
        inside = np.flatnonzero((starts[count:] < ends[index]) & (ends[count:] > starts[index]))
        if inside.size:
            _refuse(f"resident {names[index]} overlaps the load of {names[count + int(inside[0])]}")


def _check_order(problem: Problem, plan: Plan) -> None:
    for index, (before, after) in enumerate(pairwise(plan.loads)):
        if before.first_call > after.first_call:
            _refuse(f"loads[{index + 1}] is needed before loads[{index}], but comes after it")
    for index, load in enumerate(plan.loads):
        if load.after_pass == 0 and load.after_call >= load.first_call:
            _refuse(
                f"loads[{index}] of {plan.weight_names[load.weight]} waits for call {load.after_call}, "
                f"which cannot end before call {load.first_call} has got it"
            )


def _check_coverage(problem: Problem, plan: Plan) -> None:
    resident, rows = [slot.weight for slot in plan.resident], list(plan.rows)
    loaded = {load.weight for load in plan.loads}
    fixed = [*resident, *rows]
    if len(set(fixed)) != len(fixed) or loaded & set(fixed):
        _refuse("a weight is given twice: resident, by rows and streamed exclude one another")
    for weight in rows:
        if not problem.weights[weight].rows_only:
            _refuse(f"{problem.weights[weight].name} is planned to be read by rows, but calls read all of it")
    intervals: dict[int, list[tuple[int, int]]] = {}
    for load in plan.loads:
        intervals.setdefault(load.weight, []).append((load.first_call, load.last_call))
    available = set(fixed)
    for index, call in enumerate(problem.calls):
        for weight in call.reads:
            if weight in available:
                continue
            covering = sum(first <= index and last >= call.last for first, last in intervals.get(weight, []))
            if covering != 1:
                _refuse(f"{problem.weights[weight].name} has {covering} loads over call {index} ({call.name}), not one")


def _check_space(problem: Problem, plan: Plan, starts: _Ints, ends: _Ints) -> None:
    """Whoever shares bytes with a load and comes before it, in this pass or the one before, is released before it."""
    count = len(plan.loads)
    if count == 0:
        return
    starts, ends = starts[len(plan.resident) :], ends[len(plan.resident) :]
    call_count = len(problem.calls)
    last = np.array([load.last_call for load in plan.loads], dtype=np.int64)
    # A moment in the order of calls: call c of this pass is c, of the one before c - call_count.
    waits = np.array(
        [
            load.after_call + (0 if load.after_pass == 0 else -call_count) if load.after_call >= 0 else -call_count - 1
            for load in plan.loads
        ],
        dtype=np.int64,
    )
    step = max(1, _PAIRS_AT_ONCE // count)
    for begin in range(0, count, step):
        rows = np.arange(begin, min(begin + step, count))
        shares = (starts[rows, None] < ends[None, :]) & (ends[rows, None] > starts[None, :])
        earlier = np.arange(count)[None, :] < rows[:, None]
        released = np.where(earlier, last[None, :], last[None, :] - call_count)
        late = np.argwhere(shares & (released > waits[rows, None]))
        if late.size:
            load, other = int(rows[late[0, 0]]), int(late[0, 1])
            _refuse(
                f"loads[{load}] of {plan.weight_names[plan.loads[load].weight]} may start while loads[{other}] of "
                f"{plan.weight_names[plan.loads[other].weight]} still holds its space"
            )


def _refuse(message: str) -> NoReturn:
    raise PlanError(f"{message}: make the plan again")
