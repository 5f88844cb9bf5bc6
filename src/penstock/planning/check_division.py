"""Whether a plan's joins and cuts are of weights that can be joined and cut, and what they make is all of these."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import NoReturn

from penstock.errors import PlanError
from penstock.planning.joining import join
from penstock.planning.plan import Plan
from penstock.planning.problem import Problem
from penstock.planning.slicing import divide


def check_division(problem: Problem, plan: Plan) -> Problem:
    """The problem whose weights and calls `plan` numbers.

    Raises:
        PlanError: with the first violation found.
    """
    _check_joins(problem, plan)
    joined = join(problem, plan.joins).problem
    _check_joined(problem, plan, joined)
    _check_cuts(joined, plan)
    divided = divide(joined, plan.cuts).problem
    _check_slices(joined, plan, divided)
    return divided


def _check_joins(problem: Problem, plan: Plan) -> None:
    """What is joined lies side by side in one file, is left where it arrives, and serves one call each."""
    named = [weight for item in plan.joins for weight in item.weights]
    if len(set(named)) != len(named):
        _refuse("a weight is in two joins")
    for item in plan.joins:
        if not 2 <= len(item.weights) <= 8 or not all(0 <= weight < len(problem.weights) for weight in item.weights):
            _refuse(f"the plan joins weights {item.weights} of {len(problem.weights)}")
        for before, after in pairwise(problem.weights[weight] for weight in item.weights):
            if before.file is None or before.file != after.file:
                _refuse(f"{before.name} and {after.name} are joined, but not in one file")
            if before.file_offset + before.nbytes > after.file_offset:
                _refuse(f"{before.name} and {after.name} are joined, but not in their order in storage")
    joined = set(named)
    reads = Counter(weight for call in problem.calls for weight in call.reads)
    for index in joined:
        weight = problem.weights[index]
        if weight.rows_only or weight.is_moved or reads[index] != 1:
            _refuse(f"{weight.name} is joined, but read by rows, moved, or read by {reads[index]} calls")
    for index, call in enumerate(problem.calls):
        if call.last != index and not joined.isdisjoint(call.reads):
            _refuse(f"{call.name} has calls within it, but one of its weights is joined")


def _check_joined(problem: Problem, plan: Plan, joined: Problem) -> None:
    """A joined weight is the bytes from its first to its last, and every call reads what it reads, or a join of it."""
    join_of = {weight: item.weights for item in plan.joins for weight in item.weights}
    parts = list(dict.fromkeys(join_of.get(index, (index,)) for index in range(len(problem.weights))))
    if len(joined.weights) != len(parts):
        _refuse("the joined weights are not all of the weights")
    for item, members in zip(joined.weights, parts, strict=True):
        first, last = problem.weights[members[0]], problem.weights[members[-1]]
        if len(members) == 1:
            if item != first:
                _refuse(f"{first.name}, which is not joined, changes")
            continue
        whole_nbytes = last.file_offset + last.nbytes - first.file_offset
        if (item.nbytes, item.offset_in_block, item.is_joined) != (whole_nbytes, first.offset_in_block, True):
            _refuse(f"{item.name} is not the bytes of all that is joined in it")
        if item.rows != 1 or item.rows_only or item.is_moved:
            _refuse(f"{item.name} is joined, but cut, moved or read by rows")
    for call, before in zip(joined.calls, problem.calls, strict=True):
        if {parts[weight] for weight in call.reads} != {join_of.get(weight, (weight,)) for weight in before.reads}:
            _refuse(f"{call.name} does not read what is joined with its weights")
        if replace(call, reads=before.reads) != before:
            _refuse(f"{call.name}, whose weights are joined, changes")


def _check_cuts(problem: Problem, plan: Plan) -> None:
    """Every cut lies within a weight that can be cut."""
    for cut in plan.cuts:
        if not 0 <= cut.weight < len(problem.weights):
            _refuse(f"the plan cuts weight {cut.weight} of {len(problem.weights)}")
        weight = problem.weights[cut.weight]
        if not cut.rows or sorted(set(cut.rows)) != list(cut.rows) or cut.rows[0] < 1 or cut.rows[-1] >= weight.rows:
            _refuse(f"{weight.name}, which has {weight.rows} rows that can be apart, is cut at {cut.rows}")
    if len({cut.weight for cut in plan.cuts}) != len(plan.cuts):
        _refuse("the plan cuts a weight twice")


def _check_slices(problem: Problem, plan: Plan, divided: Problem) -> None:
    """Slices are their weights' bytes, all of them, in the same places in storage, and are read as often."""
    rows_of = {cut.weight: cut.rows for cut in plan.cuts}
    reads = Counter(weight for call in problem.calls for weight in call.reads)
    expected = []
    for index, weight in enumerate(problem.weights):
        row_nbytes = weight.nbytes // weight.rows
        for begin, end in pairwise((0, *rows_of.get(index, ()), weight.rows)):
            in_block = (weight.offset_in_block + begin * row_nbytes) % problem.storage.block_nbytes
            expected.append(((end - begin) * row_nbytes, in_block, reads[index]))
    slice_reads = Counter(weight for call in divided.calls for weight in call.reads)
    found = [(item.nbytes, item.offset_in_block, slice_reads[index]) for index, item in enumerate(divided.weights)]
    if found != expected:
        _refuse("the slices of a weight are not all of it")


def _refuse(message: str) -> NoReturn:
    raise PlanError(f"{message}: make the plan again")
