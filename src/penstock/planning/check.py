"""Whether a plan is right for a problem: an independent judge that shares no code with planner or simulator.

It knows nothing of how plans are made. It looks at every pair of loads that ever lie in the same bytes, so it is slower
than planning may be clever.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from penstock.errors import PlanError
from penstock.planning.check_division import check_division
from penstock.planning.check_ebbs import check_emptiness, check_places
from penstock.planning.plan import Load, Plan
from penstock.planning.problem import Problem

_Ints = npt.NDArray[np.int64]
_PAIRS_AT_ONCE = 1 << 20


def check(problem: Problem, plan: Plan) -> None:
    """Accept a plan that the runtime may execute for `problem`.

    Raises:
        PlanError: with the first violation found.
    """
    problem = check_division(problem, plan)
    _check_identity(problem, plan)
    _check_indices(problem, plan)
    check_places(problem, plan)
    _check_budget(problem, plan)
    starts, ends = _extents(problem, plan)
    check_emptiness(problem, plan, starts, ends)
    _check_residents(plan, starts, ends)
    _check_order(problem, plan)
    _check_pacing(problem, plan)
    _check_coverage(problem, plan)
    _check_space(problem, plan, starts, ends)


def _check_identity(problem: Problem, plan: Plan) -> None:
    if plan.version != 4:
        _refuse(f"the plan's version is {plan.version}, not 4")
    if plan.problem_fingerprint != problem.fingerprint:
        _refuse(f"the plan is for {plan.problem_fingerprint!r}, not for {problem.fingerprint!r}")
    if plan.weight_names != tuple(weight.name for weight in problem.weights):
        _refuse("the plan's weights are not the problem's")
    if plan.call_names != tuple(call.name for call in problem.calls):
        _refuse("the plan's calls are not the problem's")
    if plan.call_activations_nbytes != tuple(call.activations_nbytes for call in problem.calls):
        _refuse("the plan's calls have other activations than the problem's")
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
        if (
            load.first_byte < 0
            or load.nbytes < 1
            or load.first_byte + load.nbytes > problem.weights[load.weight].nbytes
        ):
            _refuse(f"loads[{index}] brings bytes {load.first_byte} to {load.first_byte + load.nbytes} of its weight")
    if plan.pacing not in ("eager", "planned", "lockstep", "preload"):
        _refuse(f"the plan's pacing is {plan.pacing!r}")


def _check_budget(problem: Problem, plan: Plan) -> None:
    if not 0 < plan.budget_nbytes <= problem.budget_nbytes or plan.reserve != problem.reserve:
        _refuse("the plan is for another budget or reserve than the problem's")
    reserve = plan.reserve
    activations_nbytes, lent_nbytes = _worst_moment(problem, plan)
    reserve_nbytes = activations_nbytes + reserve.io_nbytes + reserve.bookkeeping_nbytes
    taken_nbytes = plan.arena_nbytes - lent_nbytes + plan.staging_nbytes + reserve_nbytes
    if min(plan.arena_nbytes, plan.staging_nbytes) < 0 or taken_nbytes > plan.budget_nbytes:
        _refuse(
            f"an arena of {plan.arena_nbytes - lent_nbytes} bytes, staging of {plan.staging_nbytes} and a reserve of "
            f"{reserve_nbytes} do not fit the budget of {plan.budget_nbytes}"
        )
    if plan.prediction.peak_nbytes > plan.budget_nbytes:
        _refuse(f"the predicted peak of {plan.prediction.peak_nbytes} bytes exceeds the budget of {plan.budget_nbytes}")
    if max(plan.prediction.call_streamed_nbytes, default=0) > plan.arena_nbytes:
        _refuse(f"more streamed weights are predicted than the arena of {plan.arena_nbytes} bytes holds")
    if plan.prediction.peak_nbytes < taken_nbytes:
        _refuse(f"the predicted peak of {plan.prediction.peak_nbytes} bytes leaves out part of arena and reserve")


def _worst_moment(problem: Problem, plan: Plan) -> tuple[int, int]:
    """Bytes of activations, and of the arena that are lent to them, when they take most together with what is left."""
    lent = np.zeros(len(problem.calls), dtype=np.int64)
    for ebb in plan.ebbs:
        lent[ebb.first_call : ebb.last_call + 1] += ebb.nbytes
    moments = [(call.activations_nbytes, int(lent[index])) for index, call in enumerate(problem.calls)]
    # What the reserve keeps and no call is said to need is needed before the first one, or nobody knows when.
    if max((call.activations_nbytes for call in problem.calls), default=0) < plan.reserve.activations_nbytes:
        moments.append((plan.reserve.activations_nbytes, 0))
    return max(moments, key=lambda moment: moment[0] - moment[1], default=(0, 0))


def _extents(problem: Problem, plan: Plan) -> tuple[_Ints, _Ints]:
    """First and past-the-end byte of what each item occupies, whole blocks: residents first, then loads."""
    places = [(slot.weight, slot.offset, 0, problem.weights[slot.weight].nbytes) for slot in plan.resident]
    places += [(load.weight, load.offset, load.first_byte, load.nbytes) for load in plan.loads]
    spans = [_span(problem, *place, plan.arena_nbytes, "the arena") for place in places]
    for load in plan.loads if plan.staging_nbytes else ():
        staged = load.weight, load.staging_offset, load.first_byte, load.nbytes
        _span(problem, *staged, plan.staging_nbytes, "the staging memory")
    starts, ends = zip(*spans, strict=True) if spans else ((), ())
    return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)


def _span(
    problem: Problem, index: int, offset: int, first_byte: int, nbytes: int, limit_nbytes: int, what: str
) -> tuple[int, int]:
    """The whole blocks that bytes of a weight take whose first byte is, or would be, at `offset`."""
    block = problem.storage.block_nbytes
    weight = problem.weights[index]
    if offset < 0 or offset % block != weight.offset_in_block:
        _refuse(f"{weight.name} at {offset} is not congruent to {weight.offset_in_block} modulo {block}")
    start = (offset + first_byte) // block * block
    end = (offset + first_byte + nbytes + block - 1) // block * block
    if end > limit_nbytes:
        _refuse(f"{weight.name} ends at {end}, past {what} of {limit_nbytes} bytes")
    return start, end


def _check_residents(plan: Plan, starts: _Ints, ends: _Ints) -> None:
    count = len(plan.resident)
    weights = [*(slot.weight for slot in plan.resident), *(load.weight for load in plan.loads)]
    names = [plan.weight_names[weight] for weight in weights]
    by_start = sorted(range(count), key=lambda index: starts[index])
    for before, after in pairwise(by_start):
        if ends[before] > starts[after]:
            _refuse(f"residents {names[before]} and {names[after]} overlap")
    for index in range(count):
        inside = np.flatnonzero((starts[count:] < ends[index]) & (ends[count:] > starts[index]))
        if inside.size:
            _refuse(f"resident {names[index]} overlaps the load of {names[count + int(inside[0])]}")


def _check_order(problem: Problem, plan: Plan) -> None:
    """Loads come one after another, so what one waits for has to end before those behind it are needed."""
    latest, waiting = -1, -1
    for index, load in enumerate(plan.loads):
        if load.after_pass == 0 and load.after_call > latest:
            latest, waiting = load.after_call, index
        if latest >= load.first_call:
            _refuse(
                f"loads[{waiting}] of {plan.weight_names[plan.loads[waiting].weight]} waits for call {latest}, "
                f"which cannot end before call {load.first_call} has got loads[{index}]"
            )


def _check_pacing(problem: Problem, plan: Plan) -> None:
    """What goes in lockstep is layers in order, staged, each with places of its own for all that it brings."""
    if plan.pacing == "preload" and plan.loads:
        _refuse("everything is loaded first, but the plan has loads for later")
    if plan.pacing != "lockstep" or not plan.loads:
        return
    if not plan.staging_nbytes:
        _refuse("the plan goes in lockstep and has no staging memory")
    block = problem.storage.block_nbytes
    layer: list[tuple[int, int]] = []
    for before, load in zip((None, *plan.loads), plan.loads, strict=False):
        if before is None or before.first_call != load.first_call:
            if before is not None and before.first_call > load.first_call:
                _refuse(f"the plan goes in lockstep, but loads call {before.first_call} before {load.first_call}")
            layer = []
        begin = load.staging_offset + load.first_byte
        start, end = begin // block, -(-(begin + load.nbytes) // block)
        if any(start < other_end and other_start < end for other_start, other_end in layer):
            _refuse(f"{plan.weight_names[load.weight]} shares staging memory with others of call {load.first_call}")
        layer.append((start, end))


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
    for weight, first_call, last_call in _check_stays(problem, plan):
        intervals.setdefault(weight, []).append((first_call, last_call))
    available = set(fixed)
    for index, call in enumerate(problem.calls):
        for weight in call.reads:
            if weight in available:
                continue
            covering = sum(first <= index and last >= call.last for first, last in intervals.get(weight, []))
            if covering != 1:
                _refuse(f"{problem.weights[weight].name} has {covering} loads over call {index} ({call.name}), not one")


def _check_stays(problem: Problem, plan: Plan) -> Iterable[tuple[int, int, int]]:
    """Weight, first and last call of each stay, whose loads bring all of the weight to one place."""
    stays: dict[tuple[int, int, int], list[Load]] = {}
    for load in plan.loads:
        stays.setdefault((load.weight, load.first_call, load.last_call), []).append(load)
    for (index, *_), loads in stays.items():
        weight, end = problem.weights[index], 0
        for load in sorted(loads, key=lambda load: load.first_byte):
            in_block = (weight.offset_in_block + load.first_byte) % problem.storage.block_nbytes
            if load.first_byte != end or load.offset != loads[0].offset or (end and in_block):
                _refuse(f"the loads of {weight.name} do not join at byte {end}, on a block")
            end += load.nbytes
        if weight.is_moved and len(loads) > 1:
            _refuse(f"{weight.name} is moved once it is there, but comes in {len(loads)} loads")
        if end != weight.nbytes:
            _refuse(f"the loads of {weight.name} bring {end} of its {weight.nbytes} bytes")
    return stays


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
